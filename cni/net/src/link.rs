//! Interfaces.

use std::{os::fd::RawFd, path::Path};

use netlink_packet_route::{
    AddressFamily,
    link::{
        AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
};

use crate::{
    NetlinkError, NetnsError, Rtnl,
    attr::{Attrs, Reader},
    channel::{CREATE, DUMP, EXCL},
    in_netns,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;

/// An interface as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind (`bridge`, `veth`, `vlan`, ...); empty for physical ones and `lo`.
    pub kind: String,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// Its MTU.
    pub mtu: u32,
    /// The bridge or bond that it belongs to.
    pub master: Option<u32>,
    /// The interface below it or at its other end.
    pub link: Option<u32>,
    /// The queue's length.
    pub txqlen: u32,
    /// Its alias.
    pub alias: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it takes every frame.
    pub promiscuous: bool,
    /// Whether it takes every multicast frame.
    pub all_multicast: bool,
    /// What went through it.
    pub counters: Counters,
}

/// What went through an interface since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Faulty ones received.
    pub rx_errors: u64,
    /// Received ones dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Not sent for an error.
    pub tx_errors: u64,
    /// Not sent for lack of room.
    pub tx_dropped: u64,
}

/// A new bridge's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BridgeOptions {
    /// MTU; none: the kernel's.
    pub mtu: Option<u32>,
    /// Hardware address, kept whatever ports come and go.
    pub mac: Option<[u8; 6]>,
    /// Whether ports are kept apart by VLAN.
    pub vlan_filtering: bool,
}

/// The far end of a new veth pair.
#[derive(Debug, Clone, Copy)]
pub struct VethPeer<'a> {
    /// Its name.
    pub name: &'a str,
    /// The namespace that it is made in.
    pub netns: RawFd,
    /// Hardware address; none: a random one.
    pub mac: Option<[u8; 6]>,
}

/// A bridge port's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortOptions {
    /// Frames may go back where they came from.
    pub hairpin: bool,
    /// No frames to other ports with this set.
    pub isolated: bool,
}

/// Reads six bytes with colons between.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Writes it with colons between.
pub fn format_mac(mac: &[u8]) -> String {
    mac.iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

/// The counters of every interface in a namespace, by name.
pub fn interface_counters(netns: &Path) -> Result<Result<Vec<(String, Counters)>, NetlinkError>, NetnsError> {
    in_netns(netns, || {
        let links = Rtnl::open()?.links()?;
        Ok(links.into_iter().map(|link| (link.name, link.counters)).collect())
    })
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn numbered(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn set_flag(message: &mut LinkMessage, flag: LinkFlags, on: bool) {
    message.header.change_mask |= flag;
    message.header.flags.set(flag, on);
}

impl Rtnl {
    /// The interface of that name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut query = Attrs::after(&[0; 16]);
        query.put_str(IFLA_IFNAME, name);
        self.one_link(query.bytes(), || format!("find interface {name}"))
    }

    /// The interface of that number, if there is one.
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        self.one_link(&header, || format!("find interface {index}"))
    }

    fn one_link(
        &mut self,
        query: &[u8],
        what: impl FnOnce() -> String,
    ) -> Result<Option<Link>, NetlinkError> {
        match self.channel.request(RTM_GETLINK, 0, query) {
            Ok(replies) => Ok(replies.first().and_then(|reply| parse(&reply.payload))),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error.about(what)),
        }
    }

    /// Every interface.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut query = Attrs::after(&[0; 16]);
        // Without the details of virtual functions.
        query.put_u32(IFLA_EXT_MASK, 0);
        let replies = self
            .channel
            .request(RTM_GETLINK, DUMP, query.bytes())
            .map_err(|error| error.about(|| "list interfaces".into()))?;
        Ok(replies.iter().filter_map(|reply| parse(&reply.payload)).collect())
    }

    /// Makes a bridge that is down. Fails when the name is taken ([`NetlinkError::is_present`]).
    pub fn add_bridge(&mut self, name: &str, options: &BridgeOptions) -> Result<(), NetlinkError> {
        let mut message = named(name);
        message.attributes.extend(options.mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .extend(options.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
        if options.vlan_filtering {
            info.push(LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(
                true,
            )])));
        }
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.create(&message, || format!("make bridge {name}"))
    }

    /// Switches VLAN filtering of a bridge on.
    pub fn enable_vlan_filtering(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
        ]));
        self.channel
            .tell(RTM_NEWLINK, 0, &message)
            .map_err(|error| error.about(|| format!("filter by VLAN on bridge {index}")))
    }

    /// Makes a veth pair: `name` here, the peer straight inside its namespace. Both are down.
    pub fn add_veth(&mut self, name: &str, mtu: Option<u32>, peer: VethPeer<'_>) -> Result<(), NetlinkError> {
        let mut far = named(peer.name);
        far.attributes.push(LinkAttribute::NetNsFd(peer.netns));
        far.attributes.extend(mtu.map(LinkAttribute::Mtu));
        far.attributes
            .extend(peer.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        let mut message = named(name);
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.create(&message, || {
            format!("make the veth pair {name} and {}", peer.name)
        })
    }

    /// Makes an intermediate functional block (for shaping what an interface receives); it is up.
    pub fn add_ifb(&mut self, name: &str, mtu: u32, alias: &str) -> Result<(), NetlinkError> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
        self.create(&message, || format!("make the ifb interface {name}"))?;
        let mut message = named(name);
        set_flag(&mut message, LinkFlags::Up, true);
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.set(&message, || format!("start the ifb interface {name}"))
    }

    fn create(&mut self, message: &LinkMessage, what: impl FnOnce() -> String) -> Result<(), NetlinkError> {
        self.channel
            .tell(RTM_NEWLINK, CREATE | EXCL, message)
            .map_err(|error| error.about(what))
    }

    fn set(&mut self, message: &LinkMessage, what: impl FnOnce() -> String) -> Result<(), NetlinkError> {
        self.channel
            .tell(RTM_SETLINK, 0, message)
            .map_err(|error| error.about(what))
    }

    /// Makes an interface a port of a bridge, gives it an alias, and starts it.
    pub fn attach_port(&mut self, index: u32, bridge: u32, alias: &str) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        set_flag(&mut message, LinkFlags::Up, true);
        message.attributes.push(LinkAttribute::Controller(bridge));
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.set(&message, || {
            format!("attach interface {index} to bridge {bridge}")
        })
    }

    /// Sets a bridge port's options.
    pub fn set_port(&mut self, index: u32, options: PortOptions) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(options.hairpin),
                InfoBridgePort::Isolated(options.isolated),
            ])),
        ]));
        self.channel
            .tell(RTM_NEWLINK, 0, &message)
            .map_err(|error| error.about(|| format!("set the options of bridge port {index}")))
    }

    /// Adds a VLAN to a bridge port, for untagged frames.
    pub fn add_port_vlan(&mut self, index: u32, vlan: u16) -> Result<(), NetlinkError> {
        let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        self.port_vlan(RTM_SETLINK, index, vlan, flags)
            .map_err(|error| error.about(|| format!("add VLAN {vlan} to bridge port {index}")))
    }

    /// Takes a VLAN away from a bridge port; fine when it is gone.
    pub fn remove_port_vlan(&mut self, index: u32, vlan: u16) -> Result<(), NetlinkError> {
        match self.port_vlan(RTM_DELLINK, index, vlan, BridgeVlanInfoFlags::empty()) {
            Err(error) if !error.is_absent() => {
                Err(error.about(|| format!("remove VLAN {vlan} from bridge port {index}")))
            }
            _ => Ok(()),
        }
    }

    fn port_vlan(
        &mut self,
        kind: u16,
        index: u32,
        vlan: u16,
        flags: BridgeVlanInfoFlags,
    ) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.header.interface_family = AddressFamily::Bridge;
        let info = BridgeVlanInfo { flags, vid: vlan };
        message
            .attributes
            .push(LinkAttribute::AfSpecBridge(vec![AfSpecBridge::VlanInfo(info)]));
        self.channel.tell(kind, 0, &message)
    }

    /// Starts or stops an interface.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        set_flag(&mut message, LinkFlags::Up, up);
        self.set(&message, || {
            format!("{} interface {index}", if up { "start" } else { "stop" })
        })
    }

    /// Lets an interface take every frame, or no longer.
    pub fn set_promiscuous(&mut self, index: u32, on: bool) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        set_flag(&mut message, LinkFlags::Promisc, on);
        self.set(&message, || format!("set promiscuous mode of interface {index}"))
    }

    /// Lets an interface take every multicast frame, or no longer.
    pub fn set_all_multicast(&mut self, index: u32, on: bool) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        set_flag(&mut message, LinkFlags::Allmulti, on);
        self.set(&message, || {
            format!("set all-multicast mode of interface {index}")
        })
    }

    /// Sets the MTU.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set(&message, || format!("set the MTU of interface {index} to {mtu}"))
    }

    /// Sets the hardware address.
    pub fn set_mac(&mut self, index: u32, mac: &[u8]) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        self.set(&message, || {
            format!(
                "set the hardware address of interface {index} to {}",
                format_mac(mac)
            )
        })
    }

    /// Sets the length of the transmit queue.
    pub fn set_txqlen(&mut self, index: u32, length: u32) -> Result<(), NetlinkError> {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::TxQueueLen(length));
        self.set(&message, || {
            format!("set the queue length of interface {index} to {length}")
        })
    }

    /// Removes an interface; fine when it is gone. Afterwards nobody finds it and no packet goes through it or, for a
    /// veth pair, through its other end.
    pub fn remove_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        let what = |error: NetlinkError| error.about(|| format!("remove interface {name}"));
        let report = match self.channel.announce(RTM_DELLINK, &named(name), RTM_DELLINK) {
            Err(error) if error.is_absent() => return Ok(()),
            other => other.map_err(what)?,
        };
        let Some(index) = report.and_then(|report| index_of(&report.payload)) else {
            return Ok(());
        };
        // The report comes when this end is removed and the other may not be yet. The kernel does both under one lock,
        // so that whoever asks for the same again learns that there is nothing left, and only after that.
        match self.channel.tell(RTM_DELLINK, 0, &numbered(index)) {
            Err(error) if !error.is_absent() => Err(what(error)),
            _ => Ok(()),
        }
    }
}

fn index_of(payload: &[u8]) -> Option<u32> {
    payload.get(4..8)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn parse(payload: &[u8]) -> Option<Link> {
    let (head, rest) = payload.split_at_checked(16)?;
    let reader = Reader(rest);
    let number = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let flags = LinkFlags::from_bits_retain(number(8));
    Some(Link {
        index: number(4),
        name: reader.string(IFLA_IFNAME)?,
        kind: reader
            .nested(IFLA_LINKINFO)
            .and_then(|info| info.string(IFLA_INFO_KIND))
            .unwrap_or_default(),
        mac: reader.find(IFLA_ADDRESS).unwrap_or_default().to_vec(),
        mtu: reader.u32(IFLA_MTU).unwrap_or(0),
        master: reader.u32(IFLA_MASTER),
        link: reader.u32(IFLA_LINK),
        txqlen: reader.u32(IFLA_TXQLEN).unwrap_or(0),
        alias: reader.string(IFLA_IFALIAS).unwrap_or_default(),
        up: flags.contains(LinkFlags::Up),
        promiscuous: flags.contains(LinkFlags::Promisc),
        all_multicast: flags.contains(LinkFlags::Allmulti),
        counters: counters(reader.find(IFLA_STATS64).unwrap_or_default()),
    })
}

/// `struct rtnl_link_stats64` begins with these eight numbers.
fn counters(bytes: &[u8]) -> Counters {
    let number = |index: usize| {
        bytes
            .get(index * 8..)
            .and_then(|b| b.first_chunk())
            .map_or(0, |b| u64::from_ne_bytes(*b))
    };
    Counters {
        rx_packets: number(0),
        tx_packets: number(1),
        rx_bytes: number(2),
        tx_bytes: number(3),
        rx_errors: number(4),
        tx_errors: number(5),
        rx_dropped: number(6),
        tx_dropped: number(7),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use super::*;
    use crate::make_netns;

    #[test]
    fn a_removed_pair_is_gone_at_once_on_both_ends() {
        make_netns(|| {
            let far = File::open("/proc/thread-self/ns/net").unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            for round in 0..20 {
                make_netns(|| {
                    // The near end is in this namespace, the far one in that of the thread before.
                    let mut near = Rtnl::open().unwrap();
                    let peer = VethPeer {
                        name: "far",
                        netns: far.as_raw_fd(),
                        mac: None,
                    };
                    near.add_veth("near", None, peer).unwrap();
                    assert!(rtnl.link("far").unwrap().is_some(), "round {round}");
                    near.remove_link("near").unwrap();
                    assert_eq!(near.link("near").unwrap(), None, "round {round}");
                    assert_eq!(rtnl.link("far").unwrap(), None, "round {round}");
                    near.remove_link("near").unwrap();
                })
                .unwrap();
            }
            // What the kernel refuses is told.
            let error = rtnl.remove_link("lo").unwrap_err();
            assert!(
                error.to_string().starts_with("failed to remove interface lo"),
                "{error}"
            );
        })
        .unwrap();
    }

    #[test]
    fn hardware_addresses() {
        assert_eq!(parse_mac("0a:00:ff:10:02:03"), Some([0x0a, 0, 0xff, 0x10, 2, 3]));
        for bad in [
            "",
            "0a:00:ff:10:02",
            "0a:00:ff:10:02:03:04",
            "xx:00:ff:10:02:03",
            "a:0:f:1:2:3",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
        assert_eq!(format_mac(&[1, 0xab]), "01:ab");
    }
}
