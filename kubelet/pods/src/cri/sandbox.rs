//! `RunPodSandbox`'s configuration.

use controlplane_api::k8s_openapi::api::core::v1::{Pod, PodSpec};
use cri_api::v1::{LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol};

use super::errors::ConfigError;
use super::facts::NodeFacts;
use super::userns::IdRange;
use super::{dns, hosts, labels, logs, resources, security};
use crate::containers::is_sidecar;

/// What a sandbox's configuration needs besides the pod and the node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SandboxExtra {
    /// The pod's own cgroup, as the runtime shall use it.
    pub cgroup_parent: String,
    /// The IDs of the pod's user namespace, where it has one.
    pub user_namespace: Option<IdRange>,
    /// The handler of the pod's RuntimeClass; empty is the default one.
    pub runtime_handler: String,
    /// Groups that the pod's volumes ask for.
    pub groups: Vec<i64>,
}

/// A pod's spec; one without is as if it were empty.
pub(crate) fn spec(pod: &Pod) -> &PodSpec {
    static NONE: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&NONE)
}

/// Whether a pod has the node's network.
pub(crate) fn is_host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// The configuration of a pod's sandbox; `attempt` counts the sandboxes that it had before.
pub fn sandbox_config(
    pod: &Pod,
    attempt: u32,
    facts: &NodeFacts,
    extra: &SandboxExtra,
) -> Result<PodSandboxConfig, ConfigError> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let hostname = if is_host_network(pod) && spec(pod).hostname_override.is_none() {
        String::new()
    } else {
        hosts::pod_hostname(pod, facts)?.nodename(spec(pod).set_hostname_as_fqdn.unwrap_or(false))?
    };
    security::check_sysctls(pod, facts)?;
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: text(&meta.name),
            uid: text(&meta.uid),
            namespace: text(&meta.namespace),
            attempt,
        }),
        hostname,
        log_directory: logs::pod_log_dir(&facts.pod_logs_dir, pod),
        dns_config: Some(dns::pod_dns(pod, facts).config),
        port_mappings: port_mappings(pod),
        labels: labels::sandbox_labels(pod),
        annotations: meta.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: extra.cgroup_parent.clone(),
            security_context: Some(security::sandbox_context(pod, facts, extra)?),
            sysctls: security::sysctls(pod).into_iter().collect(),
            overhead: Some(resources::overhead(pod, facts)),
            resources: Some(resources::sandbox(pod, facts)),
        }),
        windows: None,
    })
}

/// The ports of all containers that serve: the regular ones and the sidecars. A port that is named twice in a container
/// counts once.
fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let spec = spec(pod);
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    let mut mappings = Vec::new();
    for container in spec.containers.iter().chain(sidecars) {
        let mut names: Vec<String> = Vec::new();
        for port in container.ports.iter().flatten() {
            let host_ip = port.host_ip.clone().unwrap_or_default();
            let host_port = port.host_port.unwrap_or(0);
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let name = match port.name.as_deref() {
                Some(name) if !name.is_empty() => format!("{}-{name}", container.name),
                _ => format!("{protocol}-{host_ip}:{}:{host_port}", port.container_port),
            };
            if names.contains(&name) {
                continue;
            }
            names.push(name);
            let protocol = match protocol {
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            mappings.push(PortMapping {
                protocol: protocol.into(),
                container_port: port.container_port,
                host_port,
                host_ip,
            });
        }
    }
    mappings
}
