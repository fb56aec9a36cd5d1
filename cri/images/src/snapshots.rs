//! Snapshots: the writable directory of a container over the layers of its image.
//!
//! `snapshots/<key>/` has `snapshot.json` (the image, its layers, the options), `upper` and `work`, or `root` where
//! nothing is writable. It is made under a temporary name and renamed, so a snapshot is whole or not there. It isn't
//! synced: a power cut ends its container anyway, and an empty record is told from a whole one.
//!
//! A snapshot keeps its layers: they are collected only when neither an image nor a snapshot has them.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::disk::Disk;
use crate::layers;
use crate::records::{LayerRecord, Record};
use crate::step::Step;
use crate::unpack::OverlayXattrs;
use crate::{FileError, IdMapping, Snapshot, SnapshotOptions, SnapshotUsage};

const RECORD: &str = "snapshot.json";
/// The topmost layer of a snapshot that has no upper one: an empty directory.
const ROOT: &str = "root";

/// What is on the disk about a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// The image it was made of.
    pub(crate) image: Digest,
    /// Its layers, by name, bottom first.
    pub(crate) layers: Vec<Digest>,
    /// The one that says of what owner and mode the root is.
    #[serde(default)]
    pub(crate) root: Option<Digest>,
    /// How it was made.
    pub(crate) options: SnapshotOptions,
}

impl SnapshotRecord {
    /// A snapshot of an image.
    pub(crate) fn new(image: &Record, options: SnapshotOptions) -> Self {
        // Overlayfs merges roots even where they are opaque, so what such a root hides is left out here.
        let lowest = image.layers.iter().rposition(|layer| layer.is_opaque);
        let layers = &image.layers[lowest.unwrap_or(0)..];
        Self {
            image: image.id,
            layers: layers.iter().map(LayerRecord::name).collect(),
            root: layers.iter().rfind(|layer| layer.has_root).map(LayerRecord::name),
            options,
        }
    }
}

/// Whether `key` can be the name of a directory here.
pub(crate) fn is_key(key: &str) -> bool {
    (1..=128).contains(&key.len())
        && !key.starts_with('.')
        && !key.ends_with(".tmp")
        && key
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'))
}

/// The snapshot that a record describes.
pub(crate) fn describe(disk: &Disk, xattrs: OverlayXattrs, key: &str, record: &SnapshotRecord) -> Snapshot {
    let mut lower: Vec<PathBuf> = Vec::with_capacity(record.layers.len() + 1);
    for layer in record.layers.iter().rev() {
        let files = layers::files(&disk.layer(layer));
        // A layer that comes twice: all that the lower one shows, the upper one shows as well. Overlayfs wants each
        // directory once.
        if !lower.contains(&files) {
            lower.push(files);
        }
    }
    // Overlayfs wants one lower layer, and two where nothing is writable.
    if lower.is_empty() {
        lower.push(disk.empty());
    }
    let dir = disk.snapshots().join(key);
    if record.options.read_only {
        lower.insert(0, dir.join(ROOT));
    }
    Snapshot {
        key: key.to_owned(),
        image_id: record.image.to_string(),
        lower,
        upper: dir.join("upper"),
        work: dir.join("work"),
        options: record.options.clone(),
        user_xattr: xattrs == OverlayXattrs::User,
    }
}

/// Makes a snapshot's directory. Blocks.
pub(crate) fn create(disk: &Disk, key: &str, record: &SnapshotRecord) -> Result<(), FileError> {
    let temporary = disk.snapshots().join(format!("{}.tmp", disk.unique()));
    let made = fill(disk, &temporary, record).and_then(|()| {
        disk.steps.reach(Step::SnapshotCreated);
        let path = disk.snapshots().join(key);
        fs::rename(&temporary, &path).map_err(FileError::of("rename", &path))
    });
    if made.is_err() {
        // Best effort: the next open removes what stays.
        let _ = disk.discard(&temporary);
    }
    made?;
    disk.steps.reach(Step::SnapshotRenamed);
    Ok(())
}

fn fill(disk: &Disk, temporary: &Path, record: &SnapshotRecord) -> Result<(), FileError> {
    let mkdir = |path: &Path, mode| {
        fs::DirBuilder::new()
            .mode(mode)
            .create(path)
            .map_err(FileError::of("create", path))?;
        rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(FileError::of("set the mode of", path))
    };
    mkdir(temporary, 0o711)?;
    // The root directory of the container is that of the topmost layer, so here takes after the image's what may be
    // another one's: layers seldom say anything of the root.
    let like = record.root.map(|layer| layers::files(&disk.layer(&layer)));
    let like = like.unwrap_or_else(|| disk.empty());
    let like = fs::metadata(&like).map_err(FileError::of("look at", &like))?;
    // A lower layer is mapped by its mount; an upper one isn't.
    let (top, uid, gid) = if record.options.read_only {
        (temporary.join(ROOT), like.uid(), like.gid())
    } else {
        let uid = shift(&record.options.uid_map, like.uid());
        let gid = shift(&record.options.gid_map, like.gid());
        (temporary.join("upper"), uid, gid)
    };
    mkdir(&top, like.mode() & 0o7777)?;
    chown(&top, Some(uid), Some(gid)).map_err(FileError::of("set the owner of", &top))?;
    let mode = Mode::from_raw_mode(like.mode() & 0o7777);
    rustix::fs::chmod(&top, mode).map_err(FileError::of("set the mode of", &top))?;
    if !record.options.read_only {
        mkdir(&temporary.join("work"), 0o711)?;
    }
    let path = temporary.join(RECORD);
    let json = serde_json::to_vec(record).expect("a record has only strings and numbers");
    fs::write(&path, json).map_err(FileError::of("write", &path))
}

/// What an ID of the image is outside of the user namespace; IDs that aren't mapped become nobody's.
fn shift(map: &[IdMapping], id: u32) -> u32 {
    if map.is_empty() {
        return id;
    }
    let line = map.iter().find(|line| {
        id.checked_sub(line.container_id)
            .is_some_and(|at| at < line.length)
    });
    line.and_then(|line| line.host_id.checked_add(id - line.container_id))
        .unwrap_or(65534)
}

/// Reads all snapshots; removes what isn't one.
pub(crate) fn load(disk: &Disk) -> Result<Vec<(String, SnapshotRecord)>, FileError> {
    let mut snapshots = Vec::new();
    for name in crate::disk::names(&disk.snapshots())? {
        let dir = disk.snapshots().join(&name);
        // A mount that was cut short of its end.
        let mapped = dir.join("mapped");
        crate::mount::remove_attached(&mapped).map_err(FileError::of("unmount", &mapped))?;
        let record = crate::disk::read_bounded(&dir.join(RECORD), 1 << 20).ok();
        let record = record
            .filter(|_| is_key(&name))
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match record {
            Some(record) => snapshots.push((name, record)),
            None => {
                disk.discard(&dir)?;
            }
        }
    }
    Ok(snapshots)
}

/// Counts what a container wrote, while it may go on writing. Blocks.
pub(crate) fn usage(upper: &Path) -> Result<SnapshotUsage, FileError> {
    /// Deeper directories aren't counted: each level takes a descriptor.
    const MAX_DEPTH: usize = 200;
    fn count(
        directory: &std::os::fd::OwnedFd,
        depth: usize,
        seen: &mut std::collections::BTreeSet<(u64, u64)>,
        usage: &mut SnapshotUsage,
    ) -> rustix::io::Result<()> {
        for entry in rustix::fs::Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            // Whatever is gone by now doesn't count.
            let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_directory && stat.st_nlink > 1 && !seen.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            usage.inodes += 1;
            usage.bytes += stat.st_blocks.cast_unsigned() * 512;
            if is_directory && depth < MAX_DEPTH {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                if let Ok(below) = rustix::fs::openat(directory, name, flags, Mode::empty()) {
                    count(&below, depth + 1, seen, usage)?;
                }
            }
        }
        Ok(())
    }
    let mut usage = SnapshotUsage { bytes: 0, inodes: 1 };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(upper, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(SnapshotUsage::default()),
        top => top.map_err(FileError::of("open", upper))?,
    };
    let stat = rustix::fs::fstat(&top).map_err(FileError::of("look at", upper))?;
    usage.bytes = stat.st_blocks.cast_unsigned() * 512;
    count(&top, 0, &mut Default::default(), &mut usage).map_err(FileError::of("look through", upper))?;
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_plain_names() {
        assert!(is_key("0123abc") && is_key("a-b_c.d"));
        for bad in ["", ".", "..", ".a", "a/b", "a b", "a.tmp", &"x".repeat(129)] {
            assert!(!is_key(bad), "{bad}");
        }
    }

    #[test]
    fn ids_are_shifted_by_the_map() {
        let map = [
            IdMapping {
                container_id: 0,
                host_id: 100_000,
                length: 10,
            },
            IdMapping {
                container_id: 10,
                host_id: 5,
                length: 1,
            },
        ];
        assert_eq!(
            [0, 9, 10, 11].map(|id| shift(&map, id)),
            [100_000, 100_009, 5, 65534]
        );
        assert_eq!(shift(&[], 7), 7);
    }
}
