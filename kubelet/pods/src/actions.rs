//! The plan for a pod that runs or should: what to start, end, remove and resize now.
//!
//! [`compute_pod_actions`] is called by the pod's worker each time that something may have changed; the worker carries the
//! plan out from top to bottom and asks again when the runtime shows something new, or at [`PodActions::wake_at`]. Nothing is
//! remembered between two calls: the same inputs give the same plan, and once the plan's effects are observed the plan is
//! empty.
//!
//! The worker makes the pod's status ([`crate::status`]) of the same observation before it carries a plan out, and only goes
//! on with the plan if the phase isn't final: a pod that is `Succeeded` or `Failed` is ended instead, so that nothing of it
//! runs twice ([`is_stranded`] pods and lost containers are only told from the status).
//!
//! The order in which a plan is carried out:
//! 1. `kill_pod`: all containers end (in [`stop::termination_order`]), then the old sandbox is stopped. If that fails, stop.
//! 2. `kill`: these containers end, each with its message as the `Killing` event's.
//! 3. `remove`: these ended containers are removed.
//! 4. `sandbox`: one is made where it says so.
//! 5. `resize`: running containers get other limits.
//! 6. `start`: in this order, each made and started; one that fails doesn't keep the others from starting.
//!
//! A container that is made anew is in `kill` and in `start` (or in `waiting`, backing off) of the same plan: if an end in
//! `kill` fails, nothing of the rest may be done, so that no container starts beside its predecessor. What comes to be
//! `Created` only because its start failed is made anew at once: the worker spaces its failed tries.

pub mod stop;

mod init;
mod regular;
mod resize;
mod sandbox;

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceRequirements};
use jiff::Timestamp;

pub(crate) use sandbox::restarts_all;

use crate::backoff::{BackoffKey, RestartBackoff};
use crate::containers::{self, AfterExit, ContainerKind};
use crate::observed::{ContainerState, ObservedContainer, ObservedPod, ObservedSandbox};
use crate::probe::ProbeResults;
use crate::times::{earliest, go_duration};

/// All that the plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The pod as its source has it, with the *allocated* resources in its spec (not those of a resize that wasn't admitted).
    pub pod: &'a Pod,
    /// What the runtime holds. `resources` of a running container are those that were last put into force.
    pub observed: &'a ObservedPod,
    /// The last status that was made of the pod: its restart counts.
    pub previous: Option<&'a PodStatus>,
    /// What probes say of running containers.
    pub probes: &'a ProbeResults,
    /// What backs off after crashes.
    pub restarts: &'a RestartBackoff,
    /// Whether running containers may be resized in place; false for pods whose CPUs or memory are pinned.
    pub resizable: bool,
    /// The time.
    pub now: Timestamp,
}

/// What is to be done about the pod now. See the module for the order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodActions {
    /// What becomes of the sandbox.
    pub sandbox: SandboxAction,
    /// Everything of the pod's ends first: all containers and the sandboxes.
    pub kill_pod: Option<KillReason>,
    /// Containers that end; empty when `kill_pod` is set.
    pub kill: Vec<KillContainer>,
    /// IDs of ended containers to be removed.
    pub remove: Vec<String>,
    /// Containers to be made and started, in this order.
    pub start: Vec<StartContainer>,
    /// Containers that aren't started now though they will be: name to why.
    pub waiting: BTreeMap<String, Waiting>,
    /// Running containers that get other limits.
    pub resize: Vec<ResizeContainer>,
    /// When the same inputs give another plan; none where only an observation can change it.
    pub wake_at: Option<Timestamp>,
}

/// What becomes of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SandboxAction {
    /// There is none, and none is needed: nothing of this pod is to be started any more.
    #[default]
    None,
    /// The newest one stays (or is being ended by `kill_pod`).
    Keep {
        /// Its ID.
        id: String,
    },
    /// A new one is made.
    Create {
        /// Its attempt number.
        attempt: u32,
        /// The newest one until now, which `kill_pod` ends.
        replaces: Option<String>,
    },
}

/// Why all of a pod ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillReason {
    /// Its sandbox can't be used any more. Event: `SandboxChanged`, "Pod sandbox changed, it will be killed and re-created."
    SandboxChanged,
    /// An init container failed and isn't tried again.
    InitFailed,
    /// No regular container runs or will be started again.
    Completed,
}

/// A container that ends while the pod goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillContainer {
    /// The runtime's ID.
    pub id: String,
    /// Its name in the spec.
    pub name: String,
    /// Why.
    pub reason: KillContainerReason,
    /// The text of the `Killing` event.
    pub message: String,
    /// Seconds of grace instead of the pod's: from the probe that failed, or none left.
    pub grace: Option<i64>,
    /// Whether its `preStop` hook runs.
    pub hooks: bool,
}

/// Why one container ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillContainerReason {
    /// Its liveness probe failed.
    LivenessProbe,
    /// Its startup probe failed.
    StartupProbe,
    /// The runtime doesn't know whether it runs.
    Unknown,
    /// The spec's hash is another one.
    DefinitionChanged,
    /// Other resources that its `resizePolicy` only gives to a new one.
    Resize,
    /// A rule restarts all of the pod's containers.
    RestartAll,
    /// A newer one of that name runs, or it runs in an old sandbox.
    Superseded,
}

/// A container to be made and started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartContainer {
    /// Its name in the spec.
    pub name: String,
    /// What kind it is.
    pub kind: ContainerKind,
    /// Its attempt number: how many of this name there were. The agent takes a higher one where it finds the logs of it.
    pub attempt: u32,
    /// When its predecessor ended, where there was one: [`RestartBackoff::started`] is told of it when the start begins.
    pub after: Option<Timestamp>,
}

/// Why a container isn't running: what `state.waiting` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Such as `CrashLoopBackOff`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When it is tried again; none where only a change of something else makes it go on.
    pub until: Option<Timestamp>,
}

/// A running container that gets other limits.
#[derive(Debug, Clone, PartialEq)]
pub struct ResizeContainer {
    /// The runtime's ID.
    pub id: String,
    /// Its name in the spec.
    pub name: String,
    /// All of its resources as they should be.
    pub resources: ResourceRequirements,
    /// Whether CPU requests or limits change.
    pub cpu: bool,
    /// Whether memory requests or limits change.
    pub memory: bool,
}

impl PodActions {
    /// Whether there is nothing to do; containers may still be waiting.
    pub fn is_empty(&self) -> bool {
        !matches!(self.sandbox, SandboxAction::Create { .. })
            && self.kill_pod.is_none()
            && self.kill.is_empty()
            && self.remove.is_empty()
            && self.start.is_empty()
            && self.resize.is_empty()
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = earliest(self.wake_at, Some(at));
    }
}

/// What is to be done about the pod now.
///
/// Sources: KEP-753 (sidecars), KEP-1287 (resize), KEP-5307 and KEP-5532 (restart rules), upstream's `computePodActions`.
pub fn compute_pod_actions(inputs: &Inputs<'_>) -> PodActions {
    let planner = Planner {
        inputs,
        sandbox: inputs.observed.sandbox(),
    };
    planner.plan()
}

/// Whether the pod has a sandbox that containers can be made in: `PodReadyToStartContainers`.
pub fn sandbox_is_usable(pod: &Pod, observed: &ObservedPod) -> bool {
    matches!(sandbox::verdict(pod, observed), sandbox::Verdict::Usable(_))
}

/// Whether the pod has lost its sandbox and gets no new one, so that whatever of it never started never will: with
/// `restartPolicy: Never` init containers don't run twice. Not yet while a container still runs.
pub fn is_stranded(pod: &Pod, observed: &ObservedPod) -> bool {
    let runs = observed.containers.iter().any(ObservedContainer::is_running);
    !runs && !sandbox_is_usable(pod, observed) && sandbox::is_done_without_sandbox(pod, observed)
}

/// The pod's containers as the plan sees them.
struct Planner<'a> {
    inputs: &'a Inputs<'a>,
    sandbox: Option<&'a ObservedSandbox>,
}

impl<'a> Planner<'a> {
    fn plan(mut self) -> PodActions {
        let mut plan = PodActions::default();
        if self.inputs.pod.metadata.deletion_timestamp.is_some() {
            return self.plan_for_deleted();
        }
        match sandbox::verdict(self.inputs.pod, self.inputs.observed) {
            sandbox::Verdict::Usable(id) => plan.sandbox = SandboxAction::Keep { id: id.to_owned() },
            sandbox::Verdict::New { attempt } => {
                if sandbox::is_done_without_sandbox(self.inputs.pod, self.inputs.observed) {
                    return self.end_pod(KillReason::SandboxChanged);
                }
                let replaces = self.sandbox.map(|sandbox| sandbox.id.clone());
                self.replace_sandbox(&mut plan);
                plan.sandbox = SandboxAction::Create { attempt, replaces };
                self.sandbox = None;
            }
        }
        if self.sandbox.is_some() && self.restart_all(&mut plan) {
            return plan;
        }
        if self.sandbox.is_some() {
            self.start_ephemeral(&mut plan);
            self.end_superseded(&mut plan);
        }
        match self.plan_init(&mut plan) {
            init::Progress::Failed => return self.end_pod(KillReason::InitFailed),
            init::Progress::Going => return plan,
            init::Progress::Done => {}
        }
        let mut alive = false;
        for container in containers::regular_containers(self.inputs.pod) {
            alive |= !matches!(self.plan_regular(container, &mut plan), regular::Standing::Done);
        }
        if !alive {
            return self.end_pod(KillReason::Completed);
        }
        plan
    }

    /// A pod that is to be deleted: nothing starts, and whoever calls ends it.
    fn plan_for_deleted(&self) -> PodActions {
        let sandbox = self.sandbox.map(|sandbox| SandboxAction::Keep {
            id: sandbox.id.clone(),
        });
        PodActions {
            sandbox: sandbox.unwrap_or_default(),
            ..Default::default()
        }
    }

    /// The newest container of a name in the sandbox that counts; none in one that is yet to be made.
    fn current(&self, name: &str) -> Option<&'a ObservedContainer> {
        let sandbox = self.sandbox?;
        self.inputs
            .observed
            .all_named(name)
            .find(|one| one.sandbox_id == sandbox.id)
    }

    fn start_ephemeral(&self, plan: &mut PodActions) {
        for ephemeral in containers::ephemeral_containers(self.inputs.pod) {
            if self.inputs.observed.container(&ephemeral.name).is_none() {
                self.start(&ephemeral.name, ContainerKind::Ephemeral, plan);
            }
        }
    }

    /// Ends what runs beside a newer container of its name, or in another sandbox than the newest.
    fn end_superseded(&self, plan: &mut PodActions) {
        for one in self
            .inputs
            .observed
            .containers
            .iter()
            .filter(|one| one.is_running())
        {
            if self.current(&one.name).is_none_or(|newest| newest.id != one.id) {
                let message = format!("Container {} is not the newest of its name", one.name);
                plan.kill
                    .push(kill(one, KillContainerReason::Superseded, message));
            }
        }
    }

    fn after(&self, container: &Container, kind: ContainerKind, exit_code: i32) -> AfterExit {
        containers::after_exit(self.inputs.pod, container, kind, exit_code)
    }

    /// Starts it, or has it wait out its back-off.
    fn start_or_wait(&self, container: &Container, kind: ContainerKind, plan: &mut PodActions) {
        let key = BackoffKey::of(self.inputs.pod, container);
        let until = self
            .last_end(&container.name)
            .and_then(|ended| self.inputs.restarts.may_start_at(&key, ended, self.inputs.now));
        let Some(until) = until else {
            return self.start(&container.name, kind, plan);
        };
        let delay = go_duration(self.inputs.restarts.delay(&key).unwrap_or_default());
        let pod = pod_for_people(self.inputs.pod);
        let message = format!(
            "back-off {delay} restarting failed container={} pod={pod}",
            container.name
        );
        plan.wake(until);
        let waiting = Waiting {
            reason: "CrashLoopBackOff".to_owned(),
            message,
            until: Some(until),
        };
        plan.waiting.insert(container.name.clone(), waiting);
    }

    fn start(&self, name: &str, kind: ContainerKind, plan: &mut PodActions) {
        let attempt = self.next_attempt(name);
        let after = self.last_end(name);
        plan.start.push(StartContainer {
            name: name.to_owned(),
            kind,
            attempt,
            after,
        });
    }

    /// When the newest ended container of a name ended.
    fn last_end(&self, name: &str) -> Option<Timestamp> {
        self.inputs
            .observed
            .all_named(name)
            .find_map(|one| match one.state {
                ContainerState::Exited { finished, .. } => Some(finished),
                _ => None,
            })
    }

    /// One more than any attempt that the runtime or the last status knows of.
    fn next_attempt(&self, name: &str) -> u32 {
        let observed = self
            .inputs
            .observed
            .all_named(name)
            .map(|one| one.attempt.saturating_add(1))
            .max();
        let told = self.inputs.previous.and_then(|status| {
            let lists = [
                &status.init_container_statuses,
                &status.container_statuses,
                &status.ephemeral_container_statuses,
            ];
            let status = lists
                .into_iter()
                .flatten()
                .flatten()
                .find(|one| one.name == name)?;
            // A status without an ID already counts the container that is to come.
            let count = u32::try_from(status.restart_count).ok()?;
            count.checked_add(u32::from(status.container_id.is_some()))
        });
        observed.max(told).unwrap_or(0)
    }

    /// All ends and nothing is started again. Empty once nothing is left to be ended.
    fn end_pod(&self, reason: KillReason) -> PodActions {
        let alive = self.inputs.observed.sandboxes.iter().any(|sandbox| sandbox.ready)
            || self
                .inputs
                .observed
                .containers
                .iter()
                .any(ObservedContainer::is_running);
        PodActions {
            kill_pod: alive.then_some(reason),
            ..Default::default()
        }
    }
}

/// The exit code of a container that SIGKILL ended, or of which nothing else is known.
const KILLED: i32 = 137;

fn kill(one: &ObservedContainer, reason: KillContainerReason, message: String) -> KillContainer {
    KillContainer {
        id: one.id.clone(),
        name: one.name.clone(),
        reason,
        message,
        grace: None,
        hooks: true,
    }
}

fn kill_unknown(one: &ObservedContainer, what: &str) -> KillContainer {
    kill(
        one,
        KillContainerReason::Unknown,
        format!("{what} is in \"unknown\" state, try killing it before restart"),
    )
}

/// A pod as messages name it: `name_namespace(uid)`.
pub fn pod_for_people(pod: &Pod) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!(
        "{}_{}({})",
        text(&meta.name),
        text(&meta.namespace),
        text(&meta.uid)
    )
}

#[cfg(test)]
mod tests;
