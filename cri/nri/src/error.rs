//! What can go wrong.

use std::io;
use std::path::PathBuf;

use crate::mux::PieceTooLong;
use crate::ttrpc::TooLong;

/// Why a request to a plugin came to nothing, or what its answer contradicts.
#[derive(Debug, thiserror::Error)]
pub enum NriError {
    /// The plugin said no.
    #[error("NRI plugin `{plugin}` refused {request}: {message}")]
    Refused {
        /// `index-name`.
        plugin: String,
        /// What it was asked.
        request: &'static str,
        /// Its words.
        message: String,
    },
    /// It didn't answer, and its policy says that this counts as no.
    #[error("NRI plugin `{plugin}` failed to answer {request}, which its failure policy makes an error")]
    Failed {
        /// `index-name`.
        plugin: String,
        /// What it was asked.
        request: &'static str,
        /// What happened.
        #[source]
        source: ConnectionError,
    },
    /// A validator didn't answer: without it nothing may be let through.
    #[error("NRI validator `{plugin}` failed to answer")]
    Validator {
        /// `index-name`.
        plugin: String,
        /// What happened.
        #[source]
        source: ConnectionError,
    },
    /// Two want the same thing.
    #[error("NRI plugins `{plugin}` and `{other}` both tried to set {field}")]
    Conflict {
        /// Who came second.
        plugin: String,
        /// Who came first.
        other: String,
        /// What, with its key.
        field: String,
    },
    /// An update of the container that doesn't exist yet.
    #[error("NRI plugin `{plugin}` asked for an update of container {id} while it is being created")]
    UpdateOfNew {
        /// `index-name`.
        plugin: String,
        /// The container.
        id: String,
    },
    /// A validator said no to what others want.
    #[error("NRI validator `{plugin}` rejected what plugins want of the container: {reason}")]
    Rejected {
        /// `index-name`.
        plugin: String,
        /// Its words.
        reason: String,
    },
}

/// Why a call over a plugin's connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// It is closed.
    #[error("its connection is closed")]
    Closed,
    /// The time is over.
    #[error("it took longer than {0} ms")]
    Timeout(u128),
    /// The other end answered with an error.
    #[error("it answered with code {code}: {message}")]
    Refused {
        /// gRPC's code.
        code: i32,
        /// In words.
        message: String,
    },
    /// Too much to say.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The answer is not the message that it should be.
    #[error("its answer makes no sense")]
    Decode(#[from] prost::DecodeError),
}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrunkError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Piece(#[from] PieceTooLong),
    #[error(transparent)]
    Message(#[from] TooLong),
    #[error("what the plugin says makes no sense")]
    Decode(#[from] prost::DecodeError),
}

/// Why a plugin that connected, or was started, isn't one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("it closed its connection before it registered")]
    Closed,
    #[error("it has not registered within {0} ms")]
    Late(u128),
    #[error("it registered under a name or index that NRI does not allow: {0}")]
    Name(String),
    #[error("it failed to configure itself")]
    Configure(#[source] ConnectionError),
    #[error("it subscribed to events that NRI does not have: {0:#x}")]
    Events(u32),
    #[error("it failed to synchronize")]
    Synchronize(#[source] ConnectionError),
    #[error("it cannot take the list of pods and containers in parts, and in one it is too long")]
    Parts,
    #[error("failed to start it")]
    Launch(#[source] io::Error),
    #[error("as many plugins are connected as may be: {0}")]
    TooMany(usize),
}

/// Why plugins can't be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket.
    #[error(
        "failed to {what} `{path}` for NRI plugins; set `nri.socket` to another path, or `nri.enabled` to false"
    )]
    Socket {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another server.
    #[error(
        "another server answers NRI plugins at `{0}`; stop it, set `nri.socket` to another path, or `nri.enabled` to false"
    )]
    InUse(PathBuf),
}
