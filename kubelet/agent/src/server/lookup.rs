//! Which container a request is about, from the pod's spec and status. Pure.

use controlplane_api::k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// Whether the spec has a container of this name, of any kind.
pub(super) fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|container| &container.name);
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|container| &container.name)
        .chain(ephemeral)
        .any(|known| known == name)
}

fn status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses)
        .flatten()
        .find(|status| status.name == name)
}

/// The ID of the container whose log is meant: the current one, or the one before.
///
/// # Errors
/// Upstream's sentence for why there is no log.
pub(super) fn log_container(pod: &Pod, name: &str, previous: bool) -> Result<String, String> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let about = format!("container {name:?} in pod {pod_name:?}");
    let Some(status) = status(pod, name) else {
        return Err(format!("{about} is not available"));
    };
    let full = |id: &Option<String>| id.as_deref().filter(|id| !id.is_empty()).map(bare_id);
    let last = status
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref())
        .map(|terminated| full(&terminated.container_id));
    if previous {
        return last
            .flatten()
            .ok_or_else(|| format!("previous terminated {about} not found"));
    }
    let state = status.state.clone().unwrap_or_default();
    if state.running.is_some() {
        return full(&status.container_id).ok_or_else(|| format!("{about} is not available"));
    }
    if let Some(terminated) = &state.terminated {
        return full(&terminated.container_id)
            .or(last.flatten())
            .ok_or_else(|| format!("{about} is terminated"));
    }
    if let Some(last) = last {
        return last.ok_or_else(|| format!("{about} is terminated"));
    }
    match &state.waiting {
        Some(waiting) => Err(match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" => format!("{about} is waiting to start: image can't be pulled"),
            "ImagePullBackOff" => {
                format!("{about} is waiting to start: trying and failing to pull image")
            }
            reason => format!("{about} is waiting to start: {reason}"),
        }),
        None => Err(format!("{about} is waiting to start - no logs yet")),
    }
}

/// `containerd://abc` is `abc`.
fn bare_id(id: &str) -> String {
    id.split_once("://").map_or(id, |(_, id)| id).to_owned()
}
