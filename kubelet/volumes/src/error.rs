//! What can go wrong, in words for a pod's events.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::seam::ObjectError;

/// Why something about a pod's volumes failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The pod's UID, or a name, would be no single component of a path.
    #[error("`{0}` can't be the name of a directory")]
    Name(String),
    /// The kubelet's root, or a directory of a pod, can't be used.
    #[error("failed to use `{}`", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// There is no container of that name in the pod.
    #[error("no container \"{0}\" in the pod")]
    NoContainer(String),
    /// A container mounts a volume that the pod doesn't have, or that can't be mounted.
    #[error("cannot find volume \"{volume}\" to mount into container \"{container}\"")]
    NoVolume {
        /// The volume's name.
        volume: String,
        /// The container's.
        container: String,
    },
    /// A sub path that doesn't begin at the volume's root.
    #[error("error SubPath `{0}` must not be an absolute path")]
    AbsoluteSubPath(String),
    /// A sub path that goes upwards.
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    BackwardSubPath(String),
    /// A `subPathExpr` names a variable that the container doesn't have.
    #[error("missing value for \"{0}\"")]
    MissingVariable(String),
    /// The directory for a sub path can't be made; users aren't told why, as that tells of the node's files.
    #[error("failed to create subPath directory for volumeMount \"{volume}\" of container \"{container}\"")]
    MakeSubPath {
        /// The volume's name.
        volume: String,
        /// The container's.
        container: String,
    },
    /// A sub path can't be mounted; users aren't told why, as that tells of the node's files.
    #[error("failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\"")]
    PrepareSubPath {
        /// The volume's name.
        volume: String,
        /// The container's.
        container: String,
    },
    /// A propagation that there isn't.
    #[error("invalid MountPropagation mode: \"{0}\"")]
    Propagation(String),
    /// `recursiveReadOnly` that can't be.
    #[error("failed to resolve recursive read-only mode: {0}")]
    RecursiveReadOnly(String),
    /// A volume can't be torn down.
    #[error("failed to tear down volume \"{name}\" of pod {uid}")]
    TearDown {
        /// The pod's UID.
        uid: String,
        /// The volume's name.
        name: String,
        /// Why.
        source: PluginError,
    },
    /// What is left of a pod can't be removed.
    #[error("failed to remove `{}`", path.display())]
    Remove {
        /// The pod's directory.
        path: PathBuf,
        /// Why.
        source: PluginError,
    },
}

impl VolumeError {
    /// The error and its reasons in one line.
    pub fn told(&self) -> String {
        told(self)
    }
}

/// Why a plugin failed with a volume; [`PluginError::told`] is what users read.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// In the words for users.
    #[error("{0}")]
    Told(String),
    /// An object, token or value can't be had.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The kernel refused.
    #[error("failed to {what} `{}`", path.display())]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Something is mounted where only files should be left.
    #[error("`{}` is still a mount point", .0.display())]
    Mounted(PathBuf),
    /// There was more to do than one call may; the next one goes on.
    #[error("not finished with `{}` yet", .0.display())]
    Unfinished(PathBuf),
}

impl PluginError {
    /// With the kernel's reason.
    pub fn kernel(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Kernel { what, path, source }
    }

    /// The error and its reasons in one line.
    pub fn told(&self) -> String {
        told(self)
    }
}

/// An error and its reasons in one line.
pub(crate) fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    // No chain of ours is longer.
    for _ in 0..16 {
        let Some(source) = next else { break };
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// How setting up a pod's volumes went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodVolumes {
    /// The volumes that aren't ready, in the spec's order.
    pub failed: Vec<FailedVolume>,
}

/// A volume that isn't ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedVolume {
    /// Its name in the pod's spec.
    pub name: String,
    /// The message of an event with reason `FailedMount`.
    pub message: String,
    /// Whether no plugin knows such volumes, so that it never comes to mounting.
    pub unknown: bool,
}

impl PodVolumes {
    /// Whether containers can be started.
    pub fn is_ready(&self) -> bool {
        self.failed.is_empty()
    }

    /// Why the pod as a whole can't go on, in upstream's words; none when it can. Upstream makes an event with reason
    /// `FailedMount` of it only when a volume is unknown, as the others have events of their own; its log has it always.
    pub fn summary(&self) -> Option<String> {
        if self.is_ready() {
            return None;
        }
        let names: Vec<_> = self.failed.iter().map(|volume| volume.name.as_str()).collect();
        let unknown = self.failed.iter().filter(|volume| volume.unknown);
        let unknown: Vec<_> = unknown.map(|volume| volume.name.as_str()).collect();
        let reason = match self.failed.iter().find(|volume| volume.unknown) {
            Some(volume) => &volume.message,
            None => "context deadline exceeded",
        };
        Some(format!(
            "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[], failed to process \
             volumes=[{}]: {reason}",
            names.join(" "),
            unknown.join(" "),
        ))
    }
}

/// How refreshing a pod's volumes went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Whether any content has changed.
    pub changed: bool,
    /// The volumes that couldn't be refreshed and keep what they have, in the spec's order.
    pub failed: Vec<FailedVolume>,
}
