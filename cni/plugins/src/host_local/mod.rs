//! host-local: hands out addresses of configured ranges and remembers them in files, in upstream's format and under
//! upstream's lock, so that both may work on one directory.

mod config;
mod pool;
mod store;

use std::{fs, net::IpAddr, path::Path};

use cni_types::{AddResult, Dns, ErrorCode, IpConfig};

use crate::{
    call::{Call, Plugin},
    error::PluginError,
};
use config::Config;
use store::Store;

pub(crate) struct HostLocal;

impl Plugin for HostLocal {
    fn add(&self, call: &Call<'_>) -> Result<AddResult, PluginError> {
        let config = Config::new(call)?;
        // Read first: nothing is to undo when it fails.
        let dns = match &config.resolv_conf {
            Some(path) => read_resolv_conf(path)?,
            None => Dns::default(),
        };
        let owner = call.owner();
        let mut requested = config.requested.clone();
        let mut store = Store::open(&config.dir())?;
        let mut ips = Vec::new();
        for (index, set) in config.ranges.iter().enumerate() {
            let wanted = requested
                .iter()
                .position(|ip| set.range_of(*ip).is_some())
                .map(|at| requested.remove(at));
            match store.allocate(index, set, wanted, &owner) {
                Ok((ip, range)) => ips.push(IpConfig {
                    interface: None,
                    address: range.with_prefix(ip),
                    gateway: Some(range.gateway),
                }),
                Err(error) => {
                    store.release(&owner)?;
                    return Err(error);
                }
            }
        }
        if !requested.is_empty() {
            store.release(&owner)?;
            let list: Vec<String> = requested.iter().map(IpAddr::to_string).collect();
            let message = format!(
                "requested addresses {} are in no range of network {}",
                list.join(", "),
                call.network
            );
            return Err(PluginError::config(message));
        }
        Ok(AddResult {
            interfaces: Vec::new(),
            ips,
            routes: config.routes,
            dns,
        })
    }

    fn del(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let dir = Config::dir_of(call);
        match dir.exists() {
            true => Store::open(&dir)?.release(&call.owner()),
            // Nothing was ever handed out.
            false => Ok(()),
        }
    }

    fn check(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let config = Config::new(call)?;
        let owner = call.owner();
        match Store::open(&config.dir())?.addresses_of(&owner)?.is_empty() {
            false => Ok(()),
            true => Err(PluginError::internal(format!(
                "no address of network {} belongs to container {}",
                call.network, owner.container_id
            ))),
        }
    }

    fn gc(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let config = Config::new(call)?;
        match config.dir().exists() {
            true => Store::open(&config.dir())?.retain(&call.valid()?),
            false => Ok(()),
        }
    }

    fn status(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let config = Config::new(call)?;
        if !config.dir().exists() {
            return Ok(());
        }
        let store = Store::open(&config.dir())?;
        for set in &config.ranges {
            if store.is_exhausted(set) {
                let message = format!(
                    "no address is free in {} of network {}",
                    set.describe(),
                    call.network
                );
                return Err(PluginError::new(ErrorCode::NOT_AVAILABLE, message));
            }
        }
        Ok(())
    }
}

fn read_resolv_conf(path: &Path) -> Result<Dns, PluginError> {
    let text = fs::read_to_string(path).map_err(PluginError::io("read", path))?;
    Ok(parse_resolv_conf(&text))
}

fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.nameservers.extend(words.take(1).map(str::to_owned)),
            Some("domain") => dns.domain = words.next().unwrap_or_default().to_owned(),
            Some("search") => dns.search.extend(words.map(str::to_owned)),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let dns = parse_resolv_conf(
            "# c\nnameserver 10.0.0.1\nnameserver fd00::1 \ndomain a.b\nsearch x y\noptions ndots:5\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1", "fd00::1"]);
        assert_eq!(
            (dns.domain.as_str(), dns.search.len(), dns.options.len()),
            ("a.b", 2, 1)
        );
    }
}
