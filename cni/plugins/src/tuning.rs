//! tuning: settings of the container's interface and network namespace. What the interface had before is kept in a file
//! (upstream's, `<dataDir>/<container>_<interface>.json`) and put back by DEL, for interfaces that outlive the container.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use cni_net::{Link, Rtnl, format_mac, in_netns, parse_mac, read_sysctl, write_sysctl};
use cni_types::AddResult;
use serde::{Deserialize, Serialize};

use crate::{
    call::{Call, Plugin},
    error::PluginError,
};

pub(crate) struct Tuning;

const DATA_DIR: &str = "/run/cni";
/// Where an administrator may list the settings that are allowed.
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    sysctl: BTreeMap<String, String>,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    promisc: Option<bool>,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    allmulti: Option<bool>,
    #[serde(default, rename = "txQLen")]
    txqlen: Option<u32>,
}

/// What DEL puts back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Before {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(default, rename = "txQLen", skip_serializing_if = "Option::is_none")]
    txqlen: Option<u32>,
}

/// What is to be: checked, with the interface's name filled in.
struct Wanted {
    sysctl: Vec<(Vec<String>, String)>,
    mac: Option<[u8; 6]>,
    config: Config,
    backup: PathBuf,
}

impl Wanted {
    fn new(call: &Call<'_>) -> Result<Self, PluginError> {
        let config: Config = call.config()?;
        let text = call
            .runtime
            .mac
            .as_deref()
            .or(call.arg("MAC"))
            .unwrap_or(&config.mac);
        let mac = match text {
            "" => None,
            text => Some(
                parse_mac(text)
                    .ok_or_else(|| PluginError::config(format!("mac {text:?} is not a hardware address")))?,
            ),
        };
        let allowed = allowed_list()?;
        let mut sysctl = Vec::new();
        for (key, value) in &config.sysctl {
            let parts = parse_key(key, call.ifname())?;
            if allowed
                .as_ref()
                .is_some_and(|list| !list.contains(&parts.join(".")))
            {
                return Err(PluginError::config(format!(
                    "sysctl {key} is not allowed by `{ALLOW_LIST}`"
                )));
            }
            sysctl.push((parts, value.clone()));
        }
        Ok(Wanted {
            sysctl,
            mac,
            config,
            backup: backup(call),
        })
    }

    fn changes_link(&self) -> bool {
        let Config {
            promisc,
            mtu,
            allmulti,
            txqlen,
            ..
        } = &self.config;
        self.mac.is_some() || promisc.is_some() || *mtu != 0 || allmulti.is_some() || txqlen.is_some()
    }

    /// What of the interface will be changed, as it is now.
    fn before(&self, link: &Link) -> Before {
        Before {
            mac: self.mac.map(|_| format_mac(&link.mac)),
            promisc: self.config.promisc.map(|_| link.promiscuous),
            mtu: (self.config.mtu != 0).then_some(link.mtu),
            allmulti: self.config.allmulti.map(|_| link.all_multicast),
            txqlen: self.config.txqlen.map(|_| link.txqlen),
        }
    }

    fn after(&self) -> Before {
        Before {
            mac: self.mac.map(|mac| format_mac(&mac)),
            promisc: self.config.promisc,
            mtu: (self.config.mtu != 0).then_some(self.config.mtu),
            allmulti: self.config.allmulti,
            txqlen: self.config.txqlen,
        }
    }
}

/// Where what was is kept.
fn backup(call: &Call<'_>) -> PathBuf {
    let stated = call.invocation.config["dataDir"].as_str();
    let dir = stated.filter(|dir| !dir.is_empty()).unwrap_or(DATA_DIR);
    PathBuf::from(dir).join(format!("{}_{}.json", call.invocation.container_id, call.ifname()))
}

/// A setting's path: parts with dots or slashes between; `IFNAME` stands for the interface. Only the network's.
fn parse_key(key: &str, ifname: &str) -> Result<Vec<String>, PluginError> {
    let separator = if key.contains('/') { '/' } else { '.' };
    let parts: Vec<String> = key
        .split(separator)
        .map(|part| {
            if part == "IFNAME" {
                ifname.to_owned()
            } else {
                part.to_owned()
            }
        })
        .collect();
    let names: Vec<&str> = parts.iter().map(String::as_str).collect();
    if names.first() != Some(&"net") || names.len() < 3 || cni_net::sysctl_path(&names).is_err() {
        return Err(PluginError::config(format!(
            "sysctl {key:?} is not one of the network's, such as net.ipv4.ip_forward"
        )));
    }
    Ok(parts)
}

/// Lines of the list are compared literally; the anchors and escapes of upstream's patterns are taken off.
fn allowed_list() -> Result<Option<Vec<String>>, PluginError> {
    match fs::read_to_string(ALLOW_LIST) {
        Ok(text) => Ok(Some(
            text.lines()
                .map(|line| {
                    line.trim()
                        .trim_start_matches('^')
                        .trim_end_matches('$')
                        .replace('\\', "")
                })
                .collect(),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PluginError::io("read", ALLOW_LIST)(error)),
    }
}

impl Plugin for Tuning {
    fn add(&self, call: &Call<'_>) -> Result<AddResult, PluginError> {
        let mut result = call.previous()?.clone();
        let wanted = Wanted::new(call)?;
        in_netns(call.netns()?, || {
            for (parts, value) in &wanted.sysctl {
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                write_sysctl(&parts, value)?;
            }
            if wanted.changes_link() {
                let mut rtnl = Rtnl::open()?;
                let link = find(&mut rtnl, call)?;
                keep(&wanted, &link)?;
                apply(&mut rtnl, &link, &wanted.after())?;
            }
            Ok::<_, PluginError>(())
        })??;
        for interface in &mut result.interfaces {
            if interface.name == call.ifname() && !interface.sandbox.is_empty() {
                if let Some(mac) = wanted.mac {
                    interface.mac = format_mac(&mac);
                }
                if wanted.config.mtu != 0 {
                    interface.mtu = Some(wanted.config.mtu);
                }
            }
        }
        Ok(result)
    }

    fn del(&self, call: &Call<'_>) -> Result<(), PluginError> {
        // Nothing else of the configuration matters: one that ADD refuses must not keep a container from being removed.
        let backup = backup(call);
        let before = match fs::read(&backup) {
            Ok(bytes) => serde_json::from_slice::<Before>(&bytes).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(PluginError::io("read", &backup)(error)),
        };
        if let (Some(netns), Some(before)) = (call.netns_if_any(), before) {
            in_netns(netns, || {
                let mut rtnl = Rtnl::open()?;
                match rtnl.link(call.ifname())? {
                    Some(link) => apply(&mut rtnl, &link, &before),
                    None => Ok(()),
                }
            })??;
        }
        match fs::remove_file(&backup) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PluginError::io("remove", &backup)(error))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let wanted = Wanted::new(call)?;
        in_netns(call.netns()?, || {
            for (parts, value) in &wanted.sysctl {
                let names: Vec<&str> = parts.iter().map(String::as_str).collect();
                let found = read_sysctl(&names)?;
                if found != *value {
                    let key = parts.join(".");
                    return Err(PluginError::internal(format!(
                        "sysctl {key} is {found:?}, not {value:?}"
                    )));
                }
            }
            if wanted.changes_link() {
                let link = find(&mut Rtnl::open()?, call)?;
                if wanted.before(&link) != wanted.after() {
                    let name = call.ifname();
                    let (found, after) = (wanted.before(&link), wanted.after());
                    return Err(PluginError::internal(format!(
                        "interface {name} has {found:?}, not {after:?}"
                    )));
                }
            }
            Ok(())
        })?
    }

    fn gc(&self, _call: &Call<'_>) -> Result<(), PluginError> {
        // The files' directory is shared by all networks, so which of them are stale can't be told from one network's
        // list. They are small and on a file system that a reboot clears.
        Ok(())
    }

    fn status(&self, _call: &Call<'_>) -> Result<(), PluginError> {
        Ok(())
    }
}

fn find(rtnl: &mut Rtnl, call: &Call<'_>) -> Result<Link, PluginError> {
    let name = call.ifname();
    rtnl.link(name)?
        .ok_or_else(|| PluginError::internal(format!("the container has no interface {name}")))
}

/// Writes down what was, unless a try that was cut short did so already.
fn keep(wanted: &Wanted, link: &Link) -> Result<(), PluginError> {
    let path = &wanted.backup;
    if path.exists() {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(PluginError::io("make the directory", dir))?;
    }
    let text = serde_json::to_vec(&wanted.before(link))
        .map_err(io::Error::from)
        .map_err(PluginError::io("encode", path))?;
    let new = path.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .map_err(PluginError::io("write", path))
}

fn apply(rtnl: &mut Rtnl, link: &Link, state: &Before) -> Result<(), PluginError> {
    if let Some(mac) = state.mac.as_deref().and_then(parse_mac)
        && link.mac != mac
    {
        rtnl.set_mac(link.index, &mac)?;
    }
    if let Some(on) = state.promisc {
        rtnl.set_promiscuous(link.index, on)?;
    }
    if let Some(mtu) = state.mtu {
        rtnl.set_mtu(link.index, mtu)?;
    }
    if let Some(on) = state.allmulti {
        rtnl.set_all_multicast(link.index, on)?;
    }
    if let Some(length) = state.txqlen {
        rtnl.set_txqlen(link.index, length)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_within_the_network() {
        let parse = |key: &str| parse_key(key, "eth0").map(|parts| parts.join("/"));
        assert_eq!(
            parse("net.ipv4.conf.IFNAME.arp_filter").unwrap(),
            "net/ipv4/conf/eth0/arp_filter"
        );
        assert_eq!(
            parse("net/ipv4/conf/eth0.100/arp_filter").unwrap(),
            "net/ipv4/conf/eth0.100/arp_filter"
        );
        for bad in [
            "kernel.hostname",
            "net/../kernel/hostname",
            "net",
            "",
            "net..ipv4",
            "net/ipv4//x",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("is not one of the network's"), "{bad}");
        }
    }

    #[test]
    fn the_file_is_upstreams() {
        let before = Before {
            mac: Some("0a:00:00:00:00:01".into()),
            mtu: Some(1500),
            ..Before::default()
        };
        assert_eq!(
            serde_json::to_string(&before).unwrap(),
            r#"{"mac":"0a:00:00:00:00:01","mtu":1500}"#
        );
    }
}
