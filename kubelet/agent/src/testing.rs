//! A CRI daemon in memory, behind a real socket: for tests of what the kubelet asks and in which order.
//!
//! It keeps sandboxes, containers and images as CRI describes them, hands out events, and can be told to fail or to take
//! its time. Real daemons are asked in the end-to-end tests; this one shows what they can't be made to do.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cri_api::v1;
use cri_api::v1::image_service_server::{ImageService, ImageServiceServer};
use cri_api::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use futures_util::{Stream, StreamExt};
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::{Request, Response, Status};

use crate::runtime::observe::labels;
use crate::runtime::{CallMetrics, Cri};

/// Counts nothing.
pub(crate) struct Uncounted;

impl CallMetrics for Uncounted {
    fn called(&self, _: &'static str, _: Duration, _: bool) {}
}

/// What the daemon holds.
#[derive(Default)]
pub(crate) struct Held {
    next: u64,
    clock: i64,
    pub(crate) sandboxes: BTreeMap<String, v1::PodSandboxStatus>,
    pub(crate) containers: BTreeMap<String, (String, v1::ContainerStatus)>,
    pub(crate) images: BTreeSet<String>,
    /// What was asked, in order: `operation subject`.
    pub(crate) asked: Vec<String>,
    /// Operations that fail, each as often as it says.
    pub(crate) failures: BTreeMap<&'static str, (u32, Status)>,
    /// How long operations take.
    pub(crate) delays: BTreeMap<&'static str, Duration>,
}

/// The daemon.
#[derive(Clone)]
pub(crate) struct FakeCri {
    held: Arc<Mutex<Held>>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
}

/// A running daemon; it ends with it.
pub(crate) struct Running {
    pub(crate) fake: FakeCri,
    pub(crate) cri: Cri,
    _folder: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeCri {
    /// Starts a daemon on a socket of its own.
    pub(crate) fn start() -> Running {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("cri.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let fake = Self {
            held: Arc::default(),
            events: broadcast::channel(1024).0,
        };
        let service = fake.clone();
        let task = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(RuntimeServiceServer::new(service.clone()))
                .add_service(ImageServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .expect("it serves");
        });
        let cri = Cri::new(&socket, &socket, Duration::from_secs(20), Arc::new(Uncounted));
        Running {
            fake,
            cri,
            _folder: folder,
            task,
        }
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("nobody panicked")
    }

    /// Makes an operation fail so many times.
    pub(crate) fn fail(&self, operation: &'static str, times: u32, status: Status) {
        self.held().failures.insert(operation, (times, status));
    }

    /// Ends a container by itself.
    pub(crate) fn exit(&self, name: &str, code: i32) {
        let id = {
            let mut held = self.held();
            let now = held.tick();
            let running = held.containers.iter_mut().find(|(_, (_, status))| {
                status.state() == v1::ContainerState::ContainerRunning
                    && status
                        .metadata
                        .as_ref()
                        .is_some_and(|metadata| metadata.name == name)
            });
            let (id, (_, status)) = running.expect("a running container");
            status.set_state(v1::ContainerState::ContainerExited);
            status.exit_code = code;
            status.finished_at = now;
            status.reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
            id.clone()
        };
        self.tell(&id, v1::ContainerEventType::ContainerStoppedEvent);
    }

    /// The names of the containers that run, sorted.
    pub(crate) fn running(&self) -> Vec<String> {
        let held = self.held();
        let running = held
            .containers
            .values()
            .filter(|(_, status)| status.state() == v1::ContainerState::ContainerRunning);
        let mut names: Vec<_> = running
            .filter_map(|(_, status)| Some(status.metadata.as_ref()?.name.clone()))
            .collect();
        names.sort();
        names
    }

    fn tell(&self, container: &str, kind: v1::ContainerEventType) {
        let held = self.held();
        let sandbox = held
            .containers
            .get(container)
            .and_then(|(sandbox, _)| held.sandboxes.get(sandbox))
            .or_else(|| held.sandboxes.get(container));
        let event = v1::ContainerEventResponse {
            container_id: container.to_owned(),
            container_event_type: kind.into(),
            pod_sandbox_status: sandbox.cloned(),
            ..Default::default()
        };
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    /// Notes what is asked, waits and fails as told.
    async fn asked(&self, operation: &'static str, subject: &str) -> Result<(), Status> {
        let (delay, failure) = {
            let mut held = self.held();
            held.asked.push(format!("{operation} {subject}"));
            let failure = held.failures.get_mut(operation).and_then(|(times, status)| {
                let fails = *times > 0;
                *times = times.saturating_sub(1);
                fails.then(|| status.clone())
            });
            (held.delays.get(operation).copied(), failure)
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        failure.map_or(Ok(()), Err)
    }
}

impl Held {
    fn tick(&mut self) -> i64 {
        self.clock += 1_000_000;
        self.clock
    }

    fn id(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}-{}", self.next)
    }
}

fn selected(
    wanted: &std::collections::HashMap<String, String>,
    labels: &std::collections::HashMap<String, String>,
) -> bool {
    let mut wanted = wanted.iter();
    wanted.all(|(key, value)| labels.get(key) == Some(value))
}

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn absent<T>(what: &str) -> Answer<T> {
    Err(Status::not_found(format!("{what} isn't there")))
}

/// Calls that this daemon doesn't have, in the form that `async_trait` gives the others.
macro_rules! unimplemented_rpcs {
    ($($name:ident($request:ty) -> $answer:ty;)*) => {
        $(fn $name<'life0, 'async_trait>(
            &'life0 self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<$answer>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[tonic::async_trait]
impl RuntimeService for FakeCri {
    type StreamPodSandboxesStream = BoxStream<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = BoxStream<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = BoxStream<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = BoxStream<v1::StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = BoxStream<v1::ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = BoxStream<v1::StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            runtime_name: "fake".to_owned(),
            runtime_version: "1".to_owned(),
            runtime_api_version: "v1".to_owned(),
            version: "0.1.0".to_owned(),
        }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        self.asked("status", "").await?;
        let condition = |name: &str| v1::RuntimeCondition {
            r#type: name.to_owned(),
            status: true,
            ..Default::default()
        };
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
            }),
            ..Default::default()
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let metadata = config.metadata.unwrap_or_default();
        self.asked("run_pod_sandbox", &metadata.name).await?;
        let id = {
            let mut held = self.held();
            let id = held.id("sandbox");
            let created_at = held.tick();
            let ip = format!("10.1.0.{}", held.next);
            let status = v1::PodSandboxStatus {
                id: id.clone(),
                metadata: Some(metadata),
                state: v1::PodSandboxState::SandboxReady.into(),
                created_at,
                network: Some(v1::PodSandboxNetworkStatus {
                    ip,
                    additional_ips: Vec::new(),
                }),
                labels: config.labels,
                annotations: config.annotations,
                runtime_handler: request.runtime_handler,
                ..Default::default()
            };
            held.sandboxes.insert(id.clone(), status);
            id
        };
        self.tell(&id, v1::ContainerEventType::ContainerStartedEvent);
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.asked("stop_pod_sandbox", &id).await?;
        {
            let mut held = self.held();
            let now = held.tick();
            if let Some(sandbox) = held.sandboxes.get_mut(&id) {
                sandbox.set_state(v1::PodSandboxState::SandboxNotready);
            }
            for (of, status) in held.containers.values_mut() {
                if *of == id && status.state() == v1::ContainerState::ContainerRunning {
                    status.set_state(v1::ContainerState::ContainerExited);
                    status.exit_code = 137;
                    status.finished_at = now;
                }
            }
        }
        self.tell(&id, v1::ContainerEventType::ContainerStoppedEvent);
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.asked("remove_pod_sandbox", &id).await?;
        let mut held = self.held();
        held.sandboxes.remove(&id);
        held.containers.retain(|_, (of, _)| *of != id);
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.asked("pod_sandbox_status", &id).await?;
        match self.held().sandboxes.get(&id) {
            Some(status) => Ok(Response::new(v1::PodSandboxStatusResponse {
                status: Some(status.clone()),
                ..Default::default()
            })),
            None => absent("the sandbox"),
        }
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        self.asked("list_pod_sandbox", "").await?;
        let filter = request.into_inner().filter.unwrap_or_default();
        let held = self.held();
        let found = held
            .sandboxes
            .values()
            .filter(|sandbox| selected(&filter.label_selector, &sandbox.labels));
        let items = found.map(|status| v1::PodSandbox {
            id: status.id.clone(),
            metadata: status.metadata.clone(),
            state: status.state,
            created_at: status.created_at,
            labels: status.labels.clone(),
            annotations: status.annotations.clone(),
            runtime_handler: status.runtime_handler.clone(),
        });
        Ok(Response::new(v1::ListPodSandboxResponse {
            items: items.collect(),
        }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let metadata = config.metadata.unwrap_or_default();
        self.asked("create_container", &metadata.name).await?;
        let id = {
            let mut held = self.held();
            if !held.sandboxes.contains_key(&request.pod_sandbox_id) {
                return absent("the sandbox");
            }
            let id = held.id("container");
            let created_at = held.tick();
            let status = v1::ContainerStatus {
                id: id.clone(),
                metadata: Some(metadata),
                state: v1::ContainerState::ContainerCreated.into(),
                created_at,
                image: config.image,
                image_ref: "sha256:00".to_owned(),
                labels: config.labels,
                annotations: config.annotations,
                mounts: config.mounts,
                ..Default::default()
            };
            held.containers
                .insert(id.clone(), (request.pod_sandbox_id, status));
            id
        };
        self.tell(&id, v1::ContainerEventType::ContainerCreatedEvent);
        Ok(Response::new(v1::CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let name = self
            .held()
            .containers
            .get(&id)
            .and_then(|(_, status)| Some(status.metadata.as_ref()?.name.clone()));
        self.asked("start_container", &name.unwrap_or_default()).await?;
        {
            let mut held = self.held();
            let now = held.tick();
            let Some((_, status)) = held.containers.get_mut(&id) else {
                return absent("the container");
            };
            status.set_state(v1::ContainerState::ContainerRunning);
            status.started_at = now;
        }
        self.tell(&id, v1::ContainerEventType::ContainerStartedEvent);
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        let id = request.container_id;
        let name = self
            .held()
            .containers
            .get(&id)
            .and_then(|(_, status)| Some(status.metadata.as_ref()?.name.clone()));
        let subject = format!("{} {}", name.unwrap_or_default(), request.timeout);
        self.asked("stop_container", &subject).await?;
        {
            let mut held = self.held();
            let now = held.tick();
            if let Some((_, status)) = held.containers.get_mut(&id)
                && status.state() != v1::ContainerState::ContainerExited
            {
                status.set_state(v1::ContainerState::ContainerExited);
                status.exit_code = 143;
                status.finished_at = now;
                status.reason = "Error".to_owned();
            }
        }
        self.tell(&id, v1::ContainerEventType::ContainerStoppedEvent);
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.asked("remove_container", &id).await?;
        self.held().containers.remove(&id);
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        self.asked("list_containers", "").await?;
        let filter = request.into_inner().filter.unwrap_or_default();
        let held = self.held();
        let found = held
            .containers
            .values()
            .filter(|(_, status)| selected(&filter.label_selector, &status.labels));
        let containers = found.map(|(sandbox, status)| v1::Container {
            id: status.id.clone(),
            pod_sandbox_id: sandbox.clone(),
            metadata: status.metadata.clone(),
            image: status.image.clone(),
            image_ref: status.image_ref.clone(),
            state: status.state,
            created_at: status.created_at,
            labels: status.labels.clone(),
            annotations: status.annotations.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ListContainersResponse {
            containers: containers.collect(),
        }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        self.asked("container_status", &id).await?;
        match self.held().containers.get(&id) {
            Some((_, status)) => Ok(Response::new(v1::ContainerStatusResponse {
                status: Some(status.clone()),
                ..Default::default()
            })),
            None => absent("the container"),
        }
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        self.asked("exec_sync", &request.cmd.join(" ")).await?;
        Ok(Response::new(v1::ExecSyncResponse::default()))
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        self.asked("get_container_events", "").await?;
        let stream = BroadcastStream::new(self.events.subscribe());
        let stream = stream.map(|event| event.map_err(|_| Status::data_loss("too slow")));
        Ok(Response::new(Box::pin(stream)))
    }

    unimplemented_rpcs! {
        stream_pod_sandboxes(v1::StreamPodSandboxesRequest) -> Self::StreamPodSandboxesStream;
        stream_containers(v1::StreamContainersRequest) -> Self::StreamContainersStream;
        stream_container_stats(v1::StreamContainerStatsRequest) -> Self::StreamContainerStatsStream;
        stream_pod_sandbox_stats(v1::StreamPodSandboxStatsRequest) -> Self::StreamPodSandboxStatsStream;
        stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest) -> Self::StreamPodSandboxMetricsStream;
        update_container_resources(v1::UpdateContainerResourcesRequest) -> v1::UpdateContainerResourcesResponse;
        update_pod_sandbox_resources(v1::UpdatePodSandboxResourcesRequest) -> v1::UpdatePodSandboxResourcesResponse;
        reopen_container_log(v1::ReopenContainerLogRequest) -> v1::ReopenContainerLogResponse;
        exec(v1::ExecRequest) -> v1::ExecResponse;
        attach(v1::AttachRequest) -> v1::AttachResponse;
        port_forward(v1::PortForwardRequest) -> v1::PortForwardResponse;
        container_stats(v1::ContainerStatsRequest) -> v1::ContainerStatsResponse;
        list_container_stats(v1::ListContainerStatsRequest) -> v1::ListContainerStatsResponse;
        pod_sandbox_stats(v1::PodSandboxStatsRequest) -> v1::PodSandboxStatsResponse;
        list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest) -> v1::ListPodSandboxStatsResponse;
        update_runtime_config(v1::UpdateRuntimeConfigRequest) -> v1::UpdateRuntimeConfigResponse;
        checkpoint_container(v1::CheckpointContainerRequest) -> v1::CheckpointContainerResponse;
        checkpoint_pod(v1::CheckpointPodRequest) -> v1::CheckpointPodResponse;
        restore_pod(v1::RestorePodRequest) -> v1::RestorePodResponse;
        list_metric_descriptors(v1::ListMetricDescriptorsRequest) -> v1::ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest) -> v1::ListPodSandboxMetricsResponse;
        runtime_config(v1::RuntimeConfigRequest) -> v1::RuntimeConfigResponse;
    }
}

#[tonic::async_trait]
impl ImageService for FakeCri {
    type StreamImagesStream = BoxStream<v1::StreamImagesResponse>;

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        self.asked("image_status", &name).await?;
        let known = self.held().images.contains(&name) || name.starts_with("sha256:");
        let image = known.then(|| v1::Image {
            id: "sha256:00".to_owned(),
            size: 7,
            ..Default::default()
        });
        Ok(Response::new(v1::ImageStatusResponse {
            image,
            ..Default::default()
        }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let name = request.image.unwrap_or_default().image;
        let who = request.auth.map(|auth| auth.username).unwrap_or_default();
        self.asked("pull_image", format!("{name} {who}").trim_end())
            .await?;
        self.held().images.insert(name);
        Ok(Response::new(v1::PullImageResponse {
            image_ref: "sha256:00".to_owned(),
        }))
    }

    unimplemented_rpcs! {
        list_images(v1::ListImagesRequest) -> v1::ListImagesResponse;
        stream_images(v1::StreamImagesRequest) -> Self::StreamImagesStream;
        remove_image(v1::RemoveImageRequest) -> v1::RemoveImageResponse;
        image_fs_info(v1::ImageFsInfoRequest) -> v1::ImageFsInfoResponse;
    }
}

/// The labels of a pod as the kubelet gives them.
pub(crate) fn pod_labels(uid: &str) -> std::collections::HashMap<String, String> {
    [
        (labels::POD_UID.to_owned(), uid.to_owned()),
        (labels::POD_NAMESPACE.to_owned(), "default".to_owned()),
        (labels::POD_NAME.to_owned(), uid.to_owned()),
    ]
    .into()
}
