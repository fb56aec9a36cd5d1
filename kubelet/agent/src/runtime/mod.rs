//! The CRI daemon, as the kubelet asks it: one function per call, each with a deadline and a name for the metrics.
//!
//! [`Cri`] is cheap to clone; all clones share one connection per socket, which tonic makes again when it breaks. A call
//! that the daemon doesn't answer in time fails with [`CallError`], and is never taken for an answer: whoever asked must
//! look again before it acts ([`observe`]).

pub mod observe;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::{self};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tower::service_fn;

/// The largest answer that is read: lists of a thousand pods fit.
const MAX_ANSWER: usize = 64 << 20;
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long pulling an image may take. The daemon has stricter limits of its own on silence.
const PULL: Duration = Duration::from_secs(3600);

/// Who counts calls.
pub trait CallMetrics: Send + Sync {
    /// A call ended. `operation` is upstream's label value.
    fn called(&self, operation: &'static str, took: Duration, failed: bool);
}

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// gRPC's code.
    pub code: Code,
    /// The daemon's own words, as upstream shows them: `rpc error: code = NotFound desc = ...`.
    pub message: String,
    /// The daemon's words without the code.
    pub description: String,
}

impl CallError {
    /// Whether what was asked for isn't there (any more).
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self {
            code: status.code(),
            message: format!(
                "rpc error: code = {:?} desc = {}",
                status.code(),
                status.message()
            ),
            description: status.message().to_owned(),
        }
    }
}

/// An address that is no Unix socket.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no socket of a CRI daemon: give unix:///path/of.sock")]
pub struct BadEndpoint(pub String);

/// The path of a Unix socket in `unix:///run/x.sock`, or as a bare path.
///
/// # Errors
/// It is neither.
pub fn socket_path(endpoint: &str) -> Result<PathBuf, BadEndpoint> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(BadEndpoint(endpoint.to_owned()))
    }
}

/// The CRI daemon.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    limit: Duration,
    metrics: Arc<dyn CallMetrics>,
}

impl Cri {
    /// A client of the daemon behind a socket, and of the image service behind another or the same one. Doesn't connect
    /// yet. `limit` is `runtimeRequestTimeout`.
    pub fn new(runtime: &Path, images: &Path, limit: Duration, metrics: Arc<dyn CallMetrics>) -> Self {
        let channel = channel(runtime);
        let image_channel = if runtime == images {
            channel.clone()
        } else {
            self::channel(images)
        };
        Self {
            runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER),
            images: ImageServiceClient::new(image_channel).max_decoding_message_size(MAX_ANSWER),
            limit,
            metrics,
        }
    }

    /// Counts and times a call, and ends it at its deadline.
    async fn call<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let began = Instant::now();
        let result = match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CallError::from(status)),
            Err(_) => Err(CallError::from(Status::deadline_exceeded(
                "context deadline exceeded",
            ))),
        };
        self.metrics.called(operation, began.elapsed(), result.is_err());
        result
    }
}

fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    // The address is never resolved: the connector knows the socket.
    Endpoint::from_static("http://cri.invalid")
        .connect_timeout(CONNECT)
        .connect_with_connector_lazy(service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
}

/// A request with a deadline that the daemon sees too, a moment after ours.
fn request<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit + Duration::from_secs(1));
    request
}

/// One function: `name(request) -> answer` of a service, with the usual deadline.
macro_rules! rpc {
    ($(#[$doc:meta])* $service:ident, $name:ident, $operation:literal, $request:ty, $answer:ty) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// The daemon refuses, or doesn't answer in time.
        pub async fn $name(&self, message: $request) -> Result<$answer, CallError> {
            let mut client = self.$service.clone();
            let answer = Box::pin(client.$name(request(message, self.limit)));
            self.call($operation, self.limit, answer).await
        }
    };
}

impl Cri {
    rpc!(
        /// What the daemon is.
        runtime, version, "version", v1::VersionRequest, v1::VersionResponse);
    rpc!(
        /// Whether the daemon and its network are ready, and what its handlers can do.
        runtime, status, "status", v1::StatusRequest, v1::StatusResponse);
    rpc!(
        /// Hands the pod CIDR to the daemon's network.
        runtime, update_runtime_config, "update_runtime_config", v1::UpdateRuntimeConfigRequest, v1::UpdateRuntimeConfigResponse);
    rpc!(
        /// The driver of cgroups that the daemon uses.
        runtime, runtime_config, "runtime_config", v1::RuntimeConfigRequest, v1::RuntimeConfigResponse);
    rpc!(
        /// Ends a sandbox and everything in it.
        runtime, stop_pod_sandbox, "stop_podsandbox", v1::StopPodSandboxRequest, v1::StopPodSandboxResponse);
    rpc!(
        /// Removes a sandbox and everything in it.
        runtime, remove_pod_sandbox, "remove_podsandbox", v1::RemovePodSandboxRequest, v1::RemovePodSandboxResponse);
    rpc!(
        /// One sandbox.
        runtime, pod_sandbox_status, "podsandbox_status", v1::PodSandboxStatusRequest, v1::PodSandboxStatusResponse);
    rpc!(
        /// Sandboxes.
        runtime, list_pod_sandbox, "list_podsandbox", v1::ListPodSandboxRequest, v1::ListPodSandboxResponse);
    rpc!(
        /// Makes a container, not yet started.
        runtime, create_container, "create_container", v1::CreateContainerRequest, v1::CreateContainerResponse);
    rpc!(
        /// Starts a container.
        runtime, start_container, "start_container", v1::StartContainerRequest, v1::StartContainerResponse);
    rpc!(
        /// Removes a container.
        runtime, remove_container, "remove_container", v1::RemoveContainerRequest, v1::RemoveContainerResponse);
    rpc!(
        /// Containers.
        runtime, list_containers, "list_containers", v1::ListContainersRequest, v1::ListContainersResponse);
    rpc!(
        /// One container.
        runtime, container_status, "container_status", v1::ContainerStatusRequest, v1::ContainerStatusResponse);
    rpc!(
        /// Changes the limits of a container.
        runtime, update_container_resources, "update_container", v1::UpdateContainerResourcesRequest, v1::UpdateContainerResourcesResponse);
    rpc!(
        /// Changes what a sandbox is accounted with.
        runtime, update_pod_sandbox_resources, "update_podsandbox_resources", v1::UpdatePodSandboxResourcesRequest, v1::UpdatePodSandboxResourcesResponse);
    rpc!(
        /// Where to go on for a command in a container.
        runtime, exec, "exec", v1::ExecRequest, v1::ExecResponse);
    rpc!(
        /// Where to go on for a container's own streams.
        runtime, attach, "attach", v1::AttachRequest, v1::AttachResponse);
    rpc!(
        /// Where to go on for a pod's ports.
        runtime, port_forward, "port_forward", v1::PortForwardRequest, v1::PortForwardResponse);
    rpc!(
        /// Makes the daemon open a container's log anew.
        runtime, reopen_container_log, "reopen_container_log", v1::ReopenContainerLogRequest, v1::ReopenContainerLogResponse);
    rpc!(
        /// What containers use.
        runtime, list_container_stats, "list_container_stats", v1::ListContainerStatsRequest, v1::ListContainerStatsResponse);
    rpc!(
        /// What pods use.
        runtime, list_pod_sandbox_stats, "list_podsandbox_stats", v1::ListPodSandboxStatsRequest, v1::ListPodSandboxStatsResponse);
    rpc!(
        /// Writes a container's state to a file.
        runtime, checkpoint_container, "checkpoint_container", v1::CheckpointContainerRequest, v1::CheckpointContainerResponse);
    rpc!(
        /// What the runtime's own metrics are.
        runtime, list_metric_descriptors, "list_metric_descriptors", v1::ListMetricDescriptorsRequest, v1::ListMetricDescriptorsResponse);
    rpc!(
        /// The runtime's own metrics of pods.
        runtime, list_pod_sandbox_metrics, "list_podsandbox_metrics", v1::ListPodSandboxMetricsRequest, v1::ListPodSandboxMetricsResponse);
    rpc!(
        /// The images that are there.
        images, list_images, "list_images", v1::ListImagesRequest, v1::ListImagesResponse);
    rpc!(
        /// One image.
        images, image_status, "image_status", v1::ImageStatusRequest, v1::ImageStatusResponse);
    rpc!(
        /// Removes an image.
        images, remove_image, "remove_image", v1::RemoveImageRequest, v1::RemoveImageResponse);
    rpc!(
        /// The file systems that images are on.
        images, image_fs_info, "image_fs_info", v1::ImageFsInfoRequest, v1::ImageFsInfoResponse);

    /// Makes a sandbox. Twice the usual time: the pod's network is made in it.
    ///
    /// # Errors
    /// The daemon refuses, or doesn't answer in time.
    pub async fn run_pod_sandbox(&self, message: v1::RunPodSandboxRequest) -> Result<String, CallError> {
        let limit = self.limit * 2;
        let mut client = self.runtime.clone();
        let answer = Box::pin(client.run_pod_sandbox(request(message, limit)));
        let answer = self.call("run_podsandbox", limit, answer).await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Ends a container: its stop signal, and SIGKILL after `grace`.
    ///
    /// # Errors
    /// The daemon refuses, or doesn't answer in time.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CallError> {
        let limit = self.limit + grace;
        let message = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        let mut client = self.runtime.clone();
        let answer = Box::pin(client.stop_container(request(message, limit)));
        self.call("stop_container", limit, answer).await.map(drop)
    }

    /// Runs a command in a container and waits for its end.
    ///
    /// # Errors
    /// The daemon refuses, or doesn't answer in time; [`Code::DeadlineExceeded`] when the command took too long.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<v1::ExecSyncResponse, CallError> {
        let limit = self.limit + timeout;
        let message = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let mut client = self.runtime.clone();
        let answer = Box::pin(client.exec_sync(request(message, limit)));
        self.call("exec_sync", limit, answer).await
    }

    /// Pulls an image; its ID.
    ///
    /// # Errors
    /// The daemon refuses, or doesn't answer in time.
    pub async fn pull_image(&self, message: v1::PullImageRequest) -> Result<String, CallError> {
        let mut client = self.images.clone();
        let answer = Box::pin(client.pull_image(request(message, PULL)));
        let answer = self.call("pull_image", PULL, answer).await?;
        Ok(answer.image_ref)
    }

    /// The stream of what happens to containers. A daemon that has none answers [`Code::Unimplemented`].
    ///
    /// # Errors
    /// The daemon refuses, or doesn't answer in time.
    pub async fn container_events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>, CallError> {
        let mut client = self.runtime.clone();
        let answer = Box::pin(client.get_container_events(Request::new(v1::GetEventsRequest {})));
        self.call("container_events", self.limit, answer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        let path = Path::new("/run/x.sock");
        assert_eq!(socket_path("unix:///run/x.sock").expect("a URL"), path);
        assert_eq!(socket_path("/run/x.sock").expect("a path"), path);
        let refused = socket_path("tcp://127.0.0.1:1")
            .expect_err("no socket")
            .to_string();
        assert!(refused.contains("`tcp://127.0.0.1:1`"), "{refused}");
    }

    #[test]
    fn errors_read_as_users_know_them() {
        let error = CallError::from(Status::not_found("no such pod"));
        assert_eq!(error.to_string(), "rpc error: code = NotFound desc = no such pod");
        assert!(error.is_not_found());
    }
}
