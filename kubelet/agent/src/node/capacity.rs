//! What the node has, and what of it is for pods.
//!
//! Allocatable is capacity less what is reserved for the system and for Kubernetes' daemons, and less the hard eviction
//! thresholds, since pods that need those are evicted. Enforced on the cgroup of all pods is capacity less what is
//! reserved only, so that the threshold is reached before the kernel's OOM killer is.

use std::collections::BTreeMap;

use controlplane_api::Quantity;
use controlplane_api::quantity::{Format, QuantityError};

use super::cpu::{CpuSet, Machine};
use super::eviction::{Limit, Signal, Threshold};
use super::resources::Amounts;
use crate::config::KubeletConfiguration;

/// What is observed of the machine.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// CPUs and memory.
    pub machine: Machine,
    /// Bytes of memory, `MemTotal`.
    pub memory: u64,
    /// Bytes of the file system of the root directory.
    pub ephemeral_storage: u64,
    /// Largest process number and so the most processes.
    pub pids: u64,
}

/// A reservation that isn't one.
#[derive(Debug, thiserror::Error)]
pub enum CapacityError {
    /// Of a resource that can't be reserved; worded as upstream.
    #[error("cannot reserve {0:?} resource")]
    Resource(String),
    /// Not a quantity.
    #[error("failed to parse quantity {1:?} for {0:?} resource")]
    Quantity(String, String, #[source] QuantityError),
    /// Less than nothing.
    #[error("resource quantity for {0:?} cannot be negative: {1}")]
    Negative(String, String),
    /// More than there is.
    #[error(
        "Node configured with {field} {reserved} of {resource}, which is more than its capacity {capacity}"
    )]
    TooMuch {
        /// The field.
        field: &'static str,
        /// The resource.
        resource: String,
        /// What is reserved.
        reserved: String,
        /// What there is.
        capacity: String,
    },
}

/// What there is and for whom.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Capacity {
    /// `status.capacity`.
    pub capacity: Amounts,
    /// `status.allocatable`.
    pub allocatable: Amounts,
    /// What pods can have together at most: enforced on their cgroup.
    pub enforced: Amounts,
    /// For the system.
    pub system_reserved: Amounts,
    /// For Kubernetes' daemons.
    pub kube_reserved: Amounts,
}

/// Reads `systemReserved` or `kubeReserved`.
///
/// # Errors
/// A resource that can't be reserved, or no quantity.
pub fn reservation(given: &BTreeMap<String, String>) -> Result<Amounts, CapacityError> {
    let mut all = Amounts::new();
    for (name, text) in given {
        if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pid") {
            return Err(CapacityError::Resource(name.clone()));
        }
        let amount: Quantity = text
            .parse()
            .map_err(|error| CapacityError::Quantity(name.clone(), text.clone(), error))?;
        if amount.signum() < 0 {
            return Err(CapacityError::Negative(name.clone(), text.clone()));
        }
        all.insert(name.clone(), amount);
    }
    Ok(all)
}

fn bytes(amount: u64) -> Quantity {
    Quantity::from_bytes(i64::try_from(amount).unwrap_or(i64::MAX))
}

/// Capacity and allocatable of a machine with a configuration, and with the hard thresholds of its eviction.
///
/// # Errors
/// A reservation that isn't one, or of more than there is.
pub fn capacity(
    config: &KubeletConfiguration,
    observed: &Observed,
    hard: &[Threshold],
) -> Result<Capacity, CapacityError> {
    let cores = i64::try_from(observed.machine.cpus.len()).unwrap_or(i64::MAX);
    let mut found = Capacity {
        system_reserved: reservation(&config.system_reserved)?,
        kube_reserved: reservation(&config.kube_reserved)?,
        ..Capacity::default()
    };
    if let Ok(cpus) = config.reserved_system_cpus.parse::<CpuSet>()
        && !cpus.is_empty()
    {
        let count = i64::try_from(cpus.len()).unwrap_or(i64::MAX);
        found
            .system_reserved
            .insert("cpu".to_owned(), Quantity::new(count, Format::DecimalSi));
        found.kube_reserved.remove("cpu");
    }
    let mut pods = i64::from(config.max_pods);
    if config.pods_per_core > 0 {
        pods = pods.min(i64::from(config.pods_per_core).saturating_mul(cores));
    }
    let mut all = Amounts::from([
        ("cpu".to_owned(), Quantity::new(cores, Format::DecimalSi)),
        ("memory".to_owned(), bytes(observed.memory)),
        ("pods".to_owned(), Quantity::new(pods, Format::DecimalSi)),
    ]);
    if config.local_storage_capacity_isolation {
        all.insert("ephemeral-storage".to_owned(), bytes(observed.ephemeral_storage));
    }
    for pages in observed.machine.hugepages.values() {
        for (size, amount) in pages {
            let name = format!("hugepages-{}", bytes(*size));
            all.entry(name).or_insert_with(|| bytes(0)).add(&bytes(*amount));
        }
    }
    for (field, reserved) in [
        ("systemReserved", &found.system_reserved),
        ("kubeReserved", &found.kube_reserved),
    ] {
        for (resource, amount) in reserved {
            let there = all.get(resource).filter(|there| *there < amount);
            if let Some(there) = there {
                return Err(CapacityError::TooMuch {
                    field,
                    resource: resource.clone(),
                    reserved: amount.to_string(),
                    capacity: there.to_string(),
                });
            }
        }
    }
    found.enforced = less(&all, [&found.system_reserved, &found.kube_reserved]);
    found.allocatable = less(&found.enforced, [&thresholds(hard, &all), &Amounts::new()]);
    let pages: i64 = all
        .iter()
        .filter(|(name, _)| name.starts_with("hugepages-"))
        .map(|(_, a)| a.value())
        .sum();
    subtract(&mut found.allocatable, "memory", &Quantity::from_bytes(pages));
    let pids = Quantity::new(
        i64::try_from(observed.pids).unwrap_or(i64::MAX),
        Format::DecimalSi,
    );
    let pids = less(
        &Amounts::from([("pid".to_owned(), pids)]),
        [&found.system_reserved, &found.kube_reserved],
    );
    found.enforced.extend(pids);
    found.capacity = all;
    Ok(found)
}

fn subtract(from: &mut Amounts, name: &str, amount: &Quantity) {
    if let Some(held) = from.get_mut(name) {
        held.sub(amount);
        if held.signum() < 0 {
            *held = Quantity::new(0, held.format());
        }
    }
}

fn less(all: &Amounts, reserved: [&Amounts; 2]) -> Amounts {
    let mut left = all.clone();
    for amounts in reserved {
        for (name, amount) in amounts {
            subtract(&mut left, name, amount);
        }
    }
    left
}

/// What hard thresholds keep free.
fn thresholds(hard: &[Threshold], all: &Amounts) -> Amounts {
    let mut kept = Amounts::new();
    for threshold in hard {
        let name = match threshold.signal {
            Signal::MemoryAvailable => "memory",
            Signal::NodeFsAvailable => "ephemeral-storage",
            _ => continue,
        };
        let Some(whole) = all.get(name) else { continue };
        let amount = match &threshold.limit {
            Limit::Quantity(amount) => amount.clone(),
            Limit::Percentage(part) => Quantity::from_bytes((whole.as_f64() * part) as i64),
        };
        kept.insert(name.to_owned(), amount);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::cpu::Place;
    use crate::node::eviction::parse_thresholds;

    const GI: u64 = 1 << 30;

    fn config() -> KubeletConfiguration {
        KubeletConfiguration::default()
    }

    fn observed() -> Observed {
        let mut machine = Machine::default();
        for cpu in 0..4 {
            machine.cpus.insert(
                cpu,
                Place {
                    socket: 0,
                    numa: 0,
                    core: cpu,
                },
            );
        }
        machine.hugepages.insert(0, BTreeMap::from([(2 << 20, GI)]));
        Observed {
            machine,
            memory: 8 * GI,
            ephemeral_storage: 100 * GI,
            pids: 32768,
        }
    }

    fn amount(of: &Amounts, name: &str) -> String {
        of[name].to_string()
    }

    #[test]
    fn pods_get_what_is_neither_reserved_nor_a_threshold() {
        let mut config = config();
        config.system_reserved = BTreeMap::from([
            ("cpu".to_owned(), "500m".to_owned()),
            ("pid".to_owned(), "768".to_owned()),
        ]);
        config.kube_reserved = BTreeMap::from([("memory".to_owned(), "1Gi".to_owned())]);
        config.pods_per_core = 10;
        let hard = BTreeMap::from([
            ("memory.available".to_owned(), "1Gi".to_owned()),
            ("nodefs.available".to_owned(), "10%".to_owned()),
        ]);
        let found = capacity(&config, &observed(), &parse_thresholds(&hard).unwrap()).unwrap();
        assert_eq!(amount(&found.capacity, "cpu"), "4");
        assert_eq!(amount(&found.capacity, "pods"), "40");
        assert_eq!(amount(&found.capacity, "hugepages-2Mi"), "1Gi");
        assert_eq!(amount(&found.allocatable, "cpu"), "3500m");
        // Reserved, threshold and huge pages.
        assert_eq!(amount(&found.allocatable, "memory"), "5Gi");
        assert_eq!(amount(&found.enforced, "memory"), "7Gi");
        assert_eq!(amount(&found.allocatable, "ephemeral-storage"), "90Gi");
        assert_eq!(amount(&found.enforced, "pid"), "32k");
        assert!(!found.allocatable.contains_key("pid"));
    }

    #[test]
    fn named_cpus_are_what_is_reserved() {
        let mut config = config();
        config.kube_reserved = BTreeMap::from([("cpu".to_owned(), "3".to_owned())]);
        config.reserved_system_cpus = "0-1".to_owned();
        let found = capacity(&config, &observed(), &[]).unwrap();
        assert_eq!(amount(&found.allocatable, "cpu"), "2");
    }

    #[test]
    fn impossible_reservations_are_refused() {
        let mut config = config();
        for (name, text) in [("gpu", "1"), ("cpu", "much"), ("memory", "-1"), ("memory", "9Gi")] {
            config.kube_reserved = BTreeMap::from([(name.to_owned(), text.to_owned())]);
            assert!(capacity(&config, &observed(), &[]).is_err(), "{name} {text}");
        }
    }
}
