//! WebSocket: several streams in one connection by a channel number before each message.
//!
//! [`channel`] is pure: messages to channels and back, in the binary and the base64 way. [`remote`] serves exec and
//! attach, [`forward`] the port-forward of WebSocket clients, [`tunnel`] carries a whole SPDY connection, which is what
//! `kubectl port-forward` does today.

pub mod channel;
pub(crate) mod forward;
pub(crate) mod remote;
pub(crate) mod tunnel;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::activity::{Activity, Watched};

/// The longest message that is taken, in bytes. Go's clients send what one read of theirs gives: 32 KiB.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// A served connection.
pub(crate) type Socket = WebSocketStream<Watched<TokioIo<Upgraded>>>;

/// Speaks WebSocket over an upgraded connection.
pub(crate) async fn socket(upgraded: Upgraded) -> (Socket, Activity) {
    let (io, activity) = Activity::watch(TokioIo::new(upgraded));
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    (
        WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await,
        activity,
    )
}
