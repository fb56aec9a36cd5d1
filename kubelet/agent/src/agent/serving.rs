//! The kubelet as its server sees it: statuses from memory, everything else from the runtime.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use controlplane_api::k8s_openapi::api::core::v1::{
    Container, Event, EventSource, ObjectReference, Pod, PodSpec,
};
use controlplane_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use cri_api::v1;

use super::node_stats::NodeStatsReader;
use crate::runtime::observe::labels;
use crate::runtime::{CallError, Cri};
use crate::server::stats::sources::StatsSources;
use crate::server::{Kubelet, KubeletError, KubeletErrorKind, RuntimeMetrics};
use crate::sync::Context;
use crate::sync::sync_loop::Pulse;
use crate::timeline::PodTimeline;

/// How long the sync loop may stand still before it counts as stuck.
const STUCK: i64 = 120;

/// The kubelet as its server sees it.
pub(super) struct Serving {
    pub(super) ctx: Arc<Context>,
    pub(super) config: serde_json::Value,
    pub(super) pulse: Pulse,
    pub(super) stats: NodeStatsReader,
}

impl From<CallError> for KubeletError {
    fn from(error: CallError) -> Self {
        let kind = match error.code {
            tonic::Code::NotFound => KubeletErrorKind::NotFound,
            tonic::Code::Unimplemented => KubeletErrorKind::Unsupported,
            tonic::Code::ResourceExhausted => KubeletErrorKind::Busy,
            _ => KubeletErrorKind::Failed,
        };
        Self {
            kind,
            message: error.description,
        }
    }
}

impl Serving {
    fn cri(&self) -> &Cri {
        &self.ctx.cri
    }
}

#[async_trait]
impl Kubelet for Serving {
    fn node_name(&self) -> String {
        self.ctx.facts().node_name.clone()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.ctx.registry.pods()
    }

    async fn running_pods(&self) -> Result<Vec<Pod>, KubeletError> {
        let (sandboxes, containers) = tokio::try_join!(
            self.cri().list_pod_sandbox(v1::ListPodSandboxRequest::default()),
            self.cri().list_containers(v1::ListContainersRequest::default()),
        )?;
        Ok(running_pods(&sandboxes.items, &containers.containers))
    }

    async fn sandbox(&self, pod_uid: &str) -> Result<Option<String>, KubeletError> {
        let filter = v1::PodSandboxFilter {
            state: Some(v1::PodSandboxStateValue {
                state: v1::PodSandboxState::SandboxReady.into(),
            }),
            label_selector: [(labels::POD_UID.to_owned(), pod_uid.to_owned())].into(),
            ..Default::default()
        };
        let found = self
            .cri()
            .list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) })
            .await?;
        let newest = found.items.into_iter().max_by_key(|sandbox| sandbox.created_at);
        Ok(newest.map(|sandbox| sandbox.id))
    }

    async fn running_container(
        &self,
        pod_uid: &str,
        container: &str,
    ) -> Result<Option<String>, KubeletError> {
        let filter = v1::ContainerFilter {
            state: Some(v1::ContainerStateValue {
                state: v1::ContainerState::ContainerRunning.into(),
            }),
            label_selector: [
                (labels::POD_UID.to_owned(), pod_uid.to_owned()),
                (labels::CONTAINER_NAME.to_owned(), container.to_owned()),
            ]
            .into(),
            ..Default::default()
        };
        let found = self
            .cri()
            .list_containers(v1::ListContainersRequest { filter: Some(filter) })
            .await?;
        let newest = found
            .containers
            .into_iter()
            .max_by_key(|container| container.created_at);
        Ok(newest.map(|container| container.id))
    }

    async fn container_status(&self, container_id: &str) -> Result<v1::ContainerStatus, KubeletError> {
        let request = v1::ContainerStatusRequest {
            container_id: container_id.to_owned(),
            verbose: false,
        };
        let answer = self.cri().container_status(request).await?;
        answer
            .status
            .ok_or_else(|| KubeletError::failed("the runtime told no status"))
    }

    async fn exec(&self, request: v1::ExecRequest) -> Result<String, KubeletError> {
        Ok(self.cri().exec(request).await?.url)
    }

    async fn attach(&self, request: v1::AttachRequest) -> Result<String, KubeletError> {
        Ok(self.cri().attach(request).await?.url)
    }

    async fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, KubeletError> {
        Ok(self.cri().port_forward(request).await?.url)
    }

    async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, KubeletError> {
        let timeout = std::time::Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        Ok(self
            .cri()
            .exec_sync(&request.container_id, &request.cmd, timeout)
            .await?)
    }

    async fn checkpoint(&self, request: v1::CheckpointContainerRequest) -> Result<(), KubeletError> {
        self.cri().checkpoint_container(request).await?;
        Ok(())
    }

    async fn stats(&self, only_cpu_and_memory: bool) -> Result<StatsSources, KubeletError> {
        let sandboxes = optional(
            self.cri()
                .list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default())
                .await,
        )?;
        let containers = match &sandboxes {
            Some(_) => Vec::new(),
            None => {
                self.cri()
                    .list_container_stats(v1::ListContainerStatsRequest::default())
                    .await?
                    .stats
            }
        };
        let (listed, started) = tokio::try_join!(
            self.cri().list_pod_sandbox(v1::ListPodSandboxRequest::default()),
            self.cri().list_containers(v1::ListContainersRequest::default()),
        )?;
        let image_fs = if only_cpu_and_memory {
            None
        } else {
            optional(self.cri().image_fs_info(v1::ImageFsInfoRequest {}).await)?
        };
        let (reader, ctx) = (self.stats.clone(), self.ctx.clone());
        let uids: Vec<_> = self
            .ctx
            .registry
            .pods()
            .iter()
            .filter_map(|pod| pod.metadata.uid.clone())
            .collect();
        let own = self
            .ctx
            .blocking(move || reader.read(&ctx, &uids, image_fs.as_ref(), only_cpu_and_memory))
            .await;
        let mut sources = own.ok_or_else(|| KubeletError::failed("the kubelet stops"))?;
        sources.sandboxes = sandboxes.map(|answer| answer.stats).unwrap_or_default();
        sources.containers = containers;
        sources.container_starts = started
            .containers
            .iter()
            .map(|one| (one.id.clone(), one.created_at))
            .collect();
        sources.sandbox_starts = listed
            .items
            .iter()
            .map(|one| (one.id.clone(), one.created_at))
            .collect();
        Ok(sources)
    }

    async fn runtime_metrics(&self) -> Result<RuntimeMetrics, KubeletError> {
        let descriptors = self
            .cri()
            .list_metric_descriptors(v1::ListMetricDescriptorsRequest {})
            .await?;
        let pods = self
            .cri()
            .list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {})
            .await?;
        Ok(RuntimeMetrics {
            descriptors: descriptors.descriptors,
            pods: pods.pod_metrics,
        })
    }

    fn configz(&self) -> serde_json::Value {
        self.config.clone()
    }

    fn events(&self, namespace: &str, name: &str) -> Vec<Event> {
        let Some(pod) = self.pod(namespace, name) else {
            return Vec::new();
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let kept = self.ctx.events.of(&uid).into_iter().enumerate();
        kept.map(|(number, event)| api_event(&pod, number, event))
            .collect()
    }

    fn timeline(&self, pod_uid: &str) -> Option<PodTimeline> {
        self.ctx.timelines.of(pod_uid)
    }

    fn sync_loop_health(&self) -> Result<(), String> {
        let still = self.ctx.now().as_second() - self.pulse.last();
        if still < STUCK {
            Ok(())
        } else {
            Err(format!("the sync loop has stood still for {still} s"))
        }
    }
}

/// None where the runtime hasn't got that call.
pub(super) fn optional<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code == tonic::Code::Unimplemented => Ok(None),
        Err(error) => Err(error),
    }
}

/// A kept event as the API has it.
fn api_event(pod: &Pod, number: usize, event: crate::events::Event) -> Event {
    let metadata = &pod.metadata;
    let name = metadata.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{number:x}")),
            namespace: metadata.namespace.clone(),
            ..Default::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            field_path: event.field_path,
            ..Default::default()
        },
        type_: Some(format!("{:?}", event.r#type)),
        reason: Some(event.reason),
        message: Some(event.message),
        count: i32::try_from(event.count).ok(),
        first_timestamp: Some(Time(event.first_timestamp)),
        last_timestamp: Some(Time(event.last_timestamp)),
        source: Some(EventSource {
            component: Some("kubelet".to_owned()),
            host: None,
        }),
        ..Default::default()
    }
}

/// The pods of ready sandboxes, with the containers that run in them.
fn running_pods(sandboxes: &[v1::PodSandbox], containers: &[v1::Container]) -> Vec<Pod> {
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    for sandbox in sandboxes
        .iter()
        .filter(|sandbox| sandbox.state() == v1::PodSandboxState::SandboxReady)
    {
        let metadata = sandbox.metadata.clone().unwrap_or_default();
        let held = containers.iter().filter(|container| {
            container.pod_sandbox_id == sandbox.id
                && container.state() == v1::ContainerState::ContainerRunning
        });
        let held = held.map(|container| Container {
            name: container
                .labels
                .get(labels::CONTAINER_NAME)
                .cloned()
                .unwrap_or_default(),
            image: container.image.as_ref().map(|image| image.image.clone()),
            ..Default::default()
        });
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(metadata.name),
                namespace: Some(metadata.namespace),
                uid: Some(metadata.uid),
                ..Default::default()
            },
            spec: Some(PodSpec {
                containers: held.collect(),
                ..Default::default()
            }),
            status: None,
        };
        pods.insert(sandbox.id.clone(), pod);
    }
    pods.into_values().collect()
}
