//! ContainerStats, PodSandboxStats, and their lists and streams.
//!
//! Reading a cgroup takes a few files; lists read many of them where blocking is fine.

use std::path::Path;
use std::sync::Arc;

use cri_api::v1::*;
use cri_shim_protocol::NamespaceKind;
use oci_runtime_cgroups::{Cgroup, Stats};

use super::Answers;
use crate::errors::CallError;
use crate::node::{Node, blocking};
use crate::stats::{self, FileSystem, InterfaceStats, Processes, Reading, WritableLayer};
use crate::store::{
    Container as StoredContainer, ContainerPhase, Sandbox as StoredSandbox, SandboxPhase, filter,
};

/// Statistics of one message of a stream.
const ITEMS_PER_MESSAGE: usize = 50;

/// A cgroup's statistics; `None` when it isn't there any more.
pub(super) fn read(cgroup: &str) -> Option<Stats> {
    let cgroup = Cgroup::named(cgroup).ok()?;
    if !cgroup.exists() {
        return None;
    }
    cgroup
        .stats()
        .inspect_err(|error| tracing::debug!(%error, "failed to read a cgroup"))
        .ok()
}

/// The size of a container's writable layer.
pub(super) async fn layer(node: &Node, container: &StoredContainer) -> Option<WritableLayer> {
    let usage = node.images.snapshot_usage(container.id.as_str()).await.ok()?;
    Some(WritableLayer {
        mountpoint: node.paths.root().join("images").display().to_string(),
        used_bytes: usage.bytes,
        inodes_used: usage.inodes,
        on: None,
    })
}

/// How many processes a container has and what they hold open; `None` when its cgroup can't be read.
pub(super) fn processes(cgroup: &str) -> Option<Processes> {
    let cgroup = Cgroup::named(cgroup).ok()?;
    let pids = cgroup.pids(true).ok()?;
    Some(Processes::count(Path::new("/proc"), &pids))
}

/// The file system of images and writable layers.
pub(super) fn file_system(node: &Node) -> Option<FileSystem> {
    let all = nix::sys::statvfs::statvfs(&node.paths.root().join("images")).ok()?;
    Some(FileSystem {
        bytes: all.blocks().saturating_mul(all.fragment_size()),
        inodes: all.files(),
        free_inodes: all.files_available(),
    })
}

/// The counters of a pod's interfaces, but for loopback.
pub(super) fn interfaces(node: &Node, sandbox: &StoredSandbox) -> Vec<InterfaceStats> {
    let record = sandbox.record();
    if !record.namespaces.network || record.phase != SandboxPhase::Ready {
        return Vec::new();
    }
    let netns = node.paths.namespace(sandbox.id.as_str(), NamespaceKind::Network);
    let counters = match cni_net::interface_counters(&netns) {
        Ok(Ok(counters)) => counters,
        Ok(Err(error)) => {
            tracing::debug!(%error, "failed to read interface counters");
            return Vec::new();
        }
        Err(error) => {
            tracing::debug!(%error, "failed to enter a pod's network namespace");
            return Vec::new();
        }
    };
    counters
        .into_iter()
        .filter(|(name, _)| name != "lo")
        .map(|(name, c)| InterfaceStats {
            name,
            rx_bytes: c.rx_bytes,
            rx_packets: c.rx_packets,
            rx_errors: c.rx_errors,
            rx_dropped: c.rx_dropped,
            tx_bytes: c.tx_bytes,
            tx_packets: c.tx_packets,
            tx_errors: c.tx_errors,
            tx_dropped: c.tx_dropped,
        })
        .collect()
}

async fn container_stats(
    node: &Arc<Node>,
    container: &Arc<StoredContainer>,
) -> Result<ContainerStats, CallError> {
    let layer = layer(node, container).await;
    let (node, container) = (node.clone(), container.clone());
    blocking(move || {
        let record = container.record();
        let runs = matches!(record.phase, ContainerPhase::Running { .. });
        let read = if runs { read(&record.cgroup) } else { None };
        let at = node.clock.now();
        let id = container.id.as_str();
        let reading = read.as_ref().map(|stats| Reading {
            at,
            stats,
            nano_cores: node.cpu.rate(id, at, stats.cpu_usage_nanos),
        });
        let attributes = ContainerAttributes {
            id: id.to_owned(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        };
        Ok(stats::container_stats(
            attributes,
            reading,
            layer.as_ref().map(|l| (at, l)),
        ))
    })
    .await
}

async fn sandbox_stats(node: &Arc<Node>, sandbox: &Arc<StoredSandbox>) -> Result<PodSandboxStats, CallError> {
    let mut containers = Vec::new();
    for container in node.store.containers_in(&sandbox.id) {
        if matches!(container.record().phase, ContainerPhase::Running { .. }) {
            containers.push(container_stats(node, &container).await?);
        }
    }
    let (node, sandbox) = (node.clone(), sandbox.clone());
    blocking(move || {
        let record = sandbox.record();
        let read = read(record.cgroup_parent.name());
        let at = node.clock.now();
        let id = sandbox.id.as_str();
        let reading = read.as_ref().map(|stats| Reading {
            at,
            stats,
            nano_cores: node.cpu.rate(id, at, stats.cpu_usage_nanos),
        });
        let attributes = PodSandboxAttributes {
            id: id.to_owned(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        };
        let interfaces = interfaces(&node, &sandbox);
        Ok(stats::sandbox_stats(
            attributes,
            reading,
            Some((at, interfaces.as_slice())),
            containers,
        ))
    })
    .await
}

fn wanted_containers(node: &Node, wanted: Option<&ContainerStatsFilter>) -> Vec<Arc<StoredContainer>> {
    let mut all = node.store.containers();
    all.retain(|c| {
        let record = c.record();
        matches!(record.phase, ContainerPhase::Running { .. }) && filter::container_stats(wanted, &record)
    });
    all
}

fn wanted_sandboxes(node: &Node, wanted: Option<&PodSandboxStatsFilter>) -> Vec<Arc<StoredSandbox>> {
    let mut all = node.store.sandboxes();
    all.retain(|s| {
        let record = s.record();
        record.phase == SandboxPhase::Ready && filter::sandbox_stats(wanted, &record)
    });
    all
}

pub(super) async fn container(
    node: Arc<Node>,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, CallError> {
    let container = node.store.find_container(&request.container_id)?;
    Ok(ContainerStatsResponse {
        stats: Some(container_stats(&node, &container).await?),
    })
}

pub(super) async fn list_containers(
    node: Arc<Node>,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, CallError> {
    let mut stats = Vec::new();
    for container in wanted_containers(&node, request.filter.as_ref()) {
        stats.push(container_stats(&node, &container).await?);
    }
    Ok(ListContainerStatsResponse { stats })
}

pub(super) async fn stream_containers(
    node: Arc<Node>,
    request: StreamContainerStatsRequest,
) -> Result<Answers<StreamContainerStatsResponse>, CallError> {
    let wanted = wanted_containers(&node, request.filter.as_ref());
    Ok(stream_read(node, wanted, |node, chunk| async move {
        let mut container_stats = Vec::with_capacity(chunk.len());
        for container in chunk {
            container_stats.push(self::container_stats(&node, &container).await?);
        }
        Ok(StreamContainerStatsResponse { container_stats })
    }))
}

pub(super) async fn sandbox(
    node: Arc<Node>,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, CallError> {
    let sandbox = node.store.find_sandbox(&request.pod_sandbox_id)?;
    Ok(PodSandboxStatsResponse {
        stats: Some(sandbox_stats(&node, &sandbox).await?),
    })
}

pub(super) async fn list_sandboxes(
    node: Arc<Node>,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, CallError> {
    let mut stats = Vec::new();
    for sandbox in wanted_sandboxes(&node, request.filter.as_ref()) {
        stats.push(sandbox_stats(&node, &sandbox).await?);
    }
    Ok(ListPodSandboxStatsResponse { stats })
}

pub(super) async fn stream_sandboxes(
    node: Arc<Node>,
    request: StreamPodSandboxStatsRequest,
) -> Result<Answers<StreamPodSandboxStatsResponse>, CallError> {
    let wanted = wanted_sandboxes(&node, request.filter.as_ref());
    Ok(stream_read(node, wanted, |node, chunk| async move {
        let mut pod_sandbox_stats = Vec::with_capacity(chunk.len());
        for sandbox in chunk {
            pod_sandbox_stats.push(sandbox_stats(&node, &sandbox).await?);
        }
        Ok(StreamPodSandboxStatsResponse { pod_sandbox_stats })
    }))
}

/// Streams what must be read first, a part at a time, each when the client has room for it.
pub(super) fn stream_read<I, M, F>(
    node: Arc<Node>,
    items: Vec<I>,
    read: impl Fn(Arc<Node>, Vec<I>) -> F + Send + Clone + 'static,
) -> Answers<M>
where
    I: Send + 'static,
    M: Send + 'static,
    F: Future<Output = Result<M, CallError>> + Send + 'static,
{
    let start = (node, items.into_iter());
    Box::pin(futures_util::stream::unfold(start, move |(node, mut rest)| {
        let read = read.clone();
        async move {
            let chunk: Vec<I> = rest.by_ref().take(ITEMS_PER_MESSAGE).collect();
            if chunk.is_empty() {
                return None;
            }
            let message = read(node.clone(), chunk).await.map_err(tonic::Status::from);
            Some((message, (node, rest)))
        }
    }))
}
