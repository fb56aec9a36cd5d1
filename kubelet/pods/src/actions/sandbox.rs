//! Which sandbox a plan works in: the newest one, a new one, or none any more; and what it means that all containers of the
//! pod start again in the same one.

use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod};

use super::{KILLED, KillContainer, KillContainerReason, KillReason, Planner, PodActions, kill};
use crate::containers::{self, AfterExit, ContainerKind, RestartPolicy};
use crate::observed::{ContainerState, ObservedContainer, ObservedPod};

/// Whether the newest sandbox will do.
pub(super) enum Verdict<'a> {
    /// It will.
    Usable(&'a str),
    /// There is none, or it can't be used any more.
    New {
        /// The attempt number of the next one.
        attempt: u32,
    },
}

/// A sandbox is replaced when it isn't ready, isn't the only one that is, has the wrong network, or lacks an address.
pub(super) fn verdict<'a>(pod: &Pod, observed: &'a ObservedPod) -> Verdict<'a> {
    let Some(newest) = observed.sandbox() else {
        return Verdict::New { attempt: 0 };
    };
    let wants_host = containers::spec(pod).is_some_and(|spec| spec.host_network == Some(true));
    let ready = observed.sandboxes.iter().filter(|sandbox| sandbox.ready).count();
    let other_network = newest.host_network.is_some_and(|host| host != wants_host);
    let no_address = !wants_host && newest.ips.is_empty();
    if !newest.ready || ready > 1 || other_network || no_address {
        let attempt = observed
            .sandboxes
            .iter()
            .map(|sandbox| sandbox.attempt)
            .max()
            .unwrap_or(0);
        return Verdict::New {
            attempt: attempt.saturating_add(1),
        };
    }
    Verdict::Usable(&newest.id)
}

impl Planner<'_> {
    /// What ends before a new sandbox is made: everything, and init containers' remains go.
    pub(super) fn replace_sandbox(&self, plan: &mut PodActions) {
        let observed = self.inputs.observed;
        if !observed.sandboxes.is_empty() || observed.containers.iter().any(|one| !one.has_exited()) {
            plan.kill_pod = Some(KillReason::SandboxChanged);
        }
        for init in containers::init_containers(self.inputs.pod) {
            plan.remove
                .extend(observed.all_named(&init.name).map(|one| one.id.clone()));
        }
    }

    /// Where a rule restarts all containers: ends and removes them. The newest of those whose end set it off go last, so that
    /// a kubelet that dies meanwhile goes on with it. Says whether that is under way.
    pub(super) fn restart_all(&self, plan: &mut PodActions) -> bool {
        let pod = self.inputs.pod;
        if !restarts_all(pod, self.inputs.observed) {
            return false;
        }
        let kinds = all_but_ephemeral(pod);
        let present: Vec<_> = kinds
            .filter_map(|(kind, one)| Some((kind, one, self.current(&one.name)?)))
            .collect();
        for (_, _, one) in present.iter().filter(|(_, _, one)| !one.has_exited()) {
            let message = format!(
                "Container {} will be restarted with all containers of the pod",
                one.name
            );
            let order = kill(one, KillContainerReason::RestartAll, message);
            plan.kill.push(KillContainer {
                hooks: false,
                ..order
            });
        }
        let last = |id: &String| {
            present
                .iter()
                .any(|(kind, spec, one)| one.id == *id && sets_off_restart(pod, *kind, spec, one))
        };
        let all = present
            .iter()
            .flat_map(|(_, _, one)| self.inputs.observed.all_named(&one.name));
        let (at_last, at_first): (Vec<_>, Vec<_>) = all.map(|one| one.id.clone()).partition(last);
        plan.remove.extend(at_first.into_iter().chain(at_last));
        true
    }
}

/// Whether the end of a container in the sandbox that counts has all of the pod's containers start again.
pub(crate) fn restarts_all(pod: &Pod, observed: &ObservedPod) -> bool {
    let Some(sandbox) = observed.sandbox() else {
        return false;
    };
    all_but_ephemeral(pod).any(|(kind, container)| {
        let newest = observed
            .all_named(&container.name)
            .find(|one| one.sandbox_id == sandbox.id);
        newest.is_some_and(|newest| sets_off_restart(pod, kind, container, newest))
    })
}

fn all_but_ephemeral(pod: &Pod) -> impl Iterator<Item = (ContainerKind, &Container)> {
    let init = containers::init_containers(pod)
        .iter()
        .map(|one| (containers::init_kind(one), one));
    init.chain(
        containers::regular_containers(pod)
            .iter()
            .map(|one| (ContainerKind::Regular, one)),
    )
}

fn sets_off_restart(pod: &Pod, kind: ContainerKind, container: &Container, one: &ObservedContainer) -> bool {
    match one.state {
        ContainerState::Exited { exit_code, .. } => {
            containers::after_exit(pod, container, kind, exit_code) == AfterExit::RestartAll
        }
        _ => false,
    }
}

/// Whether a pod without a usable sandbox has nothing to start any more, so that it gets no new one.
pub(super) fn is_done_without_sandbox(pod: &Pod, observed: &ObservedPod) -> bool {
    let regular = containers::regular_containers(pod);
    let never = containers::restart_policy(pod) == RestartPolicy::Never;
    let created = regular.iter().any(|one| observed.container(&one.name).is_some());
    if !created {
        // Its init containers may have run in part: with Never they don't run again.
        return never && !observed.containers.is_empty();
    }
    let lives_on = |one: &Container| match observed.container(&one.name) {
        Some(_) => !is_done_in_older_sandbox(pod, observed, one),
        None => !never,
    };
    !regular.iter().any(lives_on)
}

/// Whether a regular container ran in an older sandbox and isn't started again after its end there.
pub(super) fn is_done_in_older_sandbox(pod: &Pod, observed: &ObservedPod, container: &Container) -> bool {
    let Some(newest) = observed.container(&container.name) else {
        return false;
    };
    let exit_code = match newest.state {
        ContainerState::Exited { exit_code, .. } => exit_code,
        ContainerState::Running { .. } | ContainerState::Unknown => KILLED,
        ContainerState::Created => return false,
    };
    containers::after_exit(pod, container, ContainerKind::Regular, exit_code) == AfterExit::Stay
}
