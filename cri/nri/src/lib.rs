//! NRI, the Node Resource Interface, from the runtime's side.
//!
//! Plugins are processes that others wrote. They connect to a Unix socket, or are started from a folder, register, say
//! which events of pods and containers they want, and are told of all that exist. From then on [`Nri`] asks them, one
//! after the other in the order of their indices: they may adjust a container that is being made, change the limits
//! of others, or refuse. What several of them want is merged by the pure functions of [`merge`].
//!
//! On the wire NRI is ttrpc ([`ttrpc`]), with both directions over one connection ([`mux`]); the messages
//! ([`v1alpha1`]) are made by `cargo xtask gen` and compared with the Go module `github.com/containerd/nri` in CI.
//!
//! Nothing that a plugin does may keep a pod: every request has a deadline, and who misses it, or dies, is
//! disconnected. Every buffer and queue has a bound.

#[rustfmt::skip]
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod v1alpha1;

mod accept;
mod connection;
mod error;
mod events;
mod launch;
pub mod merge;
pub mod mux;
mod owners;
mod plugin;
mod runtime;
pub mod ttrpc;
mod turn;

#[cfg(test)]
mod tests;

pub use error::{ConnectionError, NriError, StartError};
pub use runtime::{Nri, NriConfig, Runtime, State};
pub use turn::{Adjusted, Turn, Updated};
