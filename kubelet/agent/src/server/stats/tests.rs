use controlplane_api::k8s_openapi::api::core::v1::Pod;
use cri_api::v1 as cri;
use jiff::Timestamp;

use super::sources::StatsSources;
use super::summary::{FsStats, NodeStats, VolumeStats};
use super::*;
use crate::server::seam::RuntimeMetrics;

const AT: i64 = 1_700_000_000_000_000_000;

fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

fn container(id: &str, name: &str, attempt: u32, cpu: u64) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: id.into(),
            metadata: Some(cri::ContainerMetadata {
                name: name.into(),
                attempt,
            }),
            labels: [
                ("io.kubernetes.pod.name", "web"),
                ("io.kubernetes.pod.namespace", "default"),
                ("io.kubernetes.pod.uid", "u1"),
                ("io.kubernetes.container.name", name),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            annotations: Default::default(),
        }),
        cpu: Some(cri::CpuUsage {
            timestamp: AT,
            usage_core_nano_seconds: value(cpu),
            ..Default::default()
        }),
        memory: Some(cri::MemoryUsage {
            timestamp: AT,
            working_set_bytes: value(1000),
            rss_bytes: value(500),
            ..Default::default()
        }),
        writable_layer: Some(cri::FilesystemUsage {
            timestamp: AT,
            used_bytes: value(4096),
            inodes_used: value(3),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn sandbox() -> cri::PodSandboxStats {
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: "s1".into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 1,
            }),
            ..Default::default()
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: Some(cri::CpuUsage {
                timestamp: AT,
                usage_core_nano_seconds: value(9_000_000_000),
                ..Default::default()
            }),
            network: Some(cri::NetworkUsage {
                timestamp: AT,
                default_interface: Some(cri::NetworkInterfaceUsage {
                    name: "eth0".into(),
                    rx_bytes: value(7),
                    ..Default::default()
                }),
                interfaces: Vec::new(),
            }),
            process: Some(cri::ProcessUsage {
                timestamp: AT,
                process_count: value(4),
            }),
            containers: vec![
                container("c2", "app", 2, 2_500_000_000),
                container("c1", "app", 1, 1),
            ],
            ..Default::default()
        }),
        windows: None,
    }
}

fn sources() -> StatsSources {
    StatsSources {
        node: NodeStats {
            node_name: "n1".into(),
            cpu: node::cpu(
                "cpu  10 0 10 500 5 0 0 0 0 0\n",
                Timestamp::from_nanosecond(AT.into()).unwrap(),
            ),
            ..Default::default()
        },
        sandboxes: vec![sandbox()],
        container_starts: [("c2".to_owned(), AT)].into(),
        sandbox_starts: [("s1".to_owned(), AT)].into(),
        logs: [(
            "c2".to_owned(),
            FsStats {
                used_bytes: Some(100),
                ..Default::default()
            },
        )]
        .into(),
        cpus: 2,
        memory_bytes: 4096,
        ..Default::default()
    }
}

#[test]
fn a_summary_has_upstreams_fields() {
    let mut sources = sources();
    sources.volumes.insert(
        "u1".into(),
        ["cache", "host"]
            .map(|name| VolumeStats {
                name: name.into(),
                fs: FsStats {
                    used_bytes: Some(10),
                    ..Default::default()
                },
                ..Default::default()
            })
            .into(),
    );
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [], "volumes": [{"name": "cache", "emptyDir": {}}, {"name": "host", "hostPath": {"path": "/"}}]},
    }))
    .unwrap();
    let summary = serde_json::to_value(summarize(&sources, &[&pod])).unwrap();
    let pod = &summary["pods"][0];
    assert_eq!(summary["node"]["cpu"]["usageCoreNanoSeconds"], 200_000_000);
    assert_eq!(pod["podRef"]["uid"], "u1");
    assert_eq!(pod["startTime"], "2023-11-14T22:13:20Z");
    assert_eq!(pod["cpu"]["usageCoreNanoSeconds"], 9_000_000_000u64);
    assert_eq!(pod["network"]["name"], "eth0");
    assert_eq!(pod["network"]["rxBytes"], 7);
    assert_eq!(pod["process_stats"]["process_count"], 4);
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
    assert_eq!(
        pod["containers"][0]["cpu"]["usageCoreNanoSeconds"],
        2_500_000_000u64
    );
    assert_eq!(pod["containers"][0]["rootfs"]["usedBytes"], 4096);
    assert_eq!(
        pod["memory"]["workingSetBytes"], 1000,
        "summed, as the sandbox has none"
    );
    assert_eq!(pod["ephemeral-storage"]["usedBytes"], 4096 + 100 + 10);
    assert_eq!(pod["volume"][0]["name"], "cache");
    assert_eq!(summary["node"]["startTime"], serde_json::Value::Null);
}

#[test]
fn a_runtime_without_sandbox_statistics_is_enough() {
    let sources = StatsSources {
        containers: vec![container("a", "app", 0, 5), container("b", "side", 0, 6)],
        ..Default::default()
    };
    let summary = summarize(&sources, &[]);
    assert_eq!(summary.pods.len(), 1);
    assert_eq!(summary.pods[0].containers.len(), 2);
    assert_eq!(
        summary.pods[0].cpu.as_ref().unwrap().usage_core_nano_seconds,
        Some(11)
    );
}

#[test]
fn resource_metrics_are_upstreams() {
    let text = resource::encode(Some(&summarize(&sources(), &[])));
    for line in [
        "# TYPE container_cpu_usage_seconds_total counter",
        "container_cpu_usage_seconds_total{container=\"app\",namespace=\"default\",pod=\"web\"} 2.5 1700000000000",
        "container_memory_working_set_bytes{container=\"app\",namespace=\"default\",pod=\"web\"} 1000 1700000000000",
        "container_start_time_seconds{container=\"app\",namespace=\"default\",pod=\"web\"} 1700000000",
        "node_cpu_usage_seconds_total 0.2 1700000000000",
        "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"web\"} 9 1700000000000",
        "resource_scrape_error 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in {text}");
    }
    let failed = resource::encode(None);
    assert!(failed.contains("resource_scrape_error 1") && !failed.contains("node_cpu"));
}

#[test]
fn cadvisors_names_come_from_statistics() {
    let text = cadvisor::encode_stats(&sources());
    for line in [
        "container_cpu_usage_seconds_total{cpu=\"total\",container=\"app\",id=\"c2\",name=\"c2\",namespace=\"default\",pod=\"web\"} 2.5 1700000000000",
        "container_memory_rss{container=\"app\",id=\"c1\",name=\"c1\",namespace=\"default\",pod=\"web\"} 500 1700000000000",
        "container_network_receive_bytes_total{id=\"s1\",interface=\"eth0\",namespace=\"default\",pod=\"web\"} 7 1700000000000",
        "machine_cpu_cores 2",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in {text}");
    }
}

#[test]
fn cadvisors_names_come_from_the_runtime() {
    let metric = |name: &str, labels: &[&str], count: u64| cri::Metric {
        name: name.into(),
        timestamp: AT,
        metric_type: cri::MetricType::Counter.into(),
        label_values: labels.iter().map(|label| (*label).to_owned()).collect(),
        value: value(count),
    };
    let metrics = RuntimeMetrics {
        descriptors: vec![cri::MetricDescriptor {
            name: "container_oom_events_total".into(),
            help: "Ooms.".into(),
            label_keys: vec!["id".into(), "pod".into()],
        }],
        pods: vec![cri::PodSandboxMetrics {
            pod_sandbox_id: "s1".into(),
            metrics: vec![
                metric("container_oom_events_total", &["s1", "web"], 3),
                metric("container_oom_events_total", &["too few"], 4),
                metric("not_described", &[], 5),
            ],
            container_metrics: vec![],
        }],
    };
    let text = cadvisor::encode_runtime(&metrics, &StatsSources::default());
    assert!(text.starts_with(
        "# HELP container_oom_events_total Ooms.\n# TYPE container_oom_events_total counter\n\
         container_oom_events_total{id=\"s1\",pod=\"web\"} 3 1700000000000\n# HELP machine_cpu_cores"
    ));
}

#[test]
fn the_nodes_figures_are_read_from_the_kernels_files() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let before = node::cpu("cpu  0 0 100 0 0\ncpu0 1 2 3 4\n", at(10)).unwrap();
    let now = node::cpu("cpu  0 0 300 7 9\n", at(14)).unwrap();
    assert_eq!(node::nano_cores(&before, &now), Some(500_000_000));
    assert_eq!(node::nano_cores(&now, &before), None);
    assert_eq!(node::cpu("intr 1", at(1)), None);
    let meminfo = "MemTotal:  100 kB\nMemFree: 40 kB\nInactive(file): 10 kB\nAnonPages: 5 kB\nSwapTotal: 8 kB\nSwapFree: 6 kB\n";
    let memory = node::memory(meminfo, at(1)).unwrap();
    assert_eq!(memory.working_set_bytes, Some(50 * 1024));
    assert_eq!(memory.available_bytes, Some(50 * 1024));
    assert_eq!(node::swap(meminfo, at(1)).unwrap().swap_usage_bytes, Some(2048));
    let network = node::network(
        "Inter-|\n face |\n    lo: 1 0 0 0 0 0 0 0 1 0 0\n  eth0: 5 1 2 0 0 0 0 0 6 1 3 0\n",
        "Iface\tDestination\nlo\t0000007F\neth0\t00000000\t0102A8C0\n",
        at(1),
    );
    assert_eq!(network.default.name, "eth0");
    assert_eq!(
        (network.default.rx_errors, network.default.tx_bytes),
        (Some(2), Some(6))
    );
    assert_eq!(network.interfaces.len(), 1);
}
