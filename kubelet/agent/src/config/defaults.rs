//! Upstream's defaults: for what a file doesn't name, and for what it sets to zero where zero means "the default".

use std::collections::BTreeMap;

use super::types::{
    Authentication, Authorization, CrashLoopBackOff, JsonOptions, KubeletConfiguration, Logging,
    LoggingOptions, MemorySwap, TextOptions, WebhookAuthentication, WebhookAuthorization,
};
use super::{GoDuration, gates};

impl Default for KubeletConfiguration {
    fn default() -> Self {
        Self {
            api_version: String::new(),
            kind: String::new(),
            enable_server: true,
            static_pod_path: String::new(),
            pod_logs_dir: "/var/log/pods".to_owned(),
            sync_frequency: GoDuration::from_secs(60),
            file_check_frequency: GoDuration::from_secs(20),
            http_check_frequency: GoDuration::from_secs(20),
            static_pod_url: String::new(),
            static_pod_url_header: BTreeMap::new(),
            address: "0.0.0.0".to_owned(),
            port: 10250,
            read_only_port: 0,
            tls_cert_file: String::new(),
            tls_private_key_file: String::new(),
            tls_cipher_suites: Vec::new(),
            tls_curve_preferences: Vec::new(),
            tls_min_version: String::new(),
            rotate_certificates: false,
            server_tls_bootstrap: false,
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            registry_pull_qps: 5,
            registry_burst: 10,
            image_pull_credentials_verification_policy: "NeverVerifyPreloadedImages".to_owned(),
            preloaded_images_verification_allowlist: Vec::new(),
            event_record_qps: 50,
            event_burst: 100,
            enable_debugging_handlers: true,
            enable_contention_profiling: false,
            healthz_port: 10248,
            healthz_bind_address: "127.0.0.1".to_owned(),
            oom_score_adj: -999,
            cluster_domain: String::new(),
            cluster_dns: Vec::new(),
            streaming_connection_idle_timeout: GoDuration::from_secs(14400),
            node_status_update_frequency: GoDuration::from_secs(10),
            node_status_report_frequency: GoDuration::from_secs(300),
            node_lease_duration_seconds: 40,
            image_minimum_gc_age: GoDuration::from_secs(120),
            image_maximum_gc_age: GoDuration::from_secs(0),
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            volume_stats_agg_period: GoDuration::from_secs(60),
            kubelet_cgroups: String::new(),
            system_cgroups: String::new(),
            cgroup_root: String::new(),
            cgroups_per_qos: true,
            cgroup_driver: "cgroupfs".to_owned(),
            cpu_manager_policy: "none".to_owned(),
            single_process_oom_kill: None,
            cpu_manager_policy_options: BTreeMap::new(),
            cpu_manager_reconcile_period: GoDuration::from_secs(10),
            memory_manager_policy: "None".to_owned(),
            topology_manager_policy: "none".to_owned(),
            topology_manager_scope: "container".to_owned(),
            topology_manager_policy_options: BTreeMap::new(),
            qos_reserved: BTreeMap::new(),
            runtime_request_timeout: GoDuration::from_secs(120),
            hairpin_mode: "promiscuous-bridge".to_owned(),
            max_pods: 110,
            pod_cidr: String::new(),
            pod_pids_limit: -1,
            resolver_config: "/etc/resolv.conf".to_owned(),
            run_once: false,
            cpu_cfs_quota: true,
            cpu_cfs_quota_period: GoDuration::from_millis(100),
            node_status_max_images: 50,
            max_open_files: 1000000,
            content_type: "application/vnd.kubernetes.protobuf".to_owned(),
            kube_api_qps: 50,
            kube_api_burst: 100,
            serialize_image_pulls: None,
            max_parallel_image_pulls: None,
            eviction_hard: None,
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_pressure_transition_period: GoDuration::from_secs(300),
            eviction_max_pod_grace_period: 0,
            eviction_minimum_reclaim: BTreeMap::new(),
            merge_default_eviction_settings: false,
            pods_per_core: 0,
            enable_controller_attach_detach: true,
            protect_kernel_defaults: false,
            make_ip_tables_util_chains: true,
            iptables_masquerade_bit: 14,
            iptables_drop_bit: 15,
            feature_gates: BTreeMap::new(),
            fail_swap_on: true,
            memory_swap: MemorySwap::default(),
            container_log_max_size: "10Mi".to_owned(),
            container_log_max_files: 5,
            container_log_max_workers: 1,
            container_log_monitor_interval: GoDuration::from_secs(10),
            config_map_and_secret_change_detection_strategy: "Watch".to_owned(),
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            reserved_system_cpus: String::new(),
            show_hidden_metrics_for_version: String::new(),
            system_reserved_cgroup: String::new(),
            kube_reserved_cgroup: String::new(),
            enforce_node_allocatable: vec!["pods".to_owned()],
            allowed_unsafe_sysctls: Vec::new(),
            default_pod_sysctls: BTreeMap::new(),
            volume_plugin_dir: "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/".to_owned(),
            provider_id: String::new(),
            kernel_memcg_notification: false,
            logging: Logging::default(),
            enable_system_log_handler: true,
            enable_system_log_query: None,
            shutdown_grace_period: GoDuration::from_secs(0),
            shutdown_grace_period_critical_pods: GoDuration::from_secs(0),
            shutdown_grace_period_by_pod_priority: Vec::new(),
            crash_loop_back_off: CrashLoopBackOff::default(),
            reserved_memory: Vec::new(),
            enable_profiling_handler: true,
            enable_debug_flags_handler: true,
            seccomp_default: false,
            memory_throttling_factor: Some(0.9),
            memory_reservation_policy: "None".to_owned(),
            register_with_taints: Vec::new(),
            register_node: true,
            tracing: None,
            local_storage_capacity_isolation: true,
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            image_service_endpoint: String::new(),
            fail_cgroup_v1: true,
            user_namespaces: None,
        }
    }
}

impl Default for WebhookAuthentication {
    fn default() -> Self {
        Self {
            enabled: true,
            cache_ttl: GoDuration::from_secs(120),
        }
    }
}

impl Default for Authorization {
    fn default() -> Self {
        Self {
            mode: "Webhook".to_owned(),
            webhook: WebhookAuthorization::default(),
        }
    }
}

impl Default for WebhookAuthorization {
    fn default() -> Self {
        Self {
            cache_authorized_ttl: GoDuration::from_secs(300),
            cache_unauthorized_ttl: GoDuration::from_secs(30),
        }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: "text".to_owned(),
            flush_frequency: GoDuration::from_secs(5),
            verbosity: 0,
            vmodule: Vec::new(),
            options: LoggingOptions::default(),
        }
    }
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            split_stream: false,
            info_buffer_size: "0".to_owned(),
        }
    }
}

impl Default for JsonOptions {
    fn default() -> Self {
        Self {
            split_stream: false,
            info_buffer_size: "0".to_owned(),
        }
    }
}

/// What is evicted for where a file doesn't say.
const EVICTION_HARD: [(&str, &str); 5] = [
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
];

fn or_default<T: PartialEq>(field: &mut T, zero: &T, default: T) {
    if field == zero {
        *field = default;
    }
}

impl KubeletConfiguration {
    /// Gives defaults to what is zero where that means "the default", and to what depends on other fields.
    /// `status_frequency_set` is whether somebody named `nodeStatusUpdateFrequency`.
    pub(super) fn fill_in(&mut self, status_frequency_set: bool, report_frequency_set: bool) {
        let base = Self::default();
        if !report_frequency_set || self.node_status_report_frequency.is_zero() {
            let set = status_frequency_set && !self.node_status_update_frequency.is_zero();
            self.node_status_report_frequency = if set {
                self.node_status_update_frequency
            } else {
                base.node_status_report_frequency
            };
        }
        self.fill_in_durations(&base);
        self.fill_in_texts(&base);
        for (field, default) in [
            (&mut self.port, base.port),
            (&mut self.registry_burst, base.registry_burst),
            (&mut self.event_burst, base.event_burst),
            (
                &mut self.node_lease_duration_seconds,
                base.node_lease_duration_seconds,
            ),
            (&mut self.max_pods, base.max_pods),
            (&mut self.kube_api_burst, base.kube_api_burst),
        ] {
            or_default(field, &0, default);
        }
        or_default(&mut self.max_open_files, &0, base.max_open_files);
        if self.pod_pids_limit < 0 {
            self.pod_pids_limit = -1;
        }
        if self.serialize_image_pulls.is_none() {
            self.serialize_image_pulls = Some(self.max_parallel_image_pulls.is_none_or(|most| most < 2));
        }
        if gates::enabled(&self.feature_gates, "KubeletCrashLoopBackOffMax")
            && self.crash_loop_back_off.max_container_restart_period.is_none()
        {
            self.crash_loop_back_off.max_container_restart_period = Some(GoDuration::from_secs(300));
        }
        let defaults = EVICTION_HARD.map(|(signal, threshold)| (signal.to_owned(), threshold.to_owned()));
        match &mut self.eviction_hard {
            None => self.eviction_hard = Some(BTreeMap::from(defaults)),
            Some(set) if self.merge_default_eviction_settings => {
                for (signal, threshold) in defaults {
                    set.entry(signal).or_insert(threshold);
                }
            }
            Some(_) => {}
        }
        if self.topology_manager_policy.is_empty() {
            self.topology_manager_policy = base.topology_manager_policy;
        }
    }

    fn fill_in_durations(&mut self, base: &Self) {
        for (field, default) in [
            (&mut self.sync_frequency, base.sync_frequency),
            (&mut self.file_check_frequency, base.file_check_frequency),
            (&mut self.http_check_frequency, base.http_check_frequency),
            (
                &mut self.streaming_connection_idle_timeout,
                base.streaming_connection_idle_timeout,
            ),
            (
                &mut self.node_status_update_frequency,
                base.node_status_update_frequency,
            ),
            (&mut self.image_minimum_gc_age, base.image_minimum_gc_age),
            (&mut self.volume_stats_agg_period, base.volume_stats_agg_period),
            (
                &mut self.cpu_manager_reconcile_period,
                base.cpu_manager_reconcile_period,
            ),
            (&mut self.runtime_request_timeout, base.runtime_request_timeout),
            (
                &mut self.eviction_pressure_transition_period,
                base.eviction_pressure_transition_period,
            ),
            (
                &mut self.authentication.webhook.cache_ttl,
                base.authentication.webhook.cache_ttl,
            ),
            (
                &mut self.authorization.webhook.cache_authorized_ttl,
                base.authorization.webhook.cache_authorized_ttl,
            ),
            (
                &mut self.authorization.webhook.cache_unauthorized_ttl,
                base.authorization.webhook.cache_unauthorized_ttl,
            ),
        ] {
            or_default(field, &GoDuration::ZERO, default);
        }
    }

    fn fill_in_texts(&mut self, base: &Self) {
        for (field, default) in [
            (&mut self.address, &base.address),
            (&mut self.authorization.mode, &base.authorization.mode),
            (&mut self.healthz_bind_address, &base.healthz_bind_address),
            (&mut self.cgroup_driver, &base.cgroup_driver),
            (&mut self.cpu_manager_policy, &base.cpu_manager_policy),
            (&mut self.memory_manager_policy, &base.memory_manager_policy),
            (&mut self.topology_manager_scope, &base.topology_manager_scope),
            (&mut self.hairpin_mode, &base.hairpin_mode),
            (&mut self.content_type, &base.content_type),
            (&mut self.container_log_max_size, &base.container_log_max_size),
            (
                &mut self.config_map_and_secret_change_detection_strategy,
                &base.config_map_and_secret_change_detection_strategy,
            ),
            (
                &mut self.image_pull_credentials_verification_policy,
                &base.image_pull_credentials_verification_policy,
            ),
            (&mut self.volume_plugin_dir, &base.volume_plugin_dir),
            (
                &mut self.memory_reservation_policy,
                &base.memory_reservation_policy,
            ),
            (
                &mut self.container_runtime_endpoint,
                &base.container_runtime_endpoint,
            ),
            (&mut self.pod_logs_dir, &base.pod_logs_dir),
            (&mut self.logging.format, &base.logging.format),
        ] {
            if field.is_empty() {
                field.clone_from(default);
            }
        }
    }
}
