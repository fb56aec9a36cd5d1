//! containerd (Debian's) with orlop-oci as its runtime, in namespaces that end with the test.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod bundle;

use std::process::{Command, Stdio};

use bundle::{Bundle, program, texts};

/// Starts containerd with everything of its own, then the lines of the test, with `$C` for ctr and `$R` for the runtime.
const PRELUDE: &str = r#"
set -u
mount --make-rprivate /
mount -t tmpfs tmpfs /run
cat > "$DIR/containerd.toml" <<CONFIG
version = 2
root = "$DIR/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "/run/c.sock"
CONFIG
containerd -c "$DIR/containerd.toml" > "$DIR/containerd.log" 2>&1 &
C="ctr -a /run/c.sock"
for i in $(seq 100); do $C version > /dev/null 2>&1 && break; sleep 0.1; done
R="--runtime io.containerd.runc.v2 --runc-binary $OCI --cgroup $CGROUP/c --rootfs"
"#;

fn under_containerd(bundle: &Bundle, lines: &str) -> String {
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["bash", "-c", &format!("{PRELUDE}{lines}")])
        .env("DIR", &bundle.folder)
        .env("ROOTFS", bundle.rootfs())
        .env("OCI", program())
        .env("CGROUP", &bundle.cgroup)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    let log = std::fs::read_to_string(bundle.folder.join("containerd.log")).unwrap_or_default();
    assert!(output.status.success(), "{out}\n{err}\n{log}");
    out
}

#[test]
fn containers_run_execute_pause_and_stop() {
    let bundle = Bundle::new("true");
    let out = under_containerd(
        &bundle,
        r#"
        $C run --rm $R $ROOTFS a1 /bin/echo hello
        $C run --rm $R $ROOTFS a2 /bin/sh -c 'exit 5'; echo "code $?"
        $C run --rm --seccomp $R $ROOTFS a3 /bin/grep Seccomp: /proc/self/status
        $C run -d $R $ROOTFS a4 /bin/sleep 100
        $C task exec --exec-id e1 a4 /bin/sh -c 'id -u; exit 3'; echo "code $?"
        $C task exec --exec-id e2 a4 /bin/nothing 2>&1
        $C task pause a4; $C task ls | grep a4; $C task resume a4; $C task ls | grep a4
        $C task metrics a4 | grep memory.usage
        $C task kill -s KILL a4
        for i in $(seq 50); do $C task ls | grep -q STOPPED && break; sleep 0.1; done
        $C task rm a4 2>&1; $C container rm a4; $C task ls | wc -l
        $C run --rm $R $ROOTFS a5 /bin/nothing 2>&1
        exit 0
        "#,
    );
    for wanted in [
        "hello\n",
        "code 5\n",
        "Seccomp:\t2\n",
        "0\ncode 3\n",
        "exec failed: exec: \"/bin/nothing\": stat /bin/nothing: no such file or directory",
        "PAUSED\n",
        "RUNNING\n",
        "create failed: exec: \"/bin/nothing\"",
    ] {
        assert!(out.contains(wanted), "`{wanted}` is not in:\n{out}");
    }
    // `memory.usage_in_bytes` of v1, `memory.usage` of v2.
    let usage = out.lines().find_map(|line| line.strip_prefix("memory.usage"));
    let bytes = usage.and_then(|rest| rest.split_whitespace().last()?.parse::<u64>().ok());
    assert!(bytes.is_some_and(|bytes| bytes > 0), "no memory in use:\n{out}");
}
