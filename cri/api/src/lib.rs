//! CRI v1: the messages and services of the Container Runtime Interface.
//!
//! `proto/runtime/v1/api.proto` holds the interface's facts and [`v1`] the code made from them; both come from
//! `cargo xtask gen`, and CI compares their descriptors with the Go module `k8s.io/cri-api`.

#[rustfmt::skip]
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod v1;

mod ids;

pub use ids::{ContainerId, IdError, PodSandboxId};
