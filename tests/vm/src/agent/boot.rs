//! From the kernel's first process to the root disk's.
//!
//! The initial RAM disk holds this program, the modules without which there is no disk (`/early` lists them in order)
//! and `/late`, the modules of the root disk that are loaded for good, in order. Units are put into `/run`, which stays
//! mounted, so that the root disk holds nothing but Debian's packages and a new agent needs no new image.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::{SELF, disks, kernel_argument, mount_kernel, tell};

/// Units that cost seconds of every boot and do nothing for a test.
const MASKED: &[&str] = &[
    "apparmor.service",
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "containerd.service",
    "docker-registry.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "getty-static.service",
    "ldconfig.service",
    "modprobe@.service",
    "nftables.service",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "systemd-update-done.service",
    "systemd-update-utmp.service",
    "xfs_scrub_all.timer",
];

const UNIT: &str = "[Unit]
Description=Runs what the host asks for
After=basic.target dbus.socket

[Service]
ExecStart=/run/orlop-vm/agent serve
Delegate=yes
OOMPolicy=continue
TasksMax=infinity
StandardOutput=tty
TTYPath=/dev/ttyS0
StandardError=inherit
";

/// Boots as far as the root disk's first process.
pub(crate) fn run() -> Result<()> {
    mount_kernel("proc", "/proc", None)?;
    mount_kernel("sysfs", "/sys", None)?;
    mount_kernel("devtmpfs", "/dev", None)?;
    tell("orlop: kernel up");
    if kernel_argument("orlop.probe").is_some() {
        reboot(RebootMode::RB_AUTOBOOT).context("failed to end the probe")?;
    }
    load(Path::new("/"), &fs::read_to_string("/early")?)?;
    mount_root()?;
    let late = fs::read_to_string("/late")?;
    load(Path::new("/root"), &late)?;
    furnish()?;
    tell("orlop: root disk up");
    switch_root()
}

/// Loads modules, one path a line, below a root. One that the kernel has already is none the worse.
fn load(root: &Path, list: &str) -> Result<()> {
    for line in list.lines() {
        let path = root.join(line.trim_start_matches('/'));
        let file = File::open(&path).with_context(|| format!("failed to open `{}`", path.display()))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => bail!("failed to load the module `{}`: {e}", path.display()),
        }
    }
    Ok(())
}

fn mount_root() -> Result<()> {
    let device = disks::find("root")?;
    fs::create_dir_all("/root")?;
    mount(
        Some(&device),
        "/root",
        Some("ext4"),
        MsFlags::MS_NOATIME,
        None::<&str>,
    )
    .with_context(|| format!("failed to mount the root disk ({})", device.display()))?;
    mount_kernel("tmpfs", "/root/run", Some("mode=755"))
}

/// The agent, its unit and the masks, into the root disk's `/run`.
fn furnish() -> Result<()> {
    let agent = Path::new("/root").join(SELF.trim_start_matches('/'));
    fs::create_dir_all(agent.parent().context("the agent is in a folder")?)?;
    fs::copy("/init", &agent).context("failed to copy the agent")?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    let units = Path::new("/root/run/systemd/system");
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    fs::write(units.join("orlop-vm-agent.service"), UNIT)?;
    symlink("../orlop-vm-agent.service", wants.join("orlop-vm-agent.service"))?;
    for unit in MASKED {
        symlink("/dev/null", units.join(unit)).with_context(|| format!("failed to mask `{unit}`"))?;
    }
    Ok(())
}

/// Makes the root disk the root and goes on with its first process.
fn switch_root() -> Result<()> {
    for top in ["/dev", "/sys", "/proc"] {
        let at = format!("/root{top}");
        mount(
            Some(top),
            at.as_str(),
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .with_context(|| format!("failed to move `{top}`"))?;
    }
    std::env::set_current_dir("/root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("failed to make the root disk the root")?;
    nix::unistd::chroot(".").context("failed to enter the root disk")?;
    std::env::set_current_dir("/")?;
    // /proc is below the new root now, and with it the kernel's arguments.
    let mut next = if kernel_argument("orlop.bare").is_some() {
        let mut agent = Command::new(SELF);
        agent.arg("bare");
        agent
    } else {
        Command::new("/sbin/init")
    };
    let error = next.env_clear().env("PATH", crate::serve::PATH).exec();
    Err(error).with_context(|| format!("failed to run `{}`", next.get_program().display()))
}
