//! The lives of sandboxes and containers.
//!
//! Making something is a plan (pure, in [`plan`]) and then steps, each of them one variant of [`Step`], written down
//! before it is taken. Whatever fails on the way is undone by the same code that removes it later, and that recovery
//! uses after a crash: there is one way down, and each part of it may be repeated and may find nothing to do.

mod container_create;
mod container_remove;
mod container_run;
mod exits;
mod files;
mod plan;
mod sandbox_create;
mod sandbox_remove;
mod shim_link;
mod step;
#[cfg(test)]
mod tests;
mod volumes;

pub use plan::{InvalidConfig, SandboxPlan, container_name, sandbox_name};
pub use step::{KillPoint, Operation, Side, Step, UnknownStep};

pub(crate) use container_run::phase_name;
pub(crate) use files::{remove_tree, unmount, unmount_tree};
pub(crate) use plan::kinds;
pub(crate) use sandbox_create::pod_limits;
