//! How much a volume holds: what its own file system tells, or a bounded walk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::BorrowedFd;

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use oci_runtime_sys::open::is_mount_root;
use rustix::fs::{AtFlags, FileType, StatVfs, fstat, fstatvfs, statat};

use crate::size::amount;
use crate::walk::{Bounds, Seen, walk};

/// What one measurement looks at.
const BOUNDS: Bounds = Bounds {
    depth: 128,
    entries: 2_000_000,
};

/// What a volume holds, and what its file system has room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Bytes that its files take on the disk.
    pub used_bytes: u64,
    /// Files and directories, the root included.
    pub used_inodes: u64,
    /// Bytes that its file system has.
    pub capacity_bytes: u64,
    /// Bytes that are free there.
    pub available_bytes: u64,
    /// Inodes that its file system has.
    pub inodes: u64,
    /// Inodes that are free there.
    pub free_inodes: u64,
    /// Whether it holds more than was counted: the walk through it is bounded.
    pub partial: bool,
}

/// A volume that holds more than its `sizeLimit`: a reason to evict its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// The volume's name.
    pub volume: String,
    /// What it holds.
    pub used_bytes: u64,
    /// What it may hold.
    pub limit_bytes: u64,
    /// The message of the eviction, in upstream's words.
    pub message: String,
}

/// The volumes of a pod that hold more than they may, in the spec's order.
pub fn exceeded(pod: &Pod, usage: &BTreeMap<String, VolumeUsage>) -> Vec<Exceeded> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let over = volumes.filter_map(|volume| {
        let limit = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
        let limit_bytes = amount(Some(limit)).filter(|limit| *limit > 0)?;
        let used_bytes = usage.get(&volume.name)?.used_bytes;
        (used_bytes > limit_bytes).then(|| Exceeded {
            volume: volume.name.clone(),
            used_bytes,
            limit_bytes,
            message: format!(
                "Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ",
                volume.name, limit.0
            ),
        })
    });
    over.collect()
}

/// Measures a volume's directory.
pub(crate) fn measure(dir: BorrowedFd<'_>) -> io::Result<VolumeUsage> {
    let system = fstatvfs(dir)?;
    let mut usage = of_file_system(&system);
    if is_mount_root(dir)? {
        usage.used_bytes = system.f_blocks.saturating_sub(system.f_bfree) * system.f_frsize;
        usage.used_inodes = system.f_files.saturating_sub(system.f_ffree);
        return Ok(usage);
    }
    let root = fstat(dir)?;
    usage.used_bytes = blocks(root.st_blocks);
    usage.used_inodes = 1;
    // Files with several names count once.
    let mut linked = BTreeSet::new();
    let seen = walk(dir, BOUNDS, &mut |parent, name| {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_dir || stat.st_nlink < 2 || linked.insert((stat.st_dev, stat.st_ino)) {
            usage.used_bytes += blocks(stat.st_blocks);
            usage.used_inodes += 1;
        }
        Ok(())
    })?;
    usage.partial = seen == Seen::Part;
    Ok(usage)
}

fn of_file_system(system: &StatVfs) -> VolumeUsage {
    VolumeUsage {
        capacity_bytes: system.f_blocks * system.f_frsize,
        available_bytes: system.f_bavail * system.f_frsize,
        inodes: system.f_files,
        free_inodes: system.f_ffree,
        ..VolumeUsage::default()
    }
}

/// `st_blocks` counts 512 bytes whatever the file system's block size is.
fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0) * 512
}
