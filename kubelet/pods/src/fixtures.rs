//! Small pods, containers and observations for tests.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, ContainerRestartRuleOnExitCodes, Pod, PodSpec, Probe,
    ResourceRequirements,
};
use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use jiff::Timestamp;

use crate::hash::container_hash;
use crate::observed::{ContainerState, ObservedContainer, ObservedPod, ObservedSandbox};

/// A time so many seconds after the tests' beginning.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub(crate) fn container(name: &str) -> Container {
    Container {
        name: name.to_owned(),
        image: Some("image:1".to_owned()),
        ..Default::default()
    }
}

pub(crate) fn sidecar(name: &str) -> Container {
    Container {
        restart_policy: Some("Always".to_owned()),
        ..container(name)
    }
}

/// A rule for an exit code.
pub(crate) fn rule(action: &str, code: i32) -> ContainerRestartRule {
    let codes = ContainerRestartRuleOnExitCodes {
        operator: "In".to_owned(),
        values: Some(vec![code]),
    };
    ContainerRestartRule {
        action: action.to_owned(),
        exit_codes: Some(codes),
    }
}

pub(crate) fn probe() -> Option<Probe> {
    Some(Probe::default())
}

/// Resources from pairs of names and amounts.
pub(crate) fn amounts(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, Quantity>> {
    Some(
        pairs
            .iter()
            .map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned())))
            .collect(),
    )
}

pub(crate) fn asks(container: Container, requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
    let resources = ResourceRequirements {
        requests: amounts(requests),
        limits: amounts(limits),
        claims: None,
    };
    Container {
        resources: Some(resources),
        ..container
    }
}

/// A pod of init containers (and sidecars) and regular containers.
pub(crate) fn pod(policy: &str, init: Vec<Container>, regular: Vec<Container>) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some("pod".to_owned());
    pod.metadata.namespace = Some("space".to_owned());
    pod.metadata.uid = Some("uid".to_owned());
    pod.spec = Some(PodSpec {
        restart_policy: Some(policy.to_owned()),
        init_containers: (!init.is_empty()).then_some(init),
        containers: regular,
        ..Default::default()
    });
    pod
}

pub(crate) fn spec(pod: &mut Pod) -> &mut PodSpec {
    pod.spec.as_mut().unwrap()
}

pub(crate) fn sandbox(attempt: u32) -> ObservedSandbox {
    ObservedSandbox {
        id: format!("sandbox-{attempt}"),
        ready: true,
        attempt,
        created: at(0),
        ips: vec!["10.0.0.7".parse().unwrap()],
        runtime_handler: String::new(),
        host_network: Some(false),
    }
}

/// A container as observed: its ID is its name and attempt.
pub(crate) fn seen(name: &str, attempt: u32, state: ContainerState) -> ObservedContainer {
    ObservedContainer {
        id: format!("{name}-{attempt}"),
        name: name.to_owned(),
        sandbox_id: "sandbox-0".to_owned(),
        state,
        attempt,
        created: at(0),
        image: "image:1".to_owned(),
        image_id: "sha256:1".to_owned(),
        spec_hash: Some(container_hash(&container(name))),
        annotations: BTreeMap::new(),
        resources: None,
        user: None,
        stop_signal: None,
    }
}

pub(crate) fn running() -> ContainerState {
    ContainerState::Running { started: at(0) }
}

/// Ended after 10 seconds.
pub(crate) fn exited(exit_code: i32) -> ContainerState {
    exited_at(exit_code, 10)
}

pub(crate) fn exited_at(exit_code: i32, seconds: i64) -> ContainerState {
    ContainerState::Exited {
        started: Some(at(0)),
        finished: at(seconds),
        exit_code,
        reason: if exit_code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
    }
}

/// A pod with a ready sandbox and these containers, newest first.
pub(crate) fn observed(containers: Vec<ObservedContainer>) -> ObservedPod {
    ObservedPod {
        uid: "uid".to_owned(),
        name: "pod".to_owned(),
        namespace: "space".to_owned(),
        sandboxes: vec![sandbox(0)],
        containers,
    }
}
