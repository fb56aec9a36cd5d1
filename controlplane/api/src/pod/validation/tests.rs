//! Bad pods of each part in testdata/pods, each with upstream's complaints beside it, and static pods.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::pod::defaults::default_pod;
use crate::strict::{Limits, parse_file};

fn testdata() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/pods")
}

fn defaulted(name: &str, text: &str) -> Pod {
    let documents = parse_file(name, text, Limits::default()).unwrap_or_else(|error| panic!("{error}"));
    let mut pod: Pod = documents[0]
        .decode()
        .unwrap_or_else(|errors| panic!("{errors:?}"));
    default_pod(&mut pod);
    pod
}

fn complaints(name: &str, text: &str) -> String {
    let errors = validate_pod(&defaulted(name, text), Options::default());
    errors.iter().map(|error| format!("{error}\n")).collect()
}

#[test]
fn each_bad_pod_gets_just_the_expected_complaints() {
    let mut manifests: Vec<_> = fs::read_dir(testdata())
        .expect("testdata")
        .map(|e| e.expect("entry").path())
        .collect();
    manifests.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    manifests.sort();
    assert!(manifests.len() > 10, "{manifests:?}");
    for path in manifests {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let found = complaints(name, &fs::read_to_string(&path).expect("a manifest"));
        let expected = fs::read_to_string(path.with_extension("expected")).unwrap_or_default();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn privileged_containers_can_be_disallowed() {
    let text = "{metadata: {name: a, namespace: b}, spec: {containers: [{name: a, image: a, securityContext: {privileged: true}}]}}";
    let errors = validate_pod(
        &defaulted("pod", text),
        Options {
            allow_privileged: false,
        },
    );
    assert_eq!(
        errors.to_string(),
        "spec.containers[0].securityContext.privileged: Forbidden: disallowed by cluster policy"
    );
    assert!(validate_pod(&defaulted("pod", text), Options::default()).is_empty());
}

#[test]
fn a_pod_without_defaults_is_told_what_is_missing() {
    let pod = Pod {
        spec: Some(PodSpec::default()),
        ..Pod::default()
    };
    let found: Vec<_> = validate_pod(&pod, Options::default())
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "metadata.name: Required value: name or generateName is required",
            "metadata.namespace: Required value",
            "spec.terminationGracePeriodSeconds: Required value",
            "spec.containers: Required value",
            "spec.restartPolicy: Required value",
            "spec.dnsPolicy: Required value",
        ]
    );
}

#[test]
fn what_is_no_quantity_is_named() {
    let text = "{metadata: {name: a, namespace: b}, spec: {containers: [{name: a, image: a}]}}";
    let mut pod = defaulted("pod", text);
    let limits = [(
        "cpu".to_owned(),
        k8s_openapi::apimachinery::pkg::api::resource::Quantity("1 core".to_owned()),
    )];
    pod.spec.as_mut().expect("spec").containers[0]
        .resources
        .get_or_insert_default()
        .limits = Some(limits.into());
    let errors = validate_pod(&pod, Options::default()).to_string();
    assert!(
        errors.starts_with(
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"1 core\": quantities must match"
        ),
        "{errors}"
    );
}

#[test]
fn static_pods_name_nothing_of_the_api() {
    let check = |spec: &str| {
        let text = format!("{{metadata: {{name: a, namespace: b}}, spec: {{nodeName: node, {spec}}}}}");
        validate_static_pod(&defaulted("pod", &text))
    };
    let app = "containers: [{name: a, image: a}]";
    let volume = |source: &str| format!("{app}, volumes: [{{name: v, {source}}}]");
    assert_eq!(check(app), Ok(()));
    assert_eq!(check(&volume("hostPath: {path: /a}")), Ok(()));
    assert_eq!(
        check(&volume(
            "projected: {sources: [{downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}"
        )),
        Ok(())
    );
    let claim = "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1}}}}}";
    for (spec, resource) in [
        (format!("{app}, serviceAccountName: s"), "serviceaccounts"),
        (format!("{app}, imagePullSecrets: [{{name: s}}]"), "secrets"),
        (
            "containers: [{name: a, image: a, envFrom: [{secretRef: {name: s}}]}]".to_owned(),
            "secrets",
        ),
        (
            format!(
                "{app}, initContainers: [{{name: i, image: a, env: [{{name: A, valueFrom: {{configMapKeyRef: {{name: m, key: k}}}}}}]}}]"
            ),
            "configmaps",
        ),
        (volume("secret: {secretName: s}"), "secrets"),
        (volume("configMap: {name: m}"), "configmaps"),
        (
            volume("projected: {sources: [{configMap: {name: m}}]}"),
            "configmaps",
        ),
        (
            volume("persistentVolumeClaim: {claimName: c}"),
            "persistentvolumeclaims",
        ),
        (volume(claim), "persistentvolumeclaims (via ephemeral volumes)"),
        (volume("csi: {driver: d}"), "csidrivers (via CSI volumes)"),
        (
            volume("projected: {sources: [{clusterTrustBundle: {name: b, path: p}}]}"),
            "clustertrustbundles",
        ),
        (
            format!("{app}, resourceClaims: [{{name: c, resourceClaimName: c}}]"),
            "resourceclaims",
        ),
    ] {
        assert_eq!(
            check(&spec),
            Err(format!("static pods may not reference {resource}")),
            "{spec}"
        );
    }
    assert_eq!(
        check("containers: []"),
        Err("invalid pod: spec.containers: Required value".to_owned())
    );
}
