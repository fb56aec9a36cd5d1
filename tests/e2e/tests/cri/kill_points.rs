//! SIGKILL at every step: the daemon is told to kill itself before or after a step, a pod is taken through its whole
//! life until that happens, and the next daemon has to make good.
//!
//! The steps come from the daemon itself, so a new one can't be forgotten: one that this life doesn't reach fails.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests_harness::{ContainerSpec, Crictl, Node, PodSpec, Snapshot, tools};

use crate::bed::{PATIENCE, in_node, settled, sleeper};

const VICTIM: &str = "victim";

#[test]
fn killed_before_each_step() {
    at_every_step("before");
}

#[test]
fn killed_after_each_step() {
    at_every_step("after");
}

fn at_every_step(side: &str) {
    in_node(Node::builder(), |node| {
        let steps = steps(node)?;
        ensure!(steps.len() > 20, "only {} steps are listed", steps.len());
        // An image that is mounted as a volume is a step of its own.
        node.crictl()?.ok(&["pull", "orlop.test/whiteouts:1"])?;
        settled(node)?;
        let (bystander_pod, bystander) = node
            .crictl()?
            .start_pod(&PodSpec::new("bystander"), &sleeper("main"))?;
        let pid = node.crictl()?.inspect(&bystander)?["info"]["pid"].clone();
        let before = node.snapshot()?;
        let mut failures = Vec::new();
        for step in &steps {
            if let Err(e) = at_step(node, step, side, &before) {
                failures.push(format!("{step}:{side}: {e:#}"));
                clean_up(node).with_context(|| format!("after {step}:{side}"))?;
            }
            let status = node.crictl()?.inspect(&bystander)?;
            ensure!(
                status["status"]["state"] == "CONTAINER_RUNNING",
                "{step}:{side} hit the bystander: {status}"
            );
            ensure!(
                status["info"]["pid"] == pid,
                "{step}:{side}: the bystander is another process"
            );
        }
        node.crictl()?.remove_pod(&bystander_pod)?;
        ensure!(
            failures.is_empty(),
            "{} of {} steps:\n{}",
            failures.len(),
            steps.len(),
            failures.join("\n")
        );
        println!("{} steps, killed {side} each", steps.len());
        Ok(())
    });
}

/// The daemon's own list, each step once.
fn steps(node: &Node) -> Result<Vec<String>> {
    let list = node
        .run_within(
            PATIENCE,
            Command::new(tools::ours("orlop-cri")?).arg("--list-kill-points"),
        )?
        .ok()?;
    let mut steps = Vec::new();
    for line in list.stdout.lines() {
        let step = line.split([':', ' ']).next().unwrap_or_default().to_owned();
        if !step.is_empty() && !steps.contains(&step) {
            steps.push(step);
        }
    }
    Ok(steps)
}

fn at_step(node: &mut Node, step: &str, side: &str, before: &Snapshot) -> Result<()> {
    node.kill_daemon()?;
    node.set_env("ORLOP_CRI_KILL_AT", Some(&format!("{step}:{side}")));
    let started = node.start_daemon();
    node.set_env("ORLOP_CRI_KILL_AT", None);
    started?;
    // Which of these calls fails is the step's affair.
    let outcome = life(&node.crictl()?);
    if outcome.is_err() {
        // The caller may hear of the end before the kernel tells it.
        node.daemon()?
            .wait(Duration::from_secs(5))
            .context("a call failed, but the daemon lives")?;
    }
    if node.daemon()?.ended()?.is_none() {
        return Err(outcome
            .err()
            .unwrap_or_else(|| anyhow::anyhow!("a pod's life doesn't come by this step")));
    }
    node.await_daemons_end(PATIENCE)?;
    node.start_daemon()?;
    let crictl = node.crictl()?;
    for old in crictl.ok(&["pods", "--name", VICTIM, "-q"])?.lines() {
        crictl
            .remove_pod(old)
            .context("the pod can't be removed after the restart")?;
    }
    node.assert_no_leaks(before).context("after the restart")?;
    life(&crictl).context("the same pod once more")?;
    node.assert_no_leaks(before).context("after the second life")
}

/// Everything that happens to a pod.
fn life(crictl: &Crictl<'_>) -> Result<()> {
    let pod = PodSpec::new(VICTIM);
    let image = json!([{ "container_path": "/volume", "readonly": true, "image": { "image": "orlop.test/whiteouts:1" } }]);
    // It doesn't listen to SIGTERM, so that stopping it takes both signals.
    let container =
        ContainerSpec::new("main", "orlop.test/busybox:1", &["sleep", "1000"]).with("/mounts", image);
    let sandbox = crictl.run_pod(&pod)?;
    let id = crictl.create(&sandbox, &pod, &container)?;
    crictl.ok(&["start", &id])?;
    crictl.ok(&["stop", "--timeout", "1", &id])?;
    crictl.ok(&["rm", &id])?;
    // One more that runs while the pod is stopped.
    let id = crictl.create(&sandbox, &pod, &sleeper("second"))?;
    crictl.ok(&["start", &id])?;
    crictl.ok(&["stopp", &sandbox])?;
    crictl.ok(&["rmp", &sandbox])?;
    Ok(())
}

/// Makes a fresh start after a step that failed, so that it doesn't spoil the next.
fn clean_up(node: &mut Node) -> Result<()> {
    if node.daemon().is_ok() {
        node.kill_daemon()?;
    }
    node.start_daemon()?;
    let crictl = node.crictl()?;
    for old in crictl.ok(&["pods", "--name", VICTIM, "-q"])?.lines() {
        crictl.remove_pod(old)?;
    }
    Ok(())
}
