//! A SPDY connection inside WebSocket: the payloads of binary messages, one after another, are its bytes.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::Socket;
use crate::activity::Activity;
use crate::limits::Limits;

/// The sub-protocol of a tunnelled port-forward.
pub(crate) const PORT_FORWARD: &str = "SPDY/3.1+portforward.k8s.io";

/// What may wait in either direction, in bytes.
const PIPE_BYTES: usize = 64 << 10;

/// Both ends of the tunnel: the bytes for SPDY, and the future that carries them until either side ends.
pub(crate) fn open(
    (socket, activity): (Socket, Activity),
    limits: &Limits,
) -> (DuplexStream, impl Future<Output = ()> + Send) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let idle = limits.idle;
    let carry = async move {
        let (mut read, mut write) = tokio::io::split(ours);
        let (mut sink, mut source) = socket.split();
        let inward = async {
            while let Some(Ok(message)) = source.next().await {
                let result = match message {
                    Message::Binary(bytes) => write.write_all(&bytes).await,
                    Message::Text(text) => write.write_all(text.as_bytes()).await,
                    _ => Ok(()),
                };
                if result.is_err() {
                    return;
                }
            }
        };
        let outward = async {
            let mut buffer = vec![0; PIPE_BYTES];
            while let Ok(count) = read.read(&mut buffer).await {
                if count == 0 {
                    break;
                }
                let message = Message::Binary(Bytes::copy_from_slice(&buffer[..count]));
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            let _ = tokio::time::timeout(crate::LINGER, sink.close()).await;
        };
        tokio::select! {
            () = inward => {}
            () = outward => {}
            () = activity.ends(idle) => {}
        }
    };
    (theirs, carry)
}
