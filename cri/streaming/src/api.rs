//! What a streaming server is asked and what answers it: no CRI type in sight, so that the kubelet and the API server
//! can serve the same protocols.

use std::future::Future;
use std::pin::Pin;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

/// A stream of bytes from the client.
pub type ByteReader = Pin<Box<dyn AsyncRead + Send>>;
/// A stream of bytes to the client.
pub type ByteWriter = Pin<Box<dyn AsyncWrite + Send>>;

/// Both directions of one forwarded connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}
/// Both directions of one forwarded connection, owned.
pub type BoxDuplex = Pin<Box<dyn Duplex>>;

/// Runs a command in a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// What to run it in, as the handler knows it (a container ID).
    pub target: String,
    /// The command and its arguments.
    pub cmd: Vec<String>,
    /// A terminal: stdout carries all output, there is no stderr, sizes arrive.
    pub tty: bool,
    /// The client sends stdin.
    pub stdin: bool,
    /// The client wants stdout.
    pub stdout: bool,
    /// The client wants stderr; never with `tty`.
    pub stderr: bool,
}

/// Joins a target's main process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// What to join, as the handler knows it (a container ID).
    pub target: String,
    /// The main process has a terminal.
    pub tty: bool,
    /// The client sends stdin.
    pub stdin: bool,
    /// The client wants stdout.
    pub stdout: bool,
    /// The client wants stderr; never with `tty`.
    pub stderr: bool,
}

/// Forwards connections to ports of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// Whose ports, as the handler knows it (a sandbox ID).
    pub target: String,
    /// The ports, for protocols whose client doesn't name them itself; may be empty otherwise.
    pub ports: Vec<u16>,
}

/// The client's ends of an exec or attach; only what was asked for is there.
pub struct Streams {
    /// Ends (reads nothing) when the client closed stdin or went away.
    pub stdin: Option<ByteReader>,
    /// Fails with `BrokenPipe` once the client is gone. Shut it down at the end: that flushes.
    pub stdout: Option<ByteWriter>,
    /// As `stdout`.
    pub stderr: Option<ByteWriter>,
    /// Sizes of the client's terminal; ends when the client goes away.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
    /// Tells when the client is gone, for a handler that neither reads nor writes at the moment.
    pub gone: Gone,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish_non_exhaustive()
    }
}

/// Tells when a client is gone.
#[derive(Debug, Clone)]
pub struct Gone(pub(crate) watch::Receiver<bool>);

impl Gone {
    /// Waits until the client is gone.
    pub fn wait(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut seen = self.0.clone();
        async move {
            // An error means that the sender is dropped, which is the same news.
            let _ = seen.wait_for(|gone| *gone).await;
        }
    }

    /// Whether the client is gone already.
    pub fn is_gone(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code; 128 and the signal's number for one that was killed.
    pub code: i32,
}

/// Why a handler could not do what was asked, in a sentence for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StreamError {
    /// What kind of failure.
    pub kind: StreamErrorKind,
    /// The sentence; with its causes.
    pub message: String,
}

impl StreamError {
    /// A failure that has no kind of its own.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            kind: StreamErrorKind::Failed,
            message: message.into(),
        }
    }

    /// The target, or a command in it, doesn't exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self {
            kind: StreamErrorKind::NotFound,
            message: message.into(),
        }
    }
}

/// Kinds of failure that clients tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamErrorKind {
    /// Target or command not found.
    NotFound,
    /// The client was too slow, and was let go so that nothing else has to wait.
    TooSlow,
    /// Anything else.
    Failed,
}

/// Does what clients ask for.
///
/// The streams end when the client goes away; a handler decides for itself what that means for the process behind.
/// What it returns is told to the client, after all output.
#[async_trait]
pub trait StreamHandler: Send + Sync + 'static {
    /// Runs a command, and returns when it and its output have ended.
    async fn exec(&self, request: ExecRequest, streams: Streams) -> Result<ExitStatus, StreamError>;

    /// Joins the main process, and returns when it ends or the client goes away.
    async fn attach(&self, request: AttachRequest, streams: Streams) -> Result<(), StreamError>;

    /// Connects to a port of the target and copies both ways, and returns when both directions have ended.
    async fn port_forward(&self, target: String, port: u16, stream: BoxDuplex) -> Result<(), StreamError>;
}
