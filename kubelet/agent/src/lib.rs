//! The kubelet: pods of this node, on any CRI daemon.
pub mod metrics;
pub mod server;
pub mod timeline;
