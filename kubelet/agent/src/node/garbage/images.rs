//! Which images go.
//!
//! When the disk of images is fuller than the high threshold, those that are longest unused go until it would be down to
//! the low one. Images in use, pinned ones, and those that were first seen less than the minimum age ago stay. Whatever
//! the disk holds, images unused for longer than the maximum age go, counted from this process' start at the earliest.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `imageGCHighThresholdPercent`; 100: never.
    pub high_percent: u8,
    /// `imageGCLowThresholdPercent`.
    pub low_percent: u8,
    /// `imageMinimumGCAge`.
    pub minimum_age: SignedDuration,
    /// `imageMaximumGCAge`; none: no maximum.
    pub maximum_age: SignedDuration,
}

/// An image that the runtime has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its ID.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Whether the runtime needs it.
    pub pinned: bool,
}

/// The disk of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Disk {
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes left.
    pub available: u64,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Timestamp,
    used: Option<Timestamp>,
}

/// When images were seen and used.
#[derive(Debug, Clone)]
pub struct Images {
    started: Timestamp,
    seen: BTreeMap<String, Seen>,
}

/// What is to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Images and their sizes; those of `expired` first, then the others in the order in which they go.
    pub remove: Vec<(String, u64)>,
    /// How many of them go whatever else is freed.
    pub expired: usize,
    /// Bytes to free; one stops once as many are.
    pub wanted: u64,
}

impl Plan {
    /// What upstream's event says when less than was wanted could be freed: reason and message.
    #[must_use]
    pub fn shortfall(&self, freed: u64) -> Option<(&'static str, String)> {
        (freed < self.wanted).then(|| {
            let wanted = self.wanted;
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found \
                 {freed} bytes eligible to free."
            );
            ("FreeDiskSpaceFailed", message)
        })
    }
}

/// Why nothing can be decided; worded as upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid capacity 0 on image filesystem")]
pub struct NoCapacity;

impl Images {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            started: now,
            seen: BTreeMap::new(),
        }
    }

    /// Notes which images there are, and which of them containers use.
    pub fn observe(&mut self, images: &[Image], in_use: &BTreeSet<String>, now: Timestamp) {
        for image in images {
            let seen = self.seen.entry(image.id.clone()).or_insert(Seen {
                first: now,
                used: None,
            });
            if in_use.contains(&image.id) {
                seen.used = Some(now);
            }
        }
        let there: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.seen.retain(|id, _| there.contains(id.as_str()));
    }

    /// Those that may go, longest unused first.
    fn removable<'a>(&self, images: &'a [Image], in_use: &BTreeSet<String>) -> Vec<(Seen, &'a Image)> {
        let mut all: Vec<(Seen, &Image)> = images
            .iter()
            .filter(|image| !image.pinned && !in_use.contains(&image.id))
            .filter_map(|image| Some((*self.seen.get(&image.id)?, image)))
            .collect();
        all.sort_by_key(|(seen, image)| (seen.used, seen.first, image.id.clone()));
        all
    }

    /// What goes at a regular look.
    ///
    /// # Errors
    /// When the disk's size isn't known.
    pub fn plan(
        &mut self,
        policy: &Policy,
        images: &[Image],
        in_use: &BTreeSet<String>,
        disk: Disk,
        now: Timestamp,
    ) -> Result<Plan, NoCapacity> {
        self.observe(images, in_use, now);
        if disk.capacity == 0 {
            return Err(NoCapacity);
        }
        let mut all = self.removable(images, in_use);
        let mut plan = Plan::default();
        if !policy.maximum_age.is_zero() {
            let unused = |seen: &Seen| now.duration_since(seen.used.unwrap_or(seen.first).max(self.started));
            let (old, young) = all
                .into_iter()
                .partition(|(seen, _)| unused(seen) > policy.maximum_age);
            all = young;
            let old: Vec<(Seen, &Image)> = old;
            plan.remove = old
                .iter()
                .map(|(_, image)| (image.id.clone(), image.size))
                .collect();
            plan.expired = plan.remove.len();
        }
        let available = disk.available.min(disk.capacity);
        let used_percent = 100 - u128::from(available) * 100 / u128::from(disk.capacity);
        if used_percent >= u128::from(policy.high_percent) && policy.high_percent < 100 {
            let low = u128::from(100 - policy.low_percent.min(100));
            let target = u64::try_from(u128::from(disk.capacity) * low / 100).unwrap_or(u64::MAX);
            plan.wanted = target.saturating_sub(available);
            let old_enough = all
                .iter()
                .filter(|(seen, _)| now.duration_since(seen.first) >= policy.minimum_age);
            plan.remove
                .extend(old_enough.map(|(_, image)| (image.id.clone(), image.size)));
        }
        Ok(plan)
    }

    /// What goes when the node is short of room: everything that isn't used, however young.
    pub fn all_unused(&mut self, images: &[Image], in_use: &BTreeSet<String>, now: Timestamp) -> Plan {
        self.observe(images, in_use, now);
        let all = self.removable(images, in_use);
        Plan {
            remove: all
                .into_iter()
                .map(|(_, image)| (image.id.clone(), image.size))
                .collect(),
            expired: 0,
            wanted: u64::MAX,
        }
    }
}
