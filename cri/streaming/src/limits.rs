//! Bounds of a streaming server.

use std::time::Duration;

/// Bounds of a streaming server; [`Limits::default`] fits a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long a URL is good for.
    pub token_life: Duration,
    /// How many URLs may wait to be used; more are refused.
    pub max_tokens: usize,
    /// How many connections may be open; more wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a client may take to send its request, and to open the streams that it announced.
    pub stream_creation: Duration,
    /// How long a connection may carry nothing before it is closed.
    pub idle: Duration,
    /// How many forwarded connections a port-forward client may have open.
    pub max_forwards: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            token_life: Duration::from_secs(60),
            max_tokens: 1000,
            max_connections: 1000,
            stream_creation: Duration::from_secs(30),
            idle: Duration::from_secs(4 * 60 * 60),
            max_forwards: 256,
        }
    }
}
