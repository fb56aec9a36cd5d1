//! The kubelet: pods of this node, on any CRI daemon.
pub mod config;
pub mod metrics;
pub mod node;
pub mod server;
pub mod timeline;
