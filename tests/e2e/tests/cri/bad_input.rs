//! Bad input: an error that names the thing, the right code, and nothing left.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::json;
use tests_harness::{ContainerSpec, Node, PodSpec, tools};

use crate::bed::{PATIENCE, in_node, settled, sleeper};

#[test]
fn what_does_not_exist_is_named() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        crictl
            .run(&["pull", "orlop.test/nothing:1"])?
            .refused("orlop.test/nothing:1")?;
        crictl
            .run(&["pull", "orlop.test/busybox:none"])?
            .refused("NotFound")?;
        crictl.run(&["inspectp", "no-such-pod"])?.refused("no-such-pod")?;
        for verb in ["inspect", "logs", "start"] {
            crictl
                .run(&[verb, "no-such-container"])?
                .refused("no-such-container")?;
        }
        crictl
            .run(&["exec", "-s", "no-such-container", "true"])?
            .refused("no-such-container")?;
        crictl
            .run(&["port-forward", "no-such-pod", "1:1"])?
            .refused("no-such-pod")?;
        let pod = PodSpec::new("lone");
        crictl
            .try_run_pod(&pod, &["--runtime", "no-such-handler"])?
            .refused("no-such-handler")?;
        let sandbox = crictl.run_pod(&pod)?;
        let container = ContainerSpec::new("a", "orlop.test/never-pulled:1", &["true"]);
        crictl
            .try_create(&sandbox, &pod, &container)?
            .refused("orlop.test/never-pulled:1")?;
        crictl
            .try_create("no-such-pod", &pod, &sleeper("a"))?
            .refused("no-such-pod")?;
        crictl.remove_pod(&sandbox)?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let pod = PodSpec::new("typo");
        let sandbox = crictl.run_pod(&pod)?;
        let container = ContainerSpec::new("a", "orlop.test/busybox:1", &["no-such-command"]);
        // Where it is noticed is the runtime's choice.
        let created = crictl.try_create(&sandbox, &pod, &container)?;
        if created.code == 0 {
            crictl
                .run(&["start", created.text()])?
                .refused("no-such-command")?;
        } else {
            created.refused("no-such-command")?;
        }
        let id = crictl.create(&sandbox, &pod, &sleeper("b"))?;
        crictl.ok(&["start", &id])?;
        crictl
            .run(&["exec", "-s", &id, "no-such-command"])?
            .refused("no-such-command")?;
        crictl
            .run(&["exec", &id, "no-such-command"])?
            .refused("no-such-command")?;
        let tree = sleeper("c").with("/working_dir", json!("/no/such/dir"));
        let made = crictl.try_create(&sandbox, &pod, &tree)?;
        if made.code == 0 {
            // It is made then, as other runtimes do.
            let id = made.text();
            crictl.ok(&["start", id])?;
            let folder = crictl.ok(&["exec", "-s", id, "pwd"])?;
            ensure!(folder == "/no/such/dir", "it works in {folder}");
        } else {
            made.refused("/no/such/dir")?;
        }
        crictl.remove_pod(&sandbox)?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn names_that_are_taken_are_named() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let pod = PodSpec::new("twin");
        let sandbox = crictl.run_pod(&pod)?;
        let again = crictl.try_run_pod(&pod, &[])?;
        // A caller that lost the answer asks again: it may get the same pod, never a second one.
        ensure!(again.code != 0 || again.text() == sandbox, "{again}");
        if again.code != 0 {
            again.refused("twin")?;
        }
        crictl.create(&sandbox, &pod, &sleeper("a"))?;
        let again = crictl.try_create(&sandbox, &pod, &sleeper("a"))?;
        if again.code != 0 {
            again.refused("a")?;
        }
        ensure!(crictl.ok(&["ps", "-aq"])?.lines().count() == 1);
        crictl.remove_pod(&sandbox)?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn damaged_and_hostile_images_are_refused() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let images = crictl.ok(&["images", "-q"])?;
        for name in [
            "bad-layer",
            "cut-layer",
            "bad-diff-id",
            "bad-config",
            "bad-traversal",
        ] {
            crictl
                .run(&["pull", &format!("orlop.test/{name}:1")])?
                .refused(name)?;
            ensure!(crictl.ok(&["images", "-q"])? == images, "{name} left an image");
        }
        // Inside the image's root an absolute link is fine.
        crictl.ok(&["pull", "orlop.test/absolute-symlink:1"])?;
        let escaped = "/tmp/orlop-escaped";
        ensure!(
            !node.inside(|| Ok(std::fs::exists(escaped)?))?,
            "an image wrote to the node's /tmp"
        );
        let container = ContainerSpec::new("a", "orlop.test/absolute-symlink:1", &["cat", escaped]);
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("linked"), &container)?;
        crate::bed::until_logged(&crictl, &id, "escaped")?;
        crictl.remove_pod(&sandbox)?;
        crictl.ok(&["rmi", "orlop.test/absolute-symlink:1"])?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn a_wrong_configuration_is_named_with_its_place() {
    in_node(Node::builder().bare(), |node| {
        let daemon = tools::ours("orlop-cri")?;
        let validate = |text: &str| {
            node.write("/etc/orlop/bad.toml", text)?;
            node.run_within(
                PATIENCE,
                Command::new(&daemon).args(["--validate", "--config", "/etc/orlop/bad.toml"]),
            )
        };
        let unknown = validate("root = '/var/lib/x'\n[images]\nmax_paralel_layers = 3\n")?
            .refused("max_paralel_layers")?;
        ensure!(
            unknown.code == 78 && unknown.stderr.contains("/etc/orlop/bad.toml"),
            "{unknown}"
        );
        ensure!(unknown.stderr.contains("line 3"), "{unknown}");
        let broken = validate("root = \n")?.refused("line 1")?;
        ensure!(broken.code == 78, "{broken}");
        let relative = validate("root = 'here'\n")?.refused("root")?;
        ensure!(relative.code == 78, "{relative}");
        validate("")?.ok()?;
        let missing = node.run_within(
            PATIENCE,
            Command::new(&daemon).args(["--config", "/etc/orlop/none.toml"]),
        )?;
        let missing = missing.refused("/etc/orlop/none.toml")?;
        ensure!(missing.code == 78, "{missing}");
        Ok(())
    });
}

#[test]
fn a_port_in_use_is_named() {
    in_node(Node::builder(), |node| {
        node.kill_daemon()?;
        // The registry has it.
        node.write(
            "/etc/orlop/orlop-cri.toml.d/60-port.toml",
            "[streaming]\naddress = '127.0.0.1:5000'\n",
        )?;
        node.launch_daemon()?;
        let status = node.daemon()?.wait(PATIENCE)?;
        let log = node.log_tail(5);
        ensure!(
            !status.success() && log.contains("127.0.0.1:5000"),
            "{status}: {log}"
        );
        node.await_daemons_end(PATIENCE)?;
        node.write("/etc/orlop/orlop-cri.toml.d/60-port.toml", "")?;
        node.start_daemon()?;
        node.crictl()?.ok(&["version"]).map(drop)
    });
}

#[test]
fn a_second_daemon_is_refused() {
    in_node(Node::builder(), |node| {
        let second = tools::ours("orlop-cri")?;
        let second = node.run_within(
            PATIENCE,
            Command::new(second).args(["--config", "/etc/orlop/orlop-cri.toml"]),
        )?;
        ensure!(second.code != 0, "{second}");
        node.crictl()?.ok(&["version"]).map(drop)
    });
}

#[test]
fn a_damaged_record_does_not_stop_the_others() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (broken, _) = crictl.start_pod(&PodSpec::new("broken"), &sleeper("a"))?;
        let (whole, container) = crictl.start_pod(&PodSpec::new("whole"), &sleeper("a"))?;
        node.kill_daemon()?;
        let record = format!("/var/lib/orlop/cri/sandboxes/{broken}/record.json");
        let text = node.read(&record)?;
        node.write(&record, &text[..text.len() / 2])?;
        node.start_daemon()?;
        let crictl = node.crictl()?;
        ensure!(crictl.state(&container)? == "CONTAINER_RUNNING");
        // The name of the damaged one isn't stuck.
        for old in crictl.ok(&["pods", "--name", "^broken$", "-q"])?.lines() {
            crictl.remove_pod(old)?;
        }
        let (again, _) = crictl
            .start_pod(&PodSpec::new("broken"), &sleeper("a"))
            .context("the name is stuck")?;
        crictl.remove_pod(&again)?;
        crictl.remove_pod(&whole)?;
        node.assert_no_leaks(&before)
    });
}
