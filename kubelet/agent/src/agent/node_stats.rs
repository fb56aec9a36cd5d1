//! What the node itself uses: the kernel's files, file systems, and the volumes of pods. Blocking.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use cri_api::v1;
use jiff::Timestamp;
use nix::sys::statvfs::statvfs;

use crate::server::stats::node;
use crate::server::stats::sources::StatsSources;
use crate::server::stats::summary::{CpuStats, FsStats, NodeStats, RlimitStats, RuntimeStats, VolumeStats};
use crate::sync::Context;

/// Reads what the node uses; remembers the last CPU time for rates.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeStatsReader {
    last: Arc<Mutex<Option<CpuStats>>>,
}

impl NodeStatsReader {
    pub(super) fn read(
        &self,
        ctx: &Context,
        uids: &[String],
        image_fs: Option<&v1::ImageFsInfoResponse>,
        only_cpu_and_memory: bool,
    ) -> StatsSources {
        let now = ctx.now();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let mut stats = NodeStats {
            node_name: ctx.facts().node_name.clone(),
            cpu: self.cpu(now),
            memory: node::memory(&meminfo, now),
            ..NodeStats::default()
        };
        let mut sources = StatsSources {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: node::total_memory(&meminfo).unwrap_or(0),
            ..StatsSources::default()
        };
        if !only_cpu_and_memory {
            stats.swap = node::swap(&meminfo, now);
            stats.fs = file_system(&ctx.settings.root, now);
            stats.rlimit = Some(processes(now));
            stats.network = Some(node::network(
                &fs::read_to_string("/proc/net/dev").unwrap_or_default(),
                &fs::read_to_string("/proc/net/route").unwrap_or_default(),
                now,
            ));
            let images = image_fs.and_then(|info| of_runtime(info, now));
            sources.container_fs.clone_from(&images);
            stats.runtime = Some(RuntimeStats {
                image_fs: images.clone(),
                container_fs: images,
            });
            for uid in uids {
                sources.volumes.insert(uid.clone(), volumes(ctx, uid, now));
            }
        }
        sources.node = stats;
        sources
    }

    fn cpu(&self, now: Timestamp) -> Option<CpuStats> {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let mut current = node::cpu(&stat, now)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        current.usage_nano_cores = last
            .as_ref()
            .and_then(|before| node::nano_cores(before, &current));
        *last = Some(current.clone());
        Some(current)
    }
}

/// The file system that a path is on.
pub(super) fn file_system(path: &Path, now: Timestamp) -> Option<FsStats> {
    let found = statvfs(path).ok()?;
    let block = found.fragment_size();
    Some(FsStats {
        time: Some(now),
        available_bytes: Some(found.blocks_available() * block),
        capacity_bytes: Some(found.blocks() * block),
        used_bytes: Some((found.blocks() - found.blocks_free()) * block),
        inodes_free: Some(found.files_free()),
        inodes: Some(found.files()),
        inodes_used: Some(found.files().saturating_sub(found.files_free())),
    })
}

/// The runtime's file system, with what images use of it.
fn of_runtime(info: &v1::ImageFsInfoResponse, now: Timestamp) -> Option<FsStats> {
    let usage = info.image_filesystems.first()?;
    let mut stats = file_system(Path::new(&usage.fs_id.as_ref()?.mountpoint), now)?;
    stats.used_bytes = usage
        .used_bytes
        .as_ref()
        .map(|bytes| bytes.value)
        .or(stats.used_bytes);
    stats.inodes_used = usage
        .inodes_used
        .as_ref()
        .map(|count| count.value)
        .or(stats.inodes_used);
    Some(stats)
}

/// How many processes there are, and may be.
pub(super) fn processes(now: Timestamp) -> RlimitStats {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<i64>().ok();
    let loadavg = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let running = loadavg
        .split_ascii_whitespace()
        .nth(3)
        .and_then(|field| field.split_once('/')?.1.parse().ok());
    let most = [
        number("/proc/sys/kernel/pid_max"),
        number("/proc/sys/kernel/threads-max"),
    ];
    RlimitStats {
        time: Some(now),
        maxpid: most.into_iter().flatten().min(),
        curproc: running,
    }
}

fn volumes(ctx: &Context, uid: &str, now: Timestamp) -> Vec<VolumeStats> {
    let Ok(usage) = ctx.volumes.usage(uid) else {
        return Vec::new();
    };
    let of = usage.into_iter().map(|(name, usage)| VolumeStats {
        name,
        fs: FsStats {
            time: Some(now),
            available_bytes: Some(usage.available_bytes),
            capacity_bytes: Some(usage.capacity_bytes),
            used_bytes: Some(usage.used_bytes),
            inodes_free: Some(usage.free_inodes),
            inodes: Some(usage.inodes),
            inodes_used: Some(usage.used_inodes),
        },
        ..VolumeStats::default()
    });
    of.collect()
}
