//! What a kubelet decides about one pod. Pure: no I/O, no clock, no randomness.
//!
//! [`observed`] is what the runtime holds of a pod; everything else turns it, the pod's spec and the time into decisions.

pub mod observed;
