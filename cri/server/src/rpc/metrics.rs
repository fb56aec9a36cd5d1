//! ListMetricDescriptors, ListPodSandboxMetrics, StreamPodSandboxMetrics.

use std::sync::Arc;

use cri_api::v1::*;
use oci_runtime_cgroups::Stats;

use super::Answers;
use super::stats::{file_system, interfaces, layer, processes, read, stream_read};
use crate::cgroup_names;
use crate::errors::CallError;
use crate::node::{Node, blocking};
use crate::stats::{
    ContainerMetricsInput, CpuLimits, Processes, SandboxMetricsInput, WritableLayer, metric_descriptors,
    sandbox_metrics,
};
use crate::store::{Container as StoredContainer, ContainerPhase, Sandbox as StoredSandbox, SandboxPhase};

pub(super) async fn descriptors(
    _node: Arc<Node>,
    _request: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse, CallError> {
    Ok(ListMetricDescriptorsResponse {
        descriptors: metric_descriptors(),
    })
}

pub(super) async fn list(
    node: Arc<Node>,
    _request: ListPodSandboxMetricsRequest,
) -> Result<ListPodSandboxMetricsResponse, CallError> {
    let mut pod_metrics = Vec::new();
    for sandbox in ready(&node) {
        pod_metrics.push(metrics(node.clone(), sandbox).await?);
    }
    Ok(ListPodSandboxMetricsResponse { pod_metrics })
}

pub(super) async fn stream(
    node: Arc<Node>,
    _request: StreamPodSandboxMetricsRequest,
) -> Result<Answers<StreamPodSandboxMetricsResponse>, CallError> {
    let sandboxes = ready(&node);
    Ok(stream_read(node, sandboxes, |node, chunk| async move {
        let mut pod_sandbox_metrics = Vec::with_capacity(chunk.len());
        for sandbox in chunk {
            pod_sandbox_metrics.push(metrics(node.clone(), sandbox).await?);
        }
        Ok(StreamPodSandboxMetricsResponse { pod_sandbox_metrics })
    }))
}

fn ready(node: &Node) -> Vec<Arc<StoredSandbox>> {
    let mut all = node.store.sandboxes();
    all.retain(|s| s.record().phase == SandboxPhase::Ready);
    all
}

/// A container with what was read of it.
struct Read {
    container: Arc<StoredContainer>,
    name: String,
    image: String,
    cgroup: String,
    started_at: i64,
    stats: Option<Stats>,
    layer: Option<WritableLayer>,
    processes: Option<Processes>,
    cpu: CpuLimits,
}

async fn metrics(node: Arc<Node>, sandbox: Arc<StoredSandbox>) -> Result<PodSandboxMetrics, CallError> {
    let mut containers = Vec::new();
    for container in node.store.containers_in(&sandbox.id) {
        let record = container.record();
        let ContainerPhase::Running { started_at, .. } = record.phase else {
            continue;
        };
        let image = record.config.image.clone().unwrap_or_default();
        containers.push(Read {
            name: record.config.metadata.clone().unwrap_or_default().name,
            image: if image.user_specified_image.is_empty() {
                image.image
            } else {
                image.user_specified_image
            },
            cgroup: record.cgroup.clone(),
            started_at,
            stats: None,
            layer: layer(&node, &container).await,
            processes: None,
            cpu: CpuLimits::of(record.config.linux.as_ref().and_then(|l| l.resources.as_ref())),
            container,
        });
    }
    blocking(move || {
        let on = file_system(&node);
        for c in &mut containers {
            c.stats = read(&c.cgroup);
            c.processes = processes(&c.cgroup);
            c.cgroup = cgroup_names::path(&c.cgroup);
            if let Some(layer) = &mut c.layer {
                layer.on = on;
            }
        }
        let record = sandbox.record();
        let metadata = record.config.metadata.clone().unwrap_or_default();
        let stats = read(record.cgroup_parent.name());
        let cgroup = cgroup_names::path(record.cgroup_parent.name());
        let interfaces = interfaces(&node, &sandbox);
        let input = SandboxMetricsInput {
            id: sandbox.id.as_str(),
            pod: &metadata.name,
            namespace: &metadata.namespace,
            cgroup: &cgroup,
            created_at: record.created_at,
            stats: stats.as_ref(),
            interfaces: &interfaces,
            containers: containers.iter().map(input).collect(),
        };
        Ok(sandbox_metrics(node.clock.now(), &input))
    })
    .await
}

fn input(read: &Read) -> ContainerMetricsInput<'_> {
    ContainerMetricsInput {
        id: read.container.id.as_str(),
        name: &read.name,
        image: &read.image,
        cgroup: &read.cgroup,
        started_at: read.started_at,
        stats: read.stats.as_ref(),
        layer: read.layer.as_ref(),
        processes: read.processes,
        cpu: read.cpu,
    }
}
