//! The result of ADD, in the newest form; older forms are made on the way out and read on the way in.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::{UnknownVersion, Version};

/// An answer that is not a result of the specification.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// Its version isn't spoken here.
    #[error("failed to read the result's cniVersion")]
    Version(#[source] UnknownVersion),
    /// Its shape is wrong.
    #[error("failed to decode the result")]
    Decode(#[source] serde_json::Error),
}

/// What ADD made: interfaces, addresses, routes and DNS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AddResult {
    /// Interfaces made or used, on the host and in the container.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub interfaces: Vec<Interface>,
    /// Addresses assigned.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ips: Vec<IpConfig>,
    /// Routes made in the container.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub routes: Vec<Route>,
    /// DNS for the container.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Dns::is_empty"
    )]
    pub dns: Dns,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace it is in; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket that stands for it (since 1.1).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// A PCI device that stands for it (since 1.1).
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into [`AddResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// With its subnet's prefix length.
    #[serde(with = "cidr")]
    pub address: IpNetwork,
    /// The subnet's gateway.
    #[serde(
        default,
        deserialize_with = "empty_is_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub gateway: Option<IpAddr>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    #[serde(with = "cidr")]
    pub dst: IpNetwork,
    /// Through which gateway; none is the address's gateway.
    #[serde(
        default,
        deserialize_with = "empty_is_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub gw: Option<IpAddr>,
    /// MTU (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// TCP's advertised MSS (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Priority, lower wins (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Table (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A plain route.
    pub fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Route {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

/// DNS settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

impl AddResult {
    /// Reads a result of any version: they differ only in fields that are optional or ignored.
    pub fn from_json(value: &Value) -> Result<Self, ResultError> {
        if let Some(text) = value.get("cniVersion").and_then(Value::as_str)
            && !text.is_empty()
        {
            let _: Version = text.parse().map_err(ResultError::Version)?;
        }
        if !value.is_object() {
            return Err(ResultError::Decode(serde::de::Error::custom(
                "it is not an object",
            )));
        }
        Self::deserialize(value).map_err(ResultError::Decode)
    }

    /// Writes it as `version` has it: newer fields dropped, the addresses' family added where it is wanted.
    pub fn to_json(&self, version: Version) -> Value {
        let mut map = match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            // A struct of strings and numbers always becomes an object.
            _ => Map::new(),
        };
        map.insert("cniVersion".into(), Value::String(version.as_str().into()));
        if version < Version::V1_1_0 {
            drop_fields(map.get_mut("interfaces"), &["mtu", "socketPath", "pciID"]);
            drop_fields(
                map.get_mut("routes"),
                &["mtu", "advmss", "priority", "table", "scope"],
            );
        }
        if version < Version::V1_0_0
            && let Some(Value::Array(ips)) = map.get_mut("ips")
        {
            for (json, ip) in ips.iter_mut().zip(&self.ips) {
                let family = if ip.address.is_ipv4() { "4" } else { "6" };
                json["version"] = Value::String(family.into());
            }
        }
        // libcni always writes dns; some readers of old versions expect it.
        map.entry("dns").or_insert_with(|| Value::Object(Map::new()));
        Value::Object(map)
    }

    /// The container's own addresses, in the order the plugins gave them: those on interfaces inside a sandbox, or,
    /// where no plugin says which interface, all.
    pub fn pod_ips(&self) -> Vec<IpAddr> {
        let inside = |ip: &&IpConfig| match ip.interface.and_then(|index| self.interfaces.get(index)) {
            Some(interface) => !interface.sandbox.is_empty(),
            None => true,
        };
        self.ips.iter().filter(inside).map(|ip| ip.address.ip()).collect()
    }
}

fn drop_fields(list: Option<&mut Value>, fields: &[&str]) {
    let Some(Value::Array(list)) = list else { return };
    for entry in list.iter_mut().filter_map(Value::as_object_mut) {
        for field in fields {
            entry.remove(*field);
        }
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn empty_is_none<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(d)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is not an IP address"))),
    }
}

/// An address with its prefix length, as text.
mod cidr {
    use super::{Deserialize, Deserializer, IpNetwork, Serializer};

    pub(super) fn serialize<S: Serializer>(net: &IpNetwork, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(net)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<IpNetwork, D::Error> {
        let text = String::deserialize(d)?;
        if !text.contains('/') {
            return Err(serde::de::Error::custom(format!("{text:?} has no prefix length")));
        }
        text.parse()
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is not an address with prefix length")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> AddResult {
        AddResult {
            interfaces: vec![
                Interface {
                    name: "cni0".into(),
                    mac: "00:11:22:33:44:55".into(),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".into(),
                    sandbox: "/run/netns/x".into(),
                    mtu: Some(1500),
                    ..Interface::default()
                },
            ],
            ips: vec![
                IpConfig {
                    interface: Some(1),
                    address: "10.1.0.5/24".parse().unwrap(),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                },
                IpConfig {
                    interface: Some(1),
                    address: "fd00::5/64".parse().unwrap(),
                    gateway: None,
                },
            ],
            routes: vec![Route {
                priority: Some(7),
                ..Route::new("0.0.0.0/0".parse().unwrap(), None)
            }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn each_version_has_its_own_form() {
        let newest = sample().to_json(Version::V1_1_0);
        assert_eq!(newest["interfaces"][1]["mtu"], 1500);
        assert_eq!(newest["routes"][0], json!({"dst": "0.0.0.0/0", "priority": 7}));
        let one = sample().to_json(Version::V1_0_0);
        assert_eq!(
            one["interfaces"][1],
            json!({"name": "eth0", "sandbox": "/run/netns/x"})
        );
        assert_eq!(one["routes"][0], json!({"dst": "0.0.0.0/0"}));
        assert_eq!(
            one["ips"][0],
            json!({"interface": 1, "address": "10.1.0.5/24", "gateway": "10.1.0.1"})
        );
        for old in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let json = sample().to_json(old);
            assert_eq!(json["cniVersion"], old.as_str());
            assert_eq!(json["ips"][0]["version"], "4");
            assert_eq!(json["ips"][1]["version"], "6");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(
            AddResult::from_json(&sample().to_json(Version::V1_1_0)).unwrap(),
            sample()
        );
        let mut less = sample();
        less.interfaces[1].mtu = None;
        less.routes[0].priority = None;
        for version in Version::ALL.into_iter().filter(|v| *v < Version::V1_1_0) {
            assert_eq!(AddResult::from_json(&sample().to_json(version)).unwrap(), less);
        }
    }

    #[test]
    fn loose_and_wrong_results() {
        let loose =
            json!({"cniVersion": "0.4.0", "interfaces": null, "ips": null, "dns": {"nameservers": null}});
        assert_eq!(AddResult::from_json(&loose).unwrap(), AddResult::default());
        for wrong in [
            json!({"cniVersion": "9.9.9"}),
            json!({"ips": [{"address": "10.0.0.1"}]}),
            json!({"ips": [{"address": "10.0.0.1/24", "gateway": "x"}]}),
            json!([]),
        ] {
            assert!(AddResult::from_json(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pod_ips_are_the_sandbox_addresses() {
        let mut result = sample();
        assert_eq!(
            result.pod_ips(),
            ["10.1.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]
        );
        result.ips[0].interface = Some(0);
        assert_eq!(result.pod_ips(), ["fd00::5".parse::<IpAddr>().unwrap()]);
    }
}
