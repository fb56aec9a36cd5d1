//! Things that break around the daemon: a shim that dies, a plugin that hangs, a disk that is full.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests_harness::{Node, PodSpec, Snapshot, wait_until};

use crate::bed::{PATIENCE, in_node, settled, sleeper, until_state};

/// The shim of a sandbox, by the pid it has in the node.
fn shim_of(node: &Node, sandbox: &str) -> Result<String> {
    let found = node
        .run("pgrep", &["-f", &format!("orlop-shim.*--sandbox {sandbox}")])?
        .ok()?;
    found
        .text()
        .lines()
        .next()
        .map(str::to_owned)
        .context("the sandbox has no shim")
}

#[test]
fn a_dead_shim_takes_its_containers_along() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("orphan"), &sleeper("main"))?;
        let (other, other_id) = crictl.start_pod(&PodSpec::new("other"), &sleeper("main"))?;
        node.run("kill", &["-KILL", &shim_of(node, &sandbox)?])?.ok()?;
        until_state(&crictl, &id, "CONTAINER_EXITED")?;
        let status = crictl.inspect(&id)?;
        let status = &status["status"];
        ensure!(
            status["exitCode"] == 137 && status["reason"] == "Error",
            "{status}"
        );
        ensure!(status["message"] == "shim died", "{status}");
        ensure!(crictl.state(&other_id)? == "CONTAINER_RUNNING");
        crictl.remove_pod(&sandbox)?;

        // The same while the daemon is away.
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("orphan"), &sleeper("main"))?;
        let shim = shim_of(node, &sandbox)?;
        drop(crictl);
        node.kill_daemon()?;
        node.run("kill", &["-KILL", &shim])?.ok()?;
        node.start_daemon()?;
        let crictl = node.crictl()?;
        until_state(&crictl, &id, "CONTAINER_EXITED")?;
        let status = crictl.inspect(&id)?;
        ensure!(status["status"]["message"] == "shim died", "{}", status["status"]);
        crictl.remove_pod(&sandbox)?;
        crictl.remove_pod(&other)?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn a_hung_plugin_is_given_up() {
    in_node(Node::builder().config("[cni]\ntimeout_seconds = 2\n"), |node| {
        let before = settled(node)?;
        let usual = node.read("/etc/cni/net.d/10-orlop.conflist")?;
        node.write("/opt/cni/bin/hang", "#!/bin/sh\nexec sleep 1000\n")?;
        node.run("chmod", &["+x", "/opt/cni/bin/hang"])?.ok()?;
        let hanging = json!({ "cniVersion": "1.0.0", "name": "orlop", "plugins": [{ "type": "hang" }] });
        node.write("/etc/cni/net.d/10-orlop.conflist", &hanging.to_string())?;
        let crictl = node.crictl()?;
        // crictl's own patience is longer: its error wouldn't name the plugin.
        crictl.try_run_pod(&PodSpec::new("stuck"), &[])?.refused("hang")?;
        // The daemon goes on trying to clean up: once the plugin works again, it succeeds.
        node.write("/opt/cni/bin/hang", "#!/bin/sh\ncat >/dev/null\n")?;
        node.write("/etc/cni/net.d/10-orlop.conflist", &usual)?;
        for old in crictl.ok(&["pods", "-q"])?.lines() {
            crictl.remove_pod(old)?;
        }
        let (sandbox, _) = crictl.start_pod(&PodSpec::new("stuck"), &sleeper("main"))?;
        crictl.remove_pod(&sandbox)?;
        until_clean(node, &before)
    });
}

/// What couldn't be undone at once is undone later.
fn until_clean(node: &Node, before: &Snapshot) -> Result<()> {
    wait_until("the clean-up", 2 * PATIENCE, || {
        Ok(before.leaks(&node.snapshot()?).is_empty())
    })
    .map(drop)
    .or_else(|_| node.assert_no_leaks(before))
}

#[test]
fn a_plugin_whose_del_hangs_keeps_nothing_but_the_network() {
    in_node(Node::builder().config("[cni]\ntimeout_seconds = 2\n"), |node| {
        let before = settled(node)?;
        let mut chain: Value = serde_json::from_str(&node.read("/etc/cni/net.d/10-orlop.conflist")?)?;
        chain["plugins"]
            .as_array_mut()
            .context("the configuration has no plugins")?
            .push(json!({ "type": "stuck" }));
        node.write("/etc/cni/net.d/10-orlop.conflist", &chain.to_string())?;
        // ADD hands on what it got; DEL hangs for as long as the file is there.
        let plugin = "#!/bin/sh\ncat >/run/stuck.in\n\
            [ $CNI_COMMAND != DEL ] || while [ -e /run/stuck ]; do sleep 0.05; done\n\
            [ $CNI_COMMAND = DEL ] || sed 's/.*\"prevResult\":\\({.*}\\),\"type\":\"stuck\".*/\\1/' /run/stuck.in\n";
        node.write("/opt/cni/bin/stuck", plugin)?;
        node.run("chmod", &["+x", "/opt/cni/bin/stuck"])?.ok()?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("stuck"), &sleeper("main"))?;
        crictl.ok(&["stopp", &sandbox])?;
        let of_a_stopped_one = added(node, &before, &sandbox, &id)?;
        crictl.remove_pod(&sandbox)?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("stuck"), &sleeper("main"))?;
        let shim = shim_of(node, &sandbox)?;
        node.write("/run/stuck", "")?;
        let stop = crictl.run(&["-t", "60s", "stopp", &sandbox])?;
        ensure!(stop.code != 0, "the plugin did not hang: {stop}");
        ensure!(crictl.state(&id)? == "CONTAINER_EXITED");
        let status = crictl.json(&["inspectp", &sandbox])?;
        ensure!(
            status["status"]["state"] == "SANDBOX_NOTREADY",
            "{}",
            status["status"]
        );
        ensure!(
            node.run("kill", &["-0", &shim])?.code != 0,
            "the shim still runs, though nothing needs it"
        );
        let mut strange = added(node, &before, &sandbox, &id)?;
        strange.retain(|leak| !of_a_stopped_one.contains(leak) && !is_of_the_network(leak));
        ensure!(strange.is_empty(), "while DEL hangs there is also {strange:#?}");
        node.run("rm", &["/run/stuck"])?.ok()?;
        crictl.remove_pod(&sandbox)?;
        until_clean(node, &before)
    });
}

/// What a stopped pod adds, with names for its IDs.
fn added(node: &Node, before: &Snapshot, sandbox: &str, container: &str) -> Result<Vec<String>> {
    let lines = before.leaks(&node.snapshot()?).into_iter();
    Ok(lines
        .map(|line| line.replace(sandbox, "SANDBOX").replace(container, "CONTAINER"))
        .collect())
}

/// What a pod may have while its DEL hangs beyond what a stopped one has: its network namespace, links, rules, addresses
/// and CNI's notes of them, and the plugin itself.
fn is_of_the_network(leak: &str) -> bool {
    let (kind, what) = leak.split_once(": ").unwrap_or((leak, ""));
    match kind {
        "link" | "rule" => true,
        "process" => what.contains("/opt/cni/bin/stuck") || what.starts_with("sleep 0.05"),
        "mount" => what.ends_with("(nsfs)"),
        "file" => ["/var/lib/cni/", "/run/netns/", "/run/orlop/cri/pods/SANDBOX"]
            .iter()
            .any(|folder| what.starts_with(folder)),
        _ => false,
    }
}

#[test]
fn a_shim_that_hangs_is_waited_for_until_its_pod_is_stopped() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("hung"), &sleeper("main"))?;
        let shim = shim_of(node, &sandbox)?;
        drop(crictl);
        node.kill_daemon()?;
        node.run("kill", &["-STOP", &shim])?.ok()?;
        node.start_daemon()?;
        let crictl = node.crictl()?;
        ensure!(
            crictl.state(&id)? == "CONTAINER_RUNNING",
            "a shim that does not answer was taken for dead"
        );
        let (other, _) = crictl.start_pod(&PodSpec::new("other"), &sleeper("main"))?;
        crictl.ok(&["-t", "60s", "stopp", &sandbox])?;
        let status = crictl.inspect(&id)?;
        let status = &status["status"];
        ensure!(
            status["exitCode"] == 137 && status["message"] == "shim died",
            "{status}"
        );
        crictl.remove_pod(&sandbox)?;
        crictl.remove_pod(&other)?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn other_calls_go_on_while_a_plugin_hangs() {
    in_node(Node::builder().config("[cni]\ntimeout_seconds = 90\n"), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("works"), &sleeper("main"))?;
        let usual = node.read("/etc/cni/net.d/10-orlop.conflist")?;
        node.write("/opt/cni/bin/hang", "#!/bin/sh\nexec sleep 1000\n")?;
        node.run("chmod", &["+x", "/opt/cni/bin/hang"])?.ok()?;
        let hanging = json!({ "cniVersion": "1.0.0", "name": "orlop", "plugins": [{ "type": "hang" }] });
        node.write("/etc/cni/net.d/10-orlop.conflist", &hanging.to_string())?;
        node.write(
            "/run/stuck.json",
            &json!({ "metadata": { "name": "stuck", "namespace": "default", "uid": "stuck" } }).to_string(),
        )?;
        let mut stuck = crictl.spawn(&["runp", "/run/stuck.json"])?;
        let hangs = || Ok(node.run("pgrep", &["-x", "-f", "sleep 1000"])?.code == 0);
        wait_until("the plugin to hang", PATIENCE, hangs)?;
        ensure!(crictl.ok(&["exec", "-s", &id, "echo", "here"])? == "here");
        crictl.ok(&["pods"])?;
        ensure!(
            stuck.try_wait()?.is_none() && hangs()?,
            "the others waited for it"
        );
        node.write("/opt/cni/bin/hang", "#!/bin/sh\ncat >/dev/null\n")?;
        node.run("pkill", &["-KILL", "-x", "-f", "sleep 1000"])?.ok()?;
        stuck.wait()?;
        node.write("/etc/cni/net.d/10-orlop.conflist", &usual)?;
        for old in crictl.ok(&["pods", "-q", "--name", "^stuck$"])?.lines() {
            crictl.remove_pod(old)?;
        }
        crictl.remove_pod(&sandbox)?;
        until_clean(node, &before)
    });
}

#[test]
fn a_full_disk_is_told_and_survived() {
    in_node(Node::builder().disk_mib(32), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("early"), &sleeper("main"))?;
        // Up to the last block.
        let fill = "dd if=/dev/zero of=/var/lib/orlop/ballast bs=4k 2>/dev/null; df /var/lib/orlop | tail -1";
        node.run("sh", &["-c", fill])?.ok()?;
        crictl
            .run(&["pull", "orlop.test/demo:latest"])?
            .refused("o space left")?;
        crictl
            .try_run_pod(&PodSpec::new("late"), &[])?
            .refused("o space left")?;
        ensure!(crictl.state(&id)? == "CONTAINER_RUNNING");
        ensure!(crictl.ok(&["exec", "-s", &id, "echo", "here"])? == "here");
        // Removing needs no space.
        crictl
            .remove_pod(&sandbox)
            .context("a pod can't be removed from a full disk")?;
        node.run("rm", &["/var/lib/orlop/ballast"])?.ok()?;
        for old in crictl.ok(&["pods", "-q"])?.lines() {
            crictl.remove_pod(old)?;
        }
        drop(crictl);
        node.restart_daemon()?;
        let crictl = node.crictl()?;
        crictl.ok(&["pull", "orlop.test/demo:latest"])?;
        let (sandbox, _) = crictl.start_pod(&PodSpec::new("late"), &sleeper("main"))?;
        crictl.remove_pod(&sandbox)?;
        node.assert_no_leaks(&before)
    });
}
