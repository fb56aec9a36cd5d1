//! UpdateContainerResources, UpdatePodSandboxResources.

use std::sync::Arc;

use cri_api::v1::{
    LinuxContainerResources, UpdateContainerResourcesRequest, UpdateContainerResourcesResponse,
    UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse,
};
use cri_nri::v1alpha1::Event;
use oci_runtime_cgroups::Cgroup;
use oci_spec::runtime::LinuxResources;

use crate::errors::CallError;
use crate::lifecycle::{phase_name, pod_limits};
use crate::node::{Node, blocking, detached};
use crate::spec::linux_resources;
use crate::store::{CgroupParent, Container, ContainerPhase, ContainerRecord, PodLimits, SandboxPhase};

pub(super) async fn container(
    node: Arc<Node>,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, CallError> {
    let container = node.store.find_container(&request.container_id)?;
    if request.windows.is_some() {
        return Err(CallError::Invalid(
            "`windows` is set, but this is a Linux runtime".to_owned(),
        ));
    }
    let Some(asked) = request.linux else {
        return Ok(UpdateContainerResourcesResponse {});
    };
    let phase = container.record().phase.clone();
    if !matches!(
        phase,
        ContainerPhase::Created { .. } | ContainerPhase::Running { .. }
    ) {
        let state = phase_name(&phase);
        return Err(CallError::State(format!("container {} is {state}", container.id)));
    }
    detached(async move {
        let (resources, asked) = Box::pin(node.plugins_update(&container, asked)).await?;
        node.set_limits(&container, &resources, &asked).await?;
        node.plugins_hear(&container, Event::PostUpdateContainer).await;
        Ok(UpdateContainerResourcesResponse {})
    })
    .await
}

impl Node {
    /// Sets limits of a container that runs or waits for its start, and remembers what of them the CRI can say.
    pub(crate) async fn set_limits(
        &self,
        container: &Container,
        resources: &LinuxResources,
        asked: &LinuxContainerResources,
    ) -> Result<(), CallError> {
        let json = serde_json::to_string(resources)
            .map_err(std::io::Error::from)
            .map_err(CallError::file("encode", "the resources".as_ref()))?;
        self.shim_of(container)?
            .update(container.id.as_str(), json)
            .await
            .map_err(CallError::shim("update the container's resources"))?;
        Ok(container.entry.update(|record| record.overlay_limits(asked))?)
    }
}

impl ContainerRecord {
    /// Takes over what is set.
    pub(crate) fn overlay_limits(&mut self, asked: &LinuxContainerResources) {
        let mut config = (*self.config).clone();
        let linux = config.linux.get_or_insert_default();
        overlay(linux.resources.get_or_insert_default(), asked);
        self.config = Arc::new(config);
    }
}

/// Takes over what is set.
fn overlay(now: &mut LinuxContainerResources, asked: &LinuxContainerResources) {
    let number = |now: &mut i64, asked: i64| {
        if asked != 0 {
            *now = asked;
        }
    };
    number(&mut now.cpu_period, asked.cpu_period);
    number(&mut now.cpu_quota, asked.cpu_quota);
    number(&mut now.cpu_shares, asked.cpu_shares);
    number(&mut now.memory_limit_in_bytes, asked.memory_limit_in_bytes);
    number(
        &mut now.memory_swap_limit_in_bytes,
        asked.memory_swap_limit_in_bytes,
    );
    number(&mut now.oom_score_adj, asked.oom_score_adj);
    let text = |now: &mut String, asked: &String| {
        if !asked.is_empty() {
            now.clone_from(asked);
        }
    };
    text(&mut now.cpuset_cpus, &asked.cpuset_cpus);
    text(&mut now.cpuset_mems, &asked.cpuset_mems);
    if !asked.hugepage_limits.is_empty() {
        now.hugepage_limits.clone_from(&asked.hugepage_limits);
    }
    now.unified.extend(asked.unified.clone());
}

/// The kubelet sets its own pods' cgroups; here it only says what it did. Where the cgroup is ours, it is set.
pub(super) async fn sandbox(
    node: Arc<Node>,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, CallError> {
    let sandbox = node.store.find_sandbox(&request.pod_sandbox_id)?;
    if sandbox.record().phase != SandboxPhase::Ready {
        return Err(CallError::State(format!("sandbox {} is not ready", sandbox.id)));
    }
    let limits = PodLimits {
        resources: request.resources,
        overhead: request.overhead,
    };
    let resources = pod_limits(&limits)
        .map(|limits| linux_resources(&limits, &node.host))
        .transpose()?;
    detached(async move {
        node.plugins_update_pod(&sandbox, &limits).await?;
        if let (CgroupParent::Ours(path), Some(resources)) =
            (sandbox.record().cgroup_parent.clone(), resources)
        {
            blocking(move || Ok(Cgroup::named(&path)?.apply(&resources)?)).await?;
        }
        sandbox.entry.update(|r| r.limits = limits)?;
        node.plugins_updated_pod(&sandbox).await;
        Ok(UpdatePodSandboxResourcesResponse {})
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_set_is_taken_over() {
        let mut now = LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            cpuset_cpus: "0".into(),
            ..Default::default()
        };
        overlay(
            &mut now,
            &LinuxContainerResources {
                memory_limit_in_bytes: 2 << 20,
                ..Default::default()
            },
        );
        assert_eq!((now.cpu_shares, now.memory_limit_in_bytes), (512, 2 << 20));
        assert_eq!(now.cpuset_cpus, "0");
    }
}
