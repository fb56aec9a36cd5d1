//! Pods' networks: addresses of both families, pods among themselves, ports of the node.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use serde_json::json;
use tests_harness::{ContainerSpec, Node, PodSpec, wait_until};

use crate::bed::{PATIENCE, in_node, settled, sleeper};

fn web() -> ContainerSpec {
    ContainerSpec::new("web", "orlop.test/demo:latest", &["/test-host", "serve", "8080"])
}

#[test]
fn pods_reach_each_other_over_both_families() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (server, _) = crictl.start_pod(&PodSpec::new("server"), &web())?;
        let (client, id) = crictl.start_pod(&PodSpec::new("client"), &sleeper("main"))?;
        let status = crictl.json(&["inspectp", &server])?;
        let network = &status["status"]["network"];
        let more = network["additionalIps"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| &entry["ip"]);
        let addresses: Vec<IpAddr> = std::iter::once(&network["ip"])
            .chain(more)
            .filter_map(|ip| ip.as_str()?.parse().ok())
            .collect();
        ensure!(
            addresses.iter().any(IpAddr::is_ipv4) && addresses.iter().any(IpAddr::is_ipv6),
            "{network}"
        );
        for ip in addresses {
            let host = if ip.is_ipv6() {
                format!("[{ip}]")
            } else {
                ip.to_string()
            };
            let url = format!("http://{host}:8080/hostname");
            wait_until(&format!("an answer from {ip}"), PATIENCE, || {
                Ok(crictl
                    .run(&["exec", &id, "wget", "-q", "-O", "-", "-T", "3", &url])?
                    .text()
                    == "server")
            })?;
            ensure!(
                node.run("curl", &["-fsSg", "--max-time", "5", &url])?
                    .ok()?
                    .text()
                    == "server"
            );
        }
        crictl.remove_pod(&client)?;
        crictl.remove_pod(&server)?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn ports_of_the_node_lead_to_the_pod() {
    in_node(Node::builder(), |node| {
        let mapped = |node: &Node| -> anyhow::Result<()> {
            let crictl = node.crictl()?;
            let pod = PodSpec::new("mapped").with(
                "/port_mappings",
                json!([{ "protocol": 0, "container_port": 8080, "host_port": 12080 }]),
            );
            let (sandbox, _) = crictl.start_pod(&pod, &web())?;
            wait_until("the node's port", PATIENCE, || {
                Ok(node
                    .run(
                        "curl",
                        &["-fsS", "--max-time", "3", "http://127.0.0.1:12080/hostname"],
                    )?
                    .text()
                    == "mapped")
            })?;
            crictl.remove_pod(&sandbox)?;
            ensure!(
                node.run("curl", &["-fsS", "--max-time", "3", "http://127.0.0.1:12080/"])?
                    .code
                    != 0
            );
            Ok(())
        };
        // The chains come with the first mapping and stay.
        mapped(node)?;
        let before = node.snapshot()?;
        mapped(node)?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn addresses_are_given_back() {
    in_node(Node::builder().conflist(&small_network()), |node| {
        let crictl = node.crictl()?;
        // Five addresses, of which the bridge has one: more rounds than that use them up unless they come back.
        for round in 0..4 {
            let pods: Vec<String> = (0..3)
                .map(|n| crictl.run_pod(&PodSpec::new(&format!("r{round}p{n}"))))
                .collect::<anyhow::Result<_>>()
                .with_context(|| format!("round {round}"))?;
            for pod in pods {
                crictl.remove_pod(&pod)?;
            }
        }
        Ok(())
    });
}

fn small_network() -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": "orlop",
        "plugins": [{
            "type": "bridge", "bridge": "orlop0", "isGateway": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.77.0.0/29" }]] },
        }],
    })
    .to_string()
}

#[test]
fn names_and_sysctls_are_the_pods_own() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let pod = PodSpec::new("named")
            .with(
                "/dns_config",
                json!({ "servers": ["10.10.10.10"], "searches": ["a.test"], "options": ["ndots:3"] }),
            )
            .with(
                "/linux/sysctls",
                json!({ "net.ipv4.ip_unprivileged_port_start": "100" }),
            );
        let (sandbox, id) = crictl.start_pod(&pod, &sleeper("main"))?;
        let conf = crictl.ok(&["exec", &id, "cat", "/etc/resolv.conf"])?;
        for line in ["nameserver 10.10.10.10", "search a.test", "options ndots:3"] {
            ensure!(conf.contains(line), "{line} isn't in {conf}");
        }
        ensure!(crictl.ok(&["exec", &id, "cat", "/etc/hostname"])? == "named");
        let start = crictl.ok(&[
            "exec",
            &id,
            "cat",
            "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        ])?;
        ensure!(start == "100", "the sysctl is {start}");
        crictl.remove_pod(&sandbox)
    });
}
