//! `hack/vm` as its users call it, and what it leaves when it goes wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_owned()
}

fn store() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace().join(target).join("vm")
}

fn hack_vm(arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace().join("hack/vm"));
    command
        .args(arguments)
        .current_dir(workspace())
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    hack_vm(&[&["run"], arguments].concat()).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Processes whose command line names that, by pid.
fn processes(naming: &str) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid != std::process::id() && String::from_utf8_lossy(&line).contains(naming)
        })
        .collect()
}

#[test]
fn a_guest_has_systemd_unified_cgroups_apparmor_and_the_workspace() {
    let look = "cat /proc/1/comm; stat -fc %T /sys/fs/cgroup; cat /sys/fs/cgroup/cgroup.controllers; \
                cat /sys/module/apparmor/parameters/enabled; systemctl is-system-running --wait; pwd; \
                head -n 1 README.md; echo oops >&2; exit 7";
    let output = run(&["--", "sh", "-c", look]);
    let text = out(&output);
    assert_eq!(output.status.code(), Some(7), "{text}{}", err(&output));
    let lines: Vec<&str> = text.lines().collect();
    let here = workspace().to_string_lossy().into_owned();
    assert_eq!(lines[0], "systemd");
    assert_eq!(lines[1], "cgroup2fs");
    for controller in ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"] {
        assert!(lines[2].split(' ').any(|c| c == controller), "{}", lines[2]);
    }
    assert_eq!(lines[3..], ["Y", "running", &here, "# Orlop"]);
    assert!(err(&output).contains("oops\n"));
    assert!(
        err(&output).contains("vm: image ")
            && err(&output).contains(" s, boot ")
            && err(&output).contains(" s, command ")
    );
}

#[test]
fn a_bare_guest_has_the_agent_as_its_first_process() {
    let output = run(&[
        "--bare",
        "--",
        "sh",
        "-c",
        "cat /proc/1/cmdline; cat /sys/fs/cgroup/cgroup.subtree_control",
    ]);
    let text = out(&output);
    assert!(output.status.success(), "{}", err(&output));
    assert!(text.starts_with("/run/orlop-vm/agent\0bare\0"), "{text}");
    assert!(text.contains("memory") && text.contains("hugetlb"), "{text}");
}

#[test]
fn guests_go_on_side_by_side_from_one_that_was_saved() {
    let first = run(&["--snapshot", "--", "true"]);
    assert!(first.status.success(), "{}", err(&first));
    let both: Vec<_> = ["a", "b"]
        .map(|name| {
            let line = format!("test ! -e /mark && echo {name} >/mark && sleep 1 && cat /mark && date +%s");
            hack_vm(&["run", "--snapshot", "--", "sh", "-c", &line])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    for (output, name) in both.iter().zip(["a", "b"]) {
        let text = out(output);
        let (mark, time) = text
            .trim()
            .split_once('\n')
            .unwrap_or_else(|| panic!("{text}{}", err(output)));
        assert_eq!(mark, name);
        // Its clock is the host's, not that of the day it was saved.
        assert!(now.abs_diff(time.parse().unwrap()) < 60, "{time} {now}");
    }
}

#[test]
fn two_nodes_reach_each_other_by_name_and_either_can_fail() {
    let line = "ping -c 1 -W 20 node$((1 - ORLOP_NODE)) >/dev/null && hostname && exit $((ORLOP_NODE * 5))";
    let output = run(&["--snapshot", "--nodes", "2", "--", "sh", "-c", line]);
    assert_eq!(output.status.code(), Some(5), "{}{}", out(&output), err(&output));
    assert!(out(&output).contains("node0: node0\n") && out(&output).contains("node1: node1\n"));
}

#[test]
fn files_come_back_and_a_disk_survives() {
    let dir = std::env::temp_dir().join(format!("orlop-vm-out-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let disk = format!("{}:xfs:320M", dir.join("keep.img").display());
    let back = format!("/root/made:{}", dir.join("back").display());
    let write = "mount | grep ' /disks/keep type xfs' && echo kept >/disks/keep/it && mkdir /root/made && echo back >/root/made/it";
    let first = run(&["--bare", "--disk", &disk, "--out", &back, "--", "sh", "-c", write]);
    assert!(first.status.success(), "{}", err(&first));
    assert_eq!(fs::read_to_string(dir.join("back/it")).unwrap(), "back\n");
    let second = run(&["--bare", "--disk", &disk, "--", "cat", "/disks/keep/it"]);
    assert_eq!(out(&second), "kept\n", "{}", err(&second));
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_command_that_takes_too_long_is_killed_and_one_that_is_not_there_is_named() {
    let slow = run(&["--snapshot", "--timeout", "1", "--", "sleep", "1000"]);
    assert_eq!(slow.status.code(), Some(124), "{}", err(&slow));
    assert!(err(&slow).contains("took too long"));
    let none = run(&["--snapshot", "--", "nonesuch"]);
    assert_eq!(none.status.code(), Some(125));
    assert!(err(&none).contains("failed to run `nonesuch`"), "{}", err(&none));
    let wrong = run(&["--what", "--", "true"]);
    assert_eq!(wrong.status.code(), Some(64));
}

#[test]
fn a_killed_runner_takes_its_guest_along_and_the_next_cleans_up() {
    // A number that no other command line has: that of its only QEMU.
    let memory = (700 + std::process::id() % 200).to_string();
    let mut child = hack_vm(&[
        "run",
        "--bare",
        "--memory",
        &memory,
        "--",
        "sh",
        "-c",
        "echo up; sleep 1000",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    assert_eq!(line, "up\n");
    let mine = format!("-m\0{memory}\0");
    assert_eq!(processes(&mine).len(), 1);
    let folder = fs::read_dir(store().join("runs"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(&format!("{}-", child.id()))
        })
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    while !processes(&mine).is_empty() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "QEMU outlived its runner"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let next = run(&["--snapshot", "--", "true"]);
    assert!(next.status.success(), "{}", err(&next));
    assert!(!folder.exists(), "`{}` is still there", folder.display());
}

#[test]
fn a_guest_that_hangs_is_given_up_after_a_second_try() {
    let agent = store().join("bin/vm-agent");
    if !agent.exists() {
        assert!(run(&["--snapshot", "--", "true"]).status.success());
    }
    let options = tests_vm::Options {
        bare: true,
        kernel_limit: Duration::ZERO,
        ..tests_vm::Options::default()
    };
    let error = format!("{:#}", tests_vm::Vm::boot(&options).unwrap_err());
    assert!(
        error.contains("twice") && error.contains("the guest hangs"),
        "{error}"
    );
}

#[test]
fn power_cut_loses_the_page_cache_and_keeps_what_was_synced() {
    use tests_vm::{Disk, FileSystem, Options, Script, Vm};
    assert!(run(&["--snapshot", "--", "true"]).status.success());
    let dir = std::env::temp_dir().join(format!("orlop-vm-cut-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let disk = Disk::open("data", &dir.join("data.img"), FileSystem::Ext4, 256).unwrap();
    let options = Options {
        bare: true,
        disks: vec![disk.at("/data").options("noauto_da_alloc,commit=300")],
        ..Options::default()
    };
    let mut vm = Vm::boot(&options).unwrap();
    vm.run(&Script::shell(
        "echo safe >/data/safe && sync && echo lost >/data/lost && cat /data/lost",
    ))
    .unwrap()
    .ok()
    .unwrap();
    vm.kill().unwrap();
    let mut vm = Vm::boot(&options).unwrap();
    let left = vm
        .run(&Script::shell("cat /data/safe; cat /data/lost 2>&1"))
        .unwrap();
    assert!(left.stdout_text().starts_with("safe\n"), "{}", left.stdout_text());
    assert!(!left.stdout_text().contains("lost\n"), "{}", left.stdout_text());
    vm.end().unwrap();
    fs::remove_dir_all(&dir).unwrap();
}

/// A target folder in the workspace's own, so that a job can be made from it; its store holds `image` if that is given.
fn other_target(name: &str) -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&target).unwrap();
    target
}

/// The host's program itself, with another target folder.
fn program(target: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vm"))
        .args(arguments)
        .env("CARGO_TARGET_DIR", target)
        .env("ORLOP_VM_AGENT", store().join("bin/vm-agent"))
        .current_dir(workspace())
        .output()
        .unwrap()
}

/// The image that guests are booted from.
fn newest_image() -> PathBuf {
    assert!(run(&["--snapshot", "--", "true"]).status.success());
    fs::read_dir(store().join("images"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_none())
        .max_by_key(|entry| entry.metadata().unwrap().modified().unwrap())
        .unwrap()
        .path()
}

/// `nobody` has a target folder of his own, in which there is the image already: making it needs names in /etc/subuid.
#[test]
fn a_user_who_is_not_root_has_guests_too() {
    const NOBODY: u32 = 65534;
    let newest = newest_image();
    let target = other_target("user");
    let (image, bin) = (
        target.join("vm/images").join(newest.file_name().unwrap()),
        target.join("vm/bin"),
    );
    fs::create_dir_all(&image).unwrap();
    fs::create_dir_all(&bin).unwrap();
    for part in fs::read_dir(&newest).unwrap().flatten() {
        symlink(part.path(), image.join(part.file_name())).unwrap();
    }
    for program in ["vm", "vm-agent"] {
        // As new as they are: not to be built anew.
        let copied = Command::new("cp")
            .arg("-p")
            .arg(store().join("bin").join(program))
            .arg(&bin)
            .status();
        assert!(copied.unwrap().success());
    }
    for folder in ["", "vm", "vm/images", "vm/bin"] {
        std::os::unix::fs::chown(target.join(folder), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    std::os::unix::fs::chown(&image, Some(NOBODY), Some(NOBODY)).unwrap();
    let output = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
        ])
        .arg(workspace().join("hack/vm"))
        .args(["run", "--", "sh", "-c", "id -u; pwd; exit 5"])
        .env("CARGO_TARGET_DIR", &target)
        .env("HOME", &target)
        .env("TMPDIR", "/tmp")
        .current_dir(workspace())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (text, told) = (out(&output), err(&output));
    assert_eq!(output.status.code(), Some(5), "{text}{told}");
    // Root in the guest, whoever it is here.
    assert_eq!(text, format!("0\n{}\n", workspace().display()), "{told}");
    assert_eq!(fs::read_dir(target.join("vm/runs")).unwrap().count(), 0);
    assert_eq!(processes(&image.to_string_lossy()), []);
    fs::remove_dir_all(&target).unwrap();
}

#[test]
fn a_damaged_image_is_named_and_nothing_is_left_running() {
    let newest = newest_image();
    let target = other_target("damaged");
    let image = target.join("vm/images").join(newest.file_name().unwrap());
    fs::create_dir_all(&image).unwrap();
    for part in ["vmlinuz", "release", "modules.dep", "modules.builtin", "modules"] {
        symlink(newest.join(part), image.join(part)).unwrap();
    }
    fs::write(image.join("root.img"), vec![0xA5; 1 << 20]).unwrap();
    let output = program(&target, &["run", "--bare", "--", "true"]);
    let text = err(&output);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("failed to mount the root disk"), "{text}");
    assert!(
        text.contains("if its image is damaged, remove `") && text.contains(&*image.to_string_lossy()),
        "{text}"
    );
    assert_eq!(fs::read_dir(target.join("vm/runs")).unwrap().count(), 0);
    assert_eq!(processes(&image.to_string_lossy()), []);
    fs::remove_dir_all(&target).unwrap();
}

#[test]
fn without_room_on_the_disk_the_need_is_named_and_nothing_is_left() {
    let target = other_target("full");
    let script = format!(
        "mount -t tmpfs -o size=16m tmpfs '{0}' && ! '{1}' run -- true && find '{0}' -type f",
        target.display(),
        env!("CARGO_BIN_EXE_vm")
    );
    let agent = target.with_extension("agent");
    fs::write(&agent, "").unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env("CARGO_TARGET_DIR", &target)
        .env("ORLOP_VM_AGENT", &agent)
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", err(&output));
    assert!(
        err(&output).contains("making the guest's image needs 3072 MiB on the disk of"),
        "{}",
        err(&output)
    );
    let left: Vec<String> = out(&output)
        .lines()
        .filter(|l| !l.ends_with(".lock"))
        .map(str::to_owned)
        .collect();
    assert_eq!(left, Vec::<String>::new());
    fs::remove_file(&agent).unwrap();
    fs::remove_dir(&target).unwrap();
}

#[test]
fn without_qemu_a_user_is_told_which_packages_are_missing() {
    let target = other_target("no-qemu");
    let bin = target.join("bin");
    fs::create_dir(&bin).unwrap();
    for program in fs::read_dir("/usr/bin").unwrap().flatten() {
        let name = program.file_name();
        if !name.to_string_lossy().starts_with("qemu") && name != "id" {
            symlink(program.path(), bin.join(name)).unwrap();
        }
    }
    // Not root, as far as the script can tell: root would have them installed.
    fs::write(bin.join("id"), "#!/bin/sh\necho 1000\n").unwrap();
    fs::set_permissions(
        bin.join("id"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let output = hack_vm(&["run", "--", "true"])
        .env("PATH", &bin)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", err(&output));
    assert_eq!(
        err(&output),
        "hack/vm: these packages are missing: qemu-system-x86 qemu-utils; run hack/deps vm as root\n"
    );
    fs::remove_dir_all(&target).unwrap();
}
