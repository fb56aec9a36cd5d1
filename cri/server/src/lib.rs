//! The CRI server: one file per RPC over the store of sandboxes and containers.
//!
//! [`server::serve`] turns a [`config::Config`] into a daemon. An RPC ([`rpc`]) finds what it names in the [`store`];
//! what changes something goes through [`lifecycle`], step by step, each step written down before it is taken, so that
//! [`recovery`] can finish or undo it after any crash. The server makes no process itself: it asks the pod's [`shim`].
//! What a container looks like is decided by the pure functions of [`spec`]; what a pod's network looks like, by CNI
//! ([`network`]).

pub mod apparmor;
mod cgroup_names;
pub mod clock;
pub mod config;
mod deadline;
pub mod errors;
pub mod events;
pub mod lifecycle;
pub mod memory;
pub mod network;
pub mod node;
pub mod nri;
pub mod own_cgroup;
pub mod paths;
pub mod recovery;
pub mod rpc;
pub mod seccomp_default;
pub mod server;
pub mod shim;
pub mod spec;
pub mod stats;
pub mod status;
pub mod store;
mod stream_handler;
