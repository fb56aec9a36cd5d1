//! Routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};

use crate::{
    NetlinkError, Rtnl,
    address::family,
    attr::Reader,
    channel::{CREATE, DUMP, EXCL, REPLACE},
};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;

/// A route to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// Where to.
    pub dst: IpNetwork,
    /// Through whom; none: on the link.
    pub gateway: Option<IpAddr>,
    /// Through which interface.
    pub index: u32,
    /// MTU on it.
    pub mtu: Option<u32>,
    /// MSS that TCP advertises on it.
    pub advmss: Option<u32>,
    /// Lower wins.
    pub priority: Option<u32>,
    /// Table; none: main.
    pub table: Option<u32>,
    /// Scope; none: what fits.
    pub scope: Option<u8>,
}

impl RouteSpec {
    /// A route with nothing special about it.
    pub fn new(dst: IpNetwork, gateway: Option<IpAddr>, index: u32) -> Self {
        RouteSpec {
            dst,
            gateway,
            index,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

/// A route that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteEntry {
    /// Where to; none: everywhere.
    pub dst: Option<IpNetwork>,
    /// Through whom.
    pub gateway: Option<IpAddr>,
    /// Through which interface.
    pub index: Option<u32>,
    /// Priority.
    pub priority: u32,
    /// Table.
    pub table: u32,
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn message(route: &RouteSpec) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.dst.ip());
    header.destination_prefix_length = route.dst.prefix();
    header.protocol = RouteProtocol::Boot;
    header.kind = RouteType::Unicast;
    header.scope = match (route.scope, route.gateway) {
        (Some(scope), _) => RouteScope::from(scope),
        (None, None) if route.dst.is_ipv4() => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    match route.table {
        Some(table) => message.attributes.push(RouteAttribute::Table(table)),
        None => message.header.table = RouteHeader::RT_TABLE_MAIN,
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(route_address(route.dst.network())));
    attributes.push(RouteAttribute::Oif(route.index));
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(route_address(ip))));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    let metrics: Vec<RouteMetric> = [
        route.mtu.map(RouteMetric::Mtu),
        route.advmss.map(RouteMetric::Advmss),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

impl Rtnl {
    /// Makes a route; fine when it is there.
    pub fn add_route(&mut self, route: &RouteSpec) -> Result<(), NetlinkError> {
        match self.channel.tell(RTM_NEWROUTE, CREATE | EXCL, &message(route)) {
            Err(error) if !error.is_present() => Err(error.about(|| describe("add", route))),
            _ => Ok(()),
        }
    }

    /// Makes a route, in place of one to the same destination.
    pub fn replace_route(&mut self, route: &RouteSpec) -> Result<(), NetlinkError> {
        self.channel
            .tell(RTM_NEWROUTE, CREATE | REPLACE, &message(route))
            .map_err(|error| error.about(|| describe("replace", route)))
    }

    /// Removes a route; fine when it is gone.
    pub fn remove_route(&mut self, route: &RouteSpec) -> Result<(), NetlinkError> {
        match self.channel.tell(RTM_DELROUTE, 0, &message(route)) {
            Err(error) if !error.is_absent() => Err(error.about(|| describe("remove", route))),
            _ => Ok(()),
        }
    }

    /// The unicast routes of one family, of every table.
    pub fn routes(&mut self, ipv4: bool) -> Result<Vec<RouteEntry>, NetlinkError> {
        let mut header = [0; 12];
        header[0] = if ipv4 {
            nix::libc::AF_INET as u8
        } else {
            nix::libc::AF_INET6 as u8
        };
        let replies = self
            .channel
            .request(RTM_GETROUTE, DUMP, &header)
            .map_err(|error| error.about(|| "list routes".into()))?;
        Ok(replies.iter().filter_map(|reply| parse(&reply.payload)).collect())
    }

    /// The route that a packet to `ip` takes.
    pub fn route_to(&mut self, ip: IpAddr) -> Result<RouteEntry, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(ip);
        message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(route_address(ip)));
        let mut payload = vec![0; netlink_packet_core::Emitable::buffer_len(&message)];
        netlink_packet_core::Emitable::emit(&message, &mut payload);
        let what = || format!("find the route to {ip}");
        let replies = self
            .channel
            .request(RTM_GETROUTE, 0, &payload)
            .map_err(|error| error.about(what))?;
        replies
            .first()
            .and_then(|reply| parse(&reply.payload))
            .ok_or_else(|| {
                NetlinkError::new(
                    what(),
                    std::io::Error::other("the kernel's answer is no unicast route"),
                )
            })
    }
}

fn describe(what: &str, route: &RouteSpec) -> String {
    match route.gateway {
        Some(gateway) => format!("{what} the route to {} through {gateway}", route.dst),
        None => format!("{what} the route to {} on interface {}", route.dst, route.index),
    }
}

fn parse(payload: &[u8]) -> Option<RouteEntry> {
    const UNICAST: u8 = 1;
    let (head, rest) = payload.split_at_checked(12)?;
    let reader = Reader(rest);
    if head[7] != UNICAST {
        return None;
    }
    Some(RouteEntry {
        dst: reader.ip(RTA_DST).and_then(|ip| IpNetwork::new(ip, head[1]).ok()),
        gateway: reader.ip(RTA_GATEWAY),
        index: reader.u32(RTA_OIF),
        priority: reader.u32(RTA_PRIORITY).unwrap_or(0),
        table: reader.u32(RTA_TABLE).unwrap_or(u32::from(head[4])),
    })
}
