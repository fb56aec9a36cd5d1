//! The same numbers as Prometheus series, under the names that cadvisor gave them.
//!
//! A descriptor and its values must agree in the number and the order of labels, so both are made here from one
//! table: every series carries [`LABELS`] and, after them, its own. Values are whole numbers (the CRI's choice), so
//! `_seconds_total` counts full seconds.

use cri_api::v1;
use oci_runtime_cgroups::{IoStats, Stats};

use super::{InterfaceStats, Processes, WritableLayer};

/// What every series is labelled with, as the kubelet's own cadvisor does.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];
const NANOS_PER_SECOND: u64 = 1_000_000_000;
const MICROS_PER_SECOND: u64 = 1_000_000;

/// A container, for its metrics.
#[derive(Debug, Clone)]
pub struct ContainerMetricsInput<'a> {
    /// The CRI container id.
    pub id: &'a str,
    /// Its name in the pod.
    pub name: &'a str,
    /// The image, as the user named it.
    pub image: &'a str,
    /// Its cgroup's path.
    pub cgroup: &'a str,
    /// When it was started, in nanoseconds since the epoch.
    pub started_at: i64,
    /// The reading, if it runs.
    pub stats: Option<&'a Stats>,
    /// Its writable layer.
    pub layer: Option<&'a WritableLayer>,
    /// Its processes, if it runs.
    pub processes: Option<Processes>,
    /// What it was given of the CPUs.
    pub cpu: CpuLimits,
}

/// What a container is given of the CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLimits {
    /// Its weight against others.
    pub shares: u64,
    /// The period of enforcement in microseconds.
    pub period: u64,
    /// What it may use in a period, in microseconds; `None`: all there is.
    pub quota: Option<u64>,
}

impl CpuLimits {
    /// As asked for; what isn't said is the kernel's default.
    pub fn of(asked: Option<&v1::LinuxContainerResources>) -> Self {
        let positive = |number: fn(&v1::LinuxContainerResources) -> i64| {
            let number = asked.map_or(0, number);
            u64::try_from(number).ok().filter(|n| *n > 0)
        };
        Self {
            shares: positive(|r| r.cpu_shares).unwrap_or(1024),
            period: positive(|r| r.cpu_period).unwrap_or(100_000),
            quota: positive(|r| r.cpu_quota),
        }
    }
}

/// A pod sandbox, for its metrics.
#[derive(Debug, Clone)]
pub struct SandboxMetricsInput<'a> {
    /// The CRI sandbox id.
    pub id: &'a str,
    /// The pod's name.
    pub pod: &'a str,
    /// The pod's namespace.
    pub namespace: &'a str,
    /// Its cgroup's path.
    pub cgroup: &'a str,
    /// When it was created, in nanoseconds since the epoch.
    pub created_at: i64,
    /// The reading of the pod's cgroup.
    pub stats: Option<&'a Stats>,
    /// Its interfaces; none for a pod on the host's network.
    pub interfaces: &'a [InterfaceStats],
    /// Its containers.
    pub containers: Vec<ContainerMetricsInput<'a>>,
}

/// Reads one number out of the statistics.
type Read = fn(&Stats) -> u64;

use v1::MetricType::{Counter, Gauge};

/// Series with one value and no label of their own.
#[rustfmt::skip]
const PLAIN: [(&str, &str, v1::MetricType, Read); 29] = [
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", Counter, |s| s.cpu_usage_nanos / NANOS_PER_SECOND),
    ("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", Counter, |s| s.cpu.user_nanos / NANOS_PER_SECOND),
    ("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", Counter, |s| s.cpu.system_nanos / NANOS_PER_SECOND),
    ("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", Counter, |s| s.cpu.periods),
    ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", Counter, |s| s.cpu.throttled_periods),
    ("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", Counter, |s| s.cpu.throttled_nanos / NANOS_PER_SECOND),
    ("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", Gauge, |s| s.memory.usage),
    ("container_memory_working_set_bytes", "Current working set in bytes.", Gauge, |s| s.memory.working_set),
    ("container_memory_rss", "Size of RSS in bytes.", Gauge, |s| s.memory.rss),
    ("container_memory_cache", "Number of bytes of page cache memory.", Gauge, |s| s.memory.cache),
    ("container_memory_mapped_file", "Size of memory mapped files in bytes.", Gauge, |s| s.memory.mapped_file),
    ("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", Gauge, |s| s.memory.kernel),
    ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", Gauge, |s| s.memory.max_usage),
    ("container_memory_failcnt", "Number of memory usage hits limits.", Counter, |s| s.memory.failures),
    ("container_memory_swap", "Container swap usage in bytes.", Gauge, |s| s.memory.swap_usage.unwrap_or(0)),
    ("container_oom_events_total", "Count of out of memory events observed for the container.", Counter, |s| s.memory.oom_kills),
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", Gauge, |s| s.memory.limit.unwrap_or(0)),
    ("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", Gauge, |s| s.memory.swap_limit.unwrap_or(0)),
    ("container_threads", "Number of threads running inside the container.", Gauge, |s| s.pids.current),
    ("container_threads_max", "Maximum number of threads allowed inside the container.", Gauge, |s| s.pids.limit.unwrap_or(0)),
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read.", Counter, |s| total(s, |d| d.read_bytes)),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written.", Counter, |s| total(s, |d| d.write_bytes)),
    ("container_fs_reads_total", "Cumulative count of reads completed.", Counter, |s| total(s, |d| d.reads)),
    ("container_fs_writes_total", "Cumulative count of writes completed.", Counter, |s| total(s, |d| d.writes)),
    ("container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.", Counter, |s| s.psi.map_or(0, |p| p.cpu.full.total_micros / MICROS_PER_SECOND)),
    ("container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.", Counter, |s| s.psi.map_or(0, |p| p.cpu.some.total_micros / MICROS_PER_SECOND)),
    ("container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.", Counter, |s| s.psi.map_or(0, |p| p.memory.full.total_micros / MICROS_PER_SECOND)),
    ("container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.", Counter, |s| s.psi.map_or(0, |p| p.memory.some.total_micros / MICROS_PER_SECOND)),
    ("container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.", Counter, |s| s.psi.map_or(0, |p| p.io.full.total_micros / MICROS_PER_SECOND)),
];

/// Those that are labelled, or come from somewhere else than the cgroup.
#[rustfmt::skip]
const OTHERS: [(&str, &str, &[&str]); 26] = [
    ("container_processes", "Number of processes running inside the container.", &[]),
    ("container_file_descriptors", "Number of open file descriptors for the container.", &[]),
    ("container_sockets", "Number of open sockets for the container.", &[]),
    ("container_spec_cpu_period", "CPU period of the container.", &[]),
    ("container_spec_cpu_quota", "CPU quota of the container.", &[]),
    ("container_spec_cpu_shares", "CPU share of the container.", &[]),
    ("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", &["device"]),
    ("container_fs_inodes_total", "Number of inodes.", &["device"]),
    ("container_fs_inodes_free", "Number of available inodes.", &["device"]),
    ("container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.", &[]),
    ("container_blkio_device_usage_total", "Blkio device bytes usage.", &["major", "minor", "operation"]),
    ("container_hugetlb_usage_bytes", "Current hugepage usage in bytes.", &["pagesize"]),
    ("container_hugetlb_failcnt", "Number of hugepage usage hits limits.", &["pagesize"]),
    ("container_memory_failures_total", "Cumulative count of memory allocation failures.", &["failure_type", "scope"]),
    ("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", &["device"]),
    ("container_fs_inodes_used", "Number of inodes used by the container on this filesystem.", &["device"]),
    ("container_last_seen", "Last time a container was seen by the exporter.", &[]),
    ("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", &[]),
    ("container_network_receive_bytes_total", "Cumulative count of bytes received.", &["interface"]),
    ("container_network_receive_packets_total", "Cumulative count of packets received.", &["interface"]),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", &["interface"]),
    ("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.", &["interface"]),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", &["interface"]),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted.", &["interface"]),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", &["interface"]),
    ("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting.", &["interface"]),
];

fn total(stats: &Stats, of: fn(&IoStats) -> u64) -> u64 {
    stats.io.iter().map(of).sum()
}

/// Every series that [`sandbox_metrics`] can give.
#[must_use]
pub fn metric_descriptors() -> Vec<v1::MetricDescriptor> {
    let describe = |name: &str, help: &str, own: &[&str]| v1::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS.iter().chain(own).map(|l| (*l).to_owned()).collect(),
    };
    let plain = PLAIN.iter().map(|(name, help, _, _)| describe(name, help, &[]));
    let others = OTHERS.iter().map(|(name, help, own)| describe(name, help, own));
    plain.chain(others).collect()
}

/// A pod's series and its containers'.
///
/// `at` is when the statistics were read, in nanoseconds since the epoch.
#[must_use]
pub fn sandbox_metrics(at: i64, pod: &SandboxMetricsInput<'_>) -> v1::PodSandboxMetrics {
    let mut of_pod = Series::new(at, ["", pod.cgroup, "", pod.id, pod.namespace, pod.pod]);
    of_pod.cgroup(pod.stats);
    of_pod.times(pod.created_at);
    of_pod.network(pod.interfaces);
    let container_metrics = pod.containers.iter().map(|c| {
        let mut series = Series::new(at, [c.name, c.cgroup, c.image, c.id, pod.namespace, pod.pod]);
        series.cgroup(c.stats);
        series.times(c.started_at);
        series.cpu_limits(c.cpu);
        if let Some(processes) = c.processes {
            for (name, value) in [
                ("container_processes", processes.count),
                ("container_file_descriptors", processes.descriptors),
                ("container_sockets", processes.sockets),
            ] {
                series.push(name, Gauge, &[], value);
            }
        }
        if let Some(layer) = c.layer {
            series.push(
                "container_fs_usage_bytes",
                Gauge,
                &[&layer.mountpoint],
                layer.used_bytes,
            );
            series.push(
                "container_fs_inodes_used",
                Gauge,
                &[&layer.mountpoint],
                layer.inodes_used,
            );
            if let Some(on) = layer.on {
                for (name, value) in [
                    ("container_fs_limit_bytes", on.bytes),
                    ("container_fs_inodes_total", on.inodes),
                    ("container_fs_inodes_free", on.free_inodes),
                ] {
                    series.push(name, Gauge, &[&layer.mountpoint], value);
                }
            }
        }
        v1::ContainerMetrics {
            container_id: c.id.to_owned(),
            metrics: series.metrics,
        }
    });
    v1::PodSandboxMetrics {
        pod_sandbox_id: pod.id.to_owned(),
        container_metrics: container_metrics.collect(),
        metrics: of_pod.metrics,
    }
}

/// Series of one subject.
struct Series {
    at: i64,
    labels: Vec<String>,
    metrics: Vec<v1::Metric>,
}

impl Series {
    fn new(at: i64, labels: [&str; LABELS.len()]) -> Self {
        Self {
            at,
            labels: labels.map(str::to_owned).to_vec(),
            metrics: Vec::new(),
        }
    }

    fn push(&mut self, name: &str, kind: v1::MetricType, own: &[&str], value: u64) {
        let own = own.iter().map(|l| (*l).to_owned());
        self.metrics.push(v1::Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: kind.into(),
            label_values: self.labels.iter().cloned().chain(own).collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }

    fn cgroup(&mut self, stats: Option<&Stats>) {
        let Some(stats) = stats else { return };
        for (name, _, kind, read) in PLAIN {
            // A host without PSI has no pressure, not a pressure of 0.
            if stats.psi.is_some() || !name.starts_with("container_pressure_") {
                self.push(name, kind, &[], read(stats));
            }
        }
        if let Some(psi) = stats.psi {
            let waiting = psi.io.some.total_micros / MICROS_PER_SECOND;
            self.push(
                "container_pressure_io_waiting_seconds_total",
                Counter,
                &[],
                waiting,
            );
        }
        for (kind, value) in [
            ("pgfault", stats.memory.page_faults),
            ("pgmajfault", stats.memory.major_page_faults),
        ] {
            self.push(
                "container_memory_failures_total",
                Counter,
                &[kind, "hierarchy"],
                value,
            );
        }
        for page in &stats.hugetlb {
            self.push(
                "container_hugetlb_usage_bytes",
                Gauge,
                &[&page.page_size],
                page.usage,
            );
            self.push(
                "container_hugetlb_failcnt",
                Counter,
                &[&page.page_size],
                page.failures,
            );
        }
        for device in &stats.io {
            let (major, minor) = (device.major.to_string(), device.minor.to_string());
            for (operation, bytes) in [("Read", device.read_bytes), ("Write", device.write_bytes)] {
                let own = [major.as_str(), &minor, operation];
                self.push("container_blkio_device_usage_total", Counter, &own, bytes);
            }
        }
    }

    fn times(&mut self, started_at: i64) {
        let seconds = |nanos: i64| u64::try_from(nanos).unwrap_or(0) / NANOS_PER_SECOND;
        self.push("container_last_seen", Gauge, &[], seconds(self.at));
        self.push("container_start_time_seconds", Gauge, &[], seconds(started_at));
    }

    fn cpu_limits(&mut self, cpu: CpuLimits) {
        self.push("container_spec_cpu_period", Gauge, &[], cpu.period);
        self.push("container_spec_cpu_shares", Gauge, &[], cpu.shares);
        if let Some(quota) = cpu.quota {
            self.push("container_spec_cpu_quota", Gauge, &[], quota);
        }
    }

    fn network(&mut self, interfaces: &[InterfaceStats]) {
        for i in interfaces.iter().filter(|i| i.name != "lo") {
            let counters = [
                ("container_network_receive_bytes_total", i.rx_bytes),
                ("container_network_receive_packets_total", i.rx_packets),
                ("container_network_receive_errors_total", i.rx_errors),
                ("container_network_receive_packets_dropped_total", i.rx_dropped),
                ("container_network_transmit_bytes_total", i.tx_bytes),
                ("container_network_transmit_packets_total", i.tx_packets),
                ("container_network_transmit_errors_total", i.tx_errors),
                ("container_network_transmit_packets_dropped_total", i.tx_dropped),
            ];
            for (name, value) in counters {
                self.push(name, Counter, &[&i.name], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use oci_runtime_cgroups::{HugetlbStats, Psi};

    use super::*;

    fn everything() -> Stats {
        Stats {
            cpu_usage_nanos: 2_500_000_000,
            io: vec![IoStats {
                major: 8,
                read_bytes: 5,
                ..IoStats::default()
            }],
            hugetlb: vec![HugetlbStats {
                page_size: "2MB".to_owned(),
                usage: 1,
                failures: 0,
            }],
            psi: Some(Psi::default()),
            ..Stats::default()
        }
    }

    fn metrics(stats: &Stats) -> v1::PodSandboxMetrics {
        let layer = WritableLayer {
            on: Some(crate::stats::FileSystem::default()),
            ..WritableLayer::default()
        };
        let interfaces = [InterfaceStats {
            name: "eth0".to_owned(),
            rx_bytes: 9,
            ..InterfaceStats::default()
        }];
        let container = ContainerMetricsInput {
            id: "c1",
            name: "web",
            image: "nginx",
            cgroup: "/p/c1",
            started_at: 3_000_000_000,
            stats: Some(stats),
            layer: Some(&layer),
            processes: Some(Processes::default()),
            cpu: CpuLimits::of(Some(&v1::LinuxContainerResources {
                cpu_quota: 20_000,
                ..Default::default()
            })),
        };
        let pod = SandboxMetricsInput {
            id: "s1",
            pod: "pod",
            namespace: "default",
            cgroup: "/p",
            created_at: 2_000_000_000,
            stats: Some(stats),
            interfaces: &interfaces,
            containers: vec![container],
        };
        sandbox_metrics(5_000_000_000, &pod)
    }

    #[test]
    fn every_series_is_described_with_as_many_labels_as_it_has() {
        let descriptors: BTreeMap<_, _> = metric_descriptors()
            .into_iter()
            .map(|d| (d.name, d.label_keys.len()))
            .collect();
        assert_eq!(
            descriptors.len(),
            PLAIN.len() + OTHERS.len(),
            "a name is described twice"
        );
        let got = metrics(&everything());
        let all: Vec<_> = got
            .metrics
            .iter()
            .chain(&got.container_metrics[0].metrics)
            .collect();
        for metric in &all {
            assert_eq!(
                descriptors.get(&metric.name),
                Some(&metric.label_values.len()),
                "{}",
                metric.name
            );
        }
        let given: BTreeSet<_> = all.iter().map(|m| m.name.clone()).collect();
        let promised: BTreeSet<_> = descriptors.into_keys().collect();
        assert_eq!(
            given, promised,
            "described and never given, or the other way round"
        );
    }

    #[test]
    fn values_and_labels_are_the_subject_s() {
        let got = metrics(&everything());
        let find = |all: &[v1::Metric], name: &str| all.iter().find(|m| m.name == name).cloned().unwrap();
        let cpu = find(
            &got.container_metrics[0].metrics,
            "container_cpu_usage_seconds_total",
        );
        assert_eq!(
            cpu.label_values,
            ["web", "/p/c1", "nginx", "c1", "default", "pod"]
        );
        assert_eq!(cpu.value.unwrap().value, 2);
        let rx = find(&got.metrics, "container_network_receive_bytes_total");
        assert_eq!(rx.label_values.last().unwrap(), "eth0");
        assert_eq!(rx.value.unwrap().value, 9);
        let start = find(&got.metrics, "container_start_time_seconds");
        assert_eq!(start.value.unwrap().value, 2);
    }

    #[test]
    fn cpu_limits_that_are_not_said_are_the_kernel_s() {
        let none = CpuLimits {
            shares: 1024,
            period: 100_000,
            quota: None,
        };
        assert_eq!(CpuLimits::of(None), none);
        let unlimited = v1::LinuxContainerResources {
            cpu_quota: -1,
            cpu_shares: 2,
            ..Default::default()
        };
        assert_eq!(CpuLimits::of(Some(&unlimited)), CpuLimits { shares: 2, ..none });
    }

    #[test]
    fn without_psi_there_are_no_pressure_series() {
        let stats = Stats {
            psi: None,
            ..everything()
        };
        let got = metrics(&stats);
        assert!(
            !got.metrics
                .iter()
                .any(|m| m.name.starts_with("container_pressure"))
        );
    }
}
