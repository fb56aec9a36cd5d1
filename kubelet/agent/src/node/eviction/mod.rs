//! Which pod goes when the node runs low on memory, disk, inodes or process numbers: upstream's eviction manager.
//!
//! Every ten seconds [`State::synchronize`] is handed what was observed and what is to be kept free ([`Threshold`]). It
//! tells the node's pressure conditions, pods that exceed their own limits of local storage, and what runs low
//! ([`Shortage`]). First the node gives back what it can ([`Shortage::reclaim`]: dead containers, unused images); then,
//! with fresh observations, [`Shortage::victim`] names at most one pod, those first that use more than they request, of
//! them the less important, of them the larger. No clock and no files here: times come in.

mod local;
mod messages;
mod rank;
mod signals;

use std::collections::{BTreeMap, BTreeSet};

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use jiff::{SignedDuration, Timestamp};

pub use local::exceeding_local_storage;
pub use signals::{
    Limit, Signal, Threshold, ThresholdError, parse_thresholds, thresholds_of, with_allocatable_memory,
};

/// The reason in an evicted pod's status.
pub const REASON: &str = "Evicted";
/// Seconds that a pod has at a hard eviction.
pub const IMMEDIATELY: i64 = 1;
/// The least priority of what is critical for the system.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// What was seen of one signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// What is left: bytes, inodes or processes.
    pub available: i64,
    /// What there is.
    pub capacity: i64,
    /// When, if the source says: one that isn't newer than the last is not acted on twice.
    pub time: Option<Timestamp>,
}

/// What was seen of all signals; what couldn't be seen is absent.
pub type Observations = BTreeMap<Signal, Observation>;

/// What a pod uses; what couldn't be seen is `None` or absent.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Bytes of the working set.
    pub memory: Option<i64>,
    /// Processes.
    pub processes: Option<i64>,
    /// Its containers.
    pub containers: BTreeMap<String, ContainerUsage>,
    /// Its volumes that lie on the node's own disk (emptyDir without a medium, configMap, ...).
    pub volumes: BTreeMap<String, Storage>,
    /// emptyDir volumes in memory, which count against their limits alone.
    pub memory_volumes: BTreeMap<String, Storage>,
}

/// What a container uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContainerUsage {
    /// Bytes of the working set.
    pub memory: Option<i64>,
    /// The writable layer.
    pub root: Storage,
    /// The logs.
    pub logs: Storage,
}

/// Room on a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Storage {
    /// Bytes.
    pub bytes: i64,
    /// Inodes.
    pub inodes: i64,
}

/// A pod that may be evicted, and what it uses; `None` when nothing is known.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its use.
    pub usage: Option<&'a Usage>,
}

/// Where images and writable layers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Disks {
    /// All on the disk of the kubelet's root directory.
    #[default]
    One,
    /// Images and writable layers on one of their own.
    ImagesApart,
    /// Images on one of their own, writable layers with the kubelet's.
    Split,
}

/// What the node can give back before a pod has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reclaim {
    /// Remove all containers that have ended and aren't needed.
    DeadContainers,
    /// Remove all images that aren't used.
    UnusedImages,
}

/// A pod that has to go.
#[derive(Debug, Clone, PartialEq)]
pub struct Eviction {
    /// `metadata.uid`.
    pub uid: String,
    /// For `status.message`.
    pub message: String,
    /// Seconds it has to end.
    pub grace_seconds: i64,
    /// The event's annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A pressure condition of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// `MemoryPressure`
    Memory,
    /// `DiskPressure`
    Disk,
    /// `PIDPressure`
    Pid,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Pid];

    /// The type in the node's status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }

    /// Reason and message in the node's status.
    #[must_use]
    pub fn told(self, holds: bool) -> (&'static str, &'static str) {
        match (self, holds) {
            (Self::Memory, true) => (
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
            (Self::Memory, false) => (
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            (Self::Disk, true) => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            (Self::Disk, false) => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            (Self::Pid, true) => (
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ),
            (Self::Pid, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
    }
}

/// The settings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// What is to be kept free.
    pub thresholds: Vec<Threshold>,
    /// `evictionPressureTransitionPeriod`.
    pub transition: SignedDuration,
    /// `evictionMaxPodGracePeriod`.
    pub most_grace_seconds: i64,
    /// Where images and layers are.
    pub disks: Disks,
    /// `localStorageCapacityIsolation`.
    pub local_storage: bool,
    /// Whether static pods are never evicted, as upstream has it. A node without an API server has no others, and would
    /// run out of memory with nobody to evict.
    pub spare_static: bool,
}

/// What is remembered from one look to the next. Nothing of it has to survive a restart.
#[derive(Debug, Clone, Default)]
pub struct State {
    met: Vec<Threshold>,
    first_met: BTreeMap<Threshold, Timestamp>,
    last_seen: BTreeMap<Condition, Timestamp>,
    observed: Observations,
    conditions: BTreeSet<Condition>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// The node's conditions that hold.
    pub conditions: BTreeSet<Condition>,
    /// Pods that exceed their own limits of local storage: all of them go.
    pub over_limit: Vec<Eviction>,
    /// What runs low.
    pub shortage: Option<Shortage>,
}

/// Something runs low.
#[derive(Debug, Clone, PartialEq)]
pub struct Shortage {
    /// Which threshold is passed.
    pub threshold: Threshold,
    /// What the node gives back first.
    pub reclaim: Vec<Reclaim>,
    observed: Option<Observation>,
}

impl State {
    /// The conditions as of the last look.
    #[must_use]
    pub fn conditions(&self) -> &BTreeSet<Condition> {
        &self.conditions
    }

    /// Looks at what was observed.
    pub fn synchronize(
        &mut self,
        settings: &Settings,
        observations: &Observations,
        pods: &[Candidate<'_>],
        now: Timestamp,
    ) -> Decision {
        let mut met = passed(&settings.thresholds, observations, false);
        // What was acted on counts until as much as was wanted is free again.
        for threshold in passed(&self.met, observations, true) {
            if !met.contains(&threshold) {
                met.push(threshold);
            }
        }
        let first: BTreeMap<Threshold, Timestamp> = met
            .iter()
            .map(|threshold| (threshold.clone(), *self.first_met.get(threshold).unwrap_or(&now)))
            .collect();
        for threshold in &met {
            self.last_seen.insert(threshold.signal.condition(), now);
        }
        let holding = self
            .last_seen
            .iter()
            .filter(|(_, seen)| now.duration_since(**seen) < settings.transition);
        self.conditions = holding.map(|(condition, _)| *condition).collect();
        for threshold in &met {
            self.conditions.insert(threshold.signal.condition());
        }
        met.retain(|threshold| now.duration_since(first[threshold]) >= threshold.grace);
        self.first_met = first;
        self.met.clone_from(&met);
        // Stats that are no newer than those acted on before say nothing of what came of it.
        let fresh = |threshold: &Threshold| {
            let old = self.observed.get(&threshold.signal).and_then(|seen| seen.time);
            let new = observations.get(&threshold.signal).and_then(|seen| seen.time);
            old.is_none() || new.is_none() || new > old
        };
        met.retain(fresh);
        self.observed.clone_from(observations);
        let mut decision = Decision {
            conditions: self.conditions.clone(),
            ..Decision::default()
        };
        if settings.local_storage {
            decision.over_limit = pods
                .iter()
                .filter(|one| !is_critical(one.pod, settings.spare_static))
                .filter_map(exceeding_local_storage)
                .collect();
        }
        if !decision.over_limit.is_empty() {
            return decision;
        }
        met.sort_by_key(|threshold| !threshold.signal.is_memory());
        decision.shortage = met.into_iter().next().map(|threshold| Shortage {
            reclaim: threshold.signal.reclaimed_by(settings.disks),
            observed: observations.get(&threshold.signal).copied(),
            threshold,
        });
        decision
    }
}

/// Thresholds that are passed; with `and_more`, until what is wanted beyond them is free.
fn passed(thresholds: &[Threshold], observations: &Observations, and_more: bool) -> Vec<Threshold> {
    let met = |threshold: &&Threshold| {
        observations.get(&threshold.signal).is_some_and(|seen| {
            let mut least = threshold.limit.of(seen.capacity);
            if and_more && let Some(more) = &threshold.minimum_reclaim {
                least = least.saturating_add(more.of(seen.capacity));
            }
            seen.available < least
        })
    };
    thresholds.iter().filter(met).cloned().collect()
}

impl Shortage {
    /// Whether what the node gave back was enough, by observations made after it.
    #[must_use]
    pub fn is_over(&self, settings: &Settings, observations: &Observations) -> bool {
        passed(&settings.thresholds, observations, true).is_empty()
    }

    /// The pod that goes; `None` when there is none that may. Where static pods aren't spared, only one that is known to
    /// use some of what runs low.
    #[must_use]
    pub fn victim(&self, settings: &Settings, pods: &[Candidate<'_>]) -> Option<Eviction> {
        let mut ranked: Vec<&Candidate<'_>> = pods
            .iter()
            .filter(|one| !is_critical(one.pod, settings.spare_static))
            // Upstream's victims come back by their controllers; a static pod is gone for good, and ending one that uses
            // nothing would help nobody.
            .filter(|one| {
                settings.spare_static || rank::gives_back(one, self.threshold.signal, settings.disks)
            })
            .collect();
        rank::sort(&mut ranked, self.threshold.signal, settings.disks);
        let chosen = ranked.first()?;
        let mut grace = IMMEDIATELY;
        if !self.threshold.is_hard() {
            let own = chosen
                .pod
                .spec
                .as_ref()
                .and_then(|spec| spec.termination_grace_period_seconds);
            grace = own.map_or(settings.most_grace_seconds, |own| {
                own.min(settings.most_grace_seconds)
            });
        }
        let (message, annotations) = messages::of_shortage(&self.threshold, self.observed, chosen);
        Some(Eviction {
            uid: chosen.pod.metadata.uid.clone().unwrap_or_default(),
            message,
            grace_seconds: grace,
            annotations,
        })
    }
}

/// Whether a pod is never evicted: system critical ones, and if they are spared static pods and mirrors of those.
#[must_use]
pub fn is_critical(pod: &Pod, spare_static: bool) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let annotated = |name: &str| annotations.and_then(|all| all.get(name));
    let is_static = annotated("kubernetes.io/config.source").is_some_and(|source| source != "api")
        || annotated("kubernetes.io/config.mirror").is_some();
    spare_static && is_static || priority(pod) >= SYSTEM_CRITICAL
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// Why a pod isn't taken under pressure: reason and message; `None` when it is.
#[must_use]
pub fn refusal(
    conditions: &BTreeSet<Condition>,
    pod: &Pod,
    best_effort: bool,
) -> Option<(&'static str, String)> {
    if conditions.is_empty() || is_critical(pod, true) {
        return None;
    }
    if conditions.iter().eq([&Condition::Memory]) && (!best_effort || tolerates_memory_pressure(pod)) {
        return None;
    }
    let names: Vec<&str> = conditions.iter().map(|condition| condition.name()).collect();
    Some((REASON, format!("The node had condition: [{}]. ", names.join(" "))))
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    const TAINT: &str = "node.kubernetes.io/memory-pressure";
    let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    let mut fitting = tolerations.filter(|one| {
        one.effect
            .as_deref()
            .is_none_or(|e| e.is_empty() || e == "NoSchedule")
    });
    fitting.any(|one| {
        let exists = one.operator.as_deref() == Some("Exists");
        match one.key.as_deref().unwrap_or("") {
            "" => exists,
            key => key == TAINT && (exists || one.value.as_deref().unwrap_or("").is_empty()),
        }
    })
}

#[cfg(test)]
mod tests;
