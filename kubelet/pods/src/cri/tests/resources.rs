//! Resources of containers and pods.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use proptest::prelude::*;

use super::*;
use crate::cri::cgroup::{cgroup_path, pod_cgroup_name};
use crate::cri::resources::*;

fn container(requests: Value, limits: Value) -> Value {
    json!({"name": "c", "image": "i", "resources": {"requests": requests, "limits": limits}})
}

fn of(pod: &Pod) -> cri_api::v1::LinuxContainerResources {
    container_resources(pod, &first(pod), &facts(), false)
}

fn with(requests: Value, limits: Value) -> Pod {
    pod(json!({"containers": [container(requests, limits)]}))
}

#[test]
fn shares_and_quotas_have_their_bounds() {
    assert_eq!(
        [0, 1, 100, 1000, 1_000_000].map(milli_to_shares),
        [2, 2, 102, 1024, 262_144]
    );
    let quota = CpuQuota::default();
    assert_eq!(
        [0, 1, 10, 1500].map(|milli| milli_to_quota(milli, quota)),
        [0, 1000, 1000, 150_000]
    );
    let unenforced = NodeFacts {
        cpu_quota: CpuQuota {
            enforced: false,
            ..CpuQuota::default()
        },
        ..facts()
    };
    let pod = with(json!({}), json!({"cpu": "2"}));
    let resources = container_resources(&pod, &first(&pod), &unenforced, false);
    assert_eq!((resources.cpu_quota, resources.cpu_period), (0, 0));
    assert_eq!(resources.cpu_shares, 2048, "the limit stands for the request");
    assert_eq!(
        container_resources(&pod, &first(&pod), &facts(), true).cpu_quota,
        -1
    );
    let zero = with(json!({"cpu": "0"}), json!({"cpu": "2"}));
    assert_eq!(of(&zero).cpu_shares, 2, "a request of 0 is one");
}

#[test]
fn qos_classes() {
    let class = |spec: Value| qos_class(&pod(spec));
    let containers = |list: Value| json!({"containers": list});
    let full = || {
        container(
            json!({"cpu": "1", "memory": "1Gi"}),
            json!({"cpu": "1000m", "memory": "1024Mi"}),
        )
    };
    assert_eq!(
        class(containers(json!([container(json!({}), json!({}))]))),
        QosClass::BestEffort
    );
    assert_eq!(
        class(containers(json!([container(json!({"cpu": "0"}), json!({}))]))),
        QosClass::BestEffort
    );
    assert_eq!(class(containers(json!([full()]))), QosClass::Guaranteed);
    assert_eq!(
        class(containers(json!([full(), container(json!({}), json!({}))]))),
        QosClass::Burstable
    );
    assert_eq!(
        class(containers(json!([container(json!({"cpu": "1"}), json!({}))]))),
        QosClass::Burstable
    );
    let whole = json!({"cpu": "1", "memory": "1Gi"});
    assert_eq!(
        class(json!({"containers": [{"name": "c"}], "resources": {"requests": whole, "limits": whole}})),
        QosClass::Guaranteed
    );
    let mut told = with(json!({}), json!({}));
    told.status = Some(serde_json::from_value(json!({"qosClass": "Guaranteed"})).unwrap());
    assert_eq!(qos_class(&told), QosClass::Guaranteed);
}

#[test]
fn oom_scores_by_class_and_request() {
    let score = |pod: &Pod| oom_score_adj(pod, &first(pod), 8 << 30);
    assert_eq!(score(&with(json!({}), json!({}))), 1000);
    let full = json!({"cpu": "1", "memory": "1Gi"});
    assert_eq!(score(&with(full.clone(), full)), -997);
    assert_eq!(score(&with(json!({"memory": "2Gi"}), json!({}))), 750);
    assert_eq!(score(&with(json!({"memory": "8Gi"}), json!({}))), 3);
    assert_eq!(score(&with(json!({"cpu": "1"}), json!({}))), 999);
    let mut critical = with(json!({}), json!({}));
    let spec = critical.spec.as_mut().unwrap();
    spec.priority = Some(2_000_001_000);
    spec.priority_class_name = Some("system-node-critical".into());
    assert_eq!(score(&critical), -997);
    let sidecar = pod(json!({
        "containers": [container(json!({"memory": "4Gi"}), json!({}))],
        "initContainers": [{"name": "s", "restartPolicy": "Always"}]
    }));
    let init = sidecar.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0].clone();
    assert_eq!(
        oom_score_adj(&sidecar, &init, 8 << 30),
        500,
        "no sidecar is killed before what it serves"
    );
}

#[test]
fn swap_by_behavior() {
    let swap = |pod: &Pod, facts: &NodeFacts| {
        let resources = container_resources(pod, &first(pod), facts, false);
        (
            resources.unified.get("memory.swap.max").cloned(),
            resources.memory_swap_limit_in_bytes,
        )
    };
    let burstable = with(json!({"memory": "2Gi"}), json!({"memory": "3Gi"}));
    let limited = NodeFacts {
        swap: SwapBehavior::LimitedSwap,
        ..facts()
    };
    assert_eq!(swap(&burstable, &facts()), (Some("0".into()), 0));
    assert_eq!(swap(&burstable, &limited), (Some((1_u64 << 30).to_string()), 0));
    assert_eq!(
        swap(
            &with(json!({"memory": "1Gi"}), json!({"memory": "1Gi"})),
            &limited
        )
        .0,
        Some("0".into())
    );
    assert_eq!(
        swap(&with(json!({"cpu": "1"}), json!({})), &limited).0,
        Some("0".into())
    );
    let v1 = NodeFacts {
        cgroup: CgroupFacts {
            v2: false,
            ..facts().cgroup
        },
        ..facts()
    };
    assert_eq!(swap(&burstable, &v1), (None, 3 << 30));
    let none = NodeFacts {
        cgroup: CgroupFacts {
            swap_controller: false,
            ..facts().cgroup
        },
        ..facts()
    };
    assert_eq!(swap(&burstable, &none), (None, 0));
}

#[test]
fn memory_qos_protects_and_throttles() {
    let qos = NodeFacts {
        memory_qos: Some(MemoryQos {
            throttling_factor: 0.9,
            page_size: 4096,
        }),
        ..facts()
    };
    let unified = |pod: &Pod| {
        let resources = container_resources(pod, &first(pod), &qos, false);
        ["memory.min", "memory.high"].map(|key| resources.unified.get(key).cloned())
    };
    let bounded = with(json!({"memory": "1000Mi"}), json!({"memory": "2000Mi"}));
    assert_eq!(
        unified(&bounded),
        [
            Some((1000_u64 << 20).to_string()),
            Some((1900_u64 << 20).to_string())
        ]
    );
    let full = with(json!({"memory": "1Gi"}), json!({"memory": "1Gi"}));
    assert_eq!(unified(&full), [Some((1_u64 << 30).to_string()), None]);
    let open = unified(&with(json!({}), json!({"cpu": "1"})));
    assert_eq!(open, [None, None], "as much as its limit: none");
}

#[test]
fn huge_pages_have_a_limit_for_each_size() {
    let pod = with(
        json!({}),
        json!({"hugepages-2Mi": "64Mi", "hugepages-32Mi": "32Mi"}),
    );
    let limits: Vec<_> = of(&pod)
        .hugepage_limits
        .into_iter()
        .map(|l| (l.page_size, l.limit))
        .collect();
    assert_eq!(limits, [("2MB".to_owned(), 64 << 20), ("1GB".to_owned(), 0)]);
}

#[test]
fn pod_level_limits_stand_for_containers_that_have_none() {
    let pod = pod(json!({
        "containers": [container(json!({}), json!({"cpu": "500m"}))],
        "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}
    }));
    let resources = of(&pod);
    assert_eq!(
        (resources.cpu_quota, resources.memory_limit_in_bytes),
        (50_000, 1 << 30)
    );
    let whole = pod_cgroup_resources(&pod, &facts());
    assert_eq!(
        (whole.cpu_shares, whole.cpu_quota, whole.memory),
        (Some(1024), Some(200_000), Some(1 << 30))
    );
}

#[test]
fn a_pods_cgroup_by_class() {
    let limits = json!({"cpu": "1", "memory": "1Gi"});
    let guaranteed = pod_cgroup_resources(&with(limits.clone(), limits.clone()), &facts());
    assert_eq!(
        (
            guaranteed.cpu_shares,
            guaranteed.cpu_quota,
            guaranteed.cpu_period,
            guaranteed.memory
        ),
        (Some(1024), Some(100_000), Some(100_000), Some(1 << 30))
    );
    let partly = pod(json!({"containers": [
        container(json!({"cpu": "500m"}), limits), container(json!({"cpu": "500m"}), json!({"cpu": "1"}))
    ]}));
    let partly = pod_cgroup_resources(
        &partly,
        &NodeFacts {
            pod_pids_limit: Some(100),
            ..facts()
        },
    );
    assert_eq!(
        (partly.cpu_shares, partly.cpu_quota, partly.memory, partly.pids),
        (Some(1024), Some(200_000), None, Some(100))
    );
    let nothing = pod_cgroup_resources(&with(json!({}), json!({})), &facts());
    assert_eq!(
        (nothing.cpu_shares, nothing.cpu_quota, nothing.memory),
        (Some(2), None, None)
    );
}

#[test]
fn init_containers_sidecars_and_overhead_are_counted_as_the_scheduler_does() {
    let pod = pod(json!({
        "overhead": {"cpu": "100m", "memory": "10Mi"},
        "containers": [container(json!({"cpu": "1"}), json!({}))],
        "initContainers": [
            {"name": "i", "resources": {"requests": {"cpu": "3"}}},
            {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
            {"name": "j", "resources": {"requests": {"cpu": "2"}}}
        ]
    }));
    let total = |overhead| pod_totals(&pod, Which::Requests, overhead)["cpu"] / 1_000_000;
    assert_eq!((total(false), total(true)), (3000, 3100));
    let config = sandbox_config(&pod, 0, &facts(), &SandboxExtra::default())
        .unwrap()
        .linux
        .unwrap();
    let overhead = config.overhead.unwrap();
    assert_eq!(
        (
            overhead.cpu_shares,
            overhead.cpu_quota,
            overhead.memory_limit_in_bytes
        ),
        (102, 10_000, 10 << 20)
    );
    assert_eq!(config.resources.unwrap().cpu_shares, 3072);
}

#[test]
fn cgroups_are_named_as_upstreams() {
    let name = pod_cgroup_name(QosClass::Burstable, "ab-12");
    let systemd = CgroupFacts::default();
    assert_eq!(
        cgroup_path(&systemd, &name),
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podab_12.slice"
    );
    let cgroupfs = CgroupFacts {
        driver: CgroupDriver::Cgroupfs,
        root: vec!["top".into()],
        ..systemd.clone()
    };
    assert_eq!(cgroup_path(&cgroupfs, &name), "/top/kubepods/burstable/podab-12");
    assert_eq!(
        cgroup_path(&systemd, &pod_cgroup_name(QosClass::Guaranteed, "u")),
        "/kubepods.slice/kubepods-podu.slice"
    );
    assert_eq!(cgroup_path(&systemd, &[]), "/");
}

#[test]
fn amounts_that_are_none_count_as_nothing() {
    let list = BTreeMap::from([
        ("cpu".to_owned(), Quantity("1.0001".into())),
        ("memory".to_owned(), Quantity("x".into())),
    ]);
    assert_eq!(
        (
            quantity::value(Some(&list), "cpu"),
            quantity::milli(Some(&list), "cpu")
        ),
        (2, 1001)
    );
    assert_eq!(
        (
            quantity::value(Some(&list), "memory"),
            quantity::value(None, "cpu")
        ),
        (0, 0)
    );
}

proptest! {
    #[test]
    fn milli_quantities_come_back(milli in 0_i64..10_000_000) {
        let list = BTreeMap::from([("cpu".to_owned(), Quantity(format!("{milli}m")))]);
        prop_assert_eq!(quantity::milli(Some(&list), "cpu"), milli);
        prop_assert_eq!(quantity::value(Some(&list), "cpu"), (milli + 999) / 1000);
    }
}
