//! The expressions that rules are made of.

use crate::attr::Attrs;

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on its way.
    Accept,
    /// It vanishes.
    Drop,
    /// The caller's chain goes on.
    Return,
    /// That chain is tried.
    Jump(String),
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
            Verdict::Jump(_) => -3,
            Verdict::Return => -5,
        }
    }

    pub(super) fn from_code(code: i32, chain: Option<String>) -> Option<Self> {
        match code {
            0 => Some(Verdict::Drop),
            1 => Some(Verdict::Accept),
            -3 => chain.map(Verdict::Jump),
            -5 => Some(Verdict::Return),
            _ => None,
        }
    }
}

pub(super) fn put_verdict(data: &mut Attrs, verdict: &Verdict) {
    data.nest(2, |nest| {
        nest.put_be32(1, verdict.code().cast_unsigned());
        if let Verdict::Jump(chain) = verdict {
            nest.put_str(2, chain);
        }
    });
}

/// Status bits of a connection, as [`Expr::CtStatus`] loads them.
pub mod ct_status {
    /// Its destination was translated.
    pub const DNAT: u32 = 1 << 5;
}

/// Numbers of transport protocols.
pub mod l4proto {
    /// TCP
    pub const TCP: u8 = 6;
    /// UDP
    pub const UDP: u8 = 17;
    /// SCTP
    pub const SCTP: u8 = 132;
}

/// An interface name as the kernel compares it.
pub fn ifname_bytes(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// One step of a rule. `reg` counts 4-byte registers from 0 to 15. A comparison or lookup that fails ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads the packet's IP version: 2 for IPv4, 10 for IPv6 (one byte).
    NfProto(u8),
    /// Loads the transport protocol (one byte).
    L4Proto(u8),
    /// Loads the incoming interface's name (16 bytes).
    Iifname(u8),
    /// Loads the outgoing interface's name (16 bytes).
    Oifname(u8),
    /// Loads bytes of the link-layer header.
    Link {
        /// Into.
        reg: u8,
        /// From.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Loads bytes of the network header.
    Network {
        /// Into.
        reg: u8,
        /// From.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Loads the destination port (2 bytes).
    DestinationPort(u8),
    /// Loads the connection's state: 2 established, 4 related (4 bytes, the machine's order).
    CtState(u8),
    /// Loads the connection's status bits (4 bytes, the machine's order).
    CtStatus(u8),
    /// Loads the kind of the destination address: 2 is this machine's (4 bytes, the machine's order).
    DestinationKind(u8),
    /// Goes on if equal.
    Equal(u8, Vec<u8>),
    /// Goes on if different.
    Differs(u8, Vec<u8>),
    /// Ands a register with a mask.
    Mask(u8, Vec<u8>),
    /// Goes on if the set contains the key.
    In(u8, &'static str),
    /// Goes on if the set does not contain the key.
    NotIn(u8, &'static str),
    /// Loads what the map has for the key, or ends the rule: key register, map, value register.
    Map(u8, &'static str, u8),
    /// Does what the verdict map has for the key.
    VerdictMap(u8, &'static str),
    /// Translates the destination to the address in the first register and the port in the second.
    Dnat {
        /// Of IPv4 rather than IPv6.
        ipv4: bool,
        /// The address.
        address: u8,
        /// The port.
        port: u8,
    },
    /// Translates the source to that of the outgoing interface.
    Masquerade,
    /// Counts.
    Counter,
    /// Ends the rule with a verdict.
    Verdict(Verdict),
}

/// The first 4-byte register.
const REG32: u32 = 8;

fn reg(number: u8) -> u32 {
    REG32 + u32::from(number)
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Expr::NfProto(_) | Expr::L4Proto(_) | Expr::Iifname(_) | Expr::Oifname(_) => "meta",
            Expr::Link { .. } | Expr::Network { .. } | Expr::DestinationPort(_) => "payload",
            Expr::CtState(_) | Expr::CtStatus(_) => "ct",
            Expr::DestinationKind(_) => "fib",
            Expr::Equal(..) | Expr::Differs(..) => "cmp",
            Expr::Mask(..) => "bitwise",
            Expr::In(..) | Expr::NotIn(..) | Expr::Map(..) | Expr::VerdictMap(..) => "lookup",
            Expr::Dnat { .. } => "nat",
            Expr::Masquerade => "masq",
            Expr::Counter => "counter",
            Expr::Verdict(_) => "immediate",
        }
    }

    pub(super) fn put(&self, list: &mut Attrs) {
        list.nest(1, |entry| {
            entry.put_str(1, self.name()).nest(2, |data| self.put_data(data));
        });
    }

    fn put_data(&self, data: &mut Attrs) {
        match self {
            Expr::NfProto(to) => meta(data, *to, 15),
            Expr::L4Proto(to) => meta(data, *to, 16),
            Expr::Iifname(to) => meta(data, *to, 6),
            Expr::Oifname(to) => meta(data, *to, 7),
            Expr::Link { reg, offset, len } => payload(data, *reg, 0, *offset, *len),
            Expr::Network { reg, offset, len } => payload(data, *reg, 1, *offset, *len),
            Expr::DestinationPort(to) => payload(data, *to, 2, 2, 2),
            Expr::CtState(to) => {
                data.put_be32(1, reg(*to)).put_be32(2, 0);
            }
            Expr::CtStatus(to) => {
                data.put_be32(1, reg(*to)).put_be32(2, 2);
            }
            Expr::DestinationKind(to) => {
                const ADDRTYPE: u32 = 3;
                const DADDR: u32 = 2;
                data.put_be32(1, reg(*to))
                    .put_be32(2, ADDRTYPE)
                    .put_be32(3, DADDR);
            }
            Expr::Equal(of, value) => compare(data, *of, 0, value),
            Expr::Differs(of, value) => compare(data, *of, 1, value),
            Expr::Mask(of, mask) => {
                let length = u32::try_from(mask.len()).unwrap_or(0);
                data.put_be32(1, reg(*of))
                    .put_be32(2, reg(*of))
                    .put_be32(3, length);
                data.put_data(4, mask);
                data.put_data(5, &vec![0; mask.len()]);
            }
            Expr::In(key, set) => {
                data.put_str(1, set).put_be32(2, reg(*key));
            }
            Expr::NotIn(key, set) => {
                const INVERTED: u32 = 1;
                data.put_str(1, set).put_be32(2, reg(*key)).put_be32(5, INVERTED);
            }
            Expr::Map(key, map, to) => {
                data.put_str(1, map).put_be32(2, reg(*key)).put_be32(3, reg(*to));
            }
            Expr::VerdictMap(key, map) => {
                const VERDICT_REGISTER: u32 = 0;
                data.put_str(1, map)
                    .put_be32(2, reg(*key))
                    .put_be32(3, VERDICT_REGISTER);
            }
            Expr::Dnat { ipv4, address, port } => {
                const DNAT: u32 = 1;
                data.put_be32(1, DNAT).put_be32(2, if *ipv4 { 2 } else { 10 });
                data.put_be32(3, reg(*address)).put_be32(4, reg(*address));
                data.put_be32(5, reg(*port)).put_be32(6, reg(*port));
                // Address and port given: NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED.
                data.put_be32(7, 3);
            }
            Expr::Masquerade => {}
            Expr::Counter => {
                data.put_be64(1, 0).put_be64(2, 0);
            }
            Expr::Verdict(verdict) => {
                data.put_be32(1, 0).nest(2, |nest| put_verdict(nest, verdict));
            }
        }
    }
}

fn meta(data: &mut Attrs, to: u8, key: u32) {
    data.put_be32(1, reg(to)).put_be32(2, key);
}

fn payload(data: &mut Attrs, to: u8, base: u32, offset: u32, len: u32) {
    data.put_be32(1, reg(to))
        .put_be32(2, base)
        .put_be32(3, offset)
        .put_be32(4, len);
}

fn compare(data: &mut Attrs, of: u8, operator: u32, value: &[u8]) {
    data.put_be32(1, reg(of)).put_be32(2, operator).put_data(3, value);
}
