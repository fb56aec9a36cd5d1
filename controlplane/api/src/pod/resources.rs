//! What a pod and its containers request and are limited to, and the QoS class that follows.
//!
//! The sums are those of k8s.io/component-helpers/resource, since scheduler, kubelet and quota must agree: containers
//! and sidecars add up; an init container needs what it says and what the sidecars before it need; the pod needs the
//! larger of the two. Requests and limits of the pod itself replace the sums of its containers, and the overhead of
//! its runtime comes on top. Resource claims (DRA) are not counted.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

use super::{init_containers, is_sidecar, list, spec_of};
use crate::quantity::Quantity;

/// Resources by name as they stand in an object.
pub type ResourceList = BTreeMap<String, Wire>;

/// Resources by name, to reckon with.
pub type Amounts = BTreeMap<String, Quantity>;

/// What is counted; by default, what stands in the spec, with pod-level resources and overhead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting {
    /// Without the overhead of the pod's runtime.
    pub without_overhead: bool,
    /// Without the resources of the pod as a whole.
    pub without_pod_level: bool,
    /// With what the status says was allocated and is in force, if that is more: while a resize is under way.
    pub with_status: bool,
}

/// How a pod is treated when its node runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    /// Nothing requested or limited.
    BestEffort,
    /// Something requested or limited.
    Burstable,
    /// CPU and memory limited, and just that requested.
    Guaranteed,
}

impl QosClass {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::BestEffort => "BestEffort",
            QosClass::Burstable => "Burstable",
            QosClass::Guaranteed => "Guaranteed",
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The amounts of a list; what is no quantity counts as 0.
pub fn amounts(list: Option<&ResourceList>) -> Amounts {
    let amount = |wire: &Wire| Quantity::try_from(wire).unwrap_or_default();
    list.into_iter()
        .flatten()
        .map(|(name, wire)| (name.clone(), amount(wire)))
        .collect()
}

/// Whether a resource may be requested and limited for a pod as a whole.
pub fn is_pod_level_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge_page(name)
}

/// Whether a resource is a size of huge pages.
pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether a resource is one of Kubernetes' own.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether requests may be smaller than limits.
pub fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

pub(crate) fn limits(resources: &Option<ResourceRequirements>) -> Option<&ResourceList> {
    resources.as_ref().and_then(|resources| resources.limits.as_ref())
}

pub(crate) fn requests(resources: &Option<ResourceRequirements>) -> Option<&ResourceList> {
    resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref())
}

fn has_pod_level(list: Option<&ResourceList>) -> bool {
    list.is_some_and(|list| list.keys().any(|name| is_pod_level_resource(name)))
}

/// Whether the pod as a whole requests something.
pub fn has_pod_level_requests(pod: &Pod) -> bool {
    has_pod_level(requests(&spec_of(pod).resources))
}

/// Whether the pod as a whole is limited in something.
pub fn has_pod_level_limits(pod: &Pod) -> bool {
    has_pod_level(limits(&spec_of(pod).resources))
}

fn add_all(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        sum.entry(name.clone())
            .and_modify(|sum| sum.add(amount))
            .or_insert_with(|| amount.clone());
    }
}

fn max_all(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        match most.get(name) {
            Some(known) if known >= amount => {}
            _ => {
                most.insert(name.clone(), amount.clone());
            }
        }
    }
}

/// What a container requests: of each resource what it says, else its limit.
pub fn container_requests(container: &Container) -> Amounts {
    let mut all = amounts(limits(&container.resources));
    all.extend(amounts(requests(&container.resources)));
    all
}

/// What a container is limited to.
pub fn container_limits(container: &Container) -> Amounts {
    amounts(limits(&container.resources))
}

fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = list(&status.container_statuses)
        .iter()
        .chain(list(&status.init_container_statuses));
    all.into_iter().find(|status| status.name == name)
}

/// Whether the pod asks for more than its node can ever give.
pub fn is_resize_infeasible(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .map_or(&[][..], |status| list(&status.conditions));
    let pending = conditions
        .iter()
        .find(|condition| condition.type_ == "PodResizePending");
    pending.is_some_and(|condition| condition.reason.as_deref() == Some("Infeasible"))
}

/// Adds up the containers, `of` saying what each counts.
fn aggregate(pod: &Pod, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let spec = spec_of(pod);
    let mut sum = Amounts::new();
    for container in &spec.containers {
        add_all(&mut sum, &of(container));
    }
    let mut sidecars = Amounts::new();
    let mut starting = Amounts::new();
    for container in init_containers(&spec) {
        let own = of(container);
        if is_sidecar(container) {
            add_all(&mut sum, &own);
            add_all(&mut sidecars, &own);
            max_all(&mut starting, &sidecars);
        } else {
            let mut needed = own;
            add_all(&mut needed, &sidecars);
            max_all(&mut starting, &needed);
        }
    }
    max_all(&mut sum, &starting);
    sum
}

/// The containers' requests together.
pub fn aggregate_container_requests(pod: &Pod, counting: Counting) -> Amounts {
    let in_spec = |container: &Container| amounts(requests(&container.resources));
    if !counting.with_status {
        return aggregate(pod, in_spec);
    }
    let infeasible = is_resize_infeasible(pod);
    let fallback = |container: &Container| {
        if infeasible {
            Amounts::new()
        } else {
            in_spec(container)
        }
    };
    let allocated = aggregate(pod, |container| {
        match status_of(pod, &container.name).and_then(|status| status.allocated_resources.as_ref()) {
            Some(allocated) => amounts(Some(allocated)),
            None => fallback(container),
        }
    });
    let actuated = aggregate(pod, |container| {
        let status = status_of(pod, &container.name);
        let in_force = status.and_then(|status| requests(&status.resources));
        match in_force.or_else(|| status.and_then(|status| status.allocated_resources.as_ref())) {
            Some(list) => amounts(Some(list)),
            None => fallback(container),
        }
    });
    let mut most = if infeasible {
        Amounts::new()
    } else {
        aggregate(pod, in_spec)
    };
    max_all(&mut most, &actuated);
    max_all(&mut most, &allocated);
    most
}

/// The containers' limits together.
pub fn aggregate_container_limits(pod: &Pod, counting: Counting) -> Amounts {
    let in_spec = |container: &Container| amounts(limits(&container.resources));
    if !counting.with_status {
        return aggregate(pod, in_spec);
    }
    let infeasible = is_resize_infeasible(pod);
    let actuated = aggregate(pod, |container| {
        match status_of(pod, &container.name).and_then(|status| limits(&status.resources)) {
            Some(in_force) => amounts(Some(in_force)),
            None if infeasible => Amounts::new(),
            None => in_spec(container),
        }
    });
    let mut most = if infeasible {
        Amounts::new()
    } else {
        aggregate(pod, in_spec)
    };
    max_all(&mut most, &actuated);
    most
}

fn replace_by_pod_level(sums: &mut Amounts, pod_level: Option<&ResourceList>) {
    let own = amounts(pod_level).into_iter();
    sums.extend(own.filter(|(name, _)| is_pod_level_resource(name)));
}

/// What a pod requests of its node.
pub fn pod_requests(pod: &Pod, counting: Counting) -> Amounts {
    let spec = spec_of(pod);
    let mut sums = aggregate_container_requests(pod, counting);
    if !counting.without_pod_level && has_pod_level_requests(pod) {
        replace_by_pod_level(&mut sums, requests(&spec.resources));
    }
    if !counting.without_overhead {
        add_all(&mut sums, &amounts(spec.overhead.as_ref()));
    }
    sums
}

/// What a pod is limited to. Overhead only comes on top of a limit that there is.
pub fn pod_limits(pod: &Pod, counting: Counting) -> Amounts {
    let spec = spec_of(pod);
    let mut sums = aggregate_container_limits(pod, counting);
    if !counting.without_pod_level && (has_pod_level_requests(pod) || has_pod_level_limits(pod)) {
        replace_by_pod_level(&mut sums, limits(&spec.resources));
    }
    if !counting.without_overhead {
        for (name, overhead) in amounts(spec.overhead.as_ref()) {
            if let Some(sum) = sums.get_mut(&name).filter(|sum| !sum.is_zero()) {
                sum.add(&overhead);
            }
        }
    }
    sums
}

/// The positive amounts of CPU and memory.
fn decisive(list: Option<&ResourceList>) -> Amounts {
    let mut amounts = amounts(list);
    amounts.retain(|name, amount| matches!(&**name, "cpu" | "memory") && amount.signum() > 0);
    amounts
}

/// The pod's QoS class by its spec: by the resources of the pod as a whole if it has any, else by its containers'.
pub fn qos_class(pod: &Pod) -> QosClass {
    let spec = spec_of(pod);
    let mut requested = Amounts::new();
    let mut limited = Amounts::new();
    let mut all_limited = true;
    let mut count = |resources: &Option<ResourceRequirements>, must_limit: bool| {
        add_all(&mut requested, &decisive(requests(resources)));
        let own = decisive(limits(resources));
        all_limited &= own.len() == 2 || !must_limit;
        add_all(&mut limited, &own);
    };
    if has_pod_level_requests(pod) || has_pod_level_limits(pod) {
        let has_limits = limits(&spec.resources).is_some_and(|limits| !limits.is_empty());
        count(&spec.resources, has_limits);
    } else {
        for container in spec.containers.iter().chain(init_containers(&spec)) {
            count(&container.resources, true);
        }
    }
    if requested.is_empty() && limited.is_empty() {
        QosClass::BestEffort
    } else if all_limited && requested == limited {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

#[cfg(test)]
mod tests;
