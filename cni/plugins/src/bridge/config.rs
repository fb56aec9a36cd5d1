//! bridge's configuration.

use cni_net::parse_mac;
use serde::Deserialize;

use crate::{call::Call, error::PluginError};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    #[serde(rename = "bridge", default = "default_bridge")]
    pub(crate) bridge: String,
    /// The bridge gets the gateway's address.
    #[serde(default)]
    pub(crate) is_gateway: bool,
    /// The container gets a default route through it.
    #[serde(default)]
    pub(crate) is_default_gateway: bool,
    /// Another address of the same subnet gives way.
    #[serde(default)]
    pub(crate) force_address: bool,
    /// What leaves the network is masqueraded.
    #[serde(default)]
    pub(crate) ip_masq: bool,
    /// Whichever is named, nftables does it.
    #[serde(default)]
    ip_masq_backend: Option<String>,
    #[serde(default)]
    pub(crate) mtu: u32,
    #[serde(default)]
    pub(crate) hairpin_mode: bool,
    #[serde(default)]
    pub(crate) promisc_mode: bool,
    #[serde(default)]
    pub(crate) vlan: u16,
    #[serde(default)]
    vlan_trunk: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) preserve_default_vlan: Option<bool>,
    #[serde(default)]
    pub(crate) macspoofchk: bool,
    #[serde(default, alias = "isolated")]
    pub(crate) port_isolation: bool,
    /// Only the link: no address, not started.
    #[serde(default)]
    pub(crate) disable_container_interface: bool,
    #[serde(default)]
    ipam: Option<Ipam>,
    #[serde(skip)]
    pub(crate) mac: Option<[u8; 6]>,
    #[serde(default)]
    args: Option<Args>,
}

#[derive(Debug, Deserialize)]
struct Ipam {
    #[serde(rename = "type", default)]
    plugin: String,
}

#[derive(Debug, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Option<CniArgs>,
}

#[derive(Debug, Deserialize)]
struct CniArgs {
    #[serde(default)]
    mac: Option<String>,
}

fn default_bridge() -> String {
    "cni0".into()
}

impl Config {
    pub(crate) fn new(call: &Call<'_>) -> Result<Self, PluginError> {
        let mut config: Config = call.config()?;
        cni_types::check_ifname(&config.bridge)
            .map_err(|error| PluginError::config(format!("bridge can't be used: {error}")))?;
        if config.hairpin_mode && config.promisc_mode {
            return Err(PluginError::config(
                "hairpinMode and promiscMode can't both be set; choose one",
            ));
        }
        if config.vlan > 4094 {
            return Err(PluginError::config(format!(
                "vlan {} is not one of 0 to 4094",
                config.vlan
            )));
        }
        if config
            .vlan_trunk
            .as_ref()
            .is_some_and(|v| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty()))
        {
            return Err(PluginError::new(
                cni_types::ErrorCode::UNSUPPORTED_FIELD,
                "vlanTrunk is not supported; use vlan",
            ));
        }
        if let Some(backend) = &config.ip_masq_backend
            && !["", "iptables", "nftables"].contains(&backend.as_str())
        {
            return Err(PluginError::config(format!(
                "ipMasqBackend {backend:?} is unknown; use \"nftables\" or leave it out"
            )));
        }
        let gateway = config.is_gateway || config.is_default_gateway;
        if gateway && config.vlan != 0 {
            let message =
                "vlan together with isGateway is not supported; let a router have the gateway's address";
            return Err(PluginError::new(cni_types::ErrorCode::UNSUPPORTED_FIELD, message));
        }
        if config.disable_container_interface && config.ipam().is_some() {
            return Err(PluginError::config(
                "disableContainerInterface leaves no use for ipam; remove one",
            ));
        }
        config.is_gateway = gateway;
        let in_args = config
            .args
            .as_ref()
            .and_then(|args| args.cni.as_ref())
            .and_then(|cni| cni.mac.as_deref());
        let mac = call
            .runtime
            .mac
            .as_deref()
            .or(in_args)
            .or(call.arg("MAC"))
            .filter(|mac| !mac.is_empty());
        if let Some(text) = mac {
            let parsed = parse_mac(text);
            config.mac = Some(
                parsed
                    .ok_or_else(|| PluginError::config(format!("mac {text:?} is not a hardware address")))?,
            );
        }
        Ok(config)
    }

    pub(crate) fn ipam(&self) -> Option<&str> {
        self.ipam
            .as_ref()
            .map(|ipam| ipam.plugin.as_str())
            .filter(|plugin| !plugin.is_empty())
    }
}
