//! A container, as the shim holds it.
//!
//! ```text
//!                  stage ok              start stage ok              init ends, all output read
//!   Creating ───────────────> Created ───────────────────> Running ────────────────────────────> Exited
//!      │                         └────────────── init ends ──────────────────────────────────────> │
//!      │ stage fails, is killed                                                      delete stage ok │
//!      └──> its remains are deleted ──> gone                                                  gone <─┘
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cri_shim_protocol::{ContainerState, Exit, Status};

use crate::clients::ReplyTo;
use crate::oom::Oom;
use crate::stage::Handle;
use crate::stdio::Stdio;

/// How many containers a pod may have.
pub(crate) const MAX_CONTAINERS: usize = 1024;
/// How many execs may run in one container.
pub(crate) const MAX_EXECS: usize = 256;

/// Where a container is in its life.
#[derive(Debug)]
pub(crate) enum Phase {
    /// A stage child works on it, or deletes what a failed one left.
    Creating {
        /// The stage child that creates it; `None` once its remains are being deleted.
        stage: Option<i32>,
        /// Deletes that arrived meanwhile.
        given_up: Vec<ReplyTo>,
    },
    Created {
        pid: i32,
    },
    Running {
        pid: i32,
        started_at: i64,
    },
    Exited {
        started_at: i64,
        exit: Exit,
    },
}

/// A process that was started in a container, or is about to be.
#[derive(Debug)]
pub(crate) struct Execed {
    pub(crate) name: String,
    pub(crate) pid: Option<i32>,
    /// A signal that came before the process.
    pub(crate) pending: Option<i32>,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) handle: Handle,
    pub(crate) phase: Phase,
    pub(crate) stdio: Stdio,
    pub(crate) execs: Vec<Execed>,
    /// OCI `linux.cgroupsPath`.
    pub(crate) cgroup: Option<String>,
    /// What the OOM killer does in it.
    pub(crate) oom: Oom,
    /// A start stage is under way, or a delete stage.
    pub(crate) busy: bool,
    /// Its other processes outlive its init unless they are killed.
    pub(crate) kill_all_at_exit: bool,
}

impl Container {
    /// Init's process, if it hasn't been collected.
    pub(crate) fn pid(&self) -> Option<i32> {
        match self.phase {
            Phase::Created { pid } | Phase::Running { pid, .. } => Some(pid),
            Phase::Creating { .. } | Phase::Exited { .. } => None,
        }
    }

    /// As the daemon sees it; one that is being created isn't there yet.
    pub(crate) fn state(&self) -> Option<ContainerState> {
        let status = match self.phase {
            Phase::Creating { .. } => return None,
            Phase::Created { pid } => Status::Created { pid },
            Phase::Running { pid, started_at } => Status::Running { pid, started_at },
            Phase::Exited { started_at, exit } => Status::Exited { started_at, exit },
        };
        Some(ContainerState {
            container: self.handle.id.clone(),
            status,
            execs: self.execs.iter().map(|exec| exec.name.clone()).collect(),
        })
    }

    pub(crate) fn exec(&mut self, name: &str) -> Option<&mut Execed> {
        self.execs.iter_mut().find(|e| e.name == name)
    }
}

/// The files in which exits outlive the shim.
#[derive(Debug)]
pub(crate) struct ExitFiles {
    folder: PathBuf,
}

impl ExitFiles {
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        let folder = state_dir.join("exits");
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self { folder }),
        }
    }

    /// Writes a container's end, whole or not at all.
    pub(crate) fn write(&self, state: &ContainerState) -> io::Result<()> {
        let bytes = serde_json::to_vec(state)?;
        let temporary = self.folder.join(format!(".{}", state.container));
        fs::write(&temporary, bytes)?;
        fs::rename(temporary, self.path(&state.container))
    }

    pub(crate) fn remove(&self, container: &str) {
        // There is none for a container that never ended.
        let _ = fs::remove_file(self.path(container));
    }

    fn path(&self, container: &str) -> PathBuf {
        self.folder.join(format!("{container}.json"))
    }
}
