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
    /// The systemd driver was asked for on a host that has v1 controllers.
    #[error(
        "the systemd cgroup driver needs cgroup v2 alone, and this host has v1 controllers; set the driver to `cgroupfs`"
    )]
    SystemdNeedsV2,
    /// A scope was to be made without a process.
    #[error("systemd makes no scope without a process, as `{path}` would be")]
    NeedsProcess {
        /// The cgroup's path.
        path: String,
    },
    /// systemd can't be reached.
    #[error(
        "failed to reach systemd at `/run/systemd/private` or over the system bus; if it doesn't run here, set the \
         cgroup driver to `cgroupfs`"
    )]
    NoSystemd {
        /// The answer of the first.
        #[source]
        source: io::Error,
    },
    /// systemd didn't answer, or not in time.
    #[error("failed to have systemd {action} `{unit}`")]
    SystemdCall {
        /// What it was to do.
        action: &'static str,
        /// The unit's name.
        unit: String,
        /// What went wrong on the way.
        #[source]
        source: io::Error,
    },
    /// systemd refused.
    #[error("systemd refused to {action} `{unit}`: {text} ({name})")]
    SystemdRefused {
        /// What it was to do.
        action: &'static str,
        /// The unit's name.
        unit: String,
        /// Its error's name.
        name: String,
        /// Its reason.
        text: String,
    },
    /// systemd began and didn't succeed.
    #[error(
        "systemd failed to {action} `{unit}`: the job's result is `{result}`; `systemctl status {unit}` may tell why"
    )]
    SystemdJob {
        /// What it was to do.
        action: &'static str,
        /// The unit's name.
        unit: String,
        /// How the job ended.
        result: String,
    },
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
