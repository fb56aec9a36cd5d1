//! What the runtime knows about one attachment and hands to plugins that declare the capability: `runtimeConfig`.
//! Field names are those of CONVENTIONS.md of the CNI project.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A transport protocol that a port can be mapped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    #[serde(alias = "TCP")]
    Tcp,
    /// UDP
    #[serde(alias = "UDP")]
    Udp,
    /// SCTP
    #[serde(alias = "SCTP")]
    Sctp,
}

/// Capability `portMappings`: one port of the host that leads to a port of the container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The host's port; 0 is ignored.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// TCP unless said otherwise.
    #[serde(default = "tcp")]
    pub protocol: Protocol,
    /// The host's address to listen on; none or unspecified (`0.0.0.0`, `::`) is every address (of that family).
    #[serde(
        default,
        rename = "hostIP",
        with = "optional_ip",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_ip: Option<IpAddr>,
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

/// An address that may be the empty string.
mod optional_ip {
    use std::net::IpAddr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(ip: &Option<IpAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&ip.map(|ip| ip.to_string()).unwrap_or_default())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpAddr>, D::Error> {
        let text = Option::<String>::deserialize(d)?.unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is not an IP address")))
    }
}

/// Capability `bandwidth`: rates in bits per second, bursts in bits, as seen from the container; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Towards the container.
    pub ingress_rate: u64,
    /// How much may come at once.
    pub ingress_burst: u64,
    /// From the container.
    pub egress_rate: u64,
    /// How much may leave at once.
    pub egress_burst: u64,
}

/// Capability `dns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeDns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// Everything that may appear in `runtimeConfig`. Each plugin sees only the capabilities that it declares.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// `portMappings`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// `bandwidth`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// `dns`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<RuntimeDns>,
    /// `ips`: addresses asked for, with or without a prefix length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// `mac`: a hardware address asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// `aliases`: names of the container on this network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// `cgroupPath`: the pod's cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// Any other capability, by its name.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl RuntimeConfig {
    /// By capability.
    pub fn to_map(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            // Every field above has string keys, so this is not reached; an empty map is the honest fallback.
            _ => Map::new(),
        }
    }
}

/// An attachment that GC must keep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_config_has_the_names_of_the_conventions() {
        let config = RuntimeConfig {
            port_mappings: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: Protocol::Udp,
                host_ip: Some("::1".parse().unwrap()),
            }],
            bandwidth: Some(Bandwidth {
                ingress_rate: 1,
                ..Bandwidth::default()
            }),
            cgroup_path: Some("/kubepods/x".into()),
            ..RuntimeConfig::default()
        };
        let text = Value::Object(config.to_map()).to_string();
        assert_eq!(
            text,
            r#"{"bandwidth":{"egressBurst":0,"egressRate":0,"ingressBurst":0,"ingressRate":1},"cgroupPath":"/kubepods/x","portMappings":[{"containerPort":80,"hostIP":"::1","hostPort":8080,"protocol":"udp"}]}"#
        );
        assert_eq!(serde_json::from_str::<RuntimeConfig>(&text).unwrap(), config);
        let loose: PortMapping =
            serde_json::from_str(r#"{"hostPort":1,"containerPort":2,"hostIP":"","protocol":"TCP"}"#).unwrap();
        assert_eq!((loose.host_ip, loose.protocol), (None, Protocol::Tcp));
    }
}
