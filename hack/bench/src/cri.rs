//! `bench cri`: pods through each daemon's CRI socket, and the memory that twenty of them cost.
//!
//! Our daemon and containerd run side by side in this benchmark's namespaces, each with a state of its own and the
//! same image from the same local registry. Each round takes one pod with one container through its life with every
//! daemon in turn; a second pass leaves 50 ms of quiet before each call. Then, one daemon after the other: pulls, whole
//! lives per second with three clients, memory, what probing costs, and how long a killed daemon takes to answer again.

mod daemons;

use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
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
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Milliseconds of quiet before each call in the second pass
    #[arg(long, default_value_t = 50)]
    pub(crate) idle_ms: u64,
    /// Pods that stay while memory and restarts are measured
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) pods: u32,
}

/// Clients that take pods through their lives at the same time, as the CRI suite's benchmark has it.
const CLIENTS: u32 = 3;
/// How often each daemon is killed.
const KILLS: u32 = 5;
/// How often the memory of a single shim is looked at.
const LOOKS: usize = 25;
/// What the containers do, and what the one does whose shim is looked at.
const SLEEPS: &[&str] = &["sleep", "10000"];
const LOGS: &[&str] = &["sh", "-c", "while :; do echo line; sleep 0.1; done"];
/// Exec probes of each pod.
const PROBES: u32 = 5;

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
    let mut bed = Bed::new(std::path::Path::new(&layout))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(&mut bed, options))
}

async fn measure(bed: &mut Bed, options: &Options) -> Result<()> {
    let mut clients = Vec::new();
    for daemon in &bed.daemons {
        let (client, ready) = Client::connect(daemon).await?;
        println!(
            "{}: first answer {:.0} ms after start",
            daemon.name,
            ready.as_secs_f64() * 1e3
        );
        clients.push(client);
    }
    pulls(bed, &clients, options.rounds).await?;
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
            print_row(operation, &named(&clients, row));
        }
    }
    pods_per_second(bed, &clients, options.rounds).await?;
    shim_alone(bed, &clients).await?;
    memory_and_restarts(bed, &clients, options.pods).await
}

fn named(clients: &[Client], row: Vec<Samples>) -> Vec<(String, Samples)> {
    clients.iter().map(|c| c.name.clone()).zip(row).collect()
}

async fn pulls(bed: &Bed, clients: &[Client], rounds: u32) -> Result<()> {
    println!(
        "\npull of {} from the local registry, {rounds} rounds, ms",
        bed.image()
    );
    let mut samples = vec![Samples::default(); clients.len()];
    for round in 0..rounds {
        for (client, samples) in clients.iter().zip(&mut samples) {
            let fail = || format!("{} failed to pull in round {round}", client.name);
            client.remove_image(bed.image()).await.with_context(fail)?;
            samples.push(client.pull(bed.image()).await.with_context(fail)?);
        }
    }
    print_row("PullImage", &named(clients, samples));
    Ok(())
}

/// Lives that the clients of one daemon complete in a second.
async fn pods_per_second(bed: &Bed, clients: &[Client], rounds: u32) -> Result<()> {
    println!("\nwhole lives per second, {CLIENTS} clients with {rounds} pods each");
    for client in clients {
        let lives = async |worker: u32| {
            for round in 0..rounds {
                let name = format!("cycle-{worker}-{round}");
                client.one_life(bed, &name, Duration::ZERO).await?;
            }
            Ok::<(), anyhow::Error>(())
        };
        let begun = Instant::now();
        let (a, b, c) = tokio::join!(Box::pin(lives(0)), Box::pin(lives(1)), Box::pin(lives(2)));
        for done in [a, b, c] {
            done.with_context(|| format!("{} failed with {CLIENTS} clients", client.name))?;
        }
        let rate = f64::from(CLIENTS * rounds) / begun.elapsed().as_secs_f64();
        println!("  {:<12} {rate:.1}", client.name);
    }
    Ok(())
}

/// What one pod's shim takes, by itself, while its container writes ten lines a second.
async fn shim_alone(bed: &Bed, clients: &[Client]) -> Result<()> {
    println!(
        "\nshim alone, its container logging ten lines a second: median and most PSS of {LOOKS} looks, KiB"
    );
    for (daemon, client) in bed.daemons.iter().zip(clients) {
        let (sandbox, ..) = client.start_pod_after(bed, "logs", LOGS, Duration::ZERO).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut looks = Vec::with_capacity(LOOKS);
        for _ in 0..LOOKS {
            looks.push(daemon.pss()?.helper_largest);
            // Not in step with the lines.
            tokio::time::sleep(Duration::from_millis(73)).await;
        }
        looks.sort_unstable();
        println!(
            "  {:<12} {} (most {})",
            client.name,
            looks[LOOKS / 2],
            looks[LOOKS - 1]
        );
        client.end_pod(&sandbox).await?;
    }
    Ok(())
}

async fn memory_and_restarts(bed: &mut Bed, clients: &[Client], pods: u32) -> Result<()> {
    println!(
        "\nwith {pods} pods of one container: PSS in KiB; exec probes, ms; ms from a killed daemon's start to its first \
         answer"
    );
    for (at, client) in clients.iter().enumerate() {
        let (mut sandboxes, mut containers) = (Vec::new(), Vec::new());
        for n in 0..pods {
            let (sandbox, container, _) = client.start_pod(bed, &format!("memory-{n}")).await?;
            sandboxes.push(sandbox);
            containers.push(container);
        }
        let pss = bed.daemons[at].pss()?;
        println!(
            "  {:<12} daemon {}, {} helpers {} (the largest {}), together {}",
            client.name,
            pss.daemon,
            pss.helpers,
            pss.helpers_total,
            pss.helper_largest,
            pss.daemon + pss.helpers_total
        );
        let before = bed.daemons[at].cpu()?;
        print_row(
            "  probe",
            &[(client.name.clone(), client.probe(&containers).await?)],
        );
        let cpu = bed.daemons[at].cpu()?.saturating_sub(before) / (PROBES * pods);
        println!(
            "  {:<12} CPU {:.1} ms a probe",
            client.name,
            cpu.as_secs_f64() * 1e3
        );
        let mut restarts = Samples::default();
        let mut again = None;
        for _ in 0..KILLS {
            bed.daemons[at].crash_and_start()?;
            let (client, ready) = Client::connect(&bed.daemons[at]).await?;
            ensure!(
                client.count_ready().await? == sandboxes.len(),
                "{} has lost pods over a restart",
                client.name
            );
            restarts.push(ready);
            again = Some(client);
        }
        print_row("  restart", &[(client.name.clone(), restarts)]);
        let client = again.context("it was killed at least once")?;
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

    /// How long a pull took.
    async fn pull(&self, image: &str) -> Result<Duration> {
        let request = v1::PullImageRequest {
            image: Some(spec(image)),
            ..Default::default()
        };
        let mut images = self.images.clone();
        Ok(timed(Duration::ZERO, images.pull_image(request)).await?.0)
    }

    /// Fine when it isn't there.
    async fn remove_image(&self, image: &str) -> Result<()> {
        let image = Some(spec(image));
        let request = v1::RemoveImageRequest { image };
        Box::pin(self.images.clone().remove_image(request)).await?;
        Ok(())
    }

    async fn count_ready(&self) -> Result<usize> {
        let request = v1::ListPodSandboxRequest::default();
        let listed = Box::pin(self.runtime.clone().list_pod_sandbox(request)).await?;
        let ready = |pod: &&v1::PodSandbox| pod.state() == v1::PodSandboxState::SandboxReady;
        Ok(listed.get_ref().items.iter().filter(ready).count())
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

    fn container(bed: &Bed, command: &[&str]) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "main".to_owned(),
                attempt: 0,
            }),
            image: Some(spec(bed.image())),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: "main.log".to_owned(),
            ..Default::default()
        }
    }

    async fn start_pod(&self, bed: &Bed, name: &str) -> Result<(String, String, [Duration; 3])> {
        self.start_pod_after(bed, name, SLEEPS, Duration::ZERO).await
    }

    async fn start_pod_after(
        &self,
        bed: &Bed,
        name: &str,
        command: &[&str],
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
            config: Some(Self::container(bed, command)),
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

    /// Probes each container once a second.
    async fn probe(&self, containers: &[String]) -> Result<Samples> {
        let mut samples = Samples::default();
        let mut next = tokio::time::Instant::now();
        for _ in 0..PROBES {
            for container_id in containers {
                let probe = v1::ExecSyncRequest {
                    container_id: container_id.clone(),
                    cmd: vec!["true".to_owned()],
                    timeout: 10,
                };
                samples.push(
                    timed(Duration::ZERO, self.runtime.clone().exec_sync(probe))
                        .await?
                        .0,
                );
                next += Duration::from_secs(1) / u32::try_from(containers.len())?;
                tokio::time::sleep_until(next).await;
            }
        }
        Ok(samples)
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
        let (pod_sandbox_id, container_id, begun) = self.start_pod_after(bed, name, SLEEPS, quiet).await?;
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

fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
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
