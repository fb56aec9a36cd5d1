//! All that the kubelet measures, under upstream's names.

use super::{Counter, DEFAULT_BUCKETS, Gauge, Histogram, Registry, exponential_buckets};

/// Upstream's bounds for how long pods take to start, in seconds.
const POD_START_BUCKETS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];

/// What the kubelet measures; a field's doc has the metric's labels, whose values are given in that order.
#[derive(Debug, Clone)]
pub struct KubeletMetrics {
    /// Behind `/metrics`.
    pub registry: Registry,
    /// Behind `/metrics/probes`.
    pub probes: Registry,
    /// Behind `/metrics/slis`.
    pub slis: Registry,
    /// `kubelet_pod_worker_duration_seconds` by `operation_type`.
    pub pod_worker_duration_seconds: Histogram,
    /// `kubelet_pod_worker_start_duration_seconds`.
    pub pod_worker_start_duration_seconds: Histogram,
    /// `kubelet_pod_start_duration_seconds`.
    pub pod_start_duration_seconds: Histogram,
    /// `kubelet_pod_start_sli_duration_seconds`.
    pub pod_start_sli_duration_seconds: Histogram,
    /// `kubelet_pod_start_total_duration_seconds`.
    pub pod_start_total_duration_seconds: Histogram,
    /// `kubelet_pod_status_sync_duration_seconds`.
    pub pod_status_sync_duration_seconds: Histogram,
    /// `kubelet_cgroup_manager_duration_seconds` by `operation_type`.
    pub cgroup_manager_duration_seconds: Histogram,
    /// `kubelet_containers_per_pod_count`.
    pub containers_per_pod_count: Histogram,
    /// `kubelet_pleg_relist_duration_seconds`.
    pub pleg_relist_duration_seconds: Histogram,
    /// `kubelet_pleg_relist_interval_seconds`.
    pub pleg_relist_interval_seconds: Histogram,
    /// `kubelet_pleg_discard_events`.
    pub pleg_discard_events: Counter,
    /// `kubelet_pleg_last_seen_seconds`.
    pub pleg_last_seen_seconds: Gauge,
    /// `kubelet_evented_pleg_connection_error_count`.
    pub evented_pleg_connection_error_count: Counter,
    /// `kubelet_evented_pleg_connection_success_count`.
    pub evented_pleg_connection_success_count: Counter,
    /// `kubelet_evented_pleg_connection_latency_seconds`.
    pub evented_pleg_connection_latency_seconds: Histogram,
    /// `kubelet_runtime_operations_total` by `operation_type`.
    pub runtime_operations_total: Counter,
    /// `kubelet_runtime_operations_duration_seconds` by `operation_type`.
    pub runtime_operations_duration_seconds: Histogram,
    /// `kubelet_runtime_operations_errors_total` by `operation_type`.
    pub runtime_operations_errors_total: Counter,
    /// `kubelet_evictions` by `eviction_signal`.
    pub evictions: Counter,
    /// `kubelet_eviction_stats_age_seconds` by `eviction_signal`.
    pub eviction_stats_age_seconds: Histogram,
    /// `kubelet_preemptions` by `preemption_signal`.
    pub preemptions: Counter,
    /// `kubelet_device_plugin_registration_total` by `resource_name`.
    pub device_plugin_registration_total: Counter,
    /// `kubelet_device_plugin_alloc_duration_seconds` by `resource_name`.
    pub device_plugin_alloc_duration_seconds: Histogram,
    /// `kubelet_pod_resources_endpoint_requests_total` by `server_api_version`.
    pub pod_resources_endpoint_requests_total: Counter,
    /// `kubelet_run_podsandbox_duration_seconds` by `runtime_handler`.
    pub run_podsandbox_duration_seconds: Histogram,
    /// `kubelet_run_podsandbox_errors_total` by `runtime_handler`.
    pub run_podsandbox_errors_total: Counter,
    /// `kubelet_running_pods`.
    pub running_pods: Gauge,
    /// `kubelet_running_containers` by `container_state`.
    pub running_containers: Gauge,
    /// `kubelet_desired_pods` by `static`.
    pub desired_pods: Gauge,
    /// `kubelet_active_pods` by `static`.
    pub active_pods: Gauge,
    /// `kubelet_mirror_pods`.
    pub mirror_pods: Gauge,
    /// `kubelet_working_pods` by `lifecycle`, `config`, `static`.
    pub working_pods: Gauge,
    /// `kubelet_orphaned_runtime_pods_total`.
    pub orphaned_runtime_pods_total: Counter,
    /// `kubelet_restarted_pods_total` by `static`.
    pub restarted_pods_total: Counter,
    /// `kubelet_started_pods_total`.
    pub started_pods_total: Counter,
    /// `kubelet_started_pods_errors_total`.
    pub started_pods_errors_total: Counter,
    /// `kubelet_started_containers_total` by `container_type`.
    pub started_containers_total: Counter,
    /// `kubelet_started_containers_errors_total` by `container_type`, `code`.
    pub started_containers_errors_total: Counter,
    /// `kubelet_managed_ephemeral_containers`.
    pub managed_ephemeral_containers: Gauge,
    /// `kubelet_graceful_shutdown_start_time_seconds`.
    pub graceful_shutdown_start_time_seconds: Gauge,
    /// `kubelet_graceful_shutdown_end_time_seconds`.
    pub graceful_shutdown_end_time_seconds: Gauge,
    /// `kubelet_lifecycle_handler_http_fallbacks_total`.
    pub lifecycle_handler_http_fallbacks_total: Counter,
    /// `kubelet_cpu_manager_pinning_requests_total`.
    pub cpu_manager_pinning_requests_total: Counter,
    /// `kubelet_cpu_manager_pinning_errors_total`.
    pub cpu_manager_pinning_errors_total: Counter,
    /// `kubelet_topology_manager_admission_requests_total`.
    pub topology_manager_admission_requests_total: Counter,
    /// `kubelet_topology_manager_admission_errors_total`.
    pub topology_manager_admission_errors_total: Counter,
    /// `kubelet_topology_manager_admission_duration_ms`.
    pub topology_manager_admission_duration_ms: Histogram,
    /// `kubelet_orphan_pod_cleaned_volumes`.
    pub orphan_pod_cleaned_volumes: Gauge,
    /// `kubelet_orphan_pod_cleaned_volumes_errors`.
    pub orphan_pod_cleaned_volumes_errors: Gauge,
    /// `kubelet_image_garbage_collected_total` by `reason`.
    pub image_garbage_collected_total: Counter,
    /// `kubelet_node_name` by `node`.
    pub node_name: Gauge,
    /// `kubelet_http_requests_total` by `method`, `path`, `server_type`, `long_running`.
    pub http_requests_total: Counter,
    /// `kubelet_http_inflight_requests` by `method`, `path`, `server_type`, `long_running`.
    pub http_inflight_requests: Gauge,
    /// `kubelet_http_requests_duration_seconds` by `method`, `path`, `server_type`, `long_running`.
    pub http_requests_duration_seconds: Histogram,
    /// `prober_probe_total` by `probe_type`, `result`, `container`, `pod`, `namespace`, `pod_uid`.
    pub prober_probe_total: Counter,
    /// `prober_probe_duration_seconds` by `probe_type`, `container`, `pod`, `namespace`.
    pub prober_probe_duration_seconds: Histogram,
    /// `process_start_time_seconds`.
    pub process_start_time_seconds: Gauge,
    /// `kubernetes_healthcheck` by `name`, `type`.
    pub kubernetes_healthcheck: Gauge,
    /// `kubernetes_healthchecks_total` by `name`, `type`, `status`.
    pub kubernetes_healthchecks_total: Counter,
}

impl Default for KubeletMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl KubeletMetrics {
    /// All of them, at zero.
    #[rustfmt::skip]
    pub fn new() -> Self {
        let (registry, probes, slis) = (Registry::new(), Registry::new(), Registry::new());
        Self {
            pod_worker_duration_seconds: registry.histogram(
                "kubelet_pod_worker_duration_seconds",
                "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
                &["operation_type"],
                DEFAULT_BUCKETS,
            ),
            pod_worker_start_duration_seconds: registry.histogram(
                "kubelet_pod_worker_start_duration_seconds",
                "Duration in seconds from kubelet seeing a pod to starting a worker.",
                &[],
                DEFAULT_BUCKETS,
            ),
            pod_start_duration_seconds: registry.histogram(
                "kubelet_pod_start_duration_seconds",
                "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
                &[],
                POD_START_BUCKETS,
            ),
            pod_start_sli_duration_seconds: registry.histogram(
                "kubelet_pod_start_sli_duration_seconds",
                "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
                &[],
                POD_START_BUCKETS,
            ),
            pod_start_total_duration_seconds: registry.histogram(
                "kubelet_pod_start_total_duration_seconds",
                "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
                &[],
                POD_START_BUCKETS,
            ),
            pod_status_sync_duration_seconds: registry.histogram(
                "kubelet_pod_status_sync_duration_seconds",
                "Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.",
                &[],
                &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0],
            ),
            cgroup_manager_duration_seconds: registry.histogram(
                "kubelet_cgroup_manager_duration_seconds",
                "Duration in seconds for cgroup manager operations. Broken down by method.",
                &["operation_type"],
                DEFAULT_BUCKETS,
            ),
            containers_per_pod_count: registry.histogram(
                "kubelet_containers_per_pod_count",
                "The number of containers per pod.",
                &[],
                &exponential_buckets(1.0, 2.0, 5),
            ),
            pleg_relist_duration_seconds: registry.histogram(
                "kubelet_pleg_relist_duration_seconds",
                "Duration in seconds for relisting pods in PLEG.",
                &[],
                DEFAULT_BUCKETS,
            ),
            pleg_relist_interval_seconds: registry.histogram(
                "kubelet_pleg_relist_interval_seconds",
                "Interval in seconds between relisting in PLEG.",
                &[],
                DEFAULT_BUCKETS,
            ),
            pleg_discard_events: registry.counter(
                "kubelet_pleg_discard_events",
                "The number of discard events in PLEG.",
                &[],
            ),
            pleg_last_seen_seconds: registry.gauge(
                "kubelet_pleg_last_seen_seconds",
                "Timestamp in seconds when PLEG was last seen active.",
                &[],
            ),
            evented_pleg_connection_error_count: registry.counter(
                "kubelet_evented_pleg_connection_error_count",
                "The number of errors encountered during the establishment of streaming connection with the CRI runtime.",
                &[],
            ),
            evented_pleg_connection_success_count: registry.counter(
                "kubelet_evented_pleg_connection_success_count",
                "The number of times a streaming client was obtained to receive CRI Events.",
                &[],
            ),
            evented_pleg_connection_latency_seconds: registry.histogram(
                "kubelet_evented_pleg_connection_latency_seconds",
                "The latency of streaming connection with the CRI runtime, measured in seconds.",
                &[],
                DEFAULT_BUCKETS,
            ),
            runtime_operations_total: registry.counter(
                "kubelet_runtime_operations_total",
                "Cumulative number of runtime operations by operation type.",
                &["operation_type"],
            ),
            runtime_operations_duration_seconds: registry.histogram(
                "kubelet_runtime_operations_duration_seconds",
                "Duration in seconds of runtime operations. Broken down by operation type.",
                &["operation_type"],
                &exponential_buckets(0.005, 2.5, 14),
            ),
            runtime_operations_errors_total: registry.counter(
                "kubelet_runtime_operations_errors_total",
                "Cumulative number of runtime operation errors by operation type.",
                &["operation_type"],
            ),
            evictions: registry.counter(
                "kubelet_evictions",
                "Cumulative number of pod evictions by eviction signal",
                &["eviction_signal"],
            ),
            eviction_stats_age_seconds: registry.histogram(
                "kubelet_eviction_stats_age_seconds",
                "Time between when stats are collected, and when pod is evicted based on those stats by eviction signal",
                &["eviction_signal"],
                DEFAULT_BUCKETS,
            ),
            preemptions: registry.counter(
                "kubelet_preemptions",
                "Cumulative number of pod preemptions by preemption resource",
                &["preemption_signal"],
            ),
            device_plugin_registration_total: registry.counter(
                "kubelet_device_plugin_registration_total",
                "Cumulative number of device plugin registrations. Broken down by resource name.",
                &["resource_name"],
            ),
            device_plugin_alloc_duration_seconds: registry.histogram(
                "kubelet_device_plugin_alloc_duration_seconds",
                "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.",
                &["resource_name"],
                DEFAULT_BUCKETS,
            ),
            pod_resources_endpoint_requests_total: registry.counter(
                "kubelet_pod_resources_endpoint_requests_total",
                "Cumulative number of requests to the PodResource endpoint. Broken down by server api version.",
                &["server_api_version"],
            ),
            run_podsandbox_duration_seconds: registry.histogram(
                "kubelet_run_podsandbox_duration_seconds",
                "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
                &["runtime_handler"],
                DEFAULT_BUCKETS,
            ),
            run_podsandbox_errors_total: registry.counter(
                "kubelet_run_podsandbox_errors_total",
                "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.",
                &["runtime_handler"],
            ),
            running_pods: registry.gauge(
                "kubelet_running_pods",
                "Number of pods that have a running pod sandbox",
                &[],
            ),
            running_containers: registry.gauge(
                "kubelet_running_containers",
                "Number of containers currently running",
                &["container_state"],
            ),
            desired_pods: registry.gauge(
                "kubelet_desired_pods",
                "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.",
                &["static"],
            ),
            active_pods: registry.gauge(
                "kubelet_active_pods",
                "The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.",
                &["static"],
            ),
            mirror_pods: registry.gauge(
                "kubelet_mirror_pods",
                "The number of mirror pods the kubelet will try to create (one per admitted static pod)",
                &[],
            ),
            working_pods: registry.gauge(
                "kubelet_working_pods",
                "Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is desired, orphaned, or runtime only (also orphaned), and whether the pod is static. An orphaned pod has been removed from local configuration or force deleted in the API and consumes resources that are not otherwise visible.",
                &["lifecycle", "config", "static"],
            ),
            orphaned_runtime_pods_total: registry.counter(
                "kubelet_orphaned_runtime_pods_total",
                "Number of pods that have been detected in the container runtime without being already known to the pod worker. This typically indicates the kubelet was restarted while a pod was force deleted in the API or in the local configuration, which is unusual.",
                &[],
            ),
            restarted_pods_total: registry.counter(
                "kubelet_restarted_pods_total",
                "Number of pods that have been restarted because they were deleted and recreated with the same UID while the kubelet was watching them (common for static pods, extremely uncommon for API pods)",
                &["static"],
            ),
            started_pods_total: registry.counter(
                "kubelet_started_pods_total",
                "Cumulative number of pods started",
                &[],
            ),
            started_pods_errors_total: registry.counter(
                "kubelet_started_pods_errors_total",
                "Cumulative number of errors when starting pods",
                &[],
            ),
            started_containers_total: registry.counter(
                "kubelet_started_containers_total",
                "Cumulative number of containers started",
                &["container_type"],
            ),
            started_containers_errors_total: registry.counter(
                "kubelet_started_containers_errors_total",
                "Cumulative number of errors when starting containers",
                &["container_type", "code"],
            ),
            managed_ephemeral_containers: registry.gauge(
                "kubelet_managed_ephemeral_containers",
                "Current number of ephemeral containers in pods managed by this kubelet.",
                &[],
            ),
            graceful_shutdown_start_time_seconds: registry.gauge(
                "kubelet_graceful_shutdown_start_time_seconds",
                "Last graceful shutdown start time since unix epoch in seconds",
                &[],
            ),
            graceful_shutdown_end_time_seconds: registry.gauge(
                "kubelet_graceful_shutdown_end_time_seconds",
                "Last graceful shutdown start time since unix epoch in seconds",
                &[],
            ),
            lifecycle_handler_http_fallbacks_total: registry.counter(
                "kubelet_lifecycle_handler_http_fallbacks_total",
                "The number of times lifecycle handlers successfully fell back to http from https.",
                &[],
            ),
            cpu_manager_pinning_requests_total: registry.counter(
                "kubelet_cpu_manager_pinning_requests_total",
                "The number of cpu core allocations which required pinning.",
                &[],
            ),
            cpu_manager_pinning_errors_total: registry.counter(
                "kubelet_cpu_manager_pinning_errors_total",
                "The number of cpu core allocations which required pinning failed.",
                &[],
            ),
            topology_manager_admission_requests_total: registry.counter(
                "kubelet_topology_manager_admission_requests_total",
                "The number of admission requests where resources have to be aligned.",
                &[],
            ),
            topology_manager_admission_errors_total: registry.counter(
                "kubelet_topology_manager_admission_errors_total",
                "The number of admission request failures where resources could not be aligned.",
                &[],
            ),
            topology_manager_admission_duration_ms: registry.histogram(
                "kubelet_topology_manager_admission_duration_ms",
                "Duration in milliseconds to serve a pod admission request.",
                &[],
                &exponential_buckets(0.05, 2.0, 15),
            ),
            orphan_pod_cleaned_volumes: registry.gauge(
                "kubelet_orphan_pod_cleaned_volumes",
                "The total number of orphaned Pods whose volumes were cleaned in the last periodic sweep.",
                &[],
            ),
            orphan_pod_cleaned_volumes_errors: registry.gauge(
                "kubelet_orphan_pod_cleaned_volumes_errors",
                "The number of orphaned Pods whose volumes failed to be cleaned in the last periodic sweep.",
                &[],
            ),
            image_garbage_collected_total: registry.counter(
                "kubelet_image_garbage_collected_total",
                "Total number of images garbage collected by the kubelet, whether through disk usage or image age.",
                &["reason"],
            ),
            node_name: registry.gauge(
                "kubelet_node_name",
                "The node's name. The count is always 1.",
                &["node"],
            ),
            http_requests_total: registry.counter(
                "kubelet_http_requests_total",
                "Number of the http requests received since the server started",
                &["method", "path", "server_type", "long_running"],
            ),
            http_inflight_requests: registry.gauge(
                "kubelet_http_inflight_requests",
                "Number of the inflight http requests",
                &["method", "path", "server_type", "long_running"],
            ),
            http_requests_duration_seconds: registry.histogram(
                "kubelet_http_requests_duration_seconds",
                "Duration in seconds to serve http requests",
                &["method", "path", "server_type", "long_running"],
                DEFAULT_BUCKETS,
            ),
            prober_probe_total: probes.counter(
                "prober_probe_total",
                "Cumulative number of a liveness, readiness or startup probe for a container by result.",
                &["probe_type", "result", "container", "pod", "namespace", "pod_uid"],
            ),
            prober_probe_duration_seconds: probes.histogram(
                "prober_probe_duration_seconds",
                "Duration in seconds for a probe response.",
                &["probe_type", "container", "pod", "namespace"],
                DEFAULT_BUCKETS,
            ),
            process_start_time_seconds: probes.gauge(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                &[],
            ),
            kubernetes_healthcheck: slis.gauge(
                "kubernetes_healthcheck",
                "This metric records the result of a single healthcheck.",
                &["name", "type"],
            ),
            kubernetes_healthchecks_total: slis.counter(
                "kubernetes_healthchecks_total",
                "This metric records the results of all healthcheck.",
                &["name", "type", "status"],
            ),
            registry,
            probes,
            slis,
        }
    }

    /// Forgets what was measured of pods that aren't there any more.
    pub fn retain_pods(&self, is_here: impl Fn(&str) -> bool) {
        self.prober_probe_total.retain("pod_uid", is_here);
    }
}
