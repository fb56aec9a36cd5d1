//! A CRI client over the real socket, for what crictl has no command for, and for callers that don't wait.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::*;
use tests_harness::Node;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

/// The longest that a call may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The image of containers that are made here.
pub(crate) const IMAGE: &str = "orlop.test/busybox:1";

/// A connection of its own. Dropping it cuts the connection, whatever is under way.
pub(crate) struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// What calls are made with.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
}

/// How a caller that doesn't wait for its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It cancels the call, and keeps the connection.
    Cancels,
    /// Its connection is gone.
    HangsUp,
    /// The time that it allowed is over.
    RunsOut,
}

impl Leaving {
    pub(crate) const ALL: [Self; 3] = [Self::Cancels, Self::HangsUp, Self::RunsOut];
}

impl Cri {
    /// Connects to the node's daemon.
    pub(crate) fn connect(node: &Node) -> Result<Self> {
        Self::open(node.socket())
    }

    fn open(socket: PathBuf) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = runtime
            .block_on(endpoint.connect())
            .with_context(|| format!("failed to connect to `{}`", socket.display()))?;
        Ok(Self { runtime, channel })
    }

    fn calls(&self) -> Calls {
        Calls {
            runtime: RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20),
            images: ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20),
        }
    }

    /// Makes a call and waits for its answer.
    pub(crate) fn call<T, F>(&self, call: impl FnOnce(Calls) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let call = Box::pin(call(self.calls()));
        self.runtime.block_on(async {
            let answer = tokio::time::timeout(LIMIT, call).await;
            answer
                .unwrap_or_else(|_| Err(Status::unknown(format!("no answer within {LIMIT:?}"))))
                .map(Response::into_inner)
        })
    }

    /// Makes a call that answers with a stream, and reads that to its end: the messages.
    pub(crate) fn collect<T, F>(&self, call: impl FnOnce(Calls) -> F) -> Result<Vec<T>, Status>
    where
        F: Future<Output = Result<Response<Streaming<T>>, Status>>,
    {
        let call = Box::pin(call(self.calls()));
        self.runtime.block_on(async {
            let read = async {
                let mut stream = call.await?.into_inner();
                let mut messages = Vec::new();
                while let Some(message) = stream.message().await? {
                    messages.push(message);
                }
                Ok(messages)
            };
            tokio::time::timeout(LIMIT, read)
                .await
                .unwrap_or_else(|_| Err(Status::unknown(format!("the stream had no end within {LIMIT:?}"))))
        })
    }

    /// Makes a call and goes before the answer, once `reached` says that the call is under way.
    ///
    /// # Errors
    /// The answer came first, or `reached` never said so.
    pub(crate) fn leave<Q, T, F>(
        self,
        how: Leaving,
        request: Q,
        call: impl FnOnce(Calls, Request<Q>) -> F,
        mut reached: impl FnMut() -> Result<bool>,
    ) -> Result<()>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut request = Request::new(request);
        if how == Leaving::RunsOut {
            // Long enough to get that far on a busy machine; the answer can't come before anyway.
            request.set_timeout(Duration::from_secs(3));
        }
        let mut call = Box::pin(call(self.calls(), request));
        let under_way = async {
            for _ in 0..LIMIT.as_millis() / 10 {
                if reached()? {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            anyhow::bail!("the call didn't get where it should be left within {LIMIT:?}")
        };
        self.runtime.block_on(async {
            tokio::select! {
                answer = &mut call => {
                    let answer = answer.map(drop);
                    anyhow::bail!("the call ended too early: {answer:?}")
                }
                reached = under_way => reached?,
            }
            match how {
                Leaving::Cancels => {
                    drop(call);
                    // The connection still serves: the daemon has read of the cancelled call by then.
                    self.calls().runtime.version(VersionRequest::default()).await?;
                }
                Leaving::HangsUp => {}
                Leaving::RunsOut => {
                    let status = call
                        .await
                        .err()
                        .context("the call ended well after its time was over")?;
                    let code = status.code();
                    anyhow::ensure!(
                        matches!(code, tonic::Code::DeadlineExceeded | tonic::Code::Cancelled),
                        "out of time, the call ended with {status:?}"
                    );
                }
            }
            Ok(())
        })
    }
}

/// A pod's configuration.
pub(crate) fn pod(name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: format!("/var/log/pods/{name}"),
        linux: Some(LinuxPodSandboxConfig::default()),
        labels: HashMap::from([("app".to_owned(), name.to_owned())]),
        ..Default::default()
    }
}

/// A request for that pod.
pub(crate) fn run_pod(name: &str) -> RunPodSandboxRequest {
    RunPodSandboxRequest {
        config: Some(pod(name)),
        runtime_handler: String::new(),
    }
}

/// A request for a container that runs a shell script.
pub(crate) fn create(sandbox: &str, pod_name: &str, name: &str, script: &str) -> CreateContainerRequest {
    CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: IMAGE.to_owned(),
                ..Default::default()
            }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig::default()),
            ..Default::default()
        }),
        sandbox_config: Some(pod(pod_name)),
    }
}
