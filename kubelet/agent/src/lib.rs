//! The kubelet: pods of this node, on any CRI daemon.
//!
//! [`sources`] say which pods should be, [`pleg`] which changed at the runtime; the [`sync`] loop tells each pod's worker,
//! which looks ([`runtime`]), has `kubelet-pods` decide and acts. [`images`] are pulled for all pods together.

pub mod agent;
pub mod config;
pub mod events;
pub mod hooks;
pub mod images;
pub mod last_words;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod pleg;
pub mod probing;
pub mod runtime;
pub mod server;
pub mod sources;
pub mod sync;
pub mod timeline;

#[cfg(test)]
mod testing;
