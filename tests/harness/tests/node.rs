//! Nodes without a daemon: they are separate, they end with their runner, and what they leave is noticed.

use std::fs;
use std::process::Command;
use std::time::Duration;

use tests_harness::{Lan, Node, wait_until};

fn bare() -> Node {
    Node::builder().bare().start().expect("root may make a node")
}

#[test]
fn a_node_has_a_machine_of_its_own_and_leaves_nothing() {
    let node = bare();
    assert_eq!(node.run("hostname", &[]).unwrap().text(), node.name());
    assert_eq!(
        node.run("sh", &["-c", "echo $$; ls -d /proc/[0-9]* | wc -l"])
            .unwrap()
            .code,
        0
    );
    node.write("/etc/orlop/mark", "x").unwrap();
    node.write("/var/lib/orlop/mark", "x").unwrap();
    assert_eq!(node.read("/etc/orlop/mark").unwrap(), "x");
    assert!(!fs::exists("/etc/orlop/mark").unwrap() && !fs::exists("/var/lib/orlop/mark").unwrap());
    assert_eq!(
        node.run("cat", &["/proc/sys/net/ipv4/ip_forward"])
            .unwrap()
            .text(),
        "1"
    );
    assert!(
        node.run("ip", &["-brief", "link"])
            .unwrap()
            .text()
            .starts_with("lo ")
    );
    let base = node.tmp();
    node.finish().unwrap();
    assert!(!base.exists());
}

#[test]
fn two_nodes_talk_until_the_link_is_cut() {
    let lan = Lan::new().unwrap();
    let (a, b) = (bare(), bare());
    let _cable_a = lan.plug(&a, "10.99.0.1/24").unwrap();
    let cable_b = lan.plug(&b, "10.99.0.2/24").unwrap();
    let reaches = || {
        let script = "timeout 1 bash -c 'echo x > /dev/tcp/10.99.0.2/9' 2>&1 || true";
        Ok(a.run("bash", &["-c", script])?.stdout.contains("refused"))
    };
    wait_until("the bridge to forward", Duration::from_secs(10), reaches).unwrap();
    cable_b.cut().unwrap();
    assert!(!reaches().unwrap());
    cable_b.mend().unwrap();
    wait_until("the mended link", Duration::from_secs(10), reaches).unwrap();
    a.finish().unwrap();
    b.finish().unwrap();
}

#[test]
fn processes_end_with_the_node() {
    let node = bare();
    let child = node.spawn(Command::new("sleep").arg("1000")).unwrap();
    let pid = child.id();
    assert!(fs::exists(format!("/proc/{pid}")).unwrap());
    node.finish().unwrap();
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    drop(child);
}

#[test]
fn the_audit_names_what_leaked() {
    let node = bare();
    let before = node.snapshot().unwrap();
    node.assert_no_leaks(&before).unwrap();
    node.run("ip", &["link", "add", "leak0", "type", "bridge"])
        .unwrap()
        .ok()
        .unwrap();
    node.run(
        "sh",
        &["-c", "mkdir -p /run/orlop/x && mount -t tmpfs none /run/orlop/x"],
    )
    .unwrap()
    .ok()
    .unwrap();
    node.run("nft", &["add", "table", "inet", "leaked"])
        .unwrap()
        .ok()
        .unwrap();
    let mut sleeper = node.spawn(Command::new("sleep").arg("1000")).unwrap();
    let error = node.assert_no_leaks(&before).unwrap_err().to_string();
    for leak in [
        "link: leak0",
        "mount: /run/orlop/x (tmpfs)",
        "process: sleep 1000",
        "file: /run/orlop/x",
        "inet leaked",
    ] {
        assert!(error.contains(leak), "{leak} isn't in {error}");
    }
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    node.finish().unwrap();
}

#[test]
fn a_cgroup_that_is_left_fails_the_node() {
    let node = bare();
    let mount = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|e| e.path());
    let hierarchy = mount
        .chain(["/sys/fs/cgroup".into()])
        .find(|p| p.join(node.name()).is_dir())
        .unwrap();
    fs::create_dir(hierarchy.join(node.name()).join("pod1")).unwrap();
    let own = hierarchy.join(node.name());
    let error = node.finish().unwrap_err().to_string();
    assert!(error.contains("pod1"), "{error}");
    assert!(!own.exists(), "it is removed all the same");
}
