use proptest::prelude::*;

use super::*;

#[test]
fn text_is_what_prometheus_reads() {
    let registry = Registry::new();
    let seen = registry.counter("b_total", "Things \\ seen\nhere.", &["kind", "why"]);
    seen.inc(&["x\"y", "a\\b\nc"]);
    seen.add(&["z", ""], 2.5);
    seen.add(&["z", ""], -7.0);
    registry.gauge("a", "Now.", &[]).set(&[], f64::INFINITY);
    let spans = registry.histogram("c_seconds", "Spans.", &["op"], &[0.1, 1.0]);
    for value in [0.05, 0.1, 0.5, 7.0] {
        spans.observe(&["sync"], value);
    }
    let text = registry.encode();
    assert_eq!(
        text,
        "# HELP a Now.\n# TYPE a gauge\na +Inf\n\
         # HELP b_total Things \\\\ seen\\nhere.\n# TYPE b_total counter\n\
         b_total{kind=\"x\\\"y\",why=\"a\\\\b\\nc\"} 1\nb_total{kind=\"z\",why=\"\"} 2.5\n\
         # HELP c_seconds Spans.\n# TYPE c_seconds histogram\n\
         c_seconds_bucket{op=\"sync\",le=\"0.1\"} 2\nc_seconds_bucket{op=\"sync\",le=\"1\"} 3\n\
         c_seconds_bucket{op=\"sync\",le=\"+Inf\"} 4\nc_seconds_sum{op=\"sync\"} 7.65\nc_seconds_count{op=\"sync\"} 4\n"
    );
}

#[test]
fn one_name_is_one_family() {
    let registry = Registry::new();
    registry.counter("n", "h", &["l"]).inc(&["v"]);
    registry.counter("n", "h", &["l"]).inc(&["v"]);
    registry.gauge("n", "h", &[]).set(&[], 7.0);
    assert_eq!(registry.counter("n", "h", &["l"]).value(&["v"]), 2.0);
    assert!(!registry.encode().contains('7'));
}

#[test]
fn labels_are_bounded_and_series_of_the_gone_go() {
    let registry = Registry::new();
    let counter = registry.counter("n", "h", &["uid"]);
    for number in 0..MAX_SERIES + 5 {
        counter.inc(&[&number.to_string()]);
    }
    assert_eq!(counter.value(&["other"]), 5.0);
    counter.retain("uid", |uid| uid == "3");
    assert_eq!(registry.encode().lines().count(), 3);
    counter.retain("no such label", |_| false);
    assert_eq!(counter.value(&["3"]), 1.0);
}

#[test]
fn the_kubelets_metrics_have_upstreams_names() {
    let metrics = KubeletMetrics::new();
    metrics.pod_worker_duration_seconds.observe(&["sync"], 0.2);
    metrics.runtime_operations_total.inc(&["list_containers"]);
    metrics.running_containers.set(&["running"], 3.0);
    metrics
        .prober_probe_total
        .inc(&["Liveness", "successful", "c", "p", "n", "u"]);
    let text = metrics.registry.encode();
    for line in [
        "# HELP kubelet_running_pods Number of pods that have a running pod sandbox",
        "kubelet_running_pods 0",
        "kubelet_running_containers{container_state=\"running\"} 3",
        "kubelet_runtime_operations_total{operation_type=\"list_containers\"} 1",
        "kubelet_pod_worker_duration_seconds_bucket{operation_type=\"sync\",le=\"0.25\"} 1",
        "kubelet_pod_start_sli_duration_seconds_bucket{le=\"3600\"} 0",
        "# TYPE kubelet_pleg_relist_duration_seconds histogram",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in {text}");
    }
    assert!(!text.contains("prober_probe_total"));
    metrics.retain_pods(|uid| uid != "u");
    assert!(!metrics.probes.encode().contains("pod_uid"));
}

proptest! {
    #[test]
    fn a_histograms_buckets_only_grow_and_end_at_its_count(values: Vec<f64>) {
        let registry = Registry::new();
        let spans = registry.histogram("h", "h", &[], DEFAULT_BUCKETS);
        for value in &values {
            spans.observe(&[], *value);
        }
        let text = registry.encode();
        let counts: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with("h_bucket"))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        prop_assert!(counts.is_sorted());
        prop_assert_eq!(counts.last().copied(), Some(values.len()));
    }

    #[test]
    fn no_label_breaks_a_line(value: String) {
        let registry = Registry::new();
        registry.counter("n", "h", &["l"]).inc(&[&value]);
        let text = registry.encode();
        prop_assert_eq!(text.matches('\n').count(), 3);
        let whole = text.ends_with("\"} 1\n");
        prop_assert!(whole);
    }
}
