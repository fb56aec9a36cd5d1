//! `orlop`: looks at a node without an API server, through its kubelet.

fn main() {}
