//! Feature gates that change what is accepted or done here, with upstream's defaults. Others are accepted without effect.

use std::collections::BTreeMap;

/// How far a feature is, which decides who may turn it off or on.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    /// Off; `AllAlpha` is for it.
    Alpha,
    /// `AllBeta` is for it.
    Beta,
    /// On for good.
    Stable,
}

/// Name, stage, whether it is on unless a configuration says otherwise.
const GATES: [(&str, Stage, bool); 15] = [
    ("CPUManagerPolicyAlphaOptions", Stage::Alpha, false),
    ("CPUManagerPolicyBetaOptions", Stage::Beta, true),
    ("CPUManagerPolicyOptions", Stage::Stable, true),
    ("CustomCPUCFSQuotaPeriod", Stage::Alpha, false),
    ("GracefulNodeShutdown", Stage::Beta, true),
    ("GracefulNodeShutdownBasedOnPodPriority", Stage::Beta, true),
    ("ImageMaximumGCAge", Stage::Beta, true),
    ("KubeletCrashLoopBackOffMax", Stage::Beta, true),
    ("KubeletEnsureSecretPulledImages", Stage::Beta, true),
    ("MemoryQoS", Stage::Alpha, false),
    ("NodeLogQuery", Stage::Beta, false),
    ("NodeSwap", Stage::Stable, true),
    ("RotateKubeletServerCertificate", Stage::Beta, true),
    ("TopologyManagerPolicyAlphaOptions", Stage::Alpha, false),
    ("TopologyManagerPolicyBetaOptions", Stage::Beta, true),
];

/// Whether a feature is on, by the configuration's map or by default; what isn't known is off unless it's set.
#[must_use]
pub fn enabled(set: &BTreeMap<String, bool>, name: &str) -> bool {
    if let Some(on) = set.get(name) {
        return *on;
    }
    let Some((_, stage, default)) = GATES.iter().find(|(known, ..)| *known == name) else {
        return false;
    };
    let all = match stage {
        Stage::Alpha => set.get("AllAlpha"),
        Stage::Beta => set.get("AllBeta"),
        Stage::Stable => None,
    };
    all.copied().unwrap_or(*default)
}

/// Whether setting it has any effect here.
pub(super) fn is_known(name: &str) -> bool {
    matches!(name, "AllAlpha" | "AllBeta") || GATES.iter().any(|(known, ..)| *known == name)
}
