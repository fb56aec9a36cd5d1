//! Volumes of pods: from a pod's spec to directories, files and mounts on the node, and back to nothing.
//!
//! [`Volumes`] keeps upstream's layout below the kubelet's root: `pods/UID/volumes/kubernetes.io~empty-dir/NAME` for a
//! volume, `pods/UID/plugins/...` for what a plugin notes about it, `pods/UID/volume-subpaths/VOLUME/CONTAINER/INDEX`
//! for a part of a volume that a container mounts. Nothing else is kept: what exists is read from the disk and the
//! kernel, so a restart, or a crash between any two steps, needs no recovery of its own. Setting up and tearing down may
//! be repeated at any time.
//!
//! What is inside of a volume is the pods', so it is hostile: everything below a volume's root is reached by descriptors
//! that `openat2` keeps beneath it, no symbolic link in it is followed, and removal never crosses into another mount.
//!
//! The kinds of volumes are [`VolumePlugin`]s. What they need from the rest of the kubelet comes through
//! [`ObjectSource`] and [`Downward`]. All of it blocks; nothing here knows of an async runtime.

mod atomic;
mod backing;
mod container;
mod content;
mod empty_dir;
mod error;
mod folder;
mod host_path;
mod image;
mod layout;
mod mount;
mod mounting;
mod ownership;
mod payload;
mod remove;
mod seam;
mod size;
mod sub_path;
mod usage;
mod volumes;
mod walk;

#[cfg(test)]
mod tests;

pub use container::{ContainerMount, MountSource, Propagation};
pub use error::{FailedVolume, PluginError, PodVolumes, Refreshed, VolumeError};
pub use ownership::GroupOwnership;
pub use seam::{
    Attributes, Downward, Host, ObjectError, ObjectSource, PodCertificate, SetUp, Source, TearDown,
    VolumePlugin,
};
pub use usage::{Exceeded, VolumeUsage, exceeded};
pub use volumes::{Seams, VolumeOnDisk, Volumes};
