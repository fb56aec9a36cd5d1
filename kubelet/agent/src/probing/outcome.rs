//! What one probing said, and how it is told to people.

use kubelet_pods::probe::{self, ProbeKind};

/// What one probing said, with what it is told by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It answered well, and this.
    Success(String),
    /// It answered well, but in a way that its owner should know of.
    Warning(String),
    /// It answered ill, or not in time.
    Failure(String),
    /// The probing itself failed; says nothing about the container.
    Unknown(String),
}

impl Outcome {
    /// As thresholds count it.
    pub fn counted(&self) -> probe::Outcome {
        match self {
            Outcome::Success(_) | Outcome::Warning(_) => probe::Outcome::Success,
            Outcome::Failure(_) => probe::Outcome::Failure,
            Outcome::Unknown(_) => probe::Outcome::Error,
        }
    }

    /// As `prober_probe_total` labels it.
    pub fn label(&self) -> &'static str {
        match self {
            Outcome::Success(_) | Outcome::Warning(_) => "successful",
            Outcome::Failure(_) => "failed",
            Outcome::Unknown(_) => "unknown",
        }
    }

    /// The event's reason and message; a success has none.
    pub fn event(&self, kind: ProbeKind) -> Option<(&'static str, String)> {
        let kind = kind_name(kind);
        match self {
            Outcome::Success(_) => None,
            Outcome::Warning(message) => Some(("ProbeWarning", format!("{kind} probe warning: {message}"))),
            Outcome::Failure(message) => Some(("Unhealthy", format!("{kind} probe failed: {message}"))),
            Outcome::Unknown(message) => Some((
                "Unhealthy",
                format!("{kind} probe errored and resulted in unknown state: {message}"),
            )),
        }
    }
}

/// As events and metrics name it.
pub(crate) fn kind_name(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Liveness => "Liveness",
        ProbeKind::Readiness => "Readiness",
        ProbeKind::Startup => "Startup",
    }
}
