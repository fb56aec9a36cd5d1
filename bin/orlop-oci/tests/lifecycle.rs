//! The life of a container, through the command line, as containerd and people drive it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod bundle;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;

use bundle::{Bundle, texts, wait_until};
use serde_json::{Value, json};

#[test]
fn run_returns_the_process_s_output_and_code() {
    let bundle = Bundle::new("echo hello; exit 7");
    let output = bundle.call(&["run", &bundle.id]);
    assert_eq!(texts(&output).0, "hello\n");
    assert_eq!(output.status.code(), Some(7));
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        let mut killed = Bundle::new(&format!("kill -{signal} $$; sleep 100"));
        // A process can't kill the init of its own PID namespace, which it would be.
        let namespaces = killed.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        let output = killed.call(&["run", &killed.id]);
        assert_eq!(output.status.code(), Some(code), "{}", texts(&output).1);
    }
}

#[test]
fn a_container_goes_from_created_to_running_to_stopped() {
    let bundle = Bundle::new("echo started; sleep 100");
    bundle.create();
    assert_eq!(bundle.status(), "created");
    assert_eq!(bundle.output(), "", "nothing runs before start");
    let pid = bundle.state()["pid"].as_i64().unwrap();
    assert!(pid > 0);
    bundle.good(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    wait_until("output", || bundle.output() == "started\n");
    assert!(
        bundle
            .bad(&["start", &bundle.id])
            .contains("cannot start a container that is running")
    );
    assert!(bundle.bad(&["delete", &bundle.id]).contains("running"));
    bundle.good(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    let error = bundle.bad(&["kill", &bundle.id, "KILL"]);
    assert!(error.contains("container not running"), "{error}");
    assert_eq!(bundle.messages().last().unwrap(), "container not running");
    bundle.good(&["delete", &bundle.id]);
    assert!(bundle.bad(&["state", &bundle.id]).contains("does not exist"));
    assert!(bundle.bad(&["delete", &bundle.id]).contains("does not exist"));
    bundle.good(&["delete", "--force", &bundle.id]);
}

#[test]
fn a_created_container_can_be_deleted_and_its_name_used_again() {
    let bundle = Bundle::new("true");
    bundle.create();
    assert!(bundle.bad(&["create", &bundle.id]).contains("already exists"));
    assert_eq!(bundle.status(), "created", "the first is untouched");
    bundle.good(&["delete", &bundle.id]);
    bundle.create();
}

#[test]
fn commands_that_cannot_run_are_refused_at_create_and_leave_nothing() {
    let mut bundle = Bundle::new("");
    for (command, words) in [
        ("/bin/nothing", "no such file or directory"),
        ("nothing", "executable file not found in $PATH"),
        ("/etc/passwd", "permission denied"),
        ("/etc", "permission denied"),
    ] {
        bundle.config["process"]["args"] = json!([command]);
        let error = bundle.bad(&["create", &bundle.id]);
        assert!(
            error.contains(words) && error.contains(command),
            "{command}: {error}"
        );
        assert!(bundle.bad(&["state", &bundle.id]).contains("does not exist"));
        assert!(bundle.cgroups_left().is_empty());
    }
}

#[test]
fn configurations_that_cannot_work_are_refused_by_name() {
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["namespaces"] = json!([{ "type": "pid" }]);
    assert!(bundle.bad(&["run", &bundle.id]).contains("mount namespace"));
    fs::write(bundle.folder.join("config.json"), "{\"ociVersion\": ").unwrap();
    let output = std::process::Command::new(bundle::program())
        .args([
            "--root",
            bundle.folder.join("root").to_str().unwrap(),
            "create",
            "x",
        ])
        .current_dir(&bundle.folder)
        .output()
        .unwrap();
    let error = texts(&output).1;
    assert!(
        error.contains("config.json") && error.contains("line 1"),
        "{error}"
    );
    fs::remove_file(bundle.folder.join("config.json")).unwrap();
}

#[test]
fn exec_joins_and_returns_the_code() {
    let mut bundle = Bundle::new("sleep 100");
    bundle.config["hostname"] = json!("inside");
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    let id = bundle.id.clone();
    assert_eq!(bundle.good(&["exec", &id, "hostname"]), "inside\n");
    let output = bundle.call(&["exec", &id, "sh", "-c", "exit 9"]);
    assert_eq!(output.status.code(), Some(9));
    let output = bundle.call(&["exec", &id, "nothing"]);
    assert_eq!(output.status.code(), Some(255), "{}", texts(&output).1);
    assert!(texts(&output).1.contains("executable file not found"));
    let pids: Vec<i64> = serde_json::from_str(&bundle.good(&["ps", "--format", "json", &id])).unwrap();
    assert_eq!(
        pids.len(),
        1,
        "what was executed has ended and joined the cgroup before: {pids:?}"
    );
    let in_cgroup = bundle.good(&["exec", &id, "cat", "/proc/self/cgroup"]);
    assert!(in_cgroup.lines().all(|line| line.ends_with(":/")), "{in_cgroup}");
    let own = bundle.good(&[
        "exec",
        "--cwd",
        "/tmp",
        "--env",
        "A=b",
        "--user",
        "5:6",
        &id,
        "sh",
        "-c",
        "pwd; id; echo $A",
    ]);
    assert_eq!(own, "/tmp\nuid=5 gid=6\nb\n");
}

#[test]
fn exec_by_file_detached_as_containerd_does() {
    let bundle = Bundle::new("sleep 100");
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    let process = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 }, "args": ["/bin/sleep", "50"],
        "env": ["PATH=/bin"], "noNewPrivileges": true });
    let file = bundle.folder.join("process.json");
    fs::write(&file, process.to_string()).unwrap();
    let pid_file = bundle.folder.join("pid");
    let mut command = bundle.command(&[
        "exec",
        "--process",
        file.to_str().unwrap(),
        "--detach",
        "--pid-file",
        pid_file.to_str().unwrap(),
        &bundle.id,
    ]);
    let status = command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line, b"/bin/sleep\x0050\x00");
    bundle.good(&["kill", "--all", &bundle.id, "9"]);
    bundle.wait_for("stopped");
}

#[test]
fn list_and_ps_speak_json() {
    let bundle = Bundle::new("sleep 100");
    bundle.create();
    let list: Vec<Value> = serde_json::from_str(&bundle.good(&["list", "--format=json"])).unwrap();
    assert_eq!((list.len(), &list[0]["id"]), (1, &json!(bundle.id)));
    assert_eq!(bundle.good(&["list", "-q"]).trim(), bundle.id);
    assert!(bundle.good(&["list"]).contains("created"));
    assert!(bundle.good(&["ps", &bundle.id]).contains("PID"));
}

#[test]
fn pause_stops_and_resume_goes_on() {
    let bundle = Bundle::new("while true; do echo x; sleep 0.01; done");
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    wait_until("output", || !bundle.output().is_empty());
    bundle.good(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    let before = bundle.output().len();
    std::thread::sleep(std::time::Duration::from_millis(60));
    assert_eq!(bundle.output().len(), before);
    assert!(bundle.bad(&["exec", &bundle.id, "true"]).contains("paused"));
    bundle.good(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    wait_until("more output", || bundle.output().len() > before);
    bundle.good(&["pause", &bundle.id]);
    bundle.good(&["delete", "--force", &bundle.id]);
}

#[test]
fn update_changes_limits_and_events_measure() {
    let mut bundle = Bundle::new("sleep 100");
    bundle.config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    let limit = || -> u64 {
        let events: Value = serde_json::from_str(&bundle.good(&["events", "--stats", &bundle.id])).unwrap();
        events["data"]["memory"]["usage"]["limit"].as_u64().unwrap()
    };
    assert_eq!(limit(), 64 << 20);
    bundle.good(&["update", "--memory", "33554432", &bundle.id]);
    assert_eq!(limit(), 32 << 20);
    let file = bundle.folder.join("resources.json");
    fs::write(&file, r#"{"memory":{"limit":16777216}}"#).unwrap();
    let mut command = bundle.command(&["update", "--resources=-", &bundle.id]);
    let status = command.stdin(fs::File::open(&file).unwrap()).status().unwrap();
    assert!(status.success());
    assert_eq!(limit(), 16 << 20);
}

#[test]
fn signals_and_their_deaths_are_passed_on() {
    let bundle = Bundle::new("trap 'echo got; exit 3' USR1; echo ready; while true; do sleep 0.01; done");
    let mut child = bundle.spawn(&["run", &bundle.id]);
    wait_until("running", || {
        bundle.call(&["state", &bundle.id]).status.success() && bundle.status() == "running"
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    let sent = std::process::Command::new("kill")
        .args(["-USR1", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let bundle = Bundle::new("sleep 100");
    let mut child = bundle.spawn(&["run", &bundle.id]);
    wait_until("running", || {
        bundle.call(&["state", &bundle.id]).status.success() && bundle.status() == "running"
    });
    bundle.good(&["kill", &bundle.id, "9"]);
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(137), None));
}

#[test]
fn hooks_run_in_order_with_the_state_and_a_failing_one_undoes_everything() {
    let mut bundle = Bundle::new("true");
    let log = bundle.folder.join("hooks");
    let hook = |name: &str| {
        json!([{ "path": "/bin/sh", "args": ["sh", "-c",
            format!("echo {name} $(tr -d '\\n' | sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/') >> {}", log.display())],
            "env": ["PATH=/bin:/usr/bin"] }])
    };
    bundle.config["hooks"] = json!({
        "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
        "poststart": hook("poststart"), "poststop": hook("poststop")
    });
    bundle.run();
    let lines = fs::read_to_string(&log).unwrap();
    assert_eq!(
        lines,
        "prestart creating\ncreateRuntime creating\ncreateContainer creating\npoststart running\npoststop stopped\n"
    );
    bundle.config["root"]["readonly"] = json!(false);
    bundle.config["hooks"] = json!({ "startContainer": [{ "path": "/bin/sh",
        "args": ["sh", "-c", "cat > /tmp/state"] }] });
    bundle.run();
    let state = fs::read_to_string(bundle.rootfs().join("tmp/state")).unwrap();
    assert!(
        state.contains("\"status\":\"created\"") && !state.contains("\"pid\":0"),
        "{state}"
    );
    bundle.config["hooks"] =
        json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 4"] }] });
    let error = bundle.bad(&["create", &bundle.id]);
    assert!(
        error.contains("error running createRuntime hook #0") && error.contains("no"),
        "{error}"
    );
    bundle.config["hooks"] =
        json!({ "prestart": [{ "path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1 }] });
    let error = bundle.bad(&["create", &bundle.id]);
    assert!(error.contains("within 1 s"), "{error}");
    assert!(bundle.bad(&["state", &bundle.id]).contains("does not exist"));
}

#[test]
fn a_runtime_killed_at_any_moment_leaves_what_delete_removes() {
    let bundle = Bundle::new("sleep 100");
    for step in 0..40u64 {
        let mut child = bundle.spawn(&["create", &bundle.id]);
        std::thread::sleep(std::time::Duration::from_micros(step * 250));
        child.kill().unwrap();
        child.wait().unwrap();
        bundle.good(&["delete", "--force", &bundle.id]);
        assert!(bundle.cgroups_left().is_empty(), "step {step}");
        assert!(bundle.bad(&["state", &bundle.id]).contains("does not exist"));
    }
}

#[test]
fn two_starts_at_once_start_once() {
    let bundle = Bundle::new("echo once; sleep 100");
    bundle.create();
    let children: Vec<_> = (0..4).map(|_| bundle.spawn(&["start", &bundle.id])).collect();
    let good = children
        .into_iter()
        .map(|mut child| child.wait().unwrap().success())
        .filter(|good| *good)
        .count();
    assert_eq!(good, 1);
    wait_until("output", || bundle.output() == "once\n");
}

#[test]
fn what_is_not_supported_is_refused() {
    let bundle = Bundle::new("true");
    assert!(
        bundle
            .bad(&["checkpoint", "--image-path", "x", &bundle.id])
            .contains("not supported")
    );
    assert!(bundle.bad(&["restore", &bundle.id]).contains("not supported"));
    assert!(
        bundle
            .bad(&["--systemd-cgroup", "create", &bundle.id])
            .contains("systemd")
    );
    assert!(bundle.bad(&["fly"]).contains("fly"));
    assert!(bundle.bad(&["state", "../x"]).contains("invalid container id"));
    assert!(bundle.good(&["--version"]).contains("spec: 1."));
    let features: Value = serde_json::from_str(&bundle.good(&["features"])).unwrap();
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
}

#[test]
fn kill_reaches_what_outlives_init_without_a_pid_namespace() {
    let mut bundle = Bundle::new("sleep 100 & sleep 101 & echo started");
    let list = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|n| n["type"] != "pid");
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    bundle.wait_for("stopped");
    let pids = || -> Vec<i64> {
        serde_json::from_str(&bundle.good(&["ps", "--format", "json", &bundle.id])).unwrap()
    };
    assert_eq!(pids().len(), 2);
    assert!(
        bundle
            .bad(&["kill", &bundle.id, "TERM"])
            .contains("container not running")
    );
    bundle.good(&["kill", &bundle.id, "KILL"]);
    wait_until("their end", || pids().is_empty());
    assert!(
        bundle
            .bad(&["kill", &bundle.id, "KILL"])
            .contains("container not running")
    );
}

#[test]
fn a_root_that_is_not_there_is_told_when_listing() {
    let bundle = Bundle::new("true");
    assert!(bundle.bad(&["list"]).contains("No such file"));
    bundle.create();
    let table = bundle.good(&["list"]);
    let titles: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
}

#[test]
fn variables_are_given_once_and_home_is_never_empty() {
    let mut bundle = Bundle::new("env | grep -E '^(ONE|HOME)=' | sort");
    bundle.config["process"]["env"] = json!(["PATH=/none", "ONE=1", "HOME=", "ONE=2", "PATH=/bin"]);
    assert_eq!(bundle.run(), "HOME=/root\nONE=2\n");
    bundle.config["hooks"] = json!({ "startContainer": [{ "path": "/bin/sh",
        "args": ["sh", "-c", "test $ONE = 2 && test $PATH = /bin"] }] });
    bundle.run();
    // A process that doesn't say as whom runs as root.
    bundle.config["hooks"] = json!({});
    bundle.config["process"].as_object_mut().unwrap().remove("user");
    assert_eq!(bundle.run(), "HOME=/root\nONE=2\n");
}

#[test]
fn a_frozen_cgroup_is_refused_and_one_frozen_by_others_can_be_deleted() {
    let bundle = Bundle::new("sleep 100");
    let v2 = |folder| (folder, "cgroup.freeze", "1", "0");
    let freezers = [
        v2("/sys/fs/cgroup"),
        v2("/sys/fs/cgroup/unified"),
        ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"),
    ];
    let mut last = None;
    for (folder, name, frozen, thawed) in freezers {
        let parent = format!("{folder}{}", bundle.cgroup);
        let made = format!("{parent}/c");
        // Where no hierarchy is mounted, no folder can be made or there is no such file in it.
        if fs::create_dir(&parent).is_err() || !std::path::Path::new(&parent).join(name).exists() {
            continue;
        }
        // Frozen from above, before the container's own exists, and itself.
        for cgroup in [&parent, &made] {
            fs::create_dir_all(cgroup).unwrap();
            let file = format!("{cgroup}/{name}");
            fs::write(&file, frozen).unwrap();
            let error = bundle.bad(&["create", &bundle.id]);
            assert!(
                error.contains("unexpectedly frozen") && error.contains(cgroup.as_str()),
                "{error}"
            );
            fs::write(&file, thawed).unwrap();
            last = Some((file, frozen));
        }
    }
    let (file, frozen) = last.expect("there is a freezer");
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    fs::write(&file, frozen).unwrap();
    wait_until("its end of running", || bundle.status() == "paused");
    bundle.good(&["delete", "--force", &bundle.id]);
}
