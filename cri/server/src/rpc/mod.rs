//! The gRPC services: each RPC is a function of its own over the [`Node`]; what is here gives every one of them its
//! span, its line in the log and its gRPC code.
//!
//! A client that goes away drops its call. Calls that change something run detached, so that they end between two
//! steps anyway.

mod containers;
mod create_container;
mod events;
mod exec_sync;
mod handover;
mod images;
mod metrics;
mod remove_container;
mod remove_pod_sandbox;
mod run_pod_sandbox;
mod runtime;
mod sandboxes;
mod start_container;
mod stats;
mod stop_container;
mod stop_pod_sandbox;
mod streaming;
mod update;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use cri_api::v1::image_service_server::ImageService;
use cri_api::v1::runtime_service_server::RuntimeService;
use cri_api::v1::*;
use futures_util::Stream;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument as _;

use crate::errors::CallError;
use crate::node::Node;

pub(crate) use exec_sync::{Wanted, next_name, start_exec};

/// Both services.
#[derive(Clone)]
pub struct Service {
    node: Arc<Node>,
}

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
/// What an RPC returns.
type Answer<T> = Result<Response<T>, Status>;

/// Items of one message of a streamed list.
const ITEMS_PER_MESSAGE: usize = 100;

/// Streams a list in messages of bounded size; each is made when the client has room for it.
fn stream_list<I, T, M>(
    items: Vec<I>,
    convert: impl Fn(&I) -> Option<T> + Send + 'static,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> Answers<M>
where
    I: Send + 'static,
{
    let mut rest = items.into_iter();
    Box::pin(futures_util::stream::iter(std::iter::from_fn(move || {
        // What vanished meanwhile leaves no empty message behind.
        loop {
            let items: Vec<I> = rest.by_ref().take(ITEMS_PER_MESSAGE).collect();
            if items.is_empty() {
                return None;
            }
            let converted: Vec<T> = items.iter().filter_map(&convert).collect();
            if !converted.is_empty() {
                return Some(Ok(message(converted)));
            }
        }
    })))
}

impl Service {
    /// The services of this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    async fn call<T>(
        &self,
        rpc: &'static str,
        work: impl Future<Output = Result<T, CallError>> + Send,
    ) -> Answer<T> {
        self.node.calls.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!("rpc", rpc);
        let began = Instant::now();
        let result = Box::pin(work.instrument(span.clone())).await;
        let _entered = span.enter();
        let micros = began.elapsed().as_micros();
        match result {
            Ok(answer) => {
                tracing::debug!(micros, "done");
                Ok(Response::new(answer))
            }
            Err(error) => {
                let status = Status::from(error);
                let code = status.code();
                if matches!(code, Code::Internal | Code::DataLoss) {
                    tracing::error!(micros, ?code, error = status.message(), "failed");
                } else {
                    tracing::info!(micros, ?code, error = status.message(), "refused");
                }
                Err(status)
            }
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    type StreamPodSandboxesStream = Answers<StreamPodSandboxesResponse>;
    type StreamContainersStream = Answers<StreamContainersResponse>;
    type StreamContainerStatsStream = Answers<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Answers<StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Answers<StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Answers<ContainerEventResponse>;

    async fn version(&self, request: Request<VersionRequest>) -> Answer<VersionResponse> {
        self.call(
            "Version",
            runtime::version(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        self.call(
            "RunPodSandbox",
            run_pod_sandbox::run(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        self.call(
            "StopPodSandbox",
            stop_pod_sandbox::stop(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        self.call(
            "RemovePodSandbox",
            remove_pod_sandbox::remove(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        self.call(
            "PodSandboxStatus",
            sandboxes::status(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        self.call(
            "ListPodSandbox",
            sandboxes::list(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        self.call(
            "StreamPodSandboxes",
            sandboxes::stream(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        self.call(
            "CreateContainer",
            create_container::create(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        self.call(
            "StartContainer",
            start_container::start(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        self.call(
            "StopContainer",
            stop_container::stop(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        self.call(
            "RemoveContainer",
            remove_container::remove(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        self.call(
            "ListContainers",
            containers::list(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        self.call(
            "StreamContainers",
            containers::stream(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn get_container_events(
        &self,
        request: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        self.call(
            "GetContainerEvents",
            events::events(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        self.call(
            "StreamContainerStats",
            stats::stream_containers(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        self.call(
            "StreamPodSandboxStats",
            stats::stream_sandboxes(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        self.call(
            "StreamPodSandboxMetrics",
            metrics::stream(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        self.call(
            "ContainerStatus",
            containers::status(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        self.call(
            "UpdateContainerResources",
            update::container(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        self.call(
            "ReopenContainerLog",
            containers::reopen_log(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        self.call(
            "ExecSync",
            exec_sync::exec(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        self.call("Exec", streaming::exec(self.node.clone(), request.into_inner()))
            .await
    }
    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        self.call(
            "Attach",
            streaming::attach(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        self.call(
            "PortForward",
            streaming::port_forward(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        self.call(
            "ContainerStats",
            stats::container(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        self.call(
            "ListContainerStats",
            stats::list_containers(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        self.call(
            "PodSandboxStats",
            stats::sandbox(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        self.call(
            "ListPodSandboxStats",
            stats::list_sandboxes(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        self.call(
            "UpdateRuntimeConfig",
            runtime::update_config(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        self.call("Status", runtime::status(self.node.clone(), request.into_inner()))
            .await
    }
    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        self.call(
            "CheckpointContainer",
            runtime::checkpoint_container(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn checkpoint_pod(&self, request: Request<CheckpointPodRequest>) -> Answer<CheckpointPodResponse> {
        self.call(
            "CheckpointPod",
            runtime::checkpoint_pod(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn restore_pod(&self, request: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        self.call(
            "RestorePod",
            runtime::restore_pod(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn list_metric_descriptors(
        &self,
        request: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        self.call(
            "ListMetricDescriptors",
            metrics::descriptors(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        self.call(
            "ListPodSandboxMetrics",
            metrics::list(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn runtime_config(&self, request: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        self.call(
            "RuntimeConfig",
            runtime::config(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        self.call(
            "UpdatePodSandboxResources",
            update::sandbox(self.node.clone(), request.into_inner()),
        )
        .await
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    type StreamImagesStream = Answers<StreamImagesResponse>;

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        self.call(
            "StreamImages",
            images::stream(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        self.call(
            "ListImages",
            images::list(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        self.call(
            "ImageStatus",
            images::status(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        self.call("PullImage", images::pull(self.node.clone(), request.into_inner()))
            .await
    }
    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        self.call(
            "RemoveImage",
            images::remove(self.node.clone(), request.into_inner()),
        )
        .await
    }
    async fn image_fs_info(&self, request: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        self.call(
            "ImageFsInfo",
            images::fs_info(self.node.clone(), request.into_inner()),
        )
        .await
    }
}
