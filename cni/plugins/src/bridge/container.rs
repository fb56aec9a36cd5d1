//! The container's side: addresses, routes, and telling the neighbours.

use std::net::IpAddr;

use cni_net::{Link, RouteSpec, Rtnl, in_netns, write_sysctl};
use cni_types::{AddResult, Route};

use crate::{
    bridge::{config::Config, host::tolerate},
    call::Call,
    error::PluginError,
};

/// Starts the interface with its addresses and routes; returns it.
pub(super) fn configure(call: &Call<'_>, config: &Config, result: &AddResult) -> Result<Link, PluginError> {
    let name = call.ifname();
    in_netns(call.netns()?, || {
        let mut rtnl = Rtnl::open()?;
        let vanished = || PluginError::internal(format!("interface {name} vanished from the container"));
        let link = rtnl.link(name)?.ok_or_else(vanished)?;
        if config.disable_container_interface {
            return Ok(link);
        }
        settings(name, result)?;
        for ip in &result.ips {
            rtnl.add_address(link.index, ip.address)?;
        }
        rtnl.set_up(link.index, true)?;
        for route in &result.routes {
            rtnl.add_route(&spec(route, result, link.index))?;
        }
        Ok(link)
    })?
}

/// What must be set before the interface starts: the kernel then announces its addresses by itself, and IPv6 addresses
/// are usable at once. A kernel without a setting does without it.
fn settings(name: &str, result: &AddResult) -> Result<(), PluginError> {
    if result.ips.iter().any(|ip| ip.address.is_ipv4()) {
        tolerate(write_sysctl(&["net", "ipv4", "conf", name, "arp_notify"], "1"))?;
    }
    if result.ips.iter().any(|ip| ip.address.is_ipv6()) {
        let conf = |key| ["net", "ipv6", "conf", name, key];
        write_sysctl(&conf("disable_ipv6"), "0")?;
        tolerate(write_sysctl(&conf("accept_dad"), "0"))?;
        tolerate(write_sysctl(&conf("ndisc_notify"), "1"))?;
    }
    Ok(())
}

/// A route without a gateway goes through that of the first address of its family.
fn spec(route: &Route, result: &AddResult, index: u32) -> RouteSpec {
    let same_family = |ip: &IpAddr| ip.is_ipv4() == route.dst.is_ipv4();
    let gateway = route
        .gw
        .or_else(|| result.ips.iter().filter_map(|ip| ip.gateway).find(same_family));
    RouteSpec {
        dst: route.dst,
        gateway,
        index,
        mtu: route.mtu,
        advmss: route.advmss,
        priority: route.priority,
        table: route.table,
        scope: route.scope,
    }
}

/// Interface, addresses and routes are as ADD left them.
pub(super) fn check(call: &Call<'_>, config: &Config, previous: &AddResult) -> Result<(), PluginError> {
    let name = call.ifname();
    in_netns(call.netns()?, || {
        let mut rtnl = Rtnl::open()?;
        let fail = |what: String| Err(PluginError::internal(what));
        let Some(link) = rtnl.link(name)? else {
            return fail(format!("interface {name} is gone from the container"));
        };
        if config.disable_container_interface {
            return Ok(());
        }
        if !link.up {
            return fail(format!("interface {name} is not up"));
        }
        let addresses = rtnl.addresses(Some(link.index))?;
        for ip in &previous.ips {
            if !addresses.iter().any(|a| a.address == ip.address) {
                return fail(format!("interface {name} has lost its address {}", ip.address));
            }
        }
        for route in &previous.routes {
            let wanted = spec(route, previous, link.index);
            let everywhere = wanted.dst.prefix() == 0;
            let found = rtnl.routes(wanted.dst.is_ipv4())?.into_iter().any(|there| {
                let same_dst = if everywhere {
                    there.dst.is_none()
                } else {
                    there.dst == Some(wanted.dst)
                };
                same_dst && there.gateway == wanted.gateway
            });
            if !found {
                return fail(format!("the container has lost its route to {}", route.dst));
            }
        }
        Ok(())
    })?
}
