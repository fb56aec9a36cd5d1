//! The node below the pods: cgroups, CPUs, memory, devices, and what is done when something runs short.
//!
//! Every module is a decision that is a function of what it is handed (topology, observations, state, time), and a thin
//! part that acts through a small trait. What has to survive a restart is kept by [`checkpoint`] in upstream's formats,
//! and a restart never touches a pod that runs.

pub mod capacity;
pub mod cgroups;
pub mod checkpoint;
pub mod cpu;
mod dbus;
pub mod devices;
pub mod eviction;
pub mod garbage;
pub mod memory;
pub mod oom;
pub mod resources;
pub mod shutdown;
pub mod swap;
pub mod topology;
