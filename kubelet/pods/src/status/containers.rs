//! The statuses of a pod's containers.
//!
//! The newest container of a name is its state, the one before its last state. Where the runtime has none, what was said
//! before stands in: an end stays an end, and what ran and is gone counts as ended with 137.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, LinuxContainerUser, PodStatus,
    ResourceRequirements, VolumeMount, VolumeMountStatus,
};

use super::phase::RESTARTING_ALL;
use super::{Stage, StatusInputs, whole_seconds};
use crate::actions::restarts_all;
use crate::containers::{self as spec, ContainerKind};
use crate::observed::{ContainerState, ObservedContainer};
use crate::probe::{ProbeKind, ProbeResult, probe_of};

/// The reason of an end that nobody saw.
const UNKNOWN_END: &str = "ContainerStatusUnknown";

/// The text of a container that was removed so that all start again.
const REMOVED_TEXT: &str = "The container is removed because RestartAllContainers in place";

/// Fills in the three lists.
pub(super) fn fill(inputs: &StatusInputs<'_>, status: &mut PodStatus) {
    let previous = inputs.previous;
    let writer = Writer {
        inputs,
        restarting_all: restarting_all(inputs),
    };
    let regular: Vec<_> = spec::regular_containers(inputs.pod)
        .iter()
        .map(|one| (ContainerKind::Regular, one.clone()))
        .collect();
    let init: Vec<_> = spec::init_containers(inputs.pod)
        .iter()
        .map(|one| (spec::init_kind(one), one.clone()))
        .collect();
    let ephemeral: Vec<_> = spec::ephemeral_containers(inputs.pod)
        .iter()
        .map(|one| (ContainerKind::Ephemeral, spec::from_ephemeral(one)))
        .collect();
    let mut regular = writer.list(
        &regular,
        previous.and_then(|all| all.container_statuses.as_deref()),
    );
    let mut init = writer.list(
        &init,
        previous.and_then(|all| all.init_container_statuses.as_deref()),
    );
    let mut ephemeral = writer.list(
        &ephemeral,
        previous.and_then(|all| all.ephemeral_container_statuses.as_deref()),
    );
    if inputs.stage == Stage::Terminated {
        end_all(&mut regular, &mut init);
    }
    regular.sort_by(|a, b| a.name.cmp(&b.name));
    ephemeral.sort_by(|a, b| a.name.cmp(&b.name));
    status.container_statuses = Some(regular);
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
}

/// Whether all containers are being removed to start again, or have just been.
fn restarting_all(inputs: &StatusInputs<'_>) -> bool {
    let conditions = inputs
        .previous
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let told = conditions
        .iter()
        .any(|one| one.type_ == "AllContainersRestarting" && one.status == "True");
    restarts_all(inputs.pod, inputs.observed) || (told && inputs.observed.containers.is_empty())
}

/// No container of a pod that has ended is left without an end: what isn't known counts as failed. Init containers after the
/// last one that started never ran.
fn end_all(regular: &mut [ContainerStatus], init: &mut [ContainerStatus]) {
    let has_run = |one: &ContainerStatus| {
        let ended = |state: &Option<ApiState>| state.as_ref().is_some_and(|state| state.terminated.is_some());
        ended(&one.state) || ended(&one.last_state)
    };
    let initialized = regular.iter().any(has_run);
    let ran = if initialized {
        init.len()
    } else {
        init.iter().rposition(has_run).map_or(1, |last| last + 1)
    };
    let ran = ran.min(init.len());
    for one in regular.iter_mut().chain(&mut init[..ran]) {
        if end_of(one).is_none() {
            one.state = Some(ended(
                UNKNOWN_END,
                "The container could not be located when the pod was terminated",
            ));
            one.ready = false;
            one.started = Some(false);
        }
    }
}

/// An end that nobody saw.
fn ended(reason: &str, message: &str) -> ApiState {
    let terminated = ContainerStateTerminated {
        exit_code: 137,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..Default::default()
    };
    ApiState {
        terminated: Some(terminated),
        ..Default::default()
    }
}

fn waiting(reason: &str, message: Option<&str>) -> ApiState {
    let waiting = ContainerStateWaiting {
        reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
        message: message
            .map(ToOwned::to_owned)
            .filter(|message| !message.is_empty()),
    };
    ApiState {
        waiting: Some(waiting),
        ..Default::default()
    }
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

fn end_of(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

struct Writer<'a> {
    inputs: &'a StatusInputs<'a>,
    restarting_all: bool,
}

impl Writer<'_> {
    fn list(
        &self,
        all: &[(ContainerKind, Container)],
        previous: Option<&[ContainerStatus]>,
    ) -> Vec<ContainerStatus> {
        let before: BTreeMap<&str, &ContainerStatus> = previous
            .unwrap_or_default()
            .iter()
            .map(|one| (one.name.as_str(), one))
            .collect();
        all.iter()
            .map(|(kind, one)| self.status(*kind, one, before.get(one.name.as_str()).copied()))
            .collect()
    }

    fn status(
        &self,
        kind: ContainerKind,
        container: &Container,
        before: Option<&ContainerStatus>,
    ) -> ContainerStatus {
        let mut found = self.inputs.observed.all_named(&container.name);
        let newest = found.next();
        let mut status = match newest {
            Some(newest) => self.observed(container, newest, before),
            None => self.missing(kind, container, before),
        };
        if let Some(older) = found.next() {
            status.last_state = Some(self.state(older, before));
        }
        self.tell_why_it_waits(container, newest, &mut status);
        self.judge(kind, container, before, &mut status);
        status
    }

    fn blank(&self, container: &Container) -> ContainerStatus {
        let has_init = !spec::init_containers(self.inputs.pod).is_empty();
        let reason = if has_init {
            "PodInitializing"
        } else {
            "ContainerCreating"
        };
        let mounts: Vec<_> = container
            .volume_mounts
            .iter()
            .flatten()
            .map(|one| self.mount(one))
            .collect();
        ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: Some(waiting(reason, None)),
            volume_mounts: (!mounts.is_empty()).then_some(mounts),
            ..Default::default()
        }
    }

    fn mount(&self, mount: &VolumeMount) -> VolumeMountStatus {
        let read_only = mount.read_only == Some(true);
        let recursive = match mount.recursive_read_only.as_deref() {
            Some("Enabled") => true,
            Some("IfPossible") => self.inputs.recursive_read_only,
            _ => false,
        };
        let mode = if recursive { "Enabled" } else { "Disabled" };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| mode.to_owned()),
            ..Default::default()
        }
    }

    /// The status of a container that the runtime has.
    fn observed(
        &self,
        container: &Container,
        newest: &ObservedContainer,
        before: Option<&ContainerStatus>,
    ) -> ContainerStatus {
        let id = self.id(newest);
        let mut status = ContainerStatus {
            restart_count: i32::try_from(newest.attempt).unwrap_or(i32::MAX),
            image: newest.image.clone(),
            image_id: newest.image_id.clone(),
            container_id: Some(id.clone()),
            state: Some(self.state(newest, before)),
            resources: container
                .resources
                .as_ref()
                .map(|wanted| resources(wanted, newest)),
            allocated_resources: container.resources.as_ref().and_then(|all| all.requests.clone()),
            user: newest.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: *uid,
                    gid: *gid,
                    supplemental_groups: (!groups.is_empty()).then(|| groups.clone()),
                }),
            }),
            stop_signal: newest.stop_signal.clone(),
            ..self.blank(container)
        };
        if let Some(before) = before {
            carry_over(&mut status, before, &id);
        }
        status
    }

    /// The status of a container that the runtime doesn't have: not yet, or no longer.
    fn missing(
        &self,
        kind: ContainerKind,
        container: &Container,
        before: Option<&ContainerStatus>,
    ) -> ContainerStatus {
        let mut status = self.blank(container);
        let Some(before) = before else {
            if kind == ContainerKind::Init && self.is_initialized() {
                status.state = Some(completed_unseen());
            }
            return status;
        };
        let is_waiting = before.state.as_ref().is_none_or(|state| state.waiting.is_some());
        if self.restarting_all && !is_waiting && kind != ContainerKind::Ephemeral {
            status.restart_count = before.restart_count.saturating_add(1);
            status.state = Some(waiting(RESTARTING_ALL, Some(REMOVED_TEXT)));
            let last = before.state.clone().filter(|state| state.terminated.is_some());
            status.last_state = Some(last.unwrap_or_else(|| ended(RESTARTING_ALL, REMOVED_TEXT)));
            return status;
        }
        if end_of(before).is_some() {
            return before.clone();
        }
        status.restart_count = before.restart_count;
        status.last_state = before.last_state.clone();
        if kind == ContainerKind::Init && self.is_initialized() {
            status.state = Some(completed_unseen());
        } else if is_running(before)
            && status
                .last_state
                .as_ref()
                .is_none_or(|last| last.terminated.is_none())
        {
            let message = "The container could not be located when the pod was deleted.  The container used to be Running";
            status.last_state = Some(ended(UNKNOWN_END, message));
            if self.inputs.pod.metadata.deletion_timestamp.is_none() {
                status.restart_count = status.restart_count.saturating_add(1);
            }
        }
        status
    }

    /// Whether a regular container was made in the sandbox that counts, so that its init containers must have ended well.
    fn is_initialized(&self) -> bool {
        let sandbox = self.inputs.observed.sandbox().map(|sandbox| &sandbox.id);
        let made = |one: &Container| {
            let newest = self.inputs.observed.container(&one.name);
            newest.is_some_and(|one| {
                one.state != ContainerState::Unknown && sandbox.is_none_or(|id| *id == one.sandbox_id)
            })
        };
        !self.restarting_all && spec::regular_containers(self.inputs.pod).iter().any(made)
    }

    fn id(&self, one: &ObservedContainer) -> String {
        format!("{}://{}", self.inputs.runtime, one.id)
    }

    fn state(&self, one: &ObservedContainer, before: Option<&ContainerStatus>) -> ApiState {
        match &one.state {
            ContainerState::Running { started } => {
                let running = ContainerStateRunning {
                    started_at: Some(whole_seconds(*started)),
                };
                ApiState {
                    running: Some(running),
                    ..Default::default()
                }
            }
            ContainerState::Created => waiting("", None),
            ContainerState::Exited {
                started,
                finished,
                exit_code,
                reason,
                message,
            } => {
                let terminated = ContainerStateTerminated {
                    container_id: Some(self.id(one)),
                    exit_code: *exit_code,
                    finished_at: Some(whole_seconds(*finished)),
                    started_at: started.map(whole_seconds),
                    reason: Some(reason.clone()).filter(|reason| !reason.is_empty()),
                    message: Some(message.clone()).filter(|message| !message.is_empty()),
                    signal: None,
                };
                ApiState {
                    terminated: Some(terminated),
                    ..Default::default()
                }
            }
            ContainerState::Unknown if before.is_some_and(is_running) => {
                let reason = if self.restarting_all {
                    RESTARTING_ALL
                } else {
                    UNKNOWN_END
                };
                ended(
                    reason,
                    "The container could not be located when the pod was terminated",
                )
            }
            ContainerState::Unknown => waiting("", None),
        }
    }

    /// A container that is to be started but isn't running waits, and what it was becomes its last state.
    fn tell_why_it_waits(
        &self,
        container: &Container,
        newest: Option<&ObservedContainer>,
        status: &mut ContainerStatus,
    ) {
        let Some(why) = self.inputs.waiting.get(&container.name) else {
            return;
        };
        if self.inputs.stage != Stage::Syncing || newest.is_some_and(ObservedContainer::is_running) {
            return;
        }
        if end_of(status).is_some() {
            status.last_state = status.state.take();
        }
        status.state = Some(waiting(&why.reason, Some(&why.message)));
    }

    /// Fills in `started` and `ready`.
    fn judge(
        &self,
        kind: ContainerKind,
        container: &Container,
        before: Option<&ContainerStatus>,
        status: &mut ContainerStatus,
    ) {
        (status.ready, status.started) = (false, None);
        if kind == ContainerKind::Ephemeral {
            return;
        }
        let id = self
            .inputs
            .observed
            .container(&container.name)
            .map(|one| one.id.as_str());
        let same = before.filter(|before| is_running(before) && before.container_id == status.container_id);
        let passes = |probe: ProbeKind, was: bool| match id.and_then(|id| self.inputs.probes.of(id, probe)) {
            Some(result) => result == ProbeResult::Success,
            // After a restart of the kubelet, what was said of this very container stands until a probe says more.
            None => probe_of(container, probe).is_none() || was,
        };
        let running = is_running(status);
        let started = running
            && passes(
                ProbeKind::Startup,
                same.is_some_and(|one| one.started == Some(true)),
            );
        status.started = Some(started);
        status.ready = match kind {
            ContainerKind::Init => end_of(status).is_some_and(|ended| ended.exit_code == 0),
            _ => started && passes(ProbeKind::Readiness, same.is_some_and(|one| one.ready)),
        };
    }
}

/// An init container whose end nobody saw, in a pod that went on.
fn completed_unseen() -> ApiState {
    let message = "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally";
    let terminated = ContainerStateTerminated {
        exit_code: 0,
        reason: Some("Completed".to_owned()),
        message: Some(message.to_owned()),
        ..Default::default()
    };
    ApiState {
        terminated: Some(terminated),
        ..Default::default()
    }
}

/// What of the last status a container keeps: mounts, counts that never go down, and the last end where the runtime has
/// removed the container that it was of.
fn carry_over(status: &mut ContainerStatus, before: &ContainerStatus, id: &str) {
    if before.volume_mounts.is_some() {
        status.volume_mounts = before.volume_mounts.clone();
    }
    let is_new = before.container_id.as_deref() != Some(id);
    status.restart_count = status.restart_count.max(before.restart_count);
    status.last_state = match end_of(before) {
        Some(_) if is_new => before.state.clone(),
        _ => before.last_state.clone().filter(|last| last.terminated.is_some()),
    };
}

/// What is in force where the runtime tells it and the container runs, else what was allocated.
fn resources(wanted: &ResourceRequirements, one: &ObservedContainer) -> ResourceRequirements {
    let mut told = wanted.clone();
    let Some(actual) = one.resources.as_ref().filter(|_| one.is_running()) else {
        return told;
    };
    let pairs = [
        (&mut told.limits, &actual.limits),
        (&mut told.requests, &actual.requests),
    ];
    for (told, actual) in pairs {
        let (Some(told), Some(actual)) = (told, actual) else {
            continue;
        };
        for (name, amount) in actual
            .iter()
            .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"))
        {
            told.insert(name.clone(), amount.clone());
        }
    }
    told
}
