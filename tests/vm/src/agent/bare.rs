//! A bare guest's first process: what systemd would mount, the agent as its child, and reaping.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use crate::{SELF, kernel_argument, mount_kernel, serve};

/// Runs until the agent ends.
pub(crate) fn run() -> Result<()> {
    for (kind, at, options) in [
        ("devpts", "/dev/pts", Some("gid=5,mode=620,ptmxmode=666")),
        ("tmpfs", "/dev/shm", Some("mode=1777")),
        ("mqueue", "/dev/mqueue", None),
        (
            "cgroup2",
            "/sys/fs/cgroup",
            Some("nsdelegate,memory_recursiveprot"),
        ),
        ("securityfs", "/sys/kernel/security", None),
        ("bpf", "/sys/fs/bpf", Some("mode=700")),
    ] {
        mount_kernel(kind, at, options)?;
    }
    for (to, at) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        symlink(to, at).with_context(|| format!("failed to link `{at}`"))?;
    }
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    for controller in controllers.split_whitespace() {
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", format!("+{controller}"))
            .with_context(|| format!("failed to enable the {controller} controller"))?;
    }
    if let Some(name) = kernel_argument("systemd.hostname") {
        nix::unistd::sethostname(&name).context("failed to set the hostname")?;
    }
    let up = Command::new("/sbin/ip")
        .args(["link", "set", "lo", "up"])
        .env("PATH", serve::PATH)
        .status()
        .context("failed to run `ip`")?;
    if !up.success() {
        bail!("`ip link set lo up` failed: {up}");
    }
    let agent = Command::new(SELF)
        .arg("serve")
        .spawn()
        .context("failed to start the agent")?;
    let agent = Pid::from_raw(i32::try_from(agent.id())?);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) if pid == agent => {
                bail!("the agent ended")
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => bail!("failed to wait for a child: {e}"),
        }
    }
}
