//! What upstream's `ValidateKubeletConfiguration` refuses, in its words.

use super::types::{KubeletConfiguration, Taint};
use super::{GoDuration, enabled};

/// Everything that upstream would refuse about a configuration, on a host with cgroup v2 alone or not.
#[must_use]
pub fn validate(config: &KubeletConfiguration, unified_cgroups: bool) -> Vec<String> {
    let mut found = Refusals {
        config,
        messages: Vec::new(),
    };
    found.numbers();
    found.images();
    found.policies();
    found.shutdown();
    found.gated();
    found.enforcement();
    found.credentials();
    found.reserved();
    found.logs();
    found.taints();
    if config.fail_cgroup_v1 && !unified_cgroups {
        let text = "kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is in maintenance mode";
        found.messages.push(text.to_owned());
    } else if !unified_cgroups && config.single_process_oom_kill == Some(false) {
        found.refuse(
            true,
            "singleProcessOOMKill must not be explicitly set to false when using cgroup v1",
        );
    }
    found.messages
}

struct Refusals<'a> {
    config: &'a KubeletConfiguration,
    messages: Vec<String>,
}

impl Refusals<'_> {
    fn refuse(&mut self, wrong: bool, text: impl Into<String>) {
        if wrong {
            self.messages
                .push(format!("invalid configuration: {}", text.into()));
        }
    }

    fn gate(&self, name: &str) -> bool {
        enabled(&self.config.feature_gates, name)
    }

    fn range(&mut self, value: i64, (low, high): (i64, i64), name: &str) {
        self.refuse(
            !(low..=high).contains(&value),
            format!("{name} {value} must be between {low} and {high}, inclusive"),
        );
    }

    fn not_negative(&mut self, value: i64, name: &str) {
        self.refuse(value < 0, format!("{name} {value} must not be a negative number"));
    }

    fn numbers(&mut self) {
        let c = self.config;
        self.refuse(
            c.node_lease_duration_seconds <= 0,
            "nodeLeaseDurationSeconds must be greater than 0",
        );
        self.refuse(
            !c.system_cgroups.is_empty() && c.cgroup_root.is_empty(),
            "systemCgroups (--system-cgroups) was specified and cgroupRoot (--cgroup-root) was not specified",
        );
        self.not_negative(c.event_burst.into(), "eventBurst (--event-burst)");
        self.not_negative(c.event_record_qps.into(), "eventRecordQPS (--event-qps)");
        if c.healthz_port != 0 {
            self.range(c.healthz_port.into(), (1, 65535), "healthzPort (--healthz-port)");
        }
        let period = c.cpu_cfs_quota_period;
        if self.gate("CustomCPUCFSQuotaPeriod") {
            self.refuse(
                !(1_000_000..=1_000_000_000).contains(&period.as_nanos()),
                format!("cpuCFSQuotaPeriod (--cpu-cfs-quota-period) {period} must be between 1ms and 1sec, inclusive"),
            );
        } else {
            self.refuse(
                period != GoDuration::from_millis(100),
                format!("cpuCFSQuotaPeriod (--cpu-cfs-quota-period) {period} requires feature gate CustomCPUCFSQuotaPeriod"),
            );
        }
        self.range(
            c.iptables_drop_bit.into(),
            (0, 31),
            "iptablesDropBit (--iptables-drop-bit)",
        );
        self.range(
            c.iptables_masquerade_bit.into(),
            (0, 31),
            "iptablesMasqueradeBit (--iptables-masquerade-bit)",
        );
        self.not_negative(c.kube_api_burst.into(), "kubeAPIBurst (--kube-api-burst)");
        self.not_negative(c.kube_api_qps.into(), "kubeAPIQPS (--kube-api-qps)");
        self.refuse(
            c.node_status_max_images < -1,
            format!(
                "nodeStatusMaxImages (--node-status-max-images) {} must be -1 or greater",
                c.node_status_max_images
            ),
        );
        self.not_negative(c.max_open_files, "maxOpenFiles (--max-open-files)");
        self.not_negative(c.max_pods.into(), "maxPods (--max-pods)");
        self.range(
            c.oom_score_adj.into(),
            (-1000, 1000),
            "oomScoreAdj (--oom-score-adj)",
        );
        self.not_negative(c.pods_per_core.into(), "podsPerCore (--pods-per-core)");
        self.range(c.port.into(), (1, 65535), "port (--port)");
        if c.read_only_port != 0 {
            self.range(
                c.read_only_port.into(),
                (0, 65535),
                "readOnlyPort (--read-only-port)",
            );
        }
        self.not_negative(c.registry_burst.into(), "registryBurst (--registry-burst)");
        self.not_negative(c.registry_pull_qps.into(), "registryPullQPS (--registry-qps)");
    }

    fn images(&mut self) {
        let c = self.config;
        let (high, low) = (
            c.image_gc_high_threshold_percent,
            c.image_gc_low_threshold_percent,
        );
        self.range(
            high.into(),
            (0, 100),
            "imageGCHighThresholdPercent (--image-gc-high-threshold)",
        );
        self.range(
            low.into(),
            (0, 100),
            "imageGCLowThresholdPercent (--image-gc-low-threshold)",
        );
        self.refuse(
            low >= high,
            format!(
                "imageGCLowThresholdPercent (--image-gc-low-threshold) {low} must be less than \
                 imageGCHighThresholdPercent (--image-gc-high-threshold) {high}"
            ),
        );
        let (least, most) = (c.image_minimum_gc_age, c.image_maximum_gc_age);
        self.refuse(
            !most.is_zero() && !self.gate("ImageMaximumGCAge"),
            "ImageMaximumGCAge feature gate is required for Kubelet configuration option imageMaximumGCAge",
        );
        self.refuse(
            least < GoDuration::ZERO,
            format!("imageMinimumGCAge {least} must not be negative"),
        );
        self.refuse(
            most < GoDuration::ZERO,
            format!("imageMaximumGCAge {most} must not be negative"),
        );
        self.refuse(
            most > GoDuration::ZERO && most <= least,
            format!("imageMaximumGCAge {most} must be greater than imageMinimumGCAge {least}"),
        );
        if let Some(pulls) = c.max_parallel_image_pulls {
            self.refuse(
                pulls < 1,
                format!("maxParallelImagePulls {pulls} must be a positive number"),
            );
            self.refuse(
                pulls > 1 && c.serialize_image_pulls == Some(true),
                "maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls (--serialize-image-pulls) is set \
                 to false",
            );
        }
    }

    fn policies(&mut self) {
        let c = self.config;
        let topology = ["none", "best-effort", "restricted", "single-numa-node"];
        self.refuse(
            !topology.contains(&c.topology_manager_policy.as_str()),
            format!(
                "topologyManagerPolicy (--topology-manager-policy) {:?} must be one of: [{}]",
                c.topology_manager_policy,
                topology.map(|name| format!("{name:?}")).join(" ")
            ),
        );
        self.refuse(
            !["container", "pod"].contains(&c.topology_manager_scope.as_str()),
            format!(
                "topologyManagerScope (--topology-manager-scope) {:?} must be one of: \"container\", or \"pod\"",
                c.topology_manager_scope
            ),
        );
        self.refuse(
            !["none", "hairpin-veth", "promiscuous-bridge"].contains(&c.hairpin_mode.as_str()),
            format!(
                "option {:?} specified for hairpinMode (--hairpin-mode). Valid options are \"none\", \"hairpin-veth\" or \
                 \"promiscuous-bridge\"",
                c.hairpin_mode
            ),
        );
        self.refuse(
            c.run_once,
            "runOnce (--runOnce) true, Runonce mode has been deprecated and should not be set",
        );
        self.refuse(
            c.container_runtime_endpoint.is_empty(),
            "the containerRuntimeEndpoint was not specified or empty",
        );
        self.refuse(
            !["None", "TieredReservation"].contains(&c.memory_reservation_policy.as_str()),
            format!(
                "option {:?} specified for memoryReservationPolicy. Valid options are \"None\" or \"TieredReservation\"",
                c.memory_reservation_policy
            ),
        );
    }

    fn shutdown(&mut self) {
        let c = self.config;
        let (all, critical) = (c.shutdown_grace_period, c.shutdown_grace_period_critical_pods);
        if self.gate("GracefulNodeShutdown") {
            self.refuse(
                critical > all,
                format!("shutdownGracePeriodCriticalPods {critical} must be <= shutdownGracePeriod {all}"),
            );
            for (name, period) in [
                ("shutdownGracePeriod", all),
                ("shutdownGracePeriodCriticalPods", critical),
            ] {
                self.refuse(
                    !period.is_zero() && period < GoDuration::from_secs(1),
                    format!("{name} {period} must be either zero or otherwise >= 1 sec"),
                );
            }
        } else {
            self.refuse(
                all > GoDuration::ZERO || critical > GoDuration::ZERO,
                "specifying shutdownGracePeriod or shutdownGracePeriodCriticalPods requires feature gate GracefulNodeShutdown",
            );
        }
        let by_priority = !c.shutdown_grace_period_by_pod_priority.is_empty();
        if self.gate("GracefulNodeShutdownBasedOnPodPriority") {
            self.refuse(
                by_priority && (all > GoDuration::ZERO || critical > GoDuration::ZERO),
                "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time",
            );
        } else {
            self.refuse(
                by_priority,
                "Specifying shutdownGracePeriodByPodPriority requires feature gate GracefulNodeShutdownBasedOnPodPriority",
            );
        }
    }

    fn gated(&mut self) {
        let c = self.config;
        self.refuse(
            c.server_tls_bootstrap && !self.gate("RotateKubeletServerCertificate"),
            "serverTLSBootstrap true requires feature gate RotateKubeletServerCertificate",
        );
        let swap = c.memory_swap.swap_behavior.as_str();
        if self.gate("NodeSwap") {
            self.refuse(
                !["", "NoSwap", "LimitedSwap"].contains(&swap),
                format!(
                    "memorySwap.swapBehavior {swap:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\""
                ),
            );
        } else {
            self.refuse(
                !swap.is_empty(),
                "memorySwap.swapBehavior cannot be set when NodeSwap feature flag is disabled",
            );
        }
        match (self.gate("KubeletCrashLoopBackOffMax"), c.crash_loop_back_off.max_container_restart_period) {
            (true, Some(period)) => self.refuse(
                !(1_000..=300_000).contains(&(period.as_nanos() / 1_000_000)),
                format!(
                    "CrashLoopBackOff.MaxContainerRestartPeriod (got: {} seconds) must be set between 1s and 300s",
                    period.as_secs_f64()
                ),
            ),
            (true, None) => self.refuse(
                true,
                "FeatureGate KubeletCrashLoopBackOffMax is enabled, CrashLoopBackOff.MaxContainerRestartPeriod must be set",
            ),
            (false, Some(_)) => self.refuse(
                true,
                "FeatureGate KubeletCrashLoopBackOffMax not enabled, CrashLoopBackOff.MaxContainerRestartPeriod must not be \
                 set",
            ),
            (false, None) => {}
        }
        match c.memory_throttling_factor {
            None => self.refuse(
                self.gate("MemoryQoS"),
                "memoryThrottlingFactor is required when MemoryQoS feature flag is enabled",
            ),
            Some(factor) => self.refuse(
                factor.is_nan() || factor <= 0.0 || factor > 1.0,
                format!(
                    "memoryThrottlingFactor {factor} must be greater than 0 and less than or equal to 1.0"
                ),
            ),
        }
        self.refuse(
            !self.gate("MemoryQoS") && c.memory_reservation_policy == "TieredReservation",
            "memoryReservationPolicy \"TieredReservation\" requires MemoryQoS feature gate to be enabled",
        );
        let query = c.enable_system_log_query == Some(true);
        self.refuse(
            query && !self.gate("NodeLogQuery"),
            "NodeLogQuery feature gate is required for enableSystemLogQuery",
        );
        self.refuse(
            query && !c.enable_system_log_handler,
            "enableSystemLogHandler is required for enableSystemLogQuery",
        );
    }

    fn enforcement(&mut self) {
        const FLAG: &str = "enforceNodeAllocatable (--enforce-node-allocatable)";
        let c = self.config;
        let wanted = &c.enforce_node_allocatable;
        for base in ["system-reserved", "kube-reserved"] {
            let both = [base.to_owned(), format!("{base}-compressible")];
            self.refuse(
                both.iter().all(|name| wanted.contains(name)),
                format!(
                    "both {:?} and {:?} cannot be specified together in {FLAG}",
                    both[0], both[1]
                ),
            );
        }
        for (index, name) in wanted.iter().enumerate() {
            if wanted[..index].contains(name) {
                self.refuse(true, format!("duplicated enforcements {name:?} in {FLAG}"));
                continue;
            }
            match name.as_str() {
                "pods" => {}
                "system-reserved" | "system-reserved-compressible" => self.refuse(
                    c.system_reserved_cgroup.is_empty(),
                    format!(
                        "systemReservedCgroup (--system-reserved-cgroup) must be specified when \"system-reserved\" or \
                         \"system-reserved-compressible\" included in {FLAG}"
                    ),
                ),
                "kube-reserved" | "kube-reserved-compressible" => self.refuse(
                    c.kube_reserved_cgroup.is_empty(),
                    format!(
                        "kubeReservedCgroup (--kube-reserved-cgroup) must be specified when \"kube-reserved\" or \
                         \"kube-reserved-compressible\" included in {FLAG}"
                    ),
                ),
                "none" => {
                    self.refuse(
                        wanted.len() > 1,
                        format!("{FLAG} may not contain additional enforcements when \"none\" is specified"),
                    );
                    continue;
                }
                _ => {
                    self.refuse(
                        true,
                        format!(
                            "option {name:?} specified for {FLAG}. Valid options are \"pods\", \"system-reserved\", \
                             \"system-reserved-compressible\", \"kube-reserved\", \"kube-reserved-compressible\" or \"none\""
                        ),
                    );
                    continue;
                }
            }
            self.refuse(
                !c.cgroups_per_qos,
                format!(
                    "cgroupsPerQOS (--cgroups-per-qos) must be set to true when {name:?} contained in {FLAG}"
                ),
            );
        }
    }

    fn credentials(&mut self) {
        let c = self.config;
        let policy = c.image_pull_credentials_verification_policy.as_str();
        let all = [
            "NeverVerify",
            "NeverVerifyPreloadedImages",
            "NeverVerifyAllowlistedImages",
            "AlwaysVerify",
        ];
        let listed = !c.preloaded_images_verification_allowlist.is_empty();
        if self.gate("KubeletEnsureSecretPulledImages") {
            self.refuse(
                !all.contains(&policy),
                format!(
                    "option {policy:?} specified for imagePullCredentialsVerificationPolicy. Valid options are {:?}, {:?}, \
                     {:?} or {:?}",
                    all[0], all[1], all[2], all[3]
                ),
            );
            self.refuse(
                listed && policy != "NeverVerifyAllowlistedImages",
                "can't set `preloadedImagesVerificationAllowlist` if `imagePullCredentialsVertificationPolicy` is not \
                 \"NeverVerifyAllowlistedImages\"",
            );
        } else {
            self.refuse(
                listed,
                "`preloadedImagesVerificationAllowlist` must not be set if KubeletEnsureSecretPulledImages feature gate is \
                 not enabled",
            );
        }
    }

    fn reserved(&mut self) {
        let c = self.config;
        if !c.reserved_system_cpus.is_empty() {
            self.refuse(
                !c.system_reserved_cgroup.is_empty() || !c.kube_reserved_cgroup.is_empty(),
                "can't use reservedSystemCPUs (--reserved-cpus) with systemReservedCgroup (--system-reserved-cgroup) or \
                 kubeReservedCgroup (--kube-reserved-cgroup)",
            );
            if let Err(error) = c.reserved_system_cpus.parse::<crate::node::cpu::CpuSet>() {
                self.refuse(
                    true,
                    format!(
                        "unable to parse reservedSystemCPUs (--reserved-cpus) {}, error: {error}",
                        c.reserved_system_cpus
                    ),
                );
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        for reservation in &c.reserved_memory {
            let node = reservation.numa_node;
            for (resource, amount) in &reservation.limits {
                self.refuse(
                    resource != "memory" && !resource.starts_with("hugepages-"),
                    format!(
                        "the limit type {resource:?} for NUMA node {node} is not supported, only [memory \
                         hugepages-<HugePageSize>] is accepted"
                    ),
                );
                self.refuse(
                    amount
                        .trim_end_matches(|c: char| c.is_ascii_alphabetic())
                        .parse::<f64>()
                        == Ok(0.0),
                    format!("reserved memory may not be zero for NUMA node {node} and resource {resource:?}"),
                );
                self.refuse(
                    !seen.insert((node, resource)),
                    format!(
                        "the reserved memory has a duplicate value for NUMA node {node} and resource {resource:?}"
                    ),
                );
            }
        }
    }

    fn logs(&mut self) {
        let c = self.config;
        self.refuse(
            c.container_log_max_workers < 1,
            "containerLogMaxWorkers must be greater than or equal to 1",
        );
        self.refuse(
            c.container_log_monitor_interval < GoDuration::from_secs(3),
            "containerLogMonitorInterval must be a positive time duration greater than or equal to 3s",
        );
        self.refuse(
            c.container_log_max_files <= 1,
            "containerLogMaxFiles must be greater than 1",
        );
        let path = &c.pod_logs_dir;
        self.refuse(path.is_empty(), "podLogsDir was not specified");
        self.refuse(
            !path.starts_with('/'),
            format!("pod logs path {path:?} must be absolute path"),
        );
        let clean = path == "/"
            || path
                .split('/')
                .skip(1)
                .all(|part| !matches!(part, "" | "." | ".."));
        self.refuse(!clean, format!("pod logs path {path:?} must be normalized"));
        // The last word is upstream's spelling, which clients see.
        self.refuse(
            !path.is_ascii(),
            format!("pod logs path {path:?} mut contains ASCII characters only"),
        );
        if !["text", "json"].contains(&c.logging.format.as_str()) {
            self.messages.push(format!(
                "logging.format: Invalid value: {:?}: Unsupported log format",
                c.logging.format
            ));
        }
    }

    fn taints(&mut self) {
        for taint in &self.config.register_with_taints {
            if !valid_taint(taint) {
                self.messages.push(format!(
                    "invalid taint: {{{} {} {} {}}}",
                    taint.key,
                    taint.value,
                    taint.effect,
                    taint.time_added.as_deref().unwrap_or("<nil>")
                ));
            }
            self.refuse(taint.time_added.is_some(), "taint.TimeAdded is not nil");
        }
    }
}

fn valid_taint(taint: &Taint) -> bool {
    let name = |text: &str, most: usize| {
        !text.is_empty()
            && text.len() <= most
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let key = match taint.key.split_once('/') {
        Some((prefix, rest)) => name(prefix, 253) && name(rest, 63),
        None => name(&taint.key, 63),
    };
    let effect = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&taint.effect.as_str());
    key && effect && (taint.value.is_empty() || name(&taint.value, 63))
}
