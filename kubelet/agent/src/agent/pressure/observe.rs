//! What is left of the node, and what pods use: the kernel's files and what the runtime tells. Blocking.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use controlplane_api::k8s_openapi::api::core::v1::{Pod, Volume};
use cri_api::v1;
use jiff::Timestamp;
use kubelet_volumes::VolumeUsage;

use super::super::node_stats::{file_system, processes};
use crate::node::eviction::{ContainerUsage, Disks, Observation, Observations, Signal, Storage, Usage};
use crate::runtime::observe::labels::{CONTAINER_NAME, POD_UID};
use crate::server::stats::node;
use crate::server::stats::summary::FsStats;

/// Files of a container's log folder that are counted.
const MOST_LOGS: usize = 10_000;

/// Where the runtime has what is on disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// A directory on the disk of images.
    pub(super) images: PathBuf,
    /// A directory on the disk of writable layers.
    pub(super) layers: PathBuf,
    /// How they lie to the kubelet's own disk.
    pub(super) disks: Disks,
}

/// Where the runtime has images and layers; none when it doesn't tell.
pub(super) fn places(answer: &v1::ImageFsInfoResponse, root: &Path) -> Option<Places> {
    let first = |all: &[v1::FilesystemUsage]| {
        let place = all.first()?.fs_id.as_ref()?;
        (!place.mountpoint.is_empty()).then(|| PathBuf::from(&place.mountpoint))
    };
    let images = first(&answer.image_filesystems)?;
    let layers = first(&answer.container_filesystems).unwrap_or_else(|| images.clone());
    let disk = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    let (own, of_images, of_layers) = (disk(root)?, disk(&images)?, disk(&layers)?);
    Some(Places {
        disks: disks(own, of_images, of_layers),
        images,
        layers,
    })
}

fn disks(own: u64, of_images: u64, of_layers: u64) -> Disks {
    if of_images == own {
        Disks::One
    } else if of_layers == own {
        Disks::Split
    } else {
        Disks::ImagesApart
    }
}

/// What is left.
pub(super) fn observations(
    root: &Path,
    pods_cgroup: &str,
    places: Option<&Places>,
    now: Timestamp,
) -> Observations {
    let mut seen = Observations::new();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(memory) = node::memory(&meminfo, now)
        && let (Some(available), Some(used)) = (memory.available_bytes, memory.working_set_bytes)
    {
        let one = observation(available, available.saturating_add(used), now);
        seen.insert(Signal::MemoryAvailable, one);
    }
    let group = Path::new("/sys/fs/cgroup").join(pods_cgroup.trim_start_matches('/'));
    seen.extend(of_cgroup(&group, now).map(|one| (Signal::AllocatableMemoryAvailable, one)));
    let mut disk = |path: &Path, bytes, inodes| {
        if let Some(found) = file_system(path, now) {
            seen.extend(of_disk(&found, bytes, inodes, now));
        }
    };
    disk(root, Signal::NodeFsAvailable, Signal::NodeFsInodesFree);
    if let Some(places) = places {
        disk(
            &places.images,
            Signal::ImageFsAvailable,
            Signal::ImageFsInodesFree,
        );
        disk(
            &places.layers,
            Signal::ContainerFsAvailable,
            Signal::ContainerFsInodesFree,
        );
    }
    let numbers = processes(now);
    if let (Some(most), Some(current)) = (numbers.maxpid, numbers.curproc) {
        let one = Observation {
            available: most.saturating_sub(current),
            capacity: most,
            time: Some(now),
        };
        seen.insert(Signal::PidAvailable, one);
    }
    seen
}

fn observation(available: u64, capacity: u64, now: Timestamp) -> Observation {
    Observation {
        available: signed(available),
        capacity: signed(capacity),
        time: Some(now),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Bytes and inodes of a disk; file systems without a table of inodes have no signal of them.
fn of_disk(
    found: &FsStats,
    bytes: Signal,
    inodes: Signal,
    now: Timestamp,
) -> impl Iterator<Item = (Signal, Observation)> {
    let both = [
        (bytes, found.available_bytes, found.capacity_bytes),
        (inodes, found.inodes_free, found.inodes),
    ];
    both.into_iter().filter_map(move |(signal, available, capacity)| {
        let capacity = capacity.filter(|capacity| *capacity > 0)?;
        Some((signal, observation(available?, capacity, now)))
    })
}

/// The memory that a cgroup has left below its limit; none without one.
fn of_cgroup(group: &Path, now: Timestamp) -> Option<Observation> {
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let current: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat")?;
    let inactive = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "))
        .and_then(|bytes| bytes.trim().parse().ok())
        .unwrap_or(0);
    let used = current.saturating_sub(inactive);
    Some(observation(limit.saturating_sub(used), limit, now))
}

/// What the runtime tells of its sandboxes, by the pods' UIDs.
pub(super) fn of_runtime(stats: &[v1::PodSandboxStats]) -> BTreeMap<String, Usage> {
    let mut all = BTreeMap::new();
    for sandbox in stats {
        let Some(uid) = sandbox
            .attributes
            .as_ref()
            .and_then(|known| known.labels.get(POD_UID))
        else {
            continue;
        };
        let Some(linux) = &sandbox.linux else {
            continue;
        };
        let number = |value: Option<&v1::UInt64Value>| value.map(|value| signed(value.value));
        let mut usage = Usage {
            memory: linux
                .memory
                .as_ref()
                .and_then(|memory| number(memory.working_set_bytes.as_ref())),
            processes: linux
                .process
                .as_ref()
                .and_then(|process| number(process.process_count.as_ref())),
            ..Usage::default()
        };
        for one in &linux.containers {
            let Some(name) = one.attributes.as_ref().and_then(|known| known.metadata.as_ref()) else {
                continue;
            };
            usage.containers.insert(name.name.clone(), of_container(one));
        }
        all.insert(uid.clone(), usage);
    }
    all
}

/// What the runtime tells of its containers, added up by the pods' UIDs; it tells no numbers of processes.
pub(super) fn of_containers(stats: &[v1::ContainerStats]) -> BTreeMap<String, Usage> {
    let mut all: BTreeMap<String, Usage> = BTreeMap::new();
    for one in stats {
        let labels = one.attributes.as_ref().map(|known| &known.labels);
        let label = |name: &str| labels.and_then(|labels| labels.get(name)).cloned();
        let (Some(uid), Some(name)) = (label(POD_UID), label(CONTAINER_NAME)) else {
            continue;
        };
        let used = of_container(one);
        let usage = all.entry(uid).or_default();
        if let Some(memory) = used.memory {
            usage.memory = Some(usage.memory.unwrap_or(0).saturating_add(memory));
        }
        usage.containers.insert(name, used);
    }
    all
}

fn of_container(one: &v1::ContainerStats) -> ContainerUsage {
    let number = |value: Option<&v1::UInt64Value>| value.map(|value| signed(value.value));
    let layer = one.writable_layer.as_ref();
    ContainerUsage {
        memory: one
            .memory
            .as_ref()
            .and_then(|memory| number(memory.working_set_bytes.as_ref())),
        root: Storage {
            bytes: layer
                .and_then(|layer| number(layer.used_bytes.as_ref()))
                .unwrap_or(0),
            inodes: layer
                .and_then(|layer| number(layer.inodes_used.as_ref()))
                .unwrap_or(0),
        },
        logs: Storage::default(),
    }
}

/// Adds what a pod's volumes and logs hold.
pub(super) fn add_disk(
    usage: &mut Usage,
    pod: &Pod,
    volumes: &BTreeMap<String, VolumeUsage>,
    pod_logs_dir: &Path,
) {
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(used) = volumes.get(&volume.name) else {
            continue;
        };
        let used = Storage {
            bytes: signed(used.used_bytes),
            inodes: signed(used.used_inodes),
        };
        if is_on_disk(volume) {
            usage.volumes.insert(volume.name.clone(), used);
        } else if volume.empty_dir.is_some() {
            usage.memory_volumes.insert(volume.name.clone(), used);
        }
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let folder = pod_logs_dir.join(format!(
        "{}_{}_{}",
        text(&pod.metadata.namespace),
        text(&pod.metadata.name),
        text(&pod.metadata.uid)
    ));
    for (name, used) in &mut usage.containers {
        used.logs = logs(&folder.join(name));
    }
}

/// Whether a volume is on the node's own disk, as upstream counts.
fn is_on_disk(volume: &Volume) -> bool {
    let on_disk = |medium: Option<&str>| medium.is_none_or(str::is_empty);
    volume.config_map.is_some()
        || volume.git_repo.is_some()
        || volume
            .empty_dir
            .as_ref()
            .is_some_and(|dir| on_disk(dir.medium.as_deref()))
}

fn logs(folder: &Path) -> Storage {
    let Ok(entries) = fs::read_dir(folder) else {
        return Storage::default();
    };
    let files = entries
        .take(MOST_LOGS)
        .filter_map(|entry| entry.ok()?.metadata().ok());
    files.fold(Storage::default(), |all, file| Storage {
        // In blocks, whatever the file system's are.
        bytes: all
            .bytes
            .saturating_add(signed(file.blocks()).saturating_mul(512)),
        inodes: all.inodes + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_told_apart_by_their_numbers() {
        assert_eq!(disks(1, 1, 1), Disks::One);
        assert_eq!(disks(1, 2, 2), Disks::ImagesApart);
        assert_eq!(disks(1, 2, 1), Disks::Split);
    }

    #[test]
    fn a_cgroup_has_left_what_its_working_set_leaves() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).expect("written");
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 1\ninactive_file 200\n");
        let seen = of_cgroup(dir.path(), Timestamp::UNIX_EPOCH).expect("a limit");
        assert_eq!((seen.available, seen.capacity), (500, 1000));
        write("memory.max", "max\n");
        assert_eq!(of_cgroup(dir.path(), Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn a_disk_without_inodes_has_no_signal_of_them() {
        let found = FsStats {
            available_bytes: Some(10),
            capacity_bytes: Some(100),
            inodes: Some(0),
            inodes_free: Some(0),
            ..FsStats::default()
        };
        let seen: Observations = of_disk(
            &found,
            Signal::NodeFsAvailable,
            Signal::NodeFsInodesFree,
            Timestamp::UNIX_EPOCH,
        )
        .collect();
        assert_eq!(
            seen.keys().copied().collect::<Vec<_>>(),
            [Signal::NodeFsAvailable]
        );
        assert_eq!(seen[&Signal::NodeFsAvailable].available, 10);
    }
}
