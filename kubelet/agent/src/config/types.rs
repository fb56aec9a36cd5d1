//! The fields of `KubeletConfiguration`, named and typed as in `k8s.io/kubelet/config/v1beta1`.
//!
//! What is a pointer upstream only to tell "unset" from zero is a plain value here, set to the default.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::GoDuration;

/// How this node's kubelet behaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubeletConfiguration {
    /// `kubelet.config.k8s.io/v1beta1` in a file; empty once it's read.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// `KubeletConfiguration` in a file; empty once it's read.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Whether the server on `port` is up.
    pub enable_server: bool,
    /// Folder of manifests, or one manifest.
    pub static_pod_path: String,
    /// Where the logs of pods are.
    pub pod_logs_dir: String,
    /// Longest time between two syncs of a pod.
    pub sync_frequency: GoDuration,
    /// Between two readings of `static_pod_path`.
    pub file_check_frequency: GoDuration,
    /// Between two readings of `static_pod_url`.
    pub http_check_frequency: GoDuration,
    /// URL with manifests.
    #[serde(rename = "staticPodURL")]
    pub static_pod_url: String,
    /// Headers of the requests to `static_pod_url`.
    #[serde(rename = "staticPodURLHeader")]
    pub static_pod_url_header: BTreeMap<String, Vec<String>>,
    /// Address that the server listens on.
    pub address: String,
    /// Port of the server.
    pub port: i32,
    /// Port of the server that asks nobody who he is; 0: none.
    pub read_only_port: i32,
    /// The server's certificate.
    pub tls_cert_file: String,
    /// The server's key.
    pub tls_private_key_file: String,
    /// Cipher suites by their Go names; empty: the library's.
    pub tls_cipher_suites: Vec<String>,
    /// Key exchanges by their Go numbers; empty: the library's.
    pub tls_curve_preferences: Vec<i32>,
    /// `VersionTLS12` or `VersionTLS13`.
    pub tls_min_version: String,
    /// Whether the client certificate is renewed.
    pub rotate_certificates: bool,
    /// Whether the API server signs the server's certificate.
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    /// Who may be whom on the server.
    pub authentication: Authentication,
    /// Who may do what on the server.
    pub authorization: Authorization,
    /// Pulls a second; 0: as many as come.
    #[serde(rename = "registryPullQPS")]
    pub registry_pull_qps: i32,
    /// Pulls at once before `registry_pull_qps` counts.
    pub registry_burst: i32,
    /// Who may use an image that is there already.
    pub image_pull_credentials_verification_policy: String,
    /// Images that everybody may use, for `NeverVerifyAllowlistedImages`.
    pub preloaded_images_verification_allowlist: Vec<String>,
    /// Events a second; 0: as many as come.
    #[serde(rename = "eventRecordQPS")]
    pub event_record_qps: i32,
    /// Events at once before `event_record_qps` counts.
    pub event_burst: i32,
    /// Whether the server has logs, exec, attach and port-forward.
    pub enable_debugging_handlers: bool,
    /// A Go runtime's profile; without effect here.
    pub enable_contention_profiling: bool,
    /// Port of the health endpoint; 0: none.
    pub healthz_port: i32,
    /// Address of the health endpoint.
    pub healthz_bind_address: String,
    /// The kubelet's own `oom_score_adj`.
    pub oom_score_adj: i32,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Addresses of the cluster's DNS.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    /// Without effect, as upstream.
    pub streaming_connection_idle_timeout: GoDuration,
    /// Between two computations of the node's status.
    pub node_status_update_frequency: GoDuration,
    /// Longest time between two reports of the node's status.
    pub node_status_report_frequency: GoDuration,
    /// How long a node lease counts, in seconds.
    pub node_lease_duration_seconds: i32,
    /// An image unused for less is kept.
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: GoDuration,
    /// An image unused for longer goes; 0: none does.
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: GoDuration,
    /// Disk use in percent from which images are collected.
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: i32,
    /// Disk use in percent down to which they are.
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: i32,
    /// Between two measurements of volumes.
    pub volume_stats_agg_period: GoDuration,
    /// Cgroup for the kubelet itself.
    pub kubelet_cgroups: String,
    /// Cgroup for what has none.
    pub system_cgroups: String,
    /// Cgroup below which `kubepods` is; empty: the root.
    pub cgroup_root: String,
    /// Whether there are cgroups by QoS and pod.
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    /// `cgroupfs` or `systemd`; the runtime's answer to `RuntimeConfig` counts more.
    pub cgroup_driver: String,
    /// `none` or `static`.
    pub cpu_manager_policy: String,
    /// Whether the OOM killer takes single processes rather than the container; unset: no on v2.
    #[serde(rename = "singleProcessOOMKill")]
    pub single_process_oom_kill: Option<bool>,
    /// Options of the static policy.
    pub cpu_manager_policy_options: BTreeMap<String, String>,
    /// Between two checks of containers' CPUs.
    pub cpu_manager_reconcile_period: GoDuration,
    /// `None` or `Static`.
    pub memory_manager_policy: String,
    /// `none`, `best-effort`, `restricted` or `single-numa-node`.
    pub topology_manager_policy: String,
    /// `container` or `pod`.
    pub topology_manager_scope: String,
    /// Options of the topology policy.
    pub topology_manager_policy_options: BTreeMap<String, String>,
    /// Requests of a QoS class kept from the lower ones, in percent; alpha.
    pub qos_reserved: BTreeMap<String, String>,
    /// Deadline of calls to the runtime, pulls, logs, exec and attach aside.
    pub runtime_request_timeout: GoDuration,
    /// The network plugin's business today.
    pub hairpin_mode: String,
    /// Most pods at once.
    pub max_pods: i32,
    /// Pods' addresses where no API server gives one.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// Most processes of a pod; -1: what the node has.
    pub pod_pids_limit: i64,
    /// The resolv.conf that pods get theirs from; empty: none.
    #[serde(rename = "resolvConf")]
    pub resolver_config: String,
    /// Refused: it's gone upstream.
    pub run_once: bool,
    /// Whether CPU limits are enforced.
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    /// The period in which they are.
    #[serde(rename = "cpuCFSQuotaPeriod")]
    pub cpu_cfs_quota_period: GoDuration,
    /// Images named in the node's status; -1: all.
    pub node_status_max_images: i32,
    /// The kubelet's own limit of open files.
    pub max_open_files: i64,
    /// What is spoken with the API server.
    pub content_type: String,
    /// Requests a second to the API server.
    #[serde(rename = "kubeAPIQPS")]
    pub kube_api_qps: i32,
    /// Requests at once before `kube_api_qps` counts.
    #[serde(rename = "kubeAPIBurst")]
    pub kube_api_burst: i32,
    /// Whether images are pulled one by one; unset until defaults are: yes, unless `max_parallel_image_pulls` is above 1.
    pub serialize_image_pulls: Option<bool>,
    /// Most pulls at once; unset: no limit.
    pub max_parallel_image_pulls: Option<i32>,
    /// Signals and thresholds at which pods go at once.
    pub eviction_hard: Option<BTreeMap<String, String>>,
    /// Signals and thresholds at which pods go after a grace period.
    pub eviction_soft: BTreeMap<String, String>,
    /// Signals and their grace periods.
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    /// How long a pressure condition outlives the pressure.
    pub eviction_pressure_transition_period: GoDuration,
    /// Most seconds that a pod gets at a soft eviction; 0: its own.
    pub eviction_max_pod_grace_period: i32,
    /// Signals and how much beyond the threshold is reclaimed.
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    /// Whether signals not named in `eviction_hard` keep their defaults.
    pub merge_default_eviction_settings: bool,
    /// Most pods for each core; 0: no such limit.
    pub pods_per_core: i32,
    /// Whether the controller attaches volumes.
    pub enable_controller_attach_detach: bool,
    /// Whether kernel settings that differ are an error rather than set.
    pub protect_kernel_defaults: bool,
    /// Whether the chain `KUBE-IPTABLES-HINT` is made.
    #[serde(rename = "makeIPTablesUtilChains")]
    pub make_ip_tables_util_chains: bool,
    /// Without effect, as upstream.
    pub iptables_masquerade_bit: i32,
    /// Without effect, as upstream.
    pub iptables_drop_bit: i32,
    /// Features by name.
    pub feature_gates: BTreeMap<String, bool>,
    /// Whether a node with swap is refused.
    pub fail_swap_on: bool,
    /// Swap for pods.
    pub memory_swap: MemorySwap,
    /// Size at which a container's log is rotated.
    pub container_log_max_size: String,
    /// Files kept of a container's log.
    pub container_log_max_files: i32,
    /// Rotations at once.
    pub container_log_max_workers: i32,
    /// Between two looks at logs' sizes.
    pub container_log_monitor_interval: GoDuration,
    /// `Get`, `Cache` or `Watch`.
    pub config_map_and_secret_change_detection_strategy: String,
    /// Kept for the system.
    pub system_reserved: BTreeMap<String, String>,
    /// Kept for Kubernetes' daemons.
    pub kube_reserved: BTreeMap<String, String>,
    /// CPUs kept for both, as a list.
    #[serde(rename = "reservedSystemCPUs")]
    pub reserved_system_cpus: String,
    /// Without effect: no metric is hidden.
    pub show_hidden_metrics_for_version: String,
    /// The cgroup that `system_reserved` is enforced on.
    pub system_reserved_cgroup: String,
    /// The cgroup that `kube_reserved` is enforced on.
    pub kube_reserved_cgroup: String,
    /// What is enforced: `none`, or of `pods`, `system-reserved`, `kube-reserved` and both with `-compressible`.
    pub enforce_node_allocatable: Vec<String>,
    /// Sysctls, or patterns ending in `*`, that pods may set.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Sysctls that pods get unless they set them.
    pub default_pod_sysctls: BTreeMap<String, String>,
    /// Where FlexVolume plugins would be.
    pub volume_plugin_dir: String,
    /// The machine's name with its provider.
    #[serde(rename = "providerID")]
    pub provider_id: String,
    /// Whether the kernel tells of low memory.
    pub kernel_memcg_notification: bool,
    /// How is logged.
    pub logging: Logging,
    /// Whether the server has `/logs`.
    pub enable_system_log_handler: bool,
    /// Whether `/logs` can be queried.
    pub enable_system_log_query: Option<bool>,
    /// How long the node delays a shutdown for pods; 0: not at all.
    pub shutdown_grace_period: GoDuration,
    /// The part of it that critical pods have.
    pub shutdown_grace_period_critical_pods: GoDuration,
    /// The same by priority.
    pub shutdown_grace_period_by_pod_priority: Vec<ShutdownGracePeriodByPodPriority>,
    /// The back-off between restarts.
    pub crash_loop_back_off: CrashLoopBackOff,
    /// Memory kept from pods on each NUMA node.
    pub reserved_memory: Vec<MemoryReservation>,
    /// Whether the server has profiles; without effect.
    pub enable_profiling_handler: bool,
    /// Whether the server can set flags; without effect.
    pub enable_debug_flags_handler: bool,
    /// Whether `RuntimeDefault` is every container's seccomp profile.
    pub seccomp_default: bool,
    /// Part of the limit from which memory is throttled.
    pub memory_throttling_factor: Option<f64>,
    /// `None` or `TieredReservation`.
    pub memory_reservation_policy: String,
    /// Taints of the node at registration.
    pub register_with_taints: Vec<Taint>,
    /// Whether the node registers itself.
    pub register_node: bool,
    /// Where spans are sent.
    pub tracing: Option<Tracing>,
    /// Whether ephemeral storage is measured and limited.
    pub local_storage_capacity_isolation: bool,
    /// The CRI daemon.
    pub container_runtime_endpoint: String,
    /// The CRI daemon for images; empty: the same.
    pub image_service_endpoint: String,
    /// Whether a host with v1 is refused; the default, as upstream.
    pub fail_cgroup_v1: bool,
    /// Ranges of IDs of pods.
    pub user_namespaces: Option<UserNamespaces>,
}

/// The versions of TLS that the server can be told to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsVersion {
    /// 1.2, the default; nothing older is served.
    #[default]
    V12,
    /// 1.3.
    V13,
}

impl KubeletConfiguration {
    /// The oldest version of TLS that is served (`tlsMinVersion`); `None` for a name that upstream doesn't know either.
    #[must_use]
    pub fn tls_version(&self) -> Option<TlsVersion> {
        match self.tls_min_version.as_str() {
            "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => Some(TlsVersion::V12),
            "VersionTLS13" => Some(TlsVersion::V13),
            _ => None,
        }
    }
}

/// Who may be whom on the server.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Authentication {
    /// By client certificate.
    pub x509: X509Authentication,
    /// By token, asked of the API server.
    pub webhook: WebhookAuthentication,
    /// Without either.
    pub anonymous: AnonymousAuthentication,
}

/// Client certificates.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct X509Authentication {
    /// Certificates of those who sign clients'; empty: no client certificate counts.
    #[serde(rename = "clientCAFile", skip_serializing_if = "String::is_empty")]
    pub client_ca_file: String,
}

/// Tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WebhookAuthentication {
    /// Whether the API server is asked.
    pub enabled: bool,
    /// How long its answer counts.
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: GoDuration,
}

/// Requests of nobody.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AnonymousAuthentication {
    /// Whether they are `system:anonymous` rather than refused.
    pub enabled: bool,
}

/// Who may do what on the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Authorization {
    /// `AlwaysAllow` or `Webhook`.
    pub mode: String,
    /// Asking the API server.
    pub webhook: WebhookAuthorization,
}

/// Asking the API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WebhookAuthorization {
    /// How long a yes counts.
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: GoDuration,
    /// How long a no counts.
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: GoDuration,
}

/// Swap for pods.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MemorySwap {
    /// Empty or `NoSwap`: none; `LimitedSwap`: burstable pods in proportion to their requests.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub swap_behavior: String,
}

/// The back-off between restarts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CrashLoopBackOff {
    /// Its upper end; unset: five minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_container_restart_period: Option<GoDuration>,
}

/// Memory kept from pods on one NUMA node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MemoryReservation {
    /// The node's number.
    pub numa_node: i32,
    /// Quantities of `memory` and `hugepages-SIZE`.
    #[serde(deserialize_with = "quantities")]
    pub limits: BTreeMap<String, String>,
}

/// How long pods of a priority have at a shutdown.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ShutdownGracePeriodByPodPriority {
    /// The lowest priority that this is for.
    pub priority: i32,
    /// The period.
    pub shutdown_grace_period_seconds: i64,
}

/// A taint of the node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// Refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<String>,
}

/// Where spans are sent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Tracing {
    /// `host:port` of an OTLP collector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Of how many spans in a million one starts a trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling_rate_per_million: Option<i32>,
}

/// Ranges of IDs of pods with a user namespace.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UserNamespaces {
    /// How many IDs each has: a multiple of 65536; unset: 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids_per_pod: Option<i64>,
}

/// How is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Logging {
    /// `text` or `json`.
    pub format: String,
    /// Nanoseconds or a duration between two flushes.
    #[serde(deserialize_with = "frequency")]
    pub flush_frequency: GoDuration,
    /// 0 and up: how much is logged.
    pub verbosity: u32,
    /// The same for single modules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VerbosityOfFile>,
    /// Options of the formats.
    pub options: LoggingOptions,
}

/// How much a module logs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VerbosityOfFile {
    /// The module.
    pub file_pattern: String,
    /// 0 and up.
    pub verbosity: u32,
}

/// Options of the formats.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoggingOptions {
    /// Of `text`.
    pub text: TextOptions,
    /// Of `json`.
    pub json: JsonOptions,
}

/// Options of `text`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TextOptions {
    /// Whether what is no error goes to standard output.
    pub split_stream: bool,
    /// Bytes held back of what is no error.
    #[serde(deserialize_with = "quantity")]
    pub info_buffer_size: String,
}

/// Options of `json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct JsonOptions {
    /// Whether what is no error goes to standard output.
    pub split_stream: bool,
    /// Bytes held back of what is no error.
    #[serde(deserialize_with = "quantity")]
    pub info_buffer_size: String,
}

/// A quantity in YAML may be a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Whole(i64),
    Number(f64),
}

impl Scalar {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Whole(number) => number.to_string(),
            Self::Number(number) => number.to_string(),
        }
    }
}

fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Scalar::deserialize(deserializer).map(Scalar::into_text)
}

fn quantities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let all = BTreeMap::<String, Scalar>::deserialize(deserializer)?;
    Ok(all
        .into_iter()
        .map(|(name, scalar)| (name, scalar.into_text()))
        .collect())
}

/// Upstream takes nanoseconds as a number here, and a duration as a text.
fn frequency<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GoDuration, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Whole(nanos) => format!("{nanos}ns").parse(),
        other => other.into_text().parse(),
    }
    .map_err(serde::de::Error::custom)
}
