//! A node that isn't one pod's alone: many pods at once, several networks, other runtimes beside this one, and pods that
//! must go away whatever was wrong with them.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path, thread};

use cni_invoke::{Attachment, Cni, CniConfig, PortMapping, Protocol};
use cni_plugins::Builtin;
use cni_types::{Command, ExecError, Invocation, PluginExec, RuntimeConfig};
use serde_json::{Value, json};

use crate::node::{Node, link_names, on_node, ruleset};

fn text(error: &dyn std::error::Error) -> String {
    cni_types::CniError::new(cni_types::ErrorCode::INTERNAL, "")
        .because(error)
        .details
}

#[test]
fn many_pods_come_and_go_at_once() {
    const AT_ONCE: usize = 24;
    on_node(|node: Node| {
        node.write_conf(&node.chain(&[
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
            json!({"type": "firewall"}),
        ]));
        let cni = node.cni();
        let pods: Vec<Attachment> = (0..AT_ONCE)
            .map(|i| Attachment {
                runtime: RuntimeConfig {
                    port_mappings: vec![PortMapping {
                        host_port: 9000 + u16::try_from(i).unwrap(),
                        container_port: 80,
                        protocol: if i % 2 == 0 { Protocol::Tcp } else { Protocol::Udp },
                        host_ip: None,
                    }],
                    ..RuntimeConfig::default()
                },
                ..node.pod(&format!("c{i}"))
            })
            .collect();
        for _ in 0..3 {
            let added: Vec<Vec<IpAddr>> = thread::scope(|scope| {
                let workers: Vec<_> = pods
                    .iter()
                    .map(|pod| scope.spawn(|| cni.add(pod).unwrap().pod_ips()))
                    .collect();
                workers.into_iter().map(|worker| worker.join().unwrap()).collect()
            });
            let all: BTreeSet<&IpAddr> = added.iter().flatten().collect();
            assert_eq!(all.len(), 2 * AT_ONCE, "no address twice");
            assert_eq!(link_names().len(), 2 + AT_ONCE);
            thread::scope(|scope| {
                for pod in &pods {
                    scope.spawn(|| {
                        cni.check(pod).unwrap();
                        cni.del(pod).unwrap();
                    });
                }
            });
            assert_eq!(link_names(), ["cni0", "lo"]);
            assert!(node.reserved().is_empty() && cni.cached().unwrap().is_empty());
            assert!(!ruleset().contains("/eth0"));
        }
    });
}

/// A network of its own bridge, with every plugin that keeps something in nftables.
fn network(node: &Node, name: &str, subnet: &str) -> Cni {
    let conf = json!({"cniVersion": "1.1.0", "name": name, "plugins": [
        {"type": "bridge", "bridge": name, "isGateway": true, "ipMasq": true, "macspoofchk": true, "ipam": {
            "type": "host-local", "dataDir": node.path("networks"), "ranges": [[{"subnet": subnet}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "firewall"}
    ]});
    let dir = node.path(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("net.conflist"), conf.to_string()).unwrap();
    let config = CniConfig {
        conf_dir: dir,
        bin_dirs: vec![],
        cache_dir: node.path(&format!("cache/{name}")),
        timeout: std::time::Duration::from_secs(5),
    };
    Cni::new(config, Some(std::sync::Arc::new(Builtin::new())))
}

fn with_port(pod: Attachment, host_port: u16) -> Attachment {
    let mapping = PortMapping {
        host_port,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: None,
    };
    Attachment {
        runtime: RuntimeConfig {
            port_mappings: vec![mapping],
            ..RuntimeConfig::default()
        },
        ..pod
    }
}

#[test]
fn gc_of_one_network_leaves_another_networks_pods_alone() {
    on_node(|node: Node| {
        let (red, blue) = (
            network(&node, "red", "10.1.0.0/24"),
            network(&node, "blue", "10.2.0.0/24"),
        );
        let (a, b) = (with_port(node.pod("a"), 8001), with_port(node.pod("b"), 8002));
        red.add(&a).unwrap();
        blue.add(&b).unwrap();
        // Of red nothing is valid, and not even the cache knows of its pod.
        fs::remove_file(node.path("cache/red/results/red-a-eth0")).unwrap();
        red.gc(&[]).unwrap();
        let rules = ruleset();
        assert!(!rules.contains("/a/eth0"), "{rules}");
        assert!(rules.contains("blue/b/eth0"), "{rules}");
        blue.check(&b).unwrap();
        assert_eq!(link_names().len(), 4);
    });
}

#[test]
fn gc_leaves_what_another_runtime_has_in_the_same_cache() {
    on_node(|node: Node| {
        node.write_conf(&node.chain(&[]));
        let cni = node.cni();
        let (ours, theirs) = (node.pod("ours"), node.pod("theirs"));
        cni.add(&ours).unwrap();
        cni.add(&theirs).unwrap();
        // As libcni would have written it.
        let path = node.path("cache/results/pods-theirs-eth0");
        let mut entry: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            entry.as_object_mut().unwrap().remove("madeBy"),
            Some(json!("orlop"))
        );
        fs::write(&path, entry.to_string()).unwrap();
        // Another ADD of theirs is under way: libcni hasn't written its entry yet.
        let making = node.pod("making");
        cni.add(&making).unwrap();
        let unwritten = node.path("cache/results/pods-making-eth0");
        let late = fs::read(&unwritten).unwrap();
        fs::remove_file(&unwritten).unwrap();
        assert_eq!(cni.cached().unwrap().len(), 1);
        cni.gc(&[]).unwrap();
        fs::write(&unwritten, late).unwrap();
        cni.check(&making).unwrap();
        cni.del(&making).unwrap();
        cni.check(&theirs).unwrap();
        assert!(cni.check(&ours).is_err());
        assert_eq!(node.reserved().len(), 2);
        // Nor does an entry of theirs that means nothing to us make them nobody.
        let sound = entry.to_string();
        entry["config"] = json!("not a list");
        fs::write(&path, entry.to_string()).unwrap();
        cni.gc(&[]).unwrap();
        fs::write(&path, sound).unwrap();
        cni.check(&theirs).unwrap();
        cni.del(&theirs).unwrap();
        assert!(node.reserved().is_empty());
    });
}

#[test]
fn a_configuration_that_add_refuses_keeps_no_pod_from_being_removed() {
    on_node(|node: Node| {
        let set = |path: &[&str], value: Value| -> Value {
            let mut conf = node.chain(&[json!({"type": "portmap", "capabilities": {"portMappings": true}})]);
            let mut at = &mut conf["plugins"][0];
            for key in path {
                at = &mut at[*key];
            }
            *at = value;
            conf
        };
        let ranges = json!([[{"subnet": "10.0.0.0/31"}]]);
        let wrong = [
            (set(&["vlan"], json!(5000)), "vlan 5000"),
            (set(&["promiscMode"], json!(true)), "can't both be set"),
            (
                set(&["isGateway"], json!("perhaps")),
                "failed to decode the network configuration",
            ),
            (
                set(&["ipMasq"], json!("perhaps")),
                "failed to decode the network configuration",
            ),
            (set(&["ipam", "ranges"], ranges), "is too small"),
            (
                set(&["ipam", "type"], json!("nobody")),
                "plugin nobody is neither built in",
            ),
        ];
        let cni = node.cni();
        for (index, (conf, why)) in wrong.iter().enumerate() {
            node.write_conf(conf);
            let pod = node.pod(&format!("c{index}"));
            let error = text(&cni.add(&pod).unwrap_err());
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("undoing it failed too"), "{error}");
            cni.del(&pod).unwrap_or_else(|e| panic!("{conf}: {}", text(&e)));
            assert!(cni.cached().unwrap().is_empty(), "{conf}");
        }
        node.write_conf(&set(&["mtu"], json!(1400)));
        let mut pod = with_port(node.pod("port"), 8080);
        pod.runtime.port_mappings[0].host_ip = Some("::1".parse().unwrap());
        let error = text(&cni.add(&pod).unwrap_err());
        assert!(
            error.contains("::1 can't be mapped") && !error.contains("undoing"),
            "{error}"
        );
        assert!(node.reserved().is_empty());
        assert_eq!(link_names(), ["cni0", "lo"]);
    });
}

fn bridge_call(
    node: &Node,
    command: Command,
    id: &str,
    netns: &Path,
    previous: Option<&Value>,
) -> Result<Option<Value>, ExecError> {
    let mut config = node.chain(&[])["plugins"][0].clone();
    config["cniVersion"] = json!("1.1.0");
    config["name"] = json!("pods");
    if let Some(previous) = previous {
        config["prevResult"] = previous.clone();
    }
    let invocation = Invocation {
        command,
        container_id: id.into(),
        netns: Some(netns.into()),
        ifname: "eth0".into(),
        args: match (command, id) {
            (Command::Add, _) => vec![("IP".into(), "10.77.0.9".into())],
            _ => vec![],
        },
        path: vec![],
        config,
    };
    Builtin::new().exec("bridge", &invocation, &Builtin)
}

#[test]
fn a_late_del_takes_nothing_from_the_addresss_new_owner() {
    on_node(|node: Node| {
        let (old, new) = (node.pod("old").netns, node.pod("new").netns);
        let result = bridge_call(&node, Command::Add, "old", &old, None)
            .unwrap()
            .unwrap();
        bridge_call(&node, Command::Del, "old", &old, Some(&result)).unwrap();
        bridge_call(&node, Command::Add, "new", &new, None).unwrap();
        assert!(ruleset().contains("10.77.0.9 comment \"pods/new/eth0\""));
        // As a runtime does that was killed before it knew that the first DEL had worked.
        bridge_call(&node, Command::Del, "old", &old, Some(&result)).unwrap();
        assert!(ruleset().contains("10.77.0.9 comment \"pods/new/eth0\""));
        // What can't be read of the result doesn't matter either.
        bridge_call(&node, Command::Del, "new", &new, Some(&json!({"ips": 7}))).unwrap();
        assert!(!ruleset().contains("10.77.0.9"));
        assert!(node.reserved().is_empty());
    });
}

#[test]
fn the_hosts_own_namespace_is_no_pods() {
    on_node(|node: Node| {
        let host = Path::new("/proc/thread-self/ns/net");
        let code = |path: &Path| match bridge_call(&node, Command::Add, "c1", path, None).unwrap_err() {
            ExecError::Plugin { source, .. } => (source.code.0, source.msg),
            other => panic!("{other:?}"),
        };
        let (number, message) = code(host);
        assert_eq!(number, 8);
        assert!(
            message.contains("is the host's own network namespace"),
            "{message}"
        );
        let (number, message) = code(&node.path("conf"));
        assert_eq!(number, 8);
        assert!(message.contains("is no network namespace"), "{message}");
        assert_eq!(link_names(), ["lo"]);
        assert!(node.reserved().is_empty());
    });
}
