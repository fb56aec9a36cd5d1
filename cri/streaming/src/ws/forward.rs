//! Port-forward for plain WebSocket clients: one connection for each port, named in the request.
//!
//! The port at place `i` has channel `2i` for its bytes and `2i+1` for its errors. First the server writes the port's
//! number, little-endian, on both, so that the client knows which is which.

use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, DuplexStream, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::Socket;
use super::channel::{self, Coding};
use crate::activity::Activity;
use crate::api::{PortForwardRequest, StreamHandler};
use crate::limits::Limits;
use crate::remote::{self, PIPE_BYTES};

/// Sub-protocols, best first.
pub(crate) const PROTOCOLS: [&str; 2] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// How many ports fit: two channels each, and base64 has only so many digits.
pub(crate) const MAX_PORTS: usize = 20;

/// Serves one client until it leaves, or all its connections have ended.
pub(crate) async fn serve(
    (socket, activity): (Socket, Activity),
    request: PortForwardRequest,
    protocol: &str,
    handler: Arc<dyn StreamHandler>,
    limits: &Limits,
) {
    let coding = if protocol.contains("base64") {
        Coding::Base64
    } else {
        Coding::Binary
    };
    let (mut sink, mut source) = socket.split();
    let (out, mut queue) = mpsc::channel::<Message>(8);
    let mut inward = Vec::new();
    let mut running = JoinSet::new();
    for (at, port) in request.ports.iter().copied().take(MAX_PORTS).enumerate() {
        let data = u8::try_from(at * 2).unwrap_or(u8::MAX);
        for channel in [data, data + 1] {
            if sink
                .send(channel::encode(coding, channel, &port.to_le_bytes()))
                .await
                .is_err()
            {
                return;
            }
        }
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (read, write) = tokio::io::split(ours);
        inward.push(Some(write));
        let (target, handler, out) = (request.target.clone(), handler.clone(), out.clone());
        running.spawn(async move {
            let call = crate::forward_in_task(handler, target, port, Box::pin(theirs));
            let (result, ()) = tokio::join!(call, pump(read, coding, data, out.clone()));
            if let Err(failure) = result {
                let told = format!("error forwarding port {port}: {failure}");
                let _ = out.send(channel::encode(coding, data + 1, told.as_bytes())).await;
            }
        });
    }
    drop(out);
    let listening = async {
        while let Some(Ok(message)) = source.next().await {
            if let Some((channel, bytes)) = channel::decode(coding, &message) {
                deliver(&mut inward, channel, &bytes).await;
            }
        }
    };
    let speaking = async {
        // Ends when every connection has ended.
        while let Some(message) = queue.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = tokio::time::timeout(crate::LINGER, sink.close()).await;
    };
    tokio::select! {
        () = listening => {}
        () = speaking => {}
        () = activity.ends(limits.idle) => {}
    }
    // Handlers run in tasks of their own and see their pipes end.
}

/// Bytes for a port; those for an error channel mean nothing.
async fn deliver(inward: &mut [Option<WriteHalf<DuplexStream>>], channel: u8, bytes: &[u8]) {
    if channel.is_multiple_of(2)
        && let Some(pipe) = inward.get_mut(usize::from(channel / 2))
    {
        remote::feed(pipe, bytes).await;
    }
}

/// Sends what comes from a port.
async fn pump(
    mut read: tokio::io::ReadHalf<DuplexStream>,
    coding: Coding,
    channel: u8,
    out: mpsc::Sender<Message>,
) {
    let mut buffer = vec![0; PIPE_BYTES];
    loop {
        match read.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                if out
                    .send(channel::encode(coding, channel, &buffer[..count]))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            _ => return,
        }
    }
}
