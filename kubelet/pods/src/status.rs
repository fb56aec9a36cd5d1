//! What the API says of a pod: its `status`, made from what is observed, what probes say, why containers wait, and what was
//! said before.
//!
//! [`pod_status`] is the whole of it for pods that run or end; [`rejected`] is for pods that the node doesn't admit. What was
//! said before matters: a final phase stays, counts never go down, times of transitions are kept, and a container that the
//! runtime has lost is told of by what it was. Times are in whole seconds, as the API has them.

pub mod qos;

mod conditions;
mod containers;
mod phase;

use std::collections::BTreeMap;
use std::net::IpAddr;

use controlplane_api::k8s_openapi::api::core::v1::{HostIP, Pod, PodCondition, PodIP, PodStatus};
use controlplane_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use jiff::Timestamp;

use crate::actions::Waiting;
use crate::containers as spec;
use crate::observed::ObservedPod;
use crate::probe::ProbeResults;

pub use conditions::READY;

/// All that a status is made from.
#[derive(Debug, Clone, Copy)]
pub struct StatusInputs<'a> {
    /// The pod as its source has it, with the allocated resources in its spec.
    pub pod: &'a Pod,
    /// What the runtime holds.
    pub observed: &'a ObservedPod,
    /// What probes say.
    pub probes: &'a ProbeResults,
    /// Why containers aren't running: those of [`crate::actions::PodActions::waiting`] and what the worker ran into, such as
    /// `ErrImagePull`, `ImagePullBackOff`, `InvalidImageName`, `CreateContainerConfigError`, `CreateContainerError`,
    /// `RunContainerError`. The worker drops an entry once it starts the container.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// The last status; at first what the API server has, where there is one.
    pub previous: Option<&'a PodStatus>,
    /// Where the pod is in its life.
    pub stage: Stage,
    /// What whoever ended the pod wants said.
    pub end: Option<&'a StatusOverride>,
    /// How a resize stands.
    pub resize: &'a ResizeStatus,
    /// The node's addresses, the primary one first.
    pub host_ips: &'a [IpAddr],
    /// The runtime's name: the prefix of container IDs (`containerd://...`).
    pub runtime: &'a str,
    /// Whether the pod's runtime handler has recursive read-only mounts.
    pub recursive_read_only: bool,
    /// The time.
    pub now: Timestamp,
}

/// Where a pod is in its life, as far as its status differs by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// It runs or should.
    #[default]
    Syncing,
    /// Its containers are being ended.
    Terminating,
    /// None of its containers runs, and none will.
    Terminated,
}

/// What a status says whatever is observed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatusOverride {
    /// Such as `Evicted`, `DeadlineExceeded`, `Terminated`, `Preempting`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Whether the phase is `Failed`.
    pub failed: bool,
    /// Reason and message of the condition `DisruptionTarget`, such as `TerminationByKubelet`.
    pub disruption: Option<(String, String)>,
}

/// How a resize of the pod stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResizeStatus {
    /// Not admitted yet: reason (`Deferred`, `Infeasible`) and message of `PodResizePending`.
    pub pending: Option<(String, String)>,
    /// Admitted and being carried out: reason and message (`Error` and what went wrong, or both empty) of
    /// `PodResizeInProgress`.
    pub in_progress: Option<(String, String)>,
}

/// The status of a pod that was admitted.
pub fn pod_status(inputs: &StatusInputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let now = whole_seconds(inputs.now);
    let mut status = PodStatus {
        qos_class: Some(qos::qos_class(pod).to_string()),
        observed_generation: pod.metadata.generation,
        start_time: Some(started_at(inputs, now.clone())),
        resource_claim_statuses: pod
            .status
            .as_ref()
            .and_then(|status| status.resource_claim_statuses.clone()),
        ..Default::default()
    };
    containers::fill(inputs, &mut status);
    set_phase(inputs, &mut status);
    set_addresses(inputs, &mut status);
    status.conditions = Some(conditions::all(inputs, &status, now));
    status
}

/// The status of a pod that isn't admitted: it never runs here.
pub fn rejected(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> PodStatus {
    let now = whole_seconds(now);
    let ready = |type_: &str| PodCondition {
        type_: type_.to_owned(),
        status: "False".to_owned(),
        reason: Some("PodFailed".to_owned()),
        last_transition_time: Some(now.clone()),
        observed_generation: pod.metadata.generation,
        ..Default::default()
    };
    let kept = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut conditions: Vec<_> = kept
        .into_iter()
        .filter(|one| !conditions::is_ours(&one.type_))
        .collect();
    conditions.extend([ready("Ready"), ready("ContainersReady")]);
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(format!("Pod was rejected: {message}")),
        qos_class: Some(qos::qos_class(pod).to_string()),
        observed_generation: pod.metadata.generation,
        start_time: Some(now),
        conditions: Some(conditions),
        ..Default::default()
    }
}

/// A time without its fraction of a second.
fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// When the kubelet first saw the pod.
fn started_at(inputs: &StatusInputs<'_>, now: Time) -> Time {
    let told = |status: Option<&PodStatus>| status.and_then(|status| status.start_time.clone());
    told(inputs.previous)
        .or_else(|| told(inputs.pod.status.as_ref()))
        .unwrap_or(now)
}

fn set_phase(inputs: &StatusInputs<'_>, status: &mut PodStatus) {
    let in_api = inputs.pod.status.as_ref();
    let is_final = |one: &&PodStatus| phase::is_final(one.phase.as_deref());
    // What was final stays; what the API server has counts most.
    let settled = in_api
        .filter(is_final)
        .or(inputs.previous.filter(is_final))
        .and_then(|one| one.phase.clone());
    let computed = phase::phase(inputs, status);
    let forced = inputs.end.filter(|end| end.failed).map(|_| "Failed".to_owned());
    status.phase = Some(settled.or(forced).unwrap_or_else(|| computed.to_owned()));
    let same = [inputs.previous, in_api]
        .into_iter()
        .flatten()
        .filter(|one| one.phase == status.phase);
    for one in same {
        status.reason = status.reason.take().or_else(|| one.reason.clone());
        status.message = status.message.take().or_else(|| one.message.clone());
    }
    if let Some(end) = inputs.end.filter(|_| status.phase.as_deref() == Some("Failed")) {
        status.reason = Some(end.reason.clone());
        status.message = Some(end.message.clone());
    }
}

/// The pod's addresses (of each family the first, the node's primary family first) and the node's.
fn set_addresses(inputs: &StatusInputs<'_>, status: &mut PodStatus) {
    let hosts = &inputs.host_ips[..inputs.host_ips.len().min(2)];
    status.host_ip = hosts.first().map(ToString::to_string);
    let host_ips: Vec<_> = hosts.iter().map(|ip| HostIP { ip: ip.to_string() }).collect();
    status.host_ips = (!host_ips.is_empty()).then_some(host_ips);
    let before = inputs
        .previous
        .and_then(|previous| previous.pod_ips.clone())
        .unwrap_or_default();
    let pod_ips = if spec::spec(inputs.pod).is_some_and(|spec| spec.host_network == Some(true)) {
        host_network_ips(before, hosts)
    } else {
        match inputs
            .observed
            .sandbox()
            .filter(|sandbox| sandbox.ready && !sandbox.ips.is_empty())
        {
            Some(sandbox) => sorted_ips(&sandbox.ips, hosts.first()),
            None => before,
        }
    };
    status.pod_ip = pod_ips.first().map(|one| one.ip.clone());
    status.pod_ips = (!pod_ips.is_empty()).then_some(pod_ips);
}

/// A pod in the host's network keeps the addresses it once had; a second family may come later.
fn host_network_ips(mut ips: Vec<PodIP>, hosts: &[IpAddr]) -> Vec<PodIP> {
    let is_v6 = |ip: &str| ip.contains(':');
    for host in hosts {
        if ips.len() < 2 && !ips.iter().any(|ip| is_v6(&ip.ip) == host.is_ipv6()) {
            ips.push(PodIP { ip: host.to_string() });
        }
    }
    ips
}

fn sorted_ips(ips: &[IpAddr], primary: Option<&IpAddr>) -> Vec<PodIP> {
    let v6_first = primary.is_some_and(IpAddr::is_ipv6);
    let first = |v6: bool| ips.iter().find(move |ip| ip.is_ipv6() == v6);
    [first(v6_first), first(!v6_first)]
        .into_iter()
        .flatten()
        .map(|ip| PodIP { ip: ip.to_string() })
        .collect()
}

#[cfg(test)]
mod tests;
