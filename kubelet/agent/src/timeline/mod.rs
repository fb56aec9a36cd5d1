//! Where the time of a pod's start went: phases with their beginnings and ends, for the last pods that started.
//!
//! Whoever starts a pod says [`Timelines::seen`] once, holds the [`Running`] of [`Timelines::begin`] while a phase runs, and
//! says [`Timelines::finished`] when the pod runs (or will not). Between these two moments phases should cover (nearly)
//! everything: waiting in a queue is a phase as well. Phases may overlap and nest; the later one counts.
//!
//! At most [`Limits::pods`] pods are remembered, the longest unstarted ones go first, and of each pod its first
//! [`Limits::phases`] phases. A phase that is begun after the pod has finished isn't recorded, unless the pod is
//! [`Timelines::seen`] again.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

/// What a pod's start is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// From the source's word until a worker took it.
    Queue,
    /// Admission: does it fit here.
    Admit,
    /// Its cgroups.
    Cgroup,
    /// Volumes set up and mounted.
    Volumes,
    /// Waiting for a pull's turn, or for a back-off's end.
    Wait,
    /// An image is pulled.
    Pull,
    /// The sandbox is made, with its network.
    Sandbox,
    /// A container is created.
    Create,
    /// A container is started.
    Start,
    /// A lifecycle hook runs.
    Hook,
    /// An init container runs.
    Init,
    /// A startup or readiness probe hasn't passed yet.
    Probe,
    /// What the runtime did is looked at, and a status made.
    Observe,
    /// The worker compares and decides.
    Sync,
}

impl Phase {
    /// Its name in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Admit => "admit",
            Self::Cgroup => "cgroup",
            Self::Volumes => "volumes",
            Self::Wait => "wait",
            Self::Pull => "pull",
            Self::Sandbox => "sandbox",
            Self::Create => "create",
            Self::Start => "start",
            Self::Hook => "hook",
            Self::Init => "init",
            Self::Probe => "probe",
            Self::Observe => "observe",
            Self::Sync => "sync",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much is remembered.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Pods.
    pub pods: usize,
    /// Phases of one pod.
    pub phases: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pods: 1000,
            phases: 256,
        }
    }
}

/// Tells the time.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The recorder. Clones are the same one.
#[derive(Clone)]
pub struct Timelines {
    limits: Limits,
    now: Now,
    pods: Arc<Mutex<Pods>>,
}

impl fmt::Debug for Timelines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timelines")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Pods {
    by_uid: BTreeMap<String, Recorded>,
    /// In the order in which they were seen.
    order: VecDeque<String>,
}

struct Recorded {
    start: Timestamp,
    end: Option<Timestamp>,
    /// Counts the starts of this UID, so that a phase of an earlier one doesn't end one of a later.
    round: u64,
    phases: Vec<PhaseSpan>,
    dropped: u64,
}

/// One phase of a pod's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PhaseSpan {
    /// What it was: a [`Phase::name`].
    pub name: &'static str,
    /// When it began.
    pub start: Timestamp,
    /// When it ended; none while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// The container that it was for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// A pod's start.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodTimeline {
    /// `metadata.uid`.
    pub uid: String,
    /// When the kubelet first heard of it.
    pub start: Timestamp,
    /// When it ran; none when it doesn't yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// From start to end (or to now), in seconds.
    pub wall_seconds: f64,
    /// The share of that which some phase covers, from 0 to 1.
    pub covered: f64,
    /// How many phases were too many to be remembered.
    pub dropped: u64,
    /// In the order in which they began.
    pub phases: Vec<PhaseSpan>,
}

/// A phase that runs; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the phase ends when this is dropped"]
pub struct Running {
    timelines: Timelines,
    uid: String,
    /// The round and the place among the pod's phases; none where it isn't recorded.
    place: Option<(u64, usize)>,
}

impl Timelines {
    /// Remembers as much as `limits` says, by the clock `now`.
    pub fn new(limits: Limits, now: Now) -> Self {
        Self {
            limits,
            now,
            pods: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod's start begins, now. Where one was recorded it is replaced, unless that start hasn't finished.
    pub fn seen(&self, uid: &str) {
        let start = (self.now)();
        let mut pods = self.lock();
        let round = match pods.by_uid.get(uid) {
            Some(Recorded { end: None, .. }) => return,
            Some(known) => known.round + 1,
            None => 0,
        };
        pods.order.retain(|known| known != uid);
        pods.order.push_back(uid.to_owned());
        let recorded = Recorded {
            start,
            end: None,
            round,
            phases: Vec::new(),
            dropped: 0,
        };
        pods.by_uid.insert(uid.to_owned(), recorded);
        while pods.order.len() > self.limits.pods {
            let Some(oldest) = pods.order.pop_front() else {
                break;
            };
            pods.by_uid.remove(&oldest);
        }
    }

    /// A phase of the pod begins, now; it ends when the answer is dropped.
    pub fn begin(&self, uid: &str, phase: Phase, container: Option<&str>) -> Running {
        let start = (self.now)();
        let mut pods = self.lock();
        let place = pods.by_uid.get_mut(uid).and_then(|pod| {
            if pod.end.is_some() {
                return None;
            }
            if pod.phases.len() >= self.limits.phases {
                pod.dropped += 1;
                return None;
            }
            pod.phases.push(PhaseSpan {
                name: phase.name(),
                start,
                end: None,
                container: container.map(str::to_owned),
            });
            Some((pod.round, pod.phases.len() - 1))
        });
        Running {
            timelines: self.clone(),
            uid: uid.to_owned(),
            place,
        }
    }

    /// The pod runs (or will not): its start has ended, now, and with it the phases that ran.
    pub fn finished(&self, uid: &str) {
        let end = (self.now)();
        if let Some(pod) = self.lock().by_uid.get_mut(uid)
            && pod.end.is_none()
        {
            pod.end = Some(end);
            for phase in &mut pod.phases {
                phase.end.get_or_insert(end);
            }
        }
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        let mut pods = self.lock();
        if pods.by_uid.remove(uid).is_some() {
            pods.order.retain(|known| known != uid);
        }
    }

    /// What is known of a pod's start.
    pub fn of(&self, uid: &str) -> Option<PodTimeline> {
        let now = (self.now)();
        let pods = self.lock();
        let pod = pods.by_uid.get(uid)?;
        let end = pod.end.unwrap_or(now);
        Some(PodTimeline {
            uid: uid.to_owned(),
            start: pod.start,
            end: pod.end,
            wall_seconds: seconds(pod.start, end),
            covered: covered_share(&pod.phases, pod.start, end),
            dropped: pod.dropped,
            phases: pod.phases.clone(),
        })
    }
}

impl Running {
    /// Ends it, as dropping does.
    pub fn end(self) {}
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some((round, index)) = self.place else { return };
        let end = (self.timelines.now)();
        if let Some(pod) = self.timelines.lock().by_uid.get_mut(&self.uid)
            && pod.round == round
            && let Some(phase) = pod.phases.get_mut(index)
        {
            phase.end.get_or_insert(end);
        }
    }
}

/// The share of `start..end` that some phase covers, from 0 to 1; 1 where that is no time at all. A phase without an end
/// goes on until `end`.
pub fn covered_share(phases: &[PhaseSpan], start: Timestamp, end: Timestamp) -> f64 {
    let wall = seconds(start, end);
    if wall <= 0.0 {
        return 1.0;
    }
    let mut spans: Vec<(Timestamp, Timestamp)> = phases
        .iter()
        .map(|phase| (phase.start.max(start), phase.end.unwrap_or(end).min(end)))
        .filter(|(from, until)| from < until)
        .collect();
    spans.sort_unstable();
    let (mut covered, mut reached) = (0.0, start);
    for (from, until) in spans {
        let from = from.max(reached);
        if from < until {
            covered += seconds(from, until);
            reached = until;
        }
    }
    (covered / wall).clamp(0.0, 1.0)
}

fn seconds(from: Timestamp, until: Timestamp) -> f64 {
    until.duration_since(from).as_secs_f64()
}
