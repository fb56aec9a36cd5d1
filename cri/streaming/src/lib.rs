//! Exec, attach and port-forward streams over WebSocket and SPDY/3.1.
//!
//! A client first asks over another, authenticated way (gRPC, or the kubelet's HTTPS) and gets a URL of this server
//! with a token that is good once, for a minute ([`StreamServer::exec_url`] and its siblings). It then opens that URL
//! with an HTTP/1.1 upgrade, to WebSocket or to SPDY/3.1; both carry several streams in one connection. The server
//! sorts the streams out and hands them to the [`StreamHandler`], which knows the containers. What the handler returns
//! goes back on the error stream, after all output.
//!
//! Everything that a client can make grow is bounded: tokens, connections, streams, frames, buffers, time. Nothing is
//! read ahead of a handler that doesn't read, and a client that doesn't read only stops its own connection.

mod activity;
mod api;
mod limits;
mod remote;
mod server;
pub mod spdy;
mod status;
mod tokens;
mod upgrade;
pub mod ws;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use api::{
    AttachRequest, BoxDuplex, ByteReader, ByteWriter, Duplex, ExecRequest, ExitStatus, Gone,
    PortForwardRequest, StreamError, StreamErrorKind, StreamHandler, Streams, TerminalSize,
};
pub use limits::Limits;
pub use server::{BindError, StreamServer};
pub use tokens::TokenError;

/// How long a connection that has done its work waits for the client to hang up, and for what is still under way.
const LINGER: Duration = Duration::from_secs(5);

/// Forwards one connection in a task of its own, so that a handler that panics is a failure like any other.
async fn forward_in_task(
    handler: Arc<dyn StreamHandler>,
    target: String,
    port: u16,
    stream: BoxDuplex,
) -> Result<(), StreamError> {
    let task = tokio::spawn(async move { handler.port_forward(target, port, stream).await });
    task.await.unwrap_or_else(|_| {
        Err(StreamError::failed(
            "the server failed while it forwarded this port",
        ))
    })
}
