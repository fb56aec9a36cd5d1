//! The downward API.

use super::*;
use crate::cri::downward::{PodIps, field_value, format_map, resource_value};

fn labelled() -> Pod {
    let mut pod = one(json!({"resources": {"limits": {"cpu": "250m"}}}));
    let labels = [("b", "2"), ("a", "x\"\\\n\u{7f}é\u{200b}")];
    pod.metadata.labels = Some(
        labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    );
    pod.metadata.annotations = Some([("k.io/x".to_owned(), "v".to_owned())].into());
    let spec = pod.spec.as_mut().unwrap();
    spec.node_name = Some("node-1".into());
    spec.service_account_name = Some("sa".into());
    pod
}

#[test]
fn each_field_is_known() {
    let (pod_ips, host_ips) = (ips(&["10.0.0.5", "fd00::5"]), facts().host_ips);
    let value = |path: &str| {
        field_value(
            &labelled(),
            path,
            PodIps {
                pod: &pod_ips,
                host: &host_ips,
            },
        )
        .unwrap()
    };
    for (path, expected) in [
        ("metadata.name", "web"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['b']", "2"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['k.io/x']", "v"),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "sa"),
        ("status.podIP", "10.0.0.5"),
        ("status.podIPs", "10.0.0.5,fd00::5"),
        ("status.hostIP", "192.0.2.1"),
        ("status.hostIPs", "192.0.2.1,2001:db8::1"),
    ] {
        assert_eq!(value(path), expected, "{path}");
    }
    let host = pod(json!({"hostNetwork": true, "containers": []}));
    let ips = PodIps {
        pod: &[],
        host: &host_ips,
    };
    assert_eq!(field_value(&host, "status.podIP", ips).unwrap(), "192.0.2.1");
    for path in ["metadata.labels[b]", "spec['x']", "status.phase", ""] {
        assert!(
            field_value(&labelled(), path, PodIps::default()).is_err(),
            "{path}"
        );
    }
}

#[test]
fn maps_are_sorted_and_quoted_as_go_does() {
    let labels = labelled().metadata.labels;
    assert_eq!(
        format_map(labels.as_ref()),
        "a=\"x\\\"\\\\\\n\\x7fé\\u200b\"\nb=\"2\""
    );
    assert_eq!(format_map(None), "");
}

#[test]
fn resources_are_rounded_up_and_default_to_the_nodes() {
    let pod = labelled();
    let value = |resource: &str, divisor: Option<&str>| {
        let mut selector = json!({"resource": resource});
        if let Some(divisor) = divisor {
            selector["divisor"] = json!(divisor);
        }
        resource_value(&pod, "c", &serde_json::from_value(selector).unwrap(), &facts())
    };
    assert_eq!(value("limits.cpu", None).unwrap(), "1");
    assert_eq!(value("limits.cpu", Some("1m")).unwrap(), "250");
    assert_eq!(value("requests.cpu", Some("1m")).unwrap(), "0");
    assert_eq!(value("limits.memory", Some("1Gi")).unwrap(), "7");
    assert_eq!(value("limits.memory", Some("2Gi")).unwrap(), "4");
    assert_eq!(
        value("limits.ephemeral-storage", Some("0")).unwrap(),
        (100_u64 << 30).to_string()
    );
    assert_eq!(value("limits.hugepages-2Mi", None).unwrap(), "0");
    assert_eq!(
        value("limits.gpu", None).unwrap_err().to_string(),
        "unsupported container resource : limits.gpu"
    );
    assert!(value("cpu", None).is_err());
    assert!(value("limits.cpu", Some("x")).is_err());
    let other = serde_json::from_value(json!({"resource": "limits.cpu", "containerName": "x"})).unwrap();
    assert_eq!(
        resource_value(&pod, "c", &other, &facts())
            .unwrap_err()
            .to_string(),
        "container x not found"
    );
}
