//! portmap: ports of the host that lead to ports of the container.
//!
//! Two maps per family lead from protocol and port, with or without the host's address, to the pod's address and port;
//! prerouting and output translate by them what is meant for this machine. Answers must come back through the host, so
//! the source is masqueraded where they otherwise would not: when the caller is in the pod's own subnet (or the pod
//! itself), and when it is 127.0.0.1. For the latter the kernel must be told to route that address
//! (`route_localnet`); lest neighbours make use of it, packets from elsewhere that carry such addresses are dropped.

mod rules;

use std::net::IpAddr;

use cni_net::{
    Rtnl,
    conntrack::Conntrack,
    nft::{Batch, Element, ElementData, Family, Nft, Verdict, concat, l4proto},
    write_sysctl,
};
use cni_types::{AddResult, ErrorCode, PortMapping, Protocol};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    call::{Call, Plugin},
    error::PluginError,
    owner::{Owner, short_hash},
    ruleset::{TABLE, of_family},
};

pub(crate) struct Portmap;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// Masquerade where answers would not come back otherwise.
    #[serde(default)]
    snat: Option<bool>,
    #[serde(default)]
    conditions_v4: Option<Value>,
    #[serde(default)]
    conditions_v6: Option<Value>,
}

impl Config {
    fn new(call: &Call<'_>) -> Result<Self, PluginError> {
        let config: Config = call.config()?;
        for (key, value) in [
            ("conditionsV4", &config.conditions_v4),
            ("conditionsV6", &config.conditions_v6),
        ] {
            if value
                .as_ref()
                .is_some_and(|v| !v.is_null() && v.as_array().is_none_or(|list| !list.is_empty()))
            {
                let message = format!("{key} holds iptables arguments, which are not supported; remove it");
                return Err(PluginError::new(ErrorCode::UNSUPPORTED_FIELD, message));
            }
        }
        Ok(config)
    }
}

/// One element of one of the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    set: &'static str,
    key: Vec<u8>,
    data: Vec<u8>,
    text: String,
}

impl Plugin for Portmap {
    fn add(&self, call: &Call<'_>) -> Result<AddResult, PluginError> {
        let config = Config::new(call)?;
        let previous = call.previous()?;
        let entries = entries(&call.runtime.port_mappings, &pod_addresses(previous))?;
        if !entries.is_empty() {
            let mark = call.mark();
            let mut nft = Nft::open()?;
            rules::LAYOUT.ensure(&mut nft)?;
            publish(&mut nft, &entries, &mark)?;
            if config.snat.unwrap_or(true) {
                let done = let_answers_return(&mut nft, &pod_addresses(previous), &mark);
                if let Err(error) = done {
                    // The first failure is the one to report.
                    let _ = withdraw(&mut nft, call);
                    return Err(error);
                }
            }
            forget_udp(&call.runtime.port_mappings)?;
        }
        Ok(previous.clone())
    }

    fn del(&self, call: &Call<'_>) -> Result<(), PluginError> {
        if call.previous.is_some() && call.runtime.port_mappings.is_empty() {
            return Ok(());
        }
        withdraw(&mut Nft::open()?, call)?;
        forget_udp(&call.runtime.port_mappings)
    }

    fn check(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let mut nft = Nft::open()?;
        for entry in entries(&call.runtime.port_mappings, &pod_addresses(call.previous()?))? {
            match nft.element(Family::Inet, TABLE, entry.set, &entry.key)? {
                Some(found) if found.data == ElementData::Value(entry.data.clone()) => {}
                Some(found) => return Err(taken(&entry, &found)),
                None => {
                    return Err(PluginError::internal(format!(
                        "the mapping of {} is gone",
                        entry.text
                    )));
                }
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let valid = call.valid()?;
        rules::LAYOUT.remove_of(&mut Nft::open()?, &call.network, |owner| !valid.contains(owner))
    }

    fn status(&self, _call: &Call<'_>) -> Result<(), PluginError> {
        // Whether the kernel has nftables at all.
        Nft::open()?
            .chains(Family::Inet, TABLE)
            .map(drop)
            .map_err(PluginError::from)
    }
}

/// The pod's first address of each family.
fn pod_addresses(result: &AddResult) -> Vec<IpNetwork> {
    let inside = |index: Option<usize>| {
        index
            .and_then(|i| result.interfaces.get(i))
            .is_none_or(|interface| !interface.sandbox.is_empty())
    };
    let all: Vec<IpNetwork> = result
        .ips
        .iter()
        .filter(|ip| inside(ip.interface))
        .map(|ip| ip.address)
        .collect();
    let first = |ipv4| all.iter().find(|address| address.is_ipv4() == ipv4).copied();
    [first(true), first(false)].into_iter().flatten().collect()
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => l4proto::TCP,
        Protocol::Udp => l4proto::UDP,
        Protocol::Sctp => l4proto::SCTP,
    }
}

/// What the mappings mean for the maps.
fn entries(mappings: &[PortMapping], pods: &[IpNetwork]) -> Result<Vec<Entry>, PluginError> {
    let mut entries: Vec<Entry> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        if mapping.container_port == 0 {
            return Err(PluginError::config(format!(
                "host port {} is mapped to container port 0",
                mapping.host_port
            )));
        }
        if let Some(IpAddr::V6(ip)) = mapping.host_ip
            && ip.is_loopback()
        {
            let message =
                "hostIP ::1 can't be mapped: the kernel never lets packets from ::1 leave the machine";
            return Err(PluginError::new(ErrorCode::UNSUPPORTED_FIELD, message));
        }
        let wanted = |pod: &&IpNetwork| mapping.host_ip.is_none_or(|ip| ip.is_ipv4() == pod.is_ipv4());
        for pod in pods.iter().filter(wanted) {
            let entry = entry(mapping, pod.ip());
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
    }
    Ok(entries)
}

fn entry(mapping: &PortMapping, pod: IpAddr) -> Entry {
    let number = [protocol_number(mapping.protocol)];
    let port = mapping.host_port.to_be_bytes();
    let specific = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    let (set, key) = match specific {
        Some(ip) => (
            of_family(pod.is_ipv4(), "hostport_ip4", "hostport_ip6"),
            concat(&[&Element::address_key(ip), &number, &port]),
        ),
        None => (
            of_family(pod.is_ipv4(), "hostport4", "hostport6"),
            concat(&[&number, &port]),
        ),
    };
    let data = concat(&[&Element::address_key(pod), &mapping.container_port.to_be_bytes()]);
    let protocol = match mapping.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let at = specific.map(|ip| format!(" of {ip}")).unwrap_or_default();
    Entry {
        set,
        key,
        data,
        text: format!("host port {}/{protocol}{at}", mapping.host_port),
    }
}

fn taken(entry: &Entry, found: &Element) -> PluginError {
    let holder = Owner::container_of_mark(&found.comment);
    PluginError::internal(format!("{} is mapped to container {holder} already", entry.text))
}

/// Puts the entries into the maps. Those of an earlier try for the same container give way; another container's don't.
fn publish(nft: &mut Nft, entries: &[Entry], mark: &str) -> Result<(), PluginError> {
    let mut batch = Batch::new(Family::Inet, TABLE);
    for entry in entries {
        let data = ElementData::Value(entry.data.clone());
        batch.element(
            entry.set,
            &Element {
                key: entry.key.clone(),
                data,
                comment: mark.to_owned(),
            },
        );
    }
    match nft.commit(&batch) {
        Err(error) if error.is_present() => {}
        other => return Ok(other?),
    }
    let mut old = Vec::new();
    for entry in entries {
        match nft.element(Family::Inet, TABLE, entry.set, &entry.key)? {
            None => {}
            Some(found) if found.comment == mark => old.push((entry.set.to_owned(), entry.key.clone())),
            Some(found) => return Err(taken(entry, &found)),
        }
    }
    nft.remove_elements(Family::Inet, TABLE, &old)?;
    Ok(nft.commit(&batch)?)
}

/// Masquerades callers from the pod's own subnet and from 127.0.0.1.
fn let_answers_return(nft: &mut Nft, pods: &[IpNetwork], mark: &str) -> Result<(), PluginError> {
    let mut rtnl = Rtnl::open()?;
    for pod in pods {
        if pod.is_ipv4()
            && let Some(index) = rtnl.route_to(pod.ip())?.index
            && let Some(link) = rtnl.link_at(index)?
            && link.name != "lo"
        {
            write_sysctl(&["net", "ipv4", "conf", &link.name, "route_localnet"], "1")?;
        }
        let set = of_family(pod.is_ipv4(), "hairpin4", "hairpin6");
        let subnet = IpNetwork::new(pod.network(), pod.prefix()).unwrap_or(*pod);
        let chain = format!("hairpin_{}", short_hash(&[&subnet.to_string()], 16));
        let mut batch = Batch::new(Family::Inet, TABLE);
        if !nft.has_chain(Family::Inet, TABLE, &chain)? {
            batch
                .chain(&chain, None)
                .flush_chain(&chain)
                .rule(&chain, &rules::from_subnet(subnet));
        }
        let key = Element::address_key(pod.ip());
        let data = ElementData::Verdict(Verdict::Jump(chain));
        batch.element(
            set,
            &Element {
                key: key.clone(),
                data,
                comment: mark.to_owned(),
            },
        );
        match nft.commit(&batch) {
            // Left behind by an earlier try, or by a dead pod that had the address before.
            Err(error) if error.is_present() => {
                nft.remove_elements(Family::Inet, TABLE, &[(set.to_owned(), key)])?;
                nft.commit(&batch)?;
            }
            other => other?,
        }
    }
    Ok(())
}

/// Removes what belongs to the container: by its keys where they are known, else by the marks. A mapping that ADD
/// refuses was never made.
fn withdraw(nft: &mut Nft, call: &Call<'_>) -> Result<(), PluginError> {
    let owner = call.owner();
    let known = call.previous.as_ref().and_then(|previous| {
        let pods = pod_addresses(previous);
        let entries = entries(&call.runtime.port_mappings, &pods).ok()?;
        Some((pods, entries))
    });
    let Some((pods, entries)) = known else {
        return rules::LAYOUT.remove_of(nft, &call.network, |other| *other == owner);
    };
    let hairpins = pods.iter().map(|pod| {
        (
            of_family(pod.is_ipv4(), "hairpin4", "hairpin6").to_owned(),
            Element::address_key(pod.ip()),
        )
    });
    let keys = entries.into_iter().map(|entry| (entry.set.to_owned(), entry.key));
    rules::LAYOUT.remove_marked(nft, &call.mark(), keys.chain(hairpins))
}

/// Flows that the kernel remembers would go on the old way.
fn forget_udp(mappings: &[PortMapping]) -> Result<(), PluginError> {
    let udp = |mapping: &&PortMapping| mapping.protocol == Protocol::Udp && mapping.host_port != 0;
    let ports: Vec<u16> = mappings
        .iter()
        .filter(udp)
        .map(|mapping| mapping.host_port)
        .collect();
    if !ports.is_empty() {
        Conntrack::open()?.forget(l4proto::UDP, &ports)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_port: u16, protocol: Protocol, host_ip: Option<&str>) -> PortMapping {
        PortMapping {
            host_port,
            container_port: 80,
            protocol,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        }
    }

    #[test]
    fn mappings_become_elements_of_each_family() {
        let pods: Vec<IpNetwork> = ["10.1.0.5/24", "fd00::5/64"]
            .iter()
            .map(|t| t.parse().unwrap())
            .collect();
        let sets = |host_ip| {
            let all = entries(&[mapping(8080, Protocol::Tcp, host_ip)], &pods).unwrap();
            all.into_iter().map(|entry| entry.set).collect::<Vec<_>>()
        };
        assert_eq!(sets(None), ["hostport4", "hostport6"]);
        assert_eq!(sets(Some("0.0.0.0")), ["hostport4"]);
        assert_eq!(sets(Some("::")), ["hostport6"]);
        assert_eq!(sets(Some("192.0.2.1")), ["hostport_ip4"]);
        assert_eq!(sets(Some("2001:db8::1")), ["hostport_ip6"]);
        let one = &entries(&[mapping(8080, Protocol::Udp, Some("192.0.2.1"))], &pods).unwrap()[0];
        assert_eq!(one.key, [192, 0, 2, 1, 17, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(one.data, [10, 1, 0, 5, 0, 80, 0, 0]);
        assert_eq!(one.text, "host port 8080/udp of 192.0.2.1");
        assert!(
            entries(&[mapping(0, Protocol::Tcp, None)], &pods)
                .unwrap()
                .is_empty()
        );
        let error = entries(&[mapping(1, Protocol::Tcp, Some("::1"))], &pods).unwrap_err();
        assert!(error.to_string().contains("::1 can't be mapped"));
    }
}
