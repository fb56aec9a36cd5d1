//! What the machine's CPUs and memory are, read once from `/sys`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use super::CpuSet;

/// Where a logical CPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The package.
    pub socket: u32,
    /// The NUMA node.
    pub numa: u32,
    /// The core, unique in the machine.
    pub core: u32,
}

/// The machine as allocators see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Every logical CPU that is online.
    pub cpus: BTreeMap<u32, Place>,
    /// Bytes of memory of every NUMA node.
    pub memory: BTreeMap<u32, u64>,
    /// Bytes of huge pages of every NUMA node by the size of a page in bytes.
    pub hugepages: BTreeMap<u32, BTreeMap<u64, u64>>,
}

impl Machine {
    /// All CPUs.
    #[must_use]
    pub fn all(&self) -> CpuSet {
        self.cpus.keys().copied().collect()
    }

    /// Those CPUs for which something holds of their place.
    pub fn cpus_where(&self, holds: impl Fn(&Place) -> bool) -> CpuSet {
        let cpus = self.cpus.iter().filter(|(_, place)| holds(place));
        cpus.map(|(cpu, _)| *cpu).collect()
    }

    /// The numbers of all NUMA nodes.
    #[must_use]
    pub fn numa_nodes(&self) -> BTreeSet<u32> {
        let of_cpus = self.cpus.values().map(|place| place.numa);
        of_cpus.chain(self.memory.keys().copied()).collect()
    }

    /// Logical CPUs per core; 1 without any.
    #[must_use]
    pub fn cpus_per_core(&self) -> usize {
        let cores: BTreeSet<u32> = self.cpus.values().map(|place| place.core).collect();
        (self.cpus.len() / cores.len().max(1)).max(1)
    }

    /// How many sockets.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.cpus
            .values()
            .map(|place| place.socket)
            .collect::<BTreeSet<_>>()
            .len()
    }
}

/// Reads the topology below `sys`, which is `/sys` but for tests. What a container's `/sys` hides is one socket and one
/// NUMA node. `memory` is what node 0 has where the kernel has no NUMA.
///
/// # Errors
/// When the list of online CPUs can't be read.
pub fn read_machine(sys: &Path, memory: u64) -> io::Result<Machine> {
    let list = fs::read_to_string(sys.join("devices/system/cpu/online"))?;
    let online: CpuSet = parse_list(&list)?;
    let nodes = read_nodes(&sys.join("devices/system/node"));
    let mut cores = BTreeMap::new();
    let mut machine = Machine::default();
    for cpu in online.iter() {
        let topology = sys.join(format!("devices/system/cpu/cpu{cpu}/topology"));
        let socket = number(&topology.join("physical_package_id")).unwrap_or(0);
        let core = number(&topology.join("core_id")).unwrap_or(u64::from(cpu));
        // A core's own number is unique in its socket only, and its first CPU is in the machine.
        let core = *cores.entry((socket, core)).or_insert(cpu);
        let numa = nodes
            .iter()
            .find(|(_, cpus)| cpus.contains(cpu))
            .map_or(0, |(node, _)| *node);
        let socket = u32::try_from(socket).unwrap_or(0);
        machine.cpus.insert(cpu, Place { socket, numa, core });
    }
    for node in nodes.keys() {
        let dir = sys.join(format!("devices/system/node/node{node}"));
        if let Some(bytes) = memory_of(&dir) {
            machine.memory.insert(*node, bytes);
        }
        machine.hugepages.insert(*node, hugepages_of(&dir));
    }
    if machine.memory.is_empty() {
        machine.memory.insert(0, memory);
        machine.hugepages.insert(0, hugepages_of(&sys.join("kernel/mm")));
    }
    Ok(machine)
}

fn parse_list(text: &str) -> io::Result<CpuSet> {
    text.trim()
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn number(path: &Path) -> Option<u64> {
    // Cloud machines report -1 for what they don't know.
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn read_nodes(dir: &Path) -> BTreeMap<u32, CpuSet> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let node = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let cpus = fs::read_to_string(entry.path().join("cpulist")).ok()?;
            Some((node, parse_list(&cpus).ok()?))
        })
        .collect()
}

fn memory_of(node: &Path) -> Option<u64> {
    let text = fs::read_to_string(node.join("meminfo")).ok()?;
    let line = text.lines().find(|line| line.contains("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().rev().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn hugepages_of(node: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(node.join("hugepages"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let size: u64 = name
                .to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let pages = number(&entry.path().join("nr_hugepages"))?;
            Some((size * 1024, pages.saturating_mul(size * 1024)))
        })
        .collect()
}
