//! Statistics and metrics of pods and containers, from their cgroups and namespaces.
//!
//! The caller reads (cgroups through oci-runtime-cgroups, interface counters in the pod's network namespace, the
//! writable layer's size) and says when; what is here only maps, so it needs no clock and no kernel. CPU *rates* need
//! two readings: [`CpuSamples`] keeps the last of each cgroup, in a bounded table. [`metric_descriptors`] and
//! [`sandbox_metrics`] say the same as Prometheus series under cadvisor's names, for a kubelet that takes its metrics
//! from the CRI server (KEP-2371).

mod metrics;
mod processes;
mod samples;

use cri_api::v1;
use oci_runtime_cgroups::{Pressure, Psi, Stall, Stats};

pub use metrics::{
    ContainerMetricsInput, CpuLimits, SandboxMetricsInput, metric_descriptors, sandbox_metrics,
};
pub use processes::Processes;
pub use samples::CpuSamples;

/// Counters of one network interface, as rtnetlink's `rtnl_link_stats64` has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// The interface's name in the pod.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Errors while receiving.
    pub rx_errors: u64,
    /// Received packets that were dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Errors while sending.
    pub tx_errors: u64,
    /// Packets to be sent that were dropped.
    pub tx_dropped: u64,
}

/// The size of a container's writable layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WritableLayer {
    /// The mount point or directory of the image file system that holds it.
    pub mountpoint: String,
    /// Bytes.
    pub used_bytes: u64,
    /// Files, directories and all else with an inode.
    pub inodes_used: u64,
    /// The file system that it is on.
    pub on: Option<FileSystem>,
}

/// The size of a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Bytes in all.
    pub bytes: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that are free.
    pub free_inodes: u64,
}

/// A cgroup's statistics with what the moment adds.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// When it was read, in nanoseconds since the epoch.
    pub at: i64,
    /// What was read.
    pub stats: &'a Stats,
    /// The CPU rate in billionths of a core, see [`CpuSamples::rate`].
    pub nano_cores: Option<u64>,
}

/// One container's statistics. A container that does not run has no reading, only a layer.
#[must_use]
pub fn container_stats(
    attributes: v1::ContainerAttributes,
    reading: Option<Reading<'_>>,
    layer: Option<(i64, &WritableLayer)>,
) -> v1::ContainerStats {
    v1::ContainerStats {
        attributes: Some(attributes),
        cpu: reading.map(cpu),
        memory: reading.map(memory),
        writable_layer: layer.map(|(at, layer)| file_system(at, layer)),
        swap: reading.and_then(swap),
        io: reading.and_then(io),
    }
}

/// A pod's statistics: its own cgroup's (which its containers' are below), its network's, and its containers'.
#[must_use]
pub fn sandbox_stats(
    attributes: v1::PodSandboxAttributes,
    reading: Option<Reading<'_>>,
    network: Option<(i64, &[InterfaceStats])>,
    containers: Vec<v1::ContainerStats>,
) -> v1::PodSandboxStats {
    let linux = v1::LinuxPodSandboxStats {
        cpu: reading.map(cpu),
        memory: reading.map(memory),
        network: network.and_then(|(at, interfaces)| network_usage(at, interfaces)),
        process: reading.map(|r| v1::ProcessUsage {
            timestamp: r.at,
            process_count: number(r.stats.pids.current),
        }),
        containers,
        io: reading.and_then(io),
    };
    v1::PodSandboxStats {
        attributes: Some(attributes),
        linux: Some(linux),
        windows: None,
    }
}

/// The size of a writable layer or an image store.
#[must_use]
pub fn file_system(at: i64, layer: &WritableLayer) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: at,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: layer.mountpoint.clone(),
        }),
        used_bytes: number(layer.used_bytes),
        inodes_used: number(layer.inodes_used),
    }
}

fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(reading: Reading<'_>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: reading.at,
        usage_core_nano_seconds: number(reading.stats.cpu_usage_nanos),
        usage_nano_cores: reading.nano_cores.and_then(number),
        psi: reading.stats.psi.map(|p| psi(&p.cpu)),
    }
}

fn memory(reading: Reading<'_>) -> v1::MemoryUsage {
    let memory = &reading.stats.memory;
    v1::MemoryUsage {
        timestamp: reading.at,
        working_set_bytes: number(memory.working_set),
        // 0 would say that there is nothing left, so a cgroup without a limit says nothing.
        available_bytes: memory.available.and_then(number),
        usage_bytes: number(memory.usage),
        rss_bytes: number(memory.rss),
        page_faults: number(memory.page_faults),
        major_page_faults: number(memory.major_page_faults),
        psi: reading.stats.psi.map(|p| psi(&p.memory)),
    }
}

fn swap(reading: Reading<'_>) -> Option<v1::SwapUsage> {
    let memory = &reading.stats.memory;
    let usage = memory.swap_usage?;
    Some(v1::SwapUsage {
        timestamp: reading.at,
        swap_available_bytes: memory
            .swap_limit
            .and_then(|limit| number(limit.saturating_sub(usage))),
        swap_usage_bytes: number(usage),
    })
}

fn io(reading: Reading<'_>) -> Option<v1::IoUsage> {
    let Psi { io, .. } = reading.stats.psi?;
    Some(v1::IoUsage {
        timestamp: reading.at,
        psi: Some(psi(&io)),
    })
}

/// The totals stay in the kernel's microseconds, as the kubelet's consumers get them from its own reading.
fn psi(pressure: &Pressure) -> v1::PsiStats {
    let line = |stall: &Stall| v1::PsiData {
        total: stall.total_micros,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    v1::PsiStats {
        full: Some(line(&pressure.full)),
        some: Some(line(&pressure.some)),
    }
}

/// `eth0` is the default interface by the CNI specification's convention; if there is none, the first by its place.
/// Loopback is not part of a pod's traffic.
fn network_usage(at: i64, interfaces: &[InterfaceStats]) -> Option<v1::NetworkUsage> {
    let usage = |i: &InterfaceStats| v1::NetworkInterfaceUsage {
        name: i.name.clone(),
        rx_bytes: number(i.rx_bytes),
        rx_errors: number(i.rx_errors),
        tx_bytes: number(i.tx_bytes),
        tx_errors: number(i.tx_errors),
    };
    let outside: Vec<&InterfaceStats> = interfaces.iter().filter(|i| i.name != "lo").collect();
    let default = outside.iter().position(|i| i.name == "eth0").unwrap_or(0);
    let (mut default_interface, mut others) = (None, Vec::new());
    for (index, interface) in outside.iter().enumerate() {
        if index == default {
            default_interface = Some(usage(interface));
        } else {
            others.push(usage(interface));
        }
    }
    default_interface.as_ref()?;
    Some(v1::NetworkUsage {
        timestamp: at,
        default_interface,
        interfaces: others,
    })
}

#[cfg(test)]
mod tests {
    use oci_runtime_cgroups::{MemoryStats, PidsStats};

    use super::*;

    fn used() -> Stats {
        Stats {
            cpu_usage_nanos: 5_000_000_000,
            memory: MemoryStats {
                usage: 100,
                working_set: 80,
                limit: Some(200),
                available: Some(120),
                swap_usage: Some(10),
                swap_limit: Some(50),
                ..MemoryStats::default()
            },
            pids: PidsStats {
                current: 3,
                limit: None,
            },
            ..Stats::default()
        }
    }

    fn interface(name: &str, rx_bytes: u64) -> InterfaceStats {
        InterfaceStats {
            name: name.to_owned(),
            rx_bytes,
            ..InterfaceStats::default()
        }
    }

    #[test]
    fn a_running_container_reports_cpu_memory_swap_and_layer() {
        let stats = used();
        let reading = Reading {
            at: 7,
            stats: &stats,
            nano_cores: Some(250_000_000),
        };
        let layer = WritableLayer {
            mountpoint: "/x".to_owned(),
            used_bytes: 1,
            inodes_used: 2,
            on: None,
        };
        let got = container_stats(
            v1::ContainerAttributes::default(),
            Some(reading),
            Some((8, &layer)),
        );
        let cpu = got.cpu.unwrap();
        assert_eq!(
            (cpu.timestamp, cpu.usage_nano_cores.unwrap().value),
            (7, 250_000_000)
        );
        let memory = got.memory.unwrap();
        assert_eq!(
            (
                memory.working_set_bytes.unwrap().value,
                memory.available_bytes.unwrap().value
            ),
            (80, 120)
        );
        assert_eq!(got.swap.unwrap().swap_available_bytes.unwrap().value, 40);
        assert_eq!(got.writable_layer.unwrap().inodes_used.unwrap().value, 2);
        assert!(got.io.is_none());
    }

    #[test]
    fn a_container_that_ended_reports_its_layer_only() {
        let layer = WritableLayer::default();
        let got = container_stats(v1::ContainerAttributes::default(), None, Some((8, &layer)));
        assert!(got.cpu.is_none() && got.memory.is_none() && got.writable_layer.is_some());
    }

    #[test]
    fn an_unlimited_cgroup_has_no_available_memory_to_speak_of() {
        let stats = Stats::default();
        let reading = Reading {
            at: 1,
            stats: &stats,
            nano_cores: None,
        };
        let got = container_stats(v1::ContainerAttributes::default(), Some(reading), None);
        assert!(got.memory.unwrap().available_bytes.is_none());
        assert!(got.cpu.unwrap().usage_nano_cores.is_none());
    }

    #[test]
    fn a_pod_reports_eth0_first_without_loopback_and_counts_its_tasks() {
        let stats = used();
        let reading = Reading {
            at: 7,
            stats: &stats,
            nano_cores: None,
        };
        let interfaces = [interface("lo", 1), interface("net1", 2), interface("eth0", 3)];
        let got = sandbox_stats(
            v1::PodSandboxAttributes::default(),
            Some(reading),
            Some((9, &interfaces)),
            vec![v1::ContainerStats::default()],
        );
        let linux = got.linux.unwrap();
        let network = linux.network.unwrap();
        assert_eq!(network.default_interface.unwrap().name, "eth0");
        assert_eq!(
            network
                .interfaces
                .iter()
                .map(|i| i.name.as_str())
                .collect::<Vec<_>>(),
            ["net1"]
        );
        assert_eq!(linux.process.unwrap().process_count.unwrap().value, 3);
        assert_eq!(linux.containers.len(), 1);
        let host = sandbox_stats(v1::PodSandboxAttributes::default(), None, Some((9, &[])), vec![]);
        assert!(host.linux.unwrap().network.is_none());
    }
}
