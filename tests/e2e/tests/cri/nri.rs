//! NRI with real plugins: `tests/nri-plugin`, made of the Go module's own stub, that does what a file tells it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests_harness::{Node, PodSpec, tools, wait_until};

use crate::bed::{PATIENCE, in_node, settled, sleeper, until_state};

const DIR: &str = "/run/nri-test";

fn program() -> Result<PathBuf> {
    let script = tools::workspace()?.join("hack/nri-plugin");
    let output = Command::new(&script)
        .output()
        .context("failed to run hack/nri-plugin")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "hack/nri-plugin failed: {error}");
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// A plugin that runs beside the daemon.
struct Plugin {
    child: Child,
    title: String,
}

impl Plugin {
    /// Starts it with a wish and waits until it was told of what there is.
    fn start(node: &Node, index: &str, name: &str, wish: &Value) -> Result<Self> {
        let title = format!("{index}-{name}");
        wants(node, &title, wish)?;
        let mut command = Command::new(program()?);
        command
            .args(["-idx", index, "-name", name, "-dir", DIR, "-again"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = node.spawn(&mut command)?;
        let plugin = Self { child, title };
        plugin.hears(node, "Synchronize")?;
        Ok(plugin)
    }

    fn heard(&self, node: &Node) -> Vec<String> {
        heard(node, &self.title)
    }

    fn hears(&self, node: &Node, what: &str) -> Result<()> {
        hears(node, &self.title, what)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // Fine when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wants(node: &Node, title: &str, wish: &Value) -> Result<()> {
    node.write(&format!("{DIR}/{title}.json"), &wish.to_string())
}

fn heard(node: &Node, title: &str) -> Vec<String> {
    let text = node.read(&format!("{DIR}/{title}.log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn hears(node: &Node, title: &str, what: &str) -> Result<()> {
    wait_until(&format!("{title} to hear {what}"), PATIENCE, || {
        Ok(heard(node, title).iter().any(|line| line.starts_with(what)))
    })
    .map(drop)
    .with_context(|| format!("it heard {:?}", heard(node, title)))
}

#[test]
fn plugins_hear_of_a_whole_life_in_order() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let plugin = Plugin::start(node, "10", "life", &json!({}))?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("pod"), &sleeper("main"))?;
        let ip = crictl.pod_ip(&sandbox)?;
        crictl.ok(&["update", "--cpu-share", "512", &id])?;
        crictl.ok(&["stop", "-t", "5", &id])?;
        crictl.ok(&["rm", &id])?;
        crictl.remove_pod(&sandbox)?;
        drop(crictl);
        let heard = plugin.heard(node);
        let life: Vec<&str> = heard
            .iter()
            .skip_while(|l| !l.starts_with("Run"))
            .map(String::as_str)
            .collect();
        let run = format!("RunPodSandbox pod {ip}");
        let wanted = [
            run.as_str(),
            "CreateContainer main",
            "ValidateContainerAdjustment main",
            "PostCreateContainer main",
            "StartContainer main",
            "PostStartContainer main",
            "UpdateContainer main shares=512",
            "PostUpdateContainer main",
            "StopContainer main code=0",
            "RemoveContainer main",
            "StopPodSandbox pod",
            "RemovePodSandbox pod",
        ];
        // Its other address may follow.
        let begins = life.first().is_some_and(|first| first.starts_with(wanted[0]));
        ensure!(begins && life[1..] == wanted[1..], "{life:#?}");
        drop(plugin);
        node.assert_no_leaks(&before)
    });
}

#[test]
fn adjustments_are_what_the_container_sees() {
    in_node(Node::builder(), |node| {
        node.write("/run/from-the-host/file", "of the host")?;
        let hook = "echo $0 >> /run/nri-test/hooks; cat > /dev/null";
        let adjust = json!({ "adjust": {
            "env": [{ "key": "FROM", "value": "first" }],
            "annotations": { "first": "1" },
            "mounts": [{ "destination": "/extra", "type": "bind", "source": "/run/from-the-host", "options": ["rbind", "ro"] }],
            "rlimits": [{ "type": "RLIMIT_CORE", "hard": 77, "soft": 66 }],
            "hooks": { "create_runtime": [{ "path": "/bin/sh", "args": ["sh", "-c", hook, "created"] }],
                "poststop": [{ "path": "/bin/sh", "args": ["sh", "-c", hook, "gone"] }] },
            "linux": {
                "oom_score_adj": { "value": 555 },
                "devices": [{ "path": "/dev/nri-zero", "type": "c", "major": 1, "minor": 5, "file_mode": { "value": 438 } }],
                "resources": { "cpu": { "shares": { "value": 333 } }, "pids": { "limit": 77 } },
            },
        } });
        let first = Plugin::start(node, "10", "first", &adjust)?;
        let second =
            json!({ "adjust": { "env": [{ "key": "-FROM" }, { "key": "FROM", "value": "second" }] } });
        let second = Plugin::start(node, "20", "second", &second)?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("pod"), &sleeper("main"))?;
        let sees = |script: &str| crictl.ok(&["exec", &id, "sh", "-c", script]);
        ensure!(sees("echo $FROM")? == "second");
        ensure!(sees("cat /extra/file")? == "of the host");
        ensure!(crictl.run(&["exec", &id, "touch", "/extra/new"])?.code != 0);
        // The container's own process, which in the pod's PID namespace isn't the first.
        let pid = crictl.inspect(&id)?["info"]["pid"].to_string();
        let of_process = |file: &str| -> Result<String> {
            Ok(node.run("cat", &[&format!("/proc/{pid}/{file}")])?.ok()?.stdout)
        };
        ensure!(
            of_process("environ")?
                .split('\0')
                .any(|entry| entry == "FROM=second")
        );
        ensure!(of_process("oom_score_adj")?.trim() == "555");
        let limits = of_process("limits")?;
        let limits = limits
            .lines()
            .find(|line| line.contains("core"))
            .unwrap_or_default();
        ensure!(limits.contains("66") && limits.contains("77"), "{limits}");
        ensure!(sees("head -c 3 /dev/nri-zero | wc -c")? == "3");
        let status = crictl.inspect(&id)?;
        let resources = &status["status"]["resources"]["linux"];
        ensure!(resources["cpuShares"].to_string().contains("333"), "{resources}");
        ensure!(node.read(&format!("{DIR}/hooks"))? == "created\n");
        crictl.remove_pod(&sandbox)?;
        ensure!(node.read(&format!("{DIR}/hooks"))? == "created\ngone\n");
        drop((crictl, first, second));
        Ok(())
    });
}

#[test]
fn who_refuses_fails_the_call_and_leaves_nothing() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let plugin = Plugin::start(
            node,
            "10",
            "no",
            &json!({ "fail": { "RunPodSandbox": "no pods today" } }),
        )?;
        let crictl = node.crictl()?;
        let pod = PodSpec::new("pod");
        crictl.try_run_pod(&pod, &[])?.refused("no pods today")?;
        wants(
            node,
            &plugin.title,
            &json!({ "fail": { "CreateContainer": "no containers today" } }),
        )?;
        let sandbox = crictl.run_pod(&pod)?;
        let refused = crictl.try_create(&sandbox, &pod, &sleeper("main"))?;
        refused.refused("no containers today")?;
        ensure!(crictl.ok(&["ps", "-aq"])?.is_empty());
        wants(
            node,
            &plugin.title,
            &json!({ "fail": { "StartContainer": "no starts today" } }),
        )?;
        let id = crictl.create(&sandbox, &pod, &sleeper("main"))?;
        crictl.run(&["start", &id])?.refused("no starts today")?;
        until_state(&crictl, &id, "CONTAINER_EXITED")?;
        crictl.ok(&["rm", &id])?;
        wants(node, &plugin.title, &json!({ "reject": "never like that" }))?;
        let refused = crictl.try_create(&sandbox, &pod, &sleeper("main"))?;
        refused.refused("never like that")?;
        // What ends is not kept by a refusal.
        let fail = json!({ "StopContainer": "no", "RemoveContainer": "no", "StopPodSandbox": "no", "RemovePodSandbox": "no" });
        wants(node, &plugin.title, &json!({ "fail": fail }))?;
        let id = crictl.create(&sandbox, &pod, &sleeper("main"))?;
        crictl.ok(&["start", &id])?;
        crictl.remove_pod(&sandbox)?;
        // Two that want the same thing.
        let same = json!({ "adjust": { "env": [{ "key": "X", "value": "1" }] } });
        wants(node, &plugin.title, &same)?;
        let other = Plugin::start(node, "20", "too", &same)?;
        let sandbox = crictl.run_pod(&pod)?;
        let refused = crictl.try_create(&sandbox, &pod, &sleeper("main"))?;
        refused.refused("`20-too` and `10-no` both tried to set Env `X`")?;
        let cdi = json!({ "adjust": { "CDI_devices": [{ "name": "vendor/class=one" }] } });
        wants(node, &plugin.title, &cdi)?;
        let refused = crictl.try_create(&sandbox, &pod, &sleeper("main"))?;
        refused.refused("CDI device `vendor/class=one`")?;
        crictl.remove_pod(&sandbox)?;
        drop((crictl, plugin, other));
        node.assert_no_leaks(&before)
    });
}

#[test]
fn who_hangs_or_crashes_is_left_behind() {
    in_node(Node::builder(), |node| {
        let hangs = Plugin::start(node, "10", "hangs", &json!({ "hang": ["CreateContainer"] }))?;
        let crashes = Plugin::start(node, "20", "crashes", &json!({ "crash": ["CreateContainer"] }))?;
        let stays = Plugin::start(node, "30", "stays", &json!({}))?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("pod"), &sleeper("main"))?;
        until_state(&crictl, &id, "CONTAINER_RUNNING")?;
        for gone in ["10-hangs", "20-crashes"] {
            let said = |line: &str| line.contains("disconnected") && line.contains(gone);
            let log = node.log_tail(200);
            ensure!(log.lines().any(said), "{gone}: {log}");
        }
        stays.hears(node, "PostStartContainer main")?;
        crictl.remove_pod(&sandbox)?;
        drop((crictl, hangs, crashes, stays));
        Ok(())
    });
}

#[test]
fn plugins_change_limits_of_others_asked_or_not() {
    in_node(Node::builder(), |node| {
        let shares = |value: u64| json!({ "cpu": { "shares": { "value": value } } });
        let plugin = Plugin::start(node, "10", "limits", &json!({}))?;
        let crictl = node.crictl()?;
        let pod = PodSpec::new("pod");
        let (sandbox, old) = crictl.start_pod(&pod, &sleeper("old"))?;
        let has = |id: &str, value: u64| -> Result<()> {
            wait_until(&format!("{value} shares"), PATIENCE, || {
                let status = crictl.inspect(id)?;
                let shares = &status["status"]["resources"]["linux"]["cpuShares"];
                Ok(shares.to_string().trim_matches('"') == value.to_string())
            })
            .map(drop)
        };
        wants(node, &plugin.title, &json!({ "update": { "old": shares(300) } }))?;
        let new = crictl.create(&sandbox, &pod, &sleeper("new"))?;
        has(&old, 300)?;
        wants(
            node,
            &plugin.title,
            &json!({ "push": { "StartContainer": { "old": shares(400), "unknown": shares(1) } } }),
        )?;
        crictl.ok(&["start", &new])?;
        has(&old, 400)?;
        plugin.hears(node, "pushed 1 failed <nil>")?;
        wants(node, &plugin.title, &json!({ "limit": shares(700) }))?;
        crictl.ok(&["update", "--cpu-share", "500", &new])?;
        has(&new, 700)?;
        crictl.remove_pod(&sandbox)?;
        drop((crictl, plugin));
        Ok(())
    });
}

#[test]
fn plugins_come_back_after_the_daemon_and_are_told_of_what_is_there() {
    in_node(Node::builder(), |node| {
        let plugin = Plugin::start(node, "10", "back", &json!({}))?;
        let crictl = node.crictl()?;
        let (sandbox, id) = crictl.start_pod(&PodSpec::new("pod"), &sleeper("main"))?;
        drop(crictl);
        node.kill_daemon()?;
        node.start_daemon()?;
        plugin.hears(node, "Synchronize pod main:running")?;
        let crictl = node.crictl()?;
        crictl.ok(&["stop", "-t", "5", &id])?;
        plugin.hears(node, "StopContainer main code=0")?;
        crictl.remove_pod(&sandbox)?;
        plugin.hears(node, "RemovePodSandbox pod")?;
        drop(crictl);
        node.daemon()?.signal_term()?;
        node.await_daemons_end(Duration::from_secs(20))?;
        plugin.hears(node, "Shutdown")?;
        node.start_daemon()?;
        drop(plugin);
        Ok(())
    });
}

#[test]
fn plugins_from_the_folder_live_and_die_with_the_daemon() {
    in_node(Node::builder(), |node| {
        node.kill_daemon()?;
        let program = program()?.display().to_string();
        let plugin = "/opt/nri/plugins/10-launched";
        node.write("/etc/nri/conf.d/launched.conf", "some configuration")?;
        node.write(&format!("{DIR}/10-launched.json"), "{}")?;
        node.run("mkdir", &["-p", "/opt/nri/plugins"])?.ok()?;
        node.run("cp", &[&program, plugin])?.ok()?;
        let running = |node: &Node| -> Result<bool> {
            // By the executable, which no other node has.
            let script = "for exe in /proc/[0-9]*/exe; do readlink $exe; done";
            Ok(node.run("sh", &["-c", script])?.stdout.contains(plugin))
        };
        node.start_daemon()?;
        ensure!(running(node)?);
        let heard = heard(node, "10-launched");
        ensure!(
            heard
                .first()
                .is_some_and(|l| l == "Configure orlop some configuration"),
            "{heard:?}"
        );
        let crictl = node.crictl()?;
        let sandbox = crictl.run_pod(&PodSpec::new("pod"))?;
        drop(crictl);
        hears(node, "10-launched", "RunPodSandbox pod")?;
        node.kill_daemon()?;
        wait_until("the plugin's end", PATIENCE, || Ok(!running(node)?))?;
        node.start_daemon()?;
        ensure!(running(node)?);
        hears(node, "10-launched", "Synchronize pod")?;
        let crictl = node.crictl()?;
        crictl.remove_pod(&sandbox)?;
        drop(crictl);
        node.daemon()?.signal_term()?;
        node.await_daemons_end(Duration::from_secs(20))?;
        wait_until("the plugin's end", PATIENCE, || Ok(!running(node)?))?;
        node.start_daemon().map(drop)
    });
}

#[test]
fn without_nri_nothing_listens() {
    in_node(Node::builder().config("[nri]\nenabled = false\n"), |node| {
        ensure!(!node.path("/run/nri/nri.sock").exists());
        let crictl = node.crictl()?;
        let (sandbox, _) = crictl.start_pod(&PodSpec::new("pod"), &sleeper("main"))?;
        crictl.remove_pod(&sandbox)
    });
}
