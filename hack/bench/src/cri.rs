//! `bench cri`: pods through each daemon's CRI socket, and the memory that twenty of them cost.
//!
//! Our daemon and containerd run side by side in this benchmark's namespaces, each with a state of its own and the
//! same image from the same local registry. Each round takes one pod with one container through its life with every
//! daemon in turn; a second pass leaves 50 ms of quiet before each call.

mod daemons;

use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use cri_api::v1;
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

use crate::report::{Samples, print_row};
use daemons::{Bed, Daemon};

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds of each pass
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Milliseconds of quiet before each call in the second pass
    #[arg(long, default_value_t = 50)]
    idle_ms: u64,
    /// Pods that stay while memory is measured
    #[arg(long, default_value_t = 20)]
    pods: u32,
}

const OPERATIONS: [&str; 9] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "ContainerStatus",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

/// Measures and prints.
pub(crate) fn run(options: &Options) -> Result<()> {
    let layout =
        std::env::var_os(crate::LAYOUT).context("the image layout is built before the namespaces")?;
    let bed = Bed::new(std::path::Path::new(&layout))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(&bed, options))
}

async fn measure(bed: &Bed, options: &Options) -> Result<()> {
    let mut clients = Vec::new();
    for daemon in &bed.daemons {
        let (client, ready) = Client::connect(daemon).await?;
        println!(
            "{}: first answer {:.0} ms after start",
            daemon.name,
            ready.as_secs_f64() * 1e3
        );
        client
            .pull(bed.image())
            .await
            .with_context(|| format!("{} failed to pull", daemon.name))?;
        clients.push(client);
    }
    for (label, quiet) in [("hot", 0), ("idle", options.idle_ms)] {
        println!("\n{label}: {} rounds, ms", options.rounds);
        let mut samples = vec![vec![Samples::default(); clients.len()]; OPERATIONS.len()];
        for round in 0..options.rounds {
            for (c, client) in clients.iter().enumerate() {
                let times = client
                    .one_life(bed, &format!("{label}-{round}"), Duration::from_millis(quiet))
                    .await
                    .with_context(|| format!("{} failed in round {round}", client.name))?;
                for (operation, time) in times.into_iter().enumerate() {
                    samples[operation][c].push(time);
                }
            }
        }
        for (operation, row) in OPERATIONS.iter().zip(samples) {
            let named: Vec<_> = clients.iter().map(|c| c.name.clone()).zip(row).collect();
            print_row(operation, &named);
        }
    }
    memory(bed, &clients, options.pods).await
}

async fn memory(bed: &Bed, clients: &[Client], pods: u32) -> Result<()> {
    println!("\nmemory with {pods} pods of one container, PSS in KiB");
    for (client, daemon) in clients.iter().zip(&bed.daemons) {
        let mut sandboxes = Vec::new();
        for n in 0..pods {
            sandboxes.push(client.start_pod(bed, &format!("memory-{n}")).await?.0);
        }
        let pss = daemon.pss()?;
        println!(
            "  {:<12} daemon {}, {} helpers {} (the largest {})",
            client.name, pss.daemon, pss.helpers, pss.helpers_total, pss.helper_largest
        );
        for sandbox in sandboxes {
            client.end_pod(&sandbox).await?;
        }
    }
    Ok(())
}

struct Client {
    name: String,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Client {
    /// Connects as soon as the daemon answers, and says how long after its start that was.
    async fn connect(daemon: &Daemon) -> Result<(Self, Duration)> {
        let endpoint = format!("unix://{}", daemon.socket.display());
        let mut last = None;
        for _ in 0..4000 {
            let channel = tonic::transport::Endpoint::from_shared(endpoint.clone())?
                .connect()
                .await;
            match channel {
                Ok(channel) => {
                    let mut runtime = RuntimeServiceClient::new(channel.clone());
                    match Box::pin(runtime.version(v1::VersionRequest::default())).await {
                        Ok(_) => {
                            let images = ImageServiceClient::new(channel);
                            let client = Self {
                                name: daemon.name.clone(),
                                runtime,
                                images,
                            };
                            return Ok((client, daemon.begun.elapsed()));
                        }
                        Err(status) => last = Some(status.to_string()),
                    }
                }
                Err(error) => last = Some(error.to_string()),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::bail!(
            "{} did not answer in 20 s: {}",
            daemon.name,
            last.unwrap_or_default()
        )
    }

    async fn pull(&self, image: &str) -> Result<()> {
        let image = Some(v1::ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        });
        let begun = Instant::now();
        self.images
            .clone()
            .pull_image(v1::PullImageRequest {
                image,
                ..Default::default()
            })
            .await?;
        println!(
            "{}: image pulled in {:.0} ms",
            self.name,
            begun.elapsed().as_secs_f64() * 1e3
        );
        Ok(())
    }

    fn pod(&self, bed: &Bed, name: &str) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{}-{name}", self.name),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            log_directory: bed.log_dir(&self.name, name),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: bed.cgroup_parent(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container(bed: &Bed) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "main".to_owned(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: bed.image().to_owned(),
                ..Default::default()
            }),
            command: ["sleep", "10000"].map(str::to_owned).to_vec(),
            log_path: "main.log".to_owned(),
            ..Default::default()
        }
    }

    async fn start_pod(&self, bed: &Bed, name: &str) -> Result<(String, String, [Duration; 3])> {
        self.start_pod_after(bed, name, Duration::ZERO).await
    }

    async fn start_pod_after(
        &self,
        bed: &Bed,
        name: &str,
        quiet: Duration,
    ) -> Result<(String, String, [Duration; 3])> {
        let mut rpc = self.runtime.clone();
        let config = Some(self.pod(bed, name));
        let request = v1::RunPodSandboxRequest {
            config: config.clone(),
            ..Default::default()
        };
        let (run, answer) = timed(quiet, rpc.run_pod_sandbox(request)).await?;
        let sandbox = answer.pod_sandbox_id;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(Self::container(bed)),
            sandbox_config: config,
        };
        let (create, answer) = timed(quiet, rpc.create_container(request)).await?;
        let container = answer.container_id;
        let request = v1::StartContainerRequest {
            container_id: container.clone(),
        };
        let (start, _) = timed(quiet, rpc.start_container(request)).await?;
        Ok((sandbox, container, [run, create, start]))
    }

    async fn end_pod(&self, sandbox: &str) -> Result<()> {
        let mut rpc = self.runtime.clone();
        let pod_sandbox_id = sandbox.to_owned();
        rpc.stop_pod_sandbox(v1::StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        })
        .await?;
        rpc.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id })
            .await?;
        Ok(())
    }

    /// One pod with one container through all of [`OPERATIONS`].
    async fn one_life(&self, bed: &Bed, name: &str, quiet: Duration) -> Result<Vec<Duration>> {
        let (pod_sandbox_id, container_id, begun) = self.start_pod_after(bed, name, quiet).await?;
        let mut times = begun.to_vec();
        let mut rpc = self.runtime.clone();
        let request = v1::ExecSyncRequest {
            container_id: container_id.clone(),
            cmd: vec!["true".to_owned()],
            timeout: 10,
        };
        times.push(timed(quiet, rpc.exec_sync(request)).await?.0);
        let request = v1::ContainerStatusRequest {
            container_id: container_id.clone(),
            verbose: false,
        };
        times.push(timed(quiet, rpc.container_status(request)).await?.0);
        let request = v1::StopContainerRequest {
            container_id: container_id.clone(),
            timeout: 0,
        };
        times.push(timed(quiet, rpc.stop_container(request)).await?.0);
        times.push(
            timed(
                quiet,
                rpc.remove_container(v1::RemoveContainerRequest { container_id }),
            )
            .await?
            .0,
        );
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        times.push(timed(quiet, rpc.stop_pod_sandbox(request)).await?.0);
        times.push(
            timed(
                quiet,
                rpc.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id }),
            )
            .await?
            .0,
        );
        Ok(times)
    }
}

type Timed<'a, T> = Pin<Box<dyn Future<Output = Result<(Duration, T)>> + 'a>>;

/// Times a call after some quiet. Boxed at once: the client's futures are tens of kilobytes each.
fn timed<'a, T>(
    quiet: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>> + 'a,
) -> Timed<'a, T> {
    Box::pin(async move {
        tokio::time::sleep(quiet).await;
        let begun = Instant::now();
        let answer = call.await?;
        Ok((begun.elapsed(), answer.into_inner()))
    })
}
