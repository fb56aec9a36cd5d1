//! portmap of SCTP. Kernels without an SCTP stack of their own still track and translate it; so the packets are made
//! here: the first two of an association, sent and received over raw sockets.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use cni_invoke::{Attachment, PortMapping, Protocol};
use cni_net::in_netns;
use cni_types::RuntimeConfig;
use serde_json::json;
use socket2::{Domain, Socket};

use crate::node::{Node, on_node, ruleset};

const SCTP: i32 = nix::libc::IPPROTO_SCTP;
const RAW: i32 = nix::libc::SOCK_RAW;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// One packet's ports and its only chunk's type.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    from: u16,
    to: u16,
    chunk: u8,
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
    })
}

impl Packet {
    /// With a chunk of 20 bytes: a tag, a window, one stream each way, a first number.
    fn encode(&self, verification_tag: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.from.to_be_bytes());
        bytes.extend_from_slice(&self.to.to_be_bytes());
        bytes.extend_from_slice(&verification_tag.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&[self.chunk, 0, 0, 20]);
        bytes.extend_from_slice(&[0, 0, 0, 77, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        let sum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Packet {
        let mut unsummed = bytes.to_vec();
        unsummed[8..12].fill(0);
        assert_eq!(
            bytes[8..12],
            crc32c(&unsummed).to_le_bytes(),
            "the checksum is right"
        );
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        Packet {
            from: port(0),
            to: port(2),
            chunk: bytes[12],
        }
    }
}

/// std's UDP socket sends and receives whatever its descriptor does. It is IPv4's or not.
struct Raw(UdpSocket, bool);

impl Raw {
    fn open(netns: &Path, ipv4: bool) -> Raw {
        let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = in_netns(netns, || Socket::new(domain, RAW.into(), Some(SCTP.into())))
            .unwrap()
            .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        Raw(socket.into(), ipv4)
    }

    fn send(&self, to: IpAddr, bytes: &[u8]) {
        assert_eq!(
            self.0.send_to(bytes, SocketAddr::new(to, 0)).unwrap(),
            bytes.len()
        );
    }

    /// The next packet; none when there is none.
    fn receive(&self) -> Option<(IpAddr, Packet)> {
        let mut buffer = [0; 256];
        let (length, from) = self.0.recv_from(&mut buffer).ok()?;
        // Over IPv4 its header comes too.
        let skip = if self.1 {
            usize::from(buffer[0] & 15) * 4
        } else {
            0
        };
        Some((from.ip(), Packet::decode(&buffer[skip..length])))
    }
}

#[test]
fn an_association_begins_through_a_mapped_port_and_its_answer_comes_back() {
    on_node(|node: Node| {
        node.write_conf(&node.chain(&[json!({"type": "portmap", "capabilities": {"portMappings": true}})]));
        let cni = node.cni();
        let outside = node.outside();
        let port_mappings = vec![PortMapping {
            host_port: 7000,
            container_port: 81,
            protocol: Protocol::Sctp,
            host_ip: None,
        }];
        let pod = Attachment {
            runtime: RuntimeConfig {
                port_mappings,
                ..RuntimeConfig::default()
            },
            ..node.pod("public")
        };
        let ips = cni.add(&pod).unwrap().pod_ips();
        cni.check(&pod).unwrap();
        let begin = |from: u16, chunk: u8| Packet {
            from,
            to: 7000,
            chunk,
        };
        for (index, host, caller) in [(0, "192.0.2.1", "192.0.2.2"), (1, "2001:db8::1", "2001:db8::2")] {
            let (host, caller): (IpAddr, IpAddr) = (host.parse().unwrap(), caller.parse().unwrap());
            let (peer, inside) = (
                Raw::open(&outside, host.is_ipv4()),
                Raw::open(&pod.netns, host.is_ipv4()),
            );
            peer.send(host, &begin(4000, INIT).encode(0));
            let (from, packet) = inside.receive().expect("the first packet reaches the pod");
            assert_eq!(from, caller, "the caller's own address is kept");
            let expected = Packet {
                from: 4000,
                to: 81,
                chunk: INIT,
            };
            assert_eq!(packet, expected);
            let answer = Packet {
                from: 81,
                to: 4000,
                chunk: INIT_ACK,
            };
            inside.send(caller, &answer.encode(77));
            let (from, packet) = peer.receive().expect("the answer comes back");
            assert_eq!(from, host, "from whom it was sent to, not from {}", ips[index]);
            let expected = Packet {
                from: 7000,
                to: 4000,
                chunk: INIT_ACK,
            };
            assert_eq!(packet, expected);
        }
        // Another port isn't mapped, and after DEL neither is this one.
        let (peer, inside) = (Raw::open(&outside, true), Raw::open(&pod.netns, true));
        let unmapped = Packet {
            from: 4001,
            to: 7001,
            chunk: INIT,
        };
        peer.send("192.0.2.1".parse().unwrap(), &unmapped.encode(0));
        assert!(inside.receive().is_none());
        cni.del(&pod).unwrap();
        assert!(!ruleset().contains("public/eth0"));
    });
}
