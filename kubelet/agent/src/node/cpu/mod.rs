//! Which CPUs containers run on: the policies `none` and `static` of upstream's CPU manager.
//!
//! With `static`, a container of a Guaranteed pod that asks for whole CPUs gets them for itself; everything else runs on
//! the shared pool, which is all that is left, the reserved CPUs among it. [`take`] picks CPUs by topology,
//! [`Static`] keeps who has which and answers with hints for [`super::topology`], [`state`] reads and writes
//! upstream's `cpu_manager_state`. A container's CPUs go into CRI's `cpuset_cpus` at its creation, and the shared pool
//! into that of the others, again whenever it changes ([`Static::cpus_of`]).

mod allocation;
mod machine;
mod policy;
mod set;
pub mod state;

pub use allocation::{NotEnough, Options, OptionsError, take};
pub use machine::{Machine, Place, read_machine};
pub use policy::{Ask, Assignments, CpuError, Static};
pub use set::{CpuSet, CpuSetError};

#[cfg(test)]
mod tests;
