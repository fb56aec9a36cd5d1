//! What upstream's API server knows about pods: how absent fields are filled in, what is valid, what is requested.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

pub mod defaults;
pub mod resources;
pub mod validation;

/// An absent text is an empty one.
pub(crate) fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or("")
}

/// An absent list is an empty one.
pub(crate) fn list<T>(field: &Option<Vec<T>>) -> &[T] {
    field.as_deref().unwrap_or(&[])
}

/// Whether an init container is a sidecar: it is started in turn, and then runs beside the others.
pub fn is_sidecar(init_container: &Container) -> bool {
    text(&init_container.restart_policy) == "Always"
}

/// The spec's init containers.
pub fn init_containers(spec: &PodSpec) -> &[Container] {
    list(&spec.init_containers)
}

/// The fields that an ephemeral container shares with the others.
pub fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        target_container_name: _,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = ephemeral.clone();
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    }
}

/// A pod without a spec has an empty one.
pub(crate) fn spec_of(pod: &Pod) -> std::borrow::Cow<'_, PodSpec> {
    match &pod.spec {
        Some(spec) => std::borrow::Cow::Borrowed(spec),
        None => std::borrow::Cow::Owned(PodSpec::default()),
    }
}
