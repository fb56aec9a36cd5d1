//! `/metrics/cadvisor`: what the runtime measures on its own, or else what its statistics tell, under cAdvisor's names.

use std::collections::BTreeMap;

use cri_api::v1 as cri;

use super::convert::{CONTAINER_NAME_LABEL, POD_NAME_LABEL, POD_NAMESPACE_LABEL, number};
use super::sources::StatsSources;
use crate::metrics::{Exposition, Kind};
use crate::server::seam::RuntimeMetrics;

/// From the runtime's own metrics. One whose labels don't fit its descriptor, or that has none, is left out.
pub fn encode_runtime(metrics: &RuntimeMetrics, sources: &StatsSources) -> String {
    let described: BTreeMap<&str, &cri::MetricDescriptor> = metrics
        .descriptors
        .iter()
        .map(|descriptor| (descriptor.name.as_str(), descriptor))
        .collect();
    let mut families: BTreeMap<&str, Vec<&cri::Metric>> = BTreeMap::new();
    for pod in &metrics.pods {
        let own = pod.metrics.iter();
        let contained = pod
            .container_metrics
            .iter()
            .flat_map(|container| &container.metrics);
        for metric in own.chain(contained) {
            let fits = described
                .get(metric.name.as_str())
                .is_some_and(|descriptor| descriptor.label_keys.len() == metric.label_values.len());
            if fits {
                families.entry(&metric.name).or_default().push(metric);
            }
        }
    }
    let mut text = Exposition::default();
    for (name, members) in families {
        let Some(descriptor) = described.get(name) else {
            continue;
        };
        let kind = match members.first().map(|metric| metric.metric_type()) {
            Some(cri::MetricType::Counter) => Kind::Counter,
            _ => Kind::Gauge,
        };
        text.family(name, &descriptor.help, kind);
        for metric in members {
            let labels: Vec<(&str, &str)> = descriptor
                .label_keys
                .iter()
                .map(String::as_str)
                .zip(metric.label_values.iter().map(String::as_str))
                .collect();
            let value = number(&metric.value).unwrap_or(0) as f64;
            text.sample(name, &labels, value, Some(metric.timestamp / 1_000_000));
        }
    }
    machine(&mut text, sources);
    text.finish()
}

/// One container, or a pod's own cgroup (then without name and image).
struct Subject<'a> {
    labels: [(&'static str, &'a str); 5],
    cpu: Option<&'a cri::CpuUsage>,
    memory: Option<&'a cri::MemoryUsage>,
    layer: Option<&'a cri::FilesystemUsage>,
    swap: Option<&'a cri::SwapUsage>,
    start: Option<i64>,
}

type Figure = for<'a> fn(&Subject<'a>) -> Option<(f64, i64)>;

/// Name, help, kind and what is shown of a subject.
const FIGURES: &[(&str, &str, Kind, Figure)] = &[
    (
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed in seconds.",
        Kind::Counter,
        |s| {
            let cpu = s.cpu?;
            Some((number(&cpu.usage_core_nano_seconds)? as f64 / 1e9, cpu.timestamp))
        },
    ),
    (
        "container_fs_inodes_total",
        "Number of Inodes",
        Kind::Gauge,
        |s| {
            let layer = s.layer?;
            Some((number(&layer.inodes_used)? as f64, layer.timestamp))
        },
    ),
    (
        "container_fs_usage_bytes",
        "Number of bytes that are consumed by the container on this filesystem.",
        Kind::Gauge,
        |s| {
            let layer = s.layer?;
            Some((number(&layer.used_bytes)? as f64, layer.timestamp))
        },
    ),
    (
        "container_memory_rss",
        "Size of RSS in bytes.",
        Kind::Gauge,
        |s| {
            let memory = s.memory?;
            Some((number(&memory.rss_bytes)? as f64, memory.timestamp))
        },
    ),
    (
        "container_memory_swap",
        "Container swap usage in bytes.",
        Kind::Gauge,
        |s| {
            let swap = s.swap?;
            Some((number(&swap.swap_usage_bytes)? as f64, swap.timestamp))
        },
    ),
    (
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        Kind::Gauge,
        |s| {
            let memory = s.memory?;
            Some((number(&memory.usage_bytes)? as f64, memory.timestamp))
        },
    ),
    (
        "container_memory_working_set_bytes",
        "Current working set in bytes.",
        Kind::Gauge,
        |s| {
            let memory = s.memory?;
            Some((number(&memory.working_set_bytes)? as f64, memory.timestamp))
        },
    ),
    (
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds.",
        Kind::Gauge,
        |s| Some((s.start? as f64 / 1e9, 0)),
    ),
];

/// From the runtime's statistics.
pub fn encode_stats(sources: &StatsSources) -> String {
    let subjects = subjects(sources);
    let mut text = Exposition::default();
    for (name, help, kind, figure) in FIGURES {
        let shown: Vec<_> = subjects
            .iter()
            .filter_map(|subject| figure(subject).map(|(value, at)| (subject, value, at)))
            .collect();
        if shown.is_empty() {
            continue;
        }
        text.family(name, help, *kind);
        for (subject, value, at) in shown {
            let cpu = [("cpu", "total")];
            let more: &[(&str, &str)] = if name.contains("_cpu_") { &cpu } else { &[] };
            let labels: Vec<(&str, &str)> = more.iter().chain(&subject.labels).copied().collect();
            text.sample(name, &labels, value, (at > 0).then_some(at / 1_000_000));
        }
    }
    network(&mut text, sources);
    machine(&mut text, sources);
    text.finish()
}

fn subjects(sources: &StatsSources) -> Vec<Subject<'_>> {
    let mut subjects = Vec::new();
    for sandbox in &sources.sandboxes {
        let Some((attributes, linux)) = sandbox.attributes.as_ref().zip(sandbox.linux.as_ref()) else {
            continue;
        };
        let (name, namespace) = attributes
            .metadata
            .as_ref()
            .map_or(("", ""), |metadata| (&metadata.name, &metadata.namespace));
        subjects.push(Subject {
            labels: [
                ("container", ""),
                ("id", &attributes.id),
                ("name", ""),
                ("namespace", namespace),
                ("pod", name),
            ],
            cpu: linux.cpu.as_ref(),
            memory: linux.memory.as_ref(),
            layer: None,
            swap: None,
            start: sources.sandbox_starts.get(&attributes.id).copied(),
        });
    }
    let nested = sources
        .sandboxes
        .iter()
        .filter_map(|sandbox| sandbox.linux.as_ref())
        .flat_map(|linux| &linux.containers);
    let mut containers: BTreeMap<&str, &cri::ContainerStats> = BTreeMap::new();
    for container in sources.containers.iter().chain(nested) {
        if let Some(attributes) = &container.attributes {
            containers.insert(&attributes.id, container);
        }
    }
    subjects.extend(
        containers
            .into_iter()
            .map(|(id, container)| container_subject(sources, id, container)),
    );
    subjects
}

fn container_subject<'a>(
    sources: &StatsSources,
    id: &'a str,
    container: &'a cri::ContainerStats,
) -> Subject<'a> {
    let label = |key: &str| {
        container
            .attributes
            .as_ref()
            .and_then(|attributes| attributes.labels.get(key))
            .map_or("", String::as_str)
    };
    Subject {
        labels: [
            ("container", label(CONTAINER_NAME_LABEL)),
            ("id", id),
            ("name", id),
            ("namespace", label(POD_NAMESPACE_LABEL)),
            ("pod", label(POD_NAME_LABEL)),
        ],
        cpu: container.cpu.as_ref(),
        memory: container.memory.as_ref(),
        layer: container.writable_layer.as_ref(),
        swap: container.swap.as_ref(),
        start: sources.container_starts.get(id).copied(),
    }
}

fn network(text: &mut Exposition, sources: &StatsSources) {
    type Count = fn(&cri::NetworkInterfaceUsage) -> Option<u64>;
    let figures: [(&str, &str, Count); 4] = [
        (
            "container_network_receive_bytes_total",
            "Cumulative count of bytes received",
            |i| number(&i.rx_bytes),
        ),
        (
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
            |i| number(&i.rx_errors),
        ),
        (
            "container_network_transmit_bytes_total",
            "Cumulative count of bytes transmitted",
            |i| number(&i.tx_bytes),
        ),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            |i| number(&i.tx_errors),
        ),
    ];
    for (name, help, count) in figures {
        let mut begun = false;
        for sandbox in &sources.sandboxes {
            let Some(network) = sandbox.linux.as_ref().and_then(|linux| linux.network.as_ref()) else {
                continue;
            };
            let Some(attributes) = &sandbox.attributes else {
                continue;
            };
            let (pod, namespace) = attributes
                .metadata
                .as_ref()
                .map_or(("", ""), |metadata| (&metadata.name, &metadata.namespace));
            let own = network
                .default_interface
                .iter()
                .filter(|default| network.interfaces.iter().all(|other| other.name != default.name));
            for interface in own.chain(&network.interfaces) {
                let Some(value) = count(interface) else { continue };
                if !begun {
                    text.family(name, help, Kind::Counter);
                    begun = true;
                }
                let labels = [
                    ("id", attributes.id.as_str()),
                    ("interface", &interface.name),
                    ("namespace", namespace),
                    ("pod", pod),
                ];
                let at = (network.timestamp > 0).then_some(network.timestamp / 1_000_000);
                text.sample(name, &labels, value as f64, at);
            }
        }
    }
}

fn machine(text: &mut Exposition, sources: &StatsSources) {
    text.family("machine_cpu_cores", "Number of logical CPU cores.", Kind::Gauge);
    text.sample("machine_cpu_cores", &[], sources.cpus as f64, None);
    text.family(
        "machine_memory_bytes",
        "Amount of memory installed on the machine.",
        Kind::Gauge,
    );
    text.sample("machine_memory_bytes", &[], sources.memory_bytes as f64, None);
}
