//! `emptyDir`: a directory on the node's disk, in memory or in huge pages, that lives as long as its pod.
//!
//! A note says that it was made ready, as the pod's content must not be touched again once containers have run. A file
//! system in memory doesn't outlive the machine; it is made again then.

use controlplane_api::k8s_openapi::api::core::v1::Volume;

use crate::backing::{Backing, tear_down};
use crate::error::PluginError;
use crate::folder::set_mode;
use crate::mount::{Tmpfs, huge_pages, is_mounted, tmpfs};
use crate::ownership::GroupOwnership;
use crate::seam::{Attributes, SetUp, TearDown, VolumePlugin};
use crate::size::{memory_size, page_size};

/// The note that a volume is ready.
const READY: &str = "ready";

/// The plugin.
pub(crate) struct EmptyDir;

impl VolumePlugin for EmptyDir {
    fn name(&self) -> &'static str {
        "kubernetes.io/empty-dir"
    }

    fn supports(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    fn set_up(&self, request: &SetUp<'_>) -> Result<bool, PluginError> {
        let (backing, mode) = backing(request)?;
        if is_ready(request, &backing)? {
            return Ok(false);
        }
        backing.prepare(request, |dir| {
            if let Some(mode) = mode {
                let fail = PluginError::kernel("change the mode of", request.dir);
                set_mode(dir, mode).map_err(fail)?;
            }
            match request.group {
                // The policy is for volumes that outlive their pods.
                Some(group) => GroupOwnership {
                    on_root_mismatch: false,
                    ..group
                }
                .apply(dir, request.stop, request.dir),
                None => Ok(()),
            }
        })?;
        let note = || {
            std::fs::create_dir_all(request.notes)?;
            std::fs::write(request.notes.join(READY), "")
        };
        note().map_err(PluginError::kernel("note in", request.notes))?;
        Ok(false)
    }

    fn tear_down(&self, request: &TearDown<'_>) -> Result<(), PluginError> {
        tear_down(request)
    }

    fn attributes(&self, _volume: &Volume) -> Attributes {
        Attributes {
            read_only: false,
            relabel: true,
        }
    }

    fn measured(&self) -> bool {
        true
    }
}

/// Where a volume lies, and the mode that its directory gets.
fn backing(request: &SetUp<'_>) -> Result<(Backing, Option<u32>), PluginError> {
    let source = request.volume.empty_dir.clone().unwrap_or_default();
    let mode = source.mode.map(|mode| mode.cast_unsigned() & 0o7777);
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok((Backing::Disk, mode.or(Some(0o777)))),
        "Memory" => {
            let allocatable = request.host.objects().allocatable_memory()?;
            let size = memory_size(allocatable, request.pod, source.size_limit.as_ref());
            let options = Tmpfs {
                size: Some(size).filter(|size| *size > 0),
                mode: 0o1777,
            };
            Ok((Backing::Own(Box::new(move || tmpfs(options))), mode))
        }
        medium if medium.starts_with("HugePages") => {
            let size = page_size(medium, request.pod).map_err(PluginError::Told)?;
            let new = move || huge_pages(&size.to_string());
            Ok((Backing::Own(Box::new(new)), mode))
        }
        other => Err(PluginError::Told(format!("unknown storage medium \"{other}\""))),
    }
}

fn is_ready(request: &SetUp<'_>, backing: &Backing) -> Result<bool, PluginError> {
    if !request.notes.join(READY).exists() {
        return Ok(false);
    }
    match backing {
        Backing::Disk => Ok(request.dir.is_dir()),
        Backing::Own(_) => is_mounted(request.dir).map_err(PluginError::kernel("look at", request.dir)),
    }
}
