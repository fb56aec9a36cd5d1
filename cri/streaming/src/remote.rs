//! Remote commands, as far as the two transports agree: which streams there are, and who runs them.

use std::sync::Arc;

use tokio::io::{AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::api::{AttachRequest, ExecRequest, Gone, StreamError, StreamHandler, Streams, TerminalSize};
use crate::status::Outcome;

/// What may wait in each pipe, in bytes.
pub(crate) const PIPE_BYTES: usize = 32 << 10;
/// Sizes that may wait for the handler; older ones are worth nothing.
const QUEUE_SIZES: usize = 8;

/// An exec or an attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

/// Which streams a client is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) resize: bool,
}

impl Command {
    /// The streams; a terminal has no stderr of its own.
    pub(crate) fn wanted(&self) -> Wanted {
        let (stdin, stdout, stderr, tty) = match self {
            Self::Exec(r) => (r.stdin, r.stdout, r.stderr, r.tty),
            Self::Attach(r) => (r.stdin, r.stdout, r.stderr, r.tty),
        };
        Wanted {
            stdin,
            stdout,
            stderr: stderr && !tty,
            resize: tty,
        }
    }
}

/// The connection's ends of a command's streams.
pub(crate) struct Ends {
    pub(crate) stdin: Option<WriteHalf<DuplexStream>>,
    pub(crate) stdout: Option<ReadHalf<DuplexStream>>,
    pub(crate) stderr: Option<ReadHalf<DuplexStream>>,
    pub(crate) resize: Option<mpsc::Sender<TerminalSize>>,
    pub(crate) gone: watch::Sender<bool>,
    /// How the command ended.
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

/// Starts a command whose streams are pipes.
///
/// It runs in a task of its own: when the connection breaks, the pipes do too, and the handler winds up in its own
/// time.
pub(crate) fn start(handler: Arc<dyn StreamHandler>, command: Command, wanted: Wanted) -> Ends {
    let pipe = |wanted: bool| wanted.then(|| tokio::io::duplex(PIPE_BYTES)).unzip();
    let ((stdin, their_stdin), (stdout, their_stdout), (stderr, their_stderr)) =
        (pipe(wanted.stdin), pipe(wanted.stdout), pipe(wanted.stderr));
    let (resize, sizes) = wanted.resize.then(|| mpsc::channel(QUEUE_SIZES)).unzip();
    let (gone, seen) = watch::channel(false);
    let streams = Streams {
        stdin: their_stdin.map(|s| Box::pin(s) as _),
        stdout: their_stdout.map(|s| Box::pin(s) as _),
        stderr: their_stderr.map(|s| Box::pin(s) as _),
        resize: sizes,
        gone: Gone(seen),
    };
    let outcome = run(handler, command, streams);
    let read = |s: DuplexStream| tokio::io::split(s).0;
    Ends {
        stdin: stdin.map(|s| tokio::io::split(s).1),
        stdout: stdout.map(read),
        stderr: stderr.map(read),
        resize,
        gone,
        outcome,
    }
}

/// Runs a command in a task of its own, which also outlives a handler that panics.
pub(crate) fn run(
    handler: Arc<dyn StreamHandler>,
    command: Command,
    streams: Streams,
) -> oneshot::Receiver<Outcome> {
    let task = tokio::spawn(async move {
        match command {
            Command::Exec(request) => handler.exec(request, streams).await.map(Some),
            Command::Attach(request) => handler.attach(request, streams).await.map(|()| None),
        }
    });
    let (told, outcome) = oneshot::channel();
    tokio::spawn(async move {
        let broken = |_| {
            Err(StreamError::failed(
                "the server failed while it served this request",
            ))
        };
        let _ = told.send(task.await.unwrap_or_else(broken));
    });
    outcome
}

/// How the command ended, whatever became of its task.
pub(crate) fn outcome(received: Result<Outcome, oneshot::error::RecvError>) -> Outcome {
    received.unwrap_or_else(|_| Err(StreamError::failed("the server is shutting down")))
}

/// Bytes for stdin. `None` from then on once the handler doesn't want more.
pub(crate) async fn feed(stdin: &mut Option<WriteHalf<DuplexStream>>, bytes: &[u8]) {
    if let Some(open) = stdin
        && open.write_all(bytes).await.is_err()
    {
        *stdin = None;
    }
}

/// The end of stdin.
pub(crate) async fn end(stdin: &mut Option<WriteHalf<DuplexStream>>) {
    if let Some(mut open) = stdin.take() {
        let _ = open.shutdown().await;
    }
}

/// A size as clients send it: JSON with `Width` and `Height`, one or more after another.
pub(crate) fn parse_sizes(bytes: &[u8]) -> Vec<TerminalSize> {
    #[derive(serde::Deserialize)]
    struct Size {
        #[serde(alias = "width")]
        #[serde(rename = "Width")]
        width: u16,
        #[serde(alias = "height")]
        #[serde(rename = "Height")]
        height: u16,
    }
    let all = serde_json::Deserializer::from_slice(bytes).into_iter::<Size>();
    // The last few are all that matters.
    let mut sizes: Vec<_> = all
        .map_while(Result::ok)
        .map(|s| TerminalSize {
            width: s.width,
            height: s.height,
        })
        .collect();
    sizes.drain(..sizes.len().saturating_sub(QUEUE_SIZES));
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_no_stderr() {
        let request = ExecRequest {
            target: String::new(),
            cmd: vec![],
            tty: true,
            stdin: true,
            stdout: true,
            stderr: true,
        };
        let wanted = Command::Exec(request).wanted();
        assert_eq!(
            wanted,
            Wanted {
                stdin: true,
                stdout: true,
                stderr: false,
                resize: true
            }
        );
    }

    #[test]
    fn sizes_are_read_as_go_writes_them() {
        let size = |width, height| TerminalSize { width, height };
        assert_eq!(parse_sizes(br#"{"Width":80,"Height":24}"#), [size(80, 24)]);
        assert_eq!(
            parse_sizes(b"{\"Width\":1,\"Height\":2}\n{\"width\":3,\"height\":4}\n{\"Wid"),
            [size(1, 2), size(3, 4)]
        );
        assert_eq!(parse_sizes(b"nonsense"), []);
        assert_eq!(parse_sizes(br#"{"Width":70000,"Height":1}"#), []);
    }
}
