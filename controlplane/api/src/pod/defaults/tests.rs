//! Defaults of whole pods, written as manifests.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::strict::{Limits, parse};

fn pod(text: &str) -> Pod {
    parse(text, Limits::default()).expect("yaml")[0]
        .decode()
        .unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn defaulted(text: &str) -> Value {
    let mut pod = pod(text);
    default_pod(&mut pod);
    let once = pod.clone();
    default_pod(&mut pod);
    assert_eq!(pod, once, "twice is as once");
    serde_json::to_value(&pod).expect("json")["spec"].take()
}

#[test]
fn a_bare_pod_gets_what_upstream_fills_in() {
    assert_eq!(
        defaulted("spec: {containers: [{name: a, image: nginx}]}"),
        json!({
            "containers": [{
                "name": "a", "image": "nginx", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30,
        })
    );
    let kept = defaulted(
        "spec: {containers: [], dnsPolicy: None, enableServiceLinks: false, restartPolicy: Never, \
         schedulerName: mine, securityContext: {runAsUser: 1}, terminationGracePeriodSeconds: 0, serviceAccount: me}",
    );
    assert_eq!(
        kept,
        json!({
            "containers": [], "dnsPolicy": "None", "enableServiceLinks": false, "restartPolicy": "Never",
            "schedulerName": "mine", "securityContext": {"runAsUser": 1}, "terminationGracePeriodSeconds": 0,
            "serviceAccount": "me", "serviceAccountName": "me",
        })
    );
}

#[test]
fn the_pull_policy_follows_the_tag() {
    for (image, policy) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1", "IfNotPresent"),
        ("localhost:5000/nginx", "Always"),
        ("localhost:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:00", "IfNotPresent"),
        ("nginx:latest@sha256:00", "Always"),
        ("", "IfNotPresent"),
    ] {
        assert_eq!(pull_policy(image), policy, "{image}");
    }
}

const CONTAINER: &str = "
spec:
  hostNetwork: true
  initContainers:
  - name: i
    image: i:1
    ports: [{containerPort: 1}]
  containers:
  - name: a
    image: a:1
    imagePullPolicy: Never
    ports: [{containerPort: 80}, {containerPort: 81, hostPort: 82, protocol: UDP}]
    env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: FILE, valueFrom: {fileKeyRef: {key: k, path: p, volumeName: v}}}]
    livenessProbe: {httpGet: {port: 80}}
    readinessProbe: {grpc: {port: 1}, timeoutSeconds: 3, periodSeconds: 4, successThreshold: 5, failureThreshold: 6}
    startupProbe: {tcpSocket: {port: x}, timeoutSeconds: 0}
    lifecycle: {preStop: {httpGet: {port: 1, scheme: HTTPS}}, postStart: {exec: {command: [a]}}}
    resources: {limits: {cpu: 0.1, memory: 1024Mi}, requests: {cpu: 1234567n}}
  ephemeralContainers: [{name: e, image: e}]
";

#[test]
fn containers_probes_and_hooks_are_filled_in() {
    let spec = defaulted(CONTAINER);
    let container = &spec["containers"][0];
    assert_eq!(container["imagePullPolicy"], "Never");
    assert_eq!(
        container["ports"],
        json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}, {"containerPort": 81, "hostPort": 82, "protocol": "UDP"}])
    );
    assert_eq!(spec["initContainers"][0]["ports"][0]["hostPort"], 1);
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(container["env"][1]["valueFrom"]["fileKeyRef"]["optional"], false);
    assert_eq!(
        container["livenessProbe"],
        json!({"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(
        container["readinessProbe"],
        json!({"grpc": {"port": 1, "service": ""}, "timeoutSeconds": 3, "periodSeconds": 4, "successThreshold": 5, "failureThreshold": 6})
    );
    assert_eq!(container["startupProbe"]["timeoutSeconds"], 1);
    assert_eq!(
        container["lifecycle"]["preStop"]["httpGet"],
        json!({"path": "/", "port": 1, "scheme": "HTTPS"})
    );
    assert_eq!(
        container["resources"],
        json!({"limits": {"cpu": "100m", "memory": "1Gi"}, "requests": {"cpu": "2m", "memory": "1Gi"}})
    );
    assert_eq!(spec["ephemeralContainers"][0]["imagePullPolicy"], "Always");
}

#[test]
fn volumes_are_filled_in() {
    let text = "
spec:
  containers: []
  volumes:
  - name: empty
  - {name: host, hostPath: {path: /a}}
  - {name: secret, secret: {secretName: s}}
  - {name: map, configMap: {name: m, defaultMode: 256}}
  - {name: down, downwardAPI: {items: [{path: p, fieldRef: {fieldPath: metadata.name}}]}}
  - {name: image, image: {reference: 'a:1'}}
  - {name: all, projected: {sources: [{serviceAccountToken: {path: t}}, {podCertificate: {keyType: ED25519, signerName: a.b/c}}, {downwardAPI: {items: [{path: p, fieldRef: {fieldPath: metadata.name}}]}}]}}
  - {name: claim, ephemeral: {volumeClaimTemplate: {spec: {resources: {requests: {storage: 1024Mi}}}}}}
  - {name: iscsi, iscsi: {targetPortal: t, iqn: i, lun: 0}}
";
    let spec = defaulted(text);
    let volumes = &spec["volumes"];
    assert_eq!(volumes[0], json!({"name": "empty", "emptyDir": {}}));
    assert_eq!(volumes[1]["hostPath"], json!({"path": "/a", "type": ""}));
    assert_eq!(
        volumes[2]["secret"],
        json!({"secretName": "s", "defaultMode": 420})
    );
    assert_eq!(volumes[3]["configMap"], json!({"name": "m", "defaultMode": 256}));
    assert_eq!(volumes[4]["downwardAPI"]["defaultMode"], 420);
    assert_eq!(
        volumes[4]["downwardAPI"]["items"][0]["fieldRef"]["apiVersion"],
        "v1"
    );
    assert_eq!(volumes[5]["image"]["pullPolicy"], "IfNotPresent");
    assert_eq!(volumes[6]["projected"]["defaultMode"], 420);
    assert_eq!(
        volumes[6]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
        3600
    );
    assert_eq!(
        volumes[6]["projected"]["sources"][1]["podCertificate"]["maxExpirationSeconds"],
        86400
    );
    assert_eq!(
        volumes[6]["projected"]["sources"][2]["downwardAPI"]["items"][0]["fieldRef"]["apiVersion"],
        "v1"
    );
    assert_eq!(
        volumes[7]["ephemeral"]["volumeClaimTemplate"]["spec"]["volumeMode"],
        "Filesystem"
    );
    assert_eq!(
        volumes[7]["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"],
        "1Gi"
    );
    assert_eq!(volumes[8]["iscsi"]["iscsiInterface"], "default");
}

#[test]
fn the_pods_own_resources_follow_from_its_containers() {
    // Requests: what the containers request, else the pod's limit.
    let spec = defaulted(
        "spec: {resources: {limits: {cpu: 2, memory: 1Gi}}, containers: [{name: a, resources: {requests: {cpu: 500m}}}, {name: b, resources: {requests: {cpu: 250m}}}]}",
    );
    assert_eq!(
        spec["resources"],
        json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "750m", "memory": "1Gi"}})
    );
    // Limits: the containers' together, if all have one.
    let spec = defaulted(
        "spec: {resources: {requests: {cpu: 1, memory: 1Gi}}, containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}, {name: b, resources: {limits: {cpu: 1}}}]}",
    );
    assert_eq!(
        spec["resources"],
        json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1", "memory": "1Gi"}})
    );
    // Huge pages: the containers' limits, which are then requested too.
    let spec = defaulted(
        "spec: {resources: {limits: {cpu: 1}}, containers: [{name: a, resources: {limits: {cpu: 1, hugepages-2Mi: 4Mi}}}]}",
    );
    assert_eq!(
        spec["resources"],
        json!({"limits": {"cpu": "1", "hugepages-2Mi": "4Mi"}, "requests": {"cpu": "1", "hugepages-2Mi": "4Mi"}})
    );
    // Nothing asked for, nothing filled in.
    let spec = defaulted("spec: {containers: [{name: a, resources: {limits: {cpu: 1}}}]}");
    assert_eq!(spec.get("resources"), None);
}

proptest! {
    #[test]
    fn defaulting_twice_is_as_once(limits in prop::collection::btree_map("cpu|memory|hugepages-2Mi|a.b/c", "[0-9]{1,5}(m|Mi)?", 0..4), image in "[a-z]{0,3}(:[a-z]{1,6})?", host in any::<bool>()) {
        let container = json!({"name": "a", "image": image, "resources": {"limits": limits}, "ports": [{"containerPort": 5}]});
        let spec = json!({"containers": [container], "hostNetwork": host, "resources": {"limits": {"cpu": "1"}}, "volumes": [{"name": "v"}]});
        let mut once: Pod = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "spec": spec})).expect("a pod");
        default_pod(&mut once);
        let mut twice = once.clone();
        default_pod(&mut twice);
        prop_assert_eq!(once, twice);
    }
}
