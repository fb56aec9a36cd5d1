//! All probes of the node, on one heap of times.
//!
//! Pod workers tell what they see of their pods' containers ([`Prober::observe`]); [`Prober::run`] sleeps until the next
//! probing is due, starts a task for each that is, and counts outcomes as they come. Times are the prober's own, which no
//! one sets: a jump of the wall clock neither delays nor hurries a probe. What is due waits while as many probings as
//! [`Limits`] allows are under way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::Container;
use jiff::{SignedDuration, Timestamp};
use kubelet_pods::probe::{
    Change, ProbeKind, ProbeResult, ProbeResults, ProbeState, Target, Timing, probe_of, step,
};
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::{Action, Exec, Outcome, compile};

/// Startup first: whether it succeeded decides about the others.
const KINDS: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];
/// How often a probing that failed itself is tried before that counts.
const TRIES: u32 = 3;

/// Bounds of the prober.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Probings under way at once.
    pub at_once: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { at_once: 512 }
    }
}

/// What a pod's worker sees of it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodProbes {
    /// The pod.
    pub uid: String,
    /// Where it is reached: its address, or the node's if it has the host's network.
    pub ip: Option<IpAddr>,
    /// Whether it is ending.
    pub terminating: bool,
    /// Its containers that may be probed: regular ones and sidecars.
    pub containers: Vec<ProbedContainer>,
}

/// A container that may be probed.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbedContainer {
    /// Its spec.
    pub spec: Arc<Container>,
    /// What has become of it.
    pub seen: Seen,
}

/// What has become of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// There is none yet.
    Absent,
    /// It runs.
    Running {
        /// The runtime's ID.
        id: String,
        /// Since when, by the wall clock.
        started: Timestamp,
    },
    /// It ended.
    Ended {
        /// The runtime's ID.
        id: String,
        /// Whether another one will come.
        again: bool,
    },
}

/// A probing that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed<'a> {
    /// The pod.
    pub pod_uid: &'a str,
    /// The container's name.
    pub container: &'a str,
    /// The runtime's ID of it.
    pub container_id: &'a str,
    /// Which probe.
    pub kind: ProbeKind,
    /// What it said; [`Outcome::event`] is what is told of it.
    pub outcome: &'a Outcome,
    /// How long it took.
    pub took: Duration,
}

/// Who wants to know. Called between probings: it must not block.
pub trait ProbeSink: Send + Sync + 'static {
    /// The result that counts has changed: the pod's worker must look.
    fn changed(&self, pod_uid: &str, change: &Change);

    /// A probing is done: for events and metrics.
    fn probed(&self, probed: &Probed<'_>);
}

/// How much later than it must a container's first probing is; given the probe's period.
pub type Jitter = Box<dyn Fn(SignedDuration) -> SignedDuration + Send + Sync>;

/// The node's prober.
pub struct Prober {
    exec: Arc<dyn Exec>,
    sink: Arc<dyn ProbeSink>,
    limits: Limits,
    jitter: Jitter,
    base: Timestamp,
    start: Instant,
    probes: Mutex<Probes>,
    changed: Notify,
}

#[derive(Default)]
struct Probes {
    pods: BTreeMap<String, BTreeMap<String, Known>>,
    entries: BTreeMap<u64, Entry>,
    next_key: u64,
    due: BinaryHeap<Reverse<(Timestamp, u64)>>,
    results: ProbeResults,
}

/// A container of a pod, and its probes in the order of [`KINDS`].
struct Known {
    seen: Seen,
    terminating: bool,
    keys: [Option<u64>; 3],
}

struct Entry {
    pod_uid: Arc<str>,
    container: Arc<str>,
    state: ProbeState,
    action: Arc<Action>,
    made_for: Option<(String, Option<IpAddr>)>,
    scheduled: Option<Timestamp>,
    under_way: bool,
}

/// A probing to be done.
struct Job {
    key: u64,
    container_id: String,
    action: Arc<Action>,
    patience: Duration,
}

/// A probing that was done.
struct Done {
    key: u64,
    container_id: String,
    outcome: Outcome,
    took: Duration,
}

impl Prober {
    /// A prober without probes. `now` is the wall clock's; `jitter` spreads the first probings after a start.
    pub fn new(
        exec: Arc<dyn Exec>,
        sink: Arc<dyn ProbeSink>,
        limits: Limits,
        jitter: Jitter,
        now: Timestamp,
    ) -> Arc<Prober> {
        Arc::new(Prober {
            exec,
            sink,
            limits,
            jitter,
            base: now,
            start: Instant::now(),
            probes: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Tells what has become of a pod's containers, whenever that changes. `wall` is the wall clock's time.
    pub fn observe(&self, pod: &PodProbes, wall: Timestamp) {
        let now = self.now();
        let mut probes = self.lock();
        let mut changes = Vec::new();
        let mut before = probes.pods.remove(&pod.uid).unwrap_or_default();
        let mut after = BTreeMap::new();
        for container in &pod.containers {
            let name = &container.spec.name;
            let known = before.remove(name);
            let seen = own_time(&container.seen, wall, now);
            if let (Some(old), Some(new)) =
                (known.as_ref().and_then(|known| id_of(&known.seen)), id_of(&seen))
                && old != new
            {
                probes.results.forget(old);
            }
            let keys = match known {
                Some(known) => known.keys,
                None => probes.add(pod, container, &self.jitter),
            };
            let known = Known {
                seen,
                terminating: pod.terminating,
                keys,
            };
            probes.observe(&known, now, &mut changes);
            probes.prepare(&known, pod, container);
            after.insert(name.clone(), known);
        }
        for gone in before.into_values() {
            probes.drop_known(&gone);
        }
        if !after.is_empty() {
            probes.pods.insert(pod.uid.clone(), after);
        }
        drop(probes);
        self.tell(&pod.uid, &changes);
        self.changed.notify_one();
    }

    /// Forgets a pod.
    pub fn remove(&self, pod_uid: &str) {
        let mut probes = self.lock();
        for known in probes.pods.remove(pod_uid).unwrap_or_default().into_values() {
            probes.drop_known(&known);
        }
    }

    /// The results that count of all containers.
    pub fn results(&self) -> ProbeResults {
        self.lock().results.clone()
    }

    /// Looks at the results that count without copying them.
    pub fn with_results<T>(&self, look: impl FnOnce(&ProbeResults) -> T) -> T {
        look(&self.lock().results)
    }

    /// Probes for ever; dropping this ends what is under way.
    pub async fn run(self: Arc<Prober>) {
        let mut tasks: JoinSet<Done> = JoinSet::new();
        let mut keys: HashMap<Id, u64> = HashMap::new();
        loop {
            let room = self.limits.at_once.saturating_sub(tasks.len());
            let (jobs, next) = self.lock().take_due(self.now(), room);
            for job in jobs {
                let (key, exec) = (job.key, self.exec.clone());
                keys.insert(tasks.spawn(Box::pin(job.run(exec))).id(), key);
            }
            let wait = next.filter(|_| tasks.len() < self.limits.at_once);
            let wait = wait.map(|at| self.start + unsigned(at.duration_since(self.base)));
            tokio::select! {
                Some(joined) = tasks.join_next_with_id() => {
                    self.finish(joined, &mut keys);
                    while let Some(joined) = tasks.try_join_next_with_id() {
                        self.finish(joined, &mut keys);
                    }
                }
                () = self.changed.notified() => {}
                () = sleep_until(wait), if wait.is_some() => {}
            }
        }
    }

    fn finish(&self, joined: Result<(Id, Done), JoinError>, keys: &mut HashMap<Id, u64>) {
        match joined {
            Ok((id, done)) => {
                keys.remove(&id);
                self.count(done);
            }
            Err(error) => {
                if let Some(key) = keys.remove(&error.id()) {
                    tracing::error!(%error, "a probing ended in a way that it must not");
                    self.lock().postpone(key, self.now());
                }
            }
        }
    }

    fn count(&self, done: Done) {
        let now = self.now();
        let mut probes = self.lock();
        let Some(entry) = probes.entries.get_mut(&done.key) else {
            return;
        };
        entry.under_way = false;
        let (pod_uid, container) = (entry.pod_uid.clone(), entry.container.clone());
        let kind = entry.state.kind();
        let mut changes = Vec::new();
        // Another container of the name may have come meanwhile, which this outcome says nothing of.
        let current = entry
            .state
            .next_at()
            .is_some_and(|(_, id)| id == done.container_id);
        if current {
            let change = step(&mut entry.state, done.outcome.counted(), now);
            let started = matches!(&change, Some(change)
                if change.kind == ProbeKind::Startup && change.result == ProbeResult::Success);
            probes.record(change, &mut changes);
            if started {
                probes.start_others(&pod_uid, &container, now, &mut changes);
            }
        }
        probes.schedule(done.key);
        drop(probes);
        let probed = Probed {
            pod_uid: &pod_uid,
            container: &container,
            container_id: &done.container_id,
            kind,
            outcome: &done.outcome,
            took: done.took,
        };
        if current {
            self.sink.probed(&probed);
        }
        self.tell(&pod_uid, &changes);
    }

    fn tell(&self, pod_uid: &str, changes: &[Change]) {
        for change in changes {
            self.sink.changed(pod_uid, change);
        }
    }

    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.start.elapsed()).unwrap_or(SignedDuration::MAX);
        self.base.checked_add(passed).unwrap_or(Timestamp::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Probes> {
        // What is behind it is whole between any two statements that may panic.
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

fn unsigned(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or(Duration::ZERO)
}

/// The container that was seen.
pub(crate) fn id_of(seen: &Seen) -> Option<&str> {
    match seen {
        Seen::Running { id, .. } | Seen::Ended { id, .. } => Some(id),
        Seen::Absent => None,
    }
}

/// What was seen with its time by the prober's clock.
fn own_time(seen: &Seen, wall: Timestamp, now: Timestamp) -> Seen {
    match seen {
        Seen::Running { id, started } => {
            let age = wall.duration_since(*started).max(SignedDuration::ZERO);
            Seen::Running {
                id: id.clone(),
                started: now.checked_sub(age).unwrap_or(Timestamp::MIN),
            }
        }
        other => other.clone(),
    }
}

impl Probes {
    fn add(&mut self, pod: &PodProbes, container: &ProbedContainer, jitter: &Jitter) -> [Option<u64>; 3] {
        KINDS.map(|kind| {
            let timing = Timing::of(probe_of(&container.spec, kind)?);
            self.next_key += 1;
            let entry = Entry {
                pod_uid: pod.uid.as_str().into(),
                container: container.spec.name.as_str().into(),
                state: ProbeState::new(kind, timing, jitter(timing.period)),
                action: Arc::new(Action::Impossible("the container doesn't run".to_owned())),
                made_for: None,
                scheduled: None,
                under_way: false,
            };
            self.entries.insert(self.next_key, entry);
            Some(self.next_key)
        })
    }

    fn drop_known(&mut self, known: &Known) {
        for key in known.keys.into_iter().flatten() {
            self.entries.remove(&key);
        }
        if let Some(id) = id_of(&known.seen) {
            self.results.forget(id);
        }
    }

    /// Tells each probe of a container what has become of it.
    fn observe(&mut self, known: &Known, now: Timestamp, changes: &mut Vec<Change>) {
        for key in known.keys.into_iter().flatten() {
            let target = match &known.seen {
                Seen::Absent => Target::Absent,
                Seen::Ended { id, again } => Target::Ended {
                    id: id.clone(),
                    again: *again,
                },
                Seen::Running { id, started } => {
                    let started_up =
                        known.keys[0].is_none() || self.results.startup(id) == Some(ProbeResult::Success);
                    Target::Running {
                        id: id.clone(),
                        started: *started,
                        started_up,
                    }
                }
            };
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            let change = entry.state.observe(&target, known.terminating, now);
            self.record(change, changes);
            self.schedule(key);
        }
    }

    /// Makes a container's probes ready for the container and the address that they have now.
    fn prepare(&mut self, known: &Known, pod: &PodProbes, container: &ProbedContainer) {
        let Seen::Running { id, .. } = &known.seen else {
            return;
        };
        for key in known.keys.into_iter().flatten() {
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            let current = entry
                .made_for
                .as_ref()
                .is_some_and(|(made, ip)| made == id && *ip == pod.ip);
            let probe = probe_of(&container.spec, entry.state.kind()).filter(|_| !current);
            if let Some(probe) = probe {
                entry.action = Arc::new(compile(probe, &container.spec, pod.ip));
                entry.made_for = Some((id.clone(), pod.ip));
            }
        }
    }

    /// Startup has succeeded: the other probes of the container begin, and readiness doesn't wait for its period.
    fn start_others(&mut self, pod_uid: &str, container: &str, now: Timestamp, changes: &mut Vec<Change>) {
        let known = self.pods.get_mut(pod_uid).and_then(|pod| pod.remove(container));
        let Some(known) = known else { return };
        self.observe(&known, now, changes);
        if let Some(entry) = known.keys[2].and_then(|key| self.entries.get_mut(&key)) {
            entry.state.hurry(now);
        }
        for key in known.keys.into_iter().flatten() {
            self.schedule(key);
        }
        self.pods
            .entry(pod_uid.to_owned())
            .or_default()
            .insert(container.to_owned(), known);
    }

    fn record(&mut self, change: Option<Change>, changes: &mut Vec<Change>) {
        if let Some(change) = change
            && self.results.set(&change.id, change.kind, change.result)
        {
            changes.push(change);
        }
    }

    /// Puts a probe's next time on the heap, if it is another one than before.
    fn schedule(&mut self, key: u64) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let next = entry
            .state
            .next_at()
            .map(|(at, _)| at)
            .filter(|_| !entry.under_way);
        if entry.scheduled == next {
            return;
        }
        entry.scheduled = next;
        if let Some(at) = next {
            self.due.push(Reverse((at, key)));
        }
        if self.due.len() > 4 * self.entries.len() + 64 {
            let valid = self
                .entries
                .iter()
                .filter_map(|(key, entry)| Some(Reverse((entry.scheduled?, *key))));
            self.due = valid.collect();
        }
    }

    /// Counts a probing that broke as one that said nothing.
    fn postpone(&mut self, key: u64, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.under_way = false;
            step(&mut entry.state, kubelet_pods::probe::Outcome::Error, now);
            self.schedule(key);
        }
    }

    /// What is due, as far as there is room, and when the next is.
    fn take_due(&mut self, now: Timestamp, room: usize) -> (Vec<Job>, Option<Timestamp>) {
        let mut jobs = Vec::new();
        while let Some(&Reverse((at, key))) = self.due.peek() {
            let entry = self
                .entries
                .get_mut(&key)
                .filter(|entry| entry.scheduled == Some(at));
            let Some(entry) = entry else {
                self.due.pop();
                continue;
            };
            if at > now || jobs.len() == room {
                return (jobs, Some(at));
            }
            self.due.pop();
            entry.scheduled = None;
            if let Some((_, id)) = entry.state.next_at() {
                jobs.push(Job {
                    key,
                    container_id: id.to_owned(),
                    action: entry.action.clone(),
                    patience: unsigned(entry.state.timing().timeout),
                });
                entry.under_way = true;
            }
        }
        (jobs, None)
    }
}

impl Job {
    async fn run(self, exec: Arc<dyn Exec>) -> Done {
        let start = Instant::now();
        let Job {
            key,
            container_id,
            action,
            patience,
        } = self;
        let mut outcome = action.run(exec.as_ref(), &container_id, patience).await;
        for _ in 1..TRIES {
            if !matches!(outcome, Outcome::Unknown(_)) {
                break;
            }
            outcome = action.run(exec.as_ref(), &container_id, patience).await;
        }
        Done {
            key,
            container_id,
            outcome,
            took: start.elapsed(),
        }
    }
}
