//! loopback: starts `lo` in the container's namespace.

use cni_net::{Rtnl, in_netns};
use cni_types::{AddResult, Interface, IpConfig};

use crate::{
    call::{Call, Plugin},
    error::PluginError,
};

pub(crate) struct Loopback;

const LO: &str = "lo";

impl Plugin for Loopback {
    fn add(&self, call: &Call<'_>) -> Result<AddResult, PluginError> {
        let netns = call.netns()?;
        let addresses = in_netns(netns, || {
            let mut rtnl = Rtnl::open()?;
            let lo = rtnl
                .link(LO)?
                .ok_or_else(|| PluginError::internal("there is no interface lo"))?;
            rtnl.set_up(lo.index, true)?;
            rtnl.addresses(Some(lo.index)).map_err(PluginError::from)
        })??;
        // In a chain the result of the one before is what counts.
        if let Some(previous) = &call.previous {
            return Ok(previous.clone());
        }
        let sandbox = netns.to_string_lossy().into_owned();
        Ok(AddResult {
            interfaces: vec![Interface {
                name: LO.into(),
                mac: "00:00:00:00:00:00".into(),
                sandbox,
                ..Interface::default()
            }],
            ips: addresses
                .into_iter()
                .map(|a| IpConfig {
                    interface: Some(0),
                    address: a.address,
                    gateway: None,
                })
                .collect(),
            ..AddResult::default()
        })
    }

    fn del(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let Some(netns) = call.netns_if_any() else {
            return Ok(());
        };
        in_netns(netns, || {
            let mut rtnl = Rtnl::open()?;
            match rtnl.link(LO)? {
                Some(lo) => rtnl.set_up(lo.index, false).map_err(PluginError::from),
                None => Ok(()),
            }
        })?
    }

    fn check(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let lo = in_netns(call.netns()?, || Rtnl::open()?.link(LO))??;
        match lo.is_some_and(|lo| lo.up) {
            true => Ok(()),
            false => Err(PluginError::internal("interface lo is not up")),
        }
    }

    fn gc(&self, _call: &Call<'_>) -> Result<(), PluginError> {
        Ok(())
    }

    fn status(&self, _call: &Call<'_>) -> Result<(), PluginError> {
        Ok(())
    }
}
