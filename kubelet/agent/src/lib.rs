//! The kubelet: pods of this node, on any CRI daemon.
