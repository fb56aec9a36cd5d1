//! Sums of pods written as manifests, and properties against a model in plain numbers.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::strict::{Limits, parse};

fn pod(text: &str) -> Pod {
    parse(text, Limits::default()).expect("yaml")[0]
        .decode()
        .unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn shown(amounts: &Amounts) -> String {
    amounts
        .iter()
        .map(|(name, amount)| format!("{name}={amount}"))
        .collect::<Vec<_>>()
        .join(" ")
}

const SIDECARS: &str = "
spec:
  overhead: {cpu: 10m, memory: 1Mi}
  initContainers:
  - {name: first, resources: {requests: {cpu: 3}, limits: {cpu: 3}}}
  - {name: side, restartPolicy: Always, resources: {requests: {cpu: 1, memory: 1Gi}}}
  - {name: last, resources: {requests: {cpu: 2500m}}}
  containers:
  - {name: a, resources: {requests: {cpu: 1}, limits: {memory: 1Gi}}}
  - {name: b, resources: {requests: {cpu: 500m, a.b/c: 2}}}
";

#[test]
fn sidecars_and_init_containers_count_as_upstream_counts_them() {
    let pod = pod(SIDECARS);
    // Running: 1 + 0.5 + the sidecar's 1; starting: 3 for the first, 1 + 2.5 for the last.
    let all = Counting::default();
    assert_eq!(shown(&pod_requests(&pod, all)), "a.b/c=2 cpu=3510m memory=1025Mi");
    assert_eq!(shown(&pod_limits(&pod, all)), "cpu=3010m memory=1025Mi");
    let bare = Counting {
        without_overhead: true,
        ..all
    };
    assert_eq!(shown(&pod_requests(&pod, bare)), "a.b/c=2 cpu=3500m memory=1Gi");
    assert_eq!(shown(&pod_limits(&pod, bare)), "cpu=3 memory=1Gi");
    assert_eq!(qos_class(&pod), QosClass::Burstable);
    assert_eq!(
        shown(&container_requests(&pod.spec.expect("spec").containers[0])),
        "cpu=1 memory=1Gi"
    );
}

#[test]
fn the_pods_own_resources_replace_the_sums() {
    let pod = pod("
spec:
  resources: {requests: {cpu: 4, a.b/c: 9}, limits: {memory: 2Gi, hugepages-2Mi: 4Mi}}
  containers: [{name: a, resources: {requests: {cpu: 1, memory: 1Gi, a.b/c: 1}, limits: {cpu: 5}}}]
");
    let all = Counting::default();
    assert_eq!(shown(&pod_requests(&pod, all)), "a.b/c=1 cpu=4 memory=1Gi");
    assert_eq!(
        shown(&pod_limits(&pod, all)),
        "cpu=5 hugepages-2Mi=4Mi memory=2Gi"
    );
    let without = Counting {
        without_pod_level: true,
        ..all
    };
    assert_eq!(shown(&pod_requests(&pod, without)), "a.b/c=1 cpu=1 memory=1Gi");
}

#[test]
fn while_a_resize_is_under_way_the_most_counts() {
    let mut text = "
spec: {containers: [{name: a, resources: {requests: {cpu: 1}, limits: {cpu: 2}}}]}
status:
  containerStatuses: [{name: a, image: i, imageID: d, ready: true, restartCount: 0, allocatedResources: {cpu: 3}, resources: {requests: {cpu: 2}, limits: {cpu: 1}}}]
".to_owned();
    let counting = Counting {
        with_status: true,
        ..Counting::default()
    };
    assert_eq!(shown(&pod_requests(&pod(&text), counting)), "cpu=3");
    assert_eq!(shown(&pod_limits(&pod(&text), counting)), "cpu=2");
    assert_eq!(shown(&pod_requests(&pod(&text), Counting::default())), "cpu=1");
    text = text.replace("cpu: 1}, limits: {cpu: 2}", "cpu: 9}, limits: {cpu: 9}");
    text.push_str("  conditions: [{type: PodResizePending, status: 'True', reason: Infeasible}]\n");
    assert_eq!(shown(&pod_requests(&pod(&text), counting)), "cpu=3");
    assert_eq!(shown(&pod_limits(&pod(&text), counting)), "cpu=1");
}

#[test]
fn qos_classes_are_upstreams() {
    let of = |containers: &str, more: &str| {
        qos_class(&pod(&format!("spec: {{containers: [{containers}]{more}}}")))
    };
    let full =
        "{name: a, resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1000m, memory: 1024Mi}}}";
    let none = "{name: b}";
    assert_eq!(of(none, ""), QosClass::BestEffort);
    assert_eq!(
        of(
            "{name: b, resources: {limits: {a.b/c: 1}, requests: {cpu: 0}}}",
            ""
        ),
        QosClass::BestEffort
    );
    assert_eq!(of(full, ""), QosClass::Guaranteed);
    assert_eq!(of(&format!("{full}, {none}"), ""), QosClass::Burstable);
    assert_eq!(of(full, ", initContainers: [{name: i}]"), QosClass::Burstable);
    assert_eq!(
        of("{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}", ""),
        QosClass::Burstable
    );
    assert_eq!(
        of("{name: a, resources: {requests: {cpu: 1}}}", ""),
        QosClass::Burstable
    );
    // The pod's own decide alone.
    let own = ", resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1, memory: 1Gi}}";
    assert_eq!(of(none, own), QosClass::Guaranteed);
    assert_eq!(of(full, ", resources: {requests: {cpu: 2}}"), QosClass::Burstable);
    assert_eq!(
        of(none, ", resources: {limits: {cpu: 1}, requests: {cpu: 1}}"),
        QosClass::Burstable
    );
    assert_eq!(
        of(full, ", resources: {requests: {a.b/c: 1}}"),
        QosClass::Guaranteed
    );
    assert_eq!(QosClass::BestEffort.to_string(), "BestEffort");
}

proptest! {
    /// Whole numbers of CPU: the need at each moment of the start, and then of running, against the sum.
    #[test]
    fn no_moment_needs_more_than_is_requested(
        init in prop::collection::vec((any::<bool>(), 0i64..100), 0..6),
        running in prop::collection::vec(0i64..100, 0..4),
        overhead in 0i64..10,
    ) {
        let mut most = 0;
        let mut sidecars = 0;
        for (is_sidecar, cpu) in &init {
            most = most.max(sidecars + cpu);
            sidecars += if *is_sidecar { *cpu } else { 0 };
        }
        most = most.max(sidecars + running.iter().sum::<i64>()) + overhead;
        let request = |cpu: &i64| json!({"requests": {"cpu": cpu}});
        let init: Vec<_> = init.iter().map(|(is_sidecar, cpu)| {
            json!({"name": "i", "restartPolicy": is_sidecar.then_some("Always"), "resources": request(cpu)})
        }).collect();
        let running: Vec<_> = running.iter().map(|cpu| json!({"name": "c", "resources": request(cpu)})).collect();
        let spec = json!({"containers": running, "initContainers": init, "overhead": {"cpu": overhead}});
        let pod: Pod = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "spec": spec})).expect("a pod");
        prop_assert_eq!(pod_requests(&pod, Counting::default())["cpu"].value(), most);
    }
}
