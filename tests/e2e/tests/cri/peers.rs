//! Beside others: runc and crun under orlop-cri, and orlop-oci under containerd.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use tests_harness::{ContainerSpec, Node, PodSpec, tools, wait_until};

use crate::bed::{PATIENCE, in_node, settled, sleeper, until_logged, until_state};

#[test]
fn runc_runs_by_handler() {
    by_handler("runc");
}

#[test]
fn crun_runs_by_handler() {
    by_handler("crun");
}

fn by_handler(name: &str) {
    let path = tools::installed(name).expect("hack/deps installs it");
    in_node(
        Node::builder().config(&format!("[runtimes.{name}]\npath = '{}'\n", path.display())),
        |node| {
            // crun refuses a machine that has both versions of cgroups with controllers; in here there is only one then.
            if name == "crun" && node.run("test", &["-e", "/sys/fs/cgroup/unified"])?.code == 0 {
                node.run("umount", &["/sys/fs/cgroup/unified"])?.ok()?;
                // The daemon has seen both.
                node.kill_daemon()?;
                node.start_daemon()?;
            }
            let before = settled(node)?;
            let crictl = node.crictl()?;
            let pod = PodSpec::new("foreign");
            let sandbox = crictl
                .try_run_pod(&pod, &["--runtime", name])?
                .ok()?
                .text()
                .to_owned();
            let id = crictl.create(&sandbox, &pod, &sleeper("main"))?;
            crictl.ok(&["start", &id])?;
            ensure!(crictl.state(&id)? == "CONTAINER_RUNNING");
            ensure!(crictl.ok(&["exec", &id, "hostname"])? == "foreign");
            ensure!(crictl.ok(&["exec", "-s", &id, "echo", "here"])? == "here");
            let short = crictl.create(&sandbox, &pod, &ContainerSpec::sh("short", "echo said; exit 6"))?;
            crictl.ok(&["start", &short])?;
            until_state(&crictl, &short, "CONTAINER_EXITED")?;
            ensure!(crictl.inspect(&short)?["status"]["exitCode"] == 6);
            until_logged(&crictl, &short, "said")?;
            crictl.ok(&["stop", "--timeout", "5", &id])?;
            ensure!(crictl.inspect(&id)?["status"]["exitCode"] == 0);
            crictl.remove_pod(&sandbox)?;
            node.assert_no_leaks(&before)
        },
    );
}

#[test]
fn containerd_runs_orlop_oci() {
    let ours = tools::ours("orlop-oci")
        .expect("hack/build makes it")
        .display()
        .to_string();
    in_node(Node::builder().bare(), |node| {
        node.start_registry()?;
        node.write(
            "/etc/containerd/config.toml",
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
        )?;
        let log = std::fs::File::create(node.tmp().join("containerd.log"))?;
        let mut containerd = node.spawn(
            Command::new(tools::installed("containerd")?)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        let ctr = |args: &[&str]| node.run("ctr", &[&["--namespace", "t"], args].concat());
        wait_until("containerd", PATIENCE, || Ok(ctr(&["version"])?.code == 0))?;
        let image = "127.0.0.1:5000/demo:latest";
        ctr(&["images", "pull", "--plain-http", image])?.ok()?;
        let cgroup = format!("{}/c1", node.cgroup_parent());
        let run = [
            "run",
            "-d",
            "--runc-binary",
            &ours,
            "--cgroup",
            &cgroup,
            image,
            "c1",
        ];
        ctr(&[
            &run[..],
            &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"],
        ]
        .concat())?
        .ok()?;
        let tasks = ctr(&["tasks", "ls"])?.ok()?;
        ensure!(tasks.stdout.contains("RUNNING"), "{tasks}");
        let exec = ctr(&[
            "tasks",
            "exec",
            "--exec-id",
            "e1",
            "c1",
            "sh",
            "-c",
            "echo from the container; exit 4",
        ])?;
        ensure!(
            exec.stdout.contains("from the container") && exec.code == 4,
            "{exec}"
        );
        ctr(&["tasks", "kill", "-s", "SIGTERM", "c1"])?.ok()?;
        wait_until("the task's end", PATIENCE, || {
            Ok(ctr(&["tasks", "ls"])?.stdout.contains("STOPPED"))
        })?;
        let removed = ctr(&["tasks", "rm", "c1"])?;
        // ctr tells the task's exit code, by its own or in words.
        ensure!(
            removed.code == 3 || removed.stderr.contains("exit code 3"),
            "{removed}"
        );
        ctr(&["containers", "rm", "c1"])?.ok()?;
        stop(node, &mut containerd)
    });
}

fn stop(node: &Node, child: &mut std::process::Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    wait_until("containerd's shim to end by itself", PATIENCE, || {
        Ok(node.run("pgrep", &["-f", "containerd-shim"])?.code != 0)
    })
    .map(drop)
}
