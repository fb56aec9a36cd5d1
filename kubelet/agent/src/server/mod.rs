//! The kubelet's HTTP server.

pub mod seam;
pub mod stats;

pub use seam::{Kubelet, KubeletError, KubeletErrorKind, RuntimeMetrics};
