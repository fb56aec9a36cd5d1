//! What probes' outcomes amount to: thresholds, delays and the results that count, per container.
//!
//! One [`ProbeState`] per probe of a container; the prober asks it when to probe next ([`ProbeState::next_at`]), probes, and
//! hands the outcome to [`step`], which says whether the result that counts has changed. Results are kept by the container's
//! runtime ID in [`ProbeResults`], so that a restarted container starts anew.
//!
//! ```text
//! waiting -> held (startup isn't done) -> probing -> on hold (liveness or startup failed), satisfied (startup succeeded)
//!    ^                                       |           |
//!    +------------- another container ID ----+-----------+
//! ```

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::{Container, Probe};
use jiff::{SignedDuration, Timestamp};

use crate::times::after;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Whether the container must be restarted.
    Liveness,
    /// Whether it can serve.
    Readiness,
    /// Whether it has started up; the others wait for it.
    Startup,
}

/// The result that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResult {
    /// As good as it says.
    Success,
    /// Failed as often as the threshold says.
    Failure,
    /// Not known yet.
    Unknown,
}

/// The outcome of one probing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered well.
    Success,
    /// It answered ill, or not in time.
    Failure,
    /// The probing itself failed: counts as nothing.
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Results {
    liveness: Option<ProbeResult>,
    readiness: Option<ProbeResult>,
    startup: Option<ProbeResult>,
}

/// The results of all probes of a pod's (or node's) containers, by container ID.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProbeResults {
    by_id: BTreeMap<String, Results>,
}

impl ProbeResults {
    /// The liveness probe's result; none where there is no such probe or no result.
    pub fn liveness(&self, id: &str) -> Option<ProbeResult> {
        self.of(id, ProbeKind::Liveness)
    }

    /// The readiness probe's result.
    pub fn readiness(&self, id: &str) -> Option<ProbeResult> {
        self.of(id, ProbeKind::Readiness)
    }

    /// The startup probe's result.
    pub fn startup(&self, id: &str) -> Option<ProbeResult> {
        self.of(id, ProbeKind::Startup)
    }

    /// A probe's result.
    pub fn of(&self, id: &str, kind: ProbeKind) -> Option<ProbeResult> {
        let results = self.by_id.get(id)?;
        match kind {
            ProbeKind::Liveness => results.liveness,
            ProbeKind::Readiness => results.readiness,
            ProbeKind::Startup => results.startup,
        }
    }

    /// Sets a probe's result; says whether it is another one than before.
    pub fn set(&mut self, id: &str, kind: ProbeKind, result: ProbeResult) -> bool {
        let results = self.by_id.entry(id.to_owned()).or_default();
        let field = match kind {
            ProbeKind::Liveness => &mut results.liveness,
            ProbeKind::Readiness => &mut results.readiness,
            ProbeKind::Startup => &mut results.startup,
        };
        field.replace(result) != Some(result)
    }

    /// Forgets a container.
    pub fn forget(&mut self, id: &str) {
        self.by_id.remove(id);
    }

    /// Forgets containers that `keep` doesn't name.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.by_id.retain(|id, _| keep(id));
    }
}

/// A probe's numbers, with upstream's defaults for what isn't given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the container's start to the first probing.
    pub initial_delay: SignedDuration,
    /// From one probing to the next.
    pub period: SignedDuration,
    /// How long a probing may take.
    pub timeout: SignedDuration,
    /// Successes in a row until it counts as success.
    pub success_threshold: u32,
    /// Failures in a row until it counts as failure.
    pub failure_threshold: u32,
}

impl Timing {
    /// A probe's numbers: 0 s delay, 10 s period, 1 s timeout, 1 success, 3 failures unless given.
    pub fn of(probe: &Probe) -> Self {
        let seconds = |given: Option<i32>, default: i64| {
            SignedDuration::from_secs(given.map(i64::from).filter(|&given| given > 0).unwrap_or(default))
        };
        let count = |given: Option<i32>, default| {
            given
                .and_then(|given| u32::try_from(given).ok())
                .filter(|&given| given > 0)
                .unwrap_or(default)
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
        }
    }
}

/// The probe of a kind, if a container has one.
pub fn probe_of(container: &Container, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
        ProbeKind::Startup => container.startup_probe.as_ref(),
    }
}

/// The container that is probed, as the pod's worker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// There is none yet, or it is being made.
    Absent,
    /// It runs.
    Running {
        /// The runtime's ID.
        id: String,
        /// Since when.
        started: Timestamp,
        /// Whether its startup probe has succeeded, or it has none.
        started_up: bool,
    },
    /// It ended; whether it will be started again.
    Ended {
        /// The runtime's ID.
        id: String,
        /// Whether another one will come.
        again: bool,
    },
}

/// The result that counts of a container has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The container.
    pub id: String,
    /// Which probe.
    pub kind: ProbeKind,
    /// The new result.
    pub result: ProbeResult,
}

/// One probe of one container name, across its restarts.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeState {
    kind: ProbeKind,
    timing: Timing,
    jitter: SignedDuration,
    recovered: Option<(String, ProbeResult)>,
    phase: Phase,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Waiting,
    /// It runs, but hasn't started up.
    Held {
        id: String,
    },
    Probing {
        id: String,
        result: ProbeResult,
        next: Timestamp,
        streak: Streak,
    },
    /// Liveness or startup failed: not probed until there is another container.
    OnHold {
        id: String,
    },
    /// Startup succeeded, or the pod is ending: nothing to probe until there is another container.
    Satisfied {
        id: String,
    },
    Stopped,
}

/// Equal outcomes in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Streak {
    of: Option<Outcome>,
    length: u32,
}

impl ProbeState {
    /// A probe that waits for its container. `jitter` is how much later than it must the very first probing is:
    /// random below the period where the kubelet has just started, so that not all probes run at once; else zero.
    pub fn new(kind: ProbeKind, timing: Timing, jitter: SignedDuration) -> Self {
        Self {
            kind,
            timing,
            jitter,
            recovered: None,
            phase: Phase::Waiting,
        }
    }

    /// The result that the last status tells of a container that a restarted kubelet finds running: it counts until the
    /// container's probing says otherwise.
    pub fn recovered(self, id: &str, result: ProbeResult) -> Self {
        Self {
            recovered: Some((id.to_owned(), result)),
            ..self
        }
    }

    /// What kind it is.
    pub fn kind(&self) -> ProbeKind {
        self.kind
    }

    /// Its numbers.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// When to probe next, and which container; none while there is nothing to probe.
    pub fn next_at(&self) -> Option<(Timestamp, &str)> {
        match &self.phase {
            Phase::Probing { id, next, .. } => Some((*next, id)),
            _ => None,
        }
    }

    /// Whether nothing will ever be probed any more, so that it can be dropped.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Stopped
    }

    /// Probes now rather than at its time: a readiness probe once startup succeeded.
    pub fn hurry(&mut self, now: Timestamp) {
        if let Phase::Probing { next, .. } = &mut self.phase {
            *next = (*next).min(now);
        }
    }

    /// Tells what has become of the container, and whether the pod is ending. Call it whenever either changes.
    pub fn observe(&mut self, target: &Target, terminating: bool, now: Timestamp) -> Option<Change> {
        match target {
            Target::Absent => {
                if !self.is_over() {
                    self.phase = Phase::Waiting;
                }
                None
            }
            Target::Ended { id, again } => {
                let known = !matches!(self.phase, Phase::Waiting | Phase::Stopped) && self.id() == Some(id);
                self.phase = if *again && !terminating {
                    Phase::Waiting
                } else {
                    Phase::Stopped
                };
                known.then(|| self.change(id, ProbeResult::Failure))
            }
            Target::Running { id, .. } if terminating && self.kind != ProbeKind::Readiness => {
                // What ends isn't to be restarted or held up any more.
                let known = self.id() == Some(id) && !matches!(self.phase, Phase::Satisfied { .. });
                self.phase = Phase::Stopped;
                known.then(|| self.change(id, ProbeResult::Success))
            }
            Target::Running {
                id,
                started,
                started_up,
            } => self.observe_running(id, *started, *started_up, now),
        }
    }

    fn observe_running(
        &mut self,
        id: &str,
        started: Timestamp,
        started_up: bool,
        now: Timestamp,
    ) -> Option<Change> {
        if self.phase == Phase::Stopped {
            return None;
        }
        let is_new = self.id() != Some(id);
        if !is_new && !matches!(self.phase, Phase::Held { .. }) {
            return None;
        }
        let first = self.first_result(id);
        let told = is_new.then(|| self.change(id, first));
        let id = id.to_owned();
        if self.kind == ProbeKind::Startup && started_up {
            self.phase = Phase::Satisfied { id: id.clone() };
            return Some(self.change(&id, ProbeResult::Success));
        }
        if self.kind != ProbeKind::Startup && !started_up {
            self.phase = Phase::Held { id };
            return told;
        }
        let due = after(after(started, self.timing.initial_delay), self.jitter);
        // A start in the future is one from before the clock was set back.
        let latest = after(after(now, self.timing.initial_delay), self.jitter);
        self.jitter = SignedDuration::ZERO;
        let next = due.max(now).min(latest);
        self.phase = Phase::Probing {
            id,
            result: first,
            next,
            streak: Streak::default(),
        };
        told
    }

    fn first_result(&self, id: &str) -> ProbeResult {
        match &self.recovered {
            Some((of, result)) if of == id => *result,
            _ => initial_result(self.kind),
        }
    }

    fn id(&self) -> Option<&str> {
        match &self.phase {
            Phase::Held { id }
            | Phase::Probing { id, .. }
            | Phase::OnHold { id }
            | Phase::Satisfied { id } => Some(id),
            Phase::Waiting | Phase::Stopped => None,
        }
    }

    fn change(&self, id: &str, result: ProbeResult) -> Change {
        Change {
            id: id.to_owned(),
            kind: self.kind,
            result,
        }
    }
}

/// What counts before the first probing: alive, not ready, startup not known.
pub fn initial_result(kind: ProbeKind) -> ProbeResult {
    match kind {
        ProbeKind::Liveness => ProbeResult::Success,
        ProbeKind::Readiness => ProbeResult::Failure,
        ProbeKind::Startup => ProbeResult::Unknown,
    }
}

/// The container was probed: counts the outcome, sets the next time, and says whether the result that counts has changed.
pub fn step(state: &mut ProbeState, outcome: Outcome, now: Timestamp) -> Option<Change> {
    let (kind, timing) = (state.kind, state.timing);
    let Phase::Probing {
        id,
        result,
        next,
        streak,
    } = &mut state.phase
    else {
        return None;
    };
    *next = after(now, timing.period);
    if outcome == Outcome::Error {
        return None;
    }
    streak.length = if streak.of == Some(outcome) {
        streak.length.saturating_add(1)
    } else {
        1
    };
    streak.of = Some(outcome);
    let (threshold, reached) = match outcome {
        Outcome::Success => (timing.success_threshold, ProbeResult::Success),
        _ => (timing.failure_threshold, ProbeResult::Failure),
    };
    if streak.length < threshold {
        return None;
    }
    let changed = *result != reached;
    *result = reached;
    let id = id.clone();
    match (kind, reached) {
        (ProbeKind::Liveness | ProbeKind::Startup, ProbeResult::Failure) => {
            state.phase = Phase::OnHold { id: id.clone() }
        }
        (ProbeKind::Startup, ProbeResult::Success) => state.phase = Phase::Satisfied { id: id.clone() },
        _ => {}
    }
    changed.then(|| state.change(&id, reached))
}

#[cfg(test)]
mod tests;
