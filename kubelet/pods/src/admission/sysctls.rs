//! Which sysctls a pod may set: those of its own namespaces that can't harm others, and those that the node allows.

use controlplane_api::k8s_openapi::api::core::v1::Pod;

use super::{Node, Rejection};
use crate::containers::spec;

/// What every pod may set.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The first sysctl that the pod may not set.
pub(super) fn objection(pod: &Pod, node: &Node) -> Option<Rejection> {
    let spec = spec(pod)?;
    let wanted = spec
        .security_context
        .as_ref()?
        .sysctls
        .as_deref()
        .unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let host_ipc = spec.host_ipc == Some(true);
    wanted.iter().find_map(|one| {
        let name = one.name.replace('/', ".");
        let allowed =
            SAFE.contains(&name.as_str()) || node.allowed_sysctls.iter().any(|own| covers(own, &name));
        let why = if allowed && is_of_network(&name) && host_network {
            "not allowed with host net enabled"
        } else if allowed && is_of_ipc(&name) && host_ipc {
            "not allowed with host ipc enabled"
        } else if allowed {
            return None;
        } else {
            "not allowlisted"
        };
        Some(Rejection::new(
            "SysctlForbidden",
            format!("forbidden sysctl: \"{name}\" {why}"),
        ))
    })
}

fn covers(pattern: &str, name: &str) -> bool {
    let pattern = pattern.replace('/', ".");
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

fn is_of_network(name: &str) -> bool {
    name.starts_with("net.")
}

fn is_of_ipc(name: &str) -> bool {
    name == "kernel.sem"
        || ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}
