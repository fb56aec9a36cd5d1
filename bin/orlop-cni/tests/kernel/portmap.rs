//! portmap: who reaches a mapped port, and what he is taken for.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
};

use cni_invoke::{Attachment, PortMapping, Protocol};
use cni_net::{in_netns, read_sysctl};
use cni_types::RuntimeConfig;
use serde_json::json;

use crate::node::{Node, on_node, ruleset, serve_tcp, serve_udp, talk_tcp, talk_udp};

fn to(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn mapping(host_port: u16, container_port: u16, protocol: Protocol, host_ip: Option<&str>) -> PortMapping {
    PortMapping {
        host_port,
        container_port,
        protocol,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    }
}

fn with_ports(pod: Attachment, port_mappings: Vec<PortMapping>) -> Attachment {
    Attachment {
        runtime: RuntimeConfig {
            port_mappings,
            ..RuntimeConfig::default()
        },
        ..pod
    }
}

fn chain(node: &Node) {
    node.write_conf(&node.chain(&[json!({"type": "portmap", "capabilities": {"portMappings": true}})]));
}

#[test]
fn tcp_is_reached_from_everywhere() {
    on_node(|node: Node| {
        chain(&node);
        let cni = node.cni();
        let outside = node.outside();
        let other = node.pod("other");
        cni.add(&other).unwrap();
        let pod = with_ports(node.pod("web"), vec![mapping(8080, 80, Protocol::Tcp, None)]);
        let ips = cni.add(&pod).unwrap().pod_ips();
        cni.check(&pod).unwrap();
        let four = serve_tcp(&pod.netns, SocketAddr::new(ips[0], 80));
        let six = serve_tcp(&pod.netns, SocketAddr::new(ips[1], 80));
        let caller = |server: &crate::node::Server| server.called_by.recv().unwrap().to_string();
        in_netns(&outside, || talk_tcp(to("192.0.2.1:8080")))
            .unwrap()
            .expect("from outside");
        assert_eq!(caller(&four), "192.0.2.2", "the caller's own address is kept");
        in_netns(&outside, || talk_tcp(to("[2001:db8::1]:8080")))
            .unwrap()
            .expect("from outside, IPv6");
        assert_eq!(caller(&six), "2001:db8::2");
        talk_tcp(to("192.0.2.1:8080")).expect("from the node");
        assert_eq!(caller(&four), "192.0.2.1");
        talk_tcp(to("127.0.0.1:8080")).expect("from localhost");
        assert_eq!(caller(&four), "10.77.0.1");
        in_netns(&other.netns, || talk_tcp(to("192.0.2.1:8080")))
            .unwrap()
            .expect("from another pod");
        assert_eq!(caller(&four), "10.77.0.1");
        in_netns(&pod.netns, || talk_tcp(to("192.0.2.1:8080")))
            .unwrap()
            .expect("from the pod itself");
        assert_eq!(caller(&four), "10.77.0.1");
        in_netns(&pod.netns, || talk_tcp(to("[2001:db8::1]:8080")))
            .unwrap()
            .expect("from the pod itself, IPv6");
        assert_eq!(caller(&six), "fd77::1");
        let rules = ruleset();
        assert!(rules.contains("comment \"pods/web/eth0\""), "{rules}");
        cni.del(&pod).unwrap();
        assert!(!ruleset().contains("web/eth0"));
        assert!(
            in_netns(&outside, || talk_tcp(to("192.0.2.1:8080")))
                .unwrap()
                .is_err()
        );
    });
}

#[test]
fn udp_follows_the_mapping_at_once() {
    on_node(|node: Node| {
        chain(&node);
        let cni = node.cni();
        let outside = node.outside();
        // One socket for both conversations: the same flow, which the kernel remembers.
        let socket = in_netns(&outside, || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:5000").unwrap();
            socket.connect("192.0.2.1:5353").unwrap();
            socket
        })
        .unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .unwrap();
        for name in ["first", "second"] {
            let pod = with_ports(node.pod(name), vec![mapping(5353, 53, Protocol::Udp, None)]);
            let ips = cni.add(&pod).unwrap().pod_ips();
            let server = serve_udp(&pod.netns, SocketAddr::new(ips[0], 53));
            socket.send(b"ping").unwrap();
            let mut word = [0; 4];
            socket.recv(&mut word).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(server.called_by.recv().unwrap().to_string(), "192.0.2.2");
            let six = serve_udp(&pod.netns, SocketAddr::new(ips[1], 53));
            in_netns(&outside, || talk_udp(to("[2001:db8::1]:5353")))
                .unwrap()
                .unwrap();
            assert_eq!(six.called_by.recv().unwrap().to_string(), "2001:db8::2");
            cni.del(&pod).unwrap();
        }
    });
}

#[test]
fn a_host_address_limits_the_mapping() {
    on_node(|node: Node| {
        chain(&node);
        let cni = node.cni();
        let outside = node.outside();
        let local = with_ports(
            node.pod("local"),
            vec![mapping(7000, 80, Protocol::Tcp, Some("127.0.0.1"))],
        );
        let ips = cni.add(&local).unwrap().pod_ips();
        let _server = serve_tcp(&local.netns, SocketAddr::new(ips[0], 80));
        talk_tcp(to("127.0.0.1:7000")).unwrap();
        assert!(
            in_netns(&outside, || talk_tcp(to("192.0.2.1:7000")))
                .unwrap()
                .is_err()
        );
        // The same port at another address is another mapping.
        let public = with_ports(
            node.pod("public"),
            vec![
                mapping(7000, 81, Protocol::Tcp, Some("192.0.2.1")),
                mapping(7000, 81, Protocol::Sctp, None),
                mapping(0, 82, Protocol::Tcp, None),
            ],
        );
        let ips = cni.add(&public).unwrap().pod_ips();
        let _server = serve_tcp(&public.netns, SocketAddr::new(ips[0], 81));
        in_netns(&outside, || talk_tcp(to("192.0.2.1:7000")))
            .unwrap()
            .unwrap();
        let rules = ruleset();
        assert!(
            rules.contains("sctp . 7000 comment \"pods/public/eth0\" : 10.77.0.3 . 81"),
            "{rules}"
        );
    });
}

#[test]
fn a_port_in_use_is_refused_by_name_and_its_holder_keeps_it() {
    on_node(|node: Node| {
        chain(&node);
        let cni = node.cni();
        let holder = with_ports(node.pod("holder"), vec![mapping(8080, 80, Protocol::Tcp, None)]);
        let ips = cni.add(&holder).unwrap().pod_ips();
        let late = with_ports(node.pod("late"), vec![mapping(8080, 80, Protocol::Tcp, None)]);
        let error = cni.add(&late).unwrap_err();
        let error = cni_types::CniError::new(cni_types::ErrorCode::INTERNAL, "")
            .because(&error)
            .details;
        assert!(
            error.contains("host port 8080/tcp is mapped to container holder already"),
            "{error}"
        );
        cni.del(&late).unwrap();
        let _server = serve_tcp(&holder.netns, SocketAddr::new(ips[0], 80));
        talk_tcp(to("127.0.0.1:8080")).unwrap();
        // Again for the same container, as after a kill.
        cni.add(&holder).unwrap();
        talk_tcp(to("127.0.0.1:8080")).unwrap();
        let addresses: Vec<IpAddr> = node.reserved().iter().map(|t| t.parse().unwrap()).collect();
        assert_eq!(addresses.len(), 2);
        // A dead container's mapping goes with GC.
        cni.gc(&[]).unwrap();
        assert!(!ruleset().contains("holder/eth0"));
        cni.add(&late).unwrap();
    });
}

fn command(line: &str) {
    let mut words = line.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{line}");
}

/// Lets a namespace send packets for 127.0.0.1 to a neighbour, as a hostile machine may (CVE-2020-8558).
fn become_hostile(netns: &Path, device: &str, neighbour: &str) {
    in_netns(netns, || {
        command("ip rule add from all lookup local pref 10");
        command("ip rule del pref 0");
        command(&format!(
            "ip route add 127.0.0.1/32 via {neighbour} dev {device} table 5"
        ));
        command("ip rule add to 127.0.0.1 lookup 5 pref 5");
        for name in ["all", device] {
            cni_net::write_sysctl(&["net", "ipv4", "conf", name, "route_localnet"], "1").unwrap();
        }
    })
    .unwrap();
}

#[test]
fn neighbours_reach_nothing_that_listens_on_the_nodes_loopback() {
    on_node(|node: Node| {
        chain(&node);
        let cni = node.cni();
        let outside = node.outside();
        let pod = with_ports(node.pod("web"), vec![mapping(8080, 80, Protocol::Tcp, None)]);
        let ip = cni.add(&pod).unwrap().pod_ips()[0];
        let mapped = serve_tcp(&pod.netns, SocketAddr::new(ip, 80));
        talk_tcp(to("127.0.0.1:8080")).expect("the node itself does");
        assert_eq!(mapped.called_by.recv().unwrap().to_string(), "10.77.0.1");
        assert_eq!(
            read_sysctl(&["net", "ipv4", "conf", "cni0", "route_localnet"]).unwrap(),
            "1"
        );
        assert_eq!(
            read_sysctl(&["net", "ipv4", "conf", "uplink", "route_localnet"]).unwrap(),
            "0"
        );
        let _private = serve_tcp(Path::new("/proc/thread-self/ns/net"), to("127.0.0.1:9000"));
        talk_tcp(to("127.0.0.1:9000")).expect("the node itself does");
        let hostile = node.pod("hostile");
        cni.add(&hostile).unwrap();
        become_hostile(&hostile.netns, "eth0", "10.77.0.1");
        become_hostile(&outside, "uplink", "192.0.2.1");
        let reaches = |netns: &Path, port: u16| {
            in_netns(netns, || {
                talk_tcp(SocketAddr::new([127, 0, 0, 1].into(), port)).is_ok()
            })
            .unwrap()
        };
        for (who, netns) in [("a pod", &hostile.netns), ("a machine on the link", &outside)] {
            assert!(!reaches(netns, 9000), "{who} reaches a private service");
            assert!(!reaches(netns, 8080), "{who} reaches a mapped port by 127.0.0.1");
        }
        assert!(mapped.called_by.try_recv().is_err());
        // That nothing else held them back: without the guard, the pod gets through.
        command("nft flush chain inet orlop_cni portmap_raw");
        assert!(reaches(&hostile.netns, 9000), "the attack is none");
    });
}
