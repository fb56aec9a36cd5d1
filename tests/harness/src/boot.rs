//! Making a node's namespaces, and what is mounted in them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

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
}

impl Sandbox {
    /// All namespaces of a node.
    pub(crate) fn node() -> Result<Self> {
        Self::new(
            &[
                "--mount",
                "--net",
                "--uts",
                "--ipc",
                "--pid",
                "--fork",
                "--mount-proc",
            ],
            ALL,
        )
    }

    /// A network namespace only.
    pub(crate) fn network() -> Result<Self> {
        Self::new(&["--net"], NETWORK)
    }

    fn new(flags: &[&str], wanted: &[(&'static str, nix::sched::CloneFlags)]) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(flags);
        if flags.contains(&"--fork") {
            command.args(["--kill-child", "--propagation", "private"]);
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
        })
    }

    /// The process that is in the namespaces (but for the PID namespace, whose init is its child).
    pub(crate) fn pid(&self) -> u32 {
        self.keeper.id()
    }

    /// Ends every process inside and waits until they are gone.
    pub(crate) fn end(&mut self) -> Result<()> {
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

/// Mounts, hostname, loopback and forwarding, as a machine has them after boot. Runs inside the namespaces.
pub(crate) fn furnish(base: &Path, hostname: &str, keep: &[PathBuf]) -> Result<()> {
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
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755"),
    )
    .context("failed to mount a tmpfs on `/run`")?;
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
