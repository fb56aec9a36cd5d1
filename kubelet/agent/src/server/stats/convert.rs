//! From CRI's statistics to the summary.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use cri_api::v1 as cri;
use jiff::Timestamp;

use super::sources::StatsSources;
use super::summary::{
    ContainerStats, CpuStats, FsStats, InterfaceStats, MemoryStats, NetworkStats, PodReference, PodStats,
    ProcessStats, PsiData, PsiStats, Summary, SwapStats, VolumeStats,
};

/// CRI label: a pod's name.
pub(super) const POD_NAME_LABEL: &str = "io.kubernetes.pod.name";
/// CRI label: a pod's namespace.
pub(super) const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// CRI label: a pod's UID.
pub(super) const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";
/// CRI label: a container's name.
pub(super) const CONTAINER_NAME_LABEL: &str = "io.kubernetes.container.name";

/// The summary. Of several sandboxes of a pod, and of several containers of a name, the newest one counts; pods that
/// `pods` doesn't know are shown as well, since they use the node, too.
pub fn summarize(sources: &StatsSources, pods: &[&Pod]) -> Summary {
    let mut found: BTreeMap<(String, String, String), PodStats> = BTreeMap::new();
    let mut newest: BTreeMap<String, u32> = BTreeMap::new();
    for sandbox in &sources.sandboxes {
        let Some(reference) = sandbox_reference(sandbox) else {
            continue;
        };
        let attempt = sandbox
            .attributes
            .as_ref()
            .and_then(|attributes| attributes.metadata.as_ref())
            .map_or(0, |metadata| metadata.attempt);
        if newest.get(&reference.uid).is_some_and(|known| *known > attempt) {
            continue;
        }
        newest.insert(reference.uid.clone(), attempt);
        found.insert(key(&reference), pod_stats(sources, sandbox, reference));
    }
    let mut loose: BTreeMap<(String, String, String), Vec<&cri::ContainerStats>> = BTreeMap::new();
    for container in &sources.containers {
        if let Some(reference) = container_reference(container) {
            loose.entry(key(&reference)).or_default().push(container);
        }
    }
    for (place, containers) in loose {
        let pod = found.entry(place.clone()).or_insert_with(|| PodStats {
            pod_ref: PodReference {
                namespace: place.0,
                name: place.1,
                uid: place.2,
            },
            ..PodStats::default()
        });
        if pod.containers.is_empty() {
            pod.containers = container_list(sources, containers);
        }
    }
    for pod in found.values_mut() {
        finish(sources, pod, pods);
    }
    Summary {
        node: sources.node.clone(),
        pods: found.into_values().collect(),
    }
}

fn key(reference: &PodReference) -> (String, String, String) {
    (
        reference.namespace.clone(),
        reference.name.clone(),
        reference.uid.clone(),
    )
}

fn sandbox_reference(sandbox: &cri::PodSandboxStats) -> Option<PodReference> {
    let metadata = sandbox.attributes.as_ref()?.metadata.as_ref()?;
    Some(PodReference {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
    })
}

fn container_reference(container: &cri::ContainerStats) -> Option<PodReference> {
    let labels = &container.attributes.as_ref()?.labels;
    Some(PodReference {
        name: labels.get(POD_NAME_LABEL)?.clone(),
        namespace: labels.get(POD_NAMESPACE_LABEL)?.clone(),
        uid: labels.get(POD_UID_LABEL)?.clone(),
    })
}

fn pod_stats(sources: &StatsSources, sandbox: &cri::PodSandboxStats, pod_ref: PodReference) -> PodStats {
    let mut pod = PodStats {
        pod_ref,
        ..PodStats::default()
    };
    if let Some(attributes) = &sandbox.attributes {
        pod.start_time = sources.sandbox_starts.get(&attributes.id).copied().and_then(time);
    }
    let Some(linux) = &sandbox.linux else { return pod };
    pod.cpu = linux.cpu.as_ref().map(cpu_stats);
    pod.memory = linux.memory.as_ref().map(memory_stats);
    pod.network = linux.network.as_ref().map(network_stats);
    pod.process_stats = linux.process.as_ref().map(|process| ProcessStats {
        process_count: number(&process.process_count),
    });
    pod.containers = container_list(sources, linux.containers.iter().collect());
    pod
}

/// The newest container of each name.
fn container_list(sources: &StatsSources, containers: Vec<&cri::ContainerStats>) -> Vec<ContainerStats> {
    let mut by_name: BTreeMap<&str, (u32, &cri::ContainerStats)> = BTreeMap::new();
    for container in containers {
        let Some(metadata) = container.attributes.as_ref().and_then(|a| a.metadata.as_ref()) else {
            continue;
        };
        let known = by_name
            .entry(&metadata.name)
            .or_insert((metadata.attempt, container));
        if known.0 < metadata.attempt {
            *known = (metadata.attempt, container);
        }
    }
    by_name
        .into_iter()
        .map(|(name, (_, container))| container_stats(sources, name, container))
        .collect()
}

fn container_stats(sources: &StatsSources, name: &str, container: &cri::ContainerStats) -> ContainerStats {
    let id = container
        .attributes
        .as_ref()
        .map_or("", |attributes| &attributes.id);
    ContainerStats {
        name: name.to_owned(),
        start_time: sources.container_starts.get(id).copied().and_then(time),
        cpu: container.cpu.as_ref().map(cpu_stats),
        memory: container.memory.as_ref().map(memory_stats),
        rootfs: container.writable_layer.as_ref().map(|layer| {
            let fs = sources.container_fs.clone().unwrap_or_default();
            FsStats {
                time: time(layer.timestamp),
                used_bytes: number(&layer.used_bytes),
                inodes_used: number(&layer.inodes_used),
                ..fs
            }
        }),
        logs: sources.logs.get(id).cloned(),
        swap: container.swap.as_ref().map(|swap| SwapStats {
            time: time(swap.timestamp),
            swap_available_bytes: number(&swap.swap_available_bytes),
            swap_usage_bytes: number(&swap.swap_usage_bytes),
        }),
    }
}

/// What comes from elsewhere than the runtime, and sums of what is missing.
fn finish(sources: &StatsSources, pod: &mut PodStats, pods: &[&Pod]) {
    let known = pods
        .iter()
        .find(|known| known.metadata.uid.as_deref() == Some(&pod.pod_ref.uid));
    if let Some(start) = known.and_then(|known| known.status.as_ref()?.start_time.as_ref()) {
        pod.start_time.get_or_insert(start.0);
    }
    pod.volume = sources.volumes.get(&pod.pod_ref.uid).cloned().unwrap_or_default();
    if pod.cpu.is_none() {
        let own = || {
            pod.containers
                .iter()
                .filter_map(|container| container.cpu.as_ref())
        };
        pod.cpu = own().next().map(|first| CpuStats {
            time: own().filter_map(|cpu| cpu.time).max().or(first.time),
            usage_nano_cores: sum(own().map(|cpu| cpu.usage_nano_cores)),
            usage_core_nano_seconds: sum(own().map(|cpu| cpu.usage_core_nano_seconds)),
            psi: None,
        });
    }
    if pod.memory.is_none() {
        let own = || {
            pod.containers
                .iter()
                .filter_map(|container| container.memory.as_ref())
        };
        pod.memory = own().next().map(|first| MemoryStats {
            time: own().filter_map(|memory| memory.time).max().or(first.time),
            available_bytes: None,
            usage_bytes: sum(own().map(|memory| memory.usage_bytes)),
            working_set_bytes: sum(own().map(|memory| memory.working_set_bytes)),
            rss_bytes: sum(own().map(|memory| memory.rss_bytes)),
            page_faults: sum(own().map(|memory| memory.page_faults)),
            major_page_faults: sum(own().map(|memory| memory.major_page_faults)),
            psi: None,
        });
    }
    let swap = || {
        pod.containers
            .iter()
            .filter_map(|container| container.swap.as_ref())
    };
    pod.swap = swap().next().map(|first| SwapStats {
        time: first.time,
        swap_available_bytes: sum(swap().map(|swap| swap.swap_available_bytes)),
        swap_usage_bytes: sum(swap().map(|swap| swap.swap_usage_bytes)),
    });
    pod.ephemeral_storage = ephemeral_storage(pod, known.copied());
}

/// Writable layers, logs and volumes that lie on the node's disk.
fn ephemeral_storage(pod: &PodStats, known: Option<&Pod>) -> Option<FsStats> {
    let disk_volume = |volume: &&VolumeStats| {
        known
            .and_then(|known| known.spec.as_ref()?.volumes.as_ref())
            .into_iter()
            .flatten()
            .filter(|spec| spec.name == volume.name)
            .any(|spec| match &spec.empty_dir {
                Some(empty) => empty.medium.as_deref().unwrap_or_default().is_empty(),
                None => spec.config_map.is_some() || spec.downward_api.is_some() || spec.projected.is_some(),
            })
    };
    let parts: Vec<&FsStats> = pod
        .containers
        .iter()
        .flat_map(|container| container.rootfs.iter().chain(&container.logs))
        .chain(pod.volume.iter().filter(disk_volume).map(|volume| &volume.fs))
        .collect();
    let first = parts.first()?;
    Some(FsStats {
        used_bytes: sum(parts.iter().map(|part| part.used_bytes)),
        inodes_used: sum(parts.iter().map(|part| part.inodes_used)),
        ..(*first).clone()
    })
}

/// The sum of what is known; none where nothing is.
fn sum(numbers: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    numbers.flatten().reduce(u64::saturating_add)
}

pub(super) fn number(value: &Option<cri::UInt64Value>) -> Option<u64> {
    value.as_ref().map(|value| value.value)
}

/// Nanoseconds since 1970; none where they aren't positive.
pub(super) fn time(nanos: i64) -> Option<Timestamp> {
    (nanos > 0)
        .then(|| Timestamp::from_nanosecond(i128::from(nanos)).ok())
        .flatten()
}

fn cpu_stats(cpu: &cri::CpuUsage) -> CpuStats {
    CpuStats {
        time: time(cpu.timestamp),
        usage_nano_cores: number(&cpu.usage_nano_cores),
        usage_core_nano_seconds: number(&cpu.usage_core_nano_seconds),
        psi: cpu.psi.as_ref().map(psi_stats),
    }
}

fn memory_stats(memory: &cri::MemoryUsage) -> MemoryStats {
    MemoryStats {
        time: time(memory.timestamp),
        available_bytes: number(&memory.available_bytes),
        usage_bytes: number(&memory.usage_bytes),
        working_set_bytes: number(&memory.working_set_bytes),
        rss_bytes: number(&memory.rss_bytes),
        page_faults: number(&memory.page_faults),
        major_page_faults: number(&memory.major_page_faults),
        psi: memory.psi.as_ref().map(psi_stats),
    }
}

fn psi_stats(psi: &cri::PsiStats) -> PsiStats {
    let line = |line: &Option<cri::PsiData>| {
        line.as_ref().map_or_else(PsiData::default, |line| PsiData {
            total: line.total,
            avg10: line.avg10,
            avg60: line.avg60,
            avg300: line.avg300,
        })
    };
    PsiStats {
        full: line(&psi.full),
        some: line(&psi.some),
    }
}

fn network_stats(network: &cri::NetworkUsage) -> NetworkStats {
    let interface = |interface: &cri::NetworkInterfaceUsage| InterfaceStats {
        name: interface.name.clone(),
        rx_bytes: number(&interface.rx_bytes),
        rx_errors: number(&interface.rx_errors),
        tx_bytes: number(&interface.tx_bytes),
        tx_errors: number(&interface.tx_errors),
    };
    NetworkStats {
        time: time(network.timestamp),
        default: network
            .default_interface
            .as_ref()
            .map(interface)
            .unwrap_or_default(),
        interfaces: network.interfaces.iter().map(interface).collect(),
    }
}
