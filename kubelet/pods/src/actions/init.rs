//! Init containers and sidecars: in order until the last has done its part, and from then on sidecars are kept running.
//!
//! The frontier is the last init container that the sandbox has seen: ended init containers before it may be gone from
//! the runtime, and count as done. It has done its part when it is an init container that exited with 0, or a sidecar that
//! runs and whose startup probe, if any, has succeeded. Sidecars before the frontier are kept running.

use controlplane_api::k8s_openapi::api::core::v1::Container;

use super::{KILLED, Planner, PodActions, kill_unknown};
use crate::containers::{self, AfterExit, ContainerKind};
use crate::observed::{ContainerState, ObservedContainer};
use crate::probe::ProbeResult;

/// How far initialization is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Regular containers may start.
    Done,
    /// They may not yet.
    Going,
    /// They never will.
    Failed,
}

impl Planner<'_> {
    /// Plans init containers and sidecars.
    pub(super) fn plan_init(&self, plan: &mut PodActions) -> Progress {
        let init = containers::init_containers(self.inputs.pod);
        let initialized = containers::regular_containers(self.inputs.pod)
            .iter()
            .any(|one| self.current(&one.name).is_some());
        let frontier = init.iter().rposition(|one| self.current(&one.name).is_some());
        let kept = if initialized {
            init.len()
        } else {
            frontier.unwrap_or(0)
        };
        for sidecar in init[..kept].iter().filter(|one| containers::is_sidecar(one)) {
            self.plan_sidecar(sidecar, plan);
        }
        if initialized {
            return Progress::Done;
        }
        let next = match frontier {
            None => 0,
            Some(at) => match self.plan_frontier(&init[at], plan) {
                Progress::Done => at + 1,
                unfinished => return unfinished,
            },
        };
        match init.get(next) {
            None => Progress::Done,
            Some(one) => {
                self.start_or_wait(one, containers::init_kind(one), plan);
                Progress::Going
            }
        }
    }

    fn plan_frontier(&self, container: &Container, plan: &mut PodActions) -> Progress {
        let Some(newest) = self.current(&container.name) else {
            return Progress::Going;
        };
        if containers::is_sidecar(container) {
            self.plan_sidecar(container, plan);
            let started = newest.is_running()
                && match self.inputs.probes.startup(&newest.id) {
                    Some(result) => result == ProbeResult::Success,
                    None => container.startup_probe.is_none(),
                };
            return if started { Progress::Done } else { Progress::Going };
        }
        self.plan_init_container(container, newest, plan)
    }

    fn plan_init_container(
        &self,
        container: &Container,
        newest: &ObservedContainer,
        plan: &mut PodActions,
    ) -> Progress {
        let exit_code = match newest.state {
            ContainerState::Running { .. } => return Progress::Going,
            ContainerState::Created => {
                plan.remove.push(newest.id.clone());
                self.start_or_wait(container, ContainerKind::Init, plan);
                return Progress::Going;
            }
            ContainerState::Unknown => KILLED,
            ContainerState::Exited { exit_code, .. } => exit_code,
        };
        match self.after(container, ContainerKind::Init, exit_code) {
            AfterExit::Stay if exit_code == 0 => return Progress::Done,
            AfterExit::Stay => return Progress::Failed,
            AfterExit::Restart | AfterExit::RestartAll => {}
        }
        if newest.state == ContainerState::Unknown {
            plan.kill.push(kill_unknown(newest, "Init container"));
        }
        self.remove_older(container, newest, plan);
        self.start_or_wait(container, ContainerKind::Init, plan);
        Progress::Going
    }

    /// Of the ends of one init container only the last one is kept.
    fn remove_older(&self, container: &Container, newest: &ObservedContainer, plan: &mut PodActions) {
        let older = self
            .inputs
            .observed
            .all_named(&container.name)
            .filter(|one| one.id != newest.id);
        plan.remove
            .extend(older.filter(|one| !one.is_running()).map(|one| one.id.clone()));
    }

    /// Keeps a sidecar running.
    fn plan_sidecar(&self, container: &Container, plan: &mut PodActions) {
        let Some(newest) = self.current(&container.name) else {
            return self.start_or_wait(container, ContainerKind::Sidecar, plan);
        };
        match newest.state {
            ContainerState::Running { .. } => {
                let verdict = self
                    .running_verdict(container, newest, "Init container")
                    .map(|(order, _)| order);
                let Some(order) =
                    verdict.or_else(|| self.plan_resize(container, newest, "Init container", plan))
                else {
                    return;
                };
                plan.kill.push(order);
            }
            ContainerState::Unknown => plan.kill.push(kill_unknown(newest, "Init container")),
            ContainerState::Created => plan.remove.push(newest.id.clone()),
            ContainerState::Exited { .. } => self.remove_older(container, newest, plan),
        }
        self.start_or_wait(container, ContainerKind::Sidecar, plan);
    }
}
