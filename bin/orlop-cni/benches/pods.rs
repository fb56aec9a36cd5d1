//! `cargo bench -p orlop-cni`: what ADD, CHECK and DEL of the usual chain cost in this process, back to back and with
//! 50 ms of quiet before each call. Medians of fifty pods are printed; nothing is asserted, because a time on a shared
//! machine proves nothing by itself.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "the node of the tests, of which a benchmark uses some; what fails may panic here as there"
)]

#[path = "../tests/kernel/node.rs"]
mod node;

use std::{
    thread,
    time::{Duration, Instant},
};

use cni_invoke::{Attachment, Cni, PortMapping, Protocol};
use cni_types::RuntimeConfig;
use serde_json::json;

const PODS: usize = 50;

fn main() {
    // Cargo passes --bench; there is nothing to choose.
    for (label, quiet) in [("hot", 0), ("after 50 ms idle", 50)] {
        for (what, ports) in [("bridge, portmap", false), ("the same with a mapped port", true)] {
            println!("{label}, {what}:");
            node::on_node(|node| measure(&node, Duration::from_millis(quiet), ports));
        }
    }
}

fn measure(node: &node::Node, quiet: Duration, ports: bool) {
    node.write_conf(&node.chain(&[json!({"type": "portmap", "capabilities": {"portMappings": true}})]));
    let cni = node.cni();
    let port_mappings = |i: usize| match ports {
        true => vec![PortMapping {
            host_port: u16::try_from(10_000 + i).unwrap(),
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
        }],
        false => Vec::new(),
    };
    let pods: Vec<Attachment> = (0..PODS)
        .map(|i| Attachment {
            runtime: RuntimeConfig {
                port_mappings: port_mappings(i),
                ..RuntimeConfig::default()
            },
            ..node.pod(&format!("c{i}"))
        })
        .collect();
    let timed = |what: &str, action: &dyn Fn(&Cni, &Attachment)| {
        let mut times: Vec<Duration> = pods
            .iter()
            .map(|pod| {
                thread::sleep(quiet);
                let begun = Instant::now();
                action(&cni, pod);
                begun.elapsed()
            })
            .collect();
        times.sort();
        let ms = |at: usize| times[at].as_secs_f64() * 1e3;
        println!(
            "  {what:<6} median {:6.2} ms, p90 {:6.2} ms",
            ms(PODS / 2),
            ms(PODS * 9 / 10)
        );
    };
    timed("ADD", &|cni, pod| drop(cni.add(pod).unwrap()));
    timed("CHECK", &|cni, pod| cni.check(pod).unwrap());
    timed("DEL", &|cni, pod| cni.del(pod).unwrap());
}
