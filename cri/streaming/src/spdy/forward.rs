//! Port-forward over SPDY: for each connection the client opens an error and a data stream with the same request ID.
//!
//! The pairs are independent; each is one call of the handler, in a task of its own. What fails is told on the error
//! stream, as text. A stream without its partner is given up after the time for stream creation.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::frame;
use super::session::{Session, Stream};
use crate::api::{PortForwardRequest, StreamHandler};
use crate::limits::Limits;

/// The one sub-protocol.
pub(crate) const PROTOCOLS: [&str; 1] = ["portforward.k8s.io"];

/// A stream that waits for its partner.
struct Half {
    stream: Stream,
    since: Instant,
}

/// What a stream says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Label {
    request: String,
    port: u16,
    error: bool,
}

/// Reads a stream's headers.
fn label(stream: &Stream) -> Result<Label, String> {
    let header = |name: &str| stream.headers.get(name).map(String::as_str);
    let error = match header("streamtype") {
        Some("error") => true,
        Some("data") => false,
        other => {
            return Err(format!(
                "stream type `{}` is neither error nor data",
                other.unwrap_or_default()
            ));
        }
    };
    let port = header("port").unwrap_or_default();
    let port: u16 = port
        .parse()
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| format!("`{port}` is not a port"))?;
    let request = match header("requestid") {
        Some(request) if !request.is_empty() => request.to_owned(),
        // Old clients send none, and open the data stream right after its error stream.
        _ => format!(
            "by-stream-{}",
            if error {
                stream.id
            } else {
                stream.id.saturating_sub(2)
            }
        ),
    };
    Ok(Label { request, port, error })
}

/// Serves one client until it leaves.
pub(crate) async fn serve(
    mut session: Session,
    request: PortForwardRequest,
    handler: Arc<dyn StreamHandler>,
    limits: &Limits,
) {
    let mut halves: BTreeMap<String, Half> = BTreeMap::new();
    let mut running: JoinSet<[u32; 2]> = JoinSet::new();
    loop {
        let stale = halves.values().map(|h| h.since + limits.stream_creation).min();
        let stale = async {
            match stale {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = session.accept() => match stream {
                Some(stream) => {
                    if let Some((error, data, port)) = pair(&session, &mut halves, stream).await {
                        if running.len() >= limits.max_forwards {
                            session.reset(error.id, frame::REFUSED_STREAM).await;
                            session.reset(data.id, frame::REFUSED_STREAM).await;
                        } else {
                            running.spawn(forward(error, data, request.target.clone(), port, handler.clone()));
                        }
                    }
                }
                None => break,
            },
            done = running.join_next(), if !running.is_empty() => {
                for id in done.and_then(Result::ok).into_iter().flatten() {
                    session.forget(id);
                }
            }
            () = stale => give_up(&session, &mut halves, limits).await,
        }
    }
    // The client is gone; so are the pipes, and each handler sees that in its own time.
    running.detach_all();
}

/// The partner of a stream, once both are there: error, data, port.
async fn pair(
    session: &Session,
    halves: &mut BTreeMap<String, Half>,
    stream: Stream,
) -> Option<(Stream, Stream, u16)> {
    let label_of = match label(&stream) {
        Ok(label) => label,
        Err(why) => {
            tracing::debug!(why, "a forwarded stream was refused");
            session.reset(stream.id, frame::REFUSED_STREAM).await;
            return None;
        }
    };
    let Some(other) = halves.remove(&label_of.request) else {
        halves.insert(
            label_of.request,
            Half {
                stream,
                since: Instant::now(),
            },
        );
        return None;
    };
    match label(&other.stream) {
        Ok(partner) if partner.error != label_of.error && partner.port == label_of.port => {
            let (error, data) = if label_of.error {
                (stream, other.stream)
            } else {
                (other.stream, stream)
            };
            Some((error, data, label_of.port))
        }
        _ => {
            session.reset(stream.id, frame::REFUSED_STREAM).await;
            session.reset(other.stream.id, frame::REFUSED_STREAM).await;
            None
        }
    }
}

/// Ends streams that have waited too long for their partner.
async fn give_up(session: &Session, halves: &mut BTreeMap<String, Half>, limits: &Limits) {
    let old: Vec<String> = halves
        .iter()
        .filter(|(_, half)| half.since.elapsed() >= limits.stream_creation)
        .map(|(request, _)| request.clone())
        .collect();
    for request in old {
        if let Some(half) = halves.remove(&request) {
            session.reset(half.stream.id, frame::CANCEL).await;
        }
    }
}

/// Forwards one connection. Returns its two streams, which the client may never end.
async fn forward(
    error: Stream,
    data: Stream,
    target: String,
    port: u16,
    handler: Arc<dyn StreamHandler>,
) -> [u32; 2] {
    let ids = [error.id, data.id];
    let mut pipe = error.pipe;
    if let Err(failure) = crate::forward_in_task(handler, target, port, Box::pin(data.pipe)).await {
        let told = format!("error forwarding port {port}: {failure}");
        let _ = pipe.write_all(told.as_bytes()).await;
    }
    let _ = pipe.shutdown().await;
    ids
}
