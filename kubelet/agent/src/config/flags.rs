//! The kubelet's flags, in Go's forms: `--name value`, `--name=value`, `--switch`, one dash as good as two.
//!
//! Flags of the process itself are fields of [`Flags`]. Flags that upstream calls deprecated set a field of the
//! configuration, and count more than files: they become a tree that is merged last.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::GoDuration;

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Flags {
    /// `--config`: the configuration's file.
    pub config: Option<String>,
    /// `--config-dir`: the folder of drop-ins.
    pub config_dir: Option<String>,
    /// `--kubeconfig`: how to reach the API server; none: no API server.
    pub kubeconfig: Option<String>,
    /// `--bootstrap-kubeconfig`: how to reach it for a first certificate.
    pub bootstrap_kubeconfig: Option<String>,
    /// `--hostname-override`: the node's name.
    pub hostname_override: Option<String>,
    /// `--node-ip`: the node's addresses.
    pub node_ip: Option<String>,
    /// `--root-dir`: where the kubelet keeps things; none: `/var/lib/kubelet`.
    pub root_dir: Option<String>,
    /// `--cert-dir`: where certificates are; none: `/var/lib/kubelet/pki`.
    pub cert_dir: Option<String>,
    /// `--node-labels`: labels at registration.
    pub node_labels: BTreeMap<String, String>,
    /// `--runtime-cgroups`: the cgroup that the runtime is in.
    pub runtime_cgroups: Option<String>,
    /// `--maximum-dead-containers-per-container`: dead ones kept; none: 1.
    pub maximum_dead_containers_per_container: Option<i32>,
    /// `--maximum-dead-containers`: dead ones kept in all; none or -1: no limit.
    pub maximum_dead_containers: Option<i32>,
    /// `--minimum-container-ttl-duration`: a dead one is kept so long; none: 0.
    pub minimum_container_ttl_duration: Option<GoDuration>,
    /// `--register-schedulable=false` means no.
    pub unschedulable: bool,
    /// What sets fields of the configuration, as its tree.
    pub overrides: Value,
    /// What can be said about the flags without refusing them.
    pub warnings: Vec<String>,
}

/// A command line that isn't understood, worded as upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// There is no such flag.
    #[error("unknown flag: --{0}")]
    Unknown(String),
    /// The value is missing.
    #[error("flag needs an argument: --{0}")]
    NoValue(String),
    /// The value isn't one.
    #[error("invalid argument {value:?} for \"--{flag}\" flag: {reason}")]
    Invalid {
        /// The flag.
        flag: String,
        /// Its value.
        value: String,
        /// Why not.
        reason: String,
    },
    /// A word that belongs to no flag.
    #[error("unknown command {0:?}")]
    Word(String),
    /// A flag of a feature that isn't here and whose absence does harm.
    #[error("flag --{flag} is not supported: {reason}")]
    Unsupported {
        /// The flag.
        flag: String,
        /// What isn't there.
        reason: &'static str,
    },
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Text,
    Switch,
    Number,
    Duration,
    List,
    Pairs,
    Switches,
}

use Kind::{Duration, List, Number, Pairs, Switch, Switches, Text};

/// Flag, field of the configuration, how the value is read.
pub(super) const FIELDS: &[(&str, &str, Kind)] = &[
    ("address", "address", Text),
    ("allowed-unsafe-sysctls", "allowedUnsafeSysctls", List),
    ("anonymous-auth", "authentication.anonymous.enabled", Switch),
    (
        "authentication-token-webhook",
        "authentication.webhook.enabled",
        Switch,
    ),
    (
        "authentication-token-webhook-cache-ttl",
        "authentication.webhook.cacheTTL",
        Duration,
    ),
    ("authorization-mode", "authorization.mode", Text),
    (
        "authorization-webhook-cache-authorized-ttl",
        "authorization.webhook.cacheAuthorizedTTL",
        Duration,
    ),
    (
        "authorization-webhook-cache-unauthorized-ttl",
        "authorization.webhook.cacheUnauthorizedTTL",
        Duration,
    ),
    ("cgroup-driver", "cgroupDriver", Text),
    ("cgroup-root", "cgroupRoot", Text),
    ("cgroups-per-qos", "cgroupsPerQOS", Switch),
    ("client-ca-file", "authentication.x509.clientCAFile", Text),
    ("cluster-dns", "clusterDNS", List),
    ("cluster-domain", "clusterDomain", Text),
    ("container-log-max-files", "containerLogMaxFiles", Number),
    ("container-log-max-size", "containerLogMaxSize", Text),
    ("container-runtime-endpoint", "containerRuntimeEndpoint", Text),
    ("contention-profiling", "enableContentionProfiling", Switch),
    ("cpu-cfs-quota", "cpuCFSQuota", Switch),
    ("cpu-cfs-quota-period", "cpuCFSQuotaPeriod", Duration),
    ("cpu-manager-policy", "cpuManagerPolicy", Text),
    ("cpu-manager-policy-options", "cpuManagerPolicyOptions", Pairs),
    (
        "cpu-manager-reconcile-period",
        "cpuManagerReconcilePeriod",
        Duration,
    ),
    (
        "enable-controller-attach-detach",
        "enableControllerAttachDetach",
        Switch,
    ),
    ("enable-debugging-handlers", "enableDebuggingHandlers", Switch),
    ("enable-server", "enableServer", Switch),
    ("enforce-node-allocatable", "enforceNodeAllocatable", List),
    ("event-burst", "eventBurst", Number),
    ("event-qps", "eventRecordQPS", Number),
    ("eviction-hard", "evictionHard", Pairs),
    (
        "eviction-max-pod-grace-period",
        "evictionMaxPodGracePeriod",
        Number,
    ),
    ("eviction-minimum-reclaim", "evictionMinimumReclaim", Pairs),
    (
        "eviction-pressure-transition-period",
        "evictionPressureTransitionPeriod",
        Duration,
    ),
    ("eviction-soft", "evictionSoft", Pairs),
    ("eviction-soft-grace-period", "evictionSoftGracePeriod", Pairs),
    ("fail-swap-on", "failSwapOn", Switch),
    ("feature-gates", "featureGates", Switches),
    ("file-check-frequency", "fileCheckFrequency", Duration),
    ("hairpin-mode", "hairpinMode", Text),
    ("healthz-bind-address", "healthzBindAddress", Text),
    ("healthz-port", "healthzPort", Number),
    ("http-check-frequency", "httpCheckFrequency", Duration),
    ("image-gc-high-threshold", "imageGCHighThresholdPercent", Number),
    ("image-gc-low-threshold", "imageGCLowThresholdPercent", Number),
    ("image-service-endpoint", "imageServiceEndpoint", Text),
    ("iptables-drop-bit", "iptablesDropBit", Number),
    ("iptables-masquerade-bit", "iptablesMasqueradeBit", Number),
    ("kernel-memcg-notification", "kernelMemcgNotification", Switch),
    ("kube-api-burst", "kubeAPIBurst", Number),
    ("kube-api-content-type", "contentType", Text),
    ("kube-api-qps", "kubeAPIQPS", Number),
    ("kube-reserved", "kubeReserved", Pairs),
    ("kube-reserved-cgroup", "kubeReservedCgroup", Text),
    ("kubelet-cgroups", "kubeletCgroups", Text),
    (
        "local-storage-capacity-isolation",
        "localStorageCapacityIsolation",
        Switch,
    ),
    ("log-flush-frequency", "logging.flushFrequency", Duration),
    ("logging-format", "logging.format", Text),
    ("make-iptables-util-chains", "makeIPTablesUtilChains", Switch),
    ("manifest-url", "staticPodURL", Text),
    ("max-open-files", "maxOpenFiles", Number),
    ("max-pods", "maxPods", Number),
    ("memory-manager-policy", "memoryManagerPolicy", Text),
    ("minimum-image-ttl-duration", "imageMinimumGCAge", Duration),
    ("node-status-max-images", "nodeStatusMaxImages", Number),
    (
        "node-status-update-frequency",
        "nodeStatusUpdateFrequency",
        Duration,
    ),
    ("oom-score-adj", "oomScoreAdj", Number),
    ("pod-cidr", "podCIDR", Text),
    ("pod-manifest-path", "staticPodPath", Text),
    ("pod-max-pids", "podPidsLimit", Number),
    ("pods-per-core", "podsPerCore", Number),
    ("port", "port", Number),
    ("protect-kernel-defaults", "protectKernelDefaults", Switch),
    ("provider-id", "providerID", Text),
    ("qos-reserved", "qosReserved", Pairs),
    ("read-only-port", "readOnlyPort", Number),
    ("register-node", "registerNode", Switch),
    ("registry-burst", "registryBurst", Number),
    ("registry-qps", "registryPullQPS", Number),
    ("reserved-cpus", "reservedSystemCPUs", Text),
    ("resolv-conf", "resolvConf", Text),
    ("rotate-certificates", "rotateCertificates", Switch),
    ("rotate-server-certificates", "serverTLSBootstrap", Switch),
    ("runonce", "runOnce", Switch),
    ("runtime-request-timeout", "runtimeRequestTimeout", Duration),
    ("seccomp-default", "seccompDefault", Switch),
    ("serialize-image-pulls", "serializeImagePulls", Switch),
    (
        "streaming-connection-idle-timeout",
        "streamingConnectionIdleTimeout",
        Duration,
    ),
    ("sync-frequency", "syncFrequency", Duration),
    ("system-cgroups", "systemCgroups", Text),
    ("system-reserved", "systemReserved", Pairs),
    ("system-reserved-cgroup", "systemReservedCgroup", Text),
    ("tls-cert-file", "tlsCertFile", Text),
    ("tls-cipher-suites", "tlsCipherSuites", List),
    ("tls-min-version", "tlsMinVersion", Text),
    ("tls-private-key-file", "tlsPrivateKeyFile", Text),
    ("topology-manager-policy", "topologyManagerPolicy", Text),
    (
        "topology-manager-policy-options",
        "topologyManagerPolicyOptions",
        Pairs,
    ),
    ("topology-manager-scope", "topologyManagerScope", Text),
    ("v", "logging.verbosity", Number),
    ("volume-plugin-dir", "volumePluginDir", Text),
    ("volume-stats-agg-period", "volumeStatsAggPeriod", Duration),
];

/// Flags of the process itself that take a value.
const OWN: &[&str] = &[
    "bootstrap-kubeconfig",
    "cert-dir",
    "cloud-provider",
    "config",
    "config-dir",
    "hostname-override",
    "image-credential-provider-bin-dir",
    "image-credential-provider-config",
    "kubeconfig",
    "lock-file",
    "maximum-dead-containers",
    "maximum-dead-containers-per-container",
    "minimum-container-ttl-duration",
    "node-ip",
    "node-labels",
    "pod-infra-container-image",
    "root-dir",
    "runtime-cgroups",
];

/// Flags of the process itself that may stand alone.
const SWITCHES: &[&str] = &[
    "exit-on-lock-contention",
    "register-schedulable",
    "experimental-allocatable-ignore-eviction",
];

impl Flags {
    /// Reads the arguments, without the program's name. The last of several values counts; `--node-labels`,
    /// `--feature-gates` and other pairs add up.
    ///
    /// # Errors
    /// The first argument that isn't understood.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, FlagError> {
        let mut flags = Self {
            overrides: Value::Object(Map::new()),
            ..Self::default()
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some(body) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                return Err(FlagError::Word(argument));
            };
            let (name, given) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            let field = FIELDS.iter().find(|(flag, ..)| *flag == name);
            let alone = SWITCHES.contains(&name) || field.is_some_and(|(.., kind)| *kind == Switch);
            if field.is_none() && !alone && !OWN.contains(&name) {
                return Err(FlagError::Unknown(name.to_owned()));
            }
            let value = match given {
                Some(value) => value,
                None if alone => "true".to_owned(),
                None => arguments
                    .next()
                    .ok_or_else(|| FlagError::NoValue(name.to_owned()))?,
            };
            match field {
                Some((flag, path, kind)) => flags.set_field(flag, path, *kind, &value)?,
                None => flags.set_own(name, value)?,
            }
        }
        Ok(flags)
    }

    fn set_field(&mut self, flag: &str, path: &str, kind: Kind, text: &str) -> Result<(), FlagError> {
        let value = read(flag, kind, text)?;
        let mut at = &mut self.overrides;
        for key in path.split('.') {
            at = &mut at[key];
        }
        match (at, value) {
            (Value::Object(old), Value::Object(new)) => old.extend(new),
            (at, value) => *at = value,
        }
        Ok(())
    }

    fn set_own(&mut self, flag: &str, value: String) -> Result<(), FlagError> {
        let unsupported = |reason| {
            Err(FlagError::Unsupported {
                flag: flag.to_owned(),
                reason,
            })
        };
        match flag {
            "config" => self.config = filled(value),
            "config-dir" => self.config_dir = filled(value),
            "kubeconfig" => self.kubeconfig = filled(value),
            "bootstrap-kubeconfig" => self.bootstrap_kubeconfig = filled(value),
            "hostname-override" => self.hostname_override = filled(value),
            "node-ip" => self.node_ip = filled(value),
            "root-dir" => self.root_dir = filled(value),
            "cert-dir" => self.cert_dir = filled(value),
            "runtime-cgroups" => self.runtime_cgroups = filled(value),
            "node-labels" => self.node_labels.extend(pairs(flag, &value)?),
            "maximum-dead-containers" => self.maximum_dead_containers = Some(number(flag, &value)?),
            "maximum-dead-containers-per-container" => {
                self.maximum_dead_containers_per_container = Some(number(flag, &value)?);
            }
            "minimum-container-ttl-duration" => {
                self.minimum_container_ttl_duration = Some(duration(flag, &value)?)
            }
            "register-schedulable" => self.unschedulable = !switch(flag, &value)?,
            "cloud-provider" if value.is_empty() || value == "external" => {}
            "cloud-provider" => return unsupported("there are no cloud providers in the kubelet"),
            "image-credential-provider-config" | "image-credential-provider-bin-dir" => {
                return unsupported("credential provider plugins are not built in");
            }
            "lock-file" | "exit-on-lock-contention" => {
                return unsupported("the kubelet takes a lock of its own in --root-dir");
            }
            _ => self.warnings.push(format!("flag --{flag} has no effect")),
        }
        Ok(())
    }
}

fn filled(value: String) -> Option<String> {
    Some(value).filter(|value| !value.is_empty())
}

fn read(flag: &str, kind: Kind, text: &str) -> Result<Value, FlagError> {
    Ok(match kind {
        Text => json!(text),
        Switch => json!(switch(flag, text)?),
        Number => json!(number::<i64>(flag, text)?),
        Duration => json!(duration(flag, text)?),
        List => json!(
            text.split(',')
                .filter(|item| !item.is_empty())
                .collect::<Vec<_>>()
        ),
        Pairs => json!(pairs(flag, text)?),
        Switches => {
            let gates = pairs(flag, text)?.into_iter();
            let gates: Result<BTreeMap<_, _>, _> =
                gates.map(|(name, on)| Ok((name, switch(flag, &on)?))).collect();
            json!(gates?)
        }
    })
}

fn invalid(flag: &str, value: &str, reason: impl Into<String>) -> FlagError {
    FlagError::Invalid {
        flag: flag.to_owned(),
        value: value.to_owned(),
        reason: reason.into(),
    }
}

fn switch(flag: &str, text: &str) -> Result<bool, FlagError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(invalid(
            flag,
            text,
            format!("strconv.ParseBool: parsing {text:?}: invalid syntax"),
        )),
    }
}

fn number<T: std::str::FromStr>(flag: &str, text: &str) -> Result<T, FlagError> {
    text.parse().map_err(|_| {
        invalid(
            flag,
            text,
            format!("strconv.ParseInt: parsing {text:?}: invalid syntax"),
        )
    })
}

fn duration(flag: &str, text: &str) -> Result<GoDuration, FlagError> {
    text.parse()
        .map_err(|error: super::DurationError| invalid(flag, text, error.to_string()))
}

/// `a=1,b=2`; thresholds may have `<` for `=`.
fn pairs(flag: &str, text: &str) -> Result<BTreeMap<String, String>, FlagError> {
    let items = text.split(',').filter(|item| !item.trim().is_empty());
    items
        .map(|item| {
            item.split_once(['=', '<'])
                .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
                .ok_or_else(|| {
                    invalid(
                        flag,
                        text,
                        format!("malformed pair, expect string=string: {item:?}"),
                    )
                })
        })
        .collect()
}
