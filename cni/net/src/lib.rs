//! Network namespaces, blocking netlink and nftables transactions: what plugins do to the kernel, in small typed
//! functions.
//!
//! The story: a [`Rtnl`] is a routing socket of the network namespace that its thread was in when it was opened; a
//! namespace that is named by a path is entered by a thread of its own ([`in_netns`]), which exits afterwards, so no
//! other thread ever finds itself elsewhere. Firewall changes are one [`nft::Batch`] each: all of it happens or nothing.
//! Every request waits at most [`LIMIT`], a removal for its turn at most [`REMOVAL_LIMIT`]; every error names what was
//! tried and carries the kernel's own words.

mod address;
mod attr;
mod channel;
pub mod conntrack;
mod link;
mod netns;
pub mod nft;
mod pool;
mod route;
mod sysctl;
pub mod tc;

pub use address::Address;
pub use channel::{LIMIT, NetlinkError, REMOVAL_LIMIT};
pub use link::{
    BridgeOptions, Counters, Link, PortOptions, VethPeer, format_mac, interface_counters, parse_mac,
};
pub use netns::{NetnsError, in_netns, is_netns, is_own_netns, make_netns, pin_netns, unpin_netns};
pub use route::{RouteEntry, RouteSpec};
pub use sysctl::{SysctlError, read_sysctl, sysctl_path, write_sysctl};

use channel::Channel;

/// A routing socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Rtnl {
    channel: Channel,
}

impl Rtnl {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Rtnl {
            channel: Channel::open(netlink_sys::protocols::NETLINK_ROUTE)?,
        })
    }
}
