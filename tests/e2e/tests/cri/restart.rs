//! The daemon dies and comes back under running pods.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests_harness::{ContainerSpec, Node, PodSpec, wait_until};

use crate::bed::{PATIENCE, held, in_node, settled, sleeper, until_freed, until_state};

const PODS: usize = 20;

#[test]
fn twenty_pods_survive_the_daemon() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let mut stay = Vec::new();
        let mut end = Vec::new();
        for n in 0..PODS {
            let pod = PodSpec::new(&format!("pod{n}"));
            // Half of them end while nobody looks, each with a status of its own.
            let script = format!("until test -e /tmp/end; do sleep 0.05; done; echo ending; exit {n}");
            let container = if n % 2 == 0 {
                sleeper("main")
            } else {
                ContainerSpec::sh("main", &script)
            };
            let (sandbox, id) = crictl.start_pod(&pod, &container)?;
            if n % 2 == 0 {
                stay.push((sandbox, id))
            } else {
                end.push((n, sandbox, id))
            }
        }
        let pid_of = |node: &Node, id: &str| -> Result<i64> {
            node.crictl()?.inspect(id)?["info"]["pid"]
                .as_i64()
                .context("the status tells no pid")
        };
        let pids = stay
            .iter()
            .map(|(_, id)| pid_of(node, id))
            .collect::<Result<Vec<_>>>()?;
        let ending = end
            .iter()
            .map(|(_, _, id)| pid_of(node, id))
            .collect::<Result<Vec<_>>>()?;
        drop(crictl);
        node.kill_daemon()?;
        for pid in &ending {
            node.run("touch", &[&format!("/proc/{pid}/root/tmp/end")])?.ok()?;
        }
        wait_until("the containers to end by themselves", PATIENCE, || {
            node.inside(|| {
                Ok(ending
                    .iter()
                    .all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()))
            })
        })?;
        let begun = Instant::now();
        let listening = node.start_daemon()?;
        node.crictl()?.ok(&["version"])?;
        println!(
            "restart with {PODS} pods: listening after {listening:?}, crictl answered after {:?}",
            begun.elapsed()
        );

        let crictl = node.crictl()?;
        for (n, _, id) in &end {
            until_state(&crictl, id, "CONTAINER_EXITED")?;
            let status = crictl.inspect(id)?;
            ensure!(status["status"]["exitCode"] == *n, "pod{n}: {}", status["status"]);
            ensure!(crictl.ok(&["logs", id])?.ends_with("ending"));
        }
        for ((_, id), pid) in stay.iter().zip(pids) {
            ensure!(crictl.state(id)? == "CONTAINER_RUNNING");
            ensure!(pid_of(node, id)? == pid, "the container isn't the one it was");
            ensure!(crictl.ok(&["exec", id, "echo", "here"])? == "here");
        }
        crictl.ok(&["rmp", "-fa"])?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn what_ended_while_nobody_looked_holds_no_cgroup_and_no_mount() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let pod = PodSpec::new("ends");
        let script = "until test -e /tmp/end; do sleep 0.05; done; exit 6";
        let (sandbox, ends) = crictl.start_pod(&pod, &ContainerSpec::sh("ends", script))?;
        let stays = crictl.create(&sandbox, &pod, &sleeper("stays"))?;
        crictl.ok(&["start", &stays])?;
        let pid = crictl.inspect(&ends)?["info"]["pid"].to_string();
        node.kill_daemon()?;
        node.run("touch", &[&format!("/proc/{pid}/root/tmp/end")])?.ok()?;
        wait_until("the container's end", PATIENCE, || {
            Ok(node.run("test", &["-e", &format!("/proc/{pid}")])?.code != 0)
        })?;
        node.start_daemon()?;
        until_freed(node, &ends)?;
        let crictl = node.crictl()?;
        let status = crictl.inspect(&ends)?;
        ensure!(status["status"]["exitCode"] == 6, "{}", status["status"]);
        ensure!(crictl.state(&stays)? == "CONTAINER_RUNNING" && !held(node, &stays)?.is_empty());
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn a_polite_stop_leaves_pods_alone_too() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("stays"), &sleeper("main"))?;
        drop(crictl);
        node.daemon()?.signal_term()?;
        let status = node.await_daemons_end(Duration::from_secs(20))?;
        ensure!(status.success(), "orlop-cri ended with {status}");
        node.start_daemon()?;
        let crictl = node.crictl()?;
        ensure!(crictl.state(&id)? == "CONTAINER_RUNNING");
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn a_hangup_changes_what_may_change_and_names_what_needs_a_restart() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let path = tests_harness::tools::installed("runc")?;
        let drop_in = "/etc/orlop/orlop-cri.toml.d/70-new.toml";
        let hang_up = |node: &mut Node, text: &str, said: &str| -> Result<()> {
            node.write(drop_in, text)?;
            node.daemon()?.signal_hangup()?;
            wait_until(said, PATIENCE, || Ok(node.log_tail(50).contains(said))).map(drop)
        };
        let pod = PodSpec::new("handled");
        let flags = ["--runtime", "late"];
        node.crictl()?.try_run_pod(&pod, &flags)?.refused("late")?;
        let text = format!(
            "[runtimes.late]\npath = '{}'\n[streaming]\naddress = '127.0.0.1:5999'\n",
            path.display()
        );
        hang_up(node, &text, "need a restart")?;
        let log = node.log_tail(50);
        let line = log.lines().find(|line| line.contains("need a restart"));
        ensure!(line.is_some_and(|line| line.contains("streaming")), "{log}");
        let crictl = node.crictl()?;
        let sandbox = crictl.try_run_pod(&pod, &flags)?.ok()?.text().to_owned();
        let id = crictl.create(&sandbox, &pod, &sleeper("main"))?;
        crictl.ok(&["start", &id])?;
        ensure!(crictl.ok(&["exec", "-s", &id, "echo", "here"])? == "here");
        crictl.remove_pod(&sandbox)?;
        drop(crictl);
        // What is wrong changes nothing, and the daemon says where it is.
        hang_up(node, "max_paralel = 3\n", "max_paralel")?;
        let crictl = node.crictl()?;
        let sandbox = crictl.try_run_pod(&pod, &flags)?.ok()?.text().to_owned();
        crictl.remove_pod(&sandbox)?;
        node.assert_no_leaks(&before)
    });
}

#[test]
fn addresses_of_pods_that_died_with_their_records_are_given_back() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("lost"), &sleeper("main"))?;
        let (kept, _) = crictl.start_pod(&PodSpec::new("kept"), &sleeper("main"))?;
        let address = |ip: &str| format!("/var/lib/cni/networks/orlop/{ip}");
        let (lost, held) = (
            address(&crictl.pod_ip(&sandbox)?),
            address(&crictl.pod_ip(&kept)?),
        );
        ensure!(
            node.read(&lost)?.contains(&sandbox),
            "the address isn't the pod's"
        );
        drop(crictl);
        node.kill_daemon()?;
        node.run(
            "pkill",
            &["-KILL", "-f", &format!("orlop-shim.*--sandbox {sandbox}")],
        )?
        .ok()?;
        for record in [format!("sandboxes/{sandbox}"), format!("containers/{id}")] {
            node.run("rm", &["-r", &format!("/var/lib/orlop/cri/{record}")])?
                .ok()?;
        }
        node.start_daemon()?;
        wait_until("the address to be free", PATIENCE, || {
            node.inside(|| Ok(!std::path::Path::new(&lost).exists()))
        })?;
        ensure!(
            node.read(&held)?.contains(&kept),
            "a living pod's address was taken"
        );
        node.crictl()?.remove_pod(&kept)?;
        node.assert_no_leaks(&before)
    });
}
