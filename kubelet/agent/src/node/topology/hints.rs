//! Sets of NUMA nodes, and wishes for them.

use std::collections::BTreeSet;

use super::Nearness;

/// A set of NUMA nodes with numbers below 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct NodeMask(u64);

impl NodeMask {
    /// Whether a node is in it.
    #[must_use]
    pub fn has(self, node: u32) -> bool {
        node < 64 && self.0 >> node & 1 == 1
    }

    /// How many.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Their numbers.
    pub fn nodes(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |node| self.has(*node))
    }

    /// Fewer nodes; of as many, those nearer to each other if that counts, and then the lower ones.
    #[must_use]
    pub fn narrower(self, other: Self, near: Option<&Nearness>) -> bool {
        if self.len() != other.len() {
            return self.len() < other.len();
        }
        if let Some(near) = near {
            let (mine, theirs) = (self.spread(near), other.spread(near));
            if mine != theirs {
                return mine < theirs;
            }
        }
        self.0 < other.0
    }

    /// The sum of all distances.
    fn spread(self, near: &Nearness) -> u64 {
        let pairs = self
            .nodes()
            .flat_map(|from| self.nodes().map(move |to| (from, to)));
        pairs.map(|pair| u64::from(*near.get(&pair).unwrap_or(&10))).sum()
    }
}

impl FromIterator<u32> for NodeMask {
    /// Nodes from 64 on are left out.
    fn from_iter<I: IntoIterator<Item = u32>>(nodes: I) -> Self {
        let nodes = nodes.into_iter().filter(|node| *node < 64);
        Self(nodes.fold(0, |mask, node| mask | 1 << node))
    }
}

/// A set of NUMA nodes that could serve a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// The nodes; `None`: any.
    pub nodes: Option<NodeMask>,
    /// Whether no smaller set could, on an idle machine.
    pub preferred: bool,
}

impl Hint {
    /// No wish.
    #[must_use]
    pub fn anywhere() -> Self {
        Self {
            nodes: None,
            preferred: true,
        }
    }
}

/// All sets of nodes that `can_now` serve, preferred where they are as small as any that `could_ever`. For more than 16
/// nodes only single ones and all together are looked at.
pub fn aligned_hints(
    nodes: &BTreeSet<u32>,
    could_ever: impl Fn(NodeMask) -> bool,
    can_now: impl Fn(NodeMask) -> bool,
) -> Vec<Hint> {
    let list: Vec<u32> = nodes.iter().copied().filter(|node| *node < 64).collect();
    let mut masks: Vec<NodeMask> = if list.len() <= 16 {
        let numbers = 1_u32..1 << list.len();
        numbers
            .map(|number| {
                let chosen = list.iter().enumerate().filter(|(bit, _)| number >> bit & 1 == 1);
                chosen.map(|(_, node)| *node).collect()
            })
            .collect()
    } else {
        let single = list.iter().map(|node| std::iter::once(*node).collect());
        single.chain([list.iter().copied().collect()]).collect()
    };
    masks.sort_by_key(|mask| (mask.len(), *mask));
    let smallest = masks
        .iter()
        .copied()
        .find(|mask| could_ever(*mask))
        .map_or(usize::MAX, NodeMask::len);
    let served = masks.into_iter().filter(|mask| can_now(*mask));
    served
        .map(|mask| Hint {
            nodes: Some(mask),
            preferred: mask.len() == smallest,
        })
        .collect()
}
