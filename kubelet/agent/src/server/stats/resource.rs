//! `/metrics/resource`: CPU, memory and swap of the node, its pods and containers.

use jiff::Timestamp;

use super::summary::Summary;
use crate::metrics::{Exposition, Kind};

/// One line of a family.
struct Sample<'a> {
    labels: Vec<(&'static str, &'a str)>,
    value: f64,
    at: Option<Timestamp>,
}

/// The text; without a summary only the word that there was an error.
pub fn encode(summary: Option<&Summary>) -> String {
    let mut text = Exposition::default();
    if let Some(summary) = summary {
        containers(&mut text, summary);
        node(&mut text, summary);
        pods(&mut text, summary);
    }
    let failed = if summary.is_some() { 0.0 } else { 1.0 };
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    for name in ["resource_scrape_error", "scrape_error"] {
        text.family(name, help, Kind::Gauge);
        text.sample(name, &[], failed, None);
    }
    text.finish()
}

fn write(text: &mut Exposition, name: &str, help: &str, kind: Kind, samples: Vec<Sample<'_>>) {
    if samples.is_empty() {
        return;
    }
    text.family(name, help, kind);
    for sample in samples {
        text.sample(
            name,
            &sample.labels,
            sample.value,
            sample.at.map(Timestamp::as_millisecond),
        );
    }
}

fn sample<'a>(
    labels: &[(&'static str, &'a str)],
    value: Option<u64>,
    scale: f64,
    at: Option<Timestamp>,
) -> Option<Sample<'a>> {
    Some(Sample {
        labels: labels.to_vec(),
        value: value? as f64 / scale,
        at,
    })
}

fn containers(text: &mut Exposition, summary: &Summary) {
    let each = || {
        summary.pods.iter().flat_map(|pod| {
            pod.containers.iter().map(|container| {
                let labels = [
                    ("container", container.name.as_str()),
                    ("namespace", pod.pod_ref.namespace.as_str()),
                    ("pod", pod.pod_ref.name.as_str()),
                ];
                (labels, container)
            })
        })
    };
    let cpu = each().filter_map(|(labels, container)| {
        let cpu = container.cpu.as_ref()?;
        sample(&labels, cpu.usage_core_nano_seconds, 1e9, cpu.time)
    });
    let help = "Cumulative cpu time consumed by the container in core-seconds";
    write(
        text,
        "container_cpu_usage_seconds_total",
        help,
        Kind::Counter,
        cpu.collect(),
    );
    let memory = each().filter_map(|(labels, container)| {
        let memory = container.memory.as_ref()?;
        sample(&labels, memory.working_set_bytes, 1.0, memory.time)
    });
    let help = "Current working set of the container in bytes";
    write(
        text,
        "container_memory_working_set_bytes",
        help,
        Kind::Gauge,
        memory.collect(),
    );
    let start = each().filter_map(|(labels, container)| {
        let start = container.start_time.filter(|start| start.as_second() > 0)?;
        Some(Sample {
            labels: labels.to_vec(),
            value: start.as_nanosecond() as f64 / 1e9,
            at: None,
        })
    });
    let help = "Start time of the container since unix epoch in seconds";
    write(
        text,
        "container_start_time_seconds",
        help,
        Kind::Gauge,
        start.collect(),
    );
    let limit = each().filter_map(|(labels, container)| {
        let swap = container.swap.as_ref()?;
        let limit = swap
            .swap_available_bytes?
            .saturating_add(swap.swap_usage_bytes.unwrap_or(0));
        sample(&labels, Some(limit), 1.0, swap.time)
    });
    let help = "Current amount of the container swap limit in bytes. Reported only on non-windows systems";
    write(
        text,
        "container_swap_limit_bytes",
        help,
        Kind::Gauge,
        limit.collect(),
    );
    let swap = each().filter_map(|(labels, container)| {
        let swap = container.swap.as_ref()?;
        sample(&labels, swap.swap_usage_bytes, 1.0, swap.time)
    });
    let help = "Current amount of the container swap usage in bytes. Reported only on non-windows systems";
    write(
        text,
        "container_swap_usage_bytes",
        help,
        Kind::Gauge,
        swap.collect(),
    );
}

fn node(text: &mut Exposition, summary: &Summary) {
    let node = &summary.node;
    let cpu = node
        .cpu
        .as_ref()
        .and_then(|cpu| sample(&[], cpu.usage_core_nano_seconds, 1e9, cpu.time));
    let help = "Cumulative cpu time consumed by the node in core-seconds";
    write(
        text,
        "node_cpu_usage_seconds_total",
        help,
        Kind::Counter,
        cpu.into_iter().collect(),
    );
    let memory = node
        .memory
        .as_ref()
        .and_then(|memory| sample(&[], memory.working_set_bytes, 1.0, memory.time));
    let help = "Current working set of the node in bytes";
    write(
        text,
        "node_memory_working_set_bytes",
        help,
        Kind::Gauge,
        memory.into_iter().collect(),
    );
    let swap = node
        .swap
        .as_ref()
        .and_then(|swap| sample(&[], swap.swap_usage_bytes, 1.0, swap.time));
    let help = "Current swap usage of the node in bytes. Reported only on non-windows systems";
    write(
        text,
        "node_swap_usage_bytes",
        help,
        Kind::Gauge,
        swap.into_iter().collect(),
    );
}

fn pods(text: &mut Exposition, summary: &Summary) {
    let each = || {
        summary.pods.iter().map(|pod| {
            let labels = [
                ("namespace", pod.pod_ref.namespace.as_str()),
                ("pod", pod.pod_ref.name.as_str()),
            ];
            (labels, pod)
        })
    };
    let cpu = each().filter_map(|(labels, pod)| {
        let cpu = pod.cpu.as_ref()?;
        sample(&labels, cpu.usage_core_nano_seconds, 1e9, cpu.time)
    });
    let help = "Cumulative cpu time consumed by the pod in core-seconds";
    write(
        text,
        "pod_cpu_usage_seconds_total",
        help,
        Kind::Counter,
        cpu.collect(),
    );
    let memory = each().filter_map(|(labels, pod)| {
        let memory = pod.memory.as_ref()?;
        sample(&labels, memory.working_set_bytes, 1.0, memory.time)
    });
    let help = "Current working set of the pod in bytes";
    write(
        text,
        "pod_memory_working_set_bytes",
        help,
        Kind::Gauge,
        memory.collect(),
    );
    let swap = each().filter_map(|(labels, pod)| {
        let swap = pod.swap.as_ref()?;
        sample(&labels, swap.swap_usage_bytes, 1.0, swap.time)
    });
    let help = "Current amount of the pod swap usage in bytes. Reported only on non-windows systems";
    write(text, "pod_swap_usage_bytes", help, Kind::Gauge, swap.collect());
}
