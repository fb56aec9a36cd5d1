//! The nftables table of the plugins: one table, a few base chains, and maps with one element per pod address or port
//! mapping, so that adding and removing a pod costs the same however many there are.
//!
//! Each plugin brings a [`Layout`] of its own into the table: its sets, chains and rules, all made in one transaction
//! together with an empty chain whose name is the layout's version. Where that chain is, everything is; an older
//! version's chains are flushed and filled again. The table is `inet orlop_cni` (and `bridge orlop_cni` for what
//! happens below the network layer).

use std::net::IpAddr;

use cni_net::nft::{
    Batch, Element, ElementData, Expr, Family, Hook, KeyType, Nft, Point, SetSpec, SetValue, Verdict,
};
use ipnetwork::IpNetwork;

use crate::{
    error::PluginError,
    owner::{Owner, short_hash},
};

pub(crate) const TABLE: &str = "orlop_cni";

/// What one plugin needs in a table.
pub(crate) struct Layout {
    pub(crate) family: Family,
    /// The chain whose presence says that all is there; it rises with every change.
    pub(crate) version: &'static str,
    pub(crate) sets: &'static [(&'static str, SetSpec)],
    pub(crate) chains: &'static [(&'static str, Option<Hook>)],
    pub(crate) rules: fn() -> Vec<(&'static str, Vec<Expr>)>,
}

impl Layout {
    /// Makes what isn't there.
    pub(crate) fn ensure(&self, nft: &mut Nft) -> Result<(), PluginError> {
        if nft.has_chain(self.family, TABLE, self.version)? {
            return Ok(());
        }
        let mut batch = Batch::new(self.family, TABLE);
        batch.table().chain(self.version, None);
        for (name, spec) in self.sets {
            batch.set(name, spec);
        }
        for (name, hook) in self.chains {
            batch.chain(name, *hook).flush_chain(name);
        }
        for (chain, expressions) in (self.rules)() {
            batch.rule(chain, &expressions);
        }
        Ok(nft.commit(&batch)?)
    }

    /// Every element of the layout's sets that belongs to an owner on that network for whom `gone` holds.
    fn elements_of(
        &self,
        nft: &mut Nft,
        network: &str,
        gone: impl Fn(&Owner) -> bool,
    ) -> Result<Vec<(String, Vec<u8>)>, PluginError> {
        let mut found = Vec::new();
        for (set, _) in self.sets {
            for element in nft.elements(self.family, TABLE, set)? {
                if Owner::of_mark(&element.comment, network).is_some_and(|owner| gone(&owner)) {
                    found.push(((*set).to_owned(), element.key));
                }
            }
        }
        Ok(found)
    }

    /// Removes every element of such owners.
    pub(crate) fn remove_of(
        &self,
        nft: &mut Nft,
        network: &str,
        gone: impl Fn(&Owner) -> bool,
    ) -> Result<(), PluginError> {
        let found = self.elements_of(nft, network, gone)?;
        Ok(nft.remove_elements(self.family, TABLE, &found)?)
    }

    /// Removes elements that have this mark. Others with the same key stay: an address may have got a new owner.
    pub(crate) fn remove_marked(
        &self,
        nft: &mut Nft,
        mark: &str,
        keys: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Result<(), PluginError> {
        let mut mine = Vec::new();
        for (set, key) in keys {
            let found = nft.element(self.family, TABLE, &set, &key)?;
            if found.is_some_and(|found| found.comment == mark) {
                mine.push((set, key));
            }
        }
        Ok(nft.remove_elements(self.family, TABLE, &mine)?)
    }
}

pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_IPV6: u8 = 10;

/// Goes on only for that family.
pub(crate) fn only(ipv4: bool) -> [Expr; 2] {
    [
        Expr::NfProto(0),
        Expr::Equal(0, vec![if ipv4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }]),
    ]
}

/// Loads the source address.
pub(crate) fn source(ipv4: bool, reg: u8) -> Expr {
    match ipv4 {
        true => Expr::Network {
            reg,
            offset: 12,
            len: 4,
        },
        false => Expr::Network {
            reg,
            offset: 8,
            len: 16,
        },
    }
}

/// Loads the destination address.
pub(crate) fn destination(ipv4: bool, reg: u8) -> Expr {
    match ipv4 {
        true => Expr::Network {
            reg,
            offset: 16,
            len: 4,
        },
        false => Expr::Network {
            reg,
            offset: 24,
            len: 16,
        },
    }
}

/// Compares the address in a register with a subnet.
pub(crate) fn within(subnet: IpNetwork, reg: u8) -> [Expr; 2] {
    [
        Expr::Mask(reg, Element::address_key(subnet.mask())),
        Expr::Equal(reg, Element::address_key(subnet.network())),
    ]
}

/// The map of a family: `base4` or `base6`.
pub(crate) fn of_family(ipv4: bool, four: &'static str, six: &'static str) -> &'static str {
    if ipv4 { four } else { six }
}

const V4_TO_VERDICT: SetSpec = SetSpec {
    key: &[KeyType::Ipv4],
    value: SetValue::Verdict,
};
const V6_TO_VERDICT: SetSpec = SetSpec {
    key: &[KeyType::Ipv6],
    value: SetValue::Verdict,
};

/// Masquerading: the map leads from a pod's address to the chain of its network, which lets traffic to the network's
/// own subnets and multicast pass and masquerades the rest.
pub(crate) const MASQUERADE: Layout = Layout {
    family: Family::Inet,
    version: "masquerade_1",
    sets: &[("masquerade4", V4_TO_VERDICT), ("masquerade6", V6_TO_VERDICT)],
    chains: &[(
        "masquerade",
        Some(Hook {
            kind: "nat",
            point: Point::Postrouting,
            priority: 100,
        }),
    )],
    rules: || {
        [true, false]
            .map(|ipv4| {
                let mut rule = only(ipv4).to_vec();
                rule.push(source(ipv4, 0));
                rule.push(Expr::VerdictMap(0, of_family(ipv4, "masquerade4", "masquerade6")));
                ("masquerade", rule)
            })
            .to_vec()
    },
};

/// The chain of a network with these subnets.
fn network_chain(subnets: &[IpNetwork]) -> String {
    let mut texts: Vec<String> = subnets.iter().map(IpNetwork::to_string).collect();
    texts.sort();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    format!("leave_{}", short_hash(&texts, 16))
}

fn subnet_of(address: IpNetwork) -> IpNetwork {
    IpNetwork::new(address.network(), address.prefix()).unwrap_or(address)
}

/// Masquerades what leaves the network of these pod addresses.
pub(crate) fn masquerade(nft: &mut Nft, addresses: &[IpNetwork], mark: &str) -> Result<(), PluginError> {
    MASQUERADE.ensure(nft)?;
    let subnets: Vec<IpNetwork> = addresses.iter().map(|address| subnet_of(*address)).collect();
    let chain = network_chain(&subnets);
    let mut batch = Batch::new(Family::Inet, TABLE);
    if !nft.has_chain(Family::Inet, TABLE, &chain)? {
        batch.chain(&chain, None).flush_chain(&chain);
        for subnet in &subnets {
            for stay in [*subnet, multicast(subnet.is_ipv4())] {
                let mut rule = only(subnet.is_ipv4()).to_vec();
                rule.push(destination(subnet.is_ipv4(), 0));
                rule.extend(within(stay, 0));
                rule.push(Expr::Verdict(Verdict::Return));
                batch.rule(&chain, &rule);
            }
        }
        batch.rule(&chain, &[Expr::Counter, Expr::Masquerade]);
    }
    for address in addresses {
        let set = of_family(address.is_ipv4(), "masquerade4", "masquerade6");
        let data = ElementData::Verdict(Verdict::Jump(chain.clone()));
        batch.element(
            set,
            &Element {
                key: Element::address_key(address.ip()),
                data,
                comment: mark.to_owned(),
            },
        );
    }
    match nft.commit(&batch) {
        // Left behind by an earlier try, or by a dead pod that had the address before.
        Err(error) if error.is_present() => {
            nft.remove_elements(Family::Inet, TABLE, &masquerade_keys(addresses))?;
            Ok(nft.commit(&batch)?)
        }
        other => Ok(other?),
    }
}

fn multicast(ipv4: bool) -> IpNetwork {
    let (ip, prefix): (IpAddr, u8) = match ipv4 {
        true => (IpAddr::from([224, 0, 0, 0]), 4),
        false => (IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    };
    IpNetwork::new(ip, prefix).expect("both prefixes fit their family")
}

/// The elements of these addresses.
pub(crate) fn masquerade_keys(addresses: &[IpNetwork]) -> Vec<(String, Vec<u8>)> {
    addresses
        .iter()
        .map(|address| {
            (
                of_family(address.is_ipv4(), "masquerade4", "masquerade6").to_owned(),
                Element::address_key(address.ip()),
            )
        })
        .collect()
}

/// Whether these addresses are masqueraded.
pub(crate) fn is_masqueraded(nft: &mut Nft, addresses: &[IpNetwork]) -> Result<bool, PluginError> {
    for address in addresses {
        let set = of_family(address.is_ipv4(), "masquerade4", "masquerade6");
        if nft
            .element(Family::Inet, TABLE, set, &Element::address_key(address.ip()))?
            .is_none()
        {
            return Ok(false);
        }
    }
    Ok(true)
}
