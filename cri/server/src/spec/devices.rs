//! Device nodes and the cgroup's device rules.
//!
//! Finding out what stands behind a path touches the disk ([`resolve_devices`]); the rest is pure. Links are followed,
//! as `/dev/disk/by-id/...` is what people write. A folder means every device in it, recursively, with the same place
//! in the container. A privileged container gets all of the host's `/dev` that isn't the container's own business.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use cri_api::v1;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use super::{SpecError, SpecInput};

/// How many devices a container may have, and how deep their folders may lie.
const MAX_DEVICES: usize = 4096;
const MAX_DEPTH: usize = 8;

/// Folders and files of the host's `/dev` that a container has for itself.
const OWN: [&str; 7] = [
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/fd",
    "/dev/console",
    "/dev/ptmx",
    "/dev/.lxc",
];

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Block (true) or character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A device with its place in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// Where the container sees it.
    pub container_path: PathBuf,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
    /// What it is.
    pub node: DeviceNode,
}

/// Why a device can't be given to a container.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It can't be looked at.
    #[error("failed to look at device `{path}`")]
    Look {
        /// The path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("`{path}` is neither a device nor a folder with devices")]
    NotADevice {
        /// The path.
        path: PathBuf,
    },
    /// Too many.
    #[error("more than {MAX_DEVICES} devices below `{path}`")]
    TooMany {
        /// The path.
        path: PathBuf,
    },
}

/// The devices that a container asks for; with `all_of_host`, those of the host's `/dev` too.
pub fn resolve_devices(asked: &[v1::Device], all_of_host: bool) -> Result<Vec<ResolvedDevice>, DeviceError> {
    let mut found = Vec::new();
    if all_of_host {
        walk(Path::new("/dev"), Path::new("/dev"), "rwm", 0, &mut found)?;
    }
    for device in asked {
        let host = Path::new(&device.host_path);
        let place = if device.container_path.is_empty() {
            host
        } else {
            Path::new(&device.container_path)
        };
        let permissions = if device.permissions.is_empty() {
            "rwm"
        } else {
            &device.permissions
        };
        let look = |source| DeviceError::Look {
            path: host.to_owned(),
            source,
        };
        let real = fs::canonicalize(host).map_err(look)?;
        let metadata = fs::symlink_metadata(&real).map_err(look)?;
        if metadata.is_dir() {
            let before = found.len();
            walk(&real, place, permissions, 0, &mut found)?;
            if found.len() == before {
                return Err(DeviceError::NotADevice {
                    path: host.to_owned(),
                });
            }
        } else {
            let node = node(&metadata).ok_or_else(|| DeviceError::NotADevice {
                path: host.to_owned(),
            })?;
            push(&mut found, place, permissions, node);
        }
    }
    Ok(found)
}

fn push(found: &mut Vec<ResolvedDevice>, place: &Path, permissions: &str, node: DeviceNode) {
    found.push(ResolvedDevice {
        container_path: place.to_owned(),
        permissions: permissions.to_owned(),
        node,
    });
}

/// Every device below a folder. What vanishes between listing and looking is no longer there to give.
fn walk(
    folder: &Path,
    place: &Path,
    permissions: &str,
    depth: usize,
    found: &mut Vec<ResolvedDevice>,
) -> Result<(), DeviceError> {
    let look = |source| DeviceError::Look {
        path: folder.to_owned(),
        source,
    };
    let mut entries: Vec<_> = fs::read_dir(folder).map_err(look)?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        let place = place.join(entry.file_name());
        if metadata.is_dir() && depth < MAX_DEPTH {
            walk(&path, &place, permissions, depth + 1, found)?;
        } else if let Some(node) = node(&metadata) {
            if found.len() >= MAX_DEVICES {
                return Err(DeviceError::TooMany {
                    path: folder.to_owned(),
                });
            }
            push(found, &place, permissions, node);
        }
    }
    Ok(())
}

fn node(metadata: &fs::Metadata) -> Option<DeviceNode> {
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return None;
    }
    Some(DeviceNode {
        block: kind.is_block_device(),
        // The kernel's own 12 and 20 bits; glibc's wider layout says the same for every number in use.
        major: nix::sys::stat::major(metadata.rdev()) as u32,
        minor: nix::sys::stat::minor(metadata.rdev()) as u32,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// `linux.devices`: each place once, the last asked wins.
pub(super) fn linux_devices(input: &SpecInput<'_>) -> Result<Vec<LinuxDevice>, SpecError> {
    let mut devices = BTreeMap::new();
    for device in &input.devices {
        check(device)?;
        let node = &device.node;
        let oci = LinuxDeviceBuilder::default()
            .path(device.container_path.clone())
            .typ(kind(node))
            .major(i64::from(node.major))
            .minor(i64::from(node.minor))
            .file_mode(node.mode)
            .uid(node.uid)
            .gid(node.gid)
            .build()?;
        devices.insert(device.container_path.clone(), oci);
    }
    Ok(devices.into_values().collect())
}

fn check(device: &ResolvedDevice) -> Result<(), SpecError> {
    let path = device.container_path.as_path();
    let climbs = path
        .components()
        .any(|c| matches!(c, std::path::Component::ParentDir));
    if !path.is_absolute() || climbs || path == Path::new("/") {
        return Err(SpecError::DeviceDestination {
            path: path.display().to_string(),
        });
    }
    if device.permissions.is_empty() || !device.permissions.bytes().all(|b| b"rwm".contains(&b)) {
        return Err(SpecError::DevicePermissions {
            path: path.display().to_string(),
            permissions: device.permissions.clone(),
        });
    }
    Ok(())
}

fn kind(node: &DeviceNode) -> LinuxDeviceType {
    if node.block {
        LinuxDeviceType::B
    } else {
        LinuxDeviceType::C
    }
}

/// `linux.resources.devices`: nothing, then what every container may use, then what this one asked for.
pub(super) fn device_rules(input: &SpecInput<'_>) -> Result<Vec<LinuxDeviceCgroup>, SpecError> {
    use LinuxDeviceType as Type;
    if input.privileged() && !input.defaults.privileged_without_host_devices {
        return Ok(vec![rule(true, None, None, None, "rwm")?]);
    }
    let mut rules = vec![
        rule(false, None, None, None, "rwm")?,
        // Making a node is harmless: using it is what the other rules decide.
        rule(true, Some(Type::C), None, None, "m")?,
        rule(true, Some(Type::B), None, None, "m")?,
    ];
    // null, zero, full, tty, random, urandom, console, ptmx, and every pty.
    let basic = [(1, 3), (1, 5), (1, 7), (5, 0), (1, 8), (1, 9), (5, 1), (5, 2)];
    for (major, minor) in basic {
        rules.push(rule(true, Some(Type::C), Some(major), Some(minor), "rwm")?);
    }
    rules.push(rule(true, Some(Type::C), Some(136), None, "rwm")?);
    for device in &input.devices {
        let (major, minor) = (i64::from(device.node.major), i64::from(device.node.minor));
        let kind = Some(kind(&device.node));
        rules.push(rule(true, kind, Some(major), Some(minor), &device.permissions)?);
    }
    Ok(rules)
}

fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup, SpecError> {
    let mut rule = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .access(access)
        .build()?;
    rule.set_typ(Some(kind.unwrap_or(LinuxDeviceType::A)))
        .set_major(major)
        .set_minor(minor);
    Ok(rule)
}
