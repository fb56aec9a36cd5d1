//! The host side of a container's mounts: what stands behind a path, and how its mounts propagate.
//!
//! A container may only receive mounts from the host (`HOST_TO_CONTAINER`) if the host's mount is shared or a slave,
//! and only pass its own on (`BIDIRECTIONAL`) if it is shared; otherwise the promise would silently be broken. So the
//! daemon looks at `/proc/self/mountinfo` before, and the pure part compares.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How the mount that holds a path propagates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Peering {
    /// Mounts neither arrive nor leave.
    #[default]
    Private,
    /// Mounts arrive.
    Slave,
    /// Mounts arrive and leave.
    Shared,
}

/// The host side of one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSource {
    /// What is mounted: links resolved, and for an image the sub-path applied.
    pub path: PathBuf,
    /// How the mount that holds it propagates.
    pub peering: Peering,
}

/// Why a mount has no host side.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not absolute.
    #[error("mount source `{path}` is not an absolute path")]
    Relative {
        /// The path.
        path: PathBuf,
    },
    /// It doesn't exist and can't be made.
    #[error("failed to make the folder `{path}` for a mount")]
    Make {
        /// The path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// It can't be resolved.
    #[error("failed to resolve mount source `{path}`")]
    Resolve {
        /// The path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The table of mounts can't be read.
    #[error("failed to read `/proc/self/mountinfo`")]
    MountInfo(#[source] io::Error),
    /// The sub-path leads nowhere, or out.
    #[error("failed to find `{sub_path}` in the image mounted at `{root}`")]
    SubPath {
        /// The path within the image.
        sub_path: String,
        /// The image's root.
        root: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

impl MountSource {
    /// Looks at a path of the host; a folder is made where nothing is, as the CRI asks. Blocking.
    pub fn of_host_path(path: &Path) -> Result<Self, SourceError> {
        let resolve = |source| SourceError::Resolve {
            path: path.to_owned(),
            source,
        };
        if !path.is_absolute() {
            return Err(SourceError::Relative {
                path: path.to_owned(),
            });
        }
        let real = match fs::canonicalize(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path).map_err(|source| SourceError::Make {
                    path: path.to_owned(),
                    source,
                })?;
                fs::canonicalize(path).map_err(resolve)?
            }
            other => other.map_err(resolve)?,
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(SourceError::MountInfo)?;
        Ok(Self {
            peering: peering(&mounts, &real),
            path: real,
        })
    }

    /// The host side of something that the daemon itself made: an image's folder, say.
    pub fn private(path: PathBuf) -> Self {
        Self {
            path,
            peering: Peering::Private,
        }
    }
}

/// How the host's mount that holds a path propagates. Blocking.
///
/// # Errors
/// The path doesn't exist, or the table of mounts can't be read.
pub fn peering_of(path: &Path) -> Result<Peering, SourceError> {
    let real = fs::canonicalize(path).map_err(|source| SourceError::Resolve {
        path: path.to_owned(),
        source,
    })?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(SourceError::MountInfo)?;
    Ok(peering(&mounts, &real))
}

/// The propagation of the mount that holds `path`: the last one listed among those with the longest mount point.
fn peering(mountinfo: &str, path: &Path) -> Peering {
    let mut best: Option<(usize, Peering)> = None;
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        let point = unescape(point);
        if !path.starts_with(&point) {
            continue;
        }
        let depth = point.components().count();
        // After the mount options come optional fields, up to a lone dash.
        let tags = fields.skip(1).take_while(|f| *f != "-");
        let peering = tags.fold(Peering::Private, |found, tag| match (found, tag) {
            (_, tag) if tag.starts_with("shared:") => Peering::Shared,
            (Peering::Private, tag) if tag.starts_with("master:") => Peering::Slave,
            (found, _) => found,
        });
        if best.is_none_or(|(deepest, _)| depth >= deepest) {
            best = Some((depth, peering));
        }
    }
    best.map_or(Peering::Private, |(_, peering)| peering)
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = field.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// The real path of `sub_path` within an image's root: links are followed inside it, and never lead out.
///
/// # Errors
/// [`SourceError::SubPath`] when nothing is there. Blocking.
pub fn resolve_in_image(root: &Path, sub_path: &str) -> Result<PathBuf, SourceError> {
    let failed = |source| SourceError::SubPath {
        sub_path: sub_path.to_owned(),
        root: root.to_owned(),
        source,
    };
    super::user::path_in_root(root, Path::new(sub_path)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /run rw,nosuid master:7 - tmpfs tmpfs rw
31 22 0:26 / /mnt/a\\040b rw - tmpfs tmpfs rw
32 31 0:27 / /mnt/a\\040b/in rw shared:9 master:2 - tmpfs tmpfs rw
33 22 0:28 / /run rw propagate_from:3 - tmpfs tmpfs rw
";

    #[test]
    fn the_mount_that_holds_a_path_decides() {
        let of = |path: &str| peering(MOUNTS, Path::new(path));
        assert_eq!(of("/srv/x"), Peering::Shared);
        assert_eq!(of("/mnt/a b/x"), Peering::Private);
        assert_eq!(of("/mnt/a b/in"), Peering::Shared);
        assert_eq!(
            of("/mnt/a"),
            Peering::Shared,
            "a name's beginning is not a parent"
        );
        assert_eq!(of("/run/x"), Peering::Private, "the mount on top counts");
    }

    #[test]
    fn a_missing_folder_is_made_and_a_link_followed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let made = MountSource::of_host_path(&dir.join("x/y")).unwrap();
        assert!(made.path.is_dir());
        std::os::unix::fs::symlink("x/y", dir.join("link")).unwrap();
        assert_eq!(
            MountSource::of_host_path(&dir.join("link")).unwrap().path,
            dir.join("x/y")
        );
        assert!(MountSource::of_host_path(Path::new("x")).is_err());
    }

    #[test]
    fn an_image_sub_path_never_leaves_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(dir.join("root/etc")).unwrap();
        fs::create_dir_all(dir.join("etc")).unwrap();
        std::os::unix::fs::symlink("../../../etc", dir.join("root/out")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("root/abs")).unwrap();
        let root = dir.join("root");
        for sub_path in ["etc", "/etc", "../etc", "out", "abs", "etc/../../../etc"] {
            assert_eq!(
                resolve_in_image(&root, sub_path).unwrap(),
                root.join("etc"),
                "{sub_path}"
            );
        }
        let error = resolve_in_image(&root, "none").unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "failed to find `none` in the image mounted at `{}`",
                root.display()
            )
        );
    }
}
