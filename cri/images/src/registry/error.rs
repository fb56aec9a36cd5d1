//! What registries do wrong, which of it is worth another try, and what is told when several servers failed.

use std::time::Duration;

use reqwest::StatusCode;

use super::transport;
use crate::PullErrorKind;
use crate::content::IngestError;
use crate::manifest;

/// How often one server is asked for one thing in spite of hiccups.
const MAX_TRIES: u32 = 5;

/// What a registry did wrong, or refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Nobody there, or the connection broke.
    #[error("failed to get {what} from `{server}`")]
    Unreachable {
        /// A manifest or blob.
        what: String,
        /// The server.
        server: String,
        /// How.
        #[source]
        source: reqwest::Error,
    },
    /// It answered with an error.
    #[error("`{server}` answered {status} to the request for {what}{message}")]
    Status {
        /// A manifest or blob.
        what: String,
        /// The server.
        server: String,
        /// The HTTP status.
        status: StatusCode,
        /// What it says, after a colon.
        message: String,
    },
    /// The token server failed or refused.
    #[error("failed to get a token for `{server}` from `{realm}`: {reason}")]
    Token {
        /// The registry.
        server: String,
        /// The token server.
        realm: String,
        /// What went wrong.
        reason: String,
        /// Whether the credentials are at fault.
        is_refused: bool,
    },
    /// The client for this server can't be made: its certificates, say.
    #[error("failed to prepare the connection to `{server}`: {reason}")]
    Setup {
        /// The server.
        server: String,
        /// Why.
        reason: String,
    },
    /// Other content than asked for.
    #[error("`{server}` sent wrong content for {what}")]
    Content {
        /// A manifest or blob.
        what: String,
        /// The server.
        server: String,
        /// In which way.
        #[source]
        source: IngestError,
    },
    /// A manifest larger than allowed.
    #[error("the manifest that `{server}` sent is larger than {max} bytes", max = manifest::MAX_MANIFEST)]
    TooLarge {
        /// The server.
        server: String,
    },
    /// No server may be asked.
    #[error("no server is configured that may {0}; look at hosts.toml")]
    NoServer(&'static str),
    /// All servers failed; the last one's error is the source.
    #[error("all servers failed; before the last one: {before}")]
    All {
        /// The errors of the others.
        before: String,
        /// The last one's.
        #[source]
        source: Box<RegistryError>,
    },
}

impl RegistryError {
    /// What a caller can do about it.
    pub fn kind(&self) -> PullErrorKind {
        match self {
            Self::Status { status, .. } => match status.as_u16() {
                404 => PullErrorKind::NotFound,
                401 | 403 => PullErrorKind::Unauthorized,
                _ => PullErrorKind::Unavailable,
            },
            Self::Token { is_refused: true, .. } => PullErrorKind::Unauthorized,
            Self::Unreachable { .. } | Self::Token { .. } => PullErrorKind::Unavailable,
            Self::Content {
                source: IngestError::File(error),
                ..
            } if error.is_no_space() => PullErrorKind::NoSpace,
            Self::Content {
                source: IngestError::File(_) | IngestError::Lost,
                ..
            } => PullErrorKind::Internal,
            Self::Content { .. } | Self::TooLarge { .. } => PullErrorKind::Corrupt,
            Self::Setup { .. } | Self::NoServer(_) => PullErrorKind::Internal,
            Self::All { source, .. } => source.kind(),
        }
    }

    /// Whether the same server may do better a moment later, and when.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unreachable { source, .. } => (!transport::is_final(source)).then_some(Duration::ZERO),
            Self::Status { status, .. } => {
                let code = status.as_u16();
                (code == 408 || code == 429 || (code >= 500 && code != 501)).then_some(Duration::ZERO)
            }
            Self::Token { is_refused, .. } => (!is_refused).then_some(Duration::ZERO),
            _ => None,
        }
    }
}

/// How often one thing was tried at one server.
#[derive(Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// Waits before another try, or gives the error back when it is final or there were enough.
    pub(super) async fn pause_or(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.0 += 1;
        let Some(least) = error.retry_after().filter(|_| self.0 < MAX_TRIES) else {
            return Err(error);
        };
        let pause = Duration::from_millis(100) * 2_u32.pow(self.0 - 1);
        tracing::debug!(error = %crate::disk::Chain(&error), ?pause, "registry request failed; trying again");
        tokio::time::sleep(pause.max(least)).await;
        Ok(())
    }
}

/// The errors of the servers that were asked.
#[derive(Default)]
pub(super) struct Failures(Vec<RegistryError>);

impl Failures {
    pub(super) fn push(&mut self, error: RegistryError) {
        self.0.push(error);
    }

    /// The last error, which is the registry's own, with the mirrors' told beside it.
    pub(super) fn into_error(mut self, verb: &'static str) -> RegistryError {
        let Some(last) = self.0.pop() else {
            return RegistryError::NoServer(verb);
        };
        if self.0.is_empty() {
            return last;
        }
        let before: Vec<_> = self
            .0
            .iter()
            .map(|error| crate::disk::Chain(error).to_string())
            .collect();
        RegistryError::All {
            before: before.join("; "),
            source: Box::new(last),
        }
    }
}
