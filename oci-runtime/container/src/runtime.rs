//! The operations on containers below one folder.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::libc;
use oci_runtime_cgroups::{Cgroup, CgroupDriver, CgroupError, Stats};
use oci_runtime_sys::process;
use oci_spec::runtime::{LinuxResources, Process};

use crate::state::{Record, State, Status};
use crate::store::{self, Folder};
use crate::{
    ControlError, CreateError, CreateOptions, Created, DeleteError, ExecError, ExecOptions, Execed,
    KillError, StartError, StoreError, create, delete, exec, process_table, start,
};

/// The containers below one folder. Holds nothing open; every call derives what is from disk and kernel.
///
/// Create and exec fork, so they are for single-threaded processes (and refuse others).
#[derive(Debug, Clone)]
pub struct Runtime {
    root: PathBuf,
    driver: CgroupDriver,
}

impl Runtime {
    /// Names the folder where containers' state is kept; it's made when the first container is.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, driver: CgroupDriver) -> Self {
        Self {
            root: root.into(),
            driver,
        }
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn driver(&self) -> CgroupDriver {
        self.driver
    }

    /// Creates a container up to where its init waits for start.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(&self, options: CreateOptions) -> Result<Created, CreateError> {
        create::create(self, options)
    }

    /// Lets a created container's init go; returns, with warnings, when it has executed the command.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(&self, id: &str) -> Result<Vec<String>, StartError> {
        start::start(self, id)
    }

    /// A container's state.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn state(&self, id: &str) -> Result<State, StoreError> {
        let (folder, record) = self.open(id)?;
        Ok(record.state(self.status_of(&folder, &record)))
    }

    /// What the container's configuration says of its process: where an exec without a description begins.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn process(&self, id: &str) -> Result<Process, StoreError> {
        Ok(self.open(id)?.1.process)
    }

    /// The container's cgroup: a path from the root of the hierarchies, or `slice:prefix:name`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn cgroup_path(&self, id: &str) -> Result<String, StoreError> {
        Ok(self.open(id)?.1.cgroup)
    }

    /// The state of every container, by name; those whose state can't be read are left out.
    ///
    /// # Errors
    /// When the folder can't be listed.
    pub fn list(&self) -> Result<Vec<State>, StoreError> {
        let names = store::names(&self.root)?;
        Ok(names.iter().filter_map(|name| self.state(name).ok()).collect())
    }

    /// Signals init, or with `all` every process in the container's cgroup.
    ///
    /// # Errors
    /// See [`KillError`].
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), KillError> {
        let (folder, record) = self.open(id)?;
        // Without a PID namespace that ends with init, its children live on, with it and after it.
        if all || (signal == libc::SIGKILL && !record.own_pid_namespace && record.init().is_some()) {
            let alive = record
                .init()
                .is_some_and(|(pid, started)| process_table::lives(pid, started));
            if !all && !alive && self.cgroup(&record)?.pids(true)?.is_empty() {
                return Err(KillError::NotRunning);
            }
            return self.kill_all(&record, signal);
        }
        let found = record
            .init()
            .and_then(|(pid, started)| Some((pid, process_table::alive(pid, started)?)));
        let Some((pid, alive)) = found else {
            return Err(KillError::NotRunning);
        };
        send(pid, &alive, signal)?;
        if signal == libc::SIGKILL && self.status_of(&folder, &record) == Status::Paused {
            // On cgroup v1 a frozen process doesn't even die.
            self.cgroup(&record)?.thaw()?;
        }
        Ok(())
    }

    fn kill_all(&self, record: &Record, signal: i32) -> Result<(), KillError> {
        let cgroup = self.cgroup(record)?;
        if signal == libc::SIGKILL {
            return Ok(cgroup.kill_all()?);
        }
        // Frozen, so that none is forked unseen; a host without a freezer signals those it sees.
        let frozen = cgroup.freeze().is_ok();
        let pids = cgroup.pids(true);
        let mut result = Ok(());
        for pid in pids.iter().flatten() {
            match process::pidfd_open(*pid).and_then(|fd| process::pidfd_send_signal(fd.as_fd(), signal)) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(source) => {
                    result = Err(KillError::Signal {
                        signal,
                        pid: *pid,
                        source,
                    });
                }
            }
        }
        if frozen {
            cgroup.thaw()?;
        }
        pids?;
        result
    }

    /// Removes a stopped container's state and cgroup; with `force`, kills it first, and absent is fine. Returns
    /// warnings.
    ///
    /// # Errors
    /// See [`DeleteError`].
    pub fn delete(&self, id: &str, force: bool) -> Result<Vec<String>, DeleteError> {
        delete::delete(self, id, force)
    }

    /// Runs a process in a container; returns when it has executed the command.
    ///
    /// # Errors
    /// See [`ExecError`].
    pub fn exec(&self, options: ExecOptions) -> Result<Execed, ExecError> {
        exec::exec(self, options)
    }

    /// Changes limits.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn update(&self, id: &str, resources: &LinuxResources) -> Result<(), ControlError> {
        self.control(
            id,
            "update",
            &[Status::Created, Status::Running, Status::Paused],
            |cgroup| cgroup.apply(resources),
        )
    }

    /// Freezes every process.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn pause(&self, id: &str) -> Result<(), ControlError> {
        self.control(id, "pause", &[Status::Created, Status::Running], Cgroup::freeze)
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn resume(&self, id: &str) -> Result<(), ControlError> {
        self.control(id, "resume", &[Status::Paused], Cgroup::thaw)
    }

    /// The processes in the container's cgroup.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn ps(&self, id: &str) -> Result<Vec<i32>, ControlError> {
        let all = [Status::Created, Status::Running, Status::Paused, Status::Stopped];
        self.control(id, "list the processes of", &all, |cgroup| cgroup.pids(true))
    }

    /// What its processes use.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn stats(&self, id: &str) -> Result<Stats, ControlError> {
        let alive = [Status::Created, Status::Running, Status::Paused];
        self.control(id, "measure", &alive, Cgroup::stats)
    }

    fn control<T>(
        &self,
        id: &str,
        action: &'static str,
        allowed: &[Status],
        act: impl FnOnce(&Cgroup) -> Result<T, CgroupError>,
    ) -> Result<T, ControlError> {
        let (folder, record) = self.open(id)?;
        let status = self.status_of(&folder, &record);
        if !allowed.contains(&status) {
            return Err(ControlError::WrongState { action, status });
        }
        self.cgroup(&record)
            .and_then(|cgroup| act(&cgroup))
            .map_err(|source| ControlError::Cgroup { action, source })
    }

    fn cgroup(&self, record: &Record) -> Result<Cgroup, CgroupError> {
        Cgroup::named(&record.cgroup)
    }

    fn open(&self, id: &str) -> Result<(Folder, Record), StoreError> {
        let folder = Folder::new(&self.root, id)?;
        let record = folder.read()?;
        Ok((folder, record))
    }

    /// Derived from what is, never from what was written.
    pub(crate) fn status_of(&self, folder: &Folder, record: &Record) -> Status {
        let Some((pid, started)) = record.init() else {
            return Status::Creating;
        };
        if !process_table::lives(pid, started) {
            return Status::Stopped;
        }
        if folder.is_locked() {
            return Status::Created;
        }
        let frozen = self.cgroup(record).and_then(|cgroup| cgroup.is_frozen());
        if frozen.unwrap_or(false) {
            Status::Paused
        } else {
            Status::Running
        }
    }
}

fn send(pid: i32, alive: &process_table::Alive, signal: i32) -> Result<(), KillError> {
    match process::pidfd_send_signal(alive.pidfd.as_fd(), signal) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Err(KillError::NoSuchProcess),
        Err(source) => Err(KillError::Signal { signal, pid, source }),
    }
}
