//! The real static shim with real containers. Run as root; each test has a pod of its own.

#![allow(clippy::unwrap_used)]

mod attach;
mod exec;
mod faults;
mod lifecycle;
mod logs;
mod pod;
mod sandbox;
