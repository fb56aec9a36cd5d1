//! A pod's phase, from the statuses of its containers.

use controlplane_api::k8s_openapi::api::core::v1::{Container, ContainerStatus, PodStatus};

use super::{Stage, StatusInputs};
use crate::actions::is_stranded;
use crate::containers::{self as spec, AfterExit, ContainerKind};
use crate::observed::ContainerState;

/// The reason of containers that were removed so that all of the pod's start again.
pub(super) const RESTARTING_ALL: &str = "RestartingAllContainers";

/// Whether a phase is one that a pod never leaves.
pub(super) fn is_final(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a container's status amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    Unknown,
    /// It has never started.
    Waiting,
    Running,
    /// It has ended: its exit code, and whether it starts again.
    Ended {
        ok: bool,
        again: bool,
    },
}

#[derive(Default)]
struct Counts {
    unknown: usize,
    waiting: usize,
    running: usize,
    ended: usize,
    ended_for_good: usize,
    succeeded: usize,
}

/// The phase that containers' statuses amount to.
pub(super) fn phase(inputs: &StatusInputs<'_>, status: &PodStatus) -> &'static str {
    let phase = by_containers(inputs, status);
    let stranded = inputs.stage == Stage::Syncing && is_stranded(inputs.pod, inputs.observed);
    // Whatever still waits will never run: a pod that says Pending or Running for ever helps nobody.
    if stranded && !is_final(Some(phase)) {
        "Failed"
    } else {
        phase
    }
}

fn by_containers(inputs: &StatusInputs<'_>, status: &PodStatus) -> &'static str {
    let pod = inputs.pod;
    let mut init_pending = false;
    let mut sidecars_pending = false;
    let mut counts = Counts::default();
    for init in spec::init_containers(pod) {
        let kind = spec::init_kind(init);
        let listed = find(status.init_container_statuses.as_ref(), &init.name);
        let stands = stands(inputs, init, kind, listed);
        match (kind, stands) {
            (ContainerKind::Sidecar, Stands::Running) => {
                sidecars_pending |= listed.is_some_and(|one| one.started != Some(true));
                counts.running += 1;
            }
            (ContainerKind::Sidecar, Stands::Ended { .. }) => {}
            (ContainerKind::Sidecar, Stands::Waiting) => {
                sidecars_pending = true;
                counts.waiting += 1;
            }
            (ContainerKind::Sidecar, Stands::Unknown) => {
                sidecars_pending = true;
                counts.unknown += 1;
            }
            (
                _,
                Stands::Ended {
                    ok: false,
                    again: false,
                },
            ) => return "Failed",
            (_, Stands::Ended { ok, .. }) => init_pending |= !ok && !has_started(inputs),
            _ => init_pending = true,
        }
    }
    for container in spec::regular_containers(pod) {
        let listed = find(status.container_statuses.as_ref(), &container.name);
        counts.add(stands(inputs, container, ContainerKind::Regular, listed));
    }
    if init_pending || (sidecars_pending && !has_started(inputs)) || counts.waiting > 0 {
        return "Pending";
    }
    counts.phase(inputs)
}

impl Counts {
    fn add(&mut self, stands: Stands) {
        match stands {
            Stands::Unknown => self.unknown += 1,
            Stands::Waiting => self.waiting += 1,
            Stands::Running => self.running += 1,
            Stands::Ended { ok, again } => {
                self.ended += 1;
                self.ended_for_good += usize::from(!again);
                self.succeeded += usize::from(ok);
            }
        }
    }

    fn phase(&self, inputs: &StatusInputs<'_>) -> &'static str {
        let settled = if self.succeeded == self.ended {
            "Succeeded"
        } else {
            "Failed"
        };
        if self.unknown > 0 || (self.running == 0 && self.ended == 0) {
            "Pending"
        } else if self.running > 0 {
            "Running"
        } else if self.ended == self.ended_for_good
            || (inputs.stage == Stage::Terminated && !is_static(inputs))
        {
            settled
        } else {
            "Running"
        }
    }
}

/// Static pods that were ended keep the phase that their containers' policies give them, as upstream has it.
fn is_static(inputs: &StatusInputs<'_>) -> bool {
    let source = inputs
        .pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get("kubernetes.io/config.source"));
    source.is_some_and(|source| source != "api")
}

/// Whether a regular container has started in the sandbox that counts.
fn has_started(inputs: &StatusInputs<'_>) -> bool {
    let Some(sandbox) = inputs.observed.sandbox() else {
        return false;
    };
    spec::regular_containers(inputs.pod).iter().any(|container| {
        inputs.observed.all_named(&container.name).any(|one| {
            let started = matches!(
                one.state,
                ContainerState::Running { .. } | ContainerState::Exited { .. }
            );
            one.sandbox_id == sandbox.id && started
        })
    })
}

fn find<'s>(list: Option<&'s Vec<ContainerStatus>>, name: &str) -> Option<&'s ContainerStatus> {
    list?.iter().find(|one| one.name == name)
}

fn stands(
    inputs: &StatusInputs<'_>,
    container: &Container,
    kind: ContainerKind,
    listed: Option<&ContainerStatus>,
) -> Stands {
    let Some(state) = listed.and_then(|one| one.state.as_ref()) else {
        return Stands::Unknown;
    };
    if state.running.is_some() {
        return Stands::Running;
    }
    let last = || listed.and_then(|one| one.last_state.as_ref()?.terminated.as_ref());
    let ended = match (&state.terminated, &state.waiting) {
        (Some(ended), _) => ended,
        (None, Some(_)) => match last() {
            Some(ended) => ended,
            None => return Stands::Waiting,
        },
        (None, None) => return Stands::Unknown,
    };
    let restarts = spec::after_exit(inputs.pod, container, kind, ended.exit_code) != AfterExit::Stay;
    let again = restarts || ended.reason.as_deref() == Some(RESTARTING_ALL);
    Stands::Ended {
        ok: ended.exit_code == 0,
        again,
    }
}
