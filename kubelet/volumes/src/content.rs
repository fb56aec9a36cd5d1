//! `configMap`, `secret`, `downwardAPI` and `projected`: files that follow objects.
//!
//! What is secret, or changes with the pod, lies in memory. The files are gathered before anything is made, so that an
//! object that is missing leaves nothing.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Component, Path, PathBuf};

use controlplane_api::k8s_openapi::api::core::v1::{Pod, Volume};

use crate::atomic::Writer;
use crate::backing::{Backing, tear_down};
use crate::container::all_volume_mounts;
use crate::error::PluginError;
use crate::folder::{ensure, make_dir};
use crate::mount::{Tmpfs, tmpfs};
use crate::ownership::GroupOwnership;
use crate::payload::{Payload, gather};
use crate::seam::{Attributes, SetUp, TearDown, VolumePlugin};
use crate::size::memory_size;

/// The plugin, by what its volumes are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    ConfigMap,
    Secret,
    DownwardApi,
    Projected,
}

impl VolumePlugin for Content {
    fn name(&self) -> &'static str {
        match self {
            Self::ConfigMap => "kubernetes.io/configmap",
            Self::Secret => "kubernetes.io/secret",
            Self::DownwardApi => "kubernetes.io/downward-api",
            Self::Projected => "kubernetes.io/projected",
        }
    }

    fn supports(&self, volume: &Volume) -> bool {
        match self {
            Self::ConfigMap => volume.config_map.is_some(),
            Self::Secret => volume.secret.is_some(),
            Self::DownwardApi => volume.downward_api.is_some(),
            Self::Projected => volume.projected.is_some(),
        }
    }

    fn set_up(&self, request: &SetUp<'_>) -> Result<bool, PluginError> {
        let payload = gather(request.host, request.pod, request.volume)?.unwrap_or_default();
        let nested = nested(request.pod, &request.volume.name).map_err(PluginError::Told)?;
        let (backing, mode) = self.backing(request)?;
        backing.prepare(request, |dir| write(request, dir, mode, &payload, &nested))
    }

    fn refreshes(&self) -> bool {
        true
    }

    fn tear_down(&self, request: &TearDown<'_>) -> Result<(), PluginError> {
        tear_down(request)
    }

    fn attributes(&self, _volume: &Volume) -> Attributes {
        Attributes {
            read_only: true,
            relabel: true,
        }
    }

    fn measured(&self) -> bool {
        true
    }
}

impl Content {
    /// Where the files lie, and the mode of their directory.
    fn backing(self, request: &SetUp<'_>) -> Result<(Backing, u32), PluginError> {
        if self == Self::ConfigMap {
            return Ok((Backing::Disk, 0o777));
        }
        let allocatable = request.host.objects().allocatable_memory()?;
        let size = memory_size(allocatable, request.pod, None);
        let options = Tmpfs {
            size: Some(size).filter(|size| *size > 0),
            mode: 0o1777,
        };
        let own = Backing::Own(Box::new(move || tmpfs(options)));
        Ok((own, options.mode))
    }
}

fn write(
    request: &SetUp<'_>,
    dir: BorrowedFd<'_>,
    mode: u32,
    payload: &Payload,
    nested: &BTreeSet<PathBuf>,
) -> Result<bool, PluginError> {
    let prepare = || {
        for path in nested {
            let mut parent = dir.try_clone_to_owned()?;
            for part in path {
                parent = make_dir(parent.as_fd(), Path::new(part), 0o755)?.0;
            }
        }
        // The root alone: what lies below is the writer's.
        let mode = request.group.map_or(mode, |group| {
            let writable = GroupOwnership {
                read_only: false,
                ..group
            };
            writable.mode(mode, true)
        });
        ensure(dir, mode, request.group.map(|group| group.group))
    };
    prepare().map_err(PluginError::kernel("prepare", request.dir))?;
    let writer = Writer {
        dir,
        shown: request.dir,
        now: request.host.now(),
        group: request.group.map(|group| group.group),
        step: &|| Ok(()),
    };
    writer.write(payload)
}

/// Where other volumes are mounted in this one, relative to it: such directories must be there before, as the volume is
/// read-only in containers.
fn nested(pod: &Pod, volume: &str) -> Result<BTreeSet<PathBuf>, String> {
    let mut found = BTreeSet::new();
    for (container, mounts) in all_volume_mounts(pod) {
        for outer in mounts.iter().filter(|mount| mount.name == volume) {
            for inner in mounts.iter().map(|mount| Path::new(&mount.mount_path)) {
                let Ok(below) = inner.strip_prefix(&outer.mount_path) else {
                    continue;
                };
                if below.as_os_str().is_empty() {
                    continue;
                }
                let plain = below
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)));
                if !plain || below.as_os_str().as_encoded_bytes().starts_with(b"..") {
                    return Err(format!(
                        "invalid mount point {} of container {container} below volume {volume}",
                        below.display()
                    ));
                }
                found.insert(below.to_owned());
            }
        }
    }
    Ok(found)
}
