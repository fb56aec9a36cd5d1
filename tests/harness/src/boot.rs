//! Making a node's namespaces, and what is mounted in them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

use crate::cgroup::Subtree;
use crate::driver::Driver;
use crate::enter::{ALL, NETWORK, Namespaces};
use crate::run::wait_until;

/// What the PID namespace's init runs: it says that it is there, reaps what it inherits (bash does so by itself), and
/// ends when nobody holds the other end of its input any more.
const INIT: &str = "echo up; while read -r _; do :; done";

/// Namespaces that exist as long as this value does.
#[derive(Debug)]
pub(crate) struct Sandbox {
    keeper: Child,
    /// Never written to. Closing it ends the namespaces.
    lifeline: Option<ChildStdin>,
    pub(crate) namespaces: Namespaces,
    /// What is in them has a PID namespace of its own, and ends with its init.
    own_pids: bool,
}

impl Sandbox {
    /// All namespaces of a node.
    pub(crate) fn node(driver: Driver) -> Result<Self> {
        let shared = ["--mount", "--net", "--uts", "--ipc"];
        match driver {
            Driver::Cgroupfs => {
                let own_pids = ["--pid", "--fork", "--mount-proc"];
                Self::new(&[&shared[..], &own_pids[..]].concat(), ALL)
            }
            Driver::Systemd => {
                let all_but_pid: Vec<_> = ALL
                    .iter()
                    .copied()
                    .filter(|(name, _)| *name != "pid_for_children")
                    .collect();
                let mut sandbox = Self::new(&shared, &all_but_pid)?;
                sandbox.own_pids = false;
                Ok(sandbox)
            }
        }
    }

    /// A network namespace only.
    pub(crate) fn network() -> Result<Self> {
        Self::new(&["--net"], NETWORK)
    }

    fn new(flags: &[&str], wanted: &[(&'static str, nix::sched::CloneFlags)]) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(flags);
        if flags.contains(&"--fork") {
            command.arg("--kill-child");
        }
        if flags.contains(&"--mount") {
            command.args(["--propagation", "private"]);
        }
        let mut keeper = command
            .args(["bash", "--norc", "--noprofile", "-c", INIT])
            .env_remove("BASH_ENV")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to run `unshare` (util-linux)")?;
        let lifeline = keeper.stdin.take();
        let mut line = String::new();
        let stdout = keeper
            .stdout
            .take()
            .context("the keeper's output was asked for")?;
        BufReader::new(stdout).read_line(&mut line)?;
        if line != "up\n" {
            let status = keeper.wait()?;
            anyhow::bail!("`unshare` made no namespaces: {status} (are you root?)");
        }
        let namespaces = Namespaces::of(keeper.id(), wanted)?;
        Ok(Self {
            keeper,
            lifeline,
            namespaces,
            own_pids: true,
        })
    }

    /// The process that is in the namespaces (but for the PID namespace, whose init is its child).
    pub(crate) fn pid(&self) -> u32 {
        self.keeper.id()
    }

    /// What is to be looked at to see who is in the namespaces.
    pub(crate) fn residents(&self, cgroup: &Subtree) -> Result<Residents> {
        Ok(match self.own_pids {
            true => Residents::All,
            false => Residents::In {
                keeper: self.pid(),
                mounts: mount_namespace(self.pid())
                    .with_context(|| format!("failed to look at process {}", self.pid()))?,
                cgroup: cgroup.path(),
            },
        })
    }

    /// Kills what is in the mount namespace, where no PID namespace's end does.
    fn kill_residents(&self) -> Result<()> {
        let Some(ours) = mount_namespace(self.pid()) else {
            return Ok(());
        };
        for pid in pids().filter(|pid| *pid != self.pid() && mount_namespace(*pid).as_ref() == Some(&ours)) {
            let pid = Pid::from_raw(i32::try_from(pid).context("a pid is positive")?);
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(e).with_context(|| format!("failed to kill process {pid}")),
            }
        }
        Ok(())
    }

    /// Ends every process inside and waits until they are gone.
    pub(crate) fn end(&mut self) -> Result<()> {
        if !self.own_pids && self.lifeline.is_some() {
            self.kill_residents()?;
        }
        if self.lifeline.take().is_some() {
            // init ends by itself; the kernel kills the rest before `unshare` sees init's end.
            wait_until("the node's end", LIMIT, || {
                self.namespaces.reap();
                Ok(self.keeper.try_wait()?.is_some())
            })
            .or_else(|slow| {
                self.keeper.kill().context("failed to kill the node's keeper")?;
                self.keeper
                    .wait()
                    .context("failed to wait for the node's keeper")?;
                Err(slow)
            })?;
        }
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // `end` says what went wrong; here nobody could hear it.
        let _ = self.end();
    }
}

/// Whose processes are a node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Residents {
    /// All that there are in this `/proc`.
    All,
    /// Those in a mount namespace or a cgroup, but for the one that keeps it.
    In {
        keeper: u32,
        mounts: PathBuf,
        cgroup: String,
    },
}

impl Residents {
    /// Whether a process is one of them, and not the one that keeps the namespaces.
    pub(crate) fn has(&self, pid: u32) -> bool {
        match self {
            Self::All => pid != 1,
            Self::In {
                keeper,
                mounts,
                cgroup,
            } => {
                let below = format!("0::{cgroup}/");
                let inside = || fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                pid != *keeper
                    && (mount_namespace(pid).as_ref() == Some(mounts) || inside().starts_with(&below))
            }
        }
    }

    /// A process that sees the node's mounts.
    pub(crate) fn keeper(&self) -> u32 {
        match self {
            Self::All => 1,
            Self::In { keeper, .. } => *keeper,
        }
    }
}

/// `mnt:[4026531841]`; `None` for one that is gone.
fn mount_namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// All processes of this `/proc`.
pub(crate) fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Mounts, hostname, loopback and forwarding, as a machine has them after boot. Runs inside the namespaces.
pub(crate) fn furnish(base: &Path, hostname: &str, keep: &[PathBuf], driver: Driver) -> Result<()> {
    // As systemd has it: what is mounted later is seen by bind mounts made earlier. Only inside this namespace.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None::<&str>,
    )
    .context("failed to make the node's mounts shared")?;
    for top in ["etc", "opt"] {
        let at = Path::new("/").join(top);
        if !at.is_dir() {
            continue;
        }
        let (upper, work) = (base.join("upper").join(top), base.join("work").join(top));
        create(&upper)?;
        create(&work)?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            at.display(),
            upper.display(),
            work.display()
        );
        mount(
            Some("overlay"),
            &at,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("failed to mount an overlay on `{}`", at.display()))?;
    }
    // On the disk itself: a snapshot's writable part can't be in an overlay, nor can an overlay be mounted with mapped
    // users.
    hide(base, "/var/lib", keep)?;
    hide(base, "/var/log", keep)?;
    let sockets: &[&str] = match driver {
        Driver::Cgroupfs => &[],
        Driver::Systemd => &["systemd", "dbus"],
    };
    for name in sockets {
        let aside = base.join("sockets").join(name);
        create(&aside)?;
        bind(&Path::new("/run").join(name), &aside)?;
    }
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755"),
    )
    .context("failed to mount a tmpfs on `/run`")?;
    for name in sockets {
        let place = Path::new("/run").join(name);
        create(&place)?;
        bind(&base.join("sockets").join(name), &place)?;
    }
    for dir in ["/etc/cni/net.d", "/etc/orlop", "/opt/cni/bin"] {
        // The machine's own must not show through.
        if Path::new(dir).exists() {
            fs::remove_dir_all(dir).with_context(|| format!("failed to hide the machine's `{dir}`"))?;
        }
        create(Path::new(dir))?;
    }
    create(&base.join("tmp"))?;
    nix::unistd::sethostname(hostname).context("failed to set the node's hostname")?;
    for (key, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
        let path = format!("/proc/sys/net/{key}");
        // A kernel without IPv6 has no such file.
        if Path::new(&path).exists() {
            fs::write(&path, value).with_context(|| format!("failed to write `{path}`"))?;
        }
    }
    Ok(())
}

const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// Gives the node's state a file system of its own, of that size.
pub(crate) fn small_disk(mib: u64) -> Result<()> {
    let at = Path::new("/var/lib/orlop");
    create(at)?;
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(format!("size={mib}m,mode=755").as_str()),
    )
    .context("failed to mount a small tmpfs on `/var/lib/orlop`")
}

/// An overlay's upper layer can't be on an overlay, which is what a container's disk is: then memory must do.
pub(crate) fn real_disk(base: &Path) -> Result<bool> {
    let kind =
        statfs(base).with_context(|| format!("failed to look at the file system of `{}`", base.display()))?;
    Ok(kind.filesystem_type() != OVERLAYFS_SUPER_MAGIC)
}

pub(crate) fn memory_disk(base: &Path) -> Result<()> {
    mount(
        Some("tmpfs"),
        base,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .with_context(|| format!("failed to mount a tmpfs on `{}`", base.display()))
}

/// Puts an empty folder of the node's disk in place of a folder of the machine. What is to be kept and lies below it
/// (the repository, for one) is bound into the new one.
fn hide(base: &Path, at: &str, keep: &[PathBuf]) -> Result<()> {
    let at = Path::new(at);
    let fresh = base.join(at.file_name().context("the folder has a name")?);
    create(&fresh)?;
    for path in keep.iter().filter(|path| path.starts_with(at)) {
        let place = fresh.join(path.strip_prefix(at)?);
        create(&place)?;
        bind(path, &place)?;
    }
    bind(&fresh, at)
}

fn bind(from: &Path, at: &Path) -> Result<()> {
    mount(
        Some(from),
        at,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("failed to bind `{}` to `{}`", from.display(), at.display()))
}

fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("failed to create `{}`", dir.display()))?;
    ensure!(dir.is_dir(), "`{}` is no folder", dir.display());
    Ok(())
}
