//! Limits of the cgroups of the node, of classes and of pods, in the numbers that upstream comes to.

use std::collections::BTreeMap;

use controlplane_api::Quantity;
use oci_runtime_cgroups::CgroupError;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxHugepageLimit, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxPidsBuilder,
    LinuxResources, LinuxResourcesBuilder,
};

use super::{PodResources, QosClass, Settings};
use crate::node::resources::Amounts;

/// The kernel's least and most `cpu.shares`.
pub const LEAST_SHARES: u64 = 2;
const MOST_SHARES: u64 = 262_144;
/// The kernel's least quota, in microseconds.
const LEAST_QUOTA: i64 = 1000;

/// What is set on a cgroup; what is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// The weight among its siblings, as v1's shares.
    pub shares: Option<u64>,
    /// CPU time per period in microseconds; -1: no limit.
    pub quota: Option<i64>,
    /// The period in microseconds.
    pub period: Option<u64>,
    /// Bytes of memory; -1: no limit.
    pub memory: Option<i64>,
    /// Processes; -1: no limit.
    pub pids: Option<i64>,
    /// Bytes of huge pages by size, like `2MB`.
    pub hugepages: BTreeMap<String, i64>,
}

impl Limits {
    /// A weight alone.
    #[must_use]
    pub fn weight(shares: u64) -> Self {
        Self {
            shares: Some(shares),
            ..Self::default()
        }
    }

    /// In OCI's form.
    ///
    /// # Errors
    /// None that could happen: the builders demand no field.
    pub fn to_oci(&self) -> Result<LinuxResources, OciSpecError> {
        let mut resources = LinuxResourcesBuilder::default().build()?;
        resources.set_devices(None);
        if self.shares.is_some() || self.quota.is_some() {
            let mut cpu = LinuxCpuBuilder::default().build()?;
            cpu.set_shares(self.shares)
                .set_quota(self.quota)
                .set_period(self.period);
            resources.set_cpu(Some(cpu));
        }
        if let Some(limit) = self.memory {
            resources.set_memory(Some(LinuxMemoryBuilder::default().limit(limit).build()?));
        }
        if let Some(limit) = self.pids {
            resources.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build()?));
        }
        if !self.hugepages.is_empty() {
            let all: Result<Vec<LinuxHugepageLimit>, _> = self
                .hugepages
                .iter()
                .map(|(size, limit)| {
                    let builder = LinuxHugepageLimitBuilder::default().page_size(size.clone());
                    builder.limit(*limit).build()
                })
                .collect();
            resources.set_hugepage_limits(Some(all?));
        }
        Ok(resources)
    }
}

/// A size of huge pages as the kernel has it in names of files, and the resource that it is: `2MB`, `hugepages-2Mi`.
#[must_use]
pub fn page_size(bytes: u64) -> (String, String) {
    let kernel = match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    };
    let quantity = Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
    (kernel, format!("hugepages-{quantity}"))
}

/// The weight of thousandths of CPUs.
#[must_use]
pub fn shares(milli_cpus: i64) -> u64 {
    let milli = u64::try_from(milli_cpus).unwrap_or(0);
    (milli.saturating_mul(1024) / 1000).clamp(LEAST_SHARES, MOST_SHARES)
}

/// The CPU time per period of thousandths of CPUs; none for 0.
#[must_use]
pub fn quota(milli_cpus: i64, period_micros: u64) -> Option<i64> {
    let period = i64::try_from(period_micros).unwrap_or(i64::MAX);
    (milli_cpus > 0).then(|| (milli_cpus.saturating_mul(period) / 1000).max(LEAST_QUOTA))
}

fn hugepages(amounts: &Amounts, sizes: &BTreeMap<String, String>) -> BTreeMap<String, i64> {
    let limit = |name: &String| amounts.get(name).map_or(0, Quantity::value);
    sizes
        .iter()
        .map(|(size, name)| (size.clone(), limit(name)))
        .collect()
}

/// A pod's, as allocated. What it doesn't limit any more after a resize is unlimited.
#[must_use]
pub fn of_pod(class: QosClass, resources: &PodResources, settings: &Settings) -> Limits {
    let milli_limit = resources.limits.get("cpu").map_or(0, Quantity::milli_value);
    let milli_request = resources.request_milli_cpu();
    let mut limits = Limits::weight(shares(milli_request));
    let limited = resources.cpu_limited && settings.quota && class != QosClass::BestEffort;
    limits.quota = Some(
        quota(milli_limit, settings.period_micros)
            .filter(|_| limited)
            .unwrap_or(-1),
    );
    limits.period = Some(settings.period_micros);
    let memory = resources.limits.get("memory").map(Quantity::value);
    limits.memory = Some(
        memory
            .filter(|bytes| resources.memory_limited && *bytes > 0)
            .unwrap_or(-1),
    );
    if class == QosClass::BestEffort {
        limits.shares = Some(LEAST_SHARES);
        limits.memory = Some(-1);
    }
    limits.pids = settings.pod_pids;
    limits.hugepages = hugepages(&resources.limits, &settings.page_sizes);
    limits
}

/// Those of all pods together. Without enforcement they have their weight only.
#[must_use]
pub fn of_node(enforced: &Amounts, enforce: bool, page_sizes: &BTreeMap<String, String>) -> Limits {
    let mut limits = Limits::weight(shares(enforced.get("cpu").map_or(0, Quantity::milli_value)));
    if enforce {
        limits.memory = enforced.get("memory").map(Quantity::value);
        limits.pids = enforced.get("pid").map(Quantity::value);
        limits.hugepages = hugepages(enforced, page_sizes);
    }
    limits
}

/// Those of a cgroup that something is reserved for: CPU alone where only what can be compressed is enforced.
#[must_use]
pub fn of_reserved(amounts: &Amounts, compressible: bool) -> Limits {
    let mut limits = Limits {
        shares: amounts.get("cpu").map(|cpu| shares(cpu.milli_value())),
        ..Limits::default()
    };
    if !compressible {
        limits.memory = amounts.get("memory").map(Quantity::value);
        limits.pids = amounts.get("pid").map(Quantity::value);
    }
    limits
}

/// What of the limits this host has no controller for is left out where nothing depends on it.
pub(super) fn is_harmless(error: &CgroupError, limits: &Limits) -> bool {
    let none = limits.hugepages.values().all(|limit| *limit == 0);
    none && error.to_string().contains("hugetlb")
}
