//! The ways out of containers that runc's advisories describe, each shut.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod bundle;

use std::fs;
use std::os::unix::fs::symlink;

use bundle::{Bundle, texts, wait_until};
use serde_json::json;

/// CVE-2019-5736: a process in the container opens the runtime's executable and writes to it.
#[test]
fn cve_2019_5736_the_executable_in_reach_is_not_the_hosts() {
    let bundle = Bundle::new("sleep 100");
    bundle.create();
    let pid = bundle.state()["pid"].as_i64().unwrap();
    let host = fs::metadata(bundle::program()).unwrap();
    let before = fs::read(bundle::program()).unwrap();
    // Init waits for start and is still the runtime's program: what is it?
    let link = format!("/proc/{pid}/exe");
    use std::os::unix::fs::MetadataExt as _;
    let reached = fs::metadata(&link).unwrap();
    assert_ne!(
        (reached.dev(), reached.ino()),
        (host.dev(), host.ino()),
        "the host's file is in reach"
    );
    let written = fs::OpenOptions::new().write(true).open(&link);
    assert!(written.is_err(), "even root can't open it for writing");
    // And from inside: a container whose command is the runtime itself.
    let mut evil = Bundle::new("");
    evil.config["process"]["args"] = json!(["/proc/self/exe", "--version"]);
    let output = evil.call(&["run", &evil.id]);
    assert!(!texts(&output).1.contains("panicked"), "{output:?}");
    assert_eq!(fs::read(bundle::program()).unwrap(), before);
}

/// CVE-2024-21626: a descriptor of the host leaks in as the working folder.
#[test]
fn cve_2024_21626_the_working_folder_cannot_be_a_leaked_descriptor() {
    for fd in 3..12 {
        let mut bundle = Bundle::new("cat ../../../../../../etc/hostname; pwd");
        bundle.config["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        let output = bundle.call(&["run", &bundle.id]);
        assert!(!output.status.success(), "fd {fd}: {}", texts(&output).0);
    }
    let bundle = Bundle::new("sleep 100");
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    for fd in 3..12 {
        let cwd = format!("/proc/self/fd/{fd}");
        let output = bundle.call(&["exec", "--cwd", &cwd, &bundle.id, "pwd"]);
        assert!(!output.status.success(), "fd {fd}: {}", texts(&output).0);
    }
}

/// CVE-2025-31133: the container's /dev/null is a link, and masking binds what it points to over the masked path.
#[test]
fn cve_2025_31133_masking_uses_the_real_null_device() {
    let mut bundle = Bundle::new("cat /secret; stat -c %t:%T /secret");
    // Without a tmpfs on /dev, the image brings its own null.
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    symlink("/proc/sys/kernel/core_pattern", bundle.rootfs().join("dev/null")).unwrap();
    fs::write(bundle.rootfs().join("secret"), "SECRET").unwrap();
    bundle.config["linux"]["maskedPaths"] = json!(["/secret"]);
    let error = bundle.bad(&["run", &bundle.id]);
    assert!(
        error.contains("/dev/null") && error.contains("something else is there"),
        "{error}"
    );
    fs::remove_file(bundle.rootfs().join("dev/null")).unwrap();
    assert_eq!(bundle.run(), "1:3\n");
}

/// CVE-2025-52565: /dev/console or /dev/pts in the image is a link, and the terminal is bound over its target.
#[test]
fn cve_2025_52565_the_console_stays_inside() {
    let mut bundle = Bundle::new("readlink /dev/console; tty; stat -L -c %t:%T /dev/console");
    bundle.config["process"]["terminal"] = json!(true);
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| m["destination"] != "/dev");
    fs::create_dir(bundle.rootfs().join("dev/pts")).unwrap();
    let outside = bundle.folder.join("outside");
    fs::write(&outside, "outside").unwrap();
    symlink(&outside, bundle.rootfs().join("dev/console")).unwrap();
    // The link leads to a place in the image, and only the container's own terminal is there.
    let expected = format!("{}\n/dev/pts/0\n88:0\n", outside.display());
    assert_eq!(bundle.run().replace('\r', ""), expected);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "outside");
    // With the image's ptmx being something else, there is no terminal at all.
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| m["destination"] != "/dev/pts");
    symlink("/dev/zero", bundle.rootfs().join("dev/pts/ptmx")).unwrap();
    let error = bundle.bad(&["run", &bundle.id]);
    assert!(error.contains("devpts"), "{error}");
}

/// CVE-2025-52881: /proc in the image is a link or another file system, and the runtime's writes go elsewhere.
#[test]
fn cve_2025_52881_writes_to_proc_go_to_procfs() {
    let mut bundle = Bundle::new("true");
    fs::remove_dir(bundle.rootfs().join("proc")).unwrap();
    symlink("/tmp", bundle.rootfs().join("proc")).unwrap();
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    let error = bundle.bad(&["run", &bundle.id]);
    assert!(error.contains("ordinary directory"), "{error}");
    // A tmpfs in procfs's place: sysctls and limits are written before the container's mounts exist.
    let mut bundle = Bundle::new("ls /proc | wc -l; sleep 100");
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| m["destination"] != "/proc");
    bundle.mount(json!({ "destination": "/proc", "type": "tmpfs" }));
    bundle.config["process"]["oomScoreAdj"] = json!(321);
    bundle.create();
    bundle.good(&["start", &bundle.id]);
    wait_until("output", || bundle.output() == "0\n");
    let pid = bundle.state()["pid"].as_i64().unwrap();
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "321");
    // An exec takes its writes from the host's procfs, too.
    assert_eq!(bundle.good(&["exec", &bundle.id, "echo", "ok"]), "ok\n");
}

/// CVE-2026-41579: /dev in the image is a link out of it, and the standard links and devices are made, and the image's
/// ptmx removed, where it points to.
#[test]
fn cve_2026_41579_dev_is_looked_up_inside_the_image() {
    for relative in [false, true] {
        let mut bundle = Bundle::new("echo x > /dev/null && readlink /dev/ptmx && readlink /dev/stdin");
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
        bundle.config["root"]["readonly"] = json!(false);
        let outside = bundle.folder.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("ptmx"), "host's").unwrap();
        fs::remove_dir(bundle.rootfs().join("dev")).unwrap();
        let target = if relative {
            "../outside".into()
        } else {
            outside.clone()
        };
        symlink(target, bundle.rootfs().join("dev")).unwrap();
        let entries = || fs::read_dir(&outside).unwrap().count();
        assert_eq!(bundle.run(), "pts/ptmx\n/proc/self/fd/0\n");
        assert_eq!(entries(), 1, "relative: {relative}");
        // The same in two steps.
        bundle.create();
        bundle.good(&["start", &bundle.id]);
        bundle.wait_for("stopped");
        assert_eq!(entries(), 1, "relative: {relative}");
        assert_eq!(fs::read_to_string(outside.join("ptmx")).unwrap(), "host's");
    }
}
