//! Labels and annotations that the kubelet leaves with sandboxes and containers, and reads again after a restart.

use std::collections::{BTreeMap, HashMap};

use controlplane_api::k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use super::sandbox::spec;
use crate::hash::container_hash;

/// The pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// The pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// The pod's UID.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// The container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// The hash of the container's spec, in hexadecimal.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// How many containers of this name the pod had before.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// `terminationMessagePath`.
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// `terminationMessagePolicy`.
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// `lifecycle.preStop`, as JSON.
pub const PRE_STOP_HANDLER: &str = "io.kubernetes.container.preStopHandler";
/// `ports`, as JSON.
pub const PORTS: &str = "io.kubernetes.container.ports";
/// The pod's `terminationGracePeriodSeconds`.
pub const TERMINATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// The grace period that the pod is deleted with.
pub const DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";
/// Where a static pod comes from: `file` or `http`; of others `api`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// The hash of a static pod's manifest.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// When a pod was seen first.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
/// On the API server's copy of a static pod: its hash.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// What the kubelet left with a container, found again.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// [`CONTAINER_HASH`].
    pub hash: Option<u64>,
    /// [`RESTART_COUNT`].
    pub restart_count: u32,
    /// [`TERMINATION_MESSAGE_PATH`].
    pub termination_message_path: String,
    /// [`TERMINATION_MESSAGE_POLICY`].
    pub termination_message_policy: String,
    /// [`PRE_STOP_HANDLER`].
    pub pre_stop: Option<LifecycleHandler>,
    /// [`TERMINATION_GRACE_PERIOD`].
    pub termination_grace_period: Option<i64>,
    /// [`DELETION_GRACE_PERIOD`].
    pub deletion_grace_period: Option<i64>,
}

/// Reads the annotations of a container; what isn't there, or isn't what it should be, is as if it were never set.
pub fn found(annotations: &BTreeMap<String, String>) -> Found {
    let text = |key: &str| annotations.get(key).cloned().unwrap_or_default();
    let number = |key: &str| annotations.get(key).and_then(|value| value.parse().ok());
    Found {
        hash: annotations
            .get(CONTAINER_HASH)
            .and_then(|value| u64::from_str_radix(value, 16).ok()),
        restart_count: annotations
            .get(RESTART_COUNT)
            .and_then(|value| value.parse().ok())
            .unwrap_or(0),
        termination_message_path: text(TERMINATION_MESSAGE_PATH),
        termination_message_policy: text(TERMINATION_MESSAGE_POLICY),
        pre_stop: annotations
            .get(PRE_STOP_HANDLER)
            .and_then(|value| serde_json::from_str(value).ok()),
        termination_grace_period: number(TERMINATION_GRACE_PERIOD),
        deletion_grace_period: number(DELETION_GRACE_PERIOD),
    }
}

/// A pod as messages name it: `NAME_NAMESPACE(UID)`.
pub fn describe(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!(
        "{}_{}({})",
        text(&meta.name),
        text(&meta.namespace),
        text(&meta.uid)
    )
}

/// Whether a pod comes from this node rather than from the API server.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE).is_some_and(|source| source != "api")
}

/// Whether a pod is the API server's copy of a static one.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

pub(crate) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The labels of a sandbox: the pod's own and its identity.
pub(crate) fn sandbox_labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = pod
        .metadata
        .labels
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    identity(pod, &mut labels);
    labels
}

/// The labels of a container.
pub(crate) fn container_labels(pod: &Pod, container: &str) -> HashMap<String, String> {
    let mut labels = HashMap::new();
    identity(pod, &mut labels);
    labels.insert(CONTAINER_NAME.to_owned(), container.to_owned());
    labels
}

fn identity(pod: &Pod, labels: &mut HashMap<String, String>) {
    let meta = &pod.metadata;
    for (key, value) in [
        (POD_NAME, &meta.name),
        (POD_NAMESPACE, &meta.namespace),
        (POD_UID, &meta.uid),
    ] {
        labels.insert(key.to_owned(), value.clone().unwrap_or_default());
    }
}

/// The annotations of a container; `others` are those of device plugins, which never override the kubelet's.
pub(crate) fn container_annotations(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    others: &BTreeMap<String, String>,
) -> HashMap<String, String> {
    let mut annotations: HashMap<String, String> = others
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut set = |key: &str, value: String| annotations.insert(key.to_owned(), value);
    set(CONTAINER_HASH, format!("{:x}", container_hash(container)));
    set(RESTART_COUNT, attempt.to_string());
    set(
        TERMINATION_MESSAGE_PATH,
        container.termination_message_path.clone().unwrap_or_default(),
    );
    set(
        TERMINATION_MESSAGE_POLICY,
        container.termination_message_policy.clone().unwrap_or_default(),
    );
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        set(DELETION_GRACE_PERIOD, seconds.to_string());
    }
    if let Some(seconds) = spec(pod).termination_grace_period_seconds {
        set(TERMINATION_GRACE_PERIOD, seconds.to_string());
    }
    let pre_stop = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    if let Some(text) = pre_stop.and_then(|handler| serde_json::to_string(handler).ok()) {
        set(PRE_STOP_HANDLER, text);
    }
    let ports = container.ports.as_ref().filter(|ports| !ports.is_empty());
    if let Some(text) = ports.and_then(|ports| serde_json::to_string(ports).ok()) {
        set(PORTS, text);
    }
    annotations
}
