//! macspoofchk: frames from a port must have the container's own hardware address.

use cni_net::nft::{
    Batch, Element, ElementData, Expr, Family, Hook, KeyType, Nft, Point, SetSpec, SetValue, Verdict, concat,
    ifname_bytes,
};

use crate::{
    call::Call,
    error::PluginError,
    ruleset::{Layout, TABLE},
};

/// Two sets: ports that are checked, and ports with the address that they may use.
pub(super) const LAYOUT: Layout = Layout {
    family: Family::Bridge,
    version: "spoof_1",
    sets: &[
        (
            "checked",
            SetSpec {
                key: &[KeyType::Ifname],
                value: SetValue::None,
            },
        ),
        (
            "allowed",
            SetSpec {
                key: &[KeyType::Ifname, KeyType::Ether],
                value: SetValue::None,
            },
        ),
    ],
    chains: &[(
        "spoof",
        Some(Hook {
            kind: "filter",
            point: Point::Prerouting,
            priority: -300,
        }),
    )],
    rules: || {
        vec![(
            "spoof",
            vec![
                Expr::Iifname(0),
                Expr::In(0, "checked"),
                Expr::Iifname(0),
                Expr::Link {
                    reg: 4,
                    offset: 6,
                    len: 6,
                },
                Expr::NotIn(0, "allowed"),
                Expr::Verdict(Verdict::Drop),
            ],
        )]
    },
};

pub(super) fn enable(nft: &mut Nft, port: &str, mac: &[u8], call: &Call<'_>) -> Result<(), PluginError> {
    LAYOUT.ensure(nft)?;
    // An address that the port had before must not stay allowed.
    disable(nft, call)?;
    let name = ifname_bytes(port);
    let element = |key: Vec<u8>| Element {
        key,
        data: ElementData::None,
        comment: call.mark(),
    };
    let mut batch = Batch::new(Family::Bridge, TABLE);
    batch
        .element("checked", &element(name.to_vec()))
        .element("allowed", &element(concat(&[&name, mac])));
    Ok(nft.commit(&batch)?)
}

pub(super) fn disable(nft: &mut Nft, call: &Call<'_>) -> Result<(), PluginError> {
    let owner = call.owner();
    LAYOUT.remove_of(nft, &call.network, |other| *other == owner)
}

pub(super) fn is_enabled(nft: &mut Nft, call: &Call<'_>) -> Result<bool, PluginError> {
    let mark = call.mark();
    for (set, _) in LAYOUT.sets {
        let elements = nft.elements(Family::Bridge, TABLE, set)?;
        if !elements.iter().any(|element| element.comment == mark) {
            return Ok(false);
        }
    }
    Ok(true)
}
