//! Which pod has which range of IDs for its user namespace. Pure: the caller keeps a record of each range in the pod's
//! directory before it is used, and gives the records back after a restart.

use std::collections::BTreeMap;

use cri_api::v1::{IdMapping, NamespaceMode, UserNamespace};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How many IDs a pod has.
pub const RANGE: u32 = 65536;

/// A pod's IDs on the node: those from 0 in the pod are those from `first` on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The ID on the node that is 0 in the pod.
    pub first: u32,
    /// How many.
    pub length: u32,
}

impl IdRange {
    /// The namespace in CRI's words: users and groups are mapped alike.
    pub fn to_cri(self) -> UserNamespace {
        let mapping = IdMapping {
            host_id: self.first,
            container_id: 0,
            length: self.length,
        };
        UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: vec![mapping],
            gids: vec![mapping],
        }
    }
}

/// Why a pod has no range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UsernsError {
    /// Every range is taken.
    #[error("could not find an empty slot to allocate a user namespace")]
    Full,
    /// More pods have one than the node allows.
    #[error(
        "limit on count of pods with user namespaces exceeded (limit is {limit}, current pods with userns: {limit})"
    )]
    TooMany {
        /// How many are allowed.
        limit: usize,
    },
    /// A record of another length.
    #[error("wrong user namespace length {0}")]
    Length(u32),
    /// A record that no range starts at.
    #[error("wrong user namespace offset specified {0}")]
    Offset(u32),
    /// A record of IDs that this node doesn't give out.
    #[error("range {0} is outside of what this kubelet gives to pods")]
    Outside(u32),
    /// The pod has another range.
    #[error("different user namespace range already used by pod {0:?}")]
    Different(String),
    /// Another pod has this range.
    #[error("range picked for pod {0:?} already taken")]
    Taken(String),
}

/// The node's ranges: a bit for each, and whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespaces {
    first: u32,
    limit: usize,
    used: Vec<u64>,
    ranges: usize,
    owners: BTreeMap<String, u32>,
}

impl UserNamespaces {
    /// The ranges within `[first, first + length)`, for `limit` pods at most. Without subordinate IDs for the kubelet
    /// these are all but the first 65536 IDs: `new(65536, u32::MAX - 65535, 1024)`. A first ID that no range starts at
    /// is rounded up.
    pub fn new(first: u32, length: u32, limit: usize) -> UserNamespaces {
        let end = (u64::from(first) + u64::from(length)) / u64::from(RANGE);
        let start = u64::from(first).div_ceil(u64::from(RANGE)).max(1);
        let ranges = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        let first = u32::try_from(start * u64::from(RANGE)).unwrap_or(u32::MAX);
        UserNamespaces {
            first,
            limit,
            used: vec![0; ranges.div_ceil(64)],
            ranges,
            owners: BTreeMap::new(),
        }
    }

    /// The range of a pod, a free one where it has none yet.
    pub fn allocate(&mut self, pod_uid: &str) -> Result<IdRange, UsernsError> {
        if let Some(range) = self.range(pod_uid) {
            return Ok(range);
        }
        if self.owners.len() >= self.limit {
            return Err(UsernsError::TooMany { limit: self.limit });
        }
        let free = (0..self.ranges)
            .find(|&index| !self.is_used(index))
            .ok_or(UsernsError::Full)?;
        Ok(self.take(pod_uid, free))
    }

    /// Takes a recorded range again for its pod.
    pub fn record(&mut self, pod_uid: &str, range: IdRange) -> Result<(), UsernsError> {
        if range.length != RANGE {
            return Err(UsernsError::Length(range.length));
        }
        if !range.first.is_multiple_of(RANGE) {
            return Err(UsernsError::Offset(range.first));
        }
        match self.owners.get(pod_uid) {
            Some(&first) if first == range.first => return Ok(()),
            Some(_) => return Err(UsernsError::Different(pod_uid.to_owned())),
            None => {}
        }
        let index = range
            .first
            .checked_sub(self.first)
            .map(|offset| (offset / RANGE) as usize);
        let index = index
            .filter(|&index| index < self.ranges)
            .ok_or(UsernsError::Outside(range.first))?;
        if self.is_used(index) {
            return Err(UsernsError::Taken(pod_uid.to_owned()));
        }
        if self.owners.len() >= self.limit {
            return Err(UsernsError::TooMany { limit: self.limit });
        }
        self.take(pod_uid, index);
        Ok(())
    }

    /// Gives a pod's range back; a pod without one is no error.
    pub fn release(&mut self, pod_uid: &str) {
        if let Some(first) = self.owners.remove(pod_uid) {
            let index = ((first - self.first) / RANGE) as usize;
            self.used[index / 64] &= !(1 << (index % 64));
        }
    }

    /// A pod's range.
    pub fn range(&self, pod_uid: &str) -> Option<IdRange> {
        self.owners
            .get(pod_uid)
            .map(|&first| IdRange { first, length: RANGE })
    }

    /// The pods that have ranges, to compare with those that exist.
    pub fn pods(&self) -> impl Iterator<Item = &str> {
        self.owners.keys().map(String::as_str)
    }

    fn is_used(&self, index: usize) -> bool {
        self.used[index / 64] & (1 << (index % 64)) != 0
    }

    fn take(&mut self, pod_uid: &str, index: usize) -> IdRange {
        self.used[index / 64] |= 1 << (index % 64);
        let offset = u32::try_from(index).expect("there are at most 65535 ranges") * RANGE;
        let range = IdRange {
            first: self.first + offset,
            length: RANGE,
        };
        self.owners.insert(pod_uid.to_owned(), range.first);
        range
    }
}
