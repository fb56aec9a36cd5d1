//! Memory that runs out, pressure, and groups that die together: through the CRI, whoever makes the cgroups.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cri_api::v1::{ContainerStatsRequest, PodSandboxStatsRequest, PsiStats};
use serde_json::json;
use tests_harness::{ContainerSpec, Crictl, Driver, Node, PodSpec, wait_until};

use crate::Test;
use crate::bed::{PATIENCE, in_node, until_state};
use crate::client::Cri;

pub(crate) const TESTS: &[Test] = &[
    (
        "memory_that_runs_out_is_told_with_cgroupfs",
        memory_that_runs_out_is_told_with_cgroupfs,
    ),
    (
        "memory_that_runs_out_is_told_with_systemd",
        memory_that_runs_out_is_told_with_systemd,
    ),
    (
        "two_containers_out_of_memory_at_once_are_both_told_with_cgroupfs",
        two_containers_out_of_memory_at_once_are_both_told_with_cgroupfs,
    ),
    (
        "two_containers_out_of_memory_at_once_are_both_told_with_systemd",
        two_containers_out_of_memory_at_once_are_both_told_with_systemd,
    ),
    ("pressure_is_told_with_cgroupfs", pressure_is_told_with_cgroupfs),
    ("pressure_is_told_with_systemd", pressure_is_told_with_systemd),
    (
        "a_group_dies_together_if_asked_with_cgroupfs",
        a_group_dies_together_if_asked_with_cgroupfs,
    ),
    (
        "a_group_dies_together_if_asked_with_systemd",
        a_group_dies_together_if_asked_with_systemd,
    ),
    (
        "a_slice_whose_directory_went_first_is_forgotten_too",
        a_slice_whose_directory_went_first_is_forgotten_too,
    ),
];

fn memory_that_runs_out_is_told_with_cgroupfs() {
    memory_that_runs_out_is_told(Driver::Cgroupfs);
}

fn memory_that_runs_out_is_told_with_systemd() {
    memory_that_runs_out_is_told(Driver::Systemd);
}

fn two_containers_out_of_memory_at_once_are_both_told_with_cgroupfs() {
    two_at_once_are_both_told(Driver::Cgroupfs);
}

fn two_containers_out_of_memory_at_once_are_both_told_with_systemd() {
    two_at_once_are_both_told(Driver::Systemd);
}

fn pressure_is_told_with_cgroupfs() {
    pressure_is_told(Driver::Cgroupfs);
}

fn pressure_is_told_with_systemd() {
    pressure_is_told(Driver::Systemd);
}

fn a_group_dies_together_if_asked_with_cgroupfs() {
    a_group_dies_together_if_asked(Driver::Cgroupfs);
}

fn a_group_dies_together_if_asked_with_systemd() {
    a_group_dies_together_if_asked(Driver::Systemd);
}

const LIMIT: &str = "/linux/resources/memory_limit_in_bytes";
/// Doubles a text until the memory is used up.
const EAT: &str = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done";

fn ended(crictl: &Crictl<'_>, container: &str) -> Result<(i64, String)> {
    wait_until(&format!("{container} to end"), PATIENCE, || {
        Ok(crictl.state(container)? == "CONTAINER_EXITED")
    })?;
    let status = &crictl.inspect(container)?["status"];
    let code = status["exitCode"].as_i64().context("there is no exit code")?;
    Ok((code, status["reason"].as_str().unwrap_or_default().to_owned()))
}

fn out_of_memory() -> (i64, String) {
    (137, "OOMKilled".to_owned())
}

fn memory_that_runs_out_is_told(driver: Driver) {
    in_node(Node::builder().driver(driver), |node| {
        let crictl = node.crictl()?;
        let glutton = ContainerSpec::sh("glutton", EAT).with(LIMIT, json!(32 << 20));
        let pod = PodSpec::new("hungry");
        let (sandbox, container) = crictl.start_pod(&pod, &glutton)?;
        let end = ended(&crictl, &container)?;
        ensure!(end == out_of_memory(), "{end:?}");
        // A kill that has nothing to do with memory, after one that had.
        let bystander = crictl.create(&sandbox, &pod, &idle("bystander"))?;
        crictl.ok(&["start", &bystander])?;
        kill(node, &crictl, &bystander)?;
        let end = ended(&crictl, &bystander)?;
        ensure!(end == (137, "Error".to_owned()), "{end:?}");
        crictl.remove_pod(&sandbox)
    });
}

fn idle(name: &str) -> ContainerSpec {
    ContainerSpec::sh(name, "mkfifo /tmp/never; read -r _ <>/tmp/never")
}

/// SIGKILL to a container's init, from the node.
fn kill(node: &Node, crictl: &Crictl<'_>, container: &str) -> Result<()> {
    let pid = crictl.inspect(container)?["info"]["pid"]
        .as_i64()
        .context("the status tells no pid")?;
    node.run("kill", &["-9", &pid.to_string()])?.ok().map(drop)
}

fn two_at_once_are_both_told(driver: Driver) {
    in_node(Node::builder().driver(driver), |node| {
        let crictl = node.crictl()?;
        let pod = PodSpec::new("hungry");
        crictl.ok(&["pull", "orlop.test/busybox:1"])?;
        node.run("mkdir", &["-p", "/run/go"])?.ok()?;
        let sandbox = crictl.run_pod(&pod)?;
        let bystander = crictl.create(&sandbox, &pod, &idle("bystander"))?;
        crictl.ok(&["start", &bystander])?;
        for round in 0..4 {
            // Both wait for the same moment.
            let script = format!("until test -e /go/{round}; do sleep 0.02; done; {EAT}");
            let mut both = Vec::new();
            for name in ["left", "right"] {
                let glutton = ContainerSpec::sh(&format!("{name}{round}"), &script)
                    .with(LIMIT, json!(24 << 20))
                    .with(
                        "/mounts",
                        json!([{ "container_path": "/go", "host_path": "/run/go", "readonly": true }]),
                    );
                both.push(crictl.create(&sandbox, &pod, &glutton)?);
            }
            crictl.ok(&["start", &both[0], &both[1]])?;
            node.write(&format!("/run/go/{round}"), "")?;
            for container in &both {
                let end = ended(&crictl, container)?;
                ensure!(end == out_of_memory(), "round {round}: {end:?}");
            }
        }
        kill(node, &crictl, &bystander)?;
        let end = ended(&crictl, &bystander)?;
        ensure!(end == (137, "Error".to_owned()), "{end:?}");
        crictl.remove_pod(&sandbox)
    });
}

fn pressure_is_told(driver: Driver) {
    in_node(Node::builder().driver(driver), |node| {
        let crictl = node.crictl()?;
        // Two that want a whole CPU each, and may have a tenth of one together.
        let busy = ContainerSpec::sh("busy", "while :; do :; done & while :; do :; done")
            .with("/linux/resources/cpu_quota", json!(10_000))
            .with("/linux/resources/cpu_period", json!(100_000));
        let (sandbox, container) = crictl.start_pod(&PodSpec::new("pressed"), &busy)?;
        let cri = Cri::connect(node)?;
        let waited = |psi: &Option<PsiStats>| {
            let some = psi.as_ref().and_then(|psi| psi.some.as_ref());
            some.context("there is no pressure").map(|some| some.total)
        };
        wait_until("pressure", 2 * PATIENCE, || {
            let request = ContainerStatsRequest {
                container_id: container.clone(),
            };
            let stats = cri.call(|mut c| async move { c.runtime.container_stats(request).await })?;
            let stats = stats.stats.context("there are no statistics")?;
            let memory = stats.memory.context("there is no memory")?;
            let io = stats.io.context("there is no I/O")?;
            waited(&memory.psi)?;
            waited(&io.psi)?;
            let cpu = waited(&stats.cpu.context("there is no CPU")?.psi)?;

            let request = PodSandboxStatsRequest {
                pod_sandbox_id: sandbox.clone(),
            };
            let stats = cri.call(|mut c| async move { c.runtime.pod_sandbox_stats(request).await })?;
            let stats = stats.stats.and_then(|stats| stats.linux);
            let stats = stats.context("the pod has no statistics")?;
            waited(&stats.memory.context("the pod has no memory")?.psi)?;
            waited(&stats.io.context("the pod has no I/O")?.psi)?;
            let pod = waited(&stats.cpu.context("the pod has no CPU")?.psi)?;
            Ok(cpu > 0 && pod > 0)
        })?;
        crictl.remove_pod(&sandbox)
    });
}

/// As the kubelet asks for it, unless `singleProcessOOMKill` is set.
fn a_group_dies_together_if_asked(driver: Driver) {
    in_node(Node::builder().driver(driver), |node| {
        let crictl = node.crictl()?;
        let pod = PodSpec::new("group");
        crictl.ok(&["pull", "orlop.test/busybox:1"])?;
        let sandbox = crictl.run_pod(&pod)?;
        // Its first process waits, and outlives a child that is killed.
        let script = format!(
            "until test -e /tmp/now; do sleep 0.05; done; sh -c '{EAT}'; echo child ended; \
             trap 'exit 0' TERM; mkfifo /tmp/never; read -r _ <>/tmp/never"
        );
        let container = |name: &str, group: &str| {
            ContainerSpec::sh(name, &script)
                .with(LIMIT, json!(24 << 20))
                .with("/linux/resources/unified", json!({ "memory.oom.group": group }))
        };
        let together = crictl.create(&sandbox, &pod, &container("together", "1"))?;
        let single = crictl.create(&sandbox, &pod, &container("single", "0"))?;
        crictl.ok(&["start", &together, &single])?;
        if driver == Driver::Systemd {
            // systemd writes its units' files anew, and would say 0 here.
            crictl.ok(&["update", "--cpu-share", "512", &together])?;
        }
        // Everything that was going to be written has been.
        std::thread::sleep(Duration::from_secs(1));
        for id in [&together, &single] {
            crictl.ok(&["exec", id, "touch", "/tmp/now"])?;
        }
        let end = ended(&crictl, &together)?;
        ensure!(end == out_of_memory(), "{end:?}");
        ensure!(!crictl.ok(&["logs", &together])?.contains("child ended"));
        crate::bed::until_logged(&crictl, &single, "child ended")?;
        until_state(&crictl, &single, "CONTAINER_RUNNING")?;
        crictl.remove_pod(&sandbox)
    });
}

/// As after a daemon that was killed, or a systemd that didn't answer, while the pod was removed.
fn a_slice_whose_directory_went_first_is_forgotten_too() {
    in_node(Node::builder().driver(Driver::Systemd), |node| {
        let crictl = node.crictl()?;
        // Without an init of its own, which would be in the slice.
        let pod = PodSpec::new("empty").with("/linux/security_context/namespace_options/pid", json!(1));
        let sandbox = crictl.run_pod(&pod)?;
        let parent = node.cgroup_parent();
        let prefix = parent.trim_start_matches('/').trim_end_matches(".slice");
        let slice = format!("{prefix}-{sandbox}.slice");
        let known = || {
            let listed = node.run(
                "systemctl",
                &["list-units", "--all", "--plain", "--no-legend", &slice],
            )?;
            listed.ok().map(|listed| !listed.text().is_empty())
        };
        ensure!(known()?, "systemd doesn't know {slice}");
        node.run("rmdir", &[&format!("/sys/fs/cgroup{parent}/{slice}")])?
            .ok()?;
        ensure!(known()?, "systemd has forgotten {slice} by itself");
        crictl.remove_pod(&sandbox)?;
        ensure!(!known()?, "systemd still has {slice}");
        Ok(())
    });
}
