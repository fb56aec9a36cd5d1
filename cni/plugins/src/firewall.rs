//! firewall: lets forwarded packets from and to pods through, and keeps bridges apart where `ingressPolicy` says so.
//!
//! The pods' addresses are elements of two sets. nftables lets a packet through when every table does, so accepting it
//! here doesn't overrule another program's drop. `same-bridge` keeps pods of different bridges apart, `isolated` those of
//! one bridge too (where their packets pass the host); `open` is neither.

use cni_net::{
    Rtnl,
    nft::{
        Batch, Element, ElementData, Expr, Family, Hook, KeyType, Nft, Point, SetSpec, SetValue, Verdict,
        concat, ifname_bytes,
    },
};
use cni_types::{AddResult, ErrorCode};
use serde::Deserialize;

use crate::{
    call::{Call, Plugin},
    error::PluginError,
    ruleset::{Layout, TABLE, destination, of_family, only, source},
};

pub(crate) struct Firewall;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    backend: String,
    #[serde(default)]
    ingress_policy: IngressPolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum IngressPolicy {
    #[default]
    #[serde(alias = "")]
    Open,
    SameBridge,
    Isolated,
}

const fn plain(key: &'static [KeyType]) -> SetSpec {
    SetSpec {
        key,
        value: SetValue::None,
    }
}

const LAYOUT: Layout = Layout {
    family: Family::Inet,
    version: "firewall_1",
    sets: &[
        ("pods4", plain(&[KeyType::Ipv4])),
        ("pods6", plain(&[KeyType::Ipv6])),
        ("apart", plain(&[KeyType::Ifname])),
        ("together", plain(&[KeyType::Ifname, KeyType::Ifname])),
    ],
    chains: &[(
        "firewall",
        Some(Hook {
            kind: "filter",
            point: Point::Forward,
            priority: 0,
        }),
    )],
    rules,
};

fn rules() -> Vec<(&'static str, Vec<Expr>)> {
    const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
    let mut rules = vec![
        (
            "firewall",
            vec![
                Expr::Iifname(0),
                Expr::Oifname(4),
                Expr::In(0, "together"),
                Expr::Verdict(Verdict::Accept),
            ],
        ),
        (
            "firewall",
            vec![
                Expr::Iifname(0),
                Expr::In(0, "apart"),
                Expr::Oifname(0),
                Expr::In(0, "apart"),
                Expr::Counter,
                Expr::Verdict(Verdict::Drop),
            ],
        ),
    ];
    for ipv4 in [true, false] {
        let set = of_family(ipv4, "pods4", "pods6");
        let mut answers = only(ipv4).to_vec();
        answers.extend([
            destination(ipv4, 0),
            Expr::In(0, set),
            Expr::CtState(0),
            Expr::Mask(0, ESTABLISHED_OR_RELATED.to_ne_bytes().to_vec()),
            Expr::Differs(0, 0u32.to_ne_bytes().to_vec()),
            Expr::Verdict(Verdict::Accept),
        ]);
        let mut from_pods = only(ipv4).to_vec();
        from_pods.extend([source(ipv4, 0), Expr::In(0, set), Expr::Verdict(Verdict::Accept)]);
        rules.extend([("firewall", answers), ("firewall", from_pods)]);
    }
    rules
}

impl Config {
    fn new(call: &Call<'_>) -> Result<Self, PluginError> {
        let config: Config = call.config()?;
        match config.backend.as_str() {
            // Rules are the same whoever is asked to make them.
            "" | "nftables" | "iptables" => Ok(config),
            other => {
                let message = format!("backend {other:?} is not supported; use \"nftables\" or leave it out");
                Err(PluginError::new(ErrorCode::UNSUPPORTED_FIELD, message))
            }
        }
    }
}

impl Plugin for Firewall {
    fn add(&self, call: &Call<'_>) -> Result<AddResult, PluginError> {
        let config = Config::new(call)?;
        let previous = call.previous()?;
        let mut nft = Nft::open()?;
        LAYOUT.ensure(&mut nft)?;
        if config.ingress_policy != IngressPolicy::Open {
            keep_apart(&mut nft, &bridge_of(previous)?, config.ingress_policy)?;
        }
        let mark = call.mark();
        let mut batch = Batch::new(Family::Inet, TABLE);
        for (set, key) in keys(previous) {
            batch.element(
                &set,
                &Element {
                    key,
                    data: ElementData::None,
                    comment: mark.clone(),
                },
            );
        }
        match nft.commit(&batch) {
            // Left behind by an earlier try, or by a dead pod that had the address before.
            Err(error) if error.is_present() => {
                nft.remove_elements(Family::Inet, TABLE, &keys(previous))?;
                nft.commit(&batch)?;
            }
            other => other?,
        }
        Ok(previous.clone())
    }

    fn del(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let mut nft = Nft::open()?;
        let owner = call.owner();
        match &call.previous {
            Some(previous) => LAYOUT.remove_marked(&mut nft, &call.mark(), keys(previous)),
            None => LAYOUT.remove_of(&mut nft, &call.network, |other| *other == owner),
        }
    }

    fn check(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let mut nft = Nft::open()?;
        for (set, key) in keys(call.previous()?) {
            if nft.element(Family::Inet, TABLE, &set, &key)?.is_none() {
                let id = &call.invocation.container_id;
                return Err(PluginError::internal(format!(
                    "the firewall no longer knows container {id}"
                )));
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call<'_>) -> Result<(), PluginError> {
        let valid = call.valid()?;
        LAYOUT.remove_of(&mut Nft::open()?, &call.network, |owner| !valid.contains(owner))
    }

    fn status(&self, call: &Call<'_>) -> Result<(), PluginError> {
        Config::new(call)?;
        Nft::open()?
            .chains(Family::Inet, TABLE)
            .map(drop)
            .map_err(PluginError::from)
    }
}

fn keys(result: &AddResult) -> Vec<(String, Vec<u8>)> {
    let key = |ip: std::net::IpAddr| {
        (
            of_family(ip.is_ipv4(), "pods4", "pods6").to_owned(),
            Element::address_key(ip),
        )
    };
    result.ips.iter().map(|ip| key(ip.address.ip())).collect()
}

/// The bridge that the container is on.
fn bridge_of(result: &AddResult) -> Result<String, PluginError> {
    let mut rtnl = Rtnl::open()?;
    for interface in result
        .interfaces
        .iter()
        .filter(|interface| interface.sandbox.is_empty())
    {
        if rtnl
            .link(&interface.name)?
            .is_some_and(|link| link.kind == "bridge")
        {
            return Ok(interface.name.clone());
        }
    }
    Err(PluginError::config(
        "ingressPolicy needs a bridge, and prevResult names none; set it to \"open\"",
    ))
}

fn keep_apart(nft: &mut Nft, bridge: &str, policy: IngressPolicy) -> Result<(), PluginError> {
    let name = ifname_bytes(bridge);
    let pair = concat(&[&name, &name]);
    let mut wanted = vec![("apart", name.to_vec())];
    match policy {
        IngressPolicy::SameBridge => wanted.push(("together", pair)),
        IngressPolicy::Isolated => nft.remove_elements(Family::Inet, TABLE, &[("together".into(), pair)])?,
        IngressPolicy::Open => {}
    }
    for (set, key) in wanted {
        let element = Element {
            key,
            data: ElementData::None,
            comment: String::new(),
        };
        match nft.commit(Batch::new(Family::Inet, TABLE).element(set, &element)) {
            Err(error) if !error.is_present() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
