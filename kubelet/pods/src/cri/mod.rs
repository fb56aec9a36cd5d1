//! A pod's spec in the runtime's words: pure functions from a Pod, and what the node is, to CRI's messages.
//!
//! [`sandbox_config`] and [`container_config`] are what `RunPodSandbox` and `CreateContainer` are called with; what a
//! pod's volumes, devices and objects became by then is handed in as [`SandboxExtra`] and [`ContainerExtra`]. Labels,
//! annotations, paths, defaults and the wording of errors are upstream's kubelet's, so that runtimes, log collectors and
//! people find what they expect; where upstream leaves an order to a hash map, ours is the spec's. The parts are usable
//! alone: [`expansion`] (`$(VAR)`), [`env`], [`dns`], [`hosts`], [`downward`] (fields and resources as text),
//! [`resources`] (requests and limits as cgroup settings), [`cgroup`] (the pod's own cgroup), [`userns`] (who has which
//! range of IDs) and [`labels`] (what the kubelet finds again after a restart).

pub mod cgroup;
mod container;
pub mod dns;
pub mod downward;
pub mod env;
mod errors;
pub mod expansion;
mod facts;
pub mod hosts;
pub mod labels;
pub mod logs;
mod mounts;
mod quantity;
pub mod resources;
mod sandbox;
pub mod security;
pub mod userns;

pub use container::{ContainerExtra, ImageUser, ResolvedImage, container_config, spec_of};
pub use errors::ConfigError;
pub use facts::{
    Allocatable, CgroupDriver, CgroupFacts, CpuQuota, DnsFacts, MemoryQos, NodeFacts, RuntimeFacts,
    SwapBehavior,
};
pub use mounts::MountFrom;
pub use sandbox::{SandboxExtra, sandbox_config};

#[cfg(test)]
mod tests;
