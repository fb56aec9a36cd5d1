//! portmap's part of the table.

use cni_net::nft::{Expr, Family, Hook, KeyType, Point, SetSpec, SetValue, Verdict, ct_status, ifname_bytes};
use ipnetwork::IpNetwork;

use crate::ruleset::{Layout, destination, of_family, only, source, within};

const fn map(key: &'static [KeyType], value: SetValue) -> SetSpec {
    SetSpec { key, value }
}

const TO_V4: SetValue = SetValue::Data(&[KeyType::Ipv4, KeyType::Port]);
const TO_V6: SetValue = SetValue::Data(&[KeyType::Ipv6, KeyType::Port]);

const fn nat(point: Point, priority: i32) -> Option<Hook> {
    Some(Hook {
        kind: "nat",
        point,
        priority,
    })
}

pub(super) const LAYOUT: Layout = Layout {
    family: Family::Inet,
    version: "portmap_1",
    sets: &[
        ("hostport4", map(&[KeyType::Protocol, KeyType::Port], TO_V4)),
        ("hostport6", map(&[KeyType::Protocol, KeyType::Port], TO_V6)),
        (
            "hostport_ip4",
            map(&[KeyType::Ipv4, KeyType::Protocol, KeyType::Port], TO_V4),
        ),
        (
            "hostport_ip6",
            map(&[KeyType::Ipv6, KeyType::Protocol, KeyType::Port], TO_V6),
        ),
        ("hairpin4", map(&[KeyType::Ipv4], SetValue::Verdict)),
        ("hairpin6", map(&[KeyType::Ipv6], SetValue::Verdict)),
    ],
    chains: &[
        ("portmap", None),
        ("portmap_prerouting", nat(Point::Prerouting, -100)),
        ("portmap_output", nat(Point::Output, -100)),
        // Before masquerading of what leaves the pod network.
        ("portmap_postrouting", nat(Point::Postrouting, 99)),
        // Before connection tracking, which puts 127.0.0.1 back into answers.
        (
            "portmap_raw",
            Some(Hook {
                kind: "filter",
                point: Point::Prerouting,
                priority: -300,
            }),
        ),
    ],
    rules,
};

fn loopback() -> IpNetwork {
    IpNetwork::new([127, 0, 0, 0].into(), 8).expect("8 fits")
}

fn rules() -> Vec<(&'static str, Vec<Expr>)> {
    const LOCAL: u32 = 2;
    let local = || {
        vec![
            Expr::DestinationKind(0),
            Expr::Equal(0, LOCAL.to_ne_bytes().to_vec()),
            Expr::Verdict(Verdict::Jump("portmap".into())),
        ]
    };
    let mut rules = vec![("portmap_prerouting", local()), ("portmap_output", local())];
    for ipv4 in [true, false] {
        rules.push(("portmap", translate(ipv4, true)));
        rules.push(("portmap", translate(ipv4, false)));
    }
    let mut from_loopback = translated();
    from_loopback.extend(only(true));
    from_loopback.push(source(true, 0));
    from_loopback.extend(within(loopback(), 0));
    from_loopback.push(Expr::Masquerade);
    rules.push(("portmap_postrouting", from_loopback));
    for ipv4 in [true, false] {
        let mut hairpin = translated();
        hairpin.extend(only(ipv4));
        hairpin.push(destination(ipv4, 0));
        hairpin.push(Expr::VerdictMap(0, of_family(ipv4, "hairpin4", "hairpin6")));
        rules.push(("portmap_postrouting", hairpin));
    }
    for address in [source(true, 0), destination(true, 0)] {
        let mut martian = vec![Expr::Iifname(0), Expr::Differs(0, ifname_bytes("lo").to_vec())];
        martian.extend(only(true));
        martian.push(address);
        martian.extend(within(loopback(), 0));
        martian.push(Expr::Verdict(Verdict::Drop));
        rules.push(("portmap_raw", martian));
    }
    rules
}

/// Goes on only for connections whose destination was translated.
fn translated() -> Vec<Expr> {
    vec![
        Expr::CtStatus(0),
        Expr::Mask(0, ct_status::DNAT.to_ne_bytes().to_vec()),
        Expr::Differs(0, 0u32.to_ne_bytes().to_vec()),
    ]
}

/// Looks the packet up in a map and translates it: by the host's address too, or not.
fn translate(ipv4: bool, by_address: bool) -> Vec<Expr> {
    let mut rule = only(ipv4).to_vec();
    let words = if ipv4 { 1 } else { 4 };
    let after_address = match by_address {
        true => {
            rule.push(destination(ipv4, 0));
            words
        }
        false => 0,
    };
    rule.push(Expr::L4Proto(after_address));
    rule.push(Expr::DestinationPort(after_address + 1));
    let set = match by_address {
        true => of_family(ipv4, "hostport_ip4", "hostport_ip6"),
        false => of_family(ipv4, "hostport4", "hostport6"),
    };
    const VALUE: u8 = 8;
    rule.push(Expr::Map(0, set, VALUE));
    rule.push(Expr::Dnat {
        ipv4,
        address: VALUE,
        port: VALUE + words,
    });
    rule
}

/// Masquerades what comes from a subnet.
pub(super) fn from_subnet(subnet: IpNetwork) -> Vec<Expr> {
    let mut rule = only(subnet.is_ipv4()).to_vec();
    rule.push(source(subnet.is_ipv4(), 0));
    rule.extend(within(subnet, 0));
    rule.push(Expr::Masquerade);
    rule
}
