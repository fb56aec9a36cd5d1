//! Upstream's `cpu_manager_state`: its newest format is written; what kubelets of 1.18 to 1.34 wrote is read as well.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CpuSet;
use super::policy::Assignments;
use crate::node::checkpoint::{self, CheckpointError, checksum, checksum_of_text};

/// Its name in the kubelet's root directory.
pub const FILE: &str = "cpu_manager_state";

type Entries = BTreeMap<String, BTreeMap<String, String>>;

#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(rename = "policyName", default)]
    policy: String,
    #[serde(rename = "defaultCpuSet", alias = "defaultCPUSet", default)]
    shared: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: Entries,
}

#[derive(Serialize, Deserialize)]
struct File {
    #[serde(flatten)]
    kept: Kept,
    #[serde(default)]
    checksum: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(rename = "dataChecksum", default)]
    data_checksum: u32,
}

/// The shared pool and who has which CPUs, as of the policy that is configured; `None` without a file.
///
/// # Errors
/// When the file is damaged, or of another policy: then the administrator has to decide.
pub fn read(path: &Path, policy: &str) -> Result<Option<(CpuSet, Assignments)>, CheckpointError> {
    let Some(text) = checkpoint::read(path)? else {
        return Ok(None);
    };
    parse(&text, policy)
        .map(Some)
        .map_err(|reason| CheckpointError::corrupt(path, reason))
}

fn parse(text: &str, policy: &str) -> Result<(CpuSet, Assignments), String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let kept = if file.data.is_empty() {
        if file.checksum != 0 && !legacy_checksums(&file.kept).contains(&file.checksum) {
            return Err("checkpoint is corrupted".to_owned());
        }
        file.kept
    } else {
        if checksum_of_text(&file.data) != file.data_checksum {
            return Err("checkpoint is corrupted".to_owned());
        }
        serde_json::from_str(&file.data)
            .map_err(|error| format!("failed to deserialize cpu manager checkpoint data: {error}"))?
    };
    if kept.policy != policy {
        return Err(format!(
            "configured policy {policy:?} differs from state checkpoint policy {:?}",
            kept.policy
        ));
    }
    let shared = kept
        .shared
        .parse()
        .map_err(|error| format!("could not parse default CPU set {:?}: {error}", kept.shared))?;
    let mut assignments = Assignments::new();
    for (pod, containers) in kept.entries {
        for (container, text) in containers {
            let cpus = text.parse().map_err(|error| {
                format!("could not parse cpuset {text:?} for container {container:?} in pod {pod:?}: {error}")
            })?;
            assignments
                .entry(pod.clone())
                .or_default()
                .insert(container, cpus);
        }
    }
    Ok((shared, assignments))
}

/// Keeps the shared pool and who has which CPUs.
///
/// # Errors
/// When the file can't be written.
pub fn write(
    path: &Path,
    policy: &str,
    shared: &CpuSet,
    assignments: &Assignments,
) -> Result<(), CheckpointError> {
    let entries = assignments.iter().map(|(pod, containers)| {
        let containers = containers
            .iter()
            .map(|(name, cpus)| (name.clone(), cpus.to_string()));
        (pod.clone(), containers.collect())
    });
    let kept = Kept {
        policy: policy.to_owned(),
        shared: shared.to_string(),
        entries: entries.collect(),
    };
    let failed = |error: serde_json::Error| CheckpointError::corrupt(path, error.to_string());
    let data = serde_json::to_string(&kept).map_err(failed)?;
    let file = File {
        // Older kubelets take none for "not given".
        checksum: 0,
        data_checksum: checksum_of_text(&data),
        data,
        kept,
    };
    checkpoint::write(path, &serde_json::to_string(&file).map_err(failed)?)
}

/// What older kubelets wrote: the type had two names in the course of time.
fn legacy_checksums(kept: &Kept) -> [u32; 2] {
    let entries: Vec<String> = kept
        .entries
        .iter()
        .map(|(pod, containers)| {
            let inner: Vec<String> = containers
                .iter()
                .map(|(name, cpus)| format!("{name}:{cpus}"))
                .collect();
            format!("{pod}:map[{}]", inner.join(" "))
        })
        .collect();
    ["CPUManagerCheckpoint", "CPUManagerCheckpointV2"].map(|name| {
        checksum(&format!(
            "(*state.{name}){{PolicyName:(string){} DefaultCPUSet:(string){} \
             Entries:(map[string]map[string]string)map[{}] Checksum:(checksum.Checksum)0}}",
            kept.policy,
            kept.shared,
            entries.join(" ")
        ))
    })
}
