//! The host's side: the bridge, its port for the container, its address, forwarding.

use std::{fs::File, net::IpAddr, os::fd::AsRawFd};

use cni_net::{BridgeOptions, Link, NetlinkError, PortOptions, Rtnl, SysctlError, VethPeer, write_sysctl};
use cni_types::{AddResult, ErrorCode, IpConfig};
use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::{
    bridge::{VETH, config::Config},
    call::Call,
    error::PluginError,
    owner::{Owner, short_hash},
};

/// The kernel's limit.
pub(super) const MAX_PORTS: usize = 1023;
const ALIAS: &str = "orlop-cni";

pub(super) fn full(bridge: &str) -> String {
    format!(
        "bridge {bridge} has {MAX_PORTS} ports, which is the kernel's limit; remove pods or use another bridge"
    )
}

pub(super) fn refuse_other_kind(link: &Link) -> Result<(), PluginError> {
    match link.kind.as_str() {
        "bridge" => Ok(()),
        kind => Err(PluginError::config(format!(
            "interface {} is there but is no bridge (kind {kind:?}); name another one in \"bridge\"",
            link.name
        ))),
    }
}

/// The bridge, made if it isn't there.
pub(super) fn ensure_bridge(rtnl: &mut Rtnl, config: &Config) -> Result<Link, PluginError> {
    let found = match rtnl.link(&config.bridge)? {
        Some(found) => found,
        None => make_bridge(rtnl, config)?,
    };
    refuse_other_kind(&found)?;
    if !found.up {
        // Until the bridge's link-local address is sure to be its own, the host could ask for no neighbour on it.
        tolerate(write_sysctl(
            &["net", "ipv6", "conf", &config.bridge, "accept_dad"],
            "0",
        ))?;
        rtnl.set_up(found.index, true)?;
    }
    if config.promisc_mode && !found.promiscuous {
        rtnl.set_promiscuous(found.index, true)?;
    }
    if config.vlan != 0 {
        rtnl.enable_vlan_filtering(found.index).map_err(without_vlans)?;
    }
    Ok(found)
}

/// A kernel without the setting does without it.
pub(super) fn tolerate(written: Result<(), SysctlError>) -> Result<(), SysctlError> {
    match written {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

fn make_bridge(rtnl: &mut Rtnl, config: &Config) -> Result<Link, PluginError> {
    let options = BridgeOptions {
        mtu: Some(config.mtu).filter(|mtu| *mtu != 0),
        mac: Some(own_mac(&config.bridge)),
        vlan_filtering: config.vlan != 0,
    };
    match rtnl.add_bridge(&config.bridge, &options) {
        // Another ADD was faster.
        Err(error) if !error.is_present() && config.vlan != 0 => return Err(without_vlans(error)),
        Err(error) if !error.is_present() => return Err(error.into()),
        _ => {}
    }
    rtnl.link(&config.bridge)?
        .ok_or_else(|| PluginError::internal(format!("bridge {} vanished while it was made", config.bridge)))
}

fn without_vlans(error: NetlinkError) -> PluginError {
    match error.is_unsupported() {
        true => PluginError::new(
            ErrorCode::UNSUPPORTED_FIELD,
            "vlan needs bridges that filter by VLAN, which this kernel doesn't have (CONFIG_BRIDGE_VLAN_FILTERING); \
             remove it",
        ),
        false => error.into(),
    }
}

/// A hardware address of its own, or the bridge would take that of whichever port has the lowest, and change it as
/// pods come and go. Different on every machine, the same each time.
fn own_mac(bridge: &str) -> [u8; 6] {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let seed = if machine.trim().is_empty() { boot } else { machine };
    let digits = short_hash(&[seed.trim(), bridge], 10);
    // Locally administered, not multicast.
    let mut mac = [0x0a, 0, 0, 0, 0, 0];
    for (byte, at) in mac[1..].iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).unwrap_or(at as u8);
    }
    mac
}

/// The mark on the host's interface.
fn alias(owner: &Owner, network: &str) -> String {
    format!("{ALIAS} {network} {}", owner.tag())
}

/// Whose interface has that mark, if it is of that network.
pub(super) fn owner_of(alias: &str, network: &str) -> Option<Owner> {
    let mut words = alias.split(' ');
    let ours = words.next() == Some(ALIAS) && words.next() == Some(network);
    ours.then(|| words.next().and_then(Owner::from_tag)).flatten()
}

/// Makes the pair and attaches the host's end. Leftovers of an earlier try are replaced.
pub(super) fn add_pair(
    rtnl: &mut Rtnl,
    call: &Call<'_>,
    config: &Config,
    bridge: &Link,
    mac: Option<[u8; 6]>,
) -> Result<Link, PluginError> {
    let owner = call.owner();
    let name = owner.host_name(VETH);
    let netns = call.netns()?;
    let namespace = File::open(netns).map_err(PluginError::io("open the network namespace", netns))?;
    let mtu = Some(config.mtu)
        .filter(|mtu| *mtu != 0)
        .or(Some(bridge.mtu).filter(|mtu| *mtu != 1500 && *mtu != 0));
    let peer = VethPeer {
        name: call.ifname(),
        netns: namespace.as_raw_fd(),
        mac,
    };
    match rtnl.add_veth(&name, mtu, peer) {
        Err(error) if error.is_present() => {
            rtnl.remove_link(&name)?;
            match rtnl.add_veth(&name, mtu, peer) {
                Err(error) if error.is_present() => {
                    let message = format!("the container has an interface {} already", call.ifname());
                    return Err(PluginError::internal(message));
                }
                other => other?,
            }
        }
        other => other?,
    }
    let vanished = || PluginError::internal(format!("interface {name} vanished while it was attached"));
    let made = rtnl.link(&name)?.ok_or_else(vanished)?;
    // A port needs no address of its own, and the neighbourhood no talk about it.
    tolerate(write_sysctl(&["net", "ipv6", "conf", &name, "disable_ipv6"], "1"))?;
    match rtnl.attach_port(made.index, bridge.index, &alias(&owner, &call.network)) {
        Err(error) if error.errno() == Some(Errno::EXFULL as i32) => {
            return Err(PluginError::new(ErrorCode::TRY_AGAIN_LATER, full(&config.bridge)));
        }
        other => other?,
    }
    let options = PortOptions {
        hairpin: config.hairpin_mode,
        isolated: config.port_isolation,
    };
    if options != PortOptions::default() {
        rtnl.set_port(made.index, options)?;
    }
    if config.vlan != 0 {
        rtnl.add_port_vlan(made.index, config.vlan)
            .map_err(without_vlans)?;
        if config.preserve_default_vlan == Some(false) && config.vlan != 1 {
            rtnl.remove_port_vlan(made.index, 1)?;
        }
    }
    Ok(made)
}

/// Gives the bridge the gateways' addresses and lets packets through.
pub(super) fn be_gateway(
    rtnl: &mut Rtnl,
    config: &Config,
    bridge: &Link,
    ips: &[IpConfig],
) -> Result<(), PluginError> {
    let present: Vec<IpNetwork> = rtnl
        .addresses(Some(bridge.index))?
        .into_iter()
        .map(|a| a.address)
        .collect();
    for ip in ips {
        let Some(gateway) = ip.gateway else { continue };
        let wanted =
            IpNetwork::new(gateway, ip.address.prefix()).unwrap_or_else(|_| IpNetwork::from(gateway));
        if !present.contains(&wanted) {
            for other in present.iter().filter(|other| overlap(**other, wanted)) {
                if !config.force_address {
                    return Err(PluginError::config(format!(
                        "bridge {} has address {other} already, not {wanted}; set forceAddress to replace it",
                        config.bridge
                    )));
                }
                rtnl.remove_address(bridge.index, *other)?;
            }
            rtnl.add_address(bridge.index, wanted)?;
        }
        match gateway {
            IpAddr::V4(_) => write_sysctl(&["net", "ipv4", "ip_forward"], "1")?,
            IpAddr::V6(_) => write_sysctl(&["net", "ipv6", "conf", "all", "forwarding"], "1")?,
        }
    }
    Ok(())
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    let link_local = matches!(a.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    a.is_ipv4() == b.is_ipv4() && !link_local && (a.contains(b.network()) || b.contains(a.network()))
}

/// The bridge and its port are as ADD left them.
pub(super) fn check(
    rtnl: &mut Rtnl,
    config: &Config,
    owner: &Owner,
    previous: &AddResult,
) -> Result<(), PluginError> {
    let missing = |name: &str| PluginError::internal(format!("interface {name} is gone"));
    let bridge = rtnl
        .link(&config.bridge)?
        .ok_or_else(|| missing(&config.bridge))?;
    refuse_other_kind(&bridge)?;
    // Another program's bridge plugin gives its port another name, which the result tells.
    let named = previous
        .interfaces
        .iter()
        .find(|i| i.sandbox.is_empty() && i.name != config.bridge);
    let name = named.map_or_else(|| owner.host_name(VETH), |interface| interface.name.clone());
    let port = rtnl.link(&name)?.ok_or_else(|| missing(&name))?;
    if port.master != Some(bridge.index) {
        return Err(PluginError::internal(format!(
            "interface {name} is no port of bridge {}",
            config.bridge
        )));
    }
    if config.is_gateway {
        let present: Vec<IpAddr> = rtnl
            .addresses(Some(bridge.index))?
            .into_iter()
            .map(|a| a.address.ip())
            .collect();
        for gateway in previous.ips.iter().filter_map(|ip| ip.gateway) {
            if !present.contains(&gateway) {
                let message = format!("bridge {} has lost its address {gateway}", config.bridge);
                return Err(PluginError::internal(message));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_name_their_owner_within_a_network() {
        let owner = Owner::new("c1", "eth0");
        let text = alias(&owner, "pods");
        assert_eq!(owner_of(&text, "pods"), Some(owner));
        assert_eq!(owner_of(&text, "other"), None);
        assert_eq!(owner_of("someone's own words", "pods"), None);
    }

    #[test]
    fn overlapping_subnets() {
        let net = |text: &str| text.parse::<IpNetwork>().unwrap();
        assert!(overlap(net("10.1.0.1/16"), net("10.1.2.1/24")));
        assert!(!overlap(net("10.1.0.1/24"), net("10.1.1.1/24")));
        assert!(!overlap(net("fe80::1/64"), net("fe80::2/64")));
        assert!(!overlap(net("10.1.0.1/16"), net("fd00::1/64")));
    }
}
