//! On which NUMA nodes containers' memory is: the policies `None` and `Static` of upstream's memory manager.
//!
//! With `Static`, every container of a Guaranteed pod has its memory and huge pages set aside on the fewest nodes that
//! have enough, as agreed with [`super::topology`]; its `cpuset_mems` are these nodes. A node serves either containers
//! that are on it alone, or one group of several nodes that are then always used together, so that what is set aside can
//! be had. [`state`] reads and writes upstream's `memory_manager_state`.

pub mod state;

use std::collections::{BTreeMap, BTreeSet};

use controlplane_api::Quantity;

use super::cpu::Machine;
use super::resources::Amounts;
use super::topology::{Hint, NodeMask, aligned_hints};
use crate::config::MemoryReservation;

/// Bytes of one resource on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Table {
    /// In all; of memory, without what huge pages have.
    pub total: u64,
    /// Not for pods.
    pub system_reserved: u64,
    /// For pods.
    pub allocatable: u64,
    /// Of that, set aside.
    pub reserved: u64,
    /// Of that, left.
    pub free: u64,
}

/// One NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// How many blocks are on it.
    pub assignments: u64,
    /// Its resources: `memory`, `hugepages-2Mi`, ...
    pub tables: BTreeMap<String, Table>,
    /// The nodes that it is used together with, itself among them.
    pub cells: BTreeSet<u32>,
}

/// Bytes set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Where.
    pub nodes: BTreeSet<u32>,
    /// Of what.
    pub resource: String,
    /// How many.
    pub size: u64,
}

/// All nodes by their numbers.
pub type Nodes = BTreeMap<u32, Node>;
/// Pods' containers and what is set aside for them.
pub type Assignments = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// Why memory can't be set aside, or the policy can't start; worded as upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The reservations of the nodes don't add up.
    #[error(
        "the total amount \"{given}\" of type \"{resource}\" is not equal to the value \"{reserved}\" determined by Node \
         Allocatable feature"
    )]
    Reservations {
        /// The resource.
        resource: String,
        /// What they add up to.
        given: Quantity,
        /// What is reserved.
        reserved: Quantity,
    },
    /// A reservation on a node that isn't there, or of more than it has.
    #[error("[memorymanager] cannot reserve {1} bytes of {2} on NUMA node {0}")]
    NoSuchNode(u32, u64, String),
    /// There is no set of nodes with enough.
    #[error(
        "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available"
    )]
    NotEnough,
    /// What was kept isn't of this machine.
    #[error("[memorymanager] the expected machine state is different from the real one")]
    OtherMachine,
}

/// The static policy with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Static {
    nodes: Nodes,
    assignments: Assignments,
    /// What of a pod's init containers is set aside, by the nodes, for its other containers.
    reusable: BTreeMap<String, BTreeMap<(BTreeSet<u32>, String), u64>>,
}

/// What counts as memory here.
fn is_memory(resource: &str) -> bool {
    resource == "memory" || resource.starts_with("hugepages-")
}

/// What of a container's requests counts here.
#[must_use]
pub fn wanted(requests: &Amounts) -> BTreeMap<String, u64> {
    let memory = requests.iter().filter(|(name, _)| is_memory(name));
    let bytes = memory.map(|(name, amount)| (name.clone(), u64::try_from(amount.value()).unwrap_or(0)));
    bytes.filter(|(_, size)| *size > 0).collect()
}

impl Static {
    /// Nothing set aside. `reservations` have to add up to what is `reserved` on the node: for the system, for
    /// Kubernetes' daemons and for the hard eviction threshold.
    ///
    /// # Errors
    /// When they don't, or name what the machine hasn't.
    pub fn new(
        machine: &Machine,
        reservations: &[MemoryReservation],
        reserved: &Amounts,
    ) -> Result<Self, MemoryError> {
        let mut by_node: BTreeMap<(u32, String), u64> = BTreeMap::new();
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for one in reservations {
            for (resource, text) in &one.limits {
                let bytes = text.parse::<Quantity>().map_or(0, |amount| amount.value());
                let bytes = u64::try_from(bytes).unwrap_or(0);
                *by_node
                    .entry((u32::try_from(one.numa_node).unwrap_or(u32::MAX), resource.clone()))
                    .or_default() += bytes;
                *sums.entry(resource.clone()).or_default() += bytes;
            }
        }
        let of_node = wanted(reserved);
        let all: BTreeSet<&String> = sums.keys().chain(of_node.keys()).collect();
        for resource in all {
            let amount = |of: &BTreeMap<String, u64>| of.get(resource).copied().unwrap_or(0);
            if amount(&sums) != amount(&of_node) {
                let quantity = |bytes: u64| Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
                return Err(MemoryError::Reservations {
                    resource: resource.clone(),
                    given: quantity(amount(&sums)),
                    reserved: quantity(amount(&of_node)),
                });
            }
        }
        let mut nodes = fresh(machine);
        for ((number, resource), bytes) in by_node {
            let table = nodes
                .get_mut(&number)
                .and_then(|node| node.tables.get_mut(&resource));
            let table = table.filter(|table| table.total >= bytes);
            let table = table.ok_or_else(|| MemoryError::NoSuchNode(number, bytes, resource.clone()))?;
            table.system_reserved = bytes;
            table.allocatable = table.total - bytes;
            table.free = table.allocatable;
        }
        Ok(Self {
            nodes,
            assignments: Assignments::new(),
            reusable: BTreeMap::new(),
        })
    }

    /// Goes on from what was kept.
    ///
    /// # Errors
    /// When the machine or what is reserved was another, or the blocks don't add up.
    pub fn restore(mut self, nodes: &Nodes, assignments: Assignments) -> Result<Self, MemoryError> {
        if nodes.is_empty() && assignments.is_empty() {
            return Ok(self);
        }
        // Blocks may be shared between an init container and others of its pod, so the nodes count, not the blocks.
        let shape = |nodes: &Nodes| -> Vec<(u32, String, u64, u64)> {
            let tables = nodes
                .iter()
                .flat_map(|(number, node)| node.tables.iter().map(move |table| (*number, table)));
            tables
                .map(|(number, (name, t))| (number, name.clone(), t.total, t.system_reserved))
                .collect()
        };
        let whole = |table: &Table| table.free.checked_add(table.reserved) == Some(table.allocatable);
        if shape(nodes) != shape(&self.nodes) || !nodes.values().all(|node| node.tables.values().all(whole)) {
            return Err(MemoryError::OtherMachine);
        }
        self.nodes = nodes.clone();
        self.assignments = assignments;
        Ok(self)
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// What is set aside for whom.
    #[must_use]
    pub fn assignments(&self) -> &Assignments {
        &self.assignments
    }

    /// The nodes that a container's memory is on; `None`: all.
    #[must_use]
    pub fn nodes_of(&self, uid: &str, container: &str) -> Option<BTreeSet<u32>> {
        let blocks = self.assignments.get(uid)?.get(container)?;
        Some(
            blocks
                .iter()
                .flat_map(|block| block.nodes.iter().copied())
                .collect(),
        )
    }

    /// Sets a container's memory aside, where it was agreed on or on the fewest nodes. Whoever has some keeps it.
    /// `guaranteed` is whether the pod's class is; others get nothing of their own.
    ///
    /// # Errors
    /// When no set of nodes has enough.
    pub fn allocate(
        &mut self,
        (uid, container): (&str, &str),
        guaranteed: bool,
        init: bool,
        wanted: &BTreeMap<String, u64>,
        affinity: Option<NodeMask>,
    ) -> Result<(), MemoryError> {
        let there = self
            .assignments
            .get(uid)
            .is_some_and(|pod| pod.contains_key(container));
        if !guaranteed || wanted.is_empty() || there {
            return Ok(());
        }
        let hints = self.hints_for(uid, wanted);
        let inside = |mask: NodeMask| affinity.is_none_or(|wish| wish.and(mask) == wish);
        let agreed = hints
            .iter()
            .find(|hint| affinity.is_some() && hint.nodes == affinity);
        let wider = hints.iter().find(|hint| hint.nodes.is_some_and(inside));
        let mask = agreed
            .or(wider)
            .and_then(|hint| hint.nodes)
            .ok_or(MemoryError::NotEnough)?;
        let nodes: BTreeSet<u32> = mask.nodes().collect();
        self.reusable.retain(|pod, _| pod == uid);
        let mut blocks = Vec::new();
        for (resource, size) in wanted {
            let reusable = self.reusable.entry(uid.to_owned()).or_default();
            let spare = reusable.entry((nodes.clone(), resource.clone())).or_default();
            let reused = (*spare).min(*size);
            if init {
                *spare = (*spare).max(*size);
            } else {
                *spare -= reused;
            }
            // What is reused is set aside already, and given back with the block of the init container.
            let own = size - reused;
            self.set_aside(&nodes, resource, own);
            blocks.push(Block {
                nodes: nodes.clone(),
                resource: resource.clone(),
                size: own,
            });
        }
        let pod = self.assignments.entry(uid.to_owned()).or_default();
        pod.insert(container.to_owned(), blocks);
        Ok(())
    }

    fn set_aside(&mut self, nodes: &BTreeSet<u32>, resource: &str, mut size: u64) {
        for number in nodes {
            let Some(node) = self.nodes.get_mut(number) else {
                continue;
            };
            node.assignments += 1;
            node.cells.clone_from(nodes);
            let Some(table) = node.tables.get_mut(resource) else {
                continue;
            };
            let part = table.free.min(size);
            table.free -= part;
            table.reserved += part;
            size -= part;
        }
    }

    /// Gives back what a container has; what it has from an init container goes when the pod's last container does.
    pub fn release(&mut self, uid: &str, container: &str) {
        let Some(pod) = self.assignments.get_mut(uid) else {
            return;
        };
        let Some(blocks) = pod.get(container).cloned() else {
            return;
        };
        // Others may use what this one set aside: all of a pod is given back together.
        let shared = self.reusable.contains_key(uid) || pod.values().flatten().any(|block| block.size == 0);
        if shared && pod.len() > 1 {
            let name = container.to_owned();
            let rest = pod.keys().find(|other| **other != name).cloned();
            pod.remove(container);
            if let Some(heir) = rest.and_then(|rest| pod.get_mut(&rest)) {
                heir.extend(blocks);
            }
            return;
        }
        pod.remove(container);
        if pod.is_empty() {
            self.assignments.remove(uid);
            self.reusable.remove(uid);
        }
        for block in blocks {
            self.give_back(&block);
        }
    }

    fn give_back(&mut self, block: &Block) {
        let mut size = block.size;
        for number in &block.nodes {
            let Some(node) = self.nodes.get_mut(number) else {
                continue;
            };
            node.assignments = node.assignments.saturating_sub(1);
            if node.assignments == 0 {
                node.cells = BTreeSet::from([*number]);
            }
            let Some(table) = node.tables.get_mut(&block.resource) else {
                continue;
            };
            let part = table.reserved.min(size);
            table.free += part;
            table.reserved -= part;
            size -= part;
        }
    }

    /// Gives back what pods have that aren't there any more.
    pub fn release_all_but(&mut self, there: impl Fn(&str) -> bool) {
        let gone: Vec<(String, Vec<String>)> = self
            .assignments
            .iter()
            .filter(|(uid, _)| !there(uid))
            .map(|(uid, pod)| (uid.clone(), pod.keys().cloned().collect()))
            .collect();
        for (uid, containers) in gone {
            for container in containers {
                self.release(&uid, &container);
            }
        }
    }

    /// On which nodes a container's memory could be, for each resource; `None` for one without wishes.
    #[must_use]
    pub fn hints(
        &self,
        uid: &str,
        container: &str,
        guaranteed: bool,
        wanted: &BTreeMap<String, u64>,
    ) -> Option<Vec<Hint>> {
        if !guaranteed || wanted.is_empty() {
            return None;
        }
        if let Some(nodes) = self.nodes_of(uid, container) {
            return Some(vec![Hint {
                nodes: Some(nodes.into_iter().collect()),
                preferred: true,
            }]);
        }
        Some(self.hints_for(uid, wanted))
    }

    fn hints_for(&self, uid: &str, wanted: &BTreeMap<String, u64>) -> Vec<Hint> {
        let all: BTreeSet<u32> = self.nodes.keys().copied().collect();
        let sum = |mask: NodeMask, resource: &String, of: fn(&Table) -> u64| -> u64 {
            let nodes = mask
                .nodes()
                .filter_map(|node| self.nodes.get(&node)?.tables.get(resource));
            nodes.map(of).fold(0, u64::saturating_add)
        };
        let spare = |mask: NodeMask, resource: &String| {
            let key = (mask.nodes().collect(), resource.clone());
            self.reusable
                .get(uid)
                .and_then(|pod| pod.get(&key))
                .copied()
                .unwrap_or(0)
        };
        aligned_hints(
            &all,
            |mask| {
                wanted
                    .iter()
                    .all(|(name, size)| sum(mask, name, |table| table.allocatable) >= *size)
            },
            |mask| {
                let enough = |(name, size): (&String, &u64)| {
                    sum(mask, name, |table| table.free).saturating_add(spare(mask, name)) >= *size
                };
                self.is_usable(mask) && wanted.iter().all(enough)
            },
        )
    }

    /// Whether all of the nodes are unused, or used together just like this.
    fn is_usable(&self, mask: NodeMask) -> bool {
        let together: BTreeSet<u32> = mask.nodes().collect();
        let free_or_same = |node: &Node| node.assignments == 0 || node.cells == together;
        together
            .iter()
            .filter_map(|number| self.nodes.get(number))
            .all(free_or_same)
    }
}

fn fresh(machine: &Machine) -> Nodes {
    let mut nodes = Nodes::new();
    for (number, memory) in &machine.memory {
        let mut node = Node {
            cells: BTreeSet::from([*number]),
            ..Node::default()
        };
        let mut in_pages = 0_u64;
        let table = |total: u64| Table {
            total,
            allocatable: total,
            free: total,
            ..Table::default()
        };
        for (size, bytes) in machine.hugepages.get(number).into_iter().flatten() {
            let (_, name) = super::cgroups::limits::page_size(*size);
            node.tables.insert(name, table(*bytes));
            in_pages = in_pages.saturating_add(*bytes);
        }
        node.tables
            .insert("memory".to_owned(), table(memory.saturating_sub(in_pages)));
        nodes.insert(*number, node);
    }
    nodes
}

#[cfg(test)]
mod tests;
