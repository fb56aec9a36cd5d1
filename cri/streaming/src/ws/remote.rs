//! Exec and attach over WebSocket.
//!
//! One future reads what the client sends and one writes what the command says, so that neither waits for the other.
//! The client learns by an empty message that all is set up. When the command and its output have ended, the outcome
//! goes out on the error channel and the connection is closed, in that order. When the client leaves first, the pipes
//! break, and that is how the handler learns of it.

use std::sync::Arc;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::Socket;
use super::channel::{self, Coding};
use crate::activity::Activity;
use crate::api::{StreamHandler, TerminalSize};
use crate::limits::Limits;
use crate::remote::{self, Command, Ends, PIPE_BYTES, Wanted};
use crate::status::{self, Outcome};

/// Sub-protocols, best first.
pub(crate) const PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

/// What a sub-protocol means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dialect {
    coding: Coding,
    /// The outcome is a `Status` object.
    object: bool,
    /// Channel 255 closes channels.
    close: bool,
}

impl Dialect {
    fn of(protocol: &str) -> Self {
        let coding = if protocol.contains("base64") {
            Coding::Base64
        } else {
            Coding::Binary
        };
        let object = protocol.starts_with("v4.") || protocol.starts_with("v5.");
        Self {
            coding,
            object,
            close: protocol.starts_with("v5."),
        }
    }
}

/// Serves one client.
pub(crate) async fn serve(
    (socket, activity): (Socket, Activity),
    command: Command,
    protocol: &str,
    handler: Arc<dyn StreamHandler>,
    limits: &Limits,
) {
    let dialect = Dialect::of(protocol);
    let (mut sink, source) = socket.split();
    let wanted = command.wanted();
    if sink
        .send(channel::encode(dialect.coding, lowest(wanted), b""))
        .await
        .is_err()
    {
        return;
    }
    let Ends {
        stdin,
        stdout,
        stderr,
        resize,
        gone,
        outcome,
    } = remote::start(handler, command, wanted);
    let mut listening = Box::pin(listen(source, dialect, stdin, resize));
    let speaking = speak(&mut sink, dialect, stdout, stderr, outcome);
    let finished = tokio::select! {
        spoken = speaking => spoken.is_ok(),
        () = &mut listening => false,
        () = activity.ends(limits.idle) => false,
    };
    if finished {
        let close = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let goodbye = async {
            if sink.send(Message::Close(Some(close))).await.is_ok() {
                listening.await;
            }
        };
        let _ = tokio::time::timeout(crate::LINGER, goodbye).await;
    }
    let _ = gone.send(true);
}

/// The channel that tells the client that all is set up.
fn lowest(wanted: Wanted) -> u8 {
    match wanted {
        Wanted { stdout: true, .. } => channel::STDOUT,
        Wanted { stderr: true, .. } => channel::STDERR,
        _ => channel::ERROR,
    }
}

/// Reads what the client sends, until it leaves.
async fn listen(
    mut source: SplitStream<Socket>,
    dialect: Dialect,
    mut stdin: Option<WriteHalf<DuplexStream>>,
    resize: Option<mpsc::Sender<TerminalSize>>,
) {
    while let Some(Ok(message)) = source.next().await {
        if matches!(message, Message::Close(_)) {
            // Reading on lets the answer to it go out, and then ends.
            continue;
        }
        match channel::decode(dialect.coding, &message) {
            Some((channel::STDIN, bytes)) => remote::feed(&mut stdin, &bytes).await,
            Some((channel::RESIZE, bytes)) => {
                for size in remote::parse_sizes(&bytes) {
                    if let Some(resize) = &resize {
                        // A handler that doesn't take sizes misses some; it must not hold up stdin.
                        let _ = resize.try_send(size);
                    }
                }
            }
            Some((channel::CLOSE, which)) if dialect.close && which.as_ref() == [channel::STDIN] => {
                remote::end(&mut stdin).await;
            }
            _ => {}
        }
    }
}

/// Writes what the command says, and last how it ended.
async fn speak(
    sink: &mut SplitSink<Socket, Message>,
    dialect: Dialect,
    mut stdout: Option<ReadHalf<DuplexStream>>,
    mut stderr: Option<ReadHalf<DuplexStream>>,
    mut running: oneshot::Receiver<Outcome>,
) -> Result<(), WsError> {
    let mut buffers = (vec![0; PIPE_BYTES], vec![0; PIPE_BYTES]);
    let mut outcome = None;
    // Once the command has ended nobody writes any more; the deadline is for a handler that kept a stream.
    let mut deadline = None;
    while outcome.is_none() || stdout.is_some() || stderr.is_some() {
        let late = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let (channel, bytes) = tokio::select! {
            count = read(&mut stdout, &mut buffers.0) => (channel::STDOUT, &buffers.0[..count]),
            count = read(&mut stderr, &mut buffers.1) => (channel::STDERR, &buffers.1[..count]),
            ended = &mut running, if outcome.is_none() => {
                outcome = Some(remote::outcome(ended));
                deadline = Some(tokio::time::Instant::now() + crate::LINGER);
                continue;
            }
            () = late => break,
        };
        if !bytes.is_empty() {
            sink.send(channel::encode(dialect.coding, channel, bytes)).await?;
            // What flows is not late.
            deadline = deadline.map(|_| tokio::time::Instant::now() + crate::LINGER);
        }
    }
    let Some(outcome) = outcome else { return Ok(()) };
    let told = match dialect.object {
        true => Some(status::object(&outcome)),
        false => status::sentence(&outcome).map(String::into_bytes),
    };
    if let Some(told) = told {
        sink.send(channel::encode(dialect.coding, channel::ERROR, &told))
            .await?;
    }
    Ok(())
}

/// Reads a pipe that may not be there (then never), and takes it away at its end (then 0).
async fn read(pipe: &mut Option<ReadHalf<DuplexStream>>, buffer: &mut [u8]) -> usize {
    let Some(open) = pipe else {
        return std::future::pending().await;
    };
    match open.read(buffer).await {
        Ok(count) if count > 0 => count,
        _ => {
            *pipe = None;
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialects() {
        let of = |protocol| {
            let d = Dialect::of(protocol);
            (d.coding, d.object, d.close)
        };
        assert_eq!(of("v5.channel.k8s.io"), (Coding::Binary, true, true));
        assert_eq!(of("v4.channel.k8s.io"), (Coding::Binary, true, false));
        assert_eq!(of("v4.base64.channel.k8s.io"), (Coding::Base64, true, false));
        assert_eq!(of("channel.k8s.io"), (Coding::Binary, false, false));
        assert_eq!(of("base64.channel.k8s.io"), (Coding::Base64, false, false));
    }
}
