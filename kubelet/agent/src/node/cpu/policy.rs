//! Who has which CPUs for himself, and what is left for everybody.

use std::collections::BTreeMap;

use super::allocation::{NotEnough, Options, take};
use super::{CpuSet, Machine};
use crate::node::topology::{Hint, NodeMask, aligned_hints};

/// What a container asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask<'a> {
    /// The pod.
    pub uid: &'a str,
    /// The container's name.
    pub container: &'a str,
    /// Thousandths of CPUs requested.
    pub milli_cpus: i64,
    /// Whether the pod's class is Guaranteed.
    pub guaranteed: bool,
    /// Whether it's an init container that ends before the others start, so that they get its CPUs.
    pub init: bool,
}

impl Ask<'_> {
    /// Whole CPUs of its own; 0 for those on the shared pool.
    #[must_use]
    pub fn exclusive(&self) -> usize {
        if !self.guaranteed || self.milli_cpus <= 0 || self.milli_cpus % 1000 != 0 {
            return 0;
        }
        usize::try_from(self.milli_cpus / 1000).unwrap_or(0)
    }
}

/// Why a container can't have its CPUs, or the policy can't start; worded as upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// Nothing is reserved.
    #[error("the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero")]
    NothingReserved,
    /// More is reserved than there is.
    #[error(
        "[cpumanager] unable to reserve the required amount of CPUs (size of {reserved} did not equal {wanted})"
    )]
    Reserve {
        /// Those that there are.
        reserved: CpuSet,
        /// How many were wanted.
        wanted: usize,
    },
    /// `full-pcpus-only`, and not whole cores.
    #[error("SMT Alignment Error: requested {requested} cpus not multiple cpus per core = {per_core}")]
    Alignment {
        /// How many were asked for.
        requested: usize,
        /// Logical CPUs of a core.
        per_core: usize,
    },
    /// `full-pcpus-only`, and not enough whole cores.
    #[error(
        "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {available}, requested CPUs = \
         {requested}, CPUs per core = {per_core}"
    )]
    Cores {
        /// How many were asked for.
        requested: usize,
        /// Logical CPUs of a core.
        per_core: usize,
        /// CPUs of free cores.
        available: usize,
    },
    /// There aren't enough.
    #[error(transparent)]
    NotEnough(#[from] NotEnough),
    /// The state isn't of this machine.
    #[error("{0}")]
    State(String),
}

impl CpuError {
    /// The reason with which the pod is refused.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Alignment { .. } | Self::Cores { .. } => "SMTAlignmentError",
            _ => "UnexpectedAdmissionError",
        }
    }
}

/// Pods' containers and the CPUs that they have for themselves.
pub type Assignments = BTreeMap<String, BTreeMap<String, CpuSet>>;

/// The static policy with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Static {
    machine: Machine,
    options: Options,
    reserved: CpuSet,
    shared: CpuSet,
    assignments: Assignments,
    /// CPUs of a pod's init containers, for the containers after them.
    reusable: BTreeMap<String, CpuSet>,
}

impl Static {
    /// A policy with nothing assigned. `explicit` is `reservedSystemCPUs`; without it, the ceiling of `reserved_milli`
    /// CPUs is picked.
    ///
    /// # Errors
    /// When nothing or too much is reserved.
    pub fn new(
        machine: Machine,
        options: Options,
        reserved_milli: i64,
        explicit: Option<CpuSet>,
    ) -> Result<Self, CpuError> {
        let wanted = match &explicit {
            Some(cpus) => cpus.len(),
            None => usize::try_from(reserved_milli.max(0)).unwrap_or(0).div_ceil(1000),
        };
        if wanted == 0 {
            return Err(CpuError::NothingReserved);
        }
        let all = machine.all();
        let reserved = match explicit {
            Some(cpus) => cpus.intersection(&all),
            None => take(&machine, &all, wanted, options).unwrap_or_else(|_| all.clone()),
        };
        if reserved.len() != wanted {
            return Err(CpuError::Reserve { reserved, wanted });
        }
        let shared = if options.strict_reservation {
            all.difference(&reserved)
        } else {
            all
        };
        Ok(Self {
            machine,
            options,
            reserved,
            shared,
            assignments: Assignments::new(),
            reusable: BTreeMap::new(),
        })
    }

    /// Goes on from what was kept.
    ///
    /// # Errors
    /// When it isn't consistent, or not of this machine.
    pub fn restore(mut self, shared: CpuSet, assignments: Assignments) -> Result<Self, CpuError> {
        if shared.is_empty() && assignments.is_empty() {
            return Ok(self);
        }
        // With strict reservation pods may have all the others, and nothing is shared.
        if shared.is_empty() && !self.options.strict_reservation {
            return Err(CpuError::State("default cpuset cannot be empty".to_owned()));
        }
        if self.options.strict_reservation {
            if !self.reserved.intersection(&shared).is_empty() {
                return Err(CpuError::State(format!(
                    "some of strictly reserved cpus: \"{}\" are present in defaultCpuSet: \"{shared}\"",
                    self.reserved.intersection(&shared)
                )));
            }
        } else if !self.reserved.is_subset(&shared) {
            return Err(CpuError::State(format!(
                "not all reserved cpus: \"{}\" are present in defaultCpuSet: \"{shared}\"",
                self.reserved
            )));
        }
        let mut known = shared.clone();
        for (pod, containers) in &assignments {
            for (container, cpus) in containers {
                if !shared.intersection(cpus).is_empty() {
                    return Err(CpuError::State(format!(
                        "pod: {pod}, container: {container} cpuset: \"{cpus}\" overlaps with default cpuset \"{shared}\""
                    )));
                }
                known = known.union(cpus);
            }
        }
        let mut all = self.machine.all();
        if self.options.strict_reservation {
            all = all.difference(&self.reserved);
        }
        if known != all {
            return Err(CpuError::State(format!(
                "current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{known}\""
            )));
        }
        self.shared = shared;
        self.assignments = assignments;
        Ok(self)
    }

    /// The shared pool.
    #[must_use]
    pub fn shared(&self) -> &CpuSet {
        &self.shared
    }

    /// Who has which for himself.
    #[must_use]
    pub fn assignments(&self) -> &Assignments {
        &self.assignments
    }

    /// All CPUs that pods could have for themselves.
    #[must_use]
    pub fn allocatable(&self) -> CpuSet {
        self.machine.all().difference(&self.reserved)
    }

    /// What a container may run on now.
    #[must_use]
    pub fn cpus_of(&self, uid: &str, container: &str) -> &CpuSet {
        let own = self.assignments.get(uid).and_then(|pod| pod.get(container));
        own.unwrap_or(&self.shared)
    }

    fn available(&self, uid: &str) -> CpuSet {
        let free = self.shared.difference(&self.reserved);
        self.reusable
            .get(uid)
            .map_or(free.clone(), |reusable| free.union(reusable))
    }

    /// Gives a container its CPUs, within the NUMA nodes that were agreed on as far as they have enough. One that asks
    /// for none, or has some already, changes nothing.
    ///
    /// # Errors
    /// When there aren't enough, or not whole cores with `full-pcpus-only`.
    pub fn allocate(&mut self, ask: &Ask<'_>, affinity: Option<NodeMask>) -> Result<(), CpuError> {
        let count = ask.exclusive();
        if count == 0 {
            return Ok(());
        }
        if let Some(cpus) = self
            .assignments
            .get(ask.uid)
            .and_then(|pod| pod.get(ask.container))
        {
            let cpus = cpus.clone();
            self.note_reusable(ask, &cpus);
            return Ok(());
        }
        let available = self.available(ask.uid);
        if self.options.full_cores {
            self.check_cores(count, &available)?;
        }
        let mut taken = CpuSet::new();
        if let Some(affinity) = affinity {
            let aligned = available.intersection(&self.machine.cpus_where(|place| affinity.has(place.numa)));
            taken = take(&self.machine, &aligned, count.min(aligned.len()), self.options)?;
        }
        let rest = take(
            &self.machine,
            &available.difference(&taken),
            count - taken.len(),
            self.options,
        )?;
        let taken = taken.union(&rest);
        self.shared = self.shared.difference(&taken);
        self.note_reusable(ask, &taken);
        let pod = self.assignments.entry(ask.uid.to_owned()).or_default();
        pod.insert(ask.container.to_owned(), taken);
        Ok(())
    }

    fn check_cores(&self, requested: usize, available: &CpuSet) -> Result<(), CpuError> {
        let per_core = self.machine.cpus_per_core();
        if !requested.is_multiple_of(per_core) {
            return Err(CpuError::Alignment { requested, per_core });
        }
        let mut cores: BTreeMap<u32, usize> = BTreeMap::new();
        for (cpu, place) in &self.machine.cpus {
            if available.contains(*cpu) {
                *cores.entry(place.core).or_default() += 1;
            }
        }
        let whole: usize = cores.values().filter(|free| **free == per_core).sum();
        if whole < requested {
            return Err(CpuError::Cores {
                requested,
                per_core,
                available: whole,
            });
        }
        Ok(())
    }

    fn note_reusable(&mut self, ask: &Ask<'_>, cpus: &CpuSet) {
        // Pods are admitted one after the other, so that only this one's matter.
        self.reusable.retain(|uid, _| uid == ask.uid);
        let reusable = self.reusable.entry(ask.uid.to_owned()).or_default();
        *reusable = if ask.init {
            reusable.union(cpus)
        } else {
            reusable.difference(cpus)
        };
    }

    /// Takes a container's CPUs back, but those that another container of its pod has as well. Returns whether the
    /// shared pool changed.
    pub fn release(&mut self, uid: &str, container: &str) -> bool {
        let Some(pod) = self.assignments.get_mut(uid) else {
            return false;
        };
        let Some(cpus) = pod.remove(container) else {
            return false;
        };
        let of_siblings = pod.values().fold(CpuSet::new(), |all, one| all.union(one));
        if pod.is_empty() {
            self.assignments.remove(uid);
            self.reusable.remove(uid);
        }
        let back = cpus.difference(&of_siblings);
        self.shared = self.shared.union(&back);
        !back.is_empty()
    }

    /// Takes back what pods have that aren't there any more. Returns whether the shared pool changed.
    pub fn release_all_but(&mut self, there: impl Fn(&str) -> bool) -> bool {
        let gone: Vec<(String, String)> = self
            .assignments
            .iter()
            .filter(|(uid, _)| !there(uid))
            .flat_map(|(uid, pod)| pod.keys().map(|name| (uid.clone(), name.clone())))
            .collect();
        let mut changed = false;
        for (uid, name) in gone {
            changed |= self.release(&uid, &name);
        }
        changed
    }

    /// On which NUMA nodes a container's CPUs could be; `None` for one without wishes.
    #[must_use]
    pub fn hints(&self, ask: &Ask<'_>) -> Option<Vec<Hint>> {
        let count = ask.exclusive();
        if count == 0 {
            return None;
        }
        let nodes = self.machine.numa_nodes();
        if let Some(cpus) = self
            .assignments
            .get(ask.uid)
            .and_then(|pod| pod.get(ask.container))
        {
            // What it has after a restart is the only possibility.
            if cpus.len() != count {
                return Some(Vec::new());
            }
            return Some(self.hints_for(&nodes, cpus, &CpuSet::new(), count));
        }
        let reusable = self.reusable.get(ask.uid).cloned().unwrap_or_default();
        Some(self.hints_for(&nodes, &self.available(ask.uid), &reusable, count))
    }

    fn hints_for(
        &self,
        nodes: &std::collections::BTreeSet<u32>,
        available: &CpuSet,
        reusable: &CpuSet,
        count: usize,
    ) -> Vec<Hint> {
        aligned_hints(
            nodes,
            |mask| self.machine.cpus_where(|place| mask.has(place.numa)).len() >= count,
            |mask| {
                let within = self.machine.cpus_where(|place| mask.has(place.numa));
                // What is reused has to lie within.
                reusable.is_subset(&within) && available.intersection(&within).len() >= count
            },
        )
    }
}
