//! The prober as the sync loop knows it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use jiff::{SignedDuration, Timestamp};
use kubelet_pods::observed::{ContainerState, ObservedContainer, ObservedPod, ObservedSandbox};
use kubelet_pods::probe::ProbeResult;
use serde_json::json;

use super::{Scripted, exit};
use crate::events::Events;
use crate::hooks::NodeHooks;
use crate::probing::node::pod_probes;
use crate::probing::{NodeProbes, Seen};
use crate::sync::context::{Hooks, Probes};

fn wall() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn pod() -> Arc<Pod> {
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 2});
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u-1"},
            "spec": {
                "restartPolicy": "OnFailure",
                "containers": [
                    {"name": "c", "readinessProbe": probe, "lifecycle": {
                        "postStart": {"exec": {"command": ["start"]}}, "preStop": {"sleep": {"seconds": 60}}
                    }},
                    {"name": "plain"}
                ],
                "initContainers": [{"name": "s", "restartPolicy": "Always", "livenessProbe": probe}, {"name": "i"}]
            }
        }))
        .unwrap(),
    )
}

fn observed(state: ContainerState) -> ObservedPod {
    let container = ObservedContainer {
        id: "id-c".into(),
        name: "c".into(),
        sandbox_id: "sb".into(),
        state,
        attempt: 0,
        created: wall(),
        image: String::new(),
        image_id: String::new(),
        spec_hash: None,
        annotations: Default::default(),
        resources: None,
        user: None,
        stop_signal: None,
    };
    let sandbox = ObservedSandbox {
        id: "sb".into(),
        ready: true,
        attempt: 0,
        created: wall(),
        host_network: Some(false),
        ips: vec!["10.0.0.5".parse().unwrap()],
        runtime_handler: String::new(),
    };
    ObservedPod {
        uid: "u-1".into(),
        name: "web".into(),
        namespace: "default".into(),
        sandboxes: vec![sandbox],
        containers: vec![container],
    }
}

#[test]
fn what_is_seen_of_a_pod_becomes_its_probes() {
    let host = Some("192.0.2.1".parse().unwrap());
    let probes = pod_probes(
        &pod(),
        &observed(ContainerState::Running { started: wall() }),
        host,
    );
    assert_eq!(probes.ip, Some("10.0.0.5".parse().unwrap()));
    let seen: Vec<_> = probes
        .containers
        .iter()
        .map(|one| (one.spec.name.as_str(), one.seen.clone()))
        .collect();
    assert_eq!(
        seen,
        [
            ("s", Seen::Absent),
            (
                "c",
                Seen::Running {
                    id: "id-c".into(),
                    started: wall()
                }
            )
        ]
    );
    let ended = |exit_code| {
        let state = ContainerState::Exited {
            started: None,
            finished: wall(),
            exit_code,
            reason: String::new(),
            message: String::new(),
        };
        pod_probes(&pod(), &observed(state), host).containers[1]
            .seen
            .clone()
    };
    assert_eq!(
        ended(0),
        Seen::Ended {
            id: "id-c".into(),
            again: false
        }
    );
    assert_eq!(
        ended(1),
        Seen::Ended {
            id: "id-c".into(),
            again: true
        }
    );
    let mut hosts = pod().as_ref().clone();
    hosts.spec.as_mut().unwrap().host_network = Some(true);
    assert_eq!(
        pod_probes(&hosts, &observed(ContainerState::Created), host).ip,
        host
    );
}

#[tokio::test(start_paused = true)]
async fn failures_become_events_and_changes_looks() {
    let (events, looks) = (Arc::new(Events::default()), Arc::new(Mutex::new(0)));
    let counted = looks.clone();
    let wake = Box::new(move |uid: &str| {
        assert_eq!(uid, "u-1");
        *counted.lock().unwrap() += 1;
    });
    let exec = Arc::new(Scripted::new(|_, _| exit(1, "ill")));
    let none = Box::new(|_: SignedDuration| SignedDuration::ZERO);
    let (probes, prober) = NodeProbes::new(
        exec.clone(),
        events.clone(),
        wake,
        None,
        none,
        Arc::new(wall),
        crate::metrics::KubeletMetrics::new(),
    );
    let task = tokio::spawn(prober.run());
    probes.update(&pod(), &observed(ContainerState::Running { started: wall() }));
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!(
        probes.results("u-1").readiness("id-c"),
        Some(ProbeResult::Failure)
    );
    assert_eq!(*looks.lock().unwrap(), 1, "it was never ready");
    let event = &events.of("u-1")[0];
    assert_eq!(
        (event.reason.as_str(), event.message.as_str()),
        ("Unhealthy", "Readiness probe failed: ill")
    );
    assert_eq!(event.field_path.as_deref(), Some("spec.containers{c}"));
    probes.terminating("u-1");
    probes.remove("u-1");
    let before = exec.calls.lock().unwrap().len();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(exec.calls.lock().unwrap().len(), before);
    assert_eq!(probes.results("u-1"), Default::default());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn hooks_are_found_by_the_containers_name() {
    let exec = Arc::new(Scripted::new(|_, command| {
        exit(i32::from(command[0] == "start"), "secret")
    }));
    let hooks = NodeHooks::new(exec.clone());
    let message = hooks.post_start(&pod(), None, "c", "id-c").await.unwrap_err();
    assert!(
        message.starts_with("Exec lifecycle hook ([start]) for Container \"c\""),
        "{message}"
    );
    assert_eq!(hooks.post_start(&pod(), None, "plain", "id").await, Ok(()));
    let late = hooks
        .pre_stop(&pod(), None, "c", "id-c", Duration::from_secs(3))
        .await
        .unwrap_err();
    assert!(late.ends_with("did not end within 3 s"), "{late}");
}
