//! Addresses of interfaces.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
};

use crate::{
    NetlinkError, Rtnl,
    attr::Reader,
    channel::{CREATE, DUMP, EXCL},
};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// One address of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address with its prefix length.
    pub address: IpNetwork,
}

pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.ip());
    message.header.prefix_len = address.prefix();
    message.header.index = index;
    message.header.scope = if address.ip().is_loopback() {
        AddressScope::Host
    } else {
        AddressScope::Universe
    };
    message.attributes.push(AddressAttribute::Local(address.ip()));
    message.attributes.push(AddressAttribute::Address(address.ip()));
    if let IpNetwork::V4(v4) = address
        && v4.prefix() < 31
        && !v4.ip().is_loopback()
    {
        message
            .attributes
            .push(AddressAttribute::Broadcast(v4.broadcast()));
    }
    message
}

impl Rtnl {
    /// Gives an interface an address; fine when it has it. IPv6 addresses are usable at once (no duplicate detection:
    /// whoever assigned it knows that it is free).
    pub fn add_address(&mut self, index: u32, address: IpNetwork) -> Result<(), NetlinkError> {
        let mut message = message(index, address);
        if address.is_ipv6() {
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match self.channel.tell(RTM_NEWADDR, CREATE | EXCL, &message) {
            Err(error) if !error.is_present() => {
                Err(error.about(|| format!("add address {address} to interface {index}")))
            }
            _ => Ok(()),
        }
    }

    /// Takes an address away; fine when it is gone.
    pub fn remove_address(&mut self, index: u32, address: IpNetwork) -> Result<(), NetlinkError> {
        match self.channel.tell(RTM_DELADDR, 0, &message(index, address)) {
            Err(error) if !error.is_absent() => {
                Err(error.about(|| format!("remove address {address} from interface {index}")))
            }
            _ => Ok(()),
        }
    }

    /// The addresses of one interface, or of all.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>, NetlinkError> {
        let replies = self
            .channel
            .request(RTM_GETADDR, DUMP, &[0; 8])
            .map_err(|error| error.about(|| "list addresses".into()))?;
        let all = replies.iter().filter_map(|reply| parse(&reply.payload));
        Ok(all
            .filter(|address| index.is_none_or(|index| address.index == index))
            .collect())
    }
}

fn parse(payload: &[u8]) -> Option<Address> {
    let (head, rest) = payload.split_at_checked(8)?;
    let reader = Reader(rest);
    let ip = reader.ip(IFA_LOCAL).or_else(|| reader.ip(IFA_ADDRESS))?;
    let address = IpNetwork::new(ip, head[1]).ok()?;
    Some(Address {
        index: u32::from_ne_bytes([head[4], head[5], head[6], head[7]]),
        address,
    })
}
