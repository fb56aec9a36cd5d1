//! `hostPath`: a file or directory of the node, which must be of the wanted type and may be made.

use std::fs::{DirBuilder, FileType};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};

use controlplane_api::k8s_openapi::api::core::v1::Volume;
use rustix::fs::{Mode, OFlags};

use crate::error::PluginError;
use crate::layout::goes_backwards;
use crate::seam::{Attributes, SetUp, Source, TearDown, VolumePlugin};

/// The plugin.
pub(crate) struct HostPath;

impl VolumePlugin for HostPath {
    fn name(&self) -> &'static str {
        "kubernetes.io/host-path"
    }

    fn supports(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    fn set_up(&self, request: &SetUp<'_>) -> Result<bool, PluginError> {
        let Some(source) = &request.volume.host_path else {
            return Ok(false);
        };
        if goes_backwards(&source.path) {
            let message = format!("invalid HostPath `{}`: must not contain '..'", source.path);
            return Err(PluginError::Told(message));
        }
        check(
            Path::new(&source.path),
            source.type_.as_deref().unwrap_or_default(),
        )?;
        Ok(false)
    }

    fn tear_down(&self, _request: &TearDown<'_>) -> Result<(), PluginError> {
        Ok(())
    }

    fn source(&self, volume: &Volume, _dir: &Path) -> Source {
        Source::Path(
            volume
                .host_path
                .as_ref()
                .map_or_else(PathBuf::new, |source| PathBuf::from(&source.path)),
        )
    }

    fn attributes(&self, _volume: &Volume) -> Attributes {
        Attributes::default()
    }
}

/// Makes what is missing if the type says so, and compares what is there with the type.
fn check(path: &Path, wanted: &str) -> Result<(), PluginError> {
    let found = std::fs::metadata(path).ok().map(|found| found.file_type());
    match (wanted, found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", None) => {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
            made.map_err(PluginError::kernel("make the directory", path))
        }
        ("FileOrCreate", None) => {
            let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
            let made = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644));
            made.map(drop)
                .map_err(io::Error::from)
                .map_err(PluginError::kernel("make the file", path))
        }
        ("DirectoryOrCreate" | "Directory", found) => matches(path, found, "Directory", "directory"),
        ("FileOrCreate" | "File", found) => matches(path, found, "File", "file"),
        ("Socket", found) => matches(path, found, "Socket", "socket file"),
        ("CharDevice", found) => matches(path, found, "CharDevice", "character device"),
        ("BlockDevice", found) => matches(path, found, "BlockDevice", "block device"),
        (other, _) => Err(PluginError::Told(format!("{other} is an invalid volume type"))),
    }
}

fn matches(path: &Path, found: Option<FileType>, wanted: &str, description: &str) -> Result<(), PluginError> {
    let path = path.display();
    let told = |message: String| Err(PluginError::Told(message));
    let Some(found) = found else {
        return told(format!("hostPath {path} doesn't exist"));
    };
    let Some(kind) = kind(found) else {
        return told(format!(
            "hostPath type check failed, {path} is not a {description}, unable to determine its type: only recognise \
             file, directory, socket, block device and character device"
        ));
    };
    if kind != wanted {
        return told(format!(
            "hostPath type check failed: {path} is not a {description}, it's a {kind}"
        ));
    }
    Ok(())
}

fn kind(found: FileType) -> Option<&'static str> {
    if found.is_dir() {
        Some("Directory")
    } else if found.is_file() {
        Some("File")
    } else if found.is_socket() {
        Some("Socket")
    } else if found.is_char_device() {
        Some("CharDevice")
    } else if found.is_block_device() {
        Some("BlockDevice")
    } else {
        None
    }
}
