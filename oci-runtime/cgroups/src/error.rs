//! What can go wrong with a cgroup: every variant names the file or the controller it failed at.

use std::io;
use std::path::{Path, PathBuf};

/// An operation on a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path is not one that a cgroup can be addressed by.
    #[error("cgroup path `{path}` {reason}")]
    Path {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The systemd driver was asked for.
    #[error("the systemd cgroup driver is not built into orlop; set the cgroup driver to `cgroupfs`")]
    SystemdDriver,
    /// `/proc/self/mountinfo` lists no cgroup file system.
    #[error("no cgroup hierarchy is mounted in this mount namespace; mount cgroup2 at /sys/fs/cgroup")]
    NoHierarchy,
    /// A limit needs a controller that the host does not offer.
    #[error("the cgroup controller `{controller}` that `{file}` belongs to is not available on this host")]
    MissingController {
        /// The kernel's name of the controller.
        controller: String,
        /// The interface file that was to be written.
        file: String,
    },
    /// A limit's value can't be right.
    #[error("the limit {limit} can't be set to {value}: {reason}")]
    Limit {
        /// The field of the OCI resources.
        limit: &'static str,
        /// Its value.
        value: String,
        /// Why it is refused.
        reason: String,
    },
    /// libcgroups could not apply a limit on cgroup v2.
    #[error("failed to apply limits below `{path}`")]
    Apply {
        /// The cgroup's directory.
        path: PathBuf,
        /// The library's error, which names the file.
        #[source]
        source: Box<libcgroups::v2::manager::V2ManagerError>,
    },
    /// The kernel refused the device filter of a v2 cgroup.
    #[error("failed to put the device rules on cgroup `{path}`")]
    DeviceFilter {
        /// The cgroup's directory.
        path: PathBuf,
        /// The kernel's answer to bpf(2).
        #[source]
        source: io::Error,
    },
    /// A file could not be read.
    #[error("failed to read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file holds something that is not in the kernel's format.
    #[error("`{path}` holds `{line}`, which is not in the format expected there")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The offending line.
        line: String,
    },
    /// A file could not be written.
    #[error("failed to write `{value}` to `{path}`")]
    Write {
        /// What was to be written.
        value: String,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A directory could not be made.
    #[error("failed to create cgroup `{path}`")]
    Create {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file could not be opened for a process to join, or a directory for a clone into it.
    #[error("failed to open `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A directory could not be removed.
    #[error("failed to remove cgroup `{path}` (processes still in it: {pids:?})")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Some of the processes in it.
        pids: Vec<i32>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The processes did not reach the frozen state in time.
    #[error("failed to freeze cgroup `{path}` within {millis} ms")]
    FreezeTimeout {
        /// The directory.
        path: PathBuf,
        /// How long it was waited for.
        millis: u64,
    },
    /// Processes outlived every round of SIGKILL.
    #[error("failed to kill the processes {pids:?} in cgroup `{path}`")]
    KillTimeout {
        /// The directory.
        path: PathBuf,
        /// Some of the processes in it.
        pids: Vec<i32>,
    },
}

impl CgroupError {
    /// Whether the cgroup, or the file in it, is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.io().is_some_and(|e| e.kind() == io::ErrorKind::NotFound)
    }

    /// The kernel's error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.io().and_then(io::Error::raw_os_error)
    }

    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Create { source, .. }
            | Self::Open { source, .. }
            | Self::DeviceFilter { source, .. }
            | Self::Remove { source, .. } => Some(source),
            _ => None,
        }
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn write(path: &Path, value: &str, source: io::Error) -> Self {
        Self::Write {
            value: value.to_owned(),
            path: path.to_owned(),
            source,
        }
    }
}
