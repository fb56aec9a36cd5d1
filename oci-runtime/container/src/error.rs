//! One error enum per operation, and the few kinds that callers tell apart.

use std::io;
use std::path::{Path, PathBuf};

use oci_runtime_cgroups::CgroupError;
use serde::{Deserialize, Serialize};

use crate::seccomp::SeccompError;

/// What a caller does differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No container has that name.
    NotFound,
    /// A container of that name exists.
    AlreadyExists,
    /// The container is not in a state for that.
    WrongState,
    /// The command is not in the container.
    CommandNotFound,
    /// The command is there, but can't be executed.
    CommandNotExecutable,
    /// `config.json` or an argument can't be right.
    Invalid,
    /// It can be right, but this build or this kernel can't do it.
    Unsupported,
    /// Anything else: mostly the kernel's refusal.
    Other,
}

/// A container's name or its state on disk is not as needed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not a name.
    #[error("invalid container id `{id}`: use 1 to 1024 letters, digits and `_+-.`, not a dot first")]
    InvalidId {
        /// As given.
        id: String,
    },
    /// No such container.
    #[error("container `{id}` does not exist")]
    NotFound {
        /// Its name.
        id: String,
    },
    /// The name is taken.
    #[error("container with id `{id}` already exists")]
    AlreadyExists {
        /// Its name.
        id: String,
    },
    /// The state can't be decoded.
    #[error("`{path}` is not a container's state; delete the container with --force")]
    Malformed {
        /// The state file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Reading or writing failed.
    #[error("failed to {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// What a caller does differently.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidId { .. } => ErrorKind::Invalid,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::Malformed { .. } | Self::Io { .. } => ErrorKind::Other,
        }
    }
}

/// `config.json` (or a `process.json`) can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("failed to read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is not JSON, or not what the specification says.
    #[error("`{path}` is not a valid OCI configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A field has a value that can't be right.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, as in the JSON.
        field: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A field asks for what this runtime does not do.
    #[error("{field}: {reason}")]
    Unsupported {
        /// The field, as in the JSON.
        field: String,
        /// What is missing.
        reason: String,
    },
}

impl ConfigError {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// What a caller does differently.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::Invalid,
            Self::Read { .. } => ErrorKind::Other,
            Self::Parse { .. } | Self::Invalid { .. } => ErrorKind::Invalid,
        }
    }
}

/// A step failed, in this process or in the stage child that becomes the container's process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct StepError {
    /// What a caller does differently.
    pub kind: ErrorKind,
    /// What failed and why, in one line.
    pub message: String,
}

impl StepError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Other, message)
    }

    /// `failed to ACTION: errno`.
    pub(crate) fn io(action: impl std::fmt::Display, source: impl std::fmt::Display) -> Self {
        Self::other(format!("failed to {action}: {source}"))
    }

    /// The error with its sources in one line.
    pub(crate) fn chain(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(next) = source {
            message.push_str(": ");
            message.push_str(&next.to_string());
            source = next.source();
        }
        Self::new(kind, message)
    }
}

impl From<ConfigError> for StepError {
    fn from(error: ConfigError) -> Self {
        Self::chain(error.kind(), &error)
    }
}

/// Creating a container failed; nothing of it is left, if not said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name is taken or bad, or its state can't be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bundle's configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The seccomp profile can't be compiled.
    #[error("linux.seccomp can't be compiled")]
    Seccomp(#[from] SeccompError),
    /// The cgroup can't be made or limited.
    #[error("failed to set up the container's cgroup")]
    Cgroup(#[from] CgroupError),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Starting a created container failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No such container, or its state can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not waiting for start.
    #[error("cannot start a container that is {status}")]
    WrongState {
        /// Its status.
        status: crate::Status,
    },
    /// A step failed; the container is stopped now.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Signalling a container failed.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// No such container, or its state can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not running. The text is what callers of the command line look for.
    #[error("container not running")]
    NotRunning,
    /// Its process ended just now.
    #[error("no such process")]
    NoSuchProcess,
    /// The cgroup's processes can't be listed or killed.
    #[error("failed to signal every process of the container")]
    Cgroup(#[from] CgroupError),
    /// The kernel refused.
    #[error("failed to send signal {signal} to process {pid}")]
    Signal {
        /// The number.
        signal: i32,
        /// The process.
        pid: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Deleting a container failed; it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// No such container, or its state can't be removed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It has a living process.
    #[error("cannot delete container `{id}` that is {status}: stop it first or use force")]
    WrongState {
        /// Its name.
        id: String,
        /// Its status.
        status: crate::Status,
    },
    /// SIGKILL was sent, and init did not end.
    #[error("process {pid} of container `{id}` did not end within {seconds} s of SIGKILL")]
    StillAlive {
        /// Its name.
        id: String,
        /// Init.
        pid: i32,
        /// How long was waited.
        seconds: u64,
    },
    /// The cgroup can't be emptied or removed.
    #[error("failed to remove the container's cgroup")]
    Cgroup(#[from] CgroupError),
}

/// Running a process in a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No such container, or its state can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The process's description can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It has no running process to join.
    #[error("cannot exec in a container that is {status}")]
    WrongState {
        /// Its status.
        status: crate::Status,
    },
    /// The cgroup can't be joined.
    #[error("failed to join the container's cgroup")]
    Cgroup(#[from] CgroupError),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Changing, pausing, resuming or measuring a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No such container, or its state can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The container is not in a state for that.
    #[error("cannot {action} a container that is {status}")]
    WrongState {
        /// What was asked.
        action: &'static str,
        /// Its status.
        status: crate::Status,
    },
    /// The cgroup refused.
    #[error("failed to {action} the container's cgroup")]
    Cgroup {
        /// What was asked.
        action: &'static str,
        /// Why not.
        #[source]
        source: CgroupError,
    },
}

macro_rules! kinds {
    ($($error:ident { $($pattern:pat => $kind:expr),* $(,)? })*) => {$(
        impl $error {
            /// What a caller does differently.
            #[must_use]
            pub fn kind(&self) -> ErrorKind {
                match self {
                    Self::Store(error) => error.kind(),
                    $($pattern => $kind,)*
                }
            }
        }
    )*};
}

kinds! {
    CreateError {
        Self::Config(error) => error.kind(),
        Self::Seccomp(_) => ErrorKind::Invalid,
        Self::Cgroup(_) => ErrorKind::Other,
        Self::Step(error) => error.kind,
    }
    StartError { Self::WrongState { .. } => ErrorKind::WrongState, Self::Step(error) => error.kind }
    KillError {
        Self::NotRunning | Self::NoSuchProcess => ErrorKind::WrongState,
        Self::Cgroup(_) | Self::Signal { .. } => ErrorKind::Other,
    }
    DeleteError {
        Self::WrongState { .. } => ErrorKind::WrongState,
        Self::StillAlive { .. } | Self::Cgroup(_) => ErrorKind::Other,
    }
    ExecError {
        Self::Config(error) => error.kind(),
        Self::WrongState { .. } => ErrorKind::WrongState,
        Self::Cgroup(_) => ErrorKind::Other,
        Self::Step(error) => error.kind,
    }
    ControlError { Self::WrongState { .. } => ErrorKind::WrongState, Self::Cgroup { .. } => ErrorKind::Other }
}
