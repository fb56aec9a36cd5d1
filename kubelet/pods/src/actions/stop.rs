//! How a pod's containers end: in which order, and with how much time.
//!
//! Regular and ephemeral containers end at once, side by side. Sidecars end one after the other in the reverse of their order,
//! each once all that started after it has ended (KEP-753). All of them share one grace period, counted from the start.

use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod};

use super::KillContainerReason;
use crate::containers;
use crate::observed::{ObservedContainer, ObservedPod};

/// The least grace that a container is given, in seconds.
pub const MINIMUM_GRACE: i64 = 2;

/// The grace of pods that don't say, in seconds.
pub const DEFAULT_GRACE: i64 = 30;

/// Containers of one step end side by side; the next step begins when they have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TerminationStep {
    /// (ID, name) of containers that aren't known to have ended.
    pub containers: Vec<(String, String)>,
}

/// In which order what still runs of a pod ends. Containers that the pod's spec doesn't know go in the first step, so that
/// it works without a spec as well (`pod` of a pod that only the runtime knows has no containers).
pub fn termination_order(pod: &Pod, observed: &ObservedPod) -> Vec<TerminationStep> {
    let init = containers::init_containers(pod);
    let place = |one: &ObservedContainer| {
        // 0 for all but sidecars; sidecars count from their list's end.
        let sidecar = init
            .iter()
            .rev()
            .position(|init| init.name == one.name && containers::is_sidecar(init));
        sidecar.map_or(0, |place| place + 1)
    };
    let mut steps = vec![TerminationStep::default(); init.len() + 1];
    for one in observed.containers.iter().filter(|one| !one.has_exited()) {
        steps[place(one)]
            .containers
            .push((one.id.clone(), one.name.clone()));
    }
    steps.retain(|step| !step.containers.is_empty());
    steps
}

/// How many seconds a container has to end by itself.
///
/// `reason` is none when its pod ends. `deletion` is the grace of whoever ends the pod (`deletionGracePeriodSeconds`,
/// eviction, node shutdown), where given. Else a failed probe's own, else the pod's `terminationGracePeriodSeconds`. Never
/// below [`MINIMUM_GRACE`].
pub fn grace_period(
    pod: &Pod,
    container: Option<&Container>,
    reason: Option<KillContainerReason>,
    deletion: Option<i64>,
) -> i64 {
    let spec = containers::spec(pod);
    let of_pod = spec
        .and_then(|spec| spec.termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE);
    let probe = container.and_then(|container| match reason? {
        KillContainerReason::LivenessProbe => container.liveness_probe.as_ref(),
        KillContainerReason::StartupProbe => container.startup_probe.as_ref(),
        _ => None,
    });
    let of_probe = probe.and_then(|probe| probe.termination_grace_period_seconds);
    deletion.or(of_probe).unwrap_or(of_pod).max(MINIMUM_GRACE)
}
