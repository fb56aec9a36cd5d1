//! A pod's life: it starts in order, is probed, restarted, ended and replaced.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::bed::{IMAGE, condition, container, container_id, is_ready, manifest, sh, sleeper, with_kubelet};

#[test]
fn a_manifest_becomes_a_ready_pod_and_its_removal_leaves_nothing() {
    with_kubelet(|bed| {
        let mount = json!([{ "name": "data", "mountPath": "/data" }]);
        let mut first = sh("prepare", "echo made > /data/first");
        first["volumeMounts"] = mount.clone();
        let mut side = sh(
            "side",
            "trap 'exit 0' TERM; echo up > /data/side; mkfifo /tmp/n; read -r _ <>/tmp/n",
        );
        side["restartPolicy"] = json!("Always");
        side["volumeMounts"] = mount.clone();
        side["startupProbe"] =
            json!({ "exec": { "command": ["test", "-e", "/data/side"] }, "periodSeconds": 1 });
        let web = json!({
            "name": "web", "image": IMAGE, "volumeMounts": mount,
            "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 },
            "livenessProbe": { "tcpSocket": { "port": 8080 } },
            "resources": { "limits": { "memory": "64Mi", "cpu": "500m" } },
            "env": [
                { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                { "name": "MEMORY", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
                { "name": "BOTH", "value": "$(IP)/$(MEMORY)" },
            ],
        });
        let mut pod = manifest("web", &[web]);
        pod["spec"]["initContainers"] = json!([first, side]);
        pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
        pod["spec"]["hostAliases"] = json!([{ "ip": "10.9.8.7", "hostnames": ["elsewhere"] }]);
        bed.apply("web.json", &pod)?;
        let pod = bed.until_ready("web")?;
        ensure!(
            pod["status"]["phase"] == "Running" && pod["status"]["qosClass"] == "Burstable",
            "{pod:#}"
        );
        ensure!(
            container(&pod, "prepare")["state"]["terminated"]["reason"] == "Completed",
            "{pod:#}"
        );
        ensure!(container(&pod, "side")["started"] == true, "{pod:#}");
        ensure!(bed.exec(&pod, "web", &["cat", "/data/first", "/data/side"])? == "made\nup");
        let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
        let both = bed.exec(&pod, "web", &["sh", "-c", "echo $BOTH"])?;
        ensure!(both.trim() == format!("{ip}/64"), "{both}");
        let hosts = bed.exec(&pod, "web", &["cat", "/etc/hosts"])?;
        ensure!(
            hosts.contains("10.9.8.7\telsewhere") && hosts.contains(ip),
            "{hosts}"
        );
        Ok(())
    });
}

#[test]
fn what_crashes_backs_off_and_says_its_last_words() {
    with_kubelet(|bed| {
        let script = "echo in the log; echo last words > /dev/termination-log; exit 3";
        bed.apply("crash.json", &manifest("crash", &[sh("main", script)]))?;
        let pod = bed.until("crash", "backing off", |pod| {
            container(pod, "main")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })?;
        let status = container(&pod, "main");
        let last = &status["lastState"]["terminated"];
        ensure!(
            last["exitCode"] == 3 && last["reason"] == "Error" && last["message"] == "last words\n",
            "{pod:#}"
        );
        let said = status["state"]["waiting"]["message"].as_str().unwrap_or_default();
        ensure!(
            said.starts_with("back-off 10s restarting failed container=main pod=crash-"),
            "{said}"
        );
        ensure!(
            status["restartCount"] == 1 && status["ready"] == false,
            "{status:#}"
        );
        ensure!(bed.log_of(&pod, "main", 1)?.contains("in the log"));
        Ok(())
    });
}

#[test]
fn pods_that_run_to_their_end_succeed_or_fail() {
    with_kubelet(|bed| {
        let mut good = manifest("good", &[sh("main", "exit 0")]);
        good["spec"]["restartPolicy"] = json!("Never");
        let mut bad = manifest("bad", &[sh("main", "exit 7")]);
        bad["spec"]["restartPolicy"] = json!("Never");
        let mut late = manifest("late", &[sleeper("main")]);
        late["spec"]["activeDeadlineSeconds"] = json!(1);
        bed.apply("good.json", &good)?;
        bed.apply("bad.json", &bad)?;
        bed.apply("late.json", &late)?;
        let phase = |phase: &'static str| move |pod: &Value| pod["status"]["phase"] == phase;
        let good = bed.until("good", "done", phase("Succeeded"))?;
        ensure!(
            container(&good, "main")["state"]["terminated"]["reason"] == "Completed",
            "{good:#}"
        );
        let bad = bed.until("bad", "failed", phase("Failed"))?;
        ensure!(
            container(&bad, "main")["state"]["terminated"]["exitCode"] == 7,
            "{bad:#}"
        );
        let late = bed.until("late", "failed", phase("Failed"))?;
        ensure!(late["status"]["reason"] == "DeadlineExceeded", "{late:#}");
        Ok(())
    });
}

#[test]
fn a_failing_liveness_probe_restarts_and_a_failing_readiness_probe_only_tells() {
    with_kubelet(|bed| {
        let mut sick = sleeper("sick");
        sick["livenessProbe"] =
            json!({ "exec": { "command": ["false"] }, "periodSeconds": 1, "failureThreshold": 1 });
        let mut shy = sleeper("shy");
        shy["readinessProbe"] =
            json!({ "exec": { "command": ["test", "-e", "/tmp/open"] }, "periodSeconds": 1 });
        bed.apply("probes.json", &manifest("probes", &[sick, shy]))?;
        let restarted = |pod: &Value| container(pod, "sick")["restartCount"].as_u64() > Some(0);
        let pod = bed.until("probes", "restarted", restarted)?;
        ensure!(container(&pod, "shy")["restartCount"] == 0, "{pod:#}");
        ensure!(
            container(&pod, "shy")["ready"] == false && !is_ready(&pod),
            "{pod:#}"
        );
        bed.exec(&pod, "shy", &["touch", "/tmp/open"])?;
        let pod = bed.until("probes", "half ready", |pod| {
            container(pod, "shy")["ready"] == true
        })?;
        ensure!(container(&pod, "shy")["restartCount"] == 0, "{pod:#}");
        Ok(())
    });
}

#[test]
fn a_changed_manifest_is_another_pod_that_takes_the_first_ones_place() {
    with_kubelet(|bed| {
        // The port of the host is the old pod's until it is gone.
        let with_port = |name: &str| {
            let mut container = sleeper(name);
            container["ports"] = json!([{ "containerPort": 8080, "hostPort": 18080 }]);
            container
        };
        bed.apply("pod.json", &manifest("pod", &[with_port("main")]))?;
        let first = bed.until_ready("pod")?;
        bed.apply("pod.json", &manifest("pod", &[with_port("other")]))?;
        let second = bed.until("pod", "replaced", |pod| {
            is_ready(pod) && !container(pod, "other").is_null()
        })?;
        ensure!(first["metadata"]["uid"] != second["metadata"]["uid"]);
        ensure!(bed.pods()?.len() == 1);
        Ok(())
    });
}

#[test]
fn sidecars_end_after_the_others_and_hooks_run_before_signals() {
    with_kubelet(|bed| {
        bed.node.run("mkdir", &["-p", "/run/diary"])?.ok()?;
        let mounts = json!([{ "name": "diary", "mountPath": "/diary" }]);
        let mut side = sh(
            "side",
            "trap 'echo side >> /diary/ends; exit 0' TERM; mkfifo /tmp/n; read -r _ <>/tmp/n",
        );
        side["restartPolicy"] = json!("Always");
        side["volumeMounts"] = mounts.clone();
        let mut main = sh(
            "main",
            "trap 'echo main >> /diary/ends; exit 0' TERM; mkfifo /tmp/n; read -r _ <>/tmp/n",
        );
        main["volumeMounts"] = mounts;
        main["lifecycle"] = json!({
            "postStart": { "exec": { "command": ["sh", "-c", "echo started > /diary/starts"] } },
            "preStop": { "exec": { "command": ["sh", "-c", "echo hook >> /diary/ends"] } },
        });
        let mut pod = manifest("order", &[main]);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
        pod["spec"]["initContainers"] = json!([side]);
        pod["spec"]["volumes"] =
            json!([{ "name": "diary", "hostPath": { "path": "/run/diary", "type": "Directory" } }]);
        bed.apply("order.json", &pod)?;
        bed.until_ready("order")?;
        ensure!(bed.node.read("/run/diary/starts")? == "started\n");
        bed.delete("order.json")?;
        bed.until("order", "gone", Value::is_null)?;
        let ends = bed.node.read("/run/diary/ends")?;
        ensure!(ends == "hook\nmain\nside\n", "{ends}");
        Ok(())
    });
}

#[test]
fn what_ends_a_sandbox_makes_the_kubelet_make_another() {
    with_kubelet(|bed| {
        bed.apply("pod.json", &manifest("pod", &[sleeper("main")]))?;
        let pod = bed.until_ready("pod")?;
        let first = container_id(&pod, "main")?;
        let sandbox = bed.node.crictl()?.ok(&["pods", "-q"])?;
        bed.node.crictl()?.ok(&["stopp", sandbox.trim()])?;
        let again = bed.until("pod", "in another sandbox", |pod| {
            is_ready(pod) && container_id(pod, "main").is_ok_and(|id| id != first)
        })?;
        ensure!(container(&again, "main")["restartCount"] == 1, "{again:#}");
        ensure!(
            condition(&again, "PodReadyToStartContainers") == Some("True"),
            "{again:#}"
        );
        Ok(())
    });
}
