//! bridge: a veth pair between the container and a bridge of the host, with addresses from an IPAM plugin.
//!
//! ADD, in this order: addresses; the bridge; the pair, whose far end is made straight inside the container's namespace;
//! the container's addresses and routes; the bridge's own address and forwarding; masquerading. What fails is undone
//! from the back. DEL goes the other way and gives the addresses back last, so that nothing leads to an address that
//! may already be another pod's.

mod config;
mod container;
mod host;
mod spoof;

use std::net::IpAddr;

use cni_net::{Rtnl, format_mac, in_netns, nft::Nft};
use cni_types::{AddResult, Command, ErrorCode, ExecError, Interface};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::{
    call::{Call, Plugin},
    error::PluginError,
    owner::Owner,
    ruleset,
};
use config::Config;

pub(crate) struct Bridge;

/// The beginning of the host's interfaces' names.
const VETH: &str = "veth";

impl Plugin for Bridge {
    fn add(&self, call: &Call<'_>) -> Result<AddResult, PluginError> {
        let config = Config::new(call)?;
        let netns = call.netns()?;
        let mut result = match config.ipam() {
            Some(ipam) => call.ipam(ipam, Command::Add)?.unwrap_or_default(),
            None => AddResult::default(),
        };
        let attached = if config.ipam().is_some() && result.ips.is_empty() {
            Err(PluginError::config("the IPAM plugin gave no address"))
        } else {
            attach(call, &config, netns, &mut result)
        };
        match attached {
            Ok(()) => Ok(result),
            Err(error) => {
                // The first failure is the one to report; what can't be undone now, DEL or GC will find.
                let _ = detach(call, &addresses(&result));
                Err(error)
            }
        }
    }

    fn del(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let known = call.previous.as_ref().map(addresses).unwrap_or_default();
        detach(call, &known)
    }

    fn check(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let config = Config::new(call)?;
        let previous = call.previous()?;
        let owner = call.owner();
        host::check(&mut Rtnl::open()?, &config, &owner, previous)?;
        container::check(call, &config, previous)?;
        if config.ip_masq && !ruleset::is_masqueraded(&mut Nft::open()?, &addresses(previous))? {
            return Err(PluginError::internal(format!(
                "masquerading of container {} is gone",
                owner.container_id
            )));
        }
        if config.macspoofchk && !spoof::is_enabled(&mut Nft::open()?, call)? {
            return Err(PluginError::internal(format!(
                "the check of container {}'s hardware address is gone",
                owner.container_id
            )));
        }
        if let Some(ipam) = config.ipam() {
            call.ipam(ipam, Command::Check)?;
        }
        Ok(())
    }

    fn gc(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let config = Config::new(call)?;
        let valid = call.valid()?;
        let mut rtnl = Rtnl::open()?;
        for link in rtnl.links()? {
            let owner = host::owner_of(&link.alias, &call.network);
            if link.kind == "veth" && owner.is_some_and(|owner| !valid.contains(&owner)) {
                rtnl.remove_link(&link.name)?;
            }
        }
        // A table that was never made has no elements.
        let mut nft = Nft::open()?;
        ruleset::MASQUERADE.remove_of(&mut nft, &call.network, |owner| !valid.contains(owner))?;
        spoof::LAYOUT.remove_of(&mut nft, &call.network, |owner| !valid.contains(owner))?;
        match config.ipam() {
            Some(ipam) if call.version.has_gc_and_status() || call.is_builtin(ipam) => {
                call.ipam(ipam, Command::Gc).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn status(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let config = Config::new(call)?;
        let mut rtnl = Rtnl::open()?;
        if let Some(bridge) = rtnl.link(&config.bridge)? {
            host::refuse_other_kind(&bridge)?;
            let ports = rtnl
                .links()?
                .iter()
                .filter(|link| link.master == Some(bridge.index))
                .count();
            if ports >= host::MAX_PORTS {
                return Err(PluginError::new(
                    ErrorCode::NOT_AVAILABLE,
                    host::full(&config.bridge),
                ));
            }
        }
        match config.ipam() {
            Some(ipam) if call.version.has_gc_and_status() => call.ipam(ipam, Command::Status).map(drop),
            _ => Ok(()),
        }
    }
}

fn addresses(result: &AddResult) -> Vec<IpNetwork> {
    result.ips.iter().map(|ip| ip.address).collect()
}

/// Everything of ADD after IPAM; completes the result.
fn attach(
    call: &Call<'_>,
    config: &Config,
    netns: &std::path::Path,
    result: &mut AddResult,
) -> Result<(), PluginError> {
    fill_in(config, result);
    let mut rtnl = Rtnl::open()?;
    let bridge = host::ensure_bridge(&mut rtnl, config)?;
    let mac = config.mac.or_else(|| mac_of(result.ips.first()?.address.ip()));
    let port = host::add_pair(&mut rtnl, call, config, &bridge, mac)?;
    let inside = container::configure(call, config, result)?;
    if config.macspoofchk {
        spoof::enable(&mut Nft::open()?, &port.name, &inside.mac, call)?;
    }
    if config.is_gateway {
        host::be_gateway(&mut rtnl, config, &bridge, &result.ips)?;
    }
    if config.ip_masq && !result.ips.is_empty() {
        ruleset::masquerade(&mut Nft::open()?, &addresses(result), &call.mark())?;
    }
    let on_host = |link: &cni_net::Link| Interface {
        name: link.name.clone(),
        mac: format_mac(&link.mac),
        mtu: Some(link.mtu),
        ..Interface::default()
    };
    let sandbox = netns.to_string_lossy().into_owned();
    result.interfaces = vec![
        on_host(&bridge),
        on_host(&port),
        Interface {
            sandbox,
            ..on_host(&inside)
        },
    ];
    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
    Ok(())
}

/// Gateways and the default route, where the configuration wants them and IPAM left them out.
fn fill_in(config: &Config, result: &mut AddResult) {
    if !config.is_gateway {
        return;
    }
    for ip in &mut result.ips {
        ip.gateway = ip.gateway.or_else(|| first_host(ip.address));
        let everywhere: IpNetwork = match ip.address.is_ipv4() {
            true => IpNetwork::V4(ipnetwork::Ipv4Network::from(std::net::Ipv4Addr::UNSPECIFIED)),
            false => IpNetwork::V6(ipnetwork::Ipv6Network::from(std::net::Ipv6Addr::UNSPECIFIED)),
        };
        let everywhere = IpNetwork::new(everywhere.ip(), 0).unwrap_or(everywhere);
        let has_default = result.routes.iter().any(|r| r.dst == everywhere);
        if config.is_default_gateway && !has_default {
            result.routes.push(cni_types::Route::new(everywhere, ip.gateway));
        }
    }
}

/// A hardware address that follows from the pod's, so that what neighbours remember about an address stays true when
/// another pod gets it.
fn mac_of(ip: IpAddr) -> Option<[u8; 6]> {
    let [a, b, c, d] = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => *ip.octets().last_chunk()?,
    };
    // Locally administered, not multicast.
    Some([0x0a, 0x58, a, b, c, d])
}

fn first_host(address: IpNetwork) -> Option<IpAddr> {
    match address.network() {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

/// Undoes ADD, from whatever point it had come to. A configuration that ADD refuses must not keep a container from being
/// removed, so only what is needed is read of it; where that can't be understood, more is looked for than was made.
fn detach(call: &Call<'_>, known: &[IpNetwork]) -> Result<(), PluginError> {
    let owner = call.owner();
    let wanted = |key: &str| match &call.invocation.config[key] {
        Value::Null => false,
        value => value.as_bool().unwrap_or(true),
    };
    if wanted("ipMasq") {
        unmasquerade(call, &owner, known)?;
    }
    if wanted("macspoofchk") {
        spoof::disable(&mut Nft::open()?, call)?;
    }
    // The container's end goes together with the host's. One that another program's bridge plugin made has another
    // name on the host, but the right one inside.
    let mut rtnl = Rtnl::open()?;
    let host_name = owner.host_name(VETH);
    if rtnl.link(&host_name)?.is_some() {
        rtnl.remove_link(&host_name)?;
    } else if let Some(netns) = call.netns_if_any() {
        in_netns(netns, || {
            let mut rtnl = Rtnl::open()?;
            match rtnl.link(call.ifname())? {
                Some(link) if link.kind == "veth" => rtnl.remove_link(&link.name),
                _ => Ok(()),
            }
        })??;
    }
    match call.invocation.config["ipam"]["type"].as_str() {
        None | Some("") => Ok(()),
        Some(ipam) => match call.ipam(ipam, Command::Del) {
            // Where no ADD has ended, one that isn't there has handed nothing out.
            Err(PluginError::Delegate(ExecError::NotFound { .. })) if call.previous.is_none() => Ok(()),
            other => other.map(drop),
        },
    }
}

fn unmasquerade(call: &Call<'_>, owner: &Owner, known: &[IpNetwork]) -> Result<(), PluginError> {
    let mut nft = Nft::open()?;
    match known {
        // Without a result, the marks tell.
        [] => ruleset::MASQUERADE.remove_of(&mut nft, &call.network, |other| other == owner),
        known => {
            let keys = ruleset::masquerade_keys(known);
            ruleset::MASQUERADE.remove_marked(&mut nft, &call.mark(), keys)
        }
    }
}
