//! The one task that hears of everything: sources, the runtime's events, probes, the node. It decides whose worker is
//! told, and never waits for a pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};

use controlplane_api::k8s_openapi::api::core::v1::{Pod, PodStatus};
use kubelet_pods::status::StatusOverride;
use kubelet_pods::worker::turns::StaticTurns;
use kubelet_pods::worker::{Cause, PodLife, Update as PodUpdate};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{info, warn};

use super::belongings;
use super::context::Context;
use super::inbox::Inbox;
use super::worker::{Finished, Worker};
use crate::events::EventType;
use crate::pleg::{PlegEvent, RuntimePod};
use crate::sources::{Finding, SourceKind, Update};
use crate::timeline::Phase;

/// What the sync loop hears of.
#[derive(Debug)]
pub enum Input {
    /// A source names other things than before.
    Source(Update),
    /// Something happened at the runtime.
    Pleg(PlegEvent),
    /// A probe's result changed, a volume's content may have, or the like: that pod looks again.
    Look(String),
    /// The node changed: all pods look again.
    LookAll,
}

/// Whether the loop turns.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicI64>);

impl Pulse {
    /// The second of the last turn.
    pub fn last(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The sync loop.
pub struct SyncLoop {
    ctx: Arc<Context>,
    expected: BTreeSet<SourceKind>,
    sources: BTreeMap<SourceKind, Update>,
    workers: BTreeMap<String, Arc<Inbox>>,
    /// Pods as sources name them, by UID.
    named: BTreeMap<String, Arc<Pod>>,
    turns: StaticTurns,
    tasks: JoinSet<Finished>,
    /// Whose each task is: namespace, name and UID.
    tasks_of: HashMap<Id, (String, String, String)>,
    /// What the runtime held at the last relist; none before the first, and until then sources wait.
    held: Vec<RuntimePod>,
    listed: bool,
    early: BTreeMap<SourceKind, Update>,
    told: BTreeSet<Finding>,
    pulse: Pulse,
}

impl SyncLoop {
    /// A loop for these sources: pods that nobody names only end once each of them has been heard.
    pub fn new(ctx: Arc<Context>, expected: BTreeSet<SourceKind>) -> Self {
        Self {
            ctx,
            expected,
            sources: BTreeMap::new(),
            workers: BTreeMap::new(),
            named: BTreeMap::new(),
            turns: StaticTurns::default(),
            tasks: JoinSet::new(),
            tasks_of: HashMap::new(),
            held: Vec::new(),
            listed: false,
            early: BTreeMap::new(),
            told: BTreeSet::new(),
            pulse: Pulse::default(),
        }
    }

    /// Tells whether it turns.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Turns until the inputs end. Pods go on running: workers are only dropped.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut tick = tokio::time::interval(std::time::Duration::from_secs(10));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.pulse.0.store(self.ctx.now().as_second(), Ordering::Relaxed);
            tokio::select! {
                input = inputs.recv() => match input {
                    None => return,
                    Some(input) => self.hear(input),
                },
                Some(done) = self.tasks.join_next_with_id() => self.ended(done),
                _ = tick.tick() => {}
            }
        }
    }

    fn hear(&mut self, input: Input) {
        match input {
            // Who runs already must be known before anybody is admitted.
            Input::Source(update) if !self.listed => drop(self.early.insert(update.source, update)),
            Input::Source(update) => self.source(update),
            Input::Pleg(PlegEvent::Changed(uid)) | Input::Look(uid) => {
                if let Some(inbox) = self.workers.get(&uid) {
                    inbox.look();
                }
            }
            Input::Pleg(PlegEvent::Listed(held)) => {
                self.held = held;
                if !std::mem::replace(&mut self.listed, true) {
                    self.take_early();
                }
                self.end_orphans();
            }
            Input::LookAll | Input::Pleg(PlegEvent::Recovered) => {
                self.workers.values().for_each(|inbox| inbox.look())
            }
        }
    }

    /// Takes up what sources named before the runtime had been listed. What runs and isn't named keeps its name's turn
    /// until it has ended.
    fn take_early(&mut self) {
        let early = std::mem::take(&mut self.early);
        let named: BTreeSet<_> = early
            .values()
            .flat_map(|update| &update.pods)
            .map(|pod| uid(pod).to_owned())
            .collect();
        for held in self.held.clone().iter().filter(|held| !named.contains(&held.uid)) {
            self.turns.claim(&held.namespace, &held.name, &held.uid);
        }
        for update in early.into_values() {
            self.source(update);
        }
    }

    fn source(&mut self, update: Update) {
        let kind = update.source;
        for finding in &update.findings {
            if self.told.insert(finding.clone()) {
                warn!(place = %finding.place, source = kind.as_str(), "{}", finding.message);
            }
        }
        let current = |finding: &Finding, others: &BTreeMap<SourceKind, Update>| {
            update.findings.contains(finding)
                || others
                    .iter()
                    .any(|(other, update)| *other != kind && update.findings.contains(finding))
        };
        self.told.retain(|finding| current(finding, &self.sources));
        self.sources.insert(kind, update);
        self.set_objects();
        let now_named = self.all_named();
        let before = std::mem::replace(&mut self.named, now_named);
        for uid in before.keys().filter(|uid| !self.named.contains_key(*uid)) {
            if let Some(inbox) = self.workers.get(uid) {
                inbox.push(PodUpdate::Removed);
            }
        }
        let changed = self
            .named
            .iter()
            .filter(|(uid, pod)| before.get(*uid) != Some(pod));
        let (mut running, mut others) = (Vec::new(), Vec::new());
        for (uid, pod) in changed {
            let list = if self.runs(uid) { &mut running } else { &mut others };
            list.push((uid.clone(), pod.clone()));
        }
        // What runs comes first: nobody takes its place.
        for (uid, pod) in running.into_iter().chain(others) {
            self.set(&uid, &pod);
        }
        self.end_orphans();
    }

    /// The objects of all sources; pods that may use them look again.
    fn set_objects(&mut self) {
        let mut all = crate::sources::Objects::default();
        for update in self.sources.values() {
            all.merge(&update.objects);
        }
        let mut objects = self.ctx.objects.write().unwrap_or_else(PoisonError::into_inner);
        if *objects != all {
            *objects = all;
            drop(objects);
            self.workers.values().for_each(|inbox| inbox.look());
        }
    }

    /// What all sources name, by UID. Of two pods of one name from two sources the first source's stays.
    fn all_named(&self) -> BTreeMap<String, Arc<Pod>> {
        let mut named = BTreeMap::new();
        let mut names = BTreeSet::new();
        for update in self.sources.values() {
            for pod in &update.pods {
                if !names.insert(full_name(pod)) {
                    let (namespace, name) = full_name(pod);
                    warn!(
                        namespace,
                        pod = name,
                        source = update.source.as_str(),
                        "a pod of that name comes from another source"
                    );
                    continue;
                }
                if named.contains_key(uid(pod)) {
                    let (namespace, name) = full_name(pod);
                    warn!(
                        namespace,
                        pod = name,
                        pod_uid = uid(pod),
                        "another pod has this UID: it is left out"
                    );
                    continue;
                }
                named.insert(uid(pod).to_owned(), pod.clone());
            }
        }
        named
    }

    /// A source names a pod, for the first time or changed.
    fn set(&mut self, uid: &str, pod: &Arc<Pod>) {
        match self.workers.get(uid) {
            Some(inbox) => inbox.push(PodUpdate::Set(Box::new((**pod).clone()))),
            None => self.begin(pod),
        }
    }

    /// Begins a pod.
    fn begin(&mut self, pod: &Arc<Pod>) {
        let uid = uid(pod).to_owned();
        let (namespace, name) = full_name(pod);
        self.ctx.timelines.seen(&uid);
        let phase = self.ctx.timelines.begin(&uid, Phase::Admit, None);
        let may_start = self.turns.claim(&namespace, &name, &uid);
        let runs = self.runs(&uid);
        let mut life = PodLife::begin(Box::new((**pod).clone()), may_start, runs, self.ctx.now());
        // What runs already was admitted by who was before us; who waits for its turn is judged then.
        if may_start
            && !runs
            && let Some(refusal) = self.refusal(pod)
        {
            life = life.update(refusal, self.ctx.now()).life;
        }
        phase.end();
        self.hire(&uid, life, Some(pod.clone()));
    }

    /// Whether the runtime holds something of a pod.
    fn runs(&self, uid: &str) -> bool {
        self.held.iter().any(|held| held.uid == uid)
    }

    /// What ends a pod that the node can't take.
    fn refusal(&self, pod: &Pod) -> Option<PodUpdate> {
        let mut others = self.ctx.registry.active();
        others.retain(|other| uid(other) != uid(pod));
        let verdict = self.ctx.allocations.admit(pod, &others);
        let (reason, message) = verdict.err()?;
        self.ctx
            .event(pod, None, EventType::Warning, &reason, message.clone());
        let status = StatusOverride {
            reason,
            message,
            failed: true,
            disruption: None,
        };
        Some(PodUpdate::Kill {
            cause: Cause::Killed,
            grace: None,
            status: Some(status),
        })
    }

    /// It is the turn of a pod that waited.
    fn start_next(&mut self, uid: &str) {
        let Some(inbox) = self.workers.get(uid) else {
            return;
        };
        let pod = self.named.get(uid).cloned();
        match pod.and_then(|pod| self.refusal(&pod)) {
            Some(refusal) => inbox.push(refusal),
            None => inbox.turn(),
        }
    }

    /// Puts a worker to a pod.
    fn hire(&mut self, uid: &str, life: PodLife, pod: Option<Arc<Pod>>) {
        let inbox = Arc::new(Inbox::default());
        self.workers.insert(uid.to_owned(), inbox.clone());
        if let Some(pod) = pod {
            self.ctx.registry.enter(uid, pending(&pod), inbox.clone());
        }
        let queued = self.ctx.timelines.begin(uid, Phase::Queue, None);
        let worker = Worker::new(self.ctx.clone(), &life, uid, inbox);
        let (namespace, name) = worker.full_name();
        let task = self.tasks.spawn(worker.run(life, queued));
        self.tasks_of.insert(task.id(), (namespace, name, uid.to_owned()));
    }

    /// Ends what the runtime holds and nobody names, once every source was heard.
    fn end_orphans(&mut self) {
        if !self.expected.iter().all(|kind| self.sources.contains_key(kind)) {
            return;
        }
        self.ctx.registry.settle();
        for pod in self.held.clone() {
            if self.workers.contains_key(&pod.uid) || self.named.contains_key(&pod.uid) {
                continue;
            }
            info!(
                pod = pod.name,
                namespace = pod.namespace,
                pod_uid = pod.uid,
                "nobody names this pod any more: it ends"
            );
            let life = PodLife::orphan(pod.uid.clone(), pod.name, pod.namespace, self.ctx.now());
            self.hire(&pod.uid, life, None);
        }
    }

    /// A worker ended: nothing of its pod is left.
    fn ended(&mut self, done: Result<(Id, Finished), JoinError>) {
        let finished = match done {
            Ok((id, finished)) => {
                self.tasks_of.remove(&id);
                finished
            }
            Err(error) => {
                let Some((namespace, name, uid)) = self.tasks_of.remove(&error.id()) else {
                    return;
                };
                // A bug; what it left is found by the pod's next worker.
                warn!(%error, pod_uid = uid, "a pod's worker ended early");
                self.ctx.registry.leave(&uid);
                Finished {
                    uid,
                    namespace,
                    name,
                    again: None,
                }
            }
        };
        self.workers.remove(&finished.uid);
        self.held.retain(|held| held.uid != finished.uid);
        let next = self
            .turns
            .release(&finished.namespace, &finished.name, &finished.uid);
        if let Some(uid) = next {
            self.start_next(&uid);
        }
        let again = finished
            .again
            .map(Arc::from)
            .or_else(|| self.named.get(&finished.uid).cloned());
        if let Some(pod) = again {
            self.begin(&pod);
        }
    }

    /// Removes from the disk what no pod has any more: volumes, cgroups, logs. Blocks.
    pub fn sweep(ctx: &Context, known: &dyn Fn(&str) -> bool) {
        let volumes = ctx.volumes.present().unwrap_or_default();
        for uid in volumes.iter().filter(|uid| !known(uid)) {
            match ctx.volumes.tear_down(uid) {
                Ok(()) => ctx
                    .user_namespaces
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .release(uid),
                Err(error) => warn!(
                    pod_uid = uid,
                    error = error.told(),
                    "failed to remove the volumes of a pod that is gone"
                ),
            }
        }
        for uid in ctx
            .cgroups
            .present()
            .unwrap_or_default()
            .iter()
            .filter(|uid| !known(uid))
        {
            if let Err(error) = ctx.cgroups.remove(uid) {
                warn!(pod_uid = uid, %error, "failed to remove the cgroup of a pod that is gone");
            }
        }
        let logs = ctx.facts().pod_logs_dir.clone();
        for (uid, folder) in belongings::log_folders(logs.as_ref()) {
            if !known(&uid)
                && let Err(error) = belongings::remove_logs(&folder)
            {
                warn!(pod_uid = uid, %error, "failed to remove the logs of a pod that is gone");
            }
        }
        if let Some(links) = &ctx.settings.container_logs {
            belongings::sweep_links(links);
        }
    }
}

/// A pod as it is told before its worker has looked.
fn pending(pod: &Arc<Pod>) -> Arc<Pod> {
    if pod.status.is_some() {
        return pod.clone();
    }
    let status = PodStatus {
        phase: Some("Pending".to_owned()),
        ..PodStatus::default()
    };
    Arc::new(Pod {
        status: Some(status),
        ..(**pod).clone()
    })
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn full_name(pod: &Pod) -> (String, String) {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    (text(&pod.metadata.namespace), text(&pod.metadata.name))
}
