//! Where things lie below the kubelet's root: upstream's names.

use std::path::{Path, PathBuf};

use crate::error::VolumeError;

/// The directory of all pods.
pub(crate) const PODS: &str = "pods";
/// In a pod's directory: volumes by plugin.
pub(crate) const VOLUMES: &str = "volumes";
/// In a pod's directory: plugins' notes by plugin.
pub(crate) const NOTES: &str = "plugins";
/// In a pod's directory: parts of volumes by volume, container and the mount's index.
pub(crate) const SUB_PATHS: &str = "volume-subpaths";

/// The paths below one root.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.root.join(PODS).join(uid)
    }

    pub(crate) fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.pod(uid).join(VOLUMES).join(escaped(plugin)).join(name)
    }

    pub(crate) fn notes(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.pod(uid).join(NOTES).join(escaped(plugin)).join(name)
    }
}

/// A plugin's name on disk.
pub(crate) fn escaped(plugin: &str) -> String {
    plugin.replace('/', "~")
}

/// Lets only through what is one component of a path, other than `.` and `..`.
pub(crate) fn component(name: &str) -> Result<&str, VolumeError> {
    let fits = !name.is_empty() && name.len() <= 255 && name != "." && name != "..";
    if fits && !name.contains(['/', '\0']) {
        Ok(name)
    } else {
        Err(VolumeError::Name(name.to_owned()))
    }
}

/// Whether `..` is a component of a path.
pub(crate) fn goes_backwards(path: &str) -> bool {
    Path::new(path)
        .components()
        .any(|part| matches!(part, std::path::Component::ParentDir))
}
