//! The downward API: fields and resources of a pod as text, for variables and for files.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use controlplane_api::k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};

use super::container::spec_of;
use super::errors::ConfigError;
use super::facts::NodeFacts;
use super::quantity;
use super::resources::{limits, requests};
use super::sandbox::{is_host_network, spec};

/// Addresses that fields may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodIps<'a> {
    /// The pod's, the primary one first.
    pub pod: &'a [IpAddr],
    /// The node's, the primary one first.
    pub host: &'a [IpAddr],
}

/// The text of a field, such as `metadata.labels['app']` or `status.podIP`.
pub fn field_value(pod: &Pod, path: &str, ips: PodIps<'_>) -> Result<String, ConfigError> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| Ok(value.clone().unwrap_or_default());
    let pod_ips = if ips.pod.is_empty() && is_host_network(pod) {
        ips.host
    } else {
        ips.pod
    };
    let first = |ips: &[IpAddr]| Ok(ips.first().map(IpAddr::to_string).unwrap_or_default());
    let all = |ips: &[IpAddr]| Ok(ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(","));
    match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => Ok(format_map(meta.labels.as_ref())),
        "metadata.annotations" => Ok(format_map(meta.annotations.as_ref())),
        "spec.nodeName" => text(&spec(pod).node_name),
        "spec.serviceAccountName" => text(&spec(pod).service_account_name),
        "status.hostIP" => first(ips.host),
        "status.hostIPs" => all(ips.host),
        "status.podIP" => first(pod_ips),
        "status.podIPs" => all(pod_ips),
        _ => subscripted(pod, path).ok_or_else(|| ConfigError::FieldPath(path.to_owned())),
    }
}

/// The value of `metadata.labels['KEY']` or `metadata.annotations['KEY']`; empty where the key isn't there.
fn subscripted(pod: &Pod, path: &str) -> Option<String> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    let map = match map {
        "metadata.labels" => pod.metadata.labels.as_ref(),
        "metadata.annotations" => pod.metadata.annotations.as_ref(),
        _ => return None,
    };
    Some(map.and_then(|map| map.get(key)).cloned().unwrap_or_default())
}

/// A map as a file has it: a line `key="value"` each, sorted, the last one without its end.
pub fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quoted(value)))
        .collect();
    lines.join("\n")
}

/// A text between double quotes, with Go's escapes.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let escape = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\x07' => "\\a",
            '\x08' => "\\b",
            '\x0c' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\x0b' => "\\v",
            c if is_printable(c) => {
                out.push(c);
                continue;
            }
            c => {
                let code = u32::from(c);
                let written = match code {
                    0..0x80 => write!(out, "\\x{code:02x}"),
                    0x80..0x1_0000 => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
                written.expect("writing to a String can't fail");
                continue;
            }
        };
        out.push_str(escape);
    }
    out.push('"');
    out
}

/// Whether a character is shown as it is: letters, marks, numbers, punctuation, symbols and the plain space.
fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        c if c.is_whitespace() => false,
        // After a letter, marks that join it aren't escaped for that reason alone.
        c => !format!("a{c}").escape_debug().to_string().starts_with("a\\"),
    }
}

/// The text of a container's request or limit in units of the divisor, rounded up. A limit that isn't set is what the
/// node has for pods.
pub fn resource_value(
    pod: &Pod,
    container: &str,
    selector: &ResourceFieldSelector,
    facts: &NodeFacts,
) -> Result<String, ConfigError> {
    let name = selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or(container);
    let container = spec_of(pod, name).ok_or_else(|| ConfigError::NoSuchContainer(name.to_owned()))?;
    let unknown = || ConfigError::Resource(selector.resource.clone());
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unknown)?;
    if !matches!(resource, "cpu" | "memory" | "ephemeral-storage") && !resource.starts_with("hugepages-") {
        return Err(unknown());
    }
    let amount = match list {
        "requests" => quantity::amount(requests(&container), resource),
        "limits" => match limits(&container).filter(|list| list.contains_key(resource)) {
            Some(list) => quantity::amount(Some(list), resource),
            None => whole_limit(pod, resource).unwrap_or_else(|| allocatable(resource, facts)),
        },
        _ => return Err(unknown()),
    };
    let divisor = match &selector.divisor {
        None => 0,
        Some(divisor) => quantity::nanos(divisor).ok_or_else(|| ConfigError::Quantity(divisor.0.clone()))?,
    };
    let divided = match (resource, divisor) {
        ("cpu", 0) => ceil(quantity::thousandths(amount), 1000),
        ("cpu", divisor) => ceil(quantity::thousandths(amount), quantity::thousandths(divisor)),
        (_, 0) => quantity::whole(amount),
        (_, divisor) => ceil(quantity::whole(amount), quantity::whole(divisor)),
    };
    Ok(divided.to_string())
}

fn ceil(value: i64, divisor: i64) -> i64 {
    let divisor = divisor.max(1);
    value.div_euclid(divisor) + i64::from(value.rem_euclid(divisor) != 0)
}

fn whole_limit(pod: &Pod, resource: &str) -> Option<i128> {
    let list = spec(pod).resources.as_ref()?.limits.as_ref()?;
    list.get(resource).and_then(quantity::nanos)
}

fn allocatable(resource: &str, facts: &NodeFacts) -> i128 {
    match resource {
        "cpu" => quantity::from_thousandths(facts.allocatable.cpu_milli),
        "memory" => quantity::from_whole(facts.allocatable.memory),
        "ephemeral-storage" => quantity::from_whole(facts.allocatable.ephemeral_storage),
        _ => 0,
    }
}
