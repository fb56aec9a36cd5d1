//! Whether a pod may run on this node, by what the node has and the pods that are here already.
//!
//! [`admit`] asks in upstream's order, and the first objection is the pod's `reason` and `message`
//! ([`crate::status::rejected`]). A critical pod (static, mirror, or of a system priority) that only lacks resources may push
//! others out: [`Admission::Preempt`] names them.

mod affinity;
mod preemption;
mod requests;
mod sysctls;

use std::collections::{BTreeMap, BTreeSet};

use controlplane_api::k8s_openapi::api::core::v1::{ContainerPort, Pod, Taint};
use controlplane_api::pod::resources::QosClass;

use crate::containers::{init_containers, is_sidecar, regular_containers, spec};
use crate::quantity::Resources;
use crate::status::StatusOverride;
use crate::status::qos;
use requests::PodRequests;

/// The priority from which on a pod is critical.
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What the node is and has.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// Conditions of want that hold now: `MemoryPressure`, `DiskPressure`, `PIDPressure`.
    pub pressure: BTreeSet<String>,
    /// Names and prefixes (`net.core.*`) of sysctls that the node's administrator allows beyond the safe ones.
    pub allowed_sysctls: Vec<String>,
    /// Whether AppArmor is on.
    pub app_armor: bool,
    /// Whether the runtime handles `supplementalGroupsPolicy: Strict`.
    pub strict_groups: bool,
}

/// Whether a pod may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Admitted,
    /// It may once these pods (by UID) have ended, which must end for it.
    Preempt {
        /// Least important last.
        victims: Vec<String>,
    },
    /// It may not.
    Rejected(Rejection),
}

/// Why a pod may not run: `status.reason` and what follows "Pod was rejected: " in `status.message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Such as `OutOfcpu`, `NodeAffinity`, `NodePorts`.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Rejection {
    fn new(reason: &str, message: String) -> Self {
        Self {
            reason: reason.to_owned(),
            message,
        }
    }

    /// One of the scheduler's predicates.
    fn predicate(name: &str, why: &str) -> Self {
        Self::new(name, format!("Predicate {name} failed: {why}"))
    }
}

/// A resource of which the node has too little left.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shortage {
    resource: String,
    requested: i64,
    used: i64,
    capacity: i64,
}

impl Shortage {
    fn missing(&self) -> i64 {
        self.requested
            .saturating_sub(self.capacity.saturating_sub(self.used))
    }

    fn rejection(&self) -> Rejection {
        let Self {
            resource,
            requested,
            used,
            capacity,
        } = self;
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Rejection::new(&format!("OutOf{resource}"), message)
    }
}

/// Whether the pod may run beside `others`: the pods that were admitted and haven't ended, with their allocated resources.
pub fn admit(pod: &Pod, node: &Node, others: &[&Pod]) -> Admission {
    if let Some(rejection) = pressure(pod, node)
        .or_else(|| sysctls::objection(pod, node))
        .or_else(|| software(pod, node))
    {
        return Admission::Rejected(rejection);
    }
    let shortages = shortages(pod, node, others);
    let predicates = [
        affinity::objection(pod, node),
        node_name(pod, node),
        host_ports(pod, others),
        taints(pod, node),
    ];
    let mut predicates = predicates.into_iter().flatten();
    let Some(shortage) = shortages.first() else {
        return predicates.next().map_or(Admission::Admitted, Admission::Rejected);
    };
    if !is_critical(pod) {
        return Admission::Rejected(shortage.rejection());
    }
    if let Some(rejection) = predicates.next() {
        return Admission::Rejected(rejection);
    }
    match preemption::victims(pod, others, &shortages) {
        Ok(victims) => Admission::Preempt { victims },
        Err(left) => {
            let message = format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of \
                 pods to preempt: no set of running pods found to reclaim resources: {left}"
            );
            Admission::Rejected(Rejection::new("UnexpectedAdmissionError", message))
        }
    }
}

/// Whether a running pod may have the resources that its spec asks for now, beside `others`, of which it is none. What it
/// isn't given is [`crate::status::ResizeStatus::pending`]: reason and message.
pub fn admit_resize(pod: &Pod, node: &Node, others: &[&Pod]) -> Result<(), (String, String)> {
    let refused = |reason: &str, message: String| Err((reason.to_owned(), message));
    if is_static(pod) {
        return refused(
            "Infeasible",
            "In-place resize of static-pods is not supported".to_owned(),
        );
    }
    let wanted = PodRequests::of(pod);
    for name in ["memory", "cpu"] {
        let capacity = crate::quantity::amount(Some(&node.allocatable), name).unwrap_or(0);
        let requested = wanted.amount(name);
        if requested > capacity {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
            );
            return refused("Infeasible", message);
        }
    }
    match shortages(pod, node, others).first() {
        Some(shortage) => refused("Deferred", shortage.rejection().message),
        None => Ok(()),
    }
}

/// What the status of a pod says that was pushed out.
pub fn preempted() -> StatusOverride {
    StatusOverride {
        reason: "Preempting".to_owned(),
        message: "Preempted in order to admit critical pod".to_owned(),
        failed: true,
        disruption: Some((
            "TerminationByKubelet".to_owned(),
            "Pod was preempted by Kubelet to accommodate a critical pod.".to_owned(),
        )),
    }
}

/// Whether a pod comes from a file or URL.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, "kubernetes.io/config.source").is_some_and(|source| source != "api")
}

/// Whether a pod is one that the node can't do without.
pub fn is_critical(pod: &Pod) -> bool {
    let mirror = annotation(pod, "kubernetes.io/config.mirror").is_some();
    is_static(pod)
        || mirror
        || spec(pod)
            .and_then(|spec| spec.priority)
            .is_some_and(|one| one >= CRITICAL_PRIORITY)
}

fn annotation<'p>(pod: &'p Pod, name: &str) -> Option<&'p str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// A node in want takes only critical pods; in want of memory alone also those that ask for some, or tolerate it.
fn pressure(pod: &Pod, node: &Node) -> Option<Rejection> {
    if node.pressure.is_empty() || is_critical(pod) {
        return None;
    }
    if node.pressure.iter().eq(["MemoryPressure"]) {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Default::default()
        };
        if qos::class(pod) != QosClass::BestEffort || affinity::tolerates(pod, &taint) {
            return None;
        }
    }
    let all: Vec<_> = node.pressure.iter().map(String::as_str).collect();
    Some(Rejection::new(
        "Evicted",
        format!("The node had condition: [{}]. ", all.join(" ")),
    ))
}

/// Operating system and what else the node's software must be able to do.
fn software(pod: &Pod, node: &Node) -> Option<Rejection> {
    let label = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        let message =
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label".to_owned();
        return Some(Rejection::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    let spec = spec(pod)?;
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS".to_owned();
        return Some(Rejection::new("PodOSNotSupported", message));
    }
    let context = spec.security_context.as_ref();
    let policy = context.and_then(|context| context.supplemental_groups_policy.as_deref());
    if policy == Some("Strict") && !node.strict_groups {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node".to_owned();
        return Some(Rejection::new("SupplementalGroupsPolicyNotSupported", message));
    }
    let of_pod = context.and_then(|context| context.app_armor_profile.as_ref());
    let wants_app_armor = init_containers(pod)
        .iter()
        .chain(regular_containers(pod))
        .any(|one| {
            let own = one
                .security_context
                .as_ref()
                .and_then(|context| context.app_armor_profile.as_ref());
            own.or(of_pod)
                .is_some_and(|profile| profile.type_ != "Unconfined")
        });
    if wants_app_armor && !node.app_armor {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned();
        return Some(Rejection::new("AppArmor", message));
    }
    None
}

/// Resources that don't suffice: pods first, then CPU, memory, local storage and all others by name. Extended resources that
/// the node doesn't have at all are left to whoever has.
fn shortages(pod: &Pod, node: &Node, others: &[&Pod]) -> Vec<Shortage> {
    let capacity = |name: &str| crate::quantity::amount(Some(&node.allocatable), name);
    let mut shortages = Vec::new();
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    let most = capacity("pods").unwrap_or(0);
    if count >= most {
        shortages.push(Shortage {
            resource: "pods".to_owned(),
            requested: 1,
            used: count,
            capacity: most,
        });
    }
    let wanted = PodRequests::of(pod);
    let taken: Vec<_> = others.iter().map(|other| PodRequests::of(other)).collect();
    let first = ["cpu", "memory", "ephemeral-storage"];
    let rest = wanted.names().filter(|name| !first.contains(name));
    for name in first.into_iter().chain(rest) {
        let requested = wanted.amount(name);
        let capacity = capacity(name);
        let is_extended = name.contains('/') && !name.starts_with("kubernetes.io/");
        if requested <= 0 || (is_extended && capacity.is_none()) {
            continue;
        }
        let used = taken
            .iter()
            .fold(0_i64, |sum, one| sum.saturating_add(one.amount(name)));
        let capacity = capacity.unwrap_or(0);
        if requested > capacity.saturating_sub(used) {
            shortages.push(Shortage {
                resource: name.to_owned(),
                requested,
                used,
                capacity,
            });
        }
    }
    shortages
}

fn node_name(pod: &Pod, node: &Node) -> Option<Rejection> {
    let name = spec(pod)?.node_name.as_deref().filter(|name| !name.is_empty())?;
    (name != node.name)
        .then(|| Rejection::predicate("NodeName", "node(s) didn't match the requested node name"))
}

/// Ports of the host that a pod takes: those of regular containers and sidecars.
fn ports_of(pod: &Pod) -> impl Iterator<Item = (&ContainerPort, i32)> {
    let host = spec(pod).is_some_and(|spec| spec.host_network == Some(true));
    let sidecars = init_containers(pod).iter().filter(|one| is_sidecar(one));
    sidecars
        .chain(regular_containers(pod))
        .flat_map(|one| one.ports.iter().flatten())
        .filter_map(move |port| {
            let number = port
                .host_port
                .filter(|&number| number > 0)
                .or(host.then_some(port.container_port))?;
            Some((port, number))
        })
}

fn host_ports(pod: &Pod, others: &[&Pod]) -> Option<Rejection> {
    let anywhere = |ip: &str| matches!(ip, "" | "0.0.0.0");
    let clashes = |(a, a_number): (&ContainerPort, i32), (b, b_number): (&ContainerPort, i32)| {
        let ip = |port: &ContainerPort| port.host_ip.clone().unwrap_or_default();
        let protocol = |port: &ContainerPort| port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let (a_ip, b_ip) = (ip(a), ip(b));
        a_number == b_number
            && protocol(a) == protocol(b)
            && (a_ip == b_ip || anywhere(&a_ip) || anywhere(&b_ip))
    };
    let taken = ports_of(pod).any(|mine| {
        others
            .iter()
            .any(|other| ports_of(other).any(|theirs| clashes(mine, theirs)))
    });
    taken.then(|| {
        Rejection::predicate(
            "NodePorts",
            "node(s) didn't have free ports for the requested pod ports",
        )
    })
}

/// Only taints that end what runs matter here, and static pods don't mind them.
fn taints(pod: &Pod, node: &Node) -> Option<Rejection> {
    if is_static(pod) {
        return None;
    }
    let minds = |taint: &&Taint| taint.effect == "NoExecute" && !affinity::tolerates(pod, taint);
    node.taints.iter().find(minds)?;
    Some(Rejection::predicate(
        "TaintToleration",
        "node(s) had taints that the pod didn't tolerate",
    ))
}

#[cfg(test)]
mod tests;
