//! A kubelet's server with one pod, and the executable run against it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use controlplane_api::k8s_openapi::api::core::v1::{Event, Pod};
use cri_api::v1 as cri;
use cri_streaming::{
    AttachRequest, BoxDuplex, ExecRequest, ExitStatus, Limits, StreamError, StreamHandler, StreamServer,
    Streams,
};
use jiff::Timestamp;
use kubelet_agent::metrics::KubeletMetrics;
use kubelet_agent::server::authz::Rules;
use kubelet_agent::server::stats::sources::StatsSources;
use kubelet_agent::server::{Kubelet, KubeletError, RuntimeMetrics, Server, ServerConfig};
use kubelet_agent::timeline::{PhaseSpan, PodTimeline};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Commands of a few words.
struct Commands;

#[async_trait]
impl StreamHandler for Commands {
    async fn exec(&self, request: ExecRequest, mut streams: Streams) -> Result<ExitStatus, StreamError> {
        let mut out = streams.stdout.take().unwrap();
        let words: Vec<&str> = request.cmd.iter().map(String::as_str).collect();
        let code = match words[0] {
            "cat" => {
                if let Some(mut stdin) = streams.stdin.take() {
                    let mut bytes = Vec::new();
                    stdin.read_to_end(&mut bytes).await.unwrap();
                    out.write_all(&bytes).await.unwrap();
                }
                if words.len() > 1 {
                    let mut err = streams.stderr.take().unwrap();
                    err.write_all(words.join("|").as_bytes()).await.unwrap();
                    let _ = err.shutdown().await;
                }
                words.last().and_then(|last| last.parse().ok()).unwrap_or(0)
            }
            "size" => {
                let size = streams.resize.take().unwrap().recv().await.unwrap();
                let tty = if request.tty { "tty" } else { "no tty" };
                out.write_all(format!("{}x{} {tty}", size.width, size.height).as_bytes())
                    .await
                    .unwrap();
                5
            }
            _ => return Err(StreamError::not_found("no such command")),
        };
        let _ = out.shutdown().await;
        Ok(ExitStatus { code })
    }

    async fn attach(&self, _: AttachRequest, _: Streams) -> Result<(), StreamError> {
        Err(StreamError::failed("not here"))
    }

    async fn port_forward(&self, _: String, _: u16, _: BoxDuplex) -> Result<(), StreamError> {
        Err(StreamError::failed("not here"))
    }
}

struct Node {
    log: PathBuf,
    running: AtomicBool,
    streams: Arc<StreamServer>,
}

fn none<T>() -> Result<T, KubeletError> {
    Err(KubeletError::failed("not here"))
}

#[async_trait]
impl Kubelet for Node {
    fn node_name(&self) -> String {
        "n1".into()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        let pod = serde_json::json!({
            "metadata": {"name": "web-n1", "namespace": "default", "uid": "u1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "img"}]},
            "status": {
                "phase": "Running", "podIP": "10.0.0.2",
                "containerStatuses": [{
                    "name": "app", "image": "img", "imageID": "i", "containerID": "orlop://c1", "ready": true, "restartCount": 0,
                    "state": {"running": {}},
                }],
            },
        });
        vec![Arc::new(serde_json::from_value(pod).unwrap())]
    }

    async fn running_pods(&self) -> Result<Vec<Pod>, KubeletError> {
        none()
    }

    async fn sandbox(&self, _: &str) -> Result<Option<String>, KubeletError> {
        none()
    }

    async fn running_container(&self, _: &str, _: &str) -> Result<Option<String>, KubeletError> {
        Ok(Some("c1".into()))
    }

    async fn container_status(&self, _: &str) -> Result<cri::ContainerStatus, KubeletError> {
        let running = self.running.load(Ordering::Relaxed);
        Ok(cri::ContainerStatus {
            log_path: self.log.display().to_string(),
            state: if running {
                cri::ContainerState::ContainerRunning
            } else {
                cri::ContainerState::ContainerExited
            }
            .into(),
            ..Default::default()
        })
    }

    async fn exec(&self, request: cri::ExecRequest) -> Result<String, KubeletError> {
        let request = ExecRequest {
            target: request.container_id,
            cmd: request.cmd,
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        self.streams
            .exec_url(request)
            .map_err(|error| KubeletError::failed(error.to_string()))
    }

    async fn attach(&self, _: cri::AttachRequest) -> Result<String, KubeletError> {
        none()
    }

    async fn port_forward(&self, _: cri::PortForwardRequest) -> Result<String, KubeletError> {
        none()
    }

    async fn exec_sync(&self, _: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse, KubeletError> {
        none()
    }

    async fn checkpoint(&self, _: cri::CheckpointContainerRequest) -> Result<(), KubeletError> {
        none()
    }

    async fn stats(&self, _: bool) -> Result<StatsSources, KubeletError> {
        none()
    }

    async fn runtime_metrics(&self) -> Result<RuntimeMetrics, KubeletError> {
        none()
    }

    fn configz(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    fn events(&self, _: &str, _: &str) -> Vec<Event> {
        vec![Event {
            message: Some("Started container app".into()),
            ..Default::default()
        }]
    }

    fn timeline(&self, uid: &str) -> Option<PodTimeline> {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let phase = |name, start, end| PhaseSpan {
            name,
            start: at(start),
            end: Some(at(end)),
            container: None,
        };
        Some(PodTimeline {
            uid: uid.into(),
            start: at(0),
            end: Some(at(1000)),
            wall_seconds: 1.0,
            covered: 0.99,
            dropped: 0,
            phases: vec![phase("queue", 0, 10), phase("sync", 20, 1000)],
        })
    }

    fn sync_loop_health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A node that runs.
pub(crate) struct Bed {
    pub(crate) folder: tempfile::TempDir,
    node: Arc<Node>,
    address: String,
    admin: PathBuf,
    authority: (rcgen::CertificateParams, rcgen::KeyPair),
}

impl Bed {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        let lines = "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n";
        std::fs::write(&log, lines).unwrap();
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let streams = StreamServer::bind(anywhere, Arc::new(Commands), Limits::default())
            .await
            .unwrap();
        let streams = Arc::new(streams);
        let serving = streams.clone();
        tokio::spawn(async move { serving.run(std::future::pending()).await });
        let node = Arc::new(Node {
            log,
            running: AtomicBool::new(true),
            streams,
        });
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = folder.path().join("clients.crt");
        std::fs::write(&ca, authority.clone().self_signed(&key).unwrap().pem()).unwrap();
        let tokens = folder.path().join("tokens.csv");
        std::fs::write(&tokens, "guest,guest,2\n").unwrap();
        let mut config = ServerConfig::new(folder.path().to_owned(), Arc::new(Rules::default()));
        config.listen = anywhere;
        config.healthz = None;
        config.tokens = Some(tokens);
        config.client_ca = Some(ca);
        let left = folder.path().join("left");
        config.local_client = Some(left.clone());
        let server = Server::bind(config, node.clone(), KubeletMetrics::new())
            .await
            .unwrap();
        let address = format!("https://{}", server.secure_address().unwrap());
        tokio::spawn(server.run(std::future::pending()));
        Self {
            folder,
            node,
            address,
            admin: left.join("node-client.yaml"),
            authority: (authority, key),
        }
    }

    pub(crate) fn end_container(&self) {
        self.node.running.store(false, Ordering::Relaxed);
    }

    /// What a node leaves for its clients.
    pub(crate) fn node_file(&self, token: Option<&str>) -> PathBuf {
        let who = token.unwrap_or("nobody");
        let path = self.folder.path().join(format!("{who}.yaml"));
        let mut text = format!("kubelet: {}\nca: pki/kubelet.crt\n", self.address);
        if let Some(token) = token {
            std::fs::write(self.folder.path().join(format!("{who}.token")), token).unwrap();
            text += &format!("tokenFile: {who}.token\n");
        }
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn foreign_certificate(&self) -> PathBuf {
        let path = self.folder.path().join("foreign.crt");
        let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(&path, other.cert.pem()).unwrap();
        path
    }

    pub(crate) fn client_certificate(&self) -> (String, String) {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, "root");
        parameters
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::from_params(&self.authority.0, &self.authority.1);
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: String| {
            let path = self.folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        (
            write("root.crt", certificate.pem()),
            write("root.key", key.serialize_pem()),
        )
    }
}

pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: i32,
}

pub(crate) async fn run(bed: &Bed, arguments: &[&str]) -> Ran {
    run_as(&bed.admin, arguments).await
}

pub(crate) async fn run_as(node: &Path, arguments: &[&str]) -> Ran {
    start(node, arguments, b"").await
}

pub(crate) async fn run_with_input(bed: &Bed, arguments: &[&str], input: &[u8]) -> Ran {
    start(&bed.admin, arguments, input).await
}

async fn start(node: &Path, arguments: &[&str], input: &[u8]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(arguments)
        .env("ORLOP_NODE", node)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that takes no input may be gone already.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    let done = child.wait_with_output().await.unwrap();
    Ran {
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
        code: done.status.code().unwrap(),
    }
}

/// Runs a shell's line in a terminal of its own, by `script`.
pub(crate) async fn run_in_terminal(bed: &Bed, line: &str) -> (String, i32) {
    let folder = Path::new(env!("CARGO_BIN_EXE_orlop")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let done = Command::new("script")
        .args(["--quiet", "--return", "--command", line, "/dev/null"])
        .env("ORLOP_NODE", &bed.admin)
        .env("PATH", path)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    (
        String::from_utf8_lossy(&done.stdout).into_owned(),
        done.status.code().unwrap(),
    )
}
