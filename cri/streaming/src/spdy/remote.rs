//! Exec and attach over SPDY: the client opens one stream for each kind, then the command starts.
//!
//! Versions: the first two have no resize stream, the fourth writes its outcome as a `Status` object. All else is the
//! same. The error stream is always there, and carries the outcome after all output has gone.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf};
use tokio::sync::{mpsc, oneshot, watch};

use super::frame;
use super::session::Session;
use crate::api::{Gone, StreamHandler, Streams, TerminalSize};
use crate::limits::Limits;
use crate::remote::{self, Command, Wanted};
use crate::status::{self, Outcome};

/// Sub-protocols, best first.
pub(crate) const PROTOCOLS: [&str; 4] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];

/// Streams that a client may have open; a few more than there are kinds.
pub(crate) const MAX_STREAMS: usize = 8;
/// How much of a resize message may be without its end, in bytes.
const MAX_SIZE_BYTES: usize = 4 << 10;

/// The streams that a client has opened.
#[derive(Default)]
struct Opened {
    error: Option<DuplexStream>,
    stdin: Option<DuplexStream>,
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
    resize: Option<DuplexStream>,
}

impl Opened {
    fn whole(&self, wanted: Wanted) -> bool {
        self.error.is_some()
            && self.stdin.is_some() >= wanted.stdin
            && self.stdout.is_some() >= wanted.stdout
            && self.stderr.is_some() >= wanted.stderr
            && self.resize.is_some() >= wanted.resize
    }

    /// The place of a kind of stream; `None` if it isn't wanted or there already.
    fn place(&mut self, kind: &str, wanted: Wanted) -> Option<&mut Option<DuplexStream>> {
        let (place, allowed) = match kind {
            "error" => (&mut self.error, true),
            "stdin" => (&mut self.stdin, wanted.stdin),
            "stdout" => (&mut self.stdout, wanted.stdout),
            "stderr" => (&mut self.stderr, wanted.stderr),
            "resize" => (&mut self.resize, wanted.resize),
            _ => return None,
        };
        (allowed && place.is_none()).then_some(place)
    }
}

/// Serves one client.
pub(crate) async fn serve(
    mut session: Session,
    command: Command,
    protocol: &str,
    handler: Arc<dyn StreamHandler>,
    limits: &Limits,
) {
    let mut wanted = command.wanted();
    wanted.resize &= !matches!(protocol, "channel.k8s.io" | "v2.channel.k8s.io");
    let gathered = tokio::time::timeout(limits.stream_creation, gather(&mut session, wanted)).await;
    let opened = match gathered {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(_) => {
            tracing::debug!("a client did not open its streams in time");
            return;
        }
    };
    let Some(mut error) = opened.error else { return };
    let streams = Streams {
        stdin: opened.stdin.map(|s| Box::pin(s) as _),
        stdout: opened.stdout.map(|s| Box::pin(s) as _),
        stderr: opened.stderr.map(|s| Box::pin(s) as _),
        resize: opened.resize.map(sizes),
        gone: Gone(session.ended()),
    };
    let outcome = remote::run(handler, command, streams);
    let Some(outcome) = wait(outcome, session.ended()).await else {
        return;
    };
    let told = match protocol {
        "v4.channel.k8s.io" => status::object(&outcome),
        _ => status::sentence(&outcome).unwrap_or_default().into_bytes(),
    };
    let _ = error.write_all(&told).await;
    let _ = error.shutdown().await;
    session.finish(crate::LINGER).await;
}

/// The outcome, unless the client goes first.
async fn wait(outcome: oneshot::Receiver<Outcome>, mut ended: watch::Receiver<bool>) -> Option<Outcome> {
    tokio::select! {
        outcome = outcome => Some(remote::outcome(outcome)),
        _ = ended.wait_for(|ended| *ended) => None,
    }
}

/// Takes streams until all that are wanted are there; `None` when the client leaves before.
async fn gather(session: &mut Session, wanted: Wanted) -> Option<Opened> {
    let mut opened = Opened::default();
    while !opened.whole(wanted) {
        let stream = session.accept().await?;
        let kind = stream.headers.get("streamtype").map_or("", String::as_str);
        match opened.place(kind, wanted) {
            Some(place) => *place = Some(stream.pipe),
            None => session.reset(stream.id, frame::REFUSED_STREAM).await,
        }
    }
    Some(opened)
}

/// Reads sizes from a resize stream in a task that ends with the stream.
fn sizes(pipe: DuplexStream) -> mpsc::Receiver<TerminalSize> {
    let (read, _write) = tokio::io::split(pipe);
    let (send, sizes) = mpsc::channel(8);
    tokio::spawn(read_sizes(read, send));
    sizes
}

async fn read_sizes(mut read: ReadHalf<DuplexStream>, send: mpsc::Sender<TerminalSize>) {
    let mut pending = Vec::new();
    let mut buffer = [0; 512];
    loop {
        let count = tokio::select! {
            count = read.read(&mut buffer) => count.unwrap_or(0),
            // The command has ended.
            () = send.closed() => 0,
        };
        if count == 0 {
            return;
        }
        pending.extend_from_slice(&buffer[..count]);
        // Objects have no objects in them, so each ends at the first closing brace.
        let Some(end) = pending.iter().rposition(|b| *b == b'}') else {
            if pending.len() > MAX_SIZE_BYTES {
                return;
            }
            continue;
        };
        for size in remote::parse_sizes(&pending[..=end]) {
            if send.send(size).await.is_err() {
                return;
            }
        }
        pending.drain(..=end);
    }
}
