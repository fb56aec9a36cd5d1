//! What the operations take and give back.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use oci_spec::runtime::{Process, Spec};

use crate::config::Parsed;

/// Where a process's standard streams go.
#[derive(Debug, Default)]
pub enum Stdio {
    /// The caller's own.
    #[default]
    Inherit,
    /// These: stdin, stdout, stderr.
    Fds([OwnedFd; 3]),
    /// A new terminal, whose main side is sent to this Unix socket. Needs `process.terminal`.
    ConsoleSocket(PathBuf),
    /// A new terminal, whose main side is handed back. Needs `process.terminal`.
    ConsoleFd,
}

/// How to create a container.
#[derive(Debug)]
pub struct CreateOptions {
    /// Its name: letters, digits and `_+-.`.
    pub id: String,
    /// The folder with `config.json`.
    pub bundle: PathBuf,
    /// The init process's standard streams.
    pub stdio: Stdio,
    /// Written, in one step, with init's pid when the container is created.
    pub pid_file: Option<PathBuf>,
    /// Move the root mount and chroot instead of pivot_root (for a rootfs on an initramfs).
    pub no_pivot: bool,
    /// Leave the session keyring as it is.
    pub no_new_keyring: bool,
    /// How many descriptors from 3 on stay open in init.
    pub preserve_fds: u32,
    /// The bundle's configuration, for a caller that has read it already.
    pub config: Option<Parsed<Spec>>,
    /// Init becomes a child of the caller's parent. The caller is then a stage child that exits soon; its parent
    /// must be a child subreaper, since not every combination of namespaces can do it at once.
    pub clone_parent: bool,
}

impl CreateOptions {
    /// A container of that name and bundle, everything else at its default.
    #[must_use]
    pub fn new(id: impl Into<String>, bundle: impl Into<PathBuf>) -> Self {
        Self {
            id: id.into(),
            bundle: bundle.into(),
            stdio: Stdio::Inherit,
            pid_file: None,
            no_pivot: false,
            no_new_keyring: false,
            preserve_fds: 0,
            config: None,
            clone_parent: false,
        }
    }
}

/// A container was created; its init waits for start.
#[derive(Debug)]
pub struct Created {
    /// Init, as the caller's PID namespace numbers it.
    pub pid: i32,
    /// The main side of the terminal, for [`Stdio::ConsoleFd`].
    pub console: Option<OwnedFd>,
    /// What could not be done as asked but need not stop the container.
    pub warnings: Vec<String>,
}

/// How to run a process in a container.
#[derive(Debug)]
pub struct ExecOptions {
    /// The container.
    pub id: String,
    /// What to run, and as whom.
    pub process: Process,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Written, in one step, with its pid.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on stay open in it.
    pub preserve_fds: u32,
    /// The process becomes a child of the caller's parent.
    pub clone_parent: bool,
    /// A cgroup below the container's to put it in, e.g. `/probes`; empty: the container's own.
    pub sub_cgroup: String,
    /// Don't refuse a paused container (the process then runs when it is resumed).
    pub ignore_paused: bool,
}

impl ExecOptions {
    /// That process in that container, everything else at its default.
    #[must_use]
    pub fn new(id: impl Into<String>, process: Process) -> Self {
        Self {
            id: id.into(),
            process,
            stdio: Stdio::Inherit,
            pid_file: None,
            preserve_fds: 0,
            clone_parent: false,
            sub_cgroup: String::new(),
            ignore_paused: false,
        }
    }
}

/// A process runs in a container: its `execve` has succeeded.
#[derive(Debug)]
pub struct Execed {
    /// Its number in the caller's PID namespace.
    pub pid: i32,
    /// The main side of the terminal, for [`Stdio::ConsoleFd`].
    pub console: Option<OwnedFd>,
    /// What could not be done as asked but need not stop the process.
    pub warnings: Vec<String>,
}
