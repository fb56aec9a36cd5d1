//! A kubelet with one pod, whose runtime is a few fields.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;
use controlplane_api::k8s_openapi::api::core::v1::{Event, Pod};
use cri_api::v1 as cri;

use super::*;
use crate::server::stats::sources::StatsSources;
use crate::timeline::PodTimeline;

/// What the runtime was asked.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::server) enum Asked {
    Exec(cri::ExecRequest),
    Attach(cri::AttachRequest),
    PortForward(cri::PortForwardRequest),
    Sync(cri::ExecSyncRequest),
    Checkpoint(cri::CheckpointContainerRequest),
}

pub(in crate::server) struct Fake {
    pub(in crate::server) log: PathBuf,
    pub(in crate::server) asked: Mutex<Vec<Asked>>,
    /// Where streams are, or why there are none.
    pub(in crate::server) stream: Mutex<Result<String, KubeletError>>,
    pub(in crate::server) running: Mutex<bool>,
    pub(in crate::server) health: Mutex<Result<(), String>>,
    pub(in crate::server) stats_fail: Mutex<bool>,
}

impl Fake {
    pub(in crate::server) fn new(folder: &Path) -> Self {
        Self {
            log: folder.join("0.log"),
            asked: Mutex::default(),
            stream: Mutex::new(Err(KubeletError::failed("no streams here"))),
            running: Mutex::new(true),
            health: Mutex::new(Ok(())),
            stats_fail: Mutex::new(false),
        }
    }

    fn ask(&self, asked: Asked) {
        self.asked.lock().unwrap().push(asked);
    }

    fn url(&self) -> Result<String, KubeletError> {
        self.stream.lock().unwrap().clone()
    }
}

pub(in crate::server) fn pod() -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {
            "initContainers": [{"name": "first", "image": "i"}],
            "containers": [{"name": "app", "image": "i"}, {"name": "late", "image": "i"}],
        },
        "status": {
            "containerStatuses": [
                {"name": "app", "image": "i", "imageID": "", "ready": true, "restartCount": 1, "containerID": "orlop://c2",
                 "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1, "containerID": "orlop://c1"}}},
                {"name": "late", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"waiting": {"reason": "ImagePullBackOff"}}},
            ],
        },
    }))
    .unwrap()
}

#[async_trait]
impl Kubelet for Fake {
    fn node_name(&self) -> String {
        "node-1".into()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![Arc::new(pod())]
    }

    async fn running_pods(&self) -> Result<Vec<Pod>, KubeletError> {
        Ok(vec![pod()])
    }

    async fn sandbox(&self, pod_uid: &str) -> Result<Option<String>, KubeletError> {
        Ok((pod_uid == "u1").then(|| "s1".to_owned()))
    }

    async fn running_container(
        &self,
        pod_uid: &str,
        container: &str,
    ) -> Result<Option<String>, KubeletError> {
        Ok((pod_uid == "u1" && container == "app").then(|| "c2".to_owned()))
    }

    async fn container_status(&self, container_id: &str) -> Result<cri::ContainerStatus, KubeletError> {
        let state = if *self.running.lock().unwrap() {
            cri::ContainerState::ContainerRunning
        } else {
            cri::ContainerState::ContainerExited
        };
        let mut log = self.log.clone();
        if container_id != "c2" {
            log.set_file_name("previous.log");
        }
        Ok(cri::ContainerStatus {
            id: container_id.into(),
            log_path: log.display().to_string(),
            state: state.into(),
            ..Default::default()
        })
    }

    async fn exec(&self, request: cri::ExecRequest) -> Result<String, KubeletError> {
        self.ask(Asked::Exec(request));
        self.url()
    }

    async fn attach(&self, request: cri::AttachRequest) -> Result<String, KubeletError> {
        self.ask(Asked::Attach(request));
        self.url()
    }

    async fn port_forward(&self, request: cri::PortForwardRequest) -> Result<String, KubeletError> {
        self.ask(Asked::PortForward(request));
        self.url()
    }

    async fn exec_sync(&self, request: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse, KubeletError> {
        let exit_code = if request.cmd[0] == "false" { 1 } else { 0 };
        self.ask(Asked::Sync(request));
        Ok(cri::ExecSyncResponse {
            stdout: b"out".to_vec(),
            stderr: b"err".to_vec(),
            exit_code,
        })
    }

    async fn checkpoint(&self, request: cri::CheckpointContainerRequest) -> Result<(), KubeletError> {
        self.ask(Asked::Checkpoint(request));
        Ok(())
    }

    async fn stats(&self, _: bool) -> Result<StatsSources, KubeletError> {
        if *self.stats_fail.lock().unwrap() {
            return Err(KubeletError::failed("the runtime is away"));
        }
        Ok(StatsSources {
            cpus: 2,
            ..Default::default()
        })
    }

    async fn runtime_metrics(&self) -> Result<RuntimeMetrics, KubeletError> {
        Err(tonic::Status::unimplemented("no").into())
    }

    fn configz(&self) -> serde_json::Value {
        serde_json::json!({"maxPods": 110})
    }

    fn events(&self, _: &str, name: &str) -> Vec<Event> {
        vec![Event {
            reason: Some("Started".into()),
            message: Some(format!("Started container app of {name}")),
            ..Default::default()
        }]
    }

    fn timeline(&self, pod_uid: &str) -> Option<PodTimeline> {
        (pod_uid == "u1").then(|| PodTimeline {
            uid: pod_uid.into(),
            start: Timestamp::UNIX_EPOCH,
            end: None,
            wall_seconds: 1.0,
            covered: 0.99,
            dropped: 0,
            phases: Vec::new(),
        })
    }

    fn sync_loop_health(&self) -> Result<(), String> {
        self.health.lock().unwrap().clone()
    }
}
