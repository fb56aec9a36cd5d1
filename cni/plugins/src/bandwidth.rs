//! bandwidth: limits what goes into and comes out of a container.
//!
//! What goes in leaves the host's end of the pair, where a token bucket holds it back. What comes out is received there,
//! and receiving can't be held back, so it is sent through an interface of its own (ifb) that has a bucket.

use cni_net::{Link, Rtnl, format_mac, in_netns, tc::Limit};
use cni_types::{AddResult, Bandwidth as Rates, ErrorCode, Interface};
use serde::Deserialize;

use crate::{
    call::{Call, Plugin},
    error::PluginError,
    owner::Owner,
};

pub(crate) struct Bandwidth;

const IFB: &str = "bwp";
const ALIAS: &str = "orlop-cni-bandwidth";

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    rates: Rates,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    ingress: Option<Limit>,
    egress: Option<Limit>,
}

impl Limits {
    fn new(call: &Call<'_>) -> Result<Self, PluginError> {
        let config: Config = call.config()?;
        let rates = call.runtime.bandwidth.unwrap_or(config.rates);
        Ok(Limits {
            ingress: limit("ingress", rates.ingress_rate, rates.ingress_burst)?,
            egress: limit("egress", rates.egress_rate, rates.egress_burst)?,
        })
    }
}

fn limit(what: &str, rate: u64, burst: u64) -> Result<Option<Limit>, PluginError> {
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err(PluginError::config(format!(
            "{what}Burst is set without {what}Rate; set both"
        ))),
        (_, 0) => Err(PluginError::config(format!(
            "{what}Rate is set without {what}Burst; set both"
        ))),
        (1..8, _) => Err(PluginError::config(format!(
            "{what}Rate is less than a byte per second"
        ))),
        // Runtimes say "no limit on bursts" by a huge number; the kernel counts bytes in 32 bits.
        (rate, burst) => Ok(Some(Limit {
            rate,
            burst: burst.min(u64::from(u32::MAX) * 8),
        })),
    }
}

impl Plugin for Bandwidth {
    fn add(&self, call: &Call<'_>) -> Result<AddResult, PluginError> {
        let mut result = call.previous()?.clone();
        let limits = Limits::new(call)?;
        if limits
            == (Limits {
                ingress: None,
                egress: None,
            })
        {
            return Ok(result);
        }
        let mut rtnl = Rtnl::open()?;
        let host = host_end(&mut rtnl, call)?;
        if let Some(limit) = limits.ingress {
            rtnl.limit_sending(host.index, limit)?;
        }
        if let Some(limit) = limits.egress {
            let ifb = limit_received(&mut rtnl, call, &host, limit).inspect_err(|_| {
                // The first failure is the one to report; DEL and GC find what stays.
                let _ = rtnl_remove(call);
            })?;
            result.interfaces.push(Interface {
                name: ifb.name,
                mac: format_mac(&ifb.mac),
                mtu: Some(ifb.mtu),
                ..Interface::default()
            });
        }
        Ok(result)
    }

    fn del(&self, call: &Call<'_>) -> Result<(), PluginError> {
        // The bucket on the host's end goes with it.
        rtnl_remove(call)
    }

    fn check(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let limits = Limits::new(call)?;
        let mut rtnl = Rtnl::open()?;
        let mut expect = |link: Option<Link>, name: &str| -> Result<(), PluginError> {
            let kind = match link {
                Some(link) => rtnl.root_qdisc(link.index)?,
                None => None,
            };
            match kind.as_deref() {
                Some("tbf") => Ok(()),
                _ => Err(PluginError::internal(format!(
                    "interface {name} has lost its limit"
                ))),
            }
        };
        if limits.ingress.is_some() {
            let host = host_end(&mut Rtnl::open()?, call)?;
            let name = host.name.clone();
            expect(Some(host), &name)?;
        }
        if limits.egress.is_some() {
            let name = call.owner().host_name(IFB);
            expect(Rtnl::open()?.link(&name)?, &name)?;
        }
        Ok(())
    }

    fn gc(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let valid = call.valid()?;
        let mut rtnl = Rtnl::open()?;
        for link in rtnl.links()? {
            let owner = owner_of(&link.alias, &call.network);
            if link.kind == "ifb" && owner.is_some_and(|owner| !valid.contains(&owner)) {
                rtnl.remove_link(&link.name)?;
            }
        }
        Ok(())
    }

    fn status(&self, call: &Call<'_>) -> Result<(), PluginError> {
        Limits::new(call).map(drop)
    }
}

fn rtnl_remove(call: &Call<'_>) -> Result<(), PluginError> {
    Ok(Rtnl::open()?.remove_link(&call.owner().host_name(IFB))?)
}

fn owner_of(alias: &str, network: &str) -> Option<Owner> {
    let mut words = alias.split(' ');
    let ours = words.next() == Some(ALIAS) && words.next() == Some(network);
    ours.then(|| words.next().and_then(Owner::from_tag)).flatten()
}

/// The host's end of the container's pair: the interface that the container's own names as its other end.
fn host_end(rtnl: &mut Rtnl, call: &Call<'_>) -> Result<Link, PluginError> {
    let inside = in_netns(call.netns()?, || Rtnl::open()?.link(call.ifname()))??;
    let index = inside
        .filter(|link| link.kind == "veth")
        .and_then(|link| link.link);
    let found = match index {
        Some(index) => rtnl.link_at(index)?,
        None => None,
    };
    found.filter(|link| link.kind == "veth").ok_or_else(|| {
        PluginError::config(format!(
            "interface {} has no end on this host that could be limited",
            call.ifname()
        ))
    })
}

fn limit_received(rtnl: &mut Rtnl, call: &Call<'_>, host: &Link, limit: Limit) -> Result<Link, PluginError> {
    let owner = call.owner();
    let name = owner.host_name(IFB);
    // One of an earlier try may have another MTU.
    rtnl.remove_link(&name)?;
    let alias = format!("{ALIAS} {} {}", call.network, owner.tag());
    rtnl.add_ifb(&name, host.mtu, &alias).map_err(|error| match error.is_unsupported() {
        true => PluginError::new(
            ErrorCode::UNSUPPORTED_FIELD,
            "egressRate needs ifb interfaces, which this kernel doesn't have; load the module ifb or limit ingress only",
        ),
        false => error.into(),
    })?;
    let vanished = || PluginError::internal(format!("interface {name} vanished while it was set up"));
    let ifb = rtnl.link(&name)?.ok_or_else(vanished)?;
    rtnl.limit_sending(ifb.index, limit)?;
    rtnl.redirect_received(host.index, ifb.index)?;
    Ok(ifb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_bursts_belong_together() {
        assert_eq!(limit("ingress", 0, 0).unwrap(), None);
        assert_eq!(limit("ingress", 8, 9).unwrap(), Some(Limit { rate: 8, burst: 9 }));
        assert!(
            limit("egress", 0, 9)
                .unwrap_err()
                .to_string()
                .starts_with("egressBurst is set without")
        );
        assert!(
            limit("egress", 9, 0)
                .unwrap_err()
                .to_string()
                .starts_with("egressRate is set without")
        );
        assert_eq!(
            limit("egress", 8, u64::MAX).unwrap().unwrap().burst,
            u64::from(u32::MAX) * 8
        );
    }
}
