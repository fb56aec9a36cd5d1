//! What a container's specification is made from.

use std::path::PathBuf;

use cri_api::v1;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Capability;

use super::{HostFacts, MountSource, ResolvedDevice, ResolvedUser};

/// All that [`super::container_spec`] looks at.
#[derive(Debug, Clone)]
pub struct SpecInput<'a> {
    /// The pod sandbox's ID.
    pub sandbox_id: String,
    /// The container's ID.
    pub container_id: String,
    /// The sandbox's configuration, as it was when the sandbox was made.
    pub sandbox: &'a v1::PodSandboxConfig,
    /// The container's configuration.
    pub container: &'a v1::ContainerConfig,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// Who the container runs as: from [`super::resolve_user`].
    pub user: ResolvedUser,
    /// The container's root, as `root.path` will say it: absolute, or relative to the bundle.
    pub rootfs: PathBuf,
    /// The pod's namespaces.
    pub namespaces: NamespacePaths,
    /// OCI `linux.cgroupsPath`.
    pub cgroups_path: String,
    /// The files that every container of the pod sees.
    pub files: SandboxFiles,
    /// The host side of each of `container.mounts`, in the same order.
    pub mount_sources: Vec<MountSource>,
    /// Folders standing behind the image's `VOLUME`s.
    pub image_volumes: Vec<ImageVolume>,
    /// The device nodes behind `container.devices`, or the host's when privileged: from [`super::resolve_devices`].
    pub devices: Vec<ResolvedDevice>,
    /// The contents of the seccomp profile, if [`super::seccomp_source`] says that a file is wanted.
    pub seccomp_profile: Option<String>,
    /// What the daemon's configuration says.
    pub defaults: &'a SpecDefaults,
    /// What this machine can do.
    pub host: &'a HostFacts,
}

impl<'a> SpecInput<'a> {
    /// The container's security context, if it has one.
    pub(super) fn security(&self) -> Option<&'a v1::LinuxContainerSecurityContext> {
        self.container.linux.as_ref()?.security_context.as_ref()
    }

    /// The sandbox's security context, if it has one.
    pub(super) fn sandbox_security(&self) -> Option<&'a v1::LinuxSandboxSecurityContext> {
        self.sandbox.linux.as_ref()?.security_context.as_ref()
    }

    /// Whether the container is privileged.
    pub(super) fn privileged(&self) -> bool {
        self.security().is_some_and(|s| s.privileged)
    }

    /// Whether the sandbox allows privileged containers.
    pub(super) fn sandbox_privileged(&self) -> bool {
        self.sandbox_security().is_some_and(|s| s.privileged)
    }

    /// Whether the container's root is read-only.
    pub(super) fn readonly_rootfs(&self) -> bool {
        self.security().is_some_and(|s| s.readonly_rootfs)
    }

    /// The pod's user namespace options, where it has a namespace of its own.
    pub(super) fn user_namespace(&self) -> Option<&'a v1::UserNamespace> {
        let options = self
            .sandbox_security()?
            .namespace_options
            .as_ref()?
            .userns_options
            .as_ref()?;
        (options.mode() == v1::NamespaceMode::Pod).then_some(options)
    }
}

/// The pod's pinned namespaces; none: the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespacePaths {
    /// Network.
    pub network: Option<PathBuf>,
    /// IPC.
    pub ipc: Option<PathBuf>,
    /// UTS.
    pub uts: Option<PathBuf>,
    /// PID: the pod's shared one, or with mode `TARGET` the target container's. Not looked at with mode `CONTAINER`
    /// and `NODE`.
    pub pid: Option<PathBuf>,
    /// User.
    pub user: Option<PathBuf>,
}

/// The files that every container of a pod sees; all on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxFiles {
    /// Becomes `/etc/hostname`.
    pub hostname: PathBuf,
    /// Becomes `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// Becomes `/dev/shm`: a tmpfs of the pod's, or the host's `/dev/shm` with the host's IPC namespace.
    pub shm: PathBuf,
    /// Becomes `/etc/hosts`, unless the kubelet mounts its own.
    pub hosts: Option<PathBuf>,
}

/// A folder that stands behind a `VOLUME` of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageVolume {
    /// Where the image wants it.
    pub container_path: PathBuf,
    /// The folder on the host.
    pub host_path: PathBuf,
}

/// What a container without a seccomp profile gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnsetSeccomp {
    /// No filter, as the CRI says. The kubelet always sends a profile, so this is only for other callers.
    #[default]
    Unconfined,
    /// The default filter.
    RuntimeDefault,
}

/// What the daemon's configuration says about all containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecDefaults {
    /// The capabilities of a container that adds and drops none.
    pub capabilities: Vec<Capability>,
    /// What a container without a seccomp profile gets.
    pub unset_seccomp: UnsetSeccomp,
    /// The AppArmor profile that `RuntimeDefault` means; none: `RuntimeDefault` confines nothing.
    pub apparmor_profile: Option<String>,
    /// The most processes that a container may have; none: no limit of its own.
    pub pids_limit: Option<i64>,
    /// A privileged container doesn't get the host's devices, only those that it names.
    pub privileged_without_host_devices: bool,
}

impl Default for SpecDefaults {
    fn default() -> Self {
        use Capability as C;
        Self {
            capabilities: vec![
                C::AuditWrite,
                C::Chown,
                C::DacOverride,
                C::Fowner,
                C::Fsetid,
                C::Kill,
                C::Mknod,
                C::NetBindService,
                C::NetRaw,
                C::Setfcap,
                C::Setgid,
                C::Setpcap,
                C::Setuid,
                C::SysChroot,
            ],
            unset_seccomp: UnsetSeccomp::default(),
            apparmor_profile: None,
            pids_limit: None,
            privileged_without_host_devices: false,
        }
    }
}
