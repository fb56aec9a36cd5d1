//! What the statistics are made from: the runtime's answers and what the kubelet measured itself.

use std::collections::BTreeMap;

use cri_api::v1 as cri;

use super::summary::{FsStats, NodeStats, VolumeStats};

/// Everything that [`super::summarize`] needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StatsSources {
    /// The node's own figures; [`super::node`] reads them from the kernel's files.
    pub node: NodeStats,
    /// CRI `ListPodSandboxStats`; empty where the runtime hasn't got it.
    pub sandboxes: Vec<cri::PodSandboxStats>,
    /// CRI `ListContainerStats`: for the containers that `sandboxes` doesn't hold.
    pub containers: Vec<cri::ContainerStats>,
    /// When containers were started, by ID, in nanoseconds since 1970.
    pub container_starts: BTreeMap<String, i64>,
    /// When sandboxes were made, by ID, in nanoseconds since 1970.
    pub sandbox_starts: BTreeMap<String, i64>,
    /// What the containers' logs use, by container ID.
    pub logs: BTreeMap<String, FsStats>,
    /// What volumes use, by pod UID.
    pub volumes: BTreeMap<String, Vec<VolumeStats>>,
    /// The filesystem that writable layers are on; without it they show usage alone.
    pub container_fs: Option<FsStats>,
    /// CPUs of the machine.
    pub cpus: usize,
    /// Memory of the machine, in bytes.
    pub memory_bytes: u64,
}
