//! Who goes first.

use std::cmp::Reverse;

use controlplane_api::k8s_openapi::api::core::v1::Pod;

use super::{Candidate, Disks, Signal, Storage, Usage, priority};
use crate::node::resources::PodResources;

/// Sorts those that should go first to the front: whose use isn't known, who uses more than is requested, who is less
/// important, who uses most beyond the request. Of equals the later name stays, so that the order is always the same.
pub(super) fn sort(pods: &mut [&Candidate<'_>], signal: Signal, disks: Disks) {
    pods.sort_by_cached_key(|one| {
        let over = over_request(one.pod, one.usage, signal, disks);
        let known = over.is_some();
        let over = over.unwrap_or(0);
        // Processes and inodes can't be requested.
        let exceeds = match signal.resource() {
            "pids" => true,
            _ => over > 0,
        };
        let name = (one.pod.metadata.namespace.clone(), one.pod.metadata.name.clone());
        (known, !exceeds, priority(one.pod), Reverse(over), name)
    });
}

/// Whether a pod is known to use some of what runs low.
pub(super) fn gives_back(one: &Candidate<'_>, signal: Signal, disks: Disks) -> bool {
    used(one.usage, signal, disks).is_some_and(|used| used > 0)
}

/// Use less request; `None` when the use isn't known.
fn over_request(pod: &Pod, usage: Option<&Usage>, signal: Signal, disks: Disks) -> Option<i64> {
    let used = used(usage, signal, disks)?;
    let requested = |name: &str| PodResources::of(pod).request(name);
    Some(match signal.resource() {
        "memory" => used.saturating_sub(requested("memory")),
        "pids" | "inodes" => used,
        _ => used.saturating_sub(requested("ephemeral-storage")),
    })
}

/// How much of what runs low a pod uses; `None` when that isn't known.
fn used(usage: Option<&Usage>, signal: Signal, disks: Disks) -> Option<i64> {
    let usage = usage?;
    match signal.resource() {
        "memory" => usage.memory,
        "pids" => Some(usage.processes.unwrap_or(0)),
        "inodes" => Some(disk(usage, signal, disks).inodes),
        _ => Some(disk(usage, signal, disks).bytes),
    }
}

/// What of a pod is on the disk that runs low.
fn disk(usage: &Usage, signal: Signal, disks: Disks) -> Storage {
    let is_node = matches!(signal, Signal::NodeFsAvailable | Signal::NodeFsInodesFree);
    let (root, rest) = match (disks, is_node) {
        (Disks::One, _) | (Disks::Split, true) => (true, true),
        (Disks::ImagesApart, true) => (false, true),
        (Disks::ImagesApart | Disks::Split, false) => (true, false),
    };
    total(usage, root, rest)
}

/// Writable layers, and logs and volumes.
pub(super) fn total(usage: &Usage, root: bool, rest: bool) -> Storage {
    let layers = usage.containers.values().filter(|_| root).map(|one| one.root);
    let logs = usage.containers.values().filter(|_| rest).map(|one| one.logs);
    let volumes = usage.volumes.values().filter(|_| rest).copied();
    layers
        .chain(logs)
        .chain(volumes)
        .fold(Storage::default(), |all, one| Storage {
            bytes: all.bytes.saturating_add(one.bytes),
            inodes: all.inodes.saturating_add(one.inodes),
        })
}
