//! Plugins that come behind bridge: firewall, bandwidth, tuning.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use cni_invoke::{Attachment, Bandwidth, Cni, CniConfig};
use cni_net::{Link, Rtnl, in_netns, read_sysctl};
use cni_types::RuntimeConfig;
use serde_json::json;

use crate::node::{Node, link_names, on_node, ruleset, serve_tcp, talk_tcp};

#[test]
fn same_bridge_keeps_bridges_apart() {
    on_node(|node: Node| {
        // Two networks, two bridges, on one node.
        let cni_of = |name: &str, subnet: &str, policy: &str| {
            let conf = json!({"cniVersion": "1.1.0", "name": name, "plugins": [
                {"type": "bridge", "bridge": name, "isGateway": true, "ipam": {
                    "type": "host-local", "dataDir": node.path("networks"),
                    "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "firewall", "ingressPolicy": policy}
            ]});
            let dir = node.path(name);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("net.conflist"), conf.to_string()).unwrap();
            Cni::new(
                CniConfig {
                    conf_dir: dir,
                    bin_dirs: vec![],
                    cache_dir: node.path("cache"),
                    timeout: Duration::from_secs(5),
                },
                Some(std::sync::Arc::new(cni_plugins::Builtin::new())),
            )
        };
        let (red, blue) = (
            cni_of("red", "10.1.0.0/24", "same-bridge"),
            cni_of("blue", "10.2.0.0/24", "same-bridge"),
        );
        let (a, b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
        let at = |cni: &Cni, pod: &Attachment| SocketAddr::new(cni.add(pod).unwrap().pod_ips()[0], 80);
        let (_, b_at, c_at) = (at(&red, &a), at(&red, &b), at(&blue, &c));
        red.check(&a).unwrap();
        let _servers = (serve_tcp(&b.netns, b_at), serve_tcp(&c.netns, c_at));
        in_netns(&a.netns, || talk_tcp(b_at))
            .unwrap()
            .expect("on the same bridge");
        assert!(
            in_netns(&a.netns, || talk_tcp(c_at)).unwrap().is_err(),
            "on another bridge"
        );
        talk_tcp(c_at).expect("from the node");
        let rules = ruleset();
        assert!(rules.contains("10.1.0.2 comment \"red/a/eth0\""), "{rules}");
        red.del(&a).unwrap();
        assert!(!ruleset().contains("a/eth0"));
        let open = cni_of("red", "10.1.0.0/24", "nonsense");
        assert!(open.add(&a).is_err());
    });
}

/// How long it takes to send that much.
fn transfer(from: Option<&Path>, to: &Path, address: SocketAddr, bytes: usize) -> Duration {
    let listener = in_netns(to, || TcpListener::bind(address)).unwrap().unwrap();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), bytes);
        stream.write_all(b"!").unwrap();
    });
    let send = || {
        let started = Instant::now();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&vec![7; bytes]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        started.elapsed()
    };
    let took = match from {
        Some(netns) => in_netns(netns, send).unwrap(),
        None => send(),
    };
    receiver.join().unwrap();
    took
}

#[test]
fn bandwidth_limits_both_directions() {
    on_node(|node: Node| {
        node.write_conf(&node.chain(&[json!({"type": "bandwidth", "capabilities": {"bandwidth": true}})]));
        let cni = node.cni();
        let outside = node.outside();
        let rates = Bandwidth {
            ingress_rate: 16_000_000,
            ingress_burst: 800_000,
            egress_rate: 8_000_000,
            egress_burst: 800_000,
        };
        let limited = Attachment {
            runtime: RuntimeConfig {
                bandwidth: Some(rates),
                ..RuntimeConfig::default()
            },
            ..node.pod("limited")
        };
        let ip = cni.add(&limited).unwrap().pod_ips()[0];
        cni.check(&limited).unwrap();
        // 1 MB at 2 MB/s, and at 1 MB/s, less the burst of 0.1 MB.
        let inward = transfer(None, &limited.netns, SocketAddr::new(ip, 81), 1_000_000);
        let outward = transfer(
            Some(&limited.netns),
            &outside,
            "192.0.2.2:81".parse().unwrap(),
            1_000_000,
        );
        // Less than the limits allow; how much less, a busy machine decides.
        assert!(inward > Duration::from_millis(400), "{inward:?}");
        assert!(outward > Duration::from_millis(800), "{outward:?}");
        assert_eq!(
            link_names().iter().filter(|name| name.starts_with("bwp")).count(),
            1
        );
        cni.del(&limited).unwrap();
        assert_eq!(link_names(), ["cni0", "lo", "uplink"]);
        // A leftover goes with GC; without limits nothing is made.
        cni.add(&limited).unwrap();
        let free = node.pod("free");
        cni.add(&free).unwrap();
        cni.gc(&[("free".into(), "eth0".into())]).unwrap();
        assert_eq!(link_names().len(), 4);
    });
}

#[test]
fn tuning_is_applied_checked_and_taken_back() {
    on_node(|node: Node| {
        let tuning = json!({
            "type": "tuning", "dataDir": node.path("tuning"), "capabilities": {"mac": true},
            "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "777"},
            "promisc": true, "mtu": 1300, "allmulti": true, "txQLen": 123
        });
        node.write_conf(&node.chain(&[tuning]));
        let cni = node.cni();
        let pod = Attachment {
            runtime: RuntimeConfig {
                mac: Some("0a:00:00:00:00:07".into()),
                ..RuntimeConfig::default()
            },
            ..node.pod("c1")
        };
        let result = cni.add(&pod).unwrap();
        cni.check(&pod).unwrap();
        assert_eq!(
            (result.interfaces[2].mac.as_str(), result.interfaces[2].mtu),
            ("0a:00:00:00:00:07", Some(1300))
        );
        let look = || -> Link { Rtnl::open().unwrap().link("eth0").unwrap().unwrap() };
        let link = in_netns(&pod.netns, look).unwrap();
        assert!(link.promiscuous && link.all_multicast);
        assert_eq!((link.mtu, link.txqlen), (1300, 123));
        let sysctl = in_netns(&pod.netns, || read_sysctl(&["net", "core", "somaxconn"]).unwrap()).unwrap();
        assert_eq!(sysctl, "777");
        assert_eq!(node.files("tuning"), ["c1_eth0.json"]);
        in_netns(&pod.netns, || {
            let mut rtnl = Rtnl::open().unwrap();
            rtnl.set_mtu(link.index, 1200).unwrap();
        })
        .unwrap();
        assert!(cni.check(&pod).is_err());
        cni.del(&pod).unwrap();
        assert!(node.files("tuning").is_empty());
    });
}
