//! What is measured of pods, and what evicted ones are told.

use std::fs;

use kubelet_volumes::VolumeUsage;

use super::*;
use crate::node::eviction::{Observation, Observations, Signal, Storage};

fn pod(volumes: &serde_json::Value) -> Arc<Pod> {
    let manifest = serde_json::json!({
        "metadata": {"namespace": "default", "name": "web", "uid": "u",
            "annotations": {"kubernetes.io/config.source": "file"}},
        "spec": {"containers": [{"name": "c"}], "volumes": volumes},
    });
    Arc::new(serde_json::from_value(manifest).expect("a pod"))
}

fn used(used_bytes: u64) -> VolumeUsage {
    VolumeUsage {
        used_bytes,
        used_inodes: 1,
        capacity_bytes: 0,
        available_bytes: 0,
        inodes: 0,
        free_inodes: 0,
        partial: false,
    }
}

fn stats() -> v1::PodSandboxStats {
    let number = |value| Some(v1::UInt64Value { value });
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            labels: [(
                crate::runtime::observe::labels::POD_UID.to_owned(),
                "u".to_owned(),
            )]
            .into(),
            ..Default::default()
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            memory: Some(v1::MemoryUsage {
                working_set_bytes: number(700),
                ..Default::default()
            }),
            containers: vec![v1::ContainerStats {
                attributes: Some(v1::ContainerAttributes {
                    metadata: Some(v1::ContainerMetadata {
                        name: "c".to_owned(),
                        attempt: 0,
                    }),
                    ..Default::default()
                }),
                writable_layer: Some(v1::FilesystemUsage {
                    used_bytes: number(30),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn what_a_pod_uses_is_put_together() {
    let logs = tempfile::tempdir().expect("a directory");
    let folder = logs.path().join("default_web_u/c");
    fs::create_dir_all(&folder).expect("made");
    fs::write(folder.join("0.log"), "line\n").expect("written");
    let pod = pod(&serde_json::json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "secret", "secret": {"secretName": "s"}},
        {"name": "map", "configMap": {"name": "m"}},
    ]));
    let names = ["disk", "memory", "secret", "map"];
    let volumes = names.map(|name| (name.to_owned(), used(10))).into();
    let mut all = observe::of_runtime(&[stats()]);
    let usage = all.get_mut("u").expect("the pod's");
    observe::add_disk(usage, &pod, &volumes, logs.path());
    assert_eq!(usage.memory, Some(700));
    assert_eq!(usage.containers["c"].root.bytes, 30);
    assert_eq!(usage.containers["c"].logs.inodes, 1);
    let ten = Storage { bytes: 10, inodes: 1 };
    assert_eq!(
        usage.volumes,
        [("disk".to_owned(), ten), ("map".to_owned(), ten)].into()
    );
    assert_eq!(usage.memory_volumes, [("memory".to_owned(), ten)].into());
}

#[test]
fn only_pods_with_limits_of_disk_are_measured_while_nothing_is_low() {
    assert!(!has_disk_limits(&pod(
        &serde_json::json!([{"name": "disk", "emptyDir": {}}])
    )));
    let limited = pod(&serde_json::json!([{"name": "disk", "emptyDir": {"sizeLimit": "1Ki"}}]));
    assert!(has_disk_limits(&limited));
    let mut limited = (*pod(&serde_json::json!([]))).clone();
    let limits = serde_json::json!({"limits": {"ephemeral-storage": "1Mi"}});
    if let Some(spec) = &mut limited.spec {
        spec.containers[0].resources = Some(serde_json::from_value(limits).expect("limits"));
    }
    assert!(has_disk_limits(&limited));
}

#[test]
fn a_static_pod_over_its_limit_goes_with_upstreams_words() {
    let pods = [pod(
        &serde_json::json!([{"name": "disk", "emptyDir": {"sizeLimit": "1Ki"}}]),
    )];
    let volumes = [("disk".to_owned(), used(2_000))].into();
    let mut usage = BTreeMap::from([("u".to_owned(), Usage::default())]);
    if let Some(usage) = usage.get_mut("u") {
        observe::add_disk(usage, &pods[0], &volumes, "/none".as_ref());
    }
    let settings = settings(&KubeletConfiguration::default()).expect("settings");
    let mut state = State::default();
    let decision = state.synchronize(
        &settings,
        &Observations::new(),
        &candidates(&pods, &usage),
        jiff::Timestamp::UNIX_EPOCH,
    );
    let eviction = &decision.over_limit[0];
    assert_eq!(limit_signal(&eviction.message), "emptydirfs.limit");
    let Update::Kill {
        cause: Cause::Evicted,
        grace: Some(1),
        status: Some(status),
    } = kill(eviction, None)
    else {
        panic!("the pod isn't evicted");
    };
    assert_eq!(
        (status.reason.as_str(), status.failed, status.disruption),
        ("Evicted", true, None)
    );
    assert!(
        status
            .message
            .starts_with("Usage of EmptyDir volume \"disk\" exceeds the limit \"1Ki\"")
    );
}

#[test]
fn memory_that_runs_low_takes_a_static_pod() {
    let config = KubeletConfiguration {
        eviction_hard: Some([("memory.available".to_owned(), "100Mi".to_owned())].into()),
        ..Default::default()
    };
    let settings = settings(&config).expect("settings");
    let pods = [pod(&serde_json::json!([]))];
    let usage = observe::of_runtime(&[stats()]);
    let seen = Observation {
        available: 1 << 20,
        capacity: 1 << 30,
        time: None,
    };
    let observations = Observations::from([(Signal::MemoryAvailable, seen)]);
    let all = candidates(&pods, &usage);
    let decision = State::default().synchronize(&settings, &observations, &all, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(decision.conditions, [Condition::Memory].into());
    let shortage = decision.shortage.expect("memory is low");
    assert!(shortage.reclaim.is_empty());
    assert_eq!(shortage.victim(&settings, &all).expect("a victim").uid, "u");
}

#[test]
fn statistics_of_containers_add_up_to_their_pods() {
    let one = |uid: &str, name: &str, memory, disk| {
        let number = |value| Some(v1::UInt64Value { value });
        v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                labels: [
                    (
                        crate::runtime::observe::labels::POD_UID.to_owned(),
                        uid.to_owned(),
                    ),
                    (
                        crate::runtime::observe::labels::CONTAINER_NAME.to_owned(),
                        name.to_owned(),
                    ),
                ]
                .into(),
                ..Default::default()
            }),
            memory: Some(v1::MemoryUsage {
                working_set_bytes: number(memory),
                ..Default::default()
            }),
            writable_layer: Some(v1::FilesystemUsage {
                used_bytes: number(disk),
                ..Default::default()
            }),
            ..Default::default()
        }
    };
    let all = [one("u", "a", 100, 7), one("u", "b", 20, 0), one("v", "a", 3, 0)];
    let used = observe::of_containers(&all);
    assert_eq!((used["u"].memory, used["v"].memory), (Some(120), Some(3)));
    assert_eq!(used["u"].containers["a"].root.bytes, 7);
    assert_eq!(used["u"].processes, None);
    assert!(observe::of_containers(&[v1::ContainerStats::default()]).is_empty());
}

#[tokio::test]
async fn what_the_runtime_does_not_tell_is_unknown_and_not_nothing() {
    let daemon = crate::testing::FakeCri::start();
    // It has neither statistics of sandboxes nor of containers.
    assert!(measured(&daemon.cri).await.is_err());
}
