//! Lives of pods.
