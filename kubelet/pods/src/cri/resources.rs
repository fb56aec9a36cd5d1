//! Requests and limits as the kernel's settings, of containers and of whole pods.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use cri_api::v1::{HugepageLimit, LinuxContainerResources};

use super::facts::{CpuQuota, NodeFacts, SwapBehavior};
use super::labels;
use super::quantity::{self, ResourceList};
use super::sandbox::spec;
use crate::containers::is_sidecar;

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA_MICROS: i64 = 1000;
const GUARANTEED_OOM: i64 = -997;
const BEST_EFFORT_OOM: i64 = 1000;
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Billionths of each resource, by name.
pub(crate) type Totals = BTreeMap<String, i128>;

/// How much a pod can rely on what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    /// It asks for nothing.
    BestEffort,
    /// It asks for something.
    Burstable,
    /// Every container has limits for CPU and memory and asks for just that.
    Guaranteed,
}

impl QosClass {
    /// As `status.qosClass` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::BestEffort => "BestEffort",
            QosClass::Burstable => "Burstable",
            QosClass::Guaranteed => "Guaranteed",
        }
    }
}

/// A pod's QoS class: what its status says, else what its spec amounts to.
pub fn qos_class(pod: &Pod) -> QosClass {
    match crate::status::qos::qos_class(pod) {
        "Guaranteed" => QosClass::Guaranteed,
        "Burstable" => QosClass::Burstable,
        _ => QosClass::BestEffort,
    }
}

/// What the pod asks for as a whole, where it does.
fn pod_level(pod: &Pod) -> Option<&ResourceRequirements> {
    let resources = spec(pod).resources.as_ref()?;
    let lists = [&resources.requests, &resources.limits];
    lists
        .into_iter()
        .flatten()
        .flat_map(BTreeMap::keys)
        .any(|name| is_pod_level(name))
        .then_some(resources)
}

fn is_pod_level(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-")
}

pub(crate) fn requests(container: &Container) -> Option<&ResourceList> {
    container.resources.as_ref()?.requests.as_ref()
}

pub(crate) fn limits(container: &Container) -> Option<&ResourceList> {
    container.resources.as_ref()?.limits.as_ref()
}

/// Which of a container's or a pod's two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Requests,
    Limits,
}

/// What a pod asks for, or is limited to, as a whole: the sum of the regular containers and sidecars, or what init
/// containers need before them, whichever is more; what it says at pod level wins.
pub(crate) fn pod_totals(pod: &Pod, which: Which, with_overhead: bool) -> Totals {
    let spec = spec(pod);
    let list = |container: &'_ Container| -> Totals {
        let list = match which {
            Which::Requests => requests(container),
            Which::Limits => limits(container),
        };
        list.into_iter()
            .flatten()
            .filter_map(|(name, q)| Some((name.clone(), quantity::nanos(q)?)))
            .collect()
    };
    let add = |totals: &mut Totals, more: &Totals| {
        for (name, amount) in more {
            *totals.entry(name.clone()).or_default() += amount;
        }
    };
    let mut totals = Totals::new();
    for container in &spec.containers {
        add(&mut totals, &list(container));
    }
    let (mut sidecars, mut most) = (Totals::new(), Totals::new());
    for container in spec.init_containers.iter().flatten() {
        let mut now = list(container);
        if is_sidecar(container) {
            add(&mut totals, &now);
            add(&mut sidecars, &now);
            now = sidecars.clone();
        } else {
            add(&mut now, &sidecars);
        }
        for (name, amount) in now {
            let known = most.entry(name).or_default();
            *known = (*known).max(amount);
        }
    }
    for (name, amount) in most {
        let total = totals.entry(name).or_default();
        *total = (*total).max(amount);
    }
    if let Some(resources) = pod_level(pod) {
        let list = match which {
            Which::Requests => resources.requests.as_ref(),
            Which::Limits => resources.limits.as_ref(),
        };
        for (name, q) in list.into_iter().flatten().filter(|(name, _)| is_pod_level(name)) {
            totals.insert(name.clone(), quantity::nanos(q).unwrap_or(0));
        }
    }
    if with_overhead {
        for (name, q) in spec.overhead.iter().flatten() {
            let amount = quantity::nanos(q).unwrap_or(0);
            match totals.get_mut(name) {
                Some(total) if which == Which::Requests || *total > 0 => *total += amount,
                None if which == Which::Requests => {
                    totals.insert(name.clone(), amount);
                }
                _ => {}
            }
        }
    }
    totals
}

/// `cpu.shares` for thousandths of a CPU.
pub fn milli_to_shares(milli: i64) -> i64 {
    milli
        .saturating_mul(1024)
        .div_euclid(1000)
        .clamp(MIN_SHARES, MAX_SHARES)
}

/// The CFS quota in microseconds for thousandths of a CPU; 0 without a limit.
pub fn milli_to_quota(milli: i64, quota: CpuQuota) -> i64 {
    match milli {
        0 => 0,
        milli => (milli.saturating_mul(period_micros(quota)) / 1000).max(MIN_QUOTA_MICROS),
    }
}

pub(crate) fn period_micros(quota: CpuQuota) -> i64 {
    i64::try_from(quota.period.as_micros()).unwrap_or(i64::MAX)
}

/// CPU and memory as CRI has them. `request` is none where there is none; the limit then stands for it.
fn basic(request: Option<i64>, limit: i64, memory: i64, facts: &NodeFacts) -> LinuxContainerResources {
    let mut resources = LinuxContainerResources {
        cpu_shares: milli_to_shares(request.unwrap_or(limit)),
        memory_limit_in_bytes: memory,
        ..LinuxContainerResources::default()
    };
    if facts.cpu_quota.enforced {
        resources.cpu_quota = milli_to_quota(limit, facts.cpu_quota);
        resources.cpu_period = period_micros(facts.cpu_quota);
    }
    if facts.cgroup.v2 && !facts.single_process_oom_kill {
        resources
            .unified
            .insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    resources
}

/// What the sandbox's runtime is told of the containers together.
pub(crate) fn sandbox(pod: &Pod, facts: &NodeFacts) -> LinuxContainerResources {
    let (requests, limits) = (
        pod_totals(pod, Which::Requests, false),
        pod_totals(pod, Which::Limits, false),
    );
    let of = |totals: &Totals, name: &str| totals.get(name).copied();
    basic(
        of(&requests, "cpu").map(quantity::thousandths),
        quantity::thousandths(of(&limits, "cpu").unwrap_or(0)),
        quantity::whole(of(&limits, "memory").unwrap_or(0)),
        facts,
    )
}

/// What the pod's sandbox itself costs.
pub(crate) fn overhead(pod: &Pod, facts: &NodeFacts) -> LinuxContainerResources {
    match spec(pod).overhead.as_ref() {
        None => LinuxContainerResources::default(),
        some => {
            let cpu = quantity::milli(some, "cpu");
            basic(Some(cpu), cpu, quantity::value(some, "memory"), facts)
        }
    }
}

/// A container's limits: its own, or where it has none the pod's.
fn effective_limit(pod: &Pod, container: &Container, name: &str) -> i128 {
    match quantity::amount(limits(container), name) {
        0 => quantity::amount(
            pod_level(pod).and_then(|resources| resources.limits.as_ref()),
            name,
        ),
        amount => amount,
    }
}

/// A container's resources, but for its CPU set, which is not the spec's to say.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts,
    exclusive_cpus: bool,
) -> LinuxContainerResources {
    let asked = requests(container);
    let request = asked
        .filter(|list| list.contains_key("cpu"))
        .map(|_| quantity::milli(asked, "cpu"));
    let mut resources = basic(
        request,
        quantity::thousandths(effective_limit(pod, container, "cpu")),
        quantity::whole(effective_limit(pod, container, "memory")),
        facts,
    );
    if exclusive_cpus && facts.cpu_quota.enforced {
        resources.cpu_quota = -1;
    }
    resources.oom_score_adj = oom_score_adj(pod, container, facts.memory_capacity);
    resources.hugepage_limits = hugepages(limits(container), facts);
    set_swap(&mut resources, pod, container, facts);
    set_memory_qos(&mut resources, container, facts);
    resources
}

/// A limit for every page size that the node knows, 0 where the container asks for none.
fn hugepages(limits: Option<&ResourceList>, facts: &NodeFacts) -> Vec<HugepageLimit> {
    let asked = hugepage_limits(limits);
    let limit = |size: &String| HugepageLimit {
        page_size: size.clone(),
        limit: asked
            .get(size)
            .copied()
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or(0),
    };
    facts.cgroup.hugepage_sizes.iter().map(limit).collect()
}

/// Bytes by page size, named as the kernel does.
fn hugepage_limits(list: Option<&ResourceList>) -> BTreeMap<String, i64> {
    let mut sizes = BTreeMap::new();
    for (name, amount) in list.into_iter().flatten() {
        let Some(size) = name.strip_prefix("hugepages-").and_then(page_size) else {
            continue;
        };
        let bytes = quantity::nanos(amount).map(quantity::whole).unwrap_or(0);
        *sizes.entry(size).or_default() += bytes;
    }
    sizes
}

/// A page size as the hugetlb controller names it: `2Mi` is `2MB`.
fn page_size(text: &str) -> Option<String> {
    use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    let mut size = quantity::whole(quantity::nanos(&Quantity(text.to_owned()))?);
    if size <= 0 {
        return None;
    }
    for unit in ["B", "KB", "MB", "GB", "TB", "PB"] {
        if size < 1024 || unit == "PB" {
            return Some(format!("{size}{unit}"));
        }
        size /= 1024;
    }
    None
}

/// Whether a pod must not be evicted or preempted: a static one, a mirror of one, or one of system priority.
pub fn is_critical(pod: &Pod) -> bool {
    labels::is_static(pod)
        || labels::is_mirror(pod)
        || spec(pod)
            .priority
            .is_some_and(|priority| priority >= SYSTEM_CRITICAL_PRIORITY)
}

/// How early the kernel kills a container when memory runs out: the more of the node's memory it asked for, the later.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: u64) -> i64 {
    let node_critical =
        is_critical(pod) && spec(pod).priority_class_name.as_deref() == Some("system-node-critical");
    match qos_class(pod) {
        _ if node_critical => return GUARANTEED_OOM,
        QosClass::Guaranteed => return GUARANTEED_OOM,
        QosClass::BestEffort => return BEST_EFFORT_OOM,
        QosClass::Burstable => {}
    }
    let capacity = i64::try_from(memory_capacity).unwrap_or(i64::MAX).max(1);
    let score = |request: i64| {
        let part = i128::from(request) * 1000 / i128::from(capacity);
        1000 - i64::try_from(part).unwrap_or(i64::MAX)
    };
    let spec = spec(pod);
    let regular = spec.containers.iter();
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    let of = |container: &Container| quantity::value(requests(container), "memory");
    let remaining = match pod_level(pod).and_then(|resources| resources.requests.as_ref()) {
        Some(list) if list.contains_key("memory") => {
            let all: Vec<i64> = regular.clone().chain(sidecars).map(of).collect();
            let rest = quantity::value(Some(list), "memory") - all.iter().sum::<i64>();
            rest.max(0) / i64::try_from(all.len().max(1)).unwrap_or(1)
        }
        _ => 0,
    };
    let mut adjusted = score(of(container).saturating_add(remaining));
    let sidecar = spec
        .init_containers
        .iter()
        .flatten()
        .any(|c| c.name == container.name && is_sidecar(c));
    if sidecar {
        let least = regular.map(of).min().unwrap_or(0).saturating_add(remaining);
        adjusted = adjusted.min(score(least));
    }
    adjusted.clamp(1000 + GUARANTEED_OOM, BEST_EFFORT_OOM - 1)
}

fn set_swap(resources: &mut LinuxContainerResources, pod: &Pod, container: &Container, facts: &NodeFacts) {
    if !facts.cgroup.swap_controller {
        return;
    }
    if !facts.cgroup.v2 {
        resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes;
        return;
    }
    let request = quantity::value(requests(container), "memory");
    let limit = quantity::value(limits(container), "memory");
    let may_swap = facts.swap == SwapBehavior::LimitedSwap
        && !is_critical(pod)
        && qos_class(pod) == QosClass::Burstable
        && (request, limit) != (0, 0)
        && request != limit;
    let bytes = match u64::try_from(request) {
        Ok(request) if may_swap && facts.memory_capacity > 0 && request <= facts.memory_capacity => {
            u128::from(request) * u128::from(facts.swap_capacity) / u128::from(facts.memory_capacity)
        }
        _ => 0,
    };
    resources
        .unified
        .insert("memory.swap.max".to_owned(), bytes.to_string());
}

fn set_memory_qos(resources: &mut LinuxContainerResources, container: &Container, facts: &NodeFacts) {
    let Some(qos) = facts.memory_qos.filter(|_| facts.cgroup.v2) else {
        return;
    };
    let request = quantity::value(requests(container), "memory");
    let limit = quantity::value(limits(container), "memory");
    if request != 0 {
        resources
            .unified
            .insert("memory.min".to_owned(), request.to_string());
    }
    if request == limit {
        return;
    }
    let most = if limit != 0 {
        limit
    } else {
        facts.allocatable.memory
    };
    let page = qos.page_size.max(1);
    let wanted = request as f64 + (most as f64 - request as f64) * qos.throttling_factor;
    let high = (wanted / page as f64).floor() as i64 * page;
    if most > 0 && high > request {
        resources
            .unified
            .insert("memory.high".to_owned(), high.to_string());
    }
}

/// Settings of a pod's own cgroup; what is none isn't set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodCgroupResources {
    /// `cpu.shares`, from which v2's weight is made.
    pub cpu_shares: Option<i64>,
    /// Microseconds per period; -1 is without limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<i64>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Bytes by page size.
    pub hugepages: BTreeMap<String, i64>,
    /// Processes.
    pub pids: Option<i64>,
    /// Files of v2.
    pub unified: BTreeMap<String, String>,
}

/// What a pod's own cgroup is set to, by its QoS class: limits only where every container has one.
pub fn pod_cgroup_resources(pod: &Pod, facts: &NodeFacts) -> PodCgroupResources {
    let requests = pod_totals(pod, Which::Requests, true);
    let limits_total = pod_totals(pod, Which::Limits, true);
    let of = |totals: &Totals, name: &str| totals.get(name).copied().unwrap_or(0);
    let spec = spec(pod);
    let declared = |name: &str| {
        let all = || {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        };
        let whole = pod_level(pod).and_then(|resources| resources.limits.as_ref());
        quantity::amount(whole, name) != 0 || all().all(|c| quantity::amount(limits(c), name) != 0)
    };
    let qos = qos_class(pod);
    let mut result = PodCgroupResources {
        pids: facts.pod_pids_limit,
        ..PodCgroupResources::default()
    };
    let shares = milli_to_shares(quantity::thousandths(of(&requests, "cpu")));
    result.cpu_shares = Some(if qos == QosClass::BestEffort {
        MIN_SHARES
    } else {
        shares
    });
    if qos == QosClass::Guaranteed || (qos == QosClass::Burstable && declared("cpu")) {
        let quota = milli_to_quota(quantity::thousandths(of(&limits_total, "cpu")), facts.cpu_quota);
        result.cpu_quota = Some(if facts.cpu_quota.enforced { quota } else { -1 });
        result.cpu_period = Some(period_micros(facts.cpu_quota));
    }
    if qos == QosClass::Guaranteed || (qos == QosClass::Burstable && declared("memory")) {
        result.memory = Some(quantity::whole(of(&limits_total, "memory")));
    }
    for (name, amount) in &limits_total {
        if let Some(size) = name.strip_prefix("hugepages-").and_then(page_size) {
            *result.hugepages.entry(size).or_default() += quantity::whole(*amount);
        }
    }
    let request = quantity::whole(of(&requests, "memory"));
    if facts.memory_qos.is_some() && facts.cgroup.v2 && request > 0 {
        result
            .unified
            .insert("memory.min".to_owned(), request.to_string());
    }
    result
}
