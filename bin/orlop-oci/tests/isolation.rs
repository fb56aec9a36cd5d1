//! What a container can and can't see and do.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod bundle;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use bundle::{Bundle, texts, wait_until};
use serde_json::json;

#[test]
fn namespaces_are_new_and_by_path() {
    let links = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done";
    let bundle = Bundle::new(links);
    let inside = bundle.run();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(!inside.contains(host.to_str().unwrap()), "{kind} is the host's");
    }
    let first = Bundle::new("sleep 100");
    first.create();
    let pid = first.state()["pid"].as_i64().unwrap();
    let mut second = Bundle::new(links);
    let kinds = [("ipc", "ipc"), ("network", "net"), ("uts", "uts"), ("pid", "pid")];
    for (kind, file) in kinds {
        second.namespace(kind, Some(&format!("/proc/{pid}/ns/{file}")));
    }
    second.config.as_object_mut().unwrap().remove("hostname");
    let joined = second.run();
    for (_, file) in kinds {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
        assert!(
            joined.contains(theirs.to_str().unwrap()),
            "{file} was not joined: {joined}"
        );
    }
    second.namespace("ipc", Some("/etc/passwd"));
    assert!(second.bad(&["run", &second.id]).contains("not a namespace"));
}

#[test]
fn rights_are_what_the_configuration_says() {
    let mut bundle =
        Bundle::new("id; umask; grep -E '^(Cap|NoNew|Groups)' /proc/self/status; pwd; echo $HOME");
    bundle.config["process"]["user"] =
        json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027 });
    bundle.config["process"]["cwd"] = json!("/made/for/me");
    let all = json!(["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"]);
    bundle.config["process"]["capabilities"] = json!({ "bounding": all, "permitted": all, "effective": ["CAP_KILL"],
        "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"] });
    let out = bundle.run();
    assert!(out.starts_with("uid=1000 gid=1001 groups=5,6\n0027\n"), "{out}");
    for line in [
        "CapInh:\t0000000000000001",
        "CapBnd:\t0000000000002021",
        "CapAmb:\t0000000000000001",
        "NoNewPrivs:\t1",
    ] {
        assert!(out.contains(line), "{line} not in {out}");
    }
    assert!(out.ends_with("/made/for/me\n/\n"), "{out}");
}

#[test]
fn an_unknown_capability_is_a_warning() {
    let mut bundle = Bundle::new("true");
    bundle.config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_FLY"]);
    bundle.config["process"]["capabilities"]["effective"] = json!([]);
    bundle.config["process"]["capabilities"]["permitted"] = json!([]);
    bundle.run();
    assert!(
        bundle.messages().iter().any(|m| m.contains("CAP_FLY")),
        "{:?}",
        bundle.messages()
    );
}

#[test]
fn limits_are_set_or_warned_of() {
    let mut bundle = Bundle::new("ulimit -n; ulimit -c; cat /proc/self/oom_score_adj; uname -m");
    bundle.config["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 123, "hard": 200 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
    bundle.config["process"]["oomScoreAdj"] = json!(500);
    bundle.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    let out = bundle.run();
    assert!(
        out.starts_with("123\n0\n500\n") && !out.contains("x86_64"),
        "{out}"
    );
    // More than anybody may have; and less than the caller has, which some may set.
    let most = fs::read_to_string("/proc/sys/fs/nr_open").unwrap();
    let files = most.trim().parse::<u64>().unwrap() + 1;
    bundle.config["process"]["oomScoreAdj"] = json!(-1000);
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": files, "hard": files }]);
    let out = bundle.run();
    let values: Vec<&str> = out.lines().collect();
    let warnings = bundle.messages();
    let warned = |start: &str| warnings.iter().any(|warning| warning.starts_with(start));
    let wanted = format!("RLIMIT_NOFILE is {}, not {files}", values[0]);
    assert!(warned(&wanted), "`{wanted}` is not in {warnings:?}");
    assert_eq!(
        warned("oom_score_adj is not -1000"),
        values[2] != "-1000",
        "{out}{warnings:?}"
    );
}

#[test]
fn sysctls_and_names_are_of_the_containers_namespaces() {
    let mut bundle = Bundle::new(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/kernel/domainname; hostname",
    );
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1", "kernel.msgmax": "4242" });
    bundle.config["domainname"] = json!("example");
    assert_eq!(bundle.run(), "1\n4242\nexample\norlop\n");
}

#[test]
fn masked_and_readonly_paths_and_root() {
    let mut bundle = Bundle::new(
        "cat /secret; ls /hidden; touch /x 2>&1; touch /locked/x 2>&1; touch /locked/below/x 2>&1; \
         stat -c %t:%T /proc/keys; rm /hidden/x 2>&1; echo end",
    );
    fs::write(bundle.rootfs().join("secret"), "SECRET").unwrap();
    fs::create_dir(bundle.rootfs().join("hidden")).unwrap();
    fs::write(bundle.rootfs().join("hidden/x"), "SECRET").unwrap();
    fs::create_dir_all(bundle.rootfs().join("locked/below")).unwrap();
    bundle.mount(json!({ "destination": "/locked/below", "type": "tmpfs" }));
    bundle.config["linux"]["maskedPaths"] = json!(["/secret", "/hidden", "/not/there", "/proc/keys"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/locked", "/not/there"]);
    let out = bundle.run();
    assert!(
        !out.contains("SECRET") && out.contains("1:3\n") && out.ends_with("end\n"),
        "{out}"
    );
    assert_eq!(out.matches("Read-only file system").count(), 3, "{out}");
}

#[test]
fn devices_are_made_and_no_others_can_be_used() {
    let mut bundle = Bundle::new(
        "stat -c '%n %t:%T %a %u:%g' /dev/null /dev/tty /dev/fuse /dev/full; readlink /dev/ptmx; readlink /dev/stdin; \
         echo x > /dev/null && head -c 1 /dev/zero | wc -c; mknod /dev/kmsg2 c 1 11 && cat /dev/kmsg2 2>&1",
    );
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
        "fileMode": 0o640, "uid": 7, "gid": 8 }]);
    let caps = json!(["CAP_MKNOD"]);
    bundle.config["process"]["capabilities"] =
        json!({ "bounding": caps, "permitted": caps, "effective": caps });
    let output = bundle.call(&["run", &bundle.id]);
    let out = texts(&output).0;
    assert!(
        out.contains("/dev/null 1:3 666 0:0\n/dev/tty 5:0 666 0:0\n/dev/fuse a:e5 640 7:8\n/dev/full 1:7"),
        "{out}"
    );
    assert!(out.contains("pts/ptmx\n/proc/self/fd/0\n1\n"), "{out}");
    assert!(out.contains("Operation not permitted"), "{out}");
}

#[test]
fn seccomp_refuses_what_the_profile_refuses_with_and_without_new_privileges() {
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::new("mkdir /tmp/x 2>&1; hostname; grep Seccomp: /proc/self/status");
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["root"]["readonly"] = json!(false);
        bundle.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{ "names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }] });
        let out = bundle.run();
        assert!(
            out.contains("not supported") && out.contains("Seccomp:\t2"),
            "{out}"
        );
        bundle.config["process"]["args"] = json!(["/bin/sleep", "100"]);
        bundle.create();
        bundle.good(&["start", &bundle.id]);
        let exec = bundle.call(&["exec", &bundle.id, "mkdir", "/tmp/y"]);
        assert!(
            texts(&exec).1.contains("not supported"),
            "exec is under the filter, too: {exec:?}"
        );
    }
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_NOTIFY" });
    assert!(bundle.bad(&["run", &bundle.id]).contains("SCMP_ACT_NOTIFY"));
}

/// The root belongs to the mapped root, as an unpacked image for a user namespace does.
fn own(bundle: &Bundle, uid: u32) {
    std::os::unix::fs::chown(bundle.rootfs(), Some(uid), Some(uid)).unwrap();
}

#[test]
fn user_namespaces_map_ids_and_mounts() {
    let mut bundle = Bundle::new(
        "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c '%u:%g' /data/file /mapped/file; \
         touch /mapped/new; echo x > /dev/null; mount | grep -c ' /proc '; cat /proc/sys/net/ipv4/ip_forward",
    );
    bundle.namespace("user", None);
    let mappings = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    bundle.config["linux"]["uidMappings"] = mappings.clone();
    bundle.config["linux"]["gidMappings"] = mappings;
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    own(&bundle, 100_000);
    let data = bundle.folder.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "x").unwrap();
    // The runtime's folders on the way may be closed to the mapped user: binds are opened by the runtime.
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(&bundle.folder, fs::Permissions::from_mode(0o700)).unwrap();
    let source = data.to_str().unwrap().to_owned();
    bundle.mount(json!({ "destination": "/mapped", "source": source, "options": ["bind", "idmap"] }));
    let open = bundle.folder.join("open");
    fs::create_dir(&open).unwrap();
    fs::write(open.join("file"), "x").unwrap();
    bundle.mount(json!({ "destination": "/data", "source": open, "options": ["bind", "ro"] }));
    let out = bundle.run();
    let flat = out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        flat, "0 100000 65536 0 100000 65536 0 65534:65534 0:0 1 1",
        "{out}"
    );
    assert_eq!(fs::metadata(data.join("new")).unwrap().uid(), 0, "idmapped back");
}

#[test]
fn a_container_in_a_user_namespace_can_be_executed_in_and_joined_by_another() {
    let mappings = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    let mut first = Bundle::new("sleep 100");
    first.namespace("user", None);
    first.config["linux"]["uidMappings"] = mappings.clone();
    first.config["linux"]["gidMappings"] = mappings.clone();
    first.create();
    first.good(&["start", &first.id]);
    assert_eq!(first.good(&["exec", &first.id, "id", "-u"]), "0\n");
    let pid = first.state()["pid"].as_i64().unwrap();
    let mut second = Bundle::new(
        "id -u; readlink /proc/self/ns/user; readlink /proc/self/ns/net; ps | wc -l; mount | grep -c ' /proc '",
    );
    second.namespace("user", Some(&format!("/proc/{pid}/ns/user")));
    second.namespace("network", Some(&format!("/proc/{pid}/ns/net")));
    second.namespace("ipc", Some(&format!("/proc/{pid}/ns/ipc")));
    second.config["linux"]["uidMappings"] = mappings.clone();
    second.config["linux"]["gidMappings"] = mappings;
    let out = second.run();
    let user = fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert!(
        out.starts_with("0\n") && out.contains(user.to_str().unwrap()),
        "{out}"
    );
}

#[test]
fn recursive_readonly_reaches_mounts_below() {
    let mut bundle = Bundle::new(
        "touch /top/x 2>&1; touch /top/sub/x 2>&1 && echo written; touch /rec/x 2>&1; touch /rec/sub/x 2>&1; true",
    );
    bundle.mount(json!({ "destination": "/top", "source": "tree", "options": ["rbind", "ro", "rprivate"] }));
    bundle.mount(json!({ "destination": "/rec", "source": "tree", "options": ["rbind", "rro", "rprivate"] }));
    // A mount with another below it has to exist first.
    let script =
        "mkdir tree; mount -t tmpfs top tree; mkdir tree/sub; mount -t tmpfs sub tree/sub; exec \"$@\"";
    let output = bundle.command_in(script, &["run", &bundle.id]).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{err}");
    let refused = |path: &str| out.contains(&format!("touch: {path}: Read-only file system"));
    assert!(
        refused("/top/x") && out.contains("written") && !refused("/top/sub/x"),
        "only the top is read-only with `ro`: {out}"
    );
    assert!(refused("/rec/x") && refused("/rec/sub/x"), "{out}");
}

#[test]
fn binds_are_files_folders_and_made_where_missing() {
    let mut bundle =
        Bundle::new("cat /deep/er/file /dir/f; mount | grep -E ' /(deep|dir)' | wc -l; touch /dir/x 2>&1");
    fs::write(bundle.folder.join("file"), "file\n").unwrap();
    fs::create_dir(bundle.folder.join("dir")).unwrap();
    fs::write(bundle.folder.join("dir/f"), "f\n").unwrap();
    bundle.mount(json!({ "destination": "/deep/er/file", "source": "file", "options": ["bind", "ro"] }));
    bundle.mount(
        json!({ "destination": "dir", "source": "dir", "options": ["rbind", "ro", "nosuid", "rslave"] }),
    );
    let output = bundle.call(&["run", &bundle.id]);
    let out = texts(&output).0;
    assert!(
        out.starts_with("file\nf\n2\n") && out.contains("Read-only"),
        "{out}"
    );
    bundle.mount(json!({ "destination": "/x", "source": "/no/such/source", "options": ["bind"] }));
    assert!(bundle.bad(&["run", &bundle.id]).contains("/no/such/source"));
    bundle.config["mounts"].as_array_mut().unwrap().pop();
    bundle.mount(json!({ "destination": "/x", "type": "tmpfs", "options": ["size=lots"] }));
    assert!(bundle.bad(&["run", &bundle.id]).contains("size"));
}

#[test]
fn without_pivot_root_the_root_is_the_same() {
    let bundle = Bundle::new("ls / | sort | tr '\\n' ' '; cat /proc/self/mountinfo | wc -l");
    let pivoted = bundle.run();
    let output = bundle.call(&["run", "--no-pivot", &bundle.id]);
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{err}");
    assert_eq!(out.lines().next(), pivoted.lines().next());
    // Where what `/` is mounted on is shared, the kernel refuses pivot_root(2), as it does in a ramdisk.
    let script = "mkdir -p outer; mount -t tmpfs outer outer; mount --make-shared outer; jail=outer/jail; mkdir $jail; \
                  mount -t tmpfs jail $jail; \
                  for dir in proc sys dev tmp; do mkdir $jail/$dir; mount --rbind /$dir $jail/$dir; done; \
                  bin=${PROGRAM%/*}; mkdir -p $jail$BUNDLE $jail$bin; mount --rbind $BUNDLE $jail$BUNDLE; \
                  mount --bind $bin $jail$bin; shift; exec chroot $jail $PROGRAM \"$@\"";
    let in_jail = |arguments: &[&str]| {
        let mut command = bundle.command_in(script, arguments);
        let program = fs::canonicalize(bundle::program()).unwrap();
        command.env("BUNDLE", &bundle.folder).env("PROGRAM", program);
        let output = command.output().unwrap();
        (output.status.success(), texts(&output))
    };
    let folder = bundle.folder.to_str().unwrap();
    let (good, (_, err)) = in_jail(&["run", "--bundle", folder, &bundle.id]);
    assert!(!good && err.contains("pivot_root"), "{err}");
    let (good, (out, err)) = in_jail(&["run", "--no-pivot", "--bundle", folder, &bundle.id]);
    assert!(good, "{err}");
    assert_eq!(out.lines().next(), pivoted.lines().next());
}

#[test]
fn descriptors_are_closed_but_those_to_be_preserved() {
    let bundle = Bundle::new("ls /proc/self/fd | tr '\\n' ' '; cat <&3");
    let file = bundle.folder.join("preserved");
    fs::write(&file, "preserved").unwrap();
    let mut command = std::process::Command::new("/bin/sh");
    let line = format!(
        "exec 3<{} 4</ 9</; exec {} --root {}/root run --preserve-fds 1 {}",
        file.display(),
        bundle::program().display(),
        bundle.folder.display(),
        bundle.id
    );
    fs::write(bundle.folder.join("config.json"), bundle.config.to_string()).unwrap();
    let output = command
        .args(["-c", &line])
        .current_dir(&bundle.folder)
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    // 4 is what ls itself has opened.
    assert_eq!(out, "0 1 2 3 4 preserved", "{err}");
}

#[test]
fn no_signal_is_blocked_and_a_broken_pipe_ends_a_process() {
    let mut bundle = Bundle::new("");
    bundle.config["process"]["args"] = json!(["/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    let set = |out: &str, name: &str| {
        let line = out.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    const SIGPIPE: u64 = 1 << 12;
    let out = bundle.run();
    assert_eq!(set(&out, "SigBlk:"), 0, "{out}");
    assert_eq!(set(&out, "SigIgn:") & SIGPIPE, 0, "{out}");
    let bundle = Bundle::new("sleep 100");
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    let out = bundle.good(&["exec", &bundle.id, "grep", "SigIgn", "/proc/self/status"]);
    assert_eq!(set(&out, "SigIgn:") & SIGPIPE, 0, "{out}");
}

#[test]
fn a_profile_may_forbid_what_init_needs_before_it() {
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::new("echo ran");
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["getcwd", "chdir", "getpid"], "action": "SCMP_ACT_ERRNO" }] });
        assert_eq!(bundle.run(), "ran\n");
    }
}

#[test]
fn init_waits_with_no_descriptor_but_its_own() {
    let bundle = Bundle::new("sleep 100");
    fs::write(bundle.folder.join("config.json"), bundle.config.to_string()).unwrap();
    let line = format!(
        "exec 9</etc/hostname; exec {} --root {}/root create {}",
        bundle::program().display(),
        bundle.folder.display(),
        bundle.id
    );
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", &line]).current_dir(&bundle.folder);
    let out = fs::File::create(bundle.folder.join("out")).unwrap();
    command
        .stdin(std::process::Stdio::null())
        .stderr(out.try_clone().unwrap());
    assert!(
        command.stdout(out).status().unwrap().success(),
        "{}",
        bundle.output()
    );
    let pid = bundle.state()["pid"].as_i64().unwrap();
    let mut open: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) > Some(2))
        .map(|entry| fs::read_link(entry.path()).unwrap().display().to_string())
        .map(|target| {
            target
                .split(['[', '/'])
                .next_back()
                .unwrap_or_default()
                .to_owned()
        })
        .collect();
    open.sort();
    // The lock, the socket for start and the one to the runtime, which it reads the end of.
    assert_eq!(open.len(), 3, "{open:?}");
    assert!(open.contains(&"init.lock".to_owned()), "{open:?}");
}

#[test]
fn time_namespaces_shift_clocks() {
    let mut bundle = Bundle::new("cut -d. -f1 /proc/uptime");
    bundle.namespace("time", None);
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000_000 } });
    let uptime: u64 = bundle.run().trim().parse().unwrap();
    assert!(uptime > 1_000_000_000);
}

#[test]
fn schedulers_and_priorities_are_set() {
    let mut bundle = Bundle::new("cat /proc/self/stat | cut -d' ' -f41");
    bundle.config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    bundle.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
    assert_eq!(bundle.run(), "3\n");
}

#[test]
fn a_link_in_the_image_does_not_lead_a_mount_out() {
    let mut bundle = Bundle::new("cat /link/there; ls -d /tmp/orlop-outside 2>&1");
    let outside = bundle.folder.join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, bundle.rootfs().join("link")).unwrap();
    fs::create_dir(bundle.folder.join("data")).unwrap();
    fs::write(bundle.folder.join("data/there"), "there\n").unwrap();
    bundle.mount(json!({ "destination": "/link", "source": "data", "options": ["bind"] }));
    let output = bundle.call(&["run", &bundle.id]);
    assert!(texts(&output).0.starts_with("there\n"), "{output:?}");
    assert!(
        fs::read_dir(&outside).unwrap().next().is_none(),
        "nothing was made outside"
    );
}

#[test]
fn mounts_propagate_as_asked_and_no_further() {
    let bundle = Bundle::new("true");
    // In a mount namespace that stands for the host: a shared folder is bound in three ways, a mount made by a
    // container in the shared one comes out, and what the host mounts comes in where it should.
    let script = r#"
        set -e
        mount --make-rprivate /; mount -t tmpfs host $DIR/share; mount --make-shared $DIR/share
        mkdir $DIR/share/in $DIR/share/out
        $OCI --root $DIR/root create --bundle $DIR $ID < /dev/null > $DIR/out 2>&1 || { cat $DIR/out; exit 1; }
        $OCI --root $DIR/root start $ID
        mount -t tmpfs from-host $DIR/share/in
        for i in $(seq 100); do grep -q done $DIR/out && break; sleep 0.05; done
        cat $DIR/out; grep -c from-container /proc/self/mountinfo
        $OCI --root $DIR/root delete --force $ID
        umount $DIR/share/out $DIR/share/in; grep -c "$DIR/rootfs" /proc/self/mountinfo || true"#;
    let mut bundle = bundle;
    for folder in ["share", "rootfs/shared", "rootfs/slave", "rootfs/private"] {
        fs::create_dir(bundle.folder.join(folder)).unwrap();
    }
    bundle.config["process"]["args"] = json!([
        "/bin/sh",
        "-c",
        "until grep -q from-host /proc/self/mountinfo; do sleep 0.01; done; mount -t tmpfs from-container /shared/out; \
         mount -t tmpfs hidden /slave/out; grep from-host /proc/self/mountinfo | cut -d' ' -f5 | sort; echo done; sleep 50"
    ]);
    let caps = json!(["CAP_SYS_ADMIN"]);
    bundle.config["process"]["capabilities"] =
        json!({ "bounding": caps, "permitted": caps, "effective": caps });
    bundle.config["linux"]["rootfsPropagation"] = json!("rshared");
    for kind in ["shared", "slave", "private"] {
        let source = bundle.folder.join("share");
        bundle.mount(json!({ "destination": format!("/{kind}"), "source": source, "options": ["rbind", format!("r{kind}")] }));
    }
    let _ = bundle.call(&["--version"]);
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .env("DIR", &bundle.folder)
        .env("OCI", bundle::program())
        .env("ID", &bundle.id)
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    assert_eq!(out, "/shared/in\n/slave/in\ndone\n1\n0\n", "{err}");
}

#[test]
fn a_container_has_a_session_keyring_of_its_own_unless_told_otherwise() {
    for (option, expected) in [(None, "1\n"), (Some("--no-new-keyring"), "0\n")] {
        // A keyring goes some time after its last process, so each has a name of its own.
        let mut bundle = Bundle::new("grep -c _ses.$ID: /proc/keys");
        bundle.config["linux"]["maskedPaths"] = json!([]);
        bundle.config["process"]["env"] = json!(["PATH=/bin", format!("ID={}", bundle.id)]);
        let mut line = vec!["run"];
        line.extend(option);
        line.push(&bundle.id);
        let output = bundle.call(&line);
        assert_eq!(texts(&output).0, expected, "{option:?}: {}", texts(&output).1);
    }
}

#[test]
fn the_io_priority_is_set() {
    let mut bundle = Bundle::new("ionice");
    for (class, priority, told) in [
        ("IOPRIO_CLASS_IDLE", 0, "idle"),
        ("IOPRIO_CLASS_BE", 6, "best-effort: prio 6\n"),
    ] {
        bundle.config["process"]["ioPriority"] = json!({ "class": class, "priority": priority });
        assert!(bundle.run().starts_with(told), "{class}");
    }
    bundle.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 });
    assert!(bundle.bad(&["run", &bundle.id]).contains("ioPriority"));
}

#[test]
fn a_cgroup_mount_shows_the_container_s_own_cgroup() {
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (folder, limit) = if unified {
        ("", "pids.max")
    } else {
        ("/pids", "pids.max")
    };
    let mut bundle = Bundle::new(&format!(
        "cd /sys/fs/cgroup{folder}; cat {limit} cgroup.procs | head -2; mkdir x 2>&1; echo 5 2>&1 > {limit}"
    ));
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 77 });
    let output = bundle.call(&["run", &bundle.id]);
    let (out, err) = texts(&output);
    assert!(out.starts_with("77\n1\n"), "{out}{err}");
    assert_eq!((out + &err).matches("Read-only file system").count(), 2, "{err}");
    // Without `ro` and with a right to it, a container may divide its cgroup.
    let mut bundle = Bundle::new(&format!(
        "cd /sys/fs/cgroup{folder} && mkdir x && echo $$ > x/cgroup.procs && cat x/cgroup.procs | head -1"
    ));
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["type"] == "cgroup" {
            mount["options"] = json!(["nosuid", "noexec", "nodev"]);
        }
    }
    assert_eq!(bundle.run(), "1\n");
    if !unified {
        // Every hierarchy has its folder, and each controller a name.
        let bundle = Bundle::new("ls /sys/fs/cgroup");
        let out = bundle.run();
        let shown: Vec<&str> = out.lines().collect();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            if !hierarchy.path().join("cgroup.procs").exists() {
                continue;
            }
            let name = hierarchy.file_name().into_string().unwrap();
            assert!(shown.contains(&name.as_str()), "{name} is missing: {shown:?}");
        }
    }
}

#[test]
fn a_tmpfs_takes_the_mode_of_what_it_covers_and_is_made_read_only_last() {
    let mut bundle = Bundle::new("stat -c %a /covered /new /given; echo x > /dev/null; touch /dev/x 2>&1");
    let covered = bundle.rootfs().join("covered");
    fs::create_dir(&covered).unwrap();
    fs::set_permissions(&covered, fs::Permissions::from_mode(0o710)).unwrap();
    bundle.mount(json!({ "destination": "/covered", "type": "tmpfs" }));
    bundle.mount(json!({ "destination": "/new", "type": "tmpfs" }));
    bundle.mount(json!({ "destination": "/given", "type": "tmpfs", "options": ["mode=700"] }));
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/dev" {
            mount["options"] = json!(["ro", "nosuid", "mode=755"]);
        }
    }
    let output = bundle.call(&["run", &bundle.id]);
    let (out, err) = texts(&output);
    assert!(out.starts_with("710\n1777\n700\n"), "{out}{err}");
    assert!((out + &err).contains("Read-only file system"), "{err}");
}

#[test]
fn clocks_are_shifted_in_a_user_namespace_and_personality_reaches_exec() {
    let mut bundle = Bundle::new("cut -d. -f1 /proc/uptime; exec sleep 100");
    bundle.namespace("time", None);
    bundle.namespace("user", None);
    let mappings = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    bundle.config["linux"]["uidMappings"] = mappings.clone();
    bundle.config["linux"]["gidMappings"] = mappings;
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000_000 } });
    bundle.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    own(&bundle, 100_000);
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    wait_until("output", || bundle.output().ends_with('\n'));
    let uptime: u64 = bundle.output().trim().parse().unwrap();
    assert!(uptime > 1_000_000_000);
    let machine = bundle.good(&["exec", &bundle.id, "uname", "-m"]);
    assert!(!machine.contains("64"), "{machine}");
}

#[test]
fn few_open_files_are_enough_to_be_made() {
    let mut bundle = Bundle::new("ulimit -Sn; ulimit -Hn");
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 5, "hard": 7 }]);
    assert_eq!(bundle.run(), "5\n7\n");
    bundle.config["process"]["args"] = json!(["/bin/sleep", "100"]);
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    assert_eq!(bundle.good(&["exec", &bundle.id, "sh", "-c", "ulimit -n"]), "5\n");
}
