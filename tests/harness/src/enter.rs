//! Entering a node's namespaces, always in a thread of its own: a thread that has entered is never used again.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Open namespaces, in the order in which they are entered.
#[derive(Debug)]
pub struct Namespaces {
    open: Vec<(&'static str, CloneFlags, File)>,
    /// Children that were started inside. The PID namespace ends only when its dead have been waited for, also those
    /// that a failed test forgot.
    started: Mutex<Vec<Pid>>,
}

/// The namespaces of a node, by their names in `/proc/PID/ns`. The mount namespace comes last: after it, `/proc` is
/// another.
pub(crate) const ALL: &[(&str, CloneFlags)] = &[
    ("pid_for_children", CloneFlags::CLONE_NEWPID),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// Only the network namespace.
pub(crate) const NETWORK: &[(&str, CloneFlags)] = &[("net", CloneFlags::CLONE_NEWNET)];

impl Namespaces {
    /// Opens the named namespaces of a process.
    pub(crate) fn of(pid: u32, wanted: &[(&'static str, CloneFlags)]) -> Result<Self> {
        let open = wanted
            .iter()
            .map(|(name, flag)| {
                let path = format!("/proc/{pid}/ns/{name}");
                let file = File::open(&path).with_context(|| format!("failed to open `{path}`"))?;
                Ok((*name, *flag, file))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            open,
            started: Mutex::new(Vec::new()),
        })
    }

    fn enter(&self) -> Result<()> {
        // A mount namespace can only be entered by a thread that shares its root and folder with no other.
        unshare(CloneFlags::CLONE_FS).context("failed to unshare the thread's file system state")?;
        for (name, flag, file) in &self.open {
            setns(file.as_fd(), *flag).with_context(|| format!("failed to enter the {name} namespace"))?;
        }
        Ok(())
    }

    /// Calls `work` inside. Processes that it starts are in the PID namespace; the thread itself isn't, and `/proc` has
    /// no entry for it. It can't start threads.
    ///
    /// # Errors
    /// Entering failed, or `work` did.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| Err(anyhow!("the thread in the namespaces panicked: {panic:?}")))
        })
    }

    /// Starts a command inside; it stays a child of this process.
    ///
    /// # Errors
    /// Entering or starting failed.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let child = self.inside(|| {
            command
                .spawn()
                .with_context(|| format!("failed to start {command:?}"))
        })?;
        let pid = i32::try_from(child.id()).context("a pid is positive")?;
        self.started
            .lock()
            .expect("no holder panics")
            .push(Pid::from_raw(pid));
        Ok(child)
    }

    /// Waits for those of the started that are dead and that nobody waited for.
    pub(crate) fn reap(&self) {
        for pid in self.started.lock().expect("no holder panics").iter() {
            // An error means that it isn't ours to wait for any more.
            let _ = waitpid(*pid, Some(WaitPidFlag::WNOHANG));
        }
    }
}
