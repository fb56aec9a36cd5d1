//! The daemon's client: what the workload and the audit ask for, each with a limit.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::*;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// The longest that a call may take, in an emulated machine that others slow down, too.
const LIMIT: Duration = Duration::from_secs(120);
/// How often a container's state is looked at until it has ended, [`PAUSE`] apart.
const LOOKS: u32 = 600;
const PAUSE: Duration = Duration::from_millis(100);

/// A connection.
#[derive(Clone)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

async fn answer<T>(what: &str, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
    let answer = tokio::time::timeout(LIMIT, call)
        .await
        .with_context(|| format!("{what}: no answer within {LIMIT:?}"))?;
    match answer {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => bail!("{what}: {:?}: {}", status.code(), status.message()),
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}

/// A pod's configuration; every third has a port of the node.
fn pod(name: &str, number: u64) -> PodSandboxConfig {
    let mapping = PortMapping {
        protocol: Protocol::Tcp as i32,
        container_port: 80,
        host_port: 20_000 + i32::try_from(number % 10_000).unwrap_or(0),
        ..Default::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: format!("/var/log/pods/{name}"),
        port_mappings: if number.is_multiple_of(3) {
            vec![mapping]
        } else {
            Vec::new()
        },
        linux: Some(LinuxPodSandboxConfig::default()),
        ..Default::default()
    }
}

impl Cri {
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = endpoint.connect().await?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20),
            images: ImageServiceClient::new(channel).max_decoding_message_size(16 << 20),
        })
    }

    pub(crate) async fn version(&mut self) -> Result<()> {
        answer(
            "Version",
            Box::pin(self.runtime.version(VersionRequest::default())),
        )
        .await?;
        Ok(())
    }

    pub(crate) async fn pull(&mut self, image: &str) -> Result<()> {
        let request = PullImageRequest {
            image: Some(spec(image)),
            ..Default::default()
        };
        answer(
            &format!("PullImage of {image}"),
            Box::pin(self.images.pull_image(request)),
        )
        .await?;
        Ok(())
    }

    pub(crate) async fn remove_image(&mut self, image: &str) -> Result<()> {
        let request = RemoveImageRequest {
            image: Some(spec(image)),
        };
        let what = format!("RemoveImage of {image}");
        answer(&what, Box::pin(self.images.remove_image(request))).await?;
        Ok(())
    }

    /// The names of all images.
    pub(crate) async fn image_names(&mut self) -> Result<Vec<String>> {
        let request = ListImagesRequest::default();
        let images = answer("ListImages", Box::pin(self.images.list_images(request)))
            .await?
            .images;
        Ok(images.into_iter().flat_map(|image| image.repo_tags).collect())
    }

    pub(crate) async fn run_pod(&mut self, name: &str, number: u64) -> Result<String> {
        let request = RunPodSandboxRequest {
            config: Some(pod(name, number)),
            runtime_handler: String::new(),
        };
        let what = format!("RunPodSandbox of {name}");
        let sandbox = answer(&what, Box::pin(self.runtime.run_pod_sandbox(request))).await?;
        Ok(sandbox.pod_sandbox_id)
    }

    /// Makes a container of `pod` (the one named `pod_name`) that runs a shell script.
    pub(crate) async fn create(
        &mut self,
        (pod_id, pod_name): (&str, &str),
        name: &str,
        image: &str,
        script: &str,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.to_owned(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata {
                    name: name.to_owned(),
                    attempt: 0,
                }),
                image: Some(spec(image)),
                command: ["sh", "-c", script].map(str::to_owned).to_vec(),
                log_path: format!("{name}.log"),
                linux: Some(LinuxContainerConfig::default()),
                ..Default::default()
            }),
            sandbox_config: Some(pod(pod_name, 1)),
        };
        let what = format!("CreateContainer of {image}");
        let container = answer(&what, Box::pin(self.runtime.create_container(request))).await?;
        Ok(container.container_id)
    }

    pub(crate) async fn start(&mut self, container: &str) -> Result<()> {
        let request = StartContainerRequest {
            container_id: container.to_owned(),
        };
        answer("StartContainer", Box::pin(self.runtime.start_container(request))).await?;
        Ok(())
    }

    /// Waits for a container's end: its exit code.
    pub(crate) async fn ended(&mut self, container: &str) -> Result<i32> {
        for _ in 0..LOOKS {
            let request = ContainerStatusRequest {
                container_id: container.to_owned(),
                verbose: false,
            };
            let status = answer(
                "ContainerStatus",
                Box::pin(self.runtime.container_status(request)),
            )
            .await?
            .status;
            let status = status.context("ContainerStatus: no status")?;
            if status.state == ContainerState::ContainerExited as i32 {
                return Ok(status.exit_code);
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("container {container} did not end")
    }

    pub(crate) async fn remove_container(&mut self, container: &str) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: container.to_owned(),
        };
        answer(
            "RemoveContainer",
            Box::pin(self.runtime.remove_container(request)),
        )
        .await?;
        Ok(())
    }

    /// The IDs of all pods.
    pub(crate) async fn pods(&mut self) -> Result<Vec<String>> {
        let request = ListPodSandboxRequest::default();
        let pods = answer("ListPodSandbox", Box::pin(self.runtime.list_pod_sandbox(request)))
            .await?
            .items;
        Ok(pods.into_iter().map(|pod| pod.id).collect())
    }

    pub(crate) async fn remove_pod(&mut self, pod: &str) -> Result<()> {
        let pod_sandbox_id = pod.to_owned();
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        answer("StopPodSandbox", Box::pin(self.runtime.stop_pod_sandbox(stop))).await?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id };
        answer(
            "RemovePodSandbox",
            Box::pin(self.runtime.remove_pod_sandbox(remove)),
        )
        .await?;
        Ok(())
    }

    /// Stops and removes every pod, as a kubelet does with those of which nobody told it.
    pub(crate) async fn remove_all_pods(&mut self) -> Result<()> {
        for pod in self.pods().await? {
            self.remove_pod(&pod).await?;
        }
        let left = self.pods().await?;
        ensure!(left.is_empty(), "pods stay after their removal: {left:?}");
        let containers = ListContainersRequest::default();
        let containers = answer(
            "ListContainers",
            Box::pin(self.runtime.list_containers(containers)),
        )
        .await?
        .containers;
        ensure!(
            containers.is_empty(),
            "containers stay after their pods' removal: {containers:?}"
        );
        Ok(())
    }
}
