//! A pod's conditions: the kubelet's own, made anew each time with the time of the last transition kept, and others' as they
//! are.

use controlplane_api::k8s_openapi::api::core::v1::{Container, ContainerStatus, PodCondition, PodStatus};
use controlplane_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Stage, StatusInputs};
use crate::actions::{restarts_all, sandbox_is_usable};
use crate::containers as spec;

/// The type of the condition that says whether a pod serves.
pub const READY: &str = "Ready";

const CONTAINERS_READY: &str = "ContainersReady";
const INITIALIZED: &str = "Initialized";
const SCHEDULED: &str = "PodScheduled";
const READY_TO_START: &str = "PodReadyToStartContainers";
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";
const RESTARTING: &str = "AllContainersRestarting";
const DISRUPTION: &str = "DisruptionTarget";

/// Whether a condition is the kubelet's alone to write.
pub(super) fn is_ours(type_: &str) -> bool {
    [
        CONTAINERS_READY,
        INITIALIZED,
        READY,
        SCHEDULED,
        READY_TO_START,
        RESIZE_PENDING,
        RESIZE_IN_PROGRESS,
        RESTARTING,
    ]
    .contains(&type_)
}

/// A condition's status, reason and message.
#[derive(Debug, Clone, Default)]
struct Verdict {
    holds: bool,
    reason: String,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self {
            holds: true,
            ..Self::default()
        }
    }

    fn no(reason: &str, message: String) -> Self {
        Self {
            holds: false,
            reason: reason.to_owned(),
            message,
        }
    }
}

/// All conditions of a status whose phase and containers are filled in.
pub(super) fn all(inputs: &StatusInputs<'_>, status: &PodStatus, now: Time) -> Vec<PodCondition> {
    let mut conditions: Vec<PodCondition> = others(inputs);
    let mut add = |type_: &str, verdict: Verdict| {
        let condition = condition(inputs, type_, verdict, &now);
        match conditions.iter_mut().find(|one| one.type_ == type_) {
            Some(old) => *old = condition,
            None => conditions.push(condition),
        }
    };
    let live = inputs.stage != Stage::Terminated;
    if let Some((reason, message)) = inputs.resize.pending.clone().filter(|_| live) {
        add(
            RESIZE_PENDING,
            Verdict {
                holds: true,
                reason,
                message,
            },
        );
    }
    if let Some((reason, message)) = inputs.resize.in_progress.clone().filter(|_| live) {
        add(
            RESIZE_IN_PROGRESS,
            Verdict {
                holds: true,
                reason,
                message,
            },
        );
    }
    if let Some((reason, message)) = inputs.end.and_then(|end| end.disruption.clone()) {
        add(
            DISRUPTION,
            Verdict {
                holds: true,
                reason,
                message,
            },
        );
    }
    add(READY_TO_START, ready_to_start(inputs));
    add(INITIALIZED, initialized(inputs, status));
    let ready = containers_ready(inputs, status);
    let gated = if ready.holds { gates(inputs) } else { ready.clone() };
    add(READY, gated);
    add(CONTAINERS_READY, ready);
    add(SCHEDULED, Verdict::yes());
    if spec::all_could_restart(inputs.pod) {
        add(RESTARTING, restarting(inputs, status));
    }
    conditions
}

/// Conditions that others wrote, and a disruption that the kubelet wrote once.
fn others(inputs: &StatusInputs<'_>) -> Vec<PodCondition> {
    let of = |status: Option<&PodStatus>| {
        status
            .and_then(|status| status.conditions.clone())
            .unwrap_or_default()
    };
    let mut kept: Vec<_> = of(inputs.pod.status.as_ref())
        .into_iter()
        .filter(|one| !is_ours(&one.type_))
        .collect();
    let disruption = of(inputs.previous)
        .into_iter()
        .find(|one| one.type_ == DISRUPTION);
    if let Some(disruption) = disruption {
        kept.retain(|one| one.type_ != DISRUPTION);
        kept.push(disruption);
    }
    kept
}

fn condition(inputs: &StatusInputs<'_>, type_: &str, verdict: Verdict, now: &Time) -> PodCondition {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let status = if verdict.holds { "True" } else { "False" };
    let sources = [inputs.previous, inputs.pod.status.as_ref()];
    let before = sources
        .into_iter()
        .flatten()
        .find_map(|status| status.conditions.iter().flatten().find(|one| one.type_ == type_));
    let kept = before
        .filter(|before| before.status == status)
        .and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: text(verdict.reason),
        message: text(verdict.message),
        last_transition_time: Some(kept.unwrap_or_else(|| now.clone())),
        observed_generation: inputs.pod.metadata.generation,
        last_probe_time: None,
    }
}

fn ready_to_start(inputs: &StatusInputs<'_>) -> Verdict {
    if sandbox_is_usable(inputs.pod, inputs.observed) {
        return Verdict::yes();
    }
    Verdict::no("PodSandboxNotReady", String::new())
}

/// Which containers are unknown, and which don't pass.
fn failing<'a>(
    containers: impl Iterator<Item = &'a Container>,
    statuses: &[&ContainerStatus],
    passes: impl Fn(&Container, &ContainerStatus) -> bool,
) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut unknown, mut failing) = (Vec::new(), Vec::new());
    for container in containers {
        match statuses.iter().find(|one| one.name == container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) if !passes(container, status) => failing.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    (unknown, failing)
}

fn statuses(status: &PodStatus) -> Vec<&ContainerStatus> {
    status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten())
        .collect()
}

/// `containers with unknown status: [a b], containers with unready status: [c]`
fn complaint(unknown: &[&str], failing: &[&str], what: &str) -> String {
    let part = |what: &str, names: &[&str]| {
        (!names.is_empty()).then(|| format!("containers with {what} status: [{}]", names.join(" ")))
    };
    let parts: Vec<_> = [part("unknown", unknown), part(what, failing)]
        .into_iter()
        .flatten()
        .collect();
    parts.join(", ")
}

fn containers_ready(inputs: &StatusInputs<'_>, status: &PodStatus) -> Verdict {
    let sidecars = spec::init_containers(inputs.pod)
        .iter()
        .filter(|one| spec::is_sidecar(one));
    let wanted = sidecars.chain(spec::regular_containers(inputs.pod));
    let (unknown, unready) = failing(wanted, &statuses(status), |_, status| status.ready);
    match status.phase.as_deref() {
        Some("Succeeded") if unknown.is_empty() => return Verdict::no("PodCompleted", String::new()),
        Some("Failed") => return Verdict::no("PodFailed", String::new()),
        _ => {}
    }
    if unknown.is_empty() && unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotReady", complaint(&unknown, &unready, "unready"))
}

fn gates(inputs: &StatusInputs<'_>) -> Verdict {
    let conditions = inputs
        .pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let gates = spec::spec(inputs.pod)
        .and_then(|spec| spec.readiness_gates.as_deref())
        .unwrap_or_default();
    let closed = gates.iter().filter_map(|gate| {
        let name = &gate.condition_type;
        match conditions.iter().find(|one| one.type_ == *name) {
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{name}\" does not exist."
            )),
            Some(one) if one.status == "True" => None,
            Some(one) => Some(format!(
                "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                one.status
            )),
        }
    });
    let closed: Vec<_> = closed.collect();
    if closed.is_empty() {
        Verdict::yes()
    } else {
        Verdict::no("ReadinessGatesNotReady", closed.join(", "))
    }
}

fn initialized(inputs: &StatusInputs<'_>, status: &PodStatus) -> Verdict {
    let init = spec::init_containers(inputs.pod);
    let (unknown, incomplete) = failing(init.iter(), &statuses(status), |container, status| {
        if spec::is_sidecar(container) {
            status.started == Some(true)
        } else {
            status.ready
        }
    });
    if status.phase.as_deref() == Some("Succeeded") && unknown.is_empty() {
        return Verdict {
            reason: "PodCompleted".to_owned(),
            ..Verdict::yes()
        };
    }
    let started = status.container_statuses.iter().flatten().any(|one| {
        let ended = |state: &Option<_>| {
            let state: Option<&controlplane_api::k8s_openapi::api::core::v1::ContainerState> = state.as_ref();
            state.is_some_and(|state| state.terminated.is_some())
        };
        one.started == Some(true)
            || ended(&one.state)
            || ended(&one.last_state)
            || one.state.as_ref().is_some_and(|state| state.running.is_some())
    });
    let was = inputs
        .previous
        .and_then(|previous| previous.conditions.as_deref())
        .unwrap_or_default();
    let was = was
        .iter()
        .any(|one| one.type_ == INITIALIZED && one.status == "True");
    if started || was || (unknown.is_empty() && incomplete.is_empty()) {
        return Verdict::yes();
    }
    Verdict::no(
        "ContainersNotInitialized",
        complaint(&unknown, &incomplete, "incomplete"),
    )
}

fn restarting(inputs: &StatusInputs<'_>, status: &PodStatus) -> Verdict {
    match status.phase.as_deref() {
        Some("Succeeded") => return Verdict::no("PodCompleted", String::new()),
        Some("Failed") => return Verdict::no("PodFailed", String::new()),
        _ => {}
    }
    if !restarts_all(inputs.pod, inputs.observed) {
        return Verdict::default();
    }
    Verdict {
        holds: true,
        reason: "RestartAllContainersStarted".to_owned(),
        message: "container exited with restart policy rule".to_owned(),
    }
}
