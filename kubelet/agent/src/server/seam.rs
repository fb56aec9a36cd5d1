//! What the server needs of the kubelet behind it.
//!
//! The runtime's side is in CRI's own words, one call each; who a request is about is decided here from the pods' statuses
//! (`lookup.rs`), so that an implementation only hands calls on.

use std::sync::Arc;

use async_trait::async_trait;
use controlplane_api::k8s_openapi::api::core::v1::{Event, Pod};
use cri_api::v1 as cri;

use super::stats::sources::StatsSources;
use crate::timeline::PodTimeline;

/// Why the kubelet couldn't do what was asked, in a sentence for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct KubeletError {
    /// What kind of failure.
    pub kind: KubeletErrorKind,
    /// The sentence, with its causes.
    pub message: String,
}

/// Kinds of failure that the server tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeletErrorKind {
    /// What was asked about doesn't exist.
    NotFound,
    /// The runtime can't do this at all.
    Unsupported,
    /// The runtime has no room for it now.
    Busy,
    /// Anything else.
    Failed,
}

impl KubeletError {
    /// A failure that has no kind of its own.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            kind: KubeletErrorKind::Failed,
            message: message.into(),
        }
    }
}

impl From<&tonic::Status> for KubeletError {
    fn from(status: &tonic::Status) -> Self {
        let kind = match status.code() {
            tonic::Code::NotFound => KubeletErrorKind::NotFound,
            tonic::Code::Unimplemented => KubeletErrorKind::Unsupported,
            tonic::Code::ResourceExhausted => KubeletErrorKind::Busy,
            _ => KubeletErrorKind::Failed,
        };
        Self {
            kind,
            message: status.message().to_owned(),
        }
    }
}

impl From<tonic::Status> for KubeletError {
    fn from(status: tonic::Status) -> Self {
        Self::from(&status)
    }
}

/// What a runtime measures on its own: `ListMetricDescriptors` and `ListPodSandboxMetrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuntimeMetrics {
    /// What the metrics are.
    pub descriptors: Vec<cri::MetricDescriptor>,
    /// Their values.
    pub pods: Vec<cri::PodSandboxMetrics>,
}

/// The kubelet, as its server sees it.
#[async_trait]
pub trait Kubelet: Send + Sync + 'static {
    /// This node's name.
    fn node_name(&self) -> String;

    /// All pods that this node was told to run, mirror pods aside, each with its current status.
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// One of them.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods().into_iter().find(|pod| {
            pod.metadata.name.as_deref() == Some(name) && pod.metadata.namespace.as_deref() == Some(namespace)
        })
    }

    /// The pods that the runtime runs, as far as it knows them: metadata, and names and images of containers.
    async fn running_pods(&self) -> Result<Vec<Pod>, KubeletError>;

    /// The ready sandbox of a pod.
    async fn sandbox(&self, pod_uid: &str) -> Result<Option<String>, KubeletError>;

    /// The running container of a name in a pod.
    async fn running_container(&self, pod_uid: &str, container: &str)
    -> Result<Option<String>, KubeletError>;

    /// CRI `ContainerStatus`: where its log is, and whether it runs.
    async fn container_status(&self, container_id: &str) -> Result<cri::ContainerStatus, KubeletError>;

    /// CRI `Exec`: the URL of the stream.
    async fn exec(&self, request: cri::ExecRequest) -> Result<String, KubeletError>;

    /// CRI `Attach`: the URL of the stream.
    async fn attach(&self, request: cri::AttachRequest) -> Result<String, KubeletError>;

    /// CRI `PortForward`: the URL of the stream.
    async fn port_forward(&self, request: cri::PortForwardRequest) -> Result<String, KubeletError>;

    /// CRI `ExecSync`.
    async fn exec_sync(&self, request: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse, KubeletError>;

    /// CRI `CheckpointContainer`, to the location that the request names.
    async fn checkpoint(&self, request: cri::CheckpointContainerRequest) -> Result<(), KubeletError>;

    /// What the node, its pods and their volumes use; with `only_cpu_and_memory` the rest may be left out.
    async fn stats(&self, only_cpu_and_memory: bool) -> Result<StatsSources, KubeletError>;

    /// What the runtime measures on its own; [`KubeletErrorKind::Unsupported`] where it doesn't.
    async fn runtime_metrics(&self) -> Result<RuntimeMetrics, KubeletError>;

    /// The `KubeletConfiguration` in force.
    fn configz(&self) -> serde_json::Value;

    /// The events that the kubelet kept of a pod, oldest first.
    fn events(&self, namespace: &str, name: &str) -> Vec<Event>;

    /// The start of a pod.
    fn timeline(&self, pod_uid: &str) -> Option<PodTimeline>;

    /// Whether the sync loop turns; a sentence when it doesn't.
    fn sync_loop_health(&self) -> Result<(), String>;
}
