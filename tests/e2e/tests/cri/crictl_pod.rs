//! A pod's life with crictl.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests_harness::{ContainerSpec, Node, PodSpec, run, wait_until};

use crate::bed::{PATIENCE, held, in_node, settled, sleeper, until_freed, until_logged, until_state};

#[test]
fn a_pod_lives_and_leaves_nothing() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let pod = PodSpec::new("web").with("/labels", json!({ "app": "web" }));
        let sandbox = crictl.run_pod(&pod)?;
        let pods = crictl.json(&["pods", "-o", "json", "--label", "app=web"])?;
        ensure!(pods["items"][0]["id"] == sandbox.as_str(), "pods lists {pods}");
        ensure!(pods["items"][0]["state"] == "SANDBOX_READY", "pods lists {pods}");
        let ip = crictl.pod_ip(&sandbox)?;
        ensure!(ip.starts_with("10.88."), "the pod has the address {ip}");

        let script = "echo out; echo err >&2; trap 'echo bye; exit 7' TERM; while :; do sleep 0.1; done";
        let container = crictl.create(&sandbox, &pod, &ContainerSpec::sh("main", script))?;
        ensure!(crictl.state(&container)? == "CONTAINER_CREATED");
        crictl.ok(&["start", &container])?;
        ensure!(crictl.state(&container)? == "CONTAINER_RUNNING");
        ensure!(crictl.ok(&["ps", "-q"])? == container);
        ensure!(crictl.ok(&["exec", &container, "hostname"])? == "web");
        ensure!(crictl.run(&["exec", &container, "sh", "-c", "exit 5"])?.code != 0);
        ensure!(crictl.ok(&["exec", "-s", &container, "echo", "at once"])? == "at once");
        until_logged(&crictl, &container, "out")?;
        let log = node.read("/var/log/pods/web/main.log")?;
        ensure!(
            log.contains(" stdout F out\n") && log.contains(" stderr F err\n"),
            "the log file holds {log}"
        );

        crictl.ok(&["stop", "--timeout", "10", &container])?;
        let status = crictl.inspect(&container)?;
        let status = &status["status"];
        ensure!(
            status["state"] == "CONTAINER_EXITED" && status["exitCode"] == 7,
            "after the stop: {status}"
        );
        ensure!(crictl.ok(&["logs", &container])?.ends_with("bye"));
        crictl.ok(&["rm", &container])?;
        ensure!(crictl.ok(&["ps", "-aq"])?.is_empty());
        crictl.ok(&["stopp", &sandbox])?;
        ensure!(crictl.json(&["inspectp", &sandbox])?["status"]["state"] == "SANDBOX_NOTREADY");
        crictl.ok(&["rmp", &sandbox])?;
        ensure!(crictl.ok(&["pods", "-q"])?.is_empty());
        node.assert_no_leaks(&before)
    });
}

#[test]
fn rmp_fa_removes_everything() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        for n in 0..3 {
            let pod = PodSpec::new(&format!("pod{n}"));
            let (sandbox, _) = crictl.start_pod(&pod, &sleeper("a"))?;
            crictl.create(&sandbox, &pod, &sleeper("b"))?;
        }
        ensure!(crictl.ok(&["ps", "-aq"])?.lines().count() == 6);
        crictl.ok(&["rmp", "-fa"])?;
        ensure!(crictl.ok(&["pods", "-q"])?.is_empty() && crictl.ok(&["ps", "-aq"])?.is_empty());
        node.assert_no_leaks(&before)
    });
}

#[test]
fn an_exited_container_keeps_its_log_and_status_but_no_cgroup_and_no_mount() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let pod = PodSpec::new("tidy");
        crictl.ok(&["pull", "orlop.test/busybox:1"])?;
        let sandbox = crictl.run_pod(&pod)?;
        let spec = ContainerSpec::sh("short", "echo said; exit 4");
        let container = crictl.create(&sandbox, &pod, &spec)?;
        let before = held(node, &container)?;
        ensure!(
            before.contains("/sys/fs/cgroup") && before.contains("overlay"),
            "{before}"
        );
        crictl.ok(&["start", &container])?;
        until_state(&crictl, &container, "CONTAINER_EXITED")?;
        until_freed(node, &container)?;
        ensure!(
            crictl.ok(&["logs", &container])?.contains("said"),
            "the log is gone"
        );
        let status = crictl.inspect(&container)?;
        ensure!(status["status"]["exitCode"] == 4, "{}", status["status"]);
        crictl.ok(&["rm", &container])?;
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn exit_codes_and_reasons_are_told() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let pod = PodSpec::new("ends");
        crictl.ok(&["pull", "orlop.test/busybox:1"])?;
        let sandbox = crictl.run_pod(&pod)?;
        let cases = [
            ("zero", "exit 0", 0, "Completed"),
            ("three", "exit 3", 3, "Error"),
            // A child's end, because no signal from inside ends the namespace's first process.
            ("killed", "sh -c 'kill -9 $$'", 137, "Error"),
        ];
        for (name, script, code, reason) in cases {
            let container = crictl.create(&sandbox, &pod, &ContainerSpec::sh(name, script))?;
            crictl.ok(&["start", &container])?;
            until_state(&crictl, &container, "CONTAINER_EXITED")?;
            let status = crictl.inspect(&container)?;
            ensure!(
                status["status"]["exitCode"] == code,
                "{name}: {}",
                status["status"]
            );
            ensure!(
                status["status"]["reason"] == reason,
                "{name}: {}",
                status["status"]
            );
        }
        // Out of memory, told by the kernel.
        let glutton = ContainerSpec::new("glutton", "orlop.test/test-host:1", &["/test-host", "eat", "200"])
            .with("/linux/resources/memory_limit_in_bytes", json!(32 << 20));
        crictl.ok(&["pull", "orlop.test/test-host:1"])?;
        let container = crictl.create(&sandbox, &pod, &glutton)?;
        crictl.ok(&["start", &container])?;
        until_state(&crictl, &container, "CONTAINER_EXITED")?;
        let status = crictl.inspect(&container)?;
        ensure!(
            status["status"]["reason"] == "OOMKilled" && status["status"]["exitCode"] == 137,
            "{}",
            status["status"]
        );
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn statistics_and_updates() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let pod = PodSpec::new("busy");
        let busy =
            ContainerSpec::sh("main", "while :; do :; done").with("/linux/resources/cpu_shares", json!(512));
        let (sandbox, container) = crictl.start_pod(&pod, &busy)?;
        let number = |value: &serde_json::Value| -> u64 {
            value["value"]
                .as_str()
                .and_then(|v| v.parse().ok())
                .or_else(|| value["value"].as_u64())
                .unwrap_or(0)
        };
        wait_until("CPU time", PATIENCE, || {
            let stats = crictl.json(&["stats", "-o", "json", "--id", &container])?;
            let stats = &stats["stats"][0];
            Ok(number(&stats["cpu"]["usageCoreNanoSeconds"]) > 0
                && number(&stats["memory"]["workingSetBytes"]) > 0)
        })?;
        let stats = crictl.json(&["statsp", "-o", "json", "--id", &sandbox])?;
        let stats = &stats["stats"][0];
        ensure!(
            stats["attributes"]["metadata"]["name"] == "busy",
            "statsp says {stats}"
        );
        ensure!(
            number(&stats["linux"]["cpu"]["usageCoreNanoSeconds"]) > 0,
            "statsp says {stats}"
        );
        ensure!(
            stats["linux"]["network"]["defaultInterface"]["name"] == "eth0",
            "statsp says {stats}"
        );

        crictl.ok(&["update", "--memory", "67108864", &container])?;
        let limits = node.run("sh", &["-c", &format!(
            "cat /sys/fs/cgroup/memory{0}/*/{container}/memory.limit_in_bytes /sys/fs/cgroup{0}/*/{container}/memory.max 2>/dev/null",
            node.cgroup_parent())])?;
        let found = node.run("sh", &["-c", &format!(
            "find /sys/fs/cgroup -path '*{}*{container}*' -name 'memory.limit_in_bytes' -o -path '*{0}*{container}*' -name memory.max",
            node.cgroup_parent())])?;
        let limit = found
            .text()
            .lines()
            .next()
            .context("the container has no memory cgroup")?
            .to_owned();
        ensure!(node.read(&limit)?.trim() == "67108864", "{limits} {found}");
        let status = crictl.inspect(&container)?;
        let told = &status["status"]["resources"]["linux"]["memoryLimitInBytes"];
        ensure!(
            told == "67108864" || told == 67_108_864,
            "the status says {}",
            status["status"]["resources"]
        );
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn info_and_version_are_told() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        ensure!(crictl.ok(&["version"])?.contains("RuntimeApiVersion:  v1"));
        let info = crictl.json(&["info"])?;
        for condition in info["status"]["conditions"].as_array().context("no conditions")? {
            ensure!(condition["status"] == true, "info says {condition}");
        }
        Ok(())
    });
}

#[test]
fn events_are_told_as_they_happen() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        crictl.ok(&["pull", "orlop.test/busybox:1"])?;
        let file = node.tmp().join("events");
        let mut command = crictl.command(&["events", "-o", "json"]);
        command.stdin(Stdio::null()).stdout(std::fs::File::create(&file)?);
        let mut watcher = node.spawn(&mut command)?;
        let told = || -> Result<String> { Ok(std::fs::read_to_string(&file)?) };
        // Whether it listens can only be seen by what it hears.
        wait_until("crictl to listen", PATIENCE, || {
            let sandbox = crictl.run_pod(&PodSpec::new("heard"))?;
            crictl.remove_pod(&sandbox)?;
            Ok(told()?.contains("heard"))
        })?;
        let pod = PodSpec::new("told");
        let (sandbox, container) = crictl.start_pod(&pod, &ContainerSpec::sh("main", "exit 4"))?;
        until_state(&crictl, &container, "CONTAINER_EXITED")?;
        crictl.remove_pod(&sandbox)?;
        let of_container = || -> Result<String> {
            let told = told()?;
            let at = told.find(&container).unwrap_or(told.len());
            // Each event begins with the ID.
            Ok(told[at..].to_owned())
        };
        let heard = wait_until("the last event", PATIENCE, || {
            Ok(of_container()?.contains("CONTAINER_DELETED"))
        });
        watcher.kill()?;
        watcher.wait()?;
        heard.with_context(|| format!("it heard {:?}", told()))?;
        let told = of_container()?;
        let mut from = 0;
        for kind in [
            "CONTAINER_CREATED",
            "CONTAINER_STARTED",
            "CONTAINER_STOPPED",
            "CONTAINER_DELETED",
        ] {
            let at = told[from..]
                .find(kind)
                .with_context(|| format!("no {kind} after the others in {told}"))?;
            from += at;
        }
        ensure!(
            told.contains(&container),
            "the events don't name the container: {told}"
        );
        Ok(())
    });
}

#[test]
fn logs_are_followed_until_the_end() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let script = "for n in 1 2 3 4 5 6 7 8; do echo line $n; sleep 0.2; done";
        let (sandbox, container) =
            crictl.start_pod(&PodSpec::new("tale"), &ContainerSpec::sh("main", script))?;
        let follower = crictl.spawn(&["logs", "-f", &container])?;
        let told = run::finish("crictl logs -f", follower, PATIENCE)?.ok()?;
        ensure!(
            told.stdout.lines().count() == 8 && told.text().ends_with("line 8"),
            "{told}"
        );

        // Nothing is lost when lines come faster than anybody reads.
        let lines = ContainerSpec::new(
            "many",
            "orlop.test/test-host:1",
            &["/test-host", "lines", "50000", "80"],
        );
        crictl.ok(&["pull", "orlop.test/test-host:1"])?;
        let container = crictl.create(&sandbox, &PodSpec::new("tale"), &lines)?;
        crictl.ok(&["start", &container])?;
        until_state(&crictl, &container, "CONTAINER_EXITED")?;
        let log = node.read("/var/log/pods/tale/many.log")?;
        ensure!(
            log.lines().count() == 50_000,
            "{} lines arrived",
            log.lines().count()
        );
        for (n, line) in log.lines().enumerate() {
            ensure!(line.contains(&format!(" stdout F {n}.")), "line {n} is {line}");
        }
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn a_log_is_reopened_after_rotation() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let script = "n=0; while :; do echo line $n; n=$((n+1)); sleep 0.02; done";
        let (sandbox, container) =
            crictl.start_pod(&PodSpec::new("turns"), &ContainerSpec::sh("main", script))?;
        until_logged(&crictl, &container, "line 5")?;
        let log = "/var/log/pods/turns/main.log";
        node.run("mv", &[log, &format!("{log}.1")])?.ok()?;
        // crictl has no command of its own for it in every release; `logs -r` asks for it.
        let reopened = crictl.run(&["logs", "-r", &container])?;
        ensure!(reopened.code == 0, "{reopened}");
        wait_until("the new file", PATIENCE, || {
            Ok(node.read(log).is_ok_and(|text| text.lines().count() > 3))
        })?;
        crictl.ok(&["stop", "--timeout", "1", &container])?;
        let all = node.read(&format!("{log}.1"))? + &node.read(log)?;
        for (n, line) in all.lines().enumerate() {
            ensure!(line.ends_with(&format!(" F line {n}")), "line {n} is {line}");
        }
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn namespaces_are_shared_as_asked() -> Result<()> {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        // One PID namespace for the pod: its containers see each other.
        let shared = |value: u32| json!({ "network": 0, "pid": value, "ipc": 0 });
        let pod = PodSpec::new("together").with("/linux/security_context/namespace_options", shared(0));
        let with = |name: &str, value| {
            sleeper(name).with("/linux/security_context/namespace_options", shared(value))
        };
        let (sandbox, a) = crictl.start_pod(&pod, &with("a", 0))?;
        let b = crictl.create(&sandbox, &pod, &with("b", 0))?;
        crictl.ok(&["start", &b])?;
        let count = crictl.ok(&["exec", &a, "sh", "-c", "pgrep -f 'trap' | wc -l"])?;
        ensure!(count.parse::<u32>()? >= 2, "{count} containers are seen");
        crictl.remove_pod(&sandbox)?;

        // One each: every container's own process is number 1.
        let pod = PodSpec::new("apart").with("/linux/security_context/namespace_options", shared(1));
        let (sandbox, a) = crictl.start_pod(&pod, &with("a", 1))?;
        ensure!(crictl.ok(&["exec", &a, "cat", "/proc/1/comm"])? == "sh");
        crictl.remove_pod(&sandbox)?;

        // The node's network.
        let host = json!({ "network": 2, "pid": 1, "ipc": 0 });
        let pod = PodSpec::new("host").with("/linux/security_context/namespace_options", host.clone());
        let container = sleeper("a").with("/linux/security_context/namespace_options", host);
        let (sandbox, a) = crictl.start_pod(&pod, &container)?;
        let inside = crictl.ok(&["exec", &a, "readlink", "/proc/self/ns/net"])?;
        let outside = node.run("readlink", &["/proc/self/ns/net"])?;
        ensure!(inside == outside.text(), "{inside} isn't {outside}");
        crictl.remove_pod(&sandbox)
    });
    Ok(())
}

#[test]
fn stdin_of_a_container_is_attached() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let reader = ContainerSpec::sh("main", "read word; echo got $word; sleep 1000")
            .with("/stdin", json!(true))
            .with("/stdin_once", json!(true));
        let (sandbox, container) = crictl.start_pod(&PodSpec::new("asks"), &reader)?;
        let mut command = crictl.command(&["attach", "-i", &container]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut client = node.spawn(&mut command)?;
        std::io::Write::write_all(
            client.stdin.as_mut().context("the client has a stdin")?,
            b"hello\n",
        )?;
        until_logged(&crictl, &container, "got hello")?;
        client.kill()?;
        let told = run::finish("crictl attach", client, PATIENCE)?;
        ensure!(told.stdout.contains("got hello"), "{told}");
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn a_pod_has_users_of_its_own() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let mapping = json!([{ "container_id": 0, "host_id": 100_000, "length": 65_536 }]);
        let users = json!({ "mode": 0, "uids": mapping, "gids": mapping });
        for (name, pid) in [("shared", 0), ("own", 1)] {
            let options = json!({ "network": 0, "pid": pid, "ipc": 0, "userns_options": users });
            let pointer = "/linux/security_context/namespace_options";
            let pod = PodSpec::new(name).with(pointer, options.clone());
            let container = sleeper("main").with(pointer, options);
            let (sandbox, id) = crictl.start_pod(&pod, &container)?;
            let map = crictl.ok(&["exec", &id, "cat", "/proc/self/uid_map"])?;
            ensure!(
                map.split_whitespace().collect::<Vec<_>>() == ["0", "100000", "65536"],
                "the map is {map}"
            );
            // The pid is the machine's, not the one inside.
            let told = crictl.inspect(&id)?["info"]["pid"]
                .as_u64()
                .context("no pid is told")?;
            let status = node.read(&format!("/proc/{told}/status"))?;
            ensure!(
                status.contains("Uid:\t100000\t100000"),
                "process {told} is another: {status}"
            );
            ensure!(
                crictl.ok(&["exec", "-s", &id, "stat", "-c", "%u", "/bin/sh"])? == "0",
                "files aren't mapped"
            );
            crictl.ok(&["stop", "--timeout", "5", &id])?;
            ensure!(crictl.inspect(&id)?["status"]["exitCode"] == 0);
            crictl.remove_pod(&sandbox)?;
        }
        // Nobody else was hit by a pid that means something else outside.
        crictl.ok(&["pull", "orlop.test/demo:latest"])?;
        node.assert_no_leaks(&before)
    });
}
