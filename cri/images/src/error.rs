//! What can go wrong, one enum per operation, each with a coarse kind that a server maps to a gRPC code.

use std::io;
use std::path::{Path, PathBuf};

use crate::mount::MountError;
use crate::registry::RegistryError;

/// One file or directory operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} `{path}`")]
pub struct FileError {
    /// What was tried, as in "failed to rename".
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// An error of `action` on `path`, for use with `map_err`.
    pub(crate) fn of<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self {
            action,
            path: path.as_ref().to_owned(),
            source: source.into(),
        }
    }

    /// Whether the disk, or its quota, is full.
    pub fn is_no_space(&self) -> bool {
        is_no_space(&self.source)
    }
}

/// Whether `error` says that the disk, or its quota, is full.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory of the store refuses.
    #[error("failed to open the image store")]
    File(#[from] FileError),
    /// Somebody else works on this directory.
    #[error("the image store `{0}` is in use by another process; stop it or give this one another directory")]
    InUse(PathBuf),
    /// The registry configuration can't be used.
    #[error("failed to read the registry configuration")]
    Hosts(#[from] crate::hosts::HostsError),
    /// A background task was lost.
    #[error("the task that opened the image store was lost")]
    Lost,
}

/// What a caller can do about a failed pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullErrorKind {
    /// The reference can't be one: InvalidArgument.
    InvalidReference,
    /// The registry has no such image: NotFound.
    NotFound,
    /// The registry wants other credentials: PermissionDenied or Unauthenticated.
    Unauthorized,
    /// The registry can't be reached, or answers with errors: Unavailable.
    Unavailable,
    /// The registry sent something else than was asked for, or something malformed: DataLoss.
    Corrupt,
    /// Well-formed, but something that Orlop can't run: Unimplemented or FailedPrecondition.
    Unsupported,
    /// The disk is full: ResourceExhausted.
    NoSpace,
    /// The disk, or Orlop itself: Internal.
    Internal,
}

/// A pull that failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference can't be one.
    #[error("failed to parse the image reference")]
    Reference(#[from] crate::reference::ReferenceError),
    /// The registry configuration of this host can't be used.
    #[error("failed to read the registry configuration")]
    Hosts(#[from] crate::hosts::HostsError),
    /// The registry refused, failed or lied.
    #[error("failed to pull `{reference}`")]
    Registry {
        /// What was pulled.
        reference: String,
        /// Why it failed.
        #[source]
        source: RegistryError,
    },
    /// A manifest, index or config that can't be used.
    #[error("failed to use the manifest of `{reference}`")]
    Manifest {
        /// What was pulled.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: crate::manifest::ManifestError,
    },
    /// A layer that can't be unpacked.
    #[error("failed to unpack layer {digest} of `{reference}`")]
    Layer {
        /// What was pulled.
        reference: String,
        /// The blob.
        digest: crate::digest::Digest,
        /// What is wrong with it.
        #[source]
        source: crate::layers::LayerError,
    },
    /// A layer that was there already is damaged, and there is nothing to repair it from.
    #[error(
        "layer {layer} of `{reference}` is damaged and can't be repaired from disk; pull the image again"
    )]
    Damaged {
        /// What was pulled.
        reference: String,
        /// The layer.
        layer: crate::digest::Digest,
    },
    /// The disk.
    #[error("failed to store `{reference}`")]
    File {
        /// What was pulled.
        reference: String,
        /// What failed.
        #[source]
        source: FileError,
    },
    /// A background task was lost: the process is ending.
    #[error("the task that pulled `{reference}` was lost")]
    Lost {
        /// What was pulled.
        reference: String,
    },
}

impl PullError {
    /// What a caller can do about it.
    pub fn kind(&self) -> PullErrorKind {
        match self {
            Self::Reference(_) => PullErrorKind::InvalidReference,
            Self::Hosts(_) | Self::Lost { .. } | Self::Damaged { .. } => PullErrorKind::Internal,
            Self::Registry { source, .. } => source.kind(),
            Self::Manifest { source, .. } => source.kind(),
            Self::Layer { source, .. } => source.kind(),
            Self::File { source, .. } if source.is_no_space() => PullErrorKind::NoSpace,
            Self::File { .. } => PullErrorKind::Internal,
        }
    }
}

/// An image that can't be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Neither an image ID nor a reference.
    #[error("failed to parse the image reference")]
    Reference(#[from] crate::reference::ReferenceError),
    /// The disk.
    #[error("failed to remove the image")]
    File(#[from] FileError),
    /// A background task was lost: the process is ending.
    #[error("the task that removed the image was lost")]
    Lost,
}

/// A snapshot that can't be made, measured or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The key can't be a directory name.
    #[error("the snapshot key `{0}` must be 1 to 128 of a-z A-Z 0-9 . _ - and must not begin with a dot")]
    InvalidKey(String),
    /// There is no such image.
    #[error("there is no image `{0}`; pull it first")]
    NoImage(String),
    /// A snapshot with this key exists.
    #[error("the snapshot `{0}` exists already")]
    Exists(String),
    /// There is no such snapshot.
    #[error("there is no snapshot `{0}`")]
    NotFound(String),
    /// A layer is damaged and its blob is gone too.
    #[error(
        "layer {layer} of image `{image}` is damaged and can't be repaired from disk; pull the image again"
    )]
    Damaged {
        /// The image.
        image: String,
        /// The diff ID of the layer.
        layer: crate::digest::Digest,
    },
    /// The disk.
    #[error("failed to use the snapshot")]
    File(#[from] FileError),
    /// A background task was lost: the process is ending.
    #[error("the task that worked on the snapshot was lost")]
    Lost,
}

impl SnapshotError {
    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::File(error) if error.is_no_space())
    }
}

/// An overlay that can't be mounted or unmounted.
pub type OverlayError = MountError;
