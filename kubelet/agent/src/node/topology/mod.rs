//! Whether the NUMA wishes of CPUs, memory and devices of a container fit together: upstream's topology manager.
//!
//! Each provider names, per resource, the sets of NUMA nodes that could serve it ([`Hint`]), preferred where no smaller
//! set could on an idle machine. [`merge`] intersects every combination of one hint of each, and takes the narrowest
//! that is preferred. The policy then decides whether the pod is admitted: `best-effort` always, `restricted` only with
//! a preferred one, `single-numa-node` only with one of a single node.

use std::collections::{BTreeMap, BTreeSet};

mod hints;

pub use hints::{Hint, NodeMask, aligned_hints};

/// Most NUMA nodes that the policies work with, unless an option says otherwise.
pub const MOST_NODES: usize = 8;

/// Most combinations of hints that are looked at for one container; beyond it none counts as preferred.
const MOST_COMBINATIONS: usize = 1 << 20;

/// `topologyManagerPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Nobody is asked.
    #[default]
    None,
    /// What fits best, admitted in any case.
    BestEffort,
    /// Admitted when preferred.
    Restricted,
    /// Admitted when on one node.
    SingleNumaNode,
}

/// `topologyManagerScope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Each container for itself.
    #[default]
    Container,
    /// All containers of a pod alike.
    Pod,
}

/// A setting that can't be followed; worded as upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Not one of the policies.
    #[error("unknown policy: {0:?}")]
    Policy(String),
    /// Not one of the scopes.
    #[error("unknown scope: \"{0}\"")]
    Scope(String),
    /// Not one of the options.
    #[error("unknown Topology Manager Policy option: \"{0}\"")]
    Option(String),
    /// An option's value.
    #[error("bad value for option {0:?}")]
    Value(String),
    /// The machine is too large.
    #[error("unsupported on machines with more than {0} NUMA Nodes")]
    TooManyNodes(usize),
}

/// The pod can't be aligned; reason and message are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Resources cannot be allocated with Topology locality")]
pub struct NotAligned;

impl NotAligned {
    /// The reason with which the pod is refused.
    pub const REASON: &str = "TopologyAffinityError";
}

/// What one provider says of one container: its resources, each with its hints, or `None` for no wish.
pub type Wishes = BTreeMap<String, Option<Vec<Hint>>>;

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// Which policy.
    pub policy: Policy,
    /// For whom together.
    pub scope: Scope,
    /// `prefer-closest-numa-nodes`: of equals those near each other.
    pub closest: bool,
    /// `max-allowable-numa-nodes`.
    pub most_nodes: Option<usize>,
}

impl Settings {
    /// Reads the configuration's fields.
    ///
    /// # Errors
    /// The field that isn't known, and a machine with more NUMA nodes than are allowed.
    pub fn parse(
        policy: &str,
        scope: &str,
        options: &BTreeMap<String, String>,
        nodes: usize,
    ) -> Result<Self, TopologyError> {
        let policy = match policy {
            "none" => Policy::None,
            "best-effort" => Policy::BestEffort,
            "restricted" => Policy::Restricted,
            "single-numa-node" => Policy::SingleNumaNode,
            _ => return Err(TopologyError::Policy(policy.to_owned())),
        };
        let scope = match scope {
            "container" => Scope::Container,
            "pod" => Scope::Pod,
            _ => return Err(TopologyError::Scope(scope.to_owned())),
        };
        let mut settings = Self {
            policy,
            scope,
            closest: false,
            most_nodes: None,
        };
        for (name, value) in options {
            let bad = || TopologyError::Value(name.clone());
            match name.as_str() {
                "prefer-closest-numa-nodes" => settings.closest = value.parse().map_err(|_| bad())?,
                "max-allowable-numa-nodes" => {
                    let most: usize = value.parse().map_err(|_| bad())?;
                    settings.most_nodes = Some(most).filter(|most| (MOST_NODES..=64).contains(most));
                    settings.most_nodes.ok_or_else(bad)?;
                }
                _ => return Err(TopologyError::Option(name.clone())),
            }
        }
        let most = settings.most_nodes.unwrap_or(MOST_NODES);
        if policy != Policy::None && nodes > most {
            return Err(TopologyError::TooManyNodes(most));
        }
        Ok(settings)
    }

    /// The NUMA nodes that a container (or pod, by scope) is to be served from; `None` for any.
    ///
    /// # Errors
    /// When the policy doesn't admit what would be.
    pub fn admit(
        &self,
        nodes: &BTreeSet<u32>,
        wishes: &[Wishes],
        near: &Nearness,
    ) -> Result<Option<NodeMask>, NotAligned> {
        if self.policy == Policy::None {
            return Ok(None);
        }
        let single = self.policy == Policy::SingleNumaNode;
        let best = merge(nodes, wishes, single, self.closest.then_some(near));
        let admitted = match self.policy {
            Policy::None | Policy::BestEffort => true,
            Policy::Restricted | Policy::SingleNumaNode => best.preferred,
        };
        if !admitted {
            return Err(NotAligned);
        }
        let all: NodeMask = nodes.iter().copied().collect();
        Ok(best
            .nodes
            .filter(|mask| !single || *mask != all || nodes.len() == 1))
    }
}

/// Distances between NUMA nodes, as the kernel gives them; empty: all alike.
pub type Nearness = BTreeMap<(u32, u32), u32>;

/// One hint of all: the intersection of the best combination.
#[must_use]
pub fn merge(nodes: &BTreeSet<u32>, wishes: &[Wishes], single: bool, near: Option<&Nearness>) -> Hint {
    let all: NodeMask = nodes.iter().copied().collect();
    let mut lists: Vec<Vec<Hint>> = Vec::new();
    for provider in wishes {
        for hints in provider.values() {
            lists.push(match hints {
                None => vec![Hint::anywhere()],
                // It can't be served at all.
                Some(hints) if hints.is_empty() => vec![Hint {
                    nodes: None,
                    preferred: false,
                }],
                Some(hints) => hints.clone(),
            });
        }
    }
    if single {
        for list in &mut lists {
            list.retain(|hint| hint.preferred && hint.nodes.is_none_or(|mask| mask.len() == 1));
        }
    }
    let fallback = Hint {
        nodes: Some(all),
        preferred: false,
    };
    let count = lists
        .iter()
        .try_fold(1_usize, |count, list| count.checked_mul(list.len()));
    if count.is_none_or(|count| count > MOST_COMBINATIONS) {
        return fallback;
    }
    let narrowest = lists
        .iter()
        .map(|list| {
            list.iter()
                .filter_map(|hint| hint.nodes)
                .map(|mask| mask.len())
                .min()
                .unwrap_or(0)
        })
        .max()
        .unwrap_or(0);
    let mut best: Option<Hint> = None;
    each_combination(&lists, &mut |combination| {
        let merged = intersect(combination, all);
        if merged.nodes.is_some_and(|mask| mask.is_empty()) {
            return;
        }
        if best
            .as_ref()
            .is_none_or(|best| better(&merged, best, narrowest, near))
        {
            best = Some(merged);
        }
    });
    best.unwrap_or(fallback)
}

fn each_combination(lists: &[Vec<Hint>], visit: &mut dyn FnMut(&[Hint])) {
    let mut chosen = vec![0; lists.len()];
    if lists.iter().any(Vec::is_empty) {
        return;
    }
    loop {
        let combination: Vec<Hint> = lists.iter().zip(&chosen).map(|(list, at)| list[*at]).collect();
        visit(&combination);
        let mut place = lists.len();
        loop {
            let Some(before) = place.checked_sub(1) else {
                return;
            };
            place = before;
            chosen[place] += 1;
            if chosen[place] < lists[place].len() {
                break;
            }
            chosen[place] = 0;
        }
    }
}

fn intersect(combination: &[Hint], all: NodeMask) -> Hint {
    let masks: Vec<NodeMask> = combination.iter().map(|hint| hint.nodes.unwrap_or(all)).collect();
    let nodes = masks.iter().fold(all, |both, mask| both.and(*mask));
    // Preferred by everybody, and by everybody for the same nodes.
    let named: BTreeSet<NodeMask> = combination.iter().filter_map(|hint| hint.nodes).collect();
    Hint {
        nodes: Some(nodes),
        preferred: combination.iter().all(|hint| hint.preferred) && named.len() <= 1,
    }
}

fn better(candidate: &Hint, best: &Hint, narrowest: usize, near: Option<&Nearness>) -> bool {
    let (Some(new), Some(old)) = (candidate.nodes, best.nodes) else {
        return best.nodes.is_none();
    };
    if candidate.preferred != best.preferred {
        return candidate.preferred;
    }
    if candidate.preferred || old.len() == narrowest && new.len() == narrowest {
        return new.narrower(old, near);
    }
    // Among what nobody prefers, the width that the widest wish needs is best, from above before from below.
    match (old.len().cmp(&narrowest), new.len().cmp(&narrowest)) {
        (std::cmp::Ordering::Greater, std::cmp::Ordering::Greater) => new.narrower(old, near),
        (std::cmp::Ordering::Greater, _) => true,
        (std::cmp::Ordering::Equal, _) => false,
        (std::cmp::Ordering::Less, std::cmp::Ordering::Greater) => false,
        (std::cmp::Ordering::Less, _) => {
            new.len() > old.len() || new.len() == old.len() && new.narrower(old, near)
        }
    }
}

#[cfg(test)]
mod tests;
