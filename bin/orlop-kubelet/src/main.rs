//! The kubelet, on any CRI daemon.

fn main() {}
