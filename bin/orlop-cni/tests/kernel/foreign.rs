//! Beside other people's plugins: executables, upstream's own, and ones that hang.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
    thread,
    time::Duration,
};

use cni_invoke::ProcessExec;
use cni_net::in_netns;
use cni_plugins::Builtin;
use cni_types::{AddResult, Command, Invocation, PluginExec};
use serde_json::{Value, json};

use crate::node::{Node, host_local, link_names, on_node};

const OURS: &str = env!("CARGO_BIN_EXE_orlop-cni");
const UPSTREAM: &str = "/usr/lib/cni";

fn text(error: &dyn std::error::Error) -> String {
    cni_types::CniError::new(cni_types::ErrorCode::INTERNAL, "")
        .because(error)
        .details
}

fn script(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_hung_plugin_times_out_and_what_ran_is_undone() {
    on_node(|node: Node| {
        script(
            &node.path("bin/sleepy"),
            "[ $CNI_COMMAND = ADD ] && sleep 1000; exit 0",
        );
        node.write_conf(&node.chain(&[json!({"type": "sleepy"})]));
        let cni = node.cni_with(vec![node.path("bin")], true, Duration::from_millis(400));
        let pod = node.pod("c1");
        let error = text(&cni.add(&pod).unwrap_err());
        assert!(
            error.contains("plugin sleepy hung: ADD was killed after 0."),
            "{error}"
        );
        assert!(node.reserved().is_empty());
        assert_eq!(link_names(), ["cni0", "lo"]);
        assert!(cni.cached().unwrap().is_empty());
    });
}

fn ipam_call(command: Command, id: &str, dir: &Path) -> Invocation {
    let mut ipam = host_local(dir);
    ipam["routes"] = json!([]);
    Invocation {
        command,
        container_id: id.into(),
        netns: Some("/proc/self/ns/net".into()),
        ifname: "eth0".into(),
        args: vec![],
        path: vec![UPSTREAM.into()],
        config: json!({"cniVersion": "1.0.0", "name": "pods", "type": "bridge", "ipam": ipam}),
    }
}

#[test]
fn host_local_shares_its_directory_with_upstreams() {
    on_node(|node: Node| {
        let dir = node.path("networks");
        let ours =
            |command, id: &str| Builtin::new().exec("host-local", &ipam_call(command, id, &dir), &Builtin);
        let upstreams = |command, id: &str| {
            let path = PathBuf::from(UPSTREAM).join("host-local");
            ProcessExec::new(Duration::from_secs(20)).run("host-local", &path, &ipam_call(command, id, &dir))
        };
        let ips = |answer: Option<Value>| AddResult::from_json(&answer.unwrap()).unwrap().pod_ips();
        // Both at once, and no address twice.
        let all = thread::scope(|scope| {
            let mut workers = Vec::new();
            for worker in 0..4 {
                workers.push(scope.spawn(move || {
                    (0..20)
                        .flat_map(|i| match worker % 2 {
                            0 => ips(ours(Command::Add, &format!("o{worker}-{i}")).unwrap()),
                            _ => ips(upstreams(Command::Add, &format!("u{worker}-{i}")).unwrap()),
                        })
                        .collect::<Vec<_>>()
                }));
            }
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap())
                .collect::<Vec<_>>()
        });
        assert_eq!(all.len(), 160);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 160);
        // Each knows and takes back what the other gave.
        for i in 0..20 {
            upstreams(Command::Check, &format!("o0-{i}")).unwrap();
            ours(Command::Check, &format!("u1-{i}")).unwrap();
            upstreams(Command::Del, &format!("o0-{i}")).unwrap();
            ours(Command::Del, &format!("u1-{i}")).unwrap();
        }
        let left = node.reserved();
        assert_eq!(left.len(), 80);
        for i in 0..20 {
            ours(Command::Del, &format!("o2-{i}")).unwrap();
            ours(Command::Del, &format!("u3-{i}")).unwrap();
        }
        assert!(node.reserved().is_empty());
    });
}

fn plain_chain(node: &Node) -> Value {
    let mut conf = node.chain(&[]);
    conf["cniVersion"] = json!("1.0.0");
    conf["plugins"][0]["ipMasq"] = json!(false);
    conf
}

fn works_and_leaves_nothing(node: &Node) {
    let cni = node.cni();
    cni.status().unwrap();
    let (a, b) = (node.pod("a"), node.pod("b"));
    let first = cni.add(&a).unwrap();
    let second = cni.add(&b).unwrap();
    cni.check(&a).unwrap();
    let to = std::net::SocketAddr::new(second.pod_ips()[0], 80);
    let server = crate::node::serve_tcp(&b.netns, to);
    in_netns(&a.netns, || crate::node::talk_tcp(to)).unwrap().unwrap();
    assert_eq!(server.called_by.recv().unwrap(), first.pod_ips()[0]);
    cni.del(&a).unwrap();
    cni.del(&b).unwrap();
    assert!(node.reserved().is_empty());
    assert_eq!(link_names(), ["cni0", "lo"]);
}

#[test]
fn our_bridge_with_upstreams_host_local() {
    on_node(|node: Node| {
        fs::copy(format!("{UPSTREAM}/host-local"), node.path("bin/host-local")).unwrap();
        node.write_conf(&plain_chain(&node));
        works_and_leaves_nothing(&node);
    });
}

#[test]
fn upstreams_bridge_with_our_host_local() {
    on_node(|node: Node| {
        fs::copy(format!("{UPSTREAM}/bridge"), node.path("bin/bridge")).unwrap();
        symlink(OURS, node.path("bin/host-local")).unwrap();
        node.write_conf(&plain_chain(&node));
        works_and_leaves_nothing(&node);
    });
}

#[test]
fn our_executable_alone_under_its_links() {
    on_node(|node: Node| {
        for name in cni_plugins::NAMES {
            symlink(OURS, node.path("bin").join(name)).unwrap();
        }
        node.write_conf(&node.chain(&[
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
            json!({"type": "firewall"}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
            json!({"type": "tuning", "dataDir": node.path("tuning"), "sysctl": {"net.core.somaxconn": "99"}}),
        ]));
        // Without built-in plugins everything is executed.
        let cni = node.cni_with(vec![node.path("bin")], false, Duration::from_secs(20));
        cni.status().unwrap();
        assert_eq!(cni.versions("bridge").unwrap(), cni_types::Version::ALL);
        let pod = node.pod("c1");
        let executed = cni.add(&pod).unwrap();
        cni.check(&pod).unwrap();
        cni.gc(&[("c1".into(), "eth0".into())]).unwrap();
        cni.check(&pod).unwrap();
        cni.del(&pod).unwrap();
        // In this process the answers are the same, but for the addresses that come next.
        let inside = node.cni().add(&pod).unwrap();
        let mut same = inside.clone();
        for (mine, theirs) in same.ips.iter_mut().zip(&executed.ips) {
            assert_ne!(mine.address, theirs.address);
            mine.address = theirs.address;
        }
        for (mine, theirs) in same.interfaces.iter_mut().zip(&executed.interfaces) {
            mine.mac.clone_from(&theirs.mac);
        }
        assert_eq!(same, executed);
        node.cni().del(&pod).unwrap();
        assert!(node.reserved().is_empty());
    });
}

#[test]
fn errors_are_json_with_codes() {
    let run = |command: &str, args: &str, input: &str| {
        let mut child = Process::new(OURS)
            .arg("host-local")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", "/nowhere")
            .env("CNI_ARGS", args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        match std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()) {
            // It found the fault before it read its configuration.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other.unwrap(),
        }
        let output = child.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        (
            output.status.code().unwrap(),
            answer["code"].as_u64(),
            answer["msg"].as_str().unwrap_or("").to_owned(),
        )
    };
    let conf =
        |ipam: Value| json!({"cniVersion": "1.0.0", "name": "n", "type": "x", "ipam": ipam}).to_string();
    let cases = [
        (
            "NONSENSE",
            "",
            conf(json!({})),
            4,
            "unknown CNI_COMMAND \"NONSENSE\"",
        ),
        (
            "ADD",
            "noise",
            conf(json!({})),
            4,
            "CNI_ARGS has \"noise\", which is no KEY=VALUE",
        ),
        (
            "ADD",
            "",
            "{".into(),
            6,
            "failed to decode the network configuration",
        ),
        (
            "ADD",
            "",
            json!({"cniVersion": "0.2.0", "name": "n"}).to_string(),
            1,
            "CNI version \"0.2.0\" is not supported; supported are 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0",
        ),
        (
            "ADD",
            "",
            conf(json!({})),
            7,
            "ipam.ranges is missing; give at least one subnet",
        ),
        (
            "ADD",
            "",
            conf(json!({"ranges": [[{"subnet": "10.0.0.1/24"}]]})),
            7,
            "subnet 10.0.0.1/24 has bits set behind its prefix; write 10.0.0.0/24",
        ),
        (
            "ADD",
            "IP=x",
            conf(json!({"ranges": [[{"subnet": "10.0.0.0/24"}]]})),
            7,
            "requested address \"x\" is not an IP address",
        ),
    ];
    for (command, args, input, code, message) in cases {
        assert_eq!(
            run(command, args, &input),
            (1, Some(code), message.to_owned()),
            "{input}"
        );
    }
    let (status, ..) = run("VERSION", "", r#"{"cniVersion":"1.0.0"}"#);
    assert_eq!(status, 0);
}
