//! The worker of one pod: it owns the pod's life and is the only one that acts on it.
//!
//! Its loop: take what the inbox has, let the life move on, do what the life asks for ([`Work`]), sleep until something
//! happens or it is time. What it does is dropped in the middle when the pod is to end, or to end sooner; whatever a
//! call to the runtime had begun by then is found at the next look.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::{Pod, PodStatus};
use cri_api::v1;
use jiff::{SignedDuration, Timestamp};
use kubelet_pods::actions::{Inputs, KillReason, PodActions, SandboxAction, Waiting, compute_pod_actions};
use kubelet_pods::backoff::{BackoffKey, Delays, RestartBackoff};
use kubelet_pods::containers;
use kubelet_pods::observed::ObservedPod;
use kubelet_pods::status::{ResizeStatus, Stage, StatusInputs, StatusOverride, pod_status, rejected};
use kubelet_pods::worker::{Cause, Effect, Ending, PodLife, Subject, Update, deadline};
use tracing::{Instrument, debug, warn};

use super::belongings;
use super::context::Context;
use super::inbox::Inbox;
use super::start::{self, Prepared};
use super::stop;
use crate::events::EventType;
use crate::images::Keyring;
use crate::runtime::observe::View;
use crate::timeline::{Phase, Running};

/// Before a failed step is tried again: doubled up to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// The longest pause of a container whose start failed: that of images.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(300);
/// How long a pod that the node can't run yet is left alone.
const NOT_YET: Duration = Duration::from_secs(5);
/// Plans that are carried out one after the other before the worker takes a breath.
const MAX_ROUNDS: usize = 8;

/// A worker that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    /// Its pod's UID.
    pub(super) uid: String,
    /// Its pod's namespace.
    pub(super) namespace: String,
    /// Its pod's name.
    pub(super) name: String,
    /// The pod to begin with again.
    pub(super) again: Option<Box<Pod>>,
}

/// One pod's worker.
pub(super) struct Worker {
    ctx: Arc<Context>,
    uid: String,
    namespace: String,
    name: String,
    inbox: Arc<Inbox>,
    hands: Hands,
}

/// What a worker acts with; apart from the pod's life, so that both can change at once.
struct Hands {
    ctx: Arc<Context>,
    view: View,
    restarts: RestartBackoff,
    recovered: bool,
    /// Why containers could not be started, by name.
    failures: BTreeMap<String, Waiting>,
    previous: Option<PodStatus>,
    /// Whether the registry has the pod as active.
    active: bool,
    prepared: Option<Prepared>,
    started: bool,
    /// When volumes were last made fresh.
    fresh: Option<Timestamp>,
    /// Whether sandboxes and logs of it may be left.
    remains: bool,
    retry: Duration,
}

/// What a piece of work led to.
enum Work {
    /// All is as it should be; look again then, if nothing happens before.
    Settled(Option<Timestamp>),
    /// It failed; try again after a pause.
    Failed(String),
    /// The life moves on.
    Moves(Update),
}

impl Worker {
    pub(super) fn new(ctx: Arc<Context>, life: &PodLife, uid: &str, inbox: Arc<Inbox>) -> Self {
        let metadata = life.pod().map(|pod| &pod.metadata);
        let orphan = life.ending().and_then(|ending| match &ending.subject {
            Subject::RuntimeOnly { name, namespace, .. } => Some((namespace.clone(), name.clone())),
            Subject::Pod(_) => None,
        });
        let text = |value: Option<&String>| value.cloned().unwrap_or_default();
        let (namespace, name) = orphan.unwrap_or_else(|| {
            (
                text(metadata.and_then(|metadata| metadata.namespace.as_ref())),
                text(metadata.and_then(|metadata| metadata.name.as_ref())),
            )
        });
        let delays = Delays {
            greatest: ctx
                .settings
                .max_restart_period
                .and_then(|period| SignedDuration::try_from(period).ok())
                .unwrap_or(Delays::default().greatest),
            ..Delays::default()
        };
        let hands = Hands {
            ctx: ctx.clone(),
            view: View::default(),
            restarts: RestartBackoff::new(delays),
            recovered: false,
            failures: BTreeMap::new(),
            previous: None,
            active: true,
            prepared: None,
            started: false,
            fresh: None,
            remains: true,
            retry: FIRST_RETRY,
        };
        Self {
            ctx,
            uid: uid.to_owned(),
            namespace,
            name,
            inbox,
            hands,
        }
    }

    /// Namespace and name of its pod.
    pub(super) fn full_name(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }

    /// Works until nothing of the pod is left.
    pub(super) async fn run(self, life: PodLife, queued: Running) -> Finished {
        queued.end();
        let span =
            tracing::info_span!("pod", pod = %self.name, namespace = %self.namespace, pod_uid = %self.uid);
        self.work(life).instrument(span).await
    }

    async fn work(mut self, mut life: PodLife) -> Finished {
        loop {
            life = self.take_updates(life).0;
            if let PodLife::Gone { again } = life {
                self.hands
                    .remove_remains((&self.uid, &self.namespace, &self.name))
                    .await;
                self.forget();
                return Finished {
                    uid: self.uid,
                    namespace: self.namespace,
                    name: self.name,
                    again,
                };
            }
            let wake = match self.act(&mut life).await {
                None => continue,
                Some(Work::Moves(update)) => {
                    life = life.update(update, self.ctx.now()).life;
                    continue;
                }
                Some(Work::Settled(wake)) => {
                    self.hands.retry = FIRST_RETRY;
                    wake
                }
                Some(Work::Failed(message)) => {
                    warn!("{message}");
                    let pause = self.hands.retry;
                    self.hands.retry = (pause * 2).min(LAST_RETRY);
                    self.ctx.now().checked_add(pause).ok()
                }
            };
            self.sleep(wake).await;
        }
    }

    /// Lets the life move on by what the inbox has; says whether what is under way must stop.
    fn take_updates(&self, mut life: PodLife) -> (PodLife, bool) {
        let taken = self.inbox.take();
        let mut interrupt = false;
        if taken.turn {
            life = life.start();
        }
        for update in taken.updates {
            let transition = life.update(update, self.ctx.now());
            life = transition.life;
            interrupt |= transition.effect == Effect::Interrupt;
        }
        if taken.look {
            // Whatever happens next begins with a look.
            debug!("something of the pod changed");
        }
        (life, interrupt)
    }

    /// Does what the life asks for. None when it was cut short because the life moved on.
    async fn act(&mut self, life: &mut PodLife) -> Option<Work> {
        let Self {
            ctx,
            inbox,
            hands,
            namespace,
            name,
            uid,
        } = self;
        let identity = (uid.as_str(), namespace.as_str(), name.as_str());
        let work = match &*life {
            PodLife::Waiting { .. } | PodLife::Gone { .. } | PodLife::Terminated { cleaned: true, .. } => {
                return Some(Work::Settled(None));
            }
            PodLife::Syncing { pod } => Job::Sync(Arc::new((**pod).clone())),
            PodLife::Terminating(ending) => Job::Terminate(ending.clone()),
            PodLife::Terminated { ending, .. } => Job::CleanUp(ending.clone()),
        };
        let mut work = pin!(async {
            match work {
                Job::Sync(pod) => hands.sync(&pod).await,
                Job::Terminate(ending) => hands.terminate(&ending, identity).await,
                Job::CleanUp(ending) => hands.clean_up(&ending, identity).await,
            }
        });
        let mut looked_for = false;
        loop {
            tokio::select! {
                done = &mut work => {
                    // What happened meanwhile is looked at before the worker sleeps.
                    if looked_for {
                        inbox.look();
                    }
                    return Some(done);
                }
                () = inbox.wait() => {
                    let taken = inbox.take();
                    looked_for |= taken.look;
                    let mut interrupt = false;
                    for update in taken.updates {
                        let moved = std::mem::replace(life, PodLife::Gone { again: None });
                        let transition = moved.update(update, ctx.now());
                        *life = transition.life;
                        interrupt |= transition.effect == Effect::Interrupt;
                        looked_for |= transition.effect == Effect::Sync;
                    }
                    if interrupt {
                        return None;
                    }
                }
            }
        }
    }

    /// Sleeps until the inbox has something or it is time.
    async fn sleep(&self, wake: Option<Timestamp>) {
        let _phase = self
            .hands
            .waits_for()
            .map(|phase| self.ctx.timelines.begin(&self.uid, phase, None));
        let wait = wake.map(|at| {
            let left = at.duration_since(self.ctx.now());
            Duration::try_from(left).unwrap_or_default()
        });
        let regular = self.ctx.settings.sync_frequency;
        let pause = wait.map_or(regular, |wait| wait.min(regular));
        tokio::select! {
            () = self.inbox.wait() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    /// Nothing of the pod is left: neither does anybody remember it.
    fn forget(&self) {
        self.ctx.probes.remove(&self.uid);
        self.ctx.puller.forget_pod(&self.uid);
        self.ctx.timelines.forget(&self.uid);
        self.ctx.registry.leave(&self.uid);
    }
}

enum Job {
    Sync(Arc<Pod>),
    Terminate(Box<Ending>),
    CleanUp(Box<Ending>),
}

impl Hands {
    /// What a pod that isn't up yet waits for.
    fn waits_for(&self) -> Option<Phase> {
        let status = self.previous.as_ref().filter(|_| !self.started)?;
        let is = |name: &str| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.any(|condition| condition.type_ == name && condition.status == "True")
        };
        Some(if !self.failures.is_empty() {
            Phase::Wait
        } else if is("Initialized") {
            Phase::Probe
        } else {
            Phase::Init
        })
    }

    /// Brings a pod closer to what its spec says.
    async fn sync(&mut self, pod: &Arc<Pod>) -> Work {
        let mut wake = None;
        for _ in 0..MAX_ROUNDS {
            let observed = match self.look(pod).await {
                Ok(observed) => observed,
                Err(message) => return Work::Failed(message),
            };
            let deciding = self.ctx.timelines.begin(uid(pod), Phase::Sync, None);
            let plan = self.plan(pod, &observed);
            self.publish(pod, &observed, Stage::Syncing, None, &plan.waiting);
            deciding.end();
            if let Some(update) = self.ends_by_itself(pod) {
                return Work::Moves(update);
            }
            if plan.is_empty() {
                self.refresh(pod).await;
                return Work::Settled(self.next_look(pod, plan.wake_at));
            }
            if let Some(blocked) = self.hold(pod, &plan).await {
                return blocked;
            }
            match self.carry_out(pod, observed, &plan).await {
                Ok(true) => {}
                Ok(false) => {
                    wake = plan.wake_at;
                    break;
                }
                Err(message) => return Work::Failed(message),
            }
        }
        // Something waits for its time: told of, and tried again then.
        match self.look(pod).await {
            Ok(observed) => {
                let plan = self.plan(pod, &observed);
                self.publish(pod, &observed, Stage::Syncing, None, &plan.waiting);
                Work::Settled(self.next_look(pod, wake))
            }
            Err(message) => Work::Failed(message),
        }
    }

    /// Has the volumes follow their objects, once in a while.
    async fn refresh(&mut self, pod: &Arc<Pod>) {
        let ctx = self.ctx.clone();
        let now = ctx.now();
        let every = SignedDuration::try_from(ctx.settings.sync_frequency).unwrap_or(SignedDuration::MAX);
        if self
            .fresh
            .is_some_and(|fresh| fresh <= now && now.duration_since(fresh) < every)
        {
            return;
        }
        self.fresh = Some(now);
        let (volumes, of) = (ctx.volumes.clone(), pod.clone());
        match ctx.blocking(move || volumes.refresh(&of)).await {
            Some(Ok(refreshed)) => {
                for failed in refreshed.failed {
                    ctx.event(pod, None, EventType::Warning, "FailedMount", failed.message);
                }
            }
            Some(Err(error)) => warn!("failed to refresh volumes: {}", error.told()),
            None => {}
        }
    }

    /// Looks at the runtime.
    async fn look(&mut self, pod: &Arc<Pod>) -> Result<ObservedPod, String> {
        let ctx = self.ctx.clone();
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let uid = text(&pod.metadata.uid);
        let phase = ctx.timelines.begin(&uid, Phase::Observe, None);
        let (namespace, name) = (text(&pod.metadata.namespace), text(&pod.metadata.name));
        let observed = self
            .view
            .look(&ctx.cri, (&uid, &namespace, &name), &ctx.words)
            .await
            .map_err(|error| format!("failed to look at the pod: {error}"))?;
        phase.end();
        if !self.recovered {
            self.restarts.recover(pod, &observed);
            self.recovered = true;
        }
        self.failures.retain(|name, _| {
            let newest = observed.container(name);
            newest.is_none_or(|container| !container.is_running())
        });
        ctx.probes.update(pod, &observed);
        Ok(observed)
    }

    /// Whether the pod has ended, or its time is over.
    fn ends_by_itself(&self, pod: &Pod) -> Option<Update> {
        let status = self.previous.as_ref()?;
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return Some(Update::Completed);
        }
        let over = deadline::deadline(pod, status)?;
        if self.ctx.now() < over {
            return None;
        }
        let status = deadline::exceeded();
        self.ctx.event(
            pod,
            None,
            EventType::Normal,
            "DeadlineExceeded",
            status.message.clone(),
        );
        Some(Update::Kill {
            cause: Cause::Killed,
            grace: None,
            status: Some(status),
        })
    }

    fn plan(&self, pod: &Pod, observed: &ObservedPod) -> PodActions {
        let probes = self.ctx.probes.results(&observed.uid);
        compute_pod_actions(&Inputs {
            pod,
            observed,
            previous: self.previous.as_ref(),
            probes: &probes,
            restarts: &self.restarts,
            resizable: true,
            now: self.ctx.now(),
        })
    }

    /// Makes what containers stand on, where the plan starts some; what keeps the pod back.
    async fn hold(&mut self, pod: &Arc<Pod>, plan: &PodActions) -> Option<Work> {
        let starts = !plan.start.is_empty() || matches!(plan.sandbox, SandboxAction::Create { .. });
        if !starts {
            return None;
        }
        let on_host = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or(false);
        if let (Some(problem), false) = (self.ctx.network_problem(), on_host) {
            let message = format!("network is not ready: {problem}");
            self.ctx
                .event(pod, None, EventType::Warning, "NetworkNotReady", message);
            return Some(Work::Settled(self.ctx.now().checked_add(NOT_YET).ok()));
        }
        match self.prepare(pod).await {
            Ok(()) => None,
            Err((reason, message)) => {
                self.ctx
                    .event(pod, None, EventType::Warning, reason, message.clone());
                Some(Work::Failed(message))
            }
        }
    }

    /// cgroup, user namespace, volumes. Each is made once and made sure of again at every start of containers.
    async fn prepare(&mut self, pod: &Arc<Pod>) -> Result<(), (&'static str, String)> {
        let ctx = self.ctx.clone();
        let uid = uid(pod);
        if self.prepared.is_none() {
            let handler = handler(&ctx, pod).map_err(|message| ("FailedCreatePodSandBox", message))?;
            let phase = ctx.timelines.begin(uid, Phase::Cgroup, None);
            let cgroups = ctx.cgroups.clone();
            let of = pod.clone();
            let made = ctx.blocking(move || cgroups.ensure(&of)).await;
            let cgroup_parent = made
                .unwrap_or_else(|| Err("the kubelet stops".to_owned()))
                .map_err(|message| ("FailedToCreatePodContainer", message))?;
            phase.end();
            let user_namespace =
                user_namespace(&ctx, pod).map_err(|message| ("FailedCreatePodSandBox", message))?;
            self.prepared = Some(Prepared {
                cgroup_parent,
                handler,
                user_namespace,
                facts: ctx.facts(),
                keyring: Arc::default(),
            });
        }
        // The node and its credentials may have changed since the last start.
        if let Some(prepared) = &mut self.prepared {
            prepared.facts = ctx.facts();
            prepared.keyring = keyring(&ctx, pod);
        }
        let _phase = ctx.timelines.begin(uid, Phase::Volumes, None);
        let (volumes, of) = (ctx.volumes.clone(), pod.clone());
        let ready = ctx
            .blocking(move || volumes.set_up(&of))
            .await
            .ok_or(("FailedMount", "the kubelet stops".to_owned()))?;
        let ready = ready.map_err(|error| ("FailedMount", error.told()))?;
        for failed in &ready.failed {
            ctx.event(
                pod,
                None,
                EventType::Warning,
                "FailedMount",
                failed.message.clone(),
            );
        }
        self.fresh = Some(ctx.now());
        match ready.summary() {
            None => Ok(()),
            // Each volume that failed has its own event; only one of no known kind has nothing but this.
            Some(summary) if ready.failed.iter().any(|failed| failed.unknown) => {
                Err(("FailedMount", summary))
            }
            Some(summary) => Err(("", summary)),
        }
    }

    /// Carries a plan out. Says whether to plan again at once.
    async fn carry_out(
        &mut self,
        pod: &Arc<Pod>,
        observed: ObservedPod,
        plan: &PodActions,
    ) -> Result<bool, String> {
        let ctx = self.ctx.clone();
        let mut observed = observed;
        if let Some(reason) = plan.kill_pod {
            if reason == KillReason::SandboxChanged && !observed.sandboxes.is_empty() {
                let message = "Pod sandbox changed, it will be killed and re-created.";
                ctx.event(pod, None, EventType::Normal, "SandboxChanged", message);
            }
            let stopped = stop::pod(&ctx, Some(pod), &observed, None).await;
            stopped.map_err(|error| error.to_string())?;
        }
        stop::containers_of(&ctx, pod, &observed, &plan.kill)
            .await
            .map_err(|error| error.to_string())?;
        for id in &plan.remove {
            let request = v1::RemoveContainerRequest {
                container_id: id.clone(),
            };
            match ctx.cri.remove_container(request).await {
                Err(error) if !error.is_not_found() => {
                    return Err(format!("failed to remove container {id}: {error}"));
                }
                _ => {}
            }
        }
        self.resize(pod, plan).await;
        if let SandboxAction::Create { attempt, .. } = plan.sandbox {
            self.make_sandbox(pod, attempt).await?;
            observed = self.look(pod).await?;
        }
        if plan.start.is_empty() {
            return Ok(plan.kill_pod.is_some() || !plan.kill.is_empty());
        }
        self.start(pod, &observed, plan).await
    }

    async fn make_sandbox(&mut self, pod: &Arc<Pod>, attempt: u32) -> Result<(), String> {
        let ctx = self.ctx.clone();
        let Some(prepared) = &self.prepared else {
            return Ok(());
        };
        match start::sandbox(&ctx, pod, attempt, prepared).await {
            Ok(_) => Ok(()),
            Err(error) => {
                ctx.event(
                    pod,
                    None,
                    EventType::Warning,
                    "FailedCreatePodSandBox",
                    error.to_string(),
                );
                Err(error.to_string())
            }
        }
    }

    /// Starts the containers of a plan. Says whether all of them started.
    async fn start(
        &mut self,
        pod: &Arc<Pod>,
        observed: &ObservedPod,
        plan: &PodActions,
    ) -> Result<bool, String> {
        let ctx = self.ctx.clone();
        let Some(sandbox) = observed.sandbox().filter(|sandbox| sandbox.ready) else {
            return Ok(true);
        };
        let mut all = true;
        for order in &plan.start {
            let now = ctx.now();
            let pausing = self.failures.get(&order.name).and_then(|waiting| waiting.until);
            // One that lies too far ahead is from before the clock was set back.
            if pausing.is_some_and(|until| now < until && until.duration_since(now) <= LONGEST_PAUSE) {
                all = false;
                continue;
            }
            if let (Some(ended), Some((_, spec))) = (order.after, containers::find(pod, &order.name)) {
                self.restarts.started(BackoffKey::of(pod, &spec), ended, now);
            }
            let Some(prepared) = &self.prepared else {
                return Ok(true);
            };
            match start::container(&ctx, pod, observed, sandbox, order, prepared).await {
                Ok(()) => drop(self.failures.remove(&order.name)),
                Err(waiting) => {
                    all = false;
                    self.failures.insert(order.name.clone(), waiting);
                }
            }
        }
        Ok(all)
    }

    /// Gives running containers other limits. What fails is told and met again at the next look.
    async fn resize(&self, pod: &Pod, plan: &PodActions) {
        for order in &plan.resize {
            let facts = self.ctx.facts();
            let Some((_, mut spec)) = containers::find(pod, &order.name) else {
                continue;
            };
            spec.resources = Some(order.resources.clone());
            let linux = kubelet_pods::cri::resources::container_resources(pod, &spec, &facts, false);
            let request = v1::UpdateContainerResourcesRequest {
                container_id: order.id.clone(),
                linux: Some(linux),
                ..Default::default()
            };
            if let Err(error) = self.ctx.cri.update_container_resources(request).await {
                self.ctx.event(
                    pod,
                    Some(&order.name),
                    EventType::Warning,
                    "ResizeError",
                    error.description,
                );
            }
        }
    }

    /// When to look again though nothing happens.
    fn next_look(&self, pod: &Pod, plan: Option<Timestamp>) -> Option<Timestamp> {
        let deadline = self
            .previous
            .as_ref()
            .and_then(|status| deadline::deadline(pod, status));
        let failures = self.failures.values().filter_map(|waiting| waiting.until);
        failures.chain(plan).chain(deadline).min()
    }

    /// Makes the status and tells it.
    fn publish(
        &mut self,
        pod: &Pod,
        observed: &ObservedPod,
        stage: Stage,
        end: Option<&StatusOverride>,
        waiting: &BTreeMap<String, Waiting>,
    ) {
        let ctx = &self.ctx;
        let mut all = waiting.clone();
        all.extend(
            self.failures
                .iter()
                .map(|(name, waiting)| (name.clone(), waiting.clone())),
        );
        let probes = ctx.probes.results(&observed.uid);
        let facts = ctx.facts();
        let status = pod_status(&StatusInputs {
            pod,
            observed,
            probes: &probes,
            waiting: &all,
            previous: self.previous.as_ref(),
            stage,
            end,
            resize: &ResizeStatus::default(),
            host_ips: &facts.host_ips,
            runtime: &ctx.runtime_name,
            recursive_read_only: facts.runtime.recursive_read_only,
            now: ctx.now(),
        });
        if !self.started && is_up(&status) {
            self.started = true;
            ctx.timelines.finished(&observed.uid);
        }
        let active = stage != Stage::Terminated;
        if self.previous.as_ref() != Some(&status) || self.active != active {
            ctx.registry.publish(&observed.uid, pod, status.clone(), active);
            self.previous = Some(status);
            self.active = active;
        }
    }

    /// Ends all of a pod's containers.
    async fn terminate(&mut self, ending: &Ending, (uid, namespace, name): (&str, &str, &str)) -> Work {
        let ctx = self.ctx.clone();
        let observed = match self.view.look(&ctx.cri, (uid, namespace, name), &ctx.words).await {
            Ok(observed) => observed,
            Err(error) => return Work::Failed(format!("failed to look at the ending pod: {error}")),
        };
        ctx.probes.terminating(uid);
        self.tell_ending(ending, &observed, Stage::Terminating);
        // What of the grace has passed since the pod began to end is gone, also after a restart of this worker.
        let passed = ctx
            .now()
            .duration_since(ending.since)
            .as_secs()
            .clamp(0, ending.grace);
        if let Err(error) = stop::pod(&ctx, ending.pod(), &observed, Some(ending.grace - passed)).await {
            return Work::Failed(error.to_string());
        }
        let observed = match self.view.look(&ctx.cri, (uid, namespace, name), &ctx.words).await {
            Ok(observed) => observed,
            Err(error) => return Work::Failed(format!("failed to look at the ended pod: {error}")),
        };
        if let Some(left) = observed
            .containers
            .iter()
            .find(|container| container.is_running())
        {
            return Work::Failed(format!("container {} goes on running", left.name));
        }
        self.tell_ending(ending, &observed, Stage::Terminated);
        Work::Moves(Update::ContainersEnded)
    }

    fn tell_ending(&mut self, ending: &Ending, observed: &ObservedPod, stage: Stage) {
        let Some(pod) = ending.pod() else { return };
        // One that never ran says why.
        if observed.sandboxes.is_empty()
            && let Some(end) = ending.status.as_ref().filter(|end| end.failed)
            && self
                .previous
                .as_ref()
                .is_none_or(|status| status.container_statuses.is_none())
        {
            let status = rejected(pod, &end.reason, &end.message, self.ctx.now());
            self.ctx
                .registry
                .publish(&observed.uid, pod, status.clone(), stage != Stage::Terminated);
            self.previous = Some(status);
            return;
        }
        let waiting = BTreeMap::new();
        self.publish(pod, observed, stage, ending.status.as_ref(), &waiting);
    }

    /// Gives back what an ended pod has on the node.
    async fn clean_up(&mut self, ending: &Ending, (uid, namespace, name): (&str, &str, &str)) -> Work {
        let ctx = self.ctx.clone();
        self.prepared = None;
        let (volumes, cgroups, owned) = (ctx.volumes.clone(), ctx.cgroups.clone(), uid.to_owned());
        let freed = ctx.blocking(move || {
            volumes.tear_down(&owned).map_err(|error| error.told())?;
            cgroups.remove(&owned)
        });
        match freed.await {
            Some(Ok(())) => {}
            Some(Err(message)) => return Work::Failed(message),
            None => return Work::Settled(None),
        }
        ctx.user_namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .release(uid);
        ctx.allocations.release(uid);
        if ending.removed
            && let Err(message) = self.remove((uid, namespace, name)).await
        {
            return Work::Failed(message);
        }
        Work::Moves(Update::CleanedUp)
    }

    /// Removes an ended pod's sandboxes and logs.
    async fn remove(&mut self, (uid, namespace, name): (&str, &str, &str)) -> Result<(), String> {
        let ctx = self.ctx.clone();
        let observed = self
            .view
            .look(&ctx.cri, (uid, namespace, name), &ctx.words)
            .await
            .map_err(|error| format!("failed to look at the ended pod: {error}"))?;
        for sandbox in &observed.sandboxes {
            let request = v1::RemovePodSandboxRequest {
                pod_sandbox_id: sandbox.id.clone(),
            };
            match ctx.cri.remove_pod_sandbox(request).await {
                Err(error) if !error.is_not_found() => {
                    return Err(format!("failed to remove sandbox {}: {error}", sandbox.id));
                }
                _ => {}
            }
        }
        let folder = format!("{}/{namespace}_{name}_{uid}", ctx.facts().pod_logs_dir);
        let links = ctx.settings.container_logs.clone();
        let swept = ctx.blocking(move || {
            let removed = belongings::remove_logs(folder.as_ref());
            if let Some(links) = links {
                belongings::sweep_links(&links);
            }
            removed
        });
        if let Some(Err(error)) = swept.await {
            return Err(error.to_string());
        }
        self.remains = false;
        Ok(())
    }

    /// Removes what is left of a pod that ended long before its source forgot it. What can't be removed now is found by
    /// the next relist and sweep.
    async fn remove_remains(&mut self, identity: (&str, &str, &str)) {
        if self.remains
            && let Err(message) = self.remove(identity).await
        {
            warn!("{message}");
        }
    }
}

/// Whether all of a pod's containers were started and are ready: its start is over.
fn is_up(status: &PodStatus) -> bool {
    let ready = |condition: &controlplane_api::k8s_openapi::api::core::v1::PodCondition| {
        condition.type_ == "Ready" && condition.status == "True"
    };
    status.conditions.iter().flatten().any(ready)
        || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// The handler of the pod's RuntimeClass; empty is the default one.
fn handler(ctx: &Context, pod: &Pod) -> Result<String, String> {
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.clone());
    match class.filter(|class| !class.is_empty()) {
        None => Ok(String::new()),
        Some(class) => match ctx.objects().runtime_class(&class) {
            Some(found) => Ok(found.handler.clone()),
            None => Err(format!(
                "failed to get sandbox runtime: runtimeclass.node.k8s.io \"{class}\" not found"
            )),
        },
    }
}

/// The pod's user IDs: those noted in its directory, or new ones that are noted before they are used.
fn user_namespace(ctx: &Context, pod: &Pod) -> Result<Option<kubelet_pods::cri::userns::IdRange>, String> {
    if pod.spec.as_ref().and_then(|spec| spec.host_users) != Some(false) {
        return Ok(None);
    }
    let uid = uid(pod);
    let range = {
        let mut ranges = ctx.user_namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        match ranges.range(uid) {
            Some(range) => range,
            None => ranges.allocate(uid).map_err(|error| error.to_string())?,
        }
    };
    belongings::note_user_namespace(&ctx.facts(), uid, range).map_err(|error| error.to_string())?;
    Ok(Some(range))
}

/// The credentials of a pod: those of its secrets, then the node's.
fn keyring(ctx: &Context, pod: &Pod) -> Arc<Keyring> {
    let node = ctx
        .node_keyring
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let names: Vec<_> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten())
        .map(|reference| reference.name.clone())
        .collect();
    if names.is_empty() {
        return node;
    }
    let objects = ctx.objects();
    let mut keyring = (*node).clone();
    let mut absent = Vec::new();
    for name in names {
        match objects.secret(namespace, &name) {
            None => absent.push(name),
            Some(secret) => {
                if let Err(error) = keyring.add_secret(&secret) {
                    ctx.event(
                        pod,
                        None,
                        EventType::Warning,
                        "FailedToRetrieveImagePullSecret",
                        error.to_string(),
                    );
                }
            }
        }
    }
    if !absent.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            absent.join(", ")
        );
        ctx.event(
            pod,
            None,
            EventType::Warning,
            "FailedToRetrieveImagePullSecret",
            message,
        );
    }
    Arc::new(keyring)
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}
