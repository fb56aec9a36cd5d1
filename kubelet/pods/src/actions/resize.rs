//! In-place resize (KEP-1287): a running container whose resources aren't those that its pod was allocated gets them, or is
//! made anew where its `resizePolicy` says so.
//!
//! CPU requests, CPU limits and memory limits are compared; a memory request alone changes nothing of a container.

use controlplane_api::k8s_openapi::api::core::v1::{Container, ResourceRequirements};

use super::{KillContainer, KillContainerReason, Planner, PodActions, ResizeContainer, kill};
use crate::observed::ObservedContainer;
use crate::quantity::{Resources, amount};

/// What of a container's resources reaches the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InForce {
    cpu_request: i64,
    cpu_limit: i64,
    memory_limit: i64,
}

impl Planner<'_> {
    /// Puts a resize into the plan, or returns how the container ends because it must be made anew for it.
    pub(super) fn plan_resize(
        &self,
        container: &Container,
        newest: &ObservedContainer,
        what: &str,
        plan: &mut PodActions,
    ) -> Option<KillContainer> {
        if !self.inputs.resizable {
            return None;
        }
        let wanted = container.resources.clone().unwrap_or_default();
        let (new, old) = (in_force(&wanted), in_force(newest.resources.as_ref()?));
        let cpu = new.cpu_request != old.cpu_request || new.cpu_limit != old.cpu_limit;
        let memory = new.memory_limit != old.memory_limit;
        if (cpu && needs_restart(container, "cpu")) || (memory && needs_restart(container, "memory")) {
            let message = format!("{what} {} resize requires restart", container.name);
            return Some(kill(newest, KillContainerReason::Resize, message));
        }
        if cpu || memory {
            let (id, name) = (newest.id.clone(), container.name.clone());
            plan.resize.push(ResizeContainer {
                id,
                name,
                resources: wanted,
                cpu,
                memory,
            });
        }
        None
    }
}

fn in_force(resources: &ResourceRequirements) -> InForce {
    let of = |list: &Option<Resources>, name: &str| amount(list.as_ref(), name).unwrap_or(0);
    let cpu_limit = of(&resources.limits, "cpu");
    InForce {
        // Where only a limit is given, it is the request as well.
        cpu_request: match of(&resources.requests, "cpu") {
            0 => cpu_limit,
            request => request,
        },
        cpu_limit,
        memory_limit: of(&resources.limits, "memory"),
    }
}

fn needs_restart(container: &Container, resource: &str) -> bool {
    let policies = container.resize_policy.as_deref().unwrap_or_default();
    policies
        .iter()
        .any(|one| one.resource_name == resource && one.restart_policy == "RestartContainer")
}
