//! `emptyDir`: a directory on the node's disk that lives as long as its pod.
//!
//! A note says that it was made ready, as the pod's content must not be touched again once containers have run.

use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::path::Path;

use controlplane_api::k8s_openapi::api::core::v1::Volume;

use crate::error::PluginError;
use crate::folder::{make_dir, make_parent, open_parent, set_mode};
use crate::remove::remove_tree;
use crate::seam::{Attributes, SetUp, TearDown, VolumePlugin};

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
        let Some(source) = &request.volume.empty_dir else {
            return Ok(false);
        };
        let medium = source.medium.as_deref().unwrap_or_default();
        if !medium.is_empty() {
            return Err(PluginError::Told(format!("unknown storage medium \"{medium}\"")));
        }
        if request.notes.join(READY).exists() && request.dir.is_dir() {
            return Ok(false);
        }
        let make = || {
            let parent = make_parent(request.dir)?;
            let (dir, _) = make_dir(parent.as_fd(), Path::new(&request.volume.name), 0o777)?;
            set_mode(dir.as_fd(), 0o777)
        };
        make().map_err(PluginError::kernel("make the directory", request.dir))?;
        let note = || {
            std::fs::create_dir_all(request.notes)?;
            std::fs::write(request.notes.join(READY), "")
        };
        note().map_err(PluginError::kernel("note in", request.notes))?;
        Ok(false)
    }

    fn tear_down(&self, request: &TearDown<'_>) -> Result<(), PluginError> {
        for dir in [request.notes, request.dir] {
            let parent = open_parent(dir).map_err(PluginError::kernel("open", dir))?;
            if let Some(parent) = parent {
                remove_tree(parent.as_fd(), OsStr::new(request.name), dir)?;
            }
        }
        Ok(())
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
