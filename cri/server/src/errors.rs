//! Errors of RPCs, and the one place that maps them to gRPC codes.
//!
//! | code | when |
//! |---|---|
//! | InvalidArgument | the request makes no sense |
//! | NotFound | what it names isn't there |
//! | AlreadyExists | the name is taken |
//! | FailedPrecondition | it is there, but not in the state that this needs; or an NRI plugin refuses it |
//! | DeadlineExceeded | it took longer than the caller allows, or than a shim or a killed process may take |
//! | ResourceExhausted | the disk or a table is full |
//! | PermissionDenied | a registry wants other credentials |
//! | DataLoss | a registry sent something else than it promised |
//! | Unavailable | a registry, network, shim or NRI plugin can't be reached; trying again may help |
//! | Unimplemented | Orlop doesn't do that |
//! | Internal | the kernel, the disk, or Orlop itself |

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use cri_images::{OverlayError, PullError, PullErrorKind, RemoveError, SnapshotError};
use cri_nri::NriError;
use cri_shim_protocol::ErrorKind;
use oci_runtime_cgroups::CgroupError;
use tonic::{Code, Status};

use crate::apparmor::AppArmorError;
use crate::network::PodNetworkError;
use crate::nri::AdjustError;
use crate::shim::ShimCallError;
use crate::spec::{DeviceError, SourceError, SpecError, UserError};
use crate::store::{RecordError, StoreError};

/// Why an RPC failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// What it names isn't there.
    #[error("{0}")]
    NotFound(String),
    /// It isn't in the state that this needs.
    #[error("{0}")]
    State(String),
    /// It took longer than the caller allowed.
    #[error("{0}")]
    Deadline(String),
    /// It can't be done now; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// Orlop doesn't do that.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// The client fell behind.
    #[error("{0}")]
    Lagged(String),
    /// The task that did the work is gone.
    #[error("the task that worked on this was lost; see the daemon's log")]
    Lost,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A shim.
    #[error("failed to {what}")]
    Shim {
        /// What was asked of it.
        what: &'static str,
        /// Why not.
        #[source]
        source: ShimCallError,
    },
    /// A pull.
    #[error(transparent)]
    Pull(#[from] Box<PullError>),
    /// Removing an image.
    #[error(transparent)]
    RemoveImage(#[from] RemoveError),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A mount of a snapshot.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The network.
    #[error(transparent)]
    Network(#[from] PodNetworkError),
    /// The container's configuration.
    #[error("failed to make the container's specification")]
    Spec(#[from] SpecError),
    /// The container's user.
    #[error("failed to resolve the container's user")]
    User(#[from] UserError),
    /// The host side of a mount.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A plugin.
    #[error(transparent)]
    Nri(#[from] NriError),
    /// AppArmor.
    #[error(transparent)]
    AppArmor(#[from] AppArmorError),
    /// What plugins want.
    #[error(transparent)]
    Adjust(#[from] AdjustError),
    /// Too many streams wait for their clients.
    #[error(transparent)]
    Token(#[from] cri_streaming::TokenError),
    /// A file.
    #[error("failed to {what} `{path}`")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl CallError {
    /// For `map_err` of a file operation.
    pub(crate) fn file<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::File {
            what,
            path,
            source: source.into(),
        }
    }

    /// For `map_err` of a shim's call.
    pub(crate) fn shim(what: &'static str) -> impl FnOnce(ShimCallError) -> Self {
        move |source| Self::Shim { what, source }
    }

    /// The message with all causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            // Transparent wrappers repeat themselves.
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        text
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::State(_) => Code::FailedPrecondition,
            Self::Deadline(_) => Code::DeadlineExceeded,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Lagged(_) => Code::DataLoss,
            Self::Lost => Code::Internal,
            Self::Store(error) => store_code(error),
            Self::Record(error) => full_or(error.is_no_space(), Code::Internal),
            Self::Shim { source, .. } => shim_code(source),
            Self::Pull(error) => pull_code(error.kind()),
            Self::RemoveImage(RemoveError::Reference(_)) => Code::InvalidArgument,
            Self::RemoveImage(_) => Code::Internal,
            Self::Snapshot(SnapshotError::NoImage(_)) => Code::NotFound,
            Self::Snapshot(SnapshotError::Damaged { .. }) => Code::DataLoss,
            Self::Snapshot(error) => full_or(error.is_no_space(), Code::Internal),
            Self::Overlay(_) | Self::Cgroup(_) => Code::Internal,
            Self::Network(_) => Code::Unavailable,
            Self::Spec(SpecError::Inconsistent(_) | SpecError::Build(_)) => Code::Internal,
            Self::Spec(_) => Code::InvalidArgument,
            Self::User(UserError::Read { .. }) => Code::Internal,
            Self::User(_) => Code::InvalidArgument,
            Self::Source(SourceError::MountInfo(_)) => Code::Internal,
            Self::Source(SourceError::SubPath { .. }) => Code::NotFound,
            Self::Source(_) | Self::Device(_) => Code::InvalidArgument,
            Self::Token(_) => Code::ResourceExhausted,
            Self::Nri(NriError::Failed { .. } | NriError::Validator { .. }) => Code::Unavailable,
            Self::Nri(_) | Self::Adjust(_) | Self::AppArmor(AppArmorError::NotLoaded { .. }) => {
                Code::FailedPrecondition
            }
            Self::AppArmor(_) => Code::Internal,
            Self::File { source, .. } => full_or(
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ),
                Code::Internal,
            ),
        }
    }
}

fn full_or(full: bool, other: Code) -> Code {
    if full { Code::ResourceExhausted } else { other }
}

fn store_code(error: &StoreError) -> Code {
    match error {
        StoreError::NotFound { .. } => Code::NotFound,
        StoreError::NameTaken { .. } => Code::AlreadyExists,
        StoreError::Ambiguous { .. } => Code::InvalidArgument,
        StoreError::Record(error) => full_or(error.is_no_space(), Code::Internal),
        StoreError::Thread(_) | StoreError::Folder { .. } => Code::Internal,
    }
}

fn shim_code(error: &ShimCallError) -> Code {
    match error {
        ShimCallError::Died | ShimCallError::Disconnected { .. } => Code::Unavailable,
        ShimCallError::Timeout { .. } => Code::DeadlineExceeded,
        _ => match error.kind() {
            Some(ErrorKind::NotFound) => Code::NotFound,
            Some(ErrorKind::AlreadyExists) => Code::AlreadyExists,
            Some(ErrorKind::WrongState | ErrorKind::Busy) => Code::FailedPrecondition,
            Some(ErrorKind::CommandNotFound | ErrorKind::Invalid) => Code::InvalidArgument,
            Some(ErrorKind::Unsupported) => Code::Unimplemented,
            Some(ErrorKind::Failed) | None => Code::Internal,
        },
    }
}

fn pull_code(kind: PullErrorKind) -> Code {
    match kind {
        PullErrorKind::InvalidReference => Code::InvalidArgument,
        PullErrorKind::NotFound => Code::NotFound,
        PullErrorKind::Unauthorized => Code::PermissionDenied,
        PullErrorKind::Unavailable => Code::Unavailable,
        PullErrorKind::Corrupt => Code::DataLoss,
        PullErrorKind::Unsupported => Code::FailedPrecondition,
        PullErrorKind::NoSpace => Code::ResourceExhausted,
        PullErrorKind::Internal => Code::Internal,
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        Self::new(error.code(), error.chain())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_codes() {
        let not_found = StoreError::NotFound {
            kind: "sandbox",
            id: "x".into(),
        };
        let taken = StoreError::NameTaken {
            kind: "sandbox",
            name: "n".into(),
            id: "x".into(),
        };
        let refused = |kind| {
            CallError::shim("create the container")(ShimCallError::Refused(cri_shim_protocol::ShimError {
                kind,
                message: "m".into(),
            }))
        };
        let full = io::Error::from(io::ErrorKind::StorageFull);
        for (error, code) in [
            (CallError::from(not_found), Code::NotFound),
            (CallError::from(taken), Code::AlreadyExists),
            (refused(ErrorKind::CommandNotFound), Code::InvalidArgument),
            (refused(ErrorKind::WrongState), Code::FailedPrecondition),
            (CallError::shim("x")(ShimCallError::Died), Code::Unavailable),
            (CallError::from(SpecError::NoCommand), Code::InvalidArgument),
            (
                CallError::file("write", Path::new("/x"))(full),
                Code::ResourceExhausted,
            ),
            (CallError::from(PodNetworkError::NoAddress), Code::Unavailable),
        ] {
            assert_eq!(error.code(), code, "{error:?}");
        }
    }

    #[test]
    fn the_message_has_every_cause_once() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = CallError::file("read", Path::new("/x"))(source);
        assert_eq!(
            Status::from(error).message(),
            "failed to read `/x`: entity not found"
        );
    }
}
