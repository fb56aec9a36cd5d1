//! What a kubelet decides about one pod. Pure: no I/O, no clock, no randomness.
//!
//! [`observed`] is what the runtime holds of a pod; everything else turns it, the pod's spec and the time into decisions:
//! [`admission`] whether it may run here, [`worker`] where it is in its life, [`actions`] what to start and end now,
//! [`backoff`] when what failed may be tried again, [`probe`] what probes' outcomes amount to, and [`status`] what the API
//! says of it. [`cri`] says the spec in the runtime's words.

pub mod actions;
pub mod admission;
pub mod backoff;
pub mod containers;
pub mod cri;
pub mod hash;
pub mod observed;
pub mod probe;
pub mod status;
pub mod worker;

mod quantity;
mod times;

#[cfg(test)]
mod fixtures;
