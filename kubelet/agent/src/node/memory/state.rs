//! Upstream's `memory_manager_state`, in its newest format.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Assignments, Block, Node, Nodes, Table};
use crate::node::checkpoint::{self, CheckpointError, checksum_of_text};

/// Its name in the kubelet's root directory.
pub const FILE: &str = "memory_manager_state";

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    policy_name: String,
    #[serde(default)]
    /// By number; a flattened field can have no numbers as keys.
    machine_state: BTreeMap<String, KeptNode>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<String, BTreeMap<String, Vec<KeptBlock>>>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptNode {
    number_of_assignments: u64,
    memory_map: BTreeMap<String, KeptTable>,
    #[serde(default)]
    cells: Vec<u32>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptTable {
    total: u64,
    system_reserved: u64,
    allocatable: u64,
    reserved: u64,
    free: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct KeptBlock {
    #[serde(rename = "numaAffinity")]
    nodes: BTreeSet<u32>,
    #[serde(rename = "type")]
    resource: String,
    size: u64,
}

#[derive(Serialize, Deserialize)]
struct File {
    #[serde(flatten)]
    kept: Kept,
    #[serde(default)]
    checksum: u32,
    #[serde(default)]
    data: String,
    #[serde(rename = "dataChecksum", default)]
    data_checksum: u32,
}

/// The nodes and who has what, as of the policy that is configured; `None` without a file.
///
/// # Errors
/// When the file is damaged, of an older format, or of another policy.
pub fn read(path: &Path, policy: &str) -> Result<Option<(Nodes, Assignments)>, CheckpointError> {
    let Some(text) = checkpoint::read(path)? else {
        return Ok(None);
    };
    let corrupt = |reason: String| CheckpointError::corrupt(path, reason);
    let file: File = serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
    if checksum_of_text(&file.data) != file.data_checksum {
        return Err(corrupt("checkpoint is corrupted".to_owned()));
    }
    let kept: Kept = serde_json::from_str(&file.data).map_err(|error| {
        corrupt(format!(
            "failed to deserialize memory manager checkpoint data: {error}"
        ))
    })?;
    if kept.policy_name != policy {
        let found = &kept.policy_name;
        return Err(corrupt(format!(
            "[memorymanager] configured policy {policy:?} differs from state checkpoint policy {found:?}"
        )));
    }
    let mut nodes = Nodes::new();
    for (name, node) in kept.machine_state {
        let number = name
            .parse()
            .map_err(|_| corrupt(format!("{name:?} is no NUMA node")))?;
        nodes.insert(number, from_kept(number, node));
    }
    let entries = kept.entries.into_iter().map(|(uid, pod)| {
        let containers = pod.into_iter().map(|(name, blocks)| {
            let blocks = blocks.into_iter().map(|block| Block {
                nodes: block.nodes,
                resource: block.resource,
                size: block.size,
            });
            (name, blocks.collect())
        });
        (uid, containers.collect())
    });
    Ok(Some((nodes, entries.collect())))
}

fn from_kept(number: u32, node: KeptNode) -> Node {
    let tables = node.memory_map.into_iter().map(|(name, table)| {
        let table = Table {
            total: table.total,
            system_reserved: table.system_reserved,
            allocatable: table.allocatable,
            reserved: table.reserved,
            free: table.free,
        };
        (name, table)
    });
    Node {
        assignments: node.number_of_assignments,
        tables: tables.collect(),
        cells: if node.cells.is_empty() {
            BTreeSet::from([number])
        } else {
            node.cells.into_iter().collect()
        },
    }
}

/// Keeps the nodes and who has what.
///
/// # Errors
/// When the file can't be written.
pub fn write(
    path: &Path,
    policy: &str,
    nodes: &Nodes,
    assignments: &Assignments,
) -> Result<(), CheckpointError> {
    let machine_state = nodes.iter().map(|(number, node)| {
        let tables = node.tables.iter().map(|(name, table)| {
            let table = KeptTable {
                total: table.total,
                system_reserved: table.system_reserved,
                allocatable: table.allocatable,
                reserved: table.reserved,
                free: table.free,
            };
            (name.clone(), table)
        });
        let kept = KeptNode {
            number_of_assignments: node.assignments,
            memory_map: tables.collect(),
            cells: node.cells.iter().copied().collect(),
        };
        (number.to_string(), kept)
    });
    let entries = assignments.iter().map(|(uid, pod)| {
        let containers = pod.iter().map(|(name, blocks)| {
            let blocks = blocks.iter().map(|block| KeptBlock {
                nodes: block.nodes.clone(),
                resource: block.resource.clone(),
                size: block.size,
            });
            (name.clone(), blocks.collect())
        });
        (uid.clone(), containers.collect())
    });
    let kept = Kept {
        policy_name: policy.to_owned(),
        machine_state: machine_state.collect(),
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
