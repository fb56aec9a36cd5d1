//! What is watched, and how much of it is to be kept free.

use std::collections::BTreeMap;

use controlplane_api::Quantity;
use controlplane_api::quantity::QuantityError;
use jiff::SignedDuration;

use super::{Condition, Disks, Reclaim};
use crate::config::{DurationError, GoDuration, KubeletConfiguration};

/// Something that can run low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory of the node less its working set.
    MemoryAvailable,
    /// Bytes left on the disk of the kubelet's root directory.
    NodeFsAvailable,
    /// Its inodes.
    NodeFsInodesFree,
    /// Bytes left on the disk of images.
    ImageFsAvailable,
    /// Its inodes.
    ImageFsInodesFree,
    /// Bytes left on the disk of writable layers.
    ContainerFsAvailable,
    /// Its inodes.
    ContainerFsInodesFree,
    /// Process numbers.
    PidAvailable,
    /// Memory of the cgroup of all pods less its working set. No configuration names it.
    AllocatableMemoryAvailable,
}

impl Signal {
    const ALL: [Self; 9] = [
        Self::MemoryAvailable,
        Self::NodeFsAvailable,
        Self::NodeFsInodesFree,
        Self::ImageFsAvailable,
        Self::ImageFsInodesFree,
        Self::ContainerFsAvailable,
        Self::ContainerFsInodesFree,
        Self::PidAvailable,
        Self::AllocatableMemoryAvailable,
    ];

    /// Its name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::ImageFsInodesFree => "imagefs.inodesFree",
            Self::ContainerFsAvailable => "containerfs.available",
            Self::ContainerFsInodesFree => "containerfs.inodesFree",
            Self::PidAvailable => "pid.available",
            Self::AllocatableMemoryAvailable => "allocatableMemory.available",
        }
    }

    /// What is short of it, in messages.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => "memory",
            Self::NodeFsAvailable | Self::ImageFsAvailable | Self::ContainerFsAvailable => {
                "ephemeral-storage"
            }
            Self::NodeFsInodesFree | Self::ImageFsInodesFree | Self::ContainerFsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// The condition that the node is in then.
    #[must_use]
    pub fn condition(self) -> Condition {
        match self.resource() {
            "memory" => Condition::Memory,
            "pids" => Condition::Pid,
            _ => Condition::Disk,
        }
    }

    /// Whether it is counted in bytes.
    #[must_use]
    pub fn is_bytes(self) -> bool {
        matches!(self.resource(), "memory" | "ephemeral-storage")
    }

    pub(super) fn is_memory(self) -> bool {
        self.resource() == "memory"
    }

    pub(super) fn reclaimed_by(self, disks: Disks) -> Vec<Reclaim> {
        use Reclaim::{DeadContainers, UnusedImages};
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable | Self::PidAvailable => Vec::new(),
            Self::NodeFsAvailable | Self::NodeFsInodesFree => match disks {
                Disks::One => vec![DeadContainers, UnusedImages],
                Disks::ImagesApart => Vec::new(),
                Disks::Split => vec![DeadContainers],
            },
            Self::ImageFsAvailable | Self::ImageFsInodesFree => match disks {
                Disks::One | Disks::ImagesApart => vec![DeadContainers, UnusedImages],
                Disks::Split => vec![UnusedImages],
            },
            Self::ContainerFsAvailable | Self::ContainerFsInodesFree => match disks {
                Disks::One | Disks::ImagesApart => vec![DeadContainers, UnusedImages],
                Disks::Split => vec![DeadContainers],
            },
        }
    }
}

/// An amount, or a part of what there is.
#[derive(Debug, Clone, PartialEq)]
pub enum Limit {
    /// So much.
    Quantity(Quantity),
    /// Between 0 and 1 of the capacity.
    Percentage(f64),
}

impl Eq for Limit {}

impl PartialOrd for Limit {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Limit {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            (Self::Quantity(one), Self::Quantity(two)) => one.cmp(two),
            (Self::Percentage(one), Self::Percentage(two)) => one.total_cmp(two),
            (Self::Quantity(_), Self::Percentage(_)) => std::cmp::Ordering::Less,
            (Self::Percentage(_), Self::Quantity(_)) => std::cmp::Ordering::Greater,
        }
    }
}

impl Limit {
    /// Of a capacity.
    #[must_use]
    pub fn of(&self, capacity: i64) -> i64 {
        match self {
            Self::Quantity(amount) => amount.value(),
            Self::Percentage(part) => (capacity as f64 * part) as i64,
        }
    }

    fn parse(text: &str) -> Result<Option<Self>, ThresholdError> {
        if text == "0%" || text == "100%" {
            // Switched off.
            return Ok(None);
        }
        if let Some(number) = text.strip_suffix('%') {
            let percent: f64 = number
                .parse()
                .map_err(|_| ThresholdError::Percentage(text.to_owned()))?;
            if !(0.0..=100.0).contains(&percent) {
                return Err(ThresholdError::Range(text.to_owned()));
            }
            return Ok(Some(Self::Percentage(percent / 100.0)));
        }
        let amount: Quantity = text
            .parse()
            .map_err(|error| ThresholdError::Quantity(text.to_owned(), error))?;
        if amount.signum() < 0 {
            return Err(ThresholdError::Negative(text.to_owned()));
        }
        Ok(Some(Self::Quantity(amount)))
    }
}

/// What is to be kept free.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// How much.
    pub limit: Limit,
    /// How long it may be passed before pods go; none: a hard threshold.
    pub grace: SignedDuration,
    /// How much beyond the limit is freed once it was passed.
    pub minimum_reclaim: Option<Limit>,
}

impl Threshold {
    /// Whether pods go at once.
    #[must_use]
    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }
}

/// A setting that isn't one; worded as upstream where upstream has words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// There is no such signal.
    #[error("unsupported eviction signal {0}")]
    Signal(String),
    /// Not a percentage.
    #[error("failed to parse eviction threshold percentage {0:?}")]
    Percentage(String),
    /// More than all or less than nothing.
    #[error("eviction percentage threshold {0} must be >= 0% and <= 100%")]
    Range(String),
    /// Not a quantity.
    #[error("failed to parse eviction threshold {0:?}")]
    Quantity(String, #[source] QuantityError),
    /// Less than nothing.
    #[error("eviction threshold {0} must be positive")]
    Negative(String),
    /// A soft one without grace period.
    #[error("grace period must be specified for the soft eviction threshold {0}")]
    NoGrace(&'static str),
    /// A grace period that isn't one.
    #[error("invalid eviction grace period specified: {0}, must be a positive value")]
    Grace(String),
    /// A grace period that isn't a duration.
    #[error(transparent)]
    Duration(#[from] DurationError),
}

fn signals(settings: &BTreeMap<String, String>) -> Result<Vec<(Signal, &str)>, ThresholdError> {
    let find = |name: &String| {
        let named = Signal::ALL.into_iter().find(|signal| signal.name() == name);
        named
            .filter(|signal| *signal != Signal::AllocatableMemoryAvailable)
            .ok_or_else(|| ThresholdError::Signal(name.clone()))
    };
    settings
        .iter()
        .map(|(name, text)| Ok((find(name)?, text.as_str())))
        .collect()
}

/// Reads `evictionHard` or `evictionSoft`, without grace periods. 0% and 100% switch a signal off.
///
/// # Errors
/// What isn't a signal, an amount or a percentage.
pub fn parse_thresholds(settings: &BTreeMap<String, String>) -> Result<Vec<Threshold>, ThresholdError> {
    let mut found = Vec::new();
    for (signal, text) in signals(settings)? {
        if let Some(limit) = Limit::parse(text)? {
            found.push(Threshold {
                signal,
                limit,
                grace: SignedDuration::ZERO,
                minimum_reclaim: None,
            });
        }
    }
    Ok(found)
}

/// All thresholds of a configuration.
///
/// # Errors
/// What isn't a signal, an amount, a percentage or a grace period; a soft threshold without one.
pub fn thresholds_of(config: &KubeletConfiguration) -> Result<Vec<Threshold>, ThresholdError> {
    let empty = BTreeMap::new();
    let mut all = parse_thresholds(config.eviction_hard.as_ref().unwrap_or(&empty))?;
    let mut grace = BTreeMap::new();
    for (signal, text) in signals(&config.eviction_soft_grace_period)? {
        let period: GoDuration = text.parse()?;
        if period <= GoDuration::ZERO {
            return Err(ThresholdError::Grace(text.to_owned()));
        }
        grace.insert(signal, SignedDuration::from_nanos(period.as_nanos()));
    }
    for mut soft in parse_thresholds(&config.eviction_soft)? {
        soft.grace = *grace
            .get(&soft.signal)
            .ok_or(ThresholdError::NoGrace(soft.signal.name()))?;
        all.push(soft);
    }
    for (signal, text) in signals(&config.eviction_minimum_reclaim)? {
        let more = Limit::parse(text)?;
        for threshold in all.iter_mut().filter(|threshold| threshold.signal == signal) {
            threshold.minimum_reclaim.clone_from(&more);
        }
    }
    if config.enforce_node_allocatable.iter().any(|what| what == "pods") {
        return Ok(with_allocatable_memory(all));
    }
    Ok(all)
}

/// The hard threshold of memory for the cgroup of all pods too, so that it doesn't run into its own limit.
#[must_use]
pub fn with_allocatable_memory(mut all: Vec<Threshold>) -> Vec<Threshold> {
    let hard = all
        .iter()
        .find(|one| one.signal == Signal::MemoryAvailable && one.is_hard());
    if let Some(hard) = hard.cloned() {
        all.push(Threshold {
            signal: Signal::AllocatableMemoryAvailable,
            ..hard
        });
    }
    all
}
