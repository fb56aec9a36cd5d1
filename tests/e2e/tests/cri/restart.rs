//! The daemon dies and comes back under running pods.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests_harness::{ContainerSpec, Node, PodSpec, wait_until};

use crate::bed::{PATIENCE, in_node, settled, sleeper, until_state};

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
