//! From create to delete.

use cri_shim_protocol::{ErrorKind, Reply, Request, Status};

use crate::pod::{Pod, builtin, crun, runc};

fn whole_life(mut pod: Pod) {
    let pid = pod.create("c1", "echo out; echo err >&2; exit 7");
    assert!(matches!(pod.client.status("c1"), Some(Status::Created { pid: p }) if p == pid));
    pod.start("c1");
    let exit = pod.client.exit("c1");
    assert_eq!((exit.code, exit.oom_killed), (7, false));
    assert_eq!(pod.lines("c1", "stdout"), ["out"]);
    assert_eq!(pod.lines("c1", "stderr"), ["err"]);
    let Some(Status::Exited {
        started_at,
        exit: kept,
    }) = pod.client.status("c1")
    else {
        panic!("not exited");
    };
    assert!(started_at > 0 && started_at <= kept.at);
    assert_eq!(kept, exit);
    assert!(pod.folder.join("shim/exits/c1.json").exists());
    pod.client.done(Request::Delete {
        container: "c1".to_owned(),
        force: false,
    });
    assert_eq!(pod.client.status("c1"), None);
    assert!(!pod.folder.join("shim/exits/c1.json").exists());
    pod.client.done(Request::Delete {
        container: "c1".to_owned(),
        force: false,
    });
}

#[test]
fn runc_containers_live_and_die() {
    whole_life(Pod::new(runc()));
}

#[test]
fn crun_containers_live_and_die() {
    whole_life(Pod::new(crun()));
}

#[test]
fn builtin_containers_live_and_die() {
    whole_life(Pod::new(builtin()));
}

fn left_processes(mut pod: Pod) {
    let mut wish = pod.wish(
        "c1",
        "sleep 1000 </dev/null >/dev/null 2>&1 & sleep 1000 & exit 4",
    );
    let namespaces = wish.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    wish.create.kill_all_at_exit = true;
    pod.create_wish(wish).unwrap();
    let cgroup = pod.container_cgroup("c1");
    pod.start("c1");
    assert_eq!(pod.client.exit("c1").code, 4);
    crate::pod::eventually("empty", || cgroup.pids(true).unwrap().is_empty());
    pod.client.done(Request::Delete {
        container: "c1".to_owned(),
        force: false,
    });
}

#[test]
fn without_a_pid_namespace_of_its_own_all_ends_with_init() {
    left_processes(Pod::new(runc()));
    left_processes(Pod::new(crun()));
}

#[test]
fn without_a_pid_namespace_of_its_own_all_ends_with_builtin_init() {
    left_processes(Pod::new(builtin()));
}

fn signals_and_refusals(mut pod: Pod) {
    pod.run(
        "c1",
        "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done",
    );
    crate::pod::eventually("ready", || pod.lines("c1", "stdout") == ["ready"]);
    let c1 = || "c1".to_owned();
    pod.client
        .refused(Request::Start { container: c1() }, ErrorKind::WrongState);
    let delete = Request::Delete {
        container: c1(),
        force: false,
    };
    pod.client.refused(delete, ErrorKind::WrongState);
    pod.client
        .refused(Request::Shutdown { force: false }, ErrorKind::Busy);
    let kill = |signal| Request::Kill {
        container: c1(),
        signal,
        all: false,
    };
    pod.client.refused(kill(0), ErrorKind::Invalid);
    pod.client.done(kill(15));
    assert_eq!(pod.client.exit("c1").code, 3);
    pod.client.refused(kill(15), ErrorKind::WrongState);

    pod.run("c2", "sleep 1000");
    let kill = Request::Kill {
        container: "c2".to_owned(),
        signal: 9,
        all: true,
    };
    pod.client.done(kill);
    assert_eq!(pod.client.exit("c2").code, 137);

    pod.run("c3", "sleep 1000");
    pod.client.done(Request::Delete {
        container: "c3".to_owned(),
        force: true,
    });
    assert_eq!(pod.client.exit("c3").code, 137);
    let unknown = Request::Start {
        container: "c3".to_owned(),
    };
    pod.client.refused(unknown, ErrorKind::NotFound);
}

#[test]
fn signals_reach_containers_and_wrong_states_are_refused() {
    signals_and_refusals(Pod::new(runc()));
}

#[test]
fn signals_reach_builtin_containers_and_wrong_states_are_refused() {
    signals_and_refusals(Pod::new(builtin()));
}

fn failed_creations(mut pod: Pod) {
    let mut wish = pod.wish("c1", "true");
    wish.config["process"]["args"] = serde_json::json!(["no-such-command"]);
    let error = pod.create_wish(wish).and_then(|_| {
        let start = Request::Start {
            container: "c1".to_owned(),
        };
        pod.client.call(start).map(|_| 0)
    });
    let error = error.expect_err("no-such-command runs");
    assert_eq!(error.kind, ErrorKind::CommandNotFound, "{}", error.message);
    assert!(error.message.contains("no-such-command"), "{}", error.message);
    pod.client.done(Request::Delete {
        container: "c1".to_owned(),
        force: true,
    });

    let mut wish = pod.wish("c1", "true");
    wish.create.terminal = true;
    assert_eq!(pod.create_wish(wish).unwrap_err().kind, ErrorKind::Invalid);
    let mut wish = pod.wish("c1", "true");
    wish.create.log_path = Some("/no/such/folder/log".into());
    let error = pod.create_wish(wish).unwrap_err();
    assert!(error.message.contains("/no/such/folder/log"), "{}", error.message);
    let mut wish = pod.wish("../c1", "true");
    wish.create.bundle = pod.folder.join("bundle-c1");
    assert_eq!(pod.create_wish(wish).unwrap_err().kind, ErrorKind::Invalid);
    // Nothing of these is in the way.
    pod.create("c1", "true");
    let again = pod.wish("c1", "true");
    assert_eq!(pod.create_wish(again).unwrap_err().kind, ErrorKind::AlreadyExists);
}

#[test]
fn a_failed_creation_says_why_and_leaves_nothing() {
    failed_creations(Pod::new(runc()));
    failed_creations(Pod::new(crun()));
}

#[test]
fn a_failed_builtin_creation_says_why_and_leaves_nothing() {
    failed_creations(Pod::new(builtin()));
}

fn oom(mut pod: Pod) {
    // A string that doubles until the 64 MiB are used.
    pod.run("c1", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done");
    let exit = pod.client.exit("c1");
    assert_eq!((exit.code, exit.oom_killed), (137, true));
}

#[test]
fn a_container_killed_for_memory_says_so() {
    oom(Pod::new(runc()));
}

#[test]
fn a_builtin_container_killed_for_memory_says_so() {
    oom(Pod::new(builtin()));
}

#[test]
fn limits_are_updated() {
    for runtime in [runc(), builtin()] {
        let mut pod = Pod::new(runtime);
        pod.run("c1", "sleep 1000");
        pod.client.done(Request::Update {
            container: "c1".to_owned(),
            resources: r#"{"memory":{"limit":33554432,"swap":33554432}}"#.to_owned(),
        });
        let name = pod.folder.file_name().unwrap().to_str().unwrap();
        // Under unified cgroup v2, or with v1 hierarchies.
        let limit = ["{name}/c1/memory.max", "memory/{name}/c1/memory.limit_in_bytes"]
            .map(|path| format!("/sys/fs/cgroup/{}", path.replace("{name}", name)))
            .into_iter()
            .find_map(|path| std::fs::read_to_string(path).ok());
        assert_eq!(limit.unwrap().trim(), "33554432");
    }
}

#[test]
fn a_shutdown_ends_the_shim_and_refuses_further_connections() {
    let mut pod = Pod::new(runc());
    assert_eq!(
        pod.client.call(Request::Shutdown { force: false }),
        Ok(Reply::Done)
    );
    assert!(pod.shim.wait().unwrap().success());
    let error = std::os::unix::net::UnixStream::connect(pod.folder.join("shim.sock")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
