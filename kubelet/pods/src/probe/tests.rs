//! Thresholds, holds and restarts of probes.
