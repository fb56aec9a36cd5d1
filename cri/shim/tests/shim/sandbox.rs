//! The pod's own namespaces.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use cri_shim_protocol::{ErrorKind, Event, NamespaceKind, PinNamespaces, Reply, Request};

use crate::pod::{Pod, builtin, runc};

const KINDS: [(NamespaceKind, &str); 5] = [
    (NamespaceKind::User, "user"),
    (NamespaceKind::Network, "net"),
    (NamespaceKind::Ipc, "ipc"),
    (NamespaceKind::Uts, "uts"),
    (NamespaceKind::Pid, "pid"),
];

fn request(pod: &Pod, kinds: &[NamespaceKind]) -> PinNamespaces {
    let folder = pod.folder.join("ns");
    fs::create_dir_all(&folder).unwrap();
    let named = KINDS.iter().filter(|(kind, _)| kinds.contains(kind));
    let namespaces = named.map(|(kind, name)| {
        let path = folder.join(name);
        fs::write(&path, "").unwrap();
        (*kind, path)
    });
    PinNamespaces {
        namespaces: namespaces.collect(),
        hostname: None,
        sysctls: Vec::new(),
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
        init_cgroup: None,
    }
}

/// A file as the shim, in its mount namespace, sees it.
fn seen(pod: &Pod, name: &str) -> PathBuf {
    let folder = pod.folder.join("ns").join(name);
    PathBuf::from(format!("/proc/{}/root{}", pod.shim.id(), folder.display()))
}

fn enter(pod: &Pod, script: &str) -> String {
    let mut command = Command::new("nsenter");
    for (option, name) in [("--net", "net"), ("--ipc", "ipc"), ("--uts", "uts")] {
        command.arg(format!("{option}={}", seen(pod, name).display()));
    }
    let output = command.args(["sh", "-c", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn namespaces_are_made_configured_and_pinned() {
    let mut pod = Pod::new(runc());
    let mut wanted = request(
        &pod,
        &[NamespaceKind::Network, NamespaceKind::Ipc, NamespaceKind::Uts],
    );
    wanted.hostname = Some("captain".to_owned());
    wanted.sysctls = vec![
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "7".to_owned()),
        ("kernel/shm_rmid_forced".to_owned(), "1".to_owned()),
    ];
    let pinned = pod.client.call(Request::PinNamespaces(wanted));
    assert_eq!(pinned, Ok(Reply::Pinned { init_pid: None }));
    let host = |name: &str| fs::metadata(format!("/proc/self/ns/{name}")).unwrap().st_ino();
    for name in ["net", "ipc", "uts"] {
        let pinned = fs::metadata(seen(&pod, name)).unwrap();
        assert_ne!(pinned.st_ino(), host(name), "{name}");
    }
    let script =
        "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(enter(&pod, script), "captain\n7\n1");
    // Nothing lives on for it.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.shim.id())).unwrap();
    assert_eq!(children.trim(), "");
}

#[test]
fn a_shared_pid_namespace_has_an_init_that_collects_and_ends() {
    let mut pod = Pod::new(runc());
    let mut wanted = request(&pod, &[NamespaceKind::Pid, NamespaceKind::Uts]);
    let name = pod.folder.file_name().unwrap().to_str().unwrap().to_owned();
    wanted.init_cgroup = Some(format!("/{name}/init"));
    let Ok(Reply::Pinned { init_pid: Some(init) }) = pod.client.call(Request::PinNamespaces(wanted)) else {
        panic!("not pinned");
    };
    assert_eq!(pod.client.state().init_pid, Some(init));
    assert_eq!(
        fs::metadata(seen(&pod, "pid")).unwrap().st_ino(),
        fs::metadata(format!("/proc/{init}/ns/pid")).unwrap().st_ino()
    );
    let cgroups = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    assert!(cgroups.contains(&format!(":/{name}/init")), "{cgroups}");
    // A container in it sees the pod's init as the first process.
    let mut wish = pod.wish("c1", "cat /proc/1/comm; (sleep 0.1 &); sleep 1000");
    for namespace in wish.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "pid" {
            namespace["path"] = format!("/proc/{init}/ns/pid").into();
        }
    }
    pod.create_wish(wish).unwrap();
    pod.start("c1");
    crate::pod::eventually("it has written", || !pod.lines("c1", "stdout").is_empty());
    let children = format!("/proc/{init}/task/{init}/children");
    crate::pod::eventually("orphans are collected", || {
        fs::read_to_string(&children).unwrap().trim().is_empty()
    });
    // With it ends every process of the namespace.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(init),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(pod.client.exit("c1").code, 137);
    pod.client.event(|e| matches!(e, Event::InitExited));
    assert_eq!(pod.client.state().init_pid, None);
}

#[test]
fn a_user_namespace_owns_the_others() {
    let mut pod = Pod::new(runc());
    let kinds: Vec<NamespaceKind> = KINDS.iter().map(|(kind, _)| *kind).collect();
    let mut wanted = request(&pod, &kinds);
    wanted.uid_mappings = vec![(0, 1_000_000, 65536)];
    wanted.gid_mappings = vec![(0, 2_000_000, 65536)];
    wanted.hostname = Some("mate".to_owned());
    wanted.sysctls = vec![("net.ipv4.ip_unprivileged_port_start".to_owned(), "9".to_owned())];
    let Ok(Reply::Pinned { init_pid: Some(init) }) = pod.client.call(Request::PinNamespaces(wanted)) else {
        panic!("not pinned");
    };
    let map = |file: &str| {
        let text = fs::read_to_string(format!("/proc/{init}/{file}")).unwrap();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(map("uid_map"), ["0", "1000000", "65536"]);
    assert_eq!(map("gid_map"), ["0", "2000000", "65536"]);
    let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    assert!(status.contains("Uid:\t1000000\t1000000"), "{status}");
    assert_eq!(enter(&pod, "hostname"), "mate");
}

#[test]
fn a_failed_pinning_leaves_nothing() {
    let mut pod = Pod::new(builtin());
    let mut wanted = request(&pod, &[NamespaceKind::Network, NamespaceKind::Uts]);
    wanted.sysctls = vec![("net.no.such.sysctl".to_owned(), "1".to_owned())];
    let message = pod
        .client
        .refused(Request::PinNamespaces(wanted.clone()), ErrorKind::Failed);
    assert!(message.contains("net.no.such.sysctl"), "{message}");
    wanted.sysctls = vec![("vm.swappiness".to_owned(), "1".to_owned())];
    pod.client
        .refused(Request::PinNamespaces(wanted.clone()), ErrorKind::Invalid);
    wanted.sysctls.clear();
    wanted.namespaces[1].1 = pod.folder.join("ns/missing");
    let message = pod
        .client
        .refused(Request::PinNamespaces(wanted), ErrorKind::Invalid);
    assert!(message.contains("ns/missing"), "{message}");
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", pod.shim.id())).unwrap();
    assert!(!mounts.contains(pod.folder.to_str().unwrap()), "{mounts}");
}
