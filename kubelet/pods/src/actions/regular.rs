//! Regular containers, and what ends a running container of any kind.

use controlplane_api::k8s_openapi::api::core::v1::Container;

use super::sandbox::is_done_in_older_sandbox;
use super::{KILLED, KillContainer, KillContainerReason, Planner, PodActions, kill, kill_unknown};
use crate::containers::{AfterExit, ContainerKind};
use crate::hash::container_hash;
use crate::observed::{ContainerState, ObservedContainer};
use crate::probe::ProbeResult;

/// How a regular container stands.
pub(super) enum Standing {
    /// It runs and stays.
    Kept,
    /// It is to run: started now, or waiting for its time.
    Wanted,
    /// It is ended now and not started again.
    Ending,
    /// It has ended for good.
    Done,
}

impl Planner<'_> {
    /// Plans one of `spec.containers`.
    pub(super) fn plan_regular(&self, container: &Container, plan: &mut PodActions) -> Standing {
        let Some(newest) = self.current(&container.name) else {
            return self.plan_absent(container, plan);
        };
        match &newest.state {
            ContainerState::Running { .. } => self.plan_running(container, newest, plan),
            ContainerState::Created => {
                plan.remove.push(newest.id.clone());
                self.start_or_wait(container, ContainerKind::Regular, plan);
                Standing::Wanted
            }
            ContainerState::Unknown => {
                plan.kill.push(kill_unknown(newest, "Container"));
                self.start_or_wait(container, ContainerKind::Regular, plan);
                Standing::Wanted
            }
            ContainerState::Exited { exit_code, .. } => {
                if self.after(container, ContainerKind::Regular, *exit_code) == AfterExit::Stay {
                    return Standing::Done;
                }
                self.start_or_wait(container, ContainerKind::Regular, plan);
                Standing::Wanted
            }
        }
    }

    /// A container that the sandbox doesn't have; an older sandbox may have had it.
    fn plan_absent(&self, container: &Container, plan: &mut PodActions) -> Standing {
        if is_done_in_older_sandbox(self.inputs.pod, self.inputs.observed, container) {
            return Standing::Done;
        }
        self.start_or_wait(container, ContainerKind::Regular, plan);
        Standing::Wanted
    }

    fn plan_running(
        &self,
        container: &Container,
        newest: &ObservedContainer,
        plan: &mut PodActions,
    ) -> Standing {
        let verdict = self.running_verdict(container, newest, "Container");
        let Some((mut order, again)) = verdict else {
            return match self.plan_resize(container, newest, "Container", plan) {
                Some(order) => {
                    plan.kill.push(order);
                    self.start_or_wait(container, ContainerKind::Regular, plan);
                    Standing::Wanted
                }
                None => Standing::Kept,
            };
        };
        let again = again || self.after(container, ContainerKind::Regular, KILLED) != AfterExit::Stay;
        if !again {
            plan.kill.push(order);
            return Standing::Ending;
        }
        order.message.push_str(", will be restarted");
        plan.kill.push(order);
        self.start_or_wait(container, ContainerKind::Regular, plan);
        Standing::Wanted
    }

    /// Whether a running container must end, and whether it is then started again whatever its policy. `what` is
    /// how the message calls it.
    pub(super) fn running_verdict(
        &self,
        container: &Container,
        newest: &ObservedContainer,
        what: &str,
    ) -> Option<(KillContainer, bool)> {
        let name = &container.name;
        if newest
            .spec_hash
            .is_some_and(|hash| hash != container_hash(container))
        {
            let message = format!("{what} {name} definition changed");
            return Some((
                kill(newest, KillContainerReason::DefinitionChanged, message),
                true,
            ));
        }
        let failed = |result| result == Some(ProbeResult::Failure);
        let (reason, message, probe) = if failed(self.inputs.probes.liveness(&newest.id)) {
            let message = format!("{what} {name} failed liveness probe");
            (
                KillContainerReason::LivenessProbe,
                message,
                &container.liveness_probe,
            )
        } else if failed(self.inputs.probes.startup(&newest.id)) {
            let message = format!("{what} {name} failed startup probe");
            (
                KillContainerReason::StartupProbe,
                message,
                &container.startup_probe,
            )
        } else {
            return None;
        };
        let grace = probe
            .as_ref()
            .and_then(|probe| probe.termination_grace_period_seconds);
        Some((
            KillContainer {
                grace,
                ..kill(newest, reason, message)
            },
            false,
        ))
    }
}
