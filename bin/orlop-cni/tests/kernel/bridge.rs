//! bridge, host-local and loopback, in this process.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use cni_invoke::Attachment;
use cni_net::{Rtnl, in_netns};
use cni_types::RuntimeConfig;
use serde_json::json;

use crate::node::{Node, link_names, on_node, ruleset, serve_tcp, talk_tcp};

fn at(ip: std::net::IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

#[test]
fn add_check_del_leaves_nothing() {
    on_node(|node: Node| {
        node.write_conf(&node.chain(&[]));
        let cni = node.cni();
        cni.status().unwrap();
        let pod = node.pod("c1");
        let result = cni.add(&pod).unwrap();
        let ips: Vec<String> = result.pod_ips().iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.77.0.2", "fd77::2"]);
        assert_eq!(result.interfaces[2].name, "eth0");
        cni.check(&pod).unwrap();
        let up = in_netns(&pod.netns, || {
            Rtnl::open().unwrap().link("lo").unwrap().unwrap().up
        })
        .unwrap();
        assert!(up, "lo is up");
        let rules = ruleset();
        assert!(
            rules.contains("10.77.0.2 comment \"pods/c1/eth0\" : jump leave_"),
            "{rules}"
        );
        assert_eq!(node.reserved(), ["10.77.0.2", "fd77::2"]);
        assert_eq!(cni.cached().unwrap(), [Attachment { ..pod.clone() }]);
        // Again over what is there, as after a kill: same addresses, nothing doubled.
        let again = cni.add(&pod).unwrap();
        assert_eq!(again.pod_ips(), result.pod_ips());
        cni.check(&pod).unwrap();
        cni.del(&pod).unwrap();
        cni.del(&pod).unwrap();
        assert!(cni.check(&pod).is_err());
        assert_eq!(link_names(), ["cni0", "lo"]);
        assert_eq!(in_netns(&pod.netns, link_names).unwrap(), ["lo"]);
        assert!(node.reserved().is_empty());
        assert!(cni.cached().unwrap().is_empty());
        assert!(!ruleset().contains("10.77.0.2"));
    });
}

#[test]
fn pods_reach_each_other_and_the_outside_masqueraded() {
    on_node(|node: Node| {
        node.write_conf(&node.chain(&[]));
        let cni = node.cni();
        let outside = node.outside();
        let (a, b) = (node.pod("a"), node.pod("b"));
        let ips_a = cni.add(&a).unwrap().pod_ips();
        let ips_b = cni.add(&b).unwrap().pod_ips();
        for index in [0, 1] {
            let server = serve_tcp(&b.netns, at(ips_b[index], 80));
            in_netns(&a.netns, || talk_tcp(at(ips_b[index], 80)))
                .unwrap()
                .unwrap();
            assert_eq!(
                server.called_by.recv().unwrap(),
                ips_a[index],
                "pods see each other's own address"
            );
        }
        for (ip, node_ip) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
            let to = at(ip.parse().unwrap(), 80);
            let server = serve_tcp(&outside, to);
            in_netns(&a.netns, || talk_tcp(to)).unwrap().unwrap();
            assert_eq!(
                server.called_by.recv().unwrap().to_string(),
                node_ip,
                "the outside sees the node"
            );
        }
    });
}

#[test]
fn del_works_without_namespace_and_with_changed_or_missing_configuration() {
    on_node(|node: Node| {
        node.write_conf(&node.chain(&[]));
        let cni = node.cni();
        let pods: Vec<Attachment> = (0..3).map(|i| node.pod(&format!("c{i}"))).collect();
        for pod in &pods {
            cni.add(pod).unwrap();
        }
        cni_net::unpin_netns(&pods[0].netns).unwrap();
        cni.del(&pods[0]).unwrap();
        let mut other = node.chain(&[]);
        other["name"] = json!("other");
        node.write_conf(&other);
        cni.del(&pods[1]).unwrap();
        std::fs::remove_file(node.path("conf/10-pods.conflist")).unwrap();
        // As after a reboot: an ordinary file where the pin was.
        cni_net::unpin_netns(&pods[2].netns).unwrap();
        std::fs::write(&pods[2].netns, "").unwrap();
        cni.del(&pods[2]).unwrap();
        assert!(node.reserved().is_empty());
        assert!(cni.cached().unwrap().is_empty());
        assert!(
            cni.status()
                .unwrap_err()
                .to_string()
                .contains("no CNI configuration")
        );
        let deadline = Instant::now() + Duration::from_secs(5);
        while link_names() != ["cni0", "lo"] && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(link_names(), ["cni0", "lo"]);
    });
}

#[test]
fn gc_keeps_the_valid_and_removes_the_rest() {
    on_node(|node: Node| {
        node.write_conf(&node.chain(&[]));
        let cni = node.cni();
        let (kept, dead, lost) = (node.pod("kept"), node.pod("dead"), node.pod("lost"));
        for pod in [&kept, &dead, &lost] {
            cni.add(pod).unwrap();
        }
        // Of this one not even the cache knows.
        std::fs::remove_file(node.path("cache/results/pods-lost-eth0")).unwrap();
        cni.gc(&[("kept".into(), "eth0".into())]).unwrap();
        assert_eq!(node.reserved(), ["10.77.0.2", "fd77::2"]);
        assert_eq!(link_names().len(), 3);
        let rules = ruleset();
        assert!(rules.contains("kept/eth0") && !rules.contains("dead/eth0") && !rules.contains("lost/eth0"));
        cni.check(&kept).unwrap();
    });
}

#[test]
fn failures_name_their_reason_and_undo() {
    on_node(|node: Node| {
        let mut conf = node.chain(&[]);
        conf["plugins"][0]["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/30"}]]);
        conf["plugins"][0]["ipam"]["routes"] = json!([]);
        node.write_conf(&conf);
        let cni = node.cni();
        let (a, b) = (node.pod("a"), node.pod("b"));
        cni.add(&a).unwrap();
        let text = |error: &dyn std::error::Error| {
            cni_types::CniError::new(cni_types::ErrorCode::INTERNAL, "")
                .because(error)
                .details
        };
        let error = text(&cni.add(&b).unwrap_err());
        assert!(
            error.contains("failed to add container b to network pods: ADD of plugin bridge failed"),
            "{error}"
        );
        assert!(
            error.contains("no address is free in 10.77.0.1-10.77.0.2; 1 are in use"),
            "{error}"
        );
        let error = text(&cni.status().unwrap_err());
        assert!(
            error.contains("no address is free") && error.contains("(code 50)"),
            "{error}"
        );
        assert_eq!(cni.cached().unwrap().len(), 1);
        // What CHECK finds: the route and the address are gone.
        cni.check(&a).unwrap();
        in_netns(&a.netns, || {
            let mut rtnl = Rtnl::open().unwrap();
            let link = rtnl.link("eth0").unwrap().unwrap();
            rtnl.remove_address(link.index, "10.77.0.2/30".parse().unwrap())
                .unwrap();
        })
        .unwrap();
        let error = text(&cni.check(&a).unwrap_err());
        assert!(
            error.contains("interface eth0 has lost its address 10.77.0.2/30"),
            "{error}"
        );
        // The later plugin fails: the first one's work is undone.
        let mut conf = node.chain(&[json!({"type": "no-such-plugin"})]);
        conf["plugins"][0]["bridge"] = json!("cni1");
        node.write_conf(&conf);
        let error = text(&cni.add(&b).unwrap_err());
        assert!(
            error.contains("plugin no-such-plugin is neither built in nor an executable in"),
            "{error}"
        );
        assert_eq!(cni.cached().unwrap().len(), 1);
        let not = Attachment {
            netns: node.path("conf"),
            ..b.clone()
        };
        assert!(cni.add(&not).unwrap_err().to_string().contains("it isn't one"));
    });
}

#[test]
fn options_of_bridge_are_honoured() {
    on_node(|node: Node| {
        let mut conf = node.chain(&[]);
        let bridge = &mut conf["plugins"][0];
        bridge["mtu"] = json!(1400);
        bridge["macspoofchk"] = json!(true);
        bridge["portIsolation"] = json!(true);
        bridge["hairpinMode"] = json!(false);
        bridge["capabilities"] = json!({"mac": true, "ips": true});
        node.write_conf(&conf);
        let cni = node.cni();
        let runtime = |mac: &str, ip: &str| RuntimeConfig {
            mac: Some(mac.into()),
            ips: vec![ip.into()],
            ..RuntimeConfig::default()
        };
        let a = Attachment {
            runtime: runtime("0a:01:02:03:04:05", "10.77.0.50"),
            ..node.pod("a")
        };
        let b = Attachment {
            runtime: runtime("0a:01:02:03:04:06", "10.77.0.51"),
            ..node.pod("b")
        };
        let result = cni.add(&a).unwrap();
        cni.add(&b).unwrap();
        assert_eq!(result.pod_ips()[0].to_string(), "10.77.0.50");
        assert_eq!(result.interfaces[2].mac, "0a:01:02:03:04:05");
        let link = in_netns(&a.netns, || Rtnl::open().unwrap().link("eth0").unwrap().unwrap()).unwrap();
        assert_eq!(
            (link.mtu, cni_net::format_mac(&link.mac).as_str()),
            (1400, "0a:01:02:03:04:05")
        );
        // Isolated ports don't see each other, but the gateway.
        let b_at = at("10.77.0.51".parse().unwrap(), 80);
        let _server = serve_tcp(&b.netns, b_at);
        assert!(in_netns(&a.netns, || talk_tcp(b_at)).unwrap().is_err());
        talk_tcp(b_at).unwrap();
        // With a false hardware address nothing comes through.
        in_netns(&b.netns, || {
            let mut rtnl = Rtnl::open().unwrap();
            let link = rtnl.link("eth0").unwrap().unwrap();
            rtnl.set_mac(link.index, &[0x0a, 9, 9, 9, 9, 9]).unwrap();
        })
        .unwrap();
        assert!(talk_tcp(b_at).is_err());
        cni.del(&a).unwrap();
        let rules = ruleset();
        assert!(!rules.contains("a/eth0") && rules.contains("b/eth0"), "{rules}");
    });
}
