//! Kernel modules in the order in which they have to be loaded.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

/// Without these there is no disk, no agent and no network.
pub(crate) const EARLY: &[&str] = &["virtio_mmio", "virtio_blk", "virtio_console", "virtio_net"];

/// What tests of a node use; the kernel fetches others by itself, at the price of a process each.
pub(crate) const LATE: &[&str] = &[
    "overlay",
    "bridge",
    "br_netfilter",
    "veth",
    "vxlan",
    "tun",
    "macvlan",
    "ipvlan",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_inet",
    "nft_compat",
    "nf_conntrack_netlink",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_nat",
    "xt_multiport",
    "xt_tcpudp",
    "sch_tbf",
    "sch_htb",
    "sch_ingress",
    "act_mirred",
    "cls_matchall",
    "cls_u32",
    "fuse",
    "xfs",
    "loop",
    "unix_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
];

/// The paths of modules with all that they need, from `modules.dep` and `modules.builtin`.
pub(crate) fn in_order(wanted: &[&str], dependencies: &str, builtin: &str) -> Result<Vec<String>> {
    let table: BTreeMap<String, (&str, Vec<&str>)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (name(path), (path, needs.split_whitespace().collect())))
        .collect();
    let builtin: BTreeSet<String> = builtin.lines().map(name).collect();
    let mut order = Vec::new();
    for module in wanted {
        let Some((path, needs)) = table.get(&name(module)) else {
            ensure!(
                builtin.contains(&name(module)),
                "the guest's kernel has no module `{module}`"
            );
            continue;
        };
        // `modules.dep` lists all that a module needs, the deepest last.
        for path in needs.iter().rev().chain([path]) {
            if !order.iter().any(|known| known == path) {
                order.push((*path).to_owned());
            }
        }
    }
    Ok(order)
}

fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                       kernel/net/802/stp.ko: kernel/net/llc/llc.ko\nkernel/net/llc/llc.ko:\nkernel/drivers/net/veth.ko:\n";

    #[test]
    fn what_a_module_needs_comes_first_and_once() {
        let order = in_order(
            &["bridge", "llc", "veth", "ext4"],
            DEP,
            "kernel/fs/ext4/ext4.ko\n",
        )
        .unwrap();
        assert_eq!(
            order,
            [
                "kernel/net/llc/llc.ko",
                "kernel/net/802/stp.ko",
                "kernel/net/bridge/bridge.ko",
                "kernel/drivers/net/veth.ko"
            ]
        );
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let error = in_order(&["zfs"], DEP, "").unwrap_err();
        assert_eq!(error.to_string(), "the guest's kernel has no module `zfs`");
    }
}
