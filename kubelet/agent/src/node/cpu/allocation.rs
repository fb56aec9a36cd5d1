//! Picking CPUs by topology, in upstream's order.
//!
//! Packed: whole NUMA nodes and sockets that are free (whichever contains the other first), then whole free cores, then
//! single CPUs; among equals those with the fewest free CPUs left, so that large free parts stay large. Distributed: the
//! fewest NUMA nodes that have enough, the same from each, so that what is left is as even as can be.

use std::collections::{BTreeMap, BTreeSet};

use super::CpuSet;
use super::machine::{Machine, Place};
use crate::config::enabled;

/// There aren't that many; worded as upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not enough cpus available to satisfy request: requested={requested}, available={available}")]
pub struct NotEnough {
    /// How many were asked for.
    pub requested: usize,
    /// How many there are.
    pub available: usize,
}

/// Options of the static policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// `full-pcpus-only`: whole cores, or none at all.
    pub full_cores: bool,
    /// `distribute-cpus-across-numa`: the same from each NUMA node where it takes several.
    pub across_numa: bool,
    /// `distribute-cpus-across-cores`: one CPU of each core first.
    pub across_cores: bool,
    /// `strict-cpu-reservation`: the shared pool is without the reserved CPUs.
    pub strict_reservation: bool,
}

/// An option that can't be followed; worded as upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Not one of upstream's.
    #[error("unknown cpumanager policy option: {0:?}")]
    Unknown(String),
    /// One of upstream's that isn't here.
    #[error("cpumanager policy option {0:?} is not supported")]
    Unsupported(String),
    /// Its feature gate is off.
    #[error("CPU Manager Policy {group}-level Options not enabled, but option {name:?} provided")]
    Disabled {
        /// `Alpha` or `Beta`.
        group: &'static str,
        /// The option.
        name: String,
    },
    /// Not `true` or `false`.
    #[error("bad value for option {name:?}: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    Value {
        /// The option.
        name: String,
        /// Its value.
        value: String,
    },
    /// Two that exclude each other.
    #[error("static policy options {0} and {1} can not be used at the same time")]
    Exclusive(&'static str, &'static str),
}

impl Options {
    /// Reads `cpuManagerPolicyOptions`.
    ///
    /// # Errors
    /// The option that isn't known, enabled or valid, or that isn't built in.
    pub fn parse(
        options: &BTreeMap<String, String>,
        gates: &BTreeMap<String, bool>,
    ) -> Result<Self, OptionsError> {
        let mut read = Self::default();
        for (name, value) in options {
            let group = match name.as_str() {
                "full-pcpus-only" | "strict-cpu-reservation" => None,
                "distribute-cpus-across-numa" | "prefer-align-cpus-by-uncorecache" => Some("Beta"),
                "distribute-cpus-across-cores" | "align-by-socket" => Some("Alpha"),
                _ => return Err(OptionsError::Unknown(name.clone())),
            };
            if let Some(group) = group
                && !enabled(gates, &format!("CPUManagerPolicy{group}Options"))
            {
                return Err(OptionsError::Disabled {
                    group,
                    name: name.clone(),
                });
            }
            let on: bool = value.parse().map_err(|_| OptionsError::Value {
                name: name.clone(),
                value: value.clone(),
            })?;
            match name.as_str() {
                "full-pcpus-only" => read.full_cores = on,
                "strict-cpu-reservation" => read.strict_reservation = on,
                "distribute-cpus-across-numa" => read.across_numa = on,
                "distribute-cpus-across-cores" => read.across_cores = on,
                _ if on => return Err(OptionsError::Unsupported(name.clone())),
                _ => {}
            }
        }
        if read.full_cores && read.across_cores {
            return Err(OptionsError::Exclusive(
                "full-pcpus-only",
                "distribute-cpus-across-cores",
            ));
        }
        if read.across_numa && read.across_cores {
            return Err(OptionsError::Exclusive(
                "distribute-cpus-across-numa",
                "distribute-cpus-across-cores",
            ));
        }
        Ok(read)
    }
}

/// Picks `count` of the `available` CPUs.
///
/// # Errors
/// When there are fewer.
pub fn take(
    machine: &Machine,
    available: &CpuSet,
    count: usize,
    options: Options,
) -> Result<CpuSet, NotEnough> {
    if available.len() < count {
        return Err(NotEnough {
            requested: count,
            available: available.len(),
        });
    }
    if options.across_numa {
        let group = if options.full_cores {
            machine.cpus_per_core()
        } else {
            1
        };
        if let Some(taken) = distributed(machine, available, count, group, options) {
            return Ok(taken);
        }
    }
    Ok(packed(machine, available, count, options))
}

struct Taking<'a> {
    machine: &'a Machine,
    free: BTreeMap<u32, Place>,
    taken: BTreeSet<u32>,
    count: usize,
}

type Part = fn(&Place) -> u32;
const SOCKET: Part = |place| place.socket;
const NUMA: Part = |place| place.numa;
const CORE: Part = |place| place.core;

impl Taking<'_> {
    fn missing(&self) -> usize {
        self.count - self.taken.len()
    }

    fn take_all(&mut self, cpus: &[u32]) {
        for cpu in cpus {
            self.free.remove(cpu);
            self.taken.insert(*cpu);
        }
    }

    /// The parts among some free CPUs, those with fewest free CPUs first, then by number.
    fn parts(&self, part: Part, among: impl Fn(&Place) -> bool) -> Vec<u32> {
        let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
        for place in self.free.values().filter(|place| among(place)) {
            *sizes.entry(part(place)).or_default() += 1;
        }
        let mut parts: Vec<(usize, u32)> = sizes.into_iter().map(|(part, size)| (size, part)).collect();
        parts.sort_unstable();
        parts.into_iter().map(|(_, part)| part).collect()
    }

    fn free_in(&self, part: Part, which: u32) -> Vec<u32> {
        let cpus = self.free.iter().filter(|(_, place)| part(place) == which);
        cpus.map(|(cpu, _)| *cpu).collect()
    }

    fn is_whole(&self, part: Part, which: u32, free: usize) -> bool {
        self.machine
            .cpus
            .values()
            .filter(|place| part(place) == which)
            .count()
            == free
    }

    /// Sockets and NUMA nodes, the containing ones first, so that both are gone through in order of what contains them.
    fn ordered(&self, levels: &[Part]) -> Vec<u32> {
        let Some((last, above)) = levels.split_last() else {
            return Vec::new();
        };
        let mut found: Vec<Vec<(Part, u32)>> = vec![Vec::new()];
        for part in above {
            found = found
                .into_iter()
                .flat_map(|path| {
                    let inside = self.parts(*part, |place| path.iter().all(|(p, which)| p(place) == *which));
                    inside.into_iter().map(move |which| {
                        let mut path = path.clone();
                        path.push((*part, which));
                        path
                    })
                })
                .collect();
        }
        let inside = |path: Vec<(Part, u32)>| {
            self.parts(*last, |place| path.iter().all(|(p, which)| p(place) == *which))
        };
        found.into_iter().flat_map(inside).collect()
    }

    /// Takes parts that are free as a whole while they are needed as a whole.
    fn take_whole(&mut self, levels: &[Part]) {
        let Some(part) = levels.last() else { return };
        for which in self.ordered(levels) {
            let cpus = self.free_in(*part, which);
            if cpus.len() <= self.missing() && self.is_whole(*part, which, cpus.len()) {
                self.take_all(&cpus);
            }
        }
    }
}

/// NUMA nodes contain sockets where there are fewer of them.
fn levels(machine: &Machine) -> [Part; 2] {
    let numa = machine
        .cpus
        .values()
        .map(|place| place.numa)
        .collect::<BTreeSet<_>>()
        .len();
    if machine.sockets() >= numa {
        [NUMA, SOCKET]
    } else {
        [SOCKET, NUMA]
    }
}

fn packed(machine: &Machine, available: &CpuSet, count: usize, options: Options) -> CpuSet {
    let free = machine.cpus.iter().filter(|(cpu, _)| available.contains(**cpu));
    let mut taking = Taking {
        machine,
        free: free.map(|(cpu, place)| (*cpu, *place)).collect(),
        taken: BTreeSet::new(),
        count,
    };
    let [first, second] = levels(machine);
    taking.take_whole(&[first]);
    taking.take_whole(&[first, second]);
    if !options.across_cores {
        taking.take_whole(&[first, second, CORE]);
    }
    let cores = taking.ordered(&[first, second, CORE]);
    let mut cpus: Vec<(usize, u32)> = Vec::new();
    for (order, core) in cores.into_iter().enumerate() {
        for (index, cpu) in taking.free_in(CORE, core).into_iter().enumerate() {
            cpus.push((if options.across_cores { index } else { order }, cpu));
        }
    }
    if options.across_cores {
        cpus.sort_by_key(|(index, _)| *index);
    }
    let rest: Vec<u32> = cpus
        .into_iter()
        .map(|(_, cpu)| cpu)
        .take(taking.missing())
        .collect();
    taking.take_all(&rest);
    taking.taken.into_iter().collect()
}

/// Most NUMA nodes for which all combinations are tried; machines with more get their CPUs packed.
const MOST_NODES: usize = 12;

fn distributed(
    machine: &Machine,
    available: &CpuSet,
    count: usize,
    group: usize,
    options: Options,
) -> Option<CpuSet> {
    if count == 0 || !count.is_multiple_of(group) {
        return None;
    }
    let mut free: BTreeMap<u32, CpuSet> = BTreeMap::new();
    for node in machine.numa_nodes() {
        let cpus = machine
            .cpus_where(|place| place.numa == node)
            .intersection(available);
        if !cpus.is_empty() {
            free.insert(node, cpus);
        }
    }
    let nodes: Vec<u32> = free.keys().copied().collect();
    if nodes.len() > MOST_NODES {
        return None;
    }
    let size = |node: &u32| free[node].len() / group * group;
    for several in 1..=nodes.len() {
        let mut best: Option<(u128, BTreeMap<u32, usize>)> = None;
        for combination in combinations(&nodes, several) {
            if combination.iter().map(size).sum::<usize>() < count {
                continue;
            }
            let each = count / several / group * group;
            if combination.iter().any(|node| size(node) < each) {
                continue;
            }
            let Some(share) = shares(&combination, each, count - each * several, group, size) else {
                continue;
            };
            let left: Vec<usize> = nodes
                .iter()
                .map(|n| free[n].len() - share.get(n).unwrap_or(&0))
                .collect();
            let uneven = unevenness(&left);
            if best.as_ref().is_none_or(|(least, _)| uneven < *least) {
                best = Some((uneven, share));
            }
        }
        if let Some((_, share)) = best {
            let packed_only = Options {
                across_numa: false,
                ..options
            };
            let parts = share
                .iter()
                .map(|(node, cpus)| packed(machine, &free[node], *cpus, packed_only));
            return Some(parts.fold(CpuSet::new(), |all, part| all.union(&part)));
        }
    }
    None
}

/// `each` from every node, and what is left over group by group from those with most.
fn shares(
    nodes: &[u32],
    each: usize,
    mut left: usize,
    group: usize,
    size: impl Fn(&u32) -> usize,
) -> Option<BTreeMap<u32, usize>> {
    let mut share: BTreeMap<u32, usize> = nodes.iter().map(|node| (*node, each)).collect();
    while left > 0 {
        let (_, node) = nodes
            .iter()
            .filter(|node| size(node) >= share[node] + group)
            .map(|node| (size(node) - share[node], std::cmp::Reverse(*node)))
            .max()?;
        *share.get_mut(&node.0)? += group;
        left -= group;
    }
    Some(share)
}

/// Grows with the standard deviation.
fn unevenness(left: &[usize]) -> u128 {
    let (n, sum) = (left.len() as u128, left.iter().sum::<usize>() as u128);
    let squares: u128 = left.iter().map(|size| (*size as u128).pow(2)).sum();
    (n * squares).saturating_sub(sum * sum)
}

/// All subsets of a size, in the order of their numbers.
fn combinations(nodes: &[u32], size: usize) -> Vec<Vec<u32>> {
    let masks = 0_u32..1 << nodes.len();
    let mut all: Vec<Vec<u32>> = masks
        .filter(|mask| mask.count_ones() as usize == size)
        .map(|mask| {
            let chosen = nodes.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1);
            chosen.map(|(_, node)| *node).collect()
        })
        .collect();
    all.sort();
    all
}
