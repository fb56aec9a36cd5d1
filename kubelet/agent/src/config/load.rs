//! From texts to a configuration that is complete and valid, or to everything that is wrong.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use controlplane_api::strict::{Limits, parse_file};
use serde_json::{Map, Value, json};

use super::{Flags, KubeletConfiguration, gates, validate};

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// Most drop-ins, and folders within each other, that are read.
const MOST_FILES: usize = 1000;
const MOST_DEPTH: usize = 16;
/// Largest file that is read.
const MOST_BYTES: u64 = 10 << 20;

/// A file's name and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// The name that complaints have.
    pub file: String,
    /// The text.
    pub text: String,
}

/// What became of files and flags.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The configuration, complete and valid.
    pub config: KubeletConfiguration,
    /// What is set but has no effect here.
    pub warnings: Vec<String>,
}

/// One thing that is wrong, with file and line where it has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(pub String);

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or folder can't be read.
    #[error("failed to read `{path}`")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Everything that is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// Reads the files that the flags name, and [`resolve`]s them.
///
/// # Errors
/// A file that can't be read, and everything that is wrong with the contents.
pub fn load(flags: &Flags, unified_cgroups: bool) -> Result<Resolved, ConfigError> {
    let mut texts = Vec::new();
    if let Some(path) = &flags.config {
        texts.push(read(Path::new(path))?);
    }
    if let Some(dir) = &flags.config_dir {
        let mut found = Vec::new();
        drop_ins(Path::new(dir), 0, &mut found)?;
        for path in found {
            texts.push(read(&path)?);
        }
    }
    resolve(&texts, flags, unified_cgroups)
}

fn read(path: &Path) -> Result<SourceText, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MOST_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(failed(io::Error::other("larger than 10 MiB")));
    }
    Ok(SourceText {
        file: path.display().to_string(),
        text,
    })
}

/// Files that end in `.conf`, in the order of a walk by name; folders are walked into where they stand.
fn drop_ins(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), ConfigError> {
    let failed = |source| ConfigError::Read {
        path: dir.to_owned(),
        source,
    };
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        entries.push((entry.path(), entry.file_type().map_err(failed)?.is_dir()));
    }
    entries.sort();
    for (path, is_dir) in entries {
        if is_dir && depth < MOST_DEPTH {
            drop_ins(&path, depth + 1, found)?;
        } else if !is_dir && path.extension().is_some_and(|end| end == "conf") {
            found.push(path);
        }
        if found.len() > MOST_FILES {
            return Err(failed(io::Error::other("more than 1000 drop-ins")));
        }
    }
    Ok(())
}

/// The configuration of some texts, later ones counting more, and of flags, which count most.
///
/// # Errors
/// Everything that is wrong.
pub fn resolve(texts: &[SourceText], flags: &Flags, unified_cgroups: bool) -> Result<Resolved, ConfigError> {
    let mut problems = Vec::new();
    let mut tree = Value::Object(Map::new());
    for source in texts {
        match tree_of(source) {
            Ok(one) => merge(&mut tree, one),
            Err(found) => problems.extend(found),
        }
    }
    if flags.overrides.is_object() {
        merge(&mut tree, flags.overrides.clone());
    }
    if !problems.is_empty() {
        return Err(ConfigError::Invalid(problems));
    }
    let set = |name: &str| tree.get(name).is_some();
    let (update_set, report_set) = (set("nodeStatusUpdateFrequency"), set("nodeStatusReportFrequency"));
    let config: Result<KubeletConfiguration, _> = serde_json::from_value(tree.clone());
    let mut config = config.map_err(|error| ConfigError::Invalid(vec![Problem(error.to_string())]))?;
    (config.api_version, config.kind) = (String::new(), String::new());
    config.fill_in(update_set, report_set);
    let mut wrong = validate(&config, unified_cgroups);
    wrong.extend(impossible(&config));
    if !wrong.is_empty() {
        return Err(ConfigError::Invalid(wrong.into_iter().map(Problem).collect()));
    }
    let mut warnings = flags.warnings.clone();
    warnings.extend(without_effect(&tree, &config));
    Ok(Resolved { config, warnings })
}

fn tree_of(source: &SourceText) -> Result<Value, Vec<Problem>> {
    let one = |text: String| vec![Problem(text)];
    let documents =
        parse_file(&source.file, &source.text, Limits::default()).map_err(|error| one(error.to_string()))?;
    let [document] = documents.as_slice() else {
        let count = documents.len();
        return Err(one(format!(
            "{}: one document is expected, not {count}",
            source.file
        )));
    };
    let (version, kind) = (
        document.api_version().unwrap_or(""),
        document.kind().unwrap_or(""),
    );
    if (version, kind) != (API_VERSION, KIND) {
        return Err(one(format!(
            "{}: no kind {kind:?} is registered for version {version:?}: {KIND} of {API_VERSION} is expected",
            source.file
        )));
    }
    let decoded: Result<KubeletConfiguration, _> = document.decode();
    decoded.map_err(|errors| {
        errors
            .iter()
            .map(|error| Problem(error.to_string()))
            .collect::<Vec<_>>()
    })?;
    Ok(document.value().clone())
}

/// A JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// What this kubelet can't do although the node's owner relies on it.
fn impossible(config: &KubeletConfiguration) -> Vec<String> {
    let policy = config.image_pull_credentials_verification_policy.as_str();
    let found = [
        (
            !config.kubelet_cgroups.is_empty(),
            "kubeletCgroups (--kubelet-cgroups) is not supported: the service manager places the kubelet",
        ),
        (
            !config.system_cgroups.is_empty(),
            "systemCgroups (--system-cgroups) is not supported: the service manager places processes",
        ),
        (
            !config.qos_reserved.is_empty(),
            "qosReserved (--qos-reserved) is not supported: nothing would be reserved",
        ),
        (
            !config.cgroups_per_qos,
            "cgroupsPerQOS (--cgroups-per-qos) false is not supported: pods would have no limits in common",
        ),
        (
            matches!(policy, "AlwaysVerify" | "NeverVerifyAllowlistedImages"),
            "imagePullCredentialsVerificationPolicy is not supported beyond NeverVerifyPreloadedImages: images would be \
             used without the credentials that it asks for",
        ),
        (
            config.memory_reservation_policy == "TieredReservation",
            "memoryReservationPolicy \"TieredReservation\" is not supported: memory would not be protected",
        ),
        (
            config.tls_version().is_none(),
            "tlsMinVersion (--tls-min-version) must be one of: \"VersionTLS10\", \"VersionTLS11\", \"VersionTLS12\" or \
             \"VersionTLS13\"",
        ),
    ];
    let texts = found.into_iter().filter(|(holds, _)| *holds);
    texts
        .map(|(_, text)| format!("invalid configuration: {text}"))
        .collect()
}

/// Fields that are set, valid, and of which nothing comes here; dots lead into them.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("authentication.webhook", NO_API_SERVER),
    ("authorization.webhook", NO_API_SERVER),
    (
        "configMapAndSecretChangeDetectionStrategy",
        "objects come from the sources of pods",
    ),
    ("contentType", NO_API_SERVER),
    (
        "defaultPodSysctls",
        "pods have the sysctls that they name themselves",
    ),
    ("enableContentionProfiling", "there is no Go runtime to profile"),
    ("enableControllerAttachDetach", NO_API_SERVER),
    ("enableDebugFlagsHandler", "there is no such endpoint"),
    ("enableProfilingHandler", "there is no such endpoint"),
    ("enableSystemLogQuery", "logs can be read, not queried"),
    ("eventBurst", "events are kept in memory, within bounds"),
    ("eventRecordQPS", "events are kept in memory, within bounds"),
    ("hairpinMode", "the network's plugins decide"),
    ("iptablesDropBit", "upstream has none either"),
    ("iptablesMasqueradeBit", "upstream has none either"),
    ("kernelMemcgNotification", "memory is looked at every ten seconds"),
    ("kubeAPIBurst", NO_API_SERVER),
    ("kubeAPIQPS", NO_API_SERVER),
    ("makeIPTablesUtilChains", "no chain is made"),
    ("maxOpenFiles", "the service manager sets the limit"),
    ("memoryThrottlingFactor", "memory.high is not set"),
    (
        "protectKernelDefaults",
        "kernel settings are neither changed nor checked",
    ),
    ("nodeLeaseDurationSeconds", NO_API_SERVER),
    ("nodeStatusMaxImages", NO_API_SERVER),
    ("nodeStatusReportFrequency", NO_API_SERVER),
    ("nodeStatusUpdateFrequency", NO_API_SERVER),
    ("podCIDR", "the network's plugins give addresses"),
    ("providerID", NO_API_SERVER),
    ("registerNode", NO_API_SERVER),
    ("registerWithTaints", NO_API_SERVER),
    (
        "registryBurst",
        "pulls are bounded by how many run at once, not by their rate",
    ),
    (
        "registryPullQPS",
        "pulls are bounded by how many run at once, not by their rate",
    ),
    ("rotateCertificates", NO_API_SERVER),
    ("serverTLSBootstrap", NO_API_SERVER),
    ("showHiddenMetricsForVersion", "no metric is hidden"),
    ("streamingConnectionIdleTimeout", "upstream has none either"),
    (
        "tlsCipherSuites",
        "the library's suites are served, all of them with forward secrecy",
    ),
    ("tlsCurvePreferences", "the library's key exchanges are used"),
    ("tracing", "spans are not exported"),
    ("userNamespaces", "each pod with one of its own has 65536 IDs"),
    ("volumePluginDir", "there is no FlexVolume"),
    (
        "volumeStatsAggPeriod",
        "volumes are measured when they are asked about",
    ),
];
const NO_API_SERVER: &str = "there is no API server yet";

fn without_effect(tree: &Value, config: &KubeletConfiguration) -> Vec<String> {
    let fields = WITHOUT_EFFECT.iter().filter(|(name, _)| {
        let pointer = format!("/{}", name.replace('.', "/"));
        tree.pointer(&pointer).is_some_and(is_asked_for)
    });
    let mut found: Vec<String> = fields
        .map(|(name, why)| format!("{name} has no effect: {why}"))
        .collect();
    if !config.logging.vmodule.is_empty() {
        found.push("logging.vmodule has no effect: there is one verbosity".to_owned());
    }
    if matches!(config.tls_min_version.as_str(), "VersionTLS10" | "VersionTLS11") {
        found.push(format!(
            "tlsMinVersion {} has no effect: nothing below 1.2 is served",
            config.tls_min_version
        ));
    }
    let unknown = config.feature_gates.keys().filter(|name| !gates::is_known(name));
    found.extend(unknown.map(|name| format!("feature gate {name} has no effect")));
    found
}

/// Whether a value wants something: neither off nor empty, nor made of such values alone.
fn is_asked_for(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => fields.values().any(is_asked_for),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

/// Fields that aren't pointers upstream, so that their zero isn't written.
const OMITTED_AT_ZERO: &[&str] = &[
    "enableContentionProfiling",
    "evictionMaxPodGracePeriod",
    "kernelMemcgNotification",
    "podsPerCore",
    "protectKernelDefaults",
    "readOnlyPort",
    "rotateCertificates",
    "runOnce",
    "serverTLSBootstrap",
];

/// What `/configz` answers.
#[must_use]
pub fn configz(config: &KubeletConfiguration) -> Value {
    let mut tree = serde_json::to_value(config).unwrap_or_default();
    if let Value::Object(fields) = &mut tree {
        fields.retain(|name, value| match value {
            Value::Null => false,
            Value::Bool(false) => !OMITTED_AT_ZERO.contains(&name.as_str()),
            Value::Number(number) => number.as_i64() != Some(0) || !OMITTED_AT_ZERO.contains(&name.as_str()),
            Value::String(text) => {
                !text.is_empty() || matches!(name.as_str(), "containerRuntimeEndpoint" | "resolvConf")
            }
            Value::Array(items) => !items.is_empty(),
            Value::Object(map) => {
                !map.is_empty() || matches!(name.as_str(), "memorySwap" | "crashLoopBackOff")
            }
            Value::Bool(true) => true,
        });
    }
    json!({ "kubeletconfig": tree })
}
