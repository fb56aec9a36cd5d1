//! What each path answers.

use std::sync::Arc;
use std::time::Duration;

use controlplane_api::k8s_openapi::List;
use controlplane_api::k8s_openapi::api::core::v1::{Event, Pod};
use cri_api::v1 as cri;
use http::header::{self, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::json;

use super::answers::{Answer, json, metrics, not_found, text, typed};
use super::listener::Peer;
use super::logs::options::{BadOptions, LogOptions};
use super::logs::stream;
use super::route::{Metrics, Route, Target, parameter, query};
use super::seam::{KubeletError, KubeletErrorKind};
use super::service::Service;
use super::{files, lookup, stats, tunnel};

/// How long a refused client is told to wait when the runtime has no room: as long as its tokens live.
const RETRY_AFTER: &str = "60";
/// For `/run`, whose client waits for the whole output.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);
/// The runtime's own time for a checkpoint, when the client says nothing.
const CHECKPOINT_TIMEOUT: i64 = 0;

impl Service {
    /// Answers an admitted request.
    pub(super) async fn answer(&self, route: Route, request: Request<Incoming>, peer: Peer) -> Answer {
        let parameters = query(request.uri().query());
        match route {
            Route::Healthz(check) => self.healthz(check.as_deref(), &parameters),
            Route::Pods => pod_list(self.kubelet.pods().iter().map(|pod| Pod::clone(pod)).collect()),
            Route::RunningPods => match self.kubelet.running_pods().await {
                Ok(pods) => pod_list(pods),
                Err(error) => failed(&error.message),
            },
            Route::Configz => json(&json!({"kubeletconfig": self.kubelet.configz()})),
            Route::ContainerLogs(target) => self.container_logs(&target, &parameters).await,
            Route::Exec(target) => self.exec(target, &parameters, request, &peer).await,
            Route::Attach(target) => self.attach(target, &parameters, request, &peer).await,
            Route::PortForward { namespace, pod, uid } => {
                self.port_forward(&namespace, &pod, uid.as_deref(), &parameters, request, &peer)
                    .await
            }
            Route::Run(target) => self.run(target, parameters, request).await,
            Route::Metrics(kind) => self.metrics_of(kind).await,
            Route::Summary => self.summary(&parameters).await,
            Route::Logs(path) => self.system_logs(&path, &parameters).await,
            Route::Checkpoint(target) => self.checkpoint(&target, &parameters).await,
            Route::Timeline { namespace, pod } => self.timeline(&namespace, &pod),
            Route::Events { namespace, pod } => {
                let items = self.kubelet.events(&namespace, &pod);
                json(&List::<Event> {
                    items,
                    ..Default::default()
                })
            }
        }
    }

    /// `/healthz`, as upstream's handler words it.
    fn healthz(&self, only: Option<&str>, parameters: &[(String, String)]) -> Answer {
        let syncloop = self.kubelet.sync_loop_health();
        let checks: [(&str, Result<(), String>); 3] =
            [("ping", Ok(())), ("log", Ok(())), ("syncloop", syncloop)];
        let excluded = |name: &str| {
            parameters
                .iter()
                .any(|(key, value)| key == "exclude" && value == name)
        };
        if let Some(only) = only {
            return match checks.iter().find(|(name, _)| *name == only) {
                None => not_found(),
                Some((_, Ok(()))) => text(StatusCode::OK, "ok"),
                Some((_, Err(why))) => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("internal server error: {why}\n"),
                ),
            };
        }
        let mut lines = String::new();
        let mut healthy = true;
        for (name, result) in &checks {
            if excluded(name) {
                lines += &format!("[+]{name} excluded: ok\n");
                continue;
            }
            let good = result.is_ok();
            healthy &= good;
            let labels = [*name, "healthz"];
            self.metrics
                .kubernetes_healthcheck
                .set(&labels, if good { 1.0 } else { 0.0 });
            let status = if good { "success" } else { "error" };
            self.metrics
                .kubernetes_healthchecks_total
                .inc(&[name, "healthz", status]);
            lines += &if good {
                format!("[+]{name} ok\n")
            } else {
                format!("[-]{name} failed: reason withheld\n")
            };
        }
        if !healthy {
            return text(
                StatusCode::INTERNAL_SERVER_ERROR,
                lines + "healthz check failed\n",
            );
        }
        if parameter(parameters, "verbose").is_some() {
            text(StatusCode::OK, lines + "healthz check passed\n")
        } else {
            text(StatusCode::OK, "ok")
        }
    }

    async fn container_logs(&self, target: &Target, parameters: &[(String, String)]) -> Answer {
        let options = match LogOptions::parse(parameters, (self.now)()) {
            Ok(options) => options,
            Err(BadOptions::Undecodable) => {
                return text(
                    StatusCode::BAD_REQUEST,
                    r#"{"message": "Unable to decode query."}"#,
                );
            }
            Err(BadOptions::Invalid) => {
                return text(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    r#"{"message": "Invalid request."}"#,
                );
            }
        };
        let Some(pod) = self.kubelet.pod(&target.namespace, &target.pod) else {
            return text(
                StatusCode::NOT_FOUND,
                format!("pod {:?} does not exist", target.pod),
            );
        };
        if !lookup::has_container(&pod, &target.container) {
            let message = format!(
                "container {:?} not found in pod {:?}",
                target.container, target.pod
            );
            return text(StatusCode::NOT_FOUND, message);
        }
        let bad = |message: String| text(StatusCode::BAD_REQUEST, message);
        let id = match lookup::log_container(&pod, &target.container, options.previous) {
            Ok(id) => id,
            Err(message) => return bad(message),
        };
        let status = match self.kubelet.container_status(&id).await {
            Ok(status) => status,
            Err(error) => return bad(format!("failed to get status of container {id}: {error}")),
        };
        if status.log_path.is_empty() {
            return bad(format!("the runtime keeps no log of container {id}"));
        }
        let path = status.log_path;
        match stream::open(self.kubelet.clone(), id, path.clone().into(), options).await {
            Ok(body) => {
                let mut answer = Answer::new(body);
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                answer.headers_mut().insert(header::CONTENT_TYPE, plain);
                answer
            }
            Err(error) => bad(format!("failed to open log file {path:?}: {error}")),
        }
    }

    /// The pod, and the ID of its running container.
    async fn running(&self, target: &Target) -> Result<(Arc<Pod>, String), Answer> {
        let Some(pod) = self.kubelet.pod(&target.namespace, &target.pod) else {
            return Err(text(StatusCode::NOT_FOUND, "pod does not exist"));
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let missing = || failed(&format!("container not found ({:?})", target.container));
        if target.uid.as_ref().is_some_and(|wanted| !is_pod(&pod, wanted)) {
            return Err(missing());
        }
        match self.kubelet.running_container(&uid, &target.container).await {
            Ok(Some(id)) => Ok((pod, id)),
            Ok(None) => Err(missing()),
            Err(error) => Err(failed(&error.message)),
        }
    }

    async fn exec(
        &self,
        target: Target,
        parameters: &[(String, String)],
        request: Request<Incoming>,
        peer: &Peer,
    ) -> Answer {
        let streams = match Streams::parse(parameters) {
            Ok(streams) => streams,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let (_, container_id) = match self.running(&target).await {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let cmd = parameters
            .iter()
            .filter(|(name, _)| name == "command")
            .map(|(_, word)| word.clone())
            .collect();
        let asked = self.kubelet.exec(cri::ExecRequest {
            container_id,
            cmd,
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        });
        match asked.await {
            Ok(url) => tunnel::open(request, &url, peer).await,
            Err(error) => refused(&error),
        }
    }

    async fn attach(
        &self,
        target: Target,
        parameters: &[(String, String)],
        request: Request<Incoming>,
        peer: &Peer,
    ) -> Answer {
        let streams = match Streams::parse(parameters) {
            Ok(streams) => streams,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let (_, container_id) = match self.running(&target).await {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let asked = self.kubelet.attach(cri::AttachRequest {
            container_id,
            stdin: streams.stdin,
            tty: streams.tty,
            stdout: streams.stdout,
            stderr: streams.stderr,
        });
        match asked.await {
            Ok(url) => tunnel::open(request, &url, peer).await,
            Err(error) => refused(&error),
        }
    }

    async fn port_forward(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        parameters: &[(String, String)],
        request: Request<Incoming>,
        peer: &Peer,
    ) -> Answer {
        let port = match forwarded_ports(&request, parameters) {
            Ok(ports) => ports,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let Some(pod) = self.kubelet.pod(namespace, name) else {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        };
        if uid.is_some_and(|wanted| !is_pod(&pod, wanted)) {
            return text(StatusCode::NOT_FOUND, "pod not found");
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let pod_sandbox_id = match self.kubelet.sandbox(&uid).await {
            Ok(Some(id)) => id,
            Ok(None) => return failed(&format!("pod not found (\"{name}_{namespace}\")")),
            Err(error) => return failed(&error.message),
        };
        let asked = self
            .kubelet
            .port_forward(cri::PortForwardRequest { pod_sandbox_id, port });
        match asked.await {
            Ok(url) => tunnel::open(request, &url, peer).await,
            Err(error) => refused(&error),
        }
    }

    async fn run(
        &self,
        target: Target,
        mut parameters: Vec<(String, String)>,
        request: Request<Incoming>,
    ) -> Answer {
        let (_, container_id) = match self.running(&target).await {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let limits = self.config.limits;
        let body = Limited::new(request.into_body(), limits.body_bytes).collect();
        match tokio::time::timeout(limits.body, body).await {
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the request's body took too long\n"),
            Ok(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            Ok(Ok(body)) => {
                let bytes = body.to_bytes();
                parameters.extend(query(std::str::from_utf8(&bytes).ok()));
            }
        }
        let line = parameter(&parameters, "cmd").unwrap_or_default();
        let asked = self.kubelet.exec_sync(cri::ExecSyncRequest {
            container_id,
            cmd: line.split(' ').map(str::to_owned).collect(),
            timeout: i64::try_from(RUN_TIMEOUT.as_secs()).unwrap_or(i64::MAX),
        });
        match asked.await {
            Err(error) => failed(&error.message),
            Ok(done) if done.exit_code != 0 => failed(&format!(
                "command '{line}' exited with {}: {}",
                done.exit_code,
                String::from_utf8_lossy(&done.stderr)
            )),
            Ok(mut done) => {
                done.stdout.append(&mut done.stderr);
                typed(StatusCode::OK, "application/json", done.stdout)
            }
        }
    }

    async fn metrics_of(&self, kind: Metrics) -> Answer {
        match kind {
            Metrics::Kubelet => metrics(self.metrics.registry.encode()),
            Metrics::Probes => metrics(self.metrics.probes.encode()),
            Metrics::Slis => metrics(self.metrics.slis.encode()),
            Metrics::Resource => {
                let summary = self.kubelet.stats(true).await;
                if let Err(error) = &summary {
                    tracing::warn!(error = error.message, "failed to measure for /metrics/resource");
                }
                let pods = self.kubelet.pods();
                let known: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
                let summary = summary.ok().map(|sources| stats::summarize(&sources, &known));
                metrics(stats::resource::encode(summary.as_ref()))
            }
            Metrics::Cadvisor => {
                let sources = match self.kubelet.stats(false).await {
                    Ok(sources) => sources,
                    Err(error) => return failed(&error.message),
                };
                match self.kubelet.runtime_metrics().await {
                    Ok(own) if !own.descriptors.is_empty() => {
                        metrics(stats::cadvisor::encode_runtime(&own, &sources))
                    }
                    Ok(_) => metrics(stats::cadvisor::encode_stats(&sources)),
                    Err(error) if error.kind == KubeletErrorKind::Unsupported => {
                        metrics(stats::cadvisor::encode_stats(&sources))
                    }
                    Err(error) => failed(&error.message),
                }
            }
        }
    }

    async fn summary(&self, parameters: &[(String, String)]) -> Answer {
        let only =
            parameter(parameters, "only_cpu_and_memory").is_some_and(|value| value == "true" || value == "1");
        match self.kubelet.stats(only).await {
            Ok(sources) => {
                let pods = self.kubelet.pods();
                let known: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
                json(&stats::summarize(&sources, &known))
            }
            Err(error) => failed(&error.message),
        }
    }

    async fn system_logs(&self, path: &str, parameters: &[(String, String)]) -> Answer {
        if !self.config.system_logs {
            return text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n");
        }
        if parameter(parameters, "query").is_some() {
            return text(StatusCode::BAD_REQUEST, "the query of system logs is disabled\n");
        }
        files::answer(&self.config.log_dir, path).await
    }

    async fn checkpoint(&self, target: &Target, parameters: &[(String, String)]) -> Answer {
        let Some(pod) = self.kubelet.pod(&target.namespace, &target.pod) else {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        };
        if !lookup::has_container(&pod, &target.container) {
            let message = format!("container {} does not exist", target.container);
            return text(StatusCode::NOT_FOUND, message);
        }
        let last = parameters.iter().rev().find(|(name, _)| name == "timeout");
        let timeout = match last.map(|(_, value)| value.parse()) {
            None => CHECKPOINT_TIMEOUT,
            Some(Ok(timeout)) => timeout,
            Some(Err(_)) => return text(StatusCode::NOT_FOUND, "cannot parse value of timeout parameter"),
        };
        let Target {
            namespace,
            pod: name,
            container,
            ..
        } = target;
        let failure = |why: &str| {
            failed(&format!(
                "checkpointing of {namespace}/{name}/{container} failed ({why})"
            ))
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let container_id = match self.kubelet.running_container(&uid, container).await {
            Ok(Some(id)) => id,
            Ok(None) => return failure(&format!("container {container} not found")),
            Err(error) => return failure(&error.message),
        };
        let folder = self.config.checkpoint_dir.clone();
        // They hold what containers had in memory.
        let made = tokio::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .await;
        if let Err(error) = made {
            return failure(&format!("failed to make {}: {error}", folder.display()));
        }
        let file = checkpoint_name(namespace, name, container, (self.now)());
        let location = folder.join(file).display().to_string();
        let asked = self.kubelet.checkpoint(cri::CheckpointContainerRequest {
            container_id,
            location: location.clone(),
            timeout,
        });
        match asked.await {
            Ok(()) => json(&json!({"items": [location]})),
            Err(error) => failure(&error.message),
        }
    }

    fn timeline(&self, namespace: &str, name: &str) -> Answer {
        let Some(pod) = self.kubelet.pod(namespace, name) else {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        };
        match self
            .kubelet
            .timeline(pod.metadata.uid.as_deref().unwrap_or_default())
        {
            Some(timeline) => json(&timeline),
            None => text(
                StatusCode::NOT_FOUND,
                "the start of this pod is not remembered: it was before the kubelet's, or too many others came since",
            ),
        }
    }
}

/// A checkpoint's file, as upstream names it.
fn checkpoint_name(namespace: &str, pod: &str, container: &str, now: Timestamp) -> String {
    let now = now.round(jiff::Unit::Second).unwrap_or(now);
    format!("checkpoint-{pod}_{namespace}-{container}-{now}.tar")
}

/// Whether it is the pod with this UID; the API server knows a static pod by its mirror's.
fn is_pod(pod: &Pod, uid: &str) -> bool {
    let is_static = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get("kubernetes.io/config.source"))
        .is_some_and(|source| source != "api");
    pod.metadata.uid.as_deref() == Some(uid) || is_static
}

fn pod_list(items: Vec<Pod>) -> Answer {
    json(&List::<Pod> {
        items,
        ..Default::default()
    })
}

fn failed(message: &str) -> Answer {
    text(StatusCode::INTERNAL_SERVER_ERROR, message.to_owned())
}

/// A stream that the runtime doesn't give.
fn refused(error: &KubeletError) -> Answer {
    let code = match error.kind {
        KubeletErrorKind::NotFound => StatusCode::NOT_FOUND,
        KubeletErrorKind::Busy => StatusCode::TOO_MANY_REQUESTS,
        KubeletErrorKind::Unsupported | KubeletErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut answer = text(code, error.message.clone());
    if code == StatusCode::TOO_MANY_REQUESTS {
        let after = HeaderValue::from_static(RETRY_AFTER);
        answer.headers_mut().insert(header::RETRY_AFTER, after);
    }
    answer
}

/// Which streams a client wants.
struct Streams {
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Streams {
    fn parse(parameters: &[(String, String)]) -> Result<Self, &'static str> {
        let set = |name: &str| parameter(parameters, name) == Some("1");
        let tty = set("tty");
        let streams = Self {
            tty,
            stdin: set("input"),
            stdout: set("output"),
            // A terminal has no second way out.
            stderr: set("error") && !tty,
        };
        if streams.stdin || streams.stdout || streams.stderr {
            Ok(streams)
        } else {
            Err("you must specify at least 1 of stdin, stdout, stderr")
        }
    }
}

/// The ports of a WebSocket client, which names them in the query; others name them in their streams.
fn forwarded_ports(request: &Request<Incoming>, parameters: &[(String, String)]) -> Result<Vec<i32>, String> {
    let header = |name: header::HeaderName| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let websocket = header(header::UPGRADE).eq_ignore_ascii_case("websocket");
    if !websocket || header(header::SEC_WEBSOCKET_PROTOCOL).contains("SPDY/3.1+portforward.k8s.io") {
        return Ok(Vec::new());
    }
    let mut ports = Vec::new();
    for (_, list) in parameters.iter().filter(|(name, _)| name == "port") {
        for port in list.split(',') {
            if port.is_empty() {
                return Err("query parameter \"port\" cannot be empty".into());
            }
            match port.parse::<u16>() {
                Ok(port) if port > 0 => ports.push(i32::from(port)),
                _ => return Err(format!("unable to parse {port:?} as a port")),
            }
        }
    }
    if ports.is_empty() {
        return Err("query parameter \"port\" is required".into());
    }
    Ok(ports)
}
