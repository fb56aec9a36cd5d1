//! Where everything is on disk.
//!
//! | below `root` | |
//! |---|---|
//! | `images/` | the image store |
//! | `sandboxes/<id>/`, `containers/<id>/` | records; in a container's folder also `volumes/` |
//!
//! | below `state` | |
//! |---|---|
//! | `pods/<sandbox>/` | the shim's folder: its socket, `ns/{user,net,ipc,uts,pid}`, `hostname`, `hosts`, `resolv.conf`, `shm/` |
//! | `bundles/<container>/` | `config.json`, `rootfs/`, `images/<n>/` |
//! | `oci/` | what the OCI runtime keeps of containers |

use std::path::{Path, PathBuf};

use cri_shim_protocol::NamespaceKind;

/// Where everything is on disk.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
    state: PathBuf,
}

impl Paths {
    /// Below these two.
    pub fn new(root: &Path, state: &Path) -> Self {
        Self {
            root: root.to_owned(),
            state: state.to_owned(),
        }
    }

    /// What survives a reboot.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All pods' folders.
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// A pod's folder.
    pub fn pod(&self, sandbox: &str) -> PathBuf {
        self.pods().join(sandbox)
    }

    /// The folder of a pod's pinned namespaces.
    pub fn namespaces(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("ns")
    }

    /// Where a namespace is pinned.
    pub fn namespace(&self, sandbox: &str, kind: NamespaceKind) -> PathBuf {
        self.namespaces(sandbox).join(match kind {
            NamespaceKind::User => "user",
            NamespaceKind::Network => "net",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::Uts => "uts",
            NamespaceKind::Pid => "pid",
        })
    }

    /// A pod's `/etc/hostname`.
    pub fn hostname(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("hostname")
    }

    /// A pod's `/etc/hosts`.
    pub fn hosts(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("hosts")
    }

    /// A pod's `/etc/resolv.conf`.
    pub fn resolv_conf(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("resolv.conf")
    }

    /// A pod's `/dev/shm`.
    pub fn shm(&self, sandbox: &str) -> PathBuf {
        self.pod(sandbox).join("shm")
    }

    /// All bundles.
    pub fn bundles(&self) -> PathBuf {
        self.state.join("bundles")
    }

    /// A container's bundle.
    pub fn bundle(&self, container: &str) -> PathBuf {
        self.bundles().join(container)
    }

    /// A container's root.
    pub fn rootfs(&self, container: &str) -> PathBuf {
        self.bundle(container).join("rootfs")
    }

    /// Where the images are mounted that are a container's volumes.
    pub fn image_mounts(&self, container: &str) -> PathBuf {
        self.bundle(container).join("images")
    }

    /// What the OCI runtime keeps.
    pub fn oci(&self) -> PathBuf {
        self.state.join("oci")
    }
}
