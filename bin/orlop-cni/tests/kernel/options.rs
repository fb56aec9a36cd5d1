//! bridge's options, each by what it does to packets.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use cni_invoke::Attachment;
use cni_net::{Link, Rtnl, in_netns};
use serde_json::{Value, json};

use crate::node::{Node, link_names, on_node, serve_tcp, talk_tcp};

fn text(error: &dyn std::error::Error) -> String {
    cni_types::CniError::new(cni_types::ErrorCode::INTERNAL, "")
        .because(error)
        .details
}

/// A chain of bridge alone, on IPv4 alone, with these keys.
fn write(node: &Node, keys: &Value) {
    let mut bridge = json!({
        "type": "bridge", "bridge": "cni0",
        "ipam": {"type": "host-local", "dataDir": node.path("networks"),
                 "ranges": [[{"subnet": "10.77.0.0/24"}]]}
    });
    for (key, value) in keys.as_object().unwrap() {
        bridge[key] = value.clone();
    }
    node.write_conf(&json!({"cniVersion": "1.1.0", "name": "pods", "plugins": [bridge]}));
}

fn link(name: &str) -> Link {
    Rtnl::open().unwrap().link(name).unwrap().unwrap()
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Sends that much between two pods.
fn transfer(from: &Path, to: &Path, address: SocketAddr, bytes: usize) {
    let listener = in_netns(to, || TcpListener::bind(address)).unwrap().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let got = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
            assert_eq!(got, bytes as u64);
        });
        in_netns(from, || {
            let mut stream = TcpStream::connect(address).unwrap();
            std::io::Write::write_all(&mut stream, &vec![7; bytes]).unwrap();
        })
        .unwrap();
    });
}

#[test]
fn promisc_mode_lets_the_bridge_see_what_passes_between_pods() {
    const BYTES: usize = 1 << 20;
    for promisc in [false, true] {
        on_node(|node: Node| {
            write(&node, &json!({"isGateway": true, "promiscMode": promisc}));
            let cni = node.cni();
            let (a, b) = (node.pod("a"), node.pod("b"));
            cni.add(&a).unwrap();
            let ip = cni.add(&b).unwrap().pod_ips()[0];
            assert_eq!(link("cni0").promiscuous, promisc);
            let before = link("cni0").counters.rx_bytes;
            transfer(&a.netns, &b.netns, at(ip, 80), BYTES);
            let seen = link("cni0").counters.rx_bytes - before;
            assert_eq!(seen > BYTES as u64, promisc, "{seen} bytes");
        });
    }
}

#[test]
fn hairpin_mode_lets_a_pods_frames_come_back_to_it() {
    const FRAMES: u64 = 50;
    for hairpin in [false, true] {
        on_node(|node: Node| {
            write(&node, &json!({"isGateway": true, "hairpinMode": hairpin}));
            let cni = node.cni();
            let pod = node.pod("a");
            cni.add(&pod).unwrap();
            in_netns(&pod.netns, || {
                let before = link("eth0").counters.rx_packets;
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_broadcast(true).unwrap();
                for _ in 0..FRAMES {
                    socket.send_to(b"to everybody", "10.77.0.255:9").unwrap();
                }
                // The last one is behind the others: what the gateway answers comes after all of them.
                let deadline = Instant::now() + Duration::from_secs(5);
                let came = || link("eth0").counters.rx_packets - before;
                while hairpin && came() < FRAMES && Instant::now() < deadline {
                    thread::yield_now();
                }
                TcpStream::connect("10.77.0.1:1").unwrap_err();
                assert_eq!(came() >= FRAMES, hairpin, "{} frames", came());
            })
            .unwrap();
        });
    }
}

#[test]
fn hairpin_and_promisc_mode_exclude_each_other() {
    on_node(|node: Node| {
        write(&node, &json!({"hairpinMode": true, "promiscMode": true}));
        let pod = node.pod("a");
        let error = text(&node.cni().add(&pod).unwrap_err());
        assert!(
            error.contains("hairpinMode and promiscMode can't both be set") && error.contains("(code 7)"),
            "{error}"
        );
        assert_eq!(link_names(), ["lo"]);
    });
}

#[test]
fn is_default_gateway_leads_everywhere_and_masquerades_with_either_backend() {
    for backend in ["nftables", "iptables"] {
        on_node(|node: Node| {
            write(
                &node,
                &json!({"isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": backend}),
            );
            let cni = node.cni();
            let outside = node.outside();
            let pod = node.pod("a");
            let result = cni.add(&pod).unwrap();
            let routes: Vec<String> = result
                .routes
                .iter()
                .map(|r| format!("{} via {:?}", r.dst, r.gw))
                .collect();
            assert_eq!(routes, ["0.0.0.0/0 via Some(10.77.0.1)"]);
            cni.check(&pod).unwrap();
            let to = at("192.0.2.2".parse().unwrap(), 80);
            let server = serve_tcp(&outside, to);
            in_netns(&pod.netns, || talk_tcp(to)).unwrap().unwrap();
            assert_eq!(
                server.called_by.recv().unwrap().to_string(),
                "192.0.2.1",
                "{backend}"
            );
        });
    }
    on_node(|node: Node| {
        write(
            &node,
            &json!({"isGateway": true, "ipMasq": true, "ipMasqBackend": "pf"}),
        );
        let error = text(&node.cni().add(&node.pod("a")).unwrap_err());
        assert!(error.contains("ipMasqBackend \"pf\" is unknown"), "{error}");
    });
}

#[test]
fn force_address_replaces_the_bridges_address() {
    on_node(|node: Node| {
        let conf = |gateway: &str, force: bool| {
            let ipam = json!({"type": "host-local", "dataDir": node.path("networks"),
                              "ranges": [[{"subnet": "10.77.0.0/24", "gateway": gateway}]]});
            write(
                &node,
                &json!({"isDefaultGateway": true, "forceAddress": force, "ipam": ipam}),
            );
        };
        let addresses = || {
            let mut rtnl = Rtnl::open().unwrap();
            let index = rtnl.link("cni0").unwrap().unwrap().index;
            let all = rtnl.addresses(Some(index)).unwrap();
            let four: Vec<String> = all
                .iter()
                .filter(|a| a.address.is_ipv4())
                .map(|a| a.address.to_string())
                .collect();
            four
        };
        conf("10.77.0.1", false);
        let cni = node.cni();
        cni.add(&node.pod("a")).unwrap();
        conf("10.77.0.254", false);
        let b = node.pod("b");
        let error = text(&cni.add(&b).unwrap_err());
        assert!(
            error.contains(
                "bridge cni0 has address 10.77.0.1/24 already, not 10.77.0.254/24; set forceAddress"
            ),
            "{error}"
        );
        assert_eq!(
            (addresses(), node.reserved().len()),
            (vec!["10.77.0.1/24".to_owned()], 1)
        );
        conf("10.77.0.254", true);
        cni.add(&b).unwrap();
        assert_eq!(addresses(), ["10.77.0.254/24"]);
        let gateway = at("10.77.0.254".parse().unwrap(), 80);
        let _server = serve_tcp(Path::new("/proc/thread-self/ns/net"), gateway);
        in_netns(&b.netns, || talk_tcp(gateway)).unwrap().unwrap();
    });
}

#[test]
fn macspoofchk_lets_only_the_pods_own_address_through_and_check_misses_it() {
    on_node(|node: Node| {
        write(&node, &json!({"isGateway": true, "macspoofchk": true}));
        let cni = node.cni();
        let pod = node.pod("a");
        cni.add(&pod).unwrap();
        let gateway = at("10.77.0.1".parse().unwrap(), 80);
        let _server = serve_tcp(Path::new("/proc/thread-self/ns/net"), gateway);
        let talk = || in_netns(&pod.netns, || talk_tcp(gateway)).unwrap();
        talk().unwrap();
        let set_mac = |mac: &[u8]| {
            in_netns(&pod.netns, || {
                let mut rtnl = Rtnl::open().unwrap();
                let index = rtnl.link("eth0").unwrap().unwrap().index;
                rtnl.set_mac(index, mac).unwrap();
            })
            .unwrap();
        };
        let own = in_netns(&pod.netns, || link("eth0").mac).unwrap();
        set_mac(&[0x0a, 9, 9, 9, 9, 9]);
        assert!(talk().is_err());
        set_mac(&own);
        talk().unwrap();
        cni.check(&pod).unwrap();
        let flushed = std::process::Command::new("nft")
            .args(["flush", "set", "bridge", "orlop_cni", "checked"])
            .status()
            .unwrap();
        assert!(flushed.success());
        let error = text(&cni.check(&pod).unwrap_err());
        assert!(
            error.contains("the check of container a's hardware address is gone"),
            "{error}"
        );
        cni.del(&pod).unwrap();
    });
}

/// With VLAN filtering in the kernel, pods of different VLANs don't see each other; without, ADD refuses and says why.
#[test]
fn vlan_keeps_pods_apart_or_is_refused_by_name() {
    on_node(|node: Node| {
        let add = |id: &str, vlan: u16| -> (Attachment, Result<IpAddr, String>) {
            write(&node, &json!({"vlan": vlan, "preserveDefaultVlan": false}));
            let pod = node.pod(id);
            let added = node.cni().add(&pod).map(|r| r.pod_ips()[0]).map_err(|e| text(&e));
            (pod, added)
        };
        let (a, first) = add("a", 5);
        match first {
            Ok(_) => {
                let (b, same) = add("b", 5);
                let (c, other) = add("c", 6);
                let (b_at, c_at) = (at(same.unwrap(), 80), at(other.unwrap(), 80));
                let _servers = (serve_tcp(&b.netns, b_at), serve_tcp(&c.netns, c_at));
                in_netns(&a.netns, || talk_tcp(b_at))
                    .unwrap()
                    .expect("in the same VLAN");
                assert!(
                    in_netns(&a.netns, || talk_tcp(c_at)).unwrap().is_err(),
                    "in another VLAN"
                );
            }
            Err(error) => {
                assert!(
                    error.contains("vlan needs bridges that filter by VLAN") && error.contains("(code 2)"),
                    "{error}"
                );
                assert_eq!(link_names(), ["lo"]);
                assert!(node.reserved().is_empty());
            }
        }
        node.cni().del(&a).unwrap();
        for (vlan, why) in [
            (4095, "vlan 4095 is not one of 0 to 4094"),
            (5, "vlan together with isGateway"),
        ] {
            write(&node, &json!({"vlan": vlan, "isGateway": vlan == 5}));
            let pod = node.pod("d");
            let error = text(&node.cni().add(&pod).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    });
}
