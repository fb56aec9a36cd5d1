//! Kubelet and CRI daemon die at any time: nothing that is healthy is restarted, and all converges.

use anyhow::ensure;
use serde_json::Value;

use crate::bed::{container, container_id, is_ready, manifest, sh, sleeper, with_kubelet};

#[test]
fn a_killed_kubelet_comes_back_to_pods_that_never_noticed() {
    with_kubelet(|bed| {
        for name in ["a", "b", "c"] {
            let mut main = sleeper("main");
            main["volumeMounts"] = serde_json::json!([{ "name": "data", "mountPath": "/data" }]);
            let mut pod = manifest(name, &[main]);
            pod["spec"]["volumes"] = serde_json::json!([{ "name": "data", "emptyDir": {} }]);
            bed.apply(&format!("{name}.json"), &pod)?;
        }
        let mut before = Vec::new();
        for name in ["a", "b", "c"] {
            let pod = bed.until_ready(name)?;
            bed.exec(&pod, "main", &["touch", "/data/kept"])?;
            before.push(container_id(&pod, "main")?);
        }
        for _ in 0..3 {
            bed.kill_kubelet()?;
            bed.start_kubelet()?;
        }
        bed.kill_kubelet()?;
        // What changes while nobody looks is found afterwards.
        bed.delete("c.json")?;
        bed.apply("d.json", &manifest("d", &[sleeper("main")]))?;
        bed.start_kubelet()?;
        bed.until_ready("d")?;
        for (name, id) in ["a", "b"].iter().zip(&before) {
            let pod = bed.until_ready(name)?;
            ensure!(container_id(&pod, "main")? == *id, "{name} was restarted");
            ensure!(container(&pod, "main")["restartCount"] == 0, "{pod:#}");
            ensure!(
                bed.exec(&pod, "main", &["ls", "/data"])? == "kept",
                "{name} lost its data"
            );
        }
        let crictl = bed.node.crictl()?;
        tests_harness::wait_until("the pod without a manifest to go", crate::bed::PATIENCE, || {
            Ok(!crictl.ok(&["ps", "-aq", "--no-trunc"])?.contains(&before[2]))
        })?;
        Ok(())
    });
}

#[test]
fn a_kubelet_killed_again_and_again_while_pods_start_gets_them_all_up() {
    with_kubelet(|bed| {
        for number in 0..6 {
            let name = format!("pod-{number}");
            bed.apply(
                &format!("{name}.json"),
                &manifest(&name, &[sleeper("one"), sleeper("two")]),
            )?;
            bed.kill_kubelet()?;
            bed.start_kubelet()?;
        }
        for number in 0..6 {
            let pod = bed.until_ready(&format!("pod-{number}"))?;
            let running = bed.node.crictl()?.ok(&[
                "ps",
                "-q",
                "--label",
                &format!(
                    "io.kubernetes.pod.uid={}",
                    pod["metadata"]["uid"].as_str().unwrap_or_default()
                ),
            ])?;
            ensure!(running.lines().count() == 2, "two containers run: {running}");
        }
        Ok(())
    });
}

#[test]
fn a_killed_cri_daemon_costs_no_container() {
    with_kubelet(|bed| {
        bed.apply("a.json", &manifest("a", &[sleeper("main")]))?;
        let before = container_id(&bed.until_ready("a")?, "main")?;
        bed.node.kill_daemon()?;
        bed.apply("b.json", &manifest("b", &[sleeper("main")]))?;
        bed.node.start_daemon()?;
        bed.until_ready("b")?;
        let after = bed.until_ready("a")?;
        ensure!(container_id(&after, "main")? == before, "a was restarted");
        ensure!(container(&after, "main")["restartCount"] == 0, "{after:#}");
        Ok(())
    });
}

#[test]
fn what_ended_while_the_kubelet_was_away_is_told_as_it_was() {
    with_kubelet(|bed| {
        let mut pod = manifest(
            "ends",
            &[sh(
                "main",
                "trap 'exit 5' TERM; mkfifo /tmp/n; read -r _ <>/tmp/n",
            )],
        );
        pod["spec"]["restartPolicy"] = serde_json::json!("Never");
        bed.apply("ends.json", &pod)?;
        let running = bed.until("ends", "ready", is_ready)?;
        bed.kill_kubelet()?;
        bed.node
            .crictl()?
            .ok(&["stop", "--timeout", "20", &container_id(&running, "main")?])?;
        bed.start_kubelet()?;
        let ended = bed.until("ends", "failed", |pod: &Value| pod["status"]["phase"] == "Failed")?;
        ensure!(
            container(&ended, "main")["state"]["terminated"]["exitCode"] == 5,
            "{ended:#}"
        );
        Ok(())
    });
}

#[test]
fn a_manifest_changed_while_the_kubelet_was_away_takes_the_old_pods_place() {
    with_kubelet(|bed| {
        bed.apply("pod.json", &manifest("pod", &[sleeper("main")]))?;
        let old = container_id(&bed.until_ready("pod")?, "main")?;
        bed.kill_kubelet()?;
        bed.apply("pod.json", &manifest("pod", &[sleeper("other")]))?;
        bed.start_kubelet()?;
        bed.until("pod", "replaced", |pod| {
            is_ready(pod) && !container(pod, "other").is_null()
        })?;
        let left = bed.node.crictl()?.ok(&["ps", "-q", "--no-trunc"])?;
        ensure!(!left.contains(&old), "the old pod goes on beside the new one");
        Ok(())
    });
}
