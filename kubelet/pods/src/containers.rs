//! A pod's containers by kind, and which of them start again after which end.
//!
//! The rules are those of `restartPolicy` of pod and container, and of `restartPolicyRules` (KEP-5307, KEP-5532): the first
//! rule that matches an exit code decides; without one the container's own policy does, and without that the pod's.

use controlplane_api::k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// What kind of container it is; they differ in when they start and what their end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContainerKind {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: the next one starts once it has started up, and it is kept running.
    Sidecar,
    /// One of `spec.containers`.
    Regular,
    /// Added for debugging; never started twice.
    Ephemeral,
}

/// A pod's restart policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// After an exit code other than 0.
    OnFailure,
    /// Not at all.
    Never,
}

/// What the end of a container leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterExit {
    /// It stays ended.
    Stay,
    /// It starts again.
    Restart,
    /// All of the pod's containers end and start from the beginning, in the same sandbox.
    RestartAll,
}

/// The pod's spec; a pod without one has no containers.
pub fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

/// `spec.initContainers`: init containers and sidecars in order.
pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod)
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default()
}

/// `spec.containers`.
pub fn regular_containers(pod: &Pod) -> &[Container] {
    spec(pod)
        .map(|spec| spec.containers.as_slice())
        .unwrap_or_default()
}

/// `spec.ephemeralContainers`.
pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod)
        .and_then(|spec| spec.ephemeral_containers.as_deref())
        .unwrap_or_default()
}

/// Whether one of `spec.initContainers` is a sidecar.
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// The kind of one of `spec.initContainers`.
pub fn init_kind(init: &Container) -> ContainerKind {
    if is_sidecar(init) {
        ContainerKind::Sidecar
    } else {
        ContainerKind::Init
    }
}

/// The container of a name with its kind, of whatever list; an ephemeral one as a [`Container`] with the same fields.
pub fn find(pod: &Pod, name: &str) -> Option<(ContainerKind, Container)> {
    let init = init_containers(pod)
        .iter()
        .find(|one| one.name == name)
        .map(|one| (init_kind(one), one.clone()));
    let regular = || {
        regular_containers(pod)
            .iter()
            .find(|one| one.name == name)
            .map(|one| (ContainerKind::Regular, one.clone()))
    };
    let ephemeral = || {
        ephemeral_containers(pod)
            .iter()
            .find(|one| one.name == name)
            .map(|one| (ContainerKind::Ephemeral, from_ephemeral(one)))
    };
    init.or_else(regular).or_else(ephemeral)
}

/// An ephemeral container as a container: all but its target.
pub fn from_ephemeral(ephemeral: &EphemeralContainer) -> Container {
    let it = ephemeral.clone();
    Container {
        args: it.args,
        command: it.command,
        env: it.env,
        env_from: it.env_from,
        image: it.image,
        image_pull_policy: it.image_pull_policy,
        lifecycle: it.lifecycle,
        liveness_probe: it.liveness_probe,
        name: it.name,
        ports: it.ports,
        readiness_probe: it.readiness_probe,
        resize_policy: it.resize_policy,
        resources: it.resources,
        restart_policy: it.restart_policy,
        restart_policy_rules: it.restart_policy_rules,
        security_context: it.security_context,
        startup_probe: it.startup_probe,
        stdin: it.stdin,
        stdin_once: it.stdin_once,
        termination_message_path: it.termination_message_path,
        termination_message_policy: it.termination_message_policy,
        tty: it.tty,
        volume_devices: it.volume_devices,
        volume_mounts: it.volume_mounts,
        working_dir: it.working_dir,
    }
}

/// The pod's restart policy; Always where it says nothing.
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    parse_policy(spec(pod).and_then(|spec| spec.restart_policy.as_deref())).unwrap_or(RestartPolicy::Always)
}

/// What the end of an init, sidecar or regular container with this exit code leads to.
pub fn after_exit(pod: &Pod, container: &Container, kind: ContainerKind, exit_code: i32) -> AfterExit {
    if kind == ContainerKind::Ephemeral {
        return AfterExit::Stay;
    }
    if let Some(by_rule) = matching_rule(container, exit_code) {
        return by_rule;
    }
    let policy = parse_policy(container.restart_policy.as_deref()).unwrap_or_else(|| restart_policy(pod));
    let failed = exit_code != 0;
    let again = match (kind, policy) {
        (ContainerKind::Sidecar, _) => true,
        // An init container that succeeded is done, whatever the policy.
        (ContainerKind::Init, policy) => failed && policy != RestartPolicy::Never,
        (_, RestartPolicy::Always) => true,
        (_, RestartPolicy::OnFailure) => failed,
        (_, RestartPolicy::Never) => false,
    };
    if again {
        AfterExit::Restart
    } else {
        AfterExit::Stay
    }
}

/// Whether some exit of some container makes all of the pod's containers start again.
pub fn all_could_restart(pod: &Pod) -> bool {
    let rules = |one: &Container| {
        one.restart_policy_rules
            .iter()
            .flatten()
            .any(|rule| rule.action == "RestartAllContainers")
    };
    init_containers(pod)
        .iter()
        .chain(regular_containers(pod))
        .any(rules)
}

fn parse_policy(policy: Option<&str>) -> Option<RestartPolicy> {
    match policy? {
        "Always" => Some(RestartPolicy::Always),
        "OnFailure" => Some(RestartPolicy::OnFailure),
        "Never" => Some(RestartPolicy::Never),
        _ => None,
    }
}

fn matching_rule(container: &Container, exit_code: i32) -> Option<AfterExit> {
    container.restart_policy_rules.iter().flatten().find_map(|rule| {
        let codes = rule.exit_codes.as_ref()?;
        let listed = codes.values.iter().flatten().any(|&code| code == exit_code);
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        match rule.action.as_str() {
            "Restart" if matches => Some(AfterExit::Restart),
            "RestartAllContainers" if matches => Some(AfterExit::RestartAll),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests;
