//! What a pod asks for as a whole: containers beside each other, init containers one after the other, overhead.

use std::collections::BTreeMap;

use controlplane_api::Quantity;
use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

/// Amounts by resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// What a pod asks for and may have.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodResources {
    /// Requests in all; what has only a limit requests that much, as the API server defaults it.
    pub requests: Amounts,
    /// Limits in all, of what every container has a limit for or not.
    pub limits: Amounts,
    /// Whether CPU is limited for the pod as a whole: by itself, or in every container.
    pub cpu_limited: bool,
    /// The same for memory.
    pub memory_limited: bool,
}

/// Amounts of the wire; what isn't a quantity counts for nothing, validation has refused it.
#[must_use]
pub fn amounts(wire: Option<&BTreeMap<String, Wire>>) -> Amounts {
    let given = wire.into_iter().flatten();
    given
        .filter_map(|(name, amount)| Some((name.clone(), Quantity::try_from(amount).ok()?)))
        .collect()
}

/// Adds amounts to amounts.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        to.entry(name.clone()).or_default().add(amount);
    }
}

fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let held = to.entry(name.clone()).or_default();
        if *held < *amount {
            *held = amount.clone();
        }
    }
}

/// A container's requests, with limits for what it requests nothing of.
#[must_use]
pub fn requests_of(container: &Container) -> Amounts {
    requests(container.resources.as_ref())
}

fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    let mut all = amounts(resources.and_then(|r| r.limits.as_ref()));
    all.extend(amounts(resources.and_then(|r| r.requests.as_ref())));
    all
}

/// A container's limits.
#[must_use]
pub fn limits_of(container: &Container) -> Amounts {
    amounts(container.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

/// Whether an init container runs beside the others.
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn sum(pod: &Pod, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::new();
    };
    let mut all = Amounts::new();
    for container in &spec.containers {
        add(&mut all, &of(container));
    }
    let (mut beside, mut highest) = (Amounts::new(), Amounts::new());
    for init in spec.init_containers.iter().flatten() {
        let own = of(init);
        if is_sidecar(init) {
            add(&mut all, &own);
            add(&mut beside, &own);
            raise(&mut highest, &beside);
        } else {
            let mut then = beside.clone();
            add(&mut then, &own);
            raise(&mut highest, &then);
        }
    }
    raise(&mut all, &highest);
    all
}

/// Whether resources of the pod as a whole can be given for this one.
fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

impl PodResources {
    /// Of a pod's spec, as it is allocated.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self::default();
        };
        let (mut asked, mut limits) = (sum(pod, requests_of), sum(pod, limits_of));
        let whole = spec.resources.as_ref();
        let whole_limits = amounts(whole.and_then(|r| r.limits.as_ref()));
        for (to, from) in [(&mut asked, requests(whole)), (&mut limits, whole_limits.clone())] {
            to.extend(from.into_iter().filter(|(name, _)| is_pod_level(name)));
        }
        let overhead = amounts(spec.overhead.as_ref());
        add(&mut asked, &overhead);
        for (name, amount) in &overhead {
            if let Some(limit) = limits.get_mut(name).filter(|limit| !limit.is_zero()) {
                limit.add(amount);
            }
        }
        let all = || {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        };
        let limited = |name: &str| {
            let has = |limits: &Amounts| limits.get(name).is_some_and(|limit| !limit.is_zero());
            has(&whole_limits) || all().all(|container| has(&limits_of(container)))
        };
        Self {
            cpu_limited: limited("cpu"),
            memory_limited: limited("memory"),
            requests: asked,
            limits,
        }
    }

    /// A request as a whole number; 0 without one.
    #[must_use]
    pub fn request(&self, name: &str) -> i64 {
        self.requests.get(name).map_or(0, Quantity::value)
    }

    /// Thousandths of CPUs requested.
    #[must_use]
    pub fn request_milli_cpu(&self) -> i64 {
        self.requests.get("cpu").map_or(0, Quantity::milli_value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> PodResources {
        PodResources::of(&serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap())
    }

    fn cpu(amount: &str) -> serde_json::Value {
        json!({"requests": {"cpu": amount}, "limits": {"memory": "1Gi"}})
    }

    #[test]
    fn containers_add_up_and_init_containers_take_turns() {
        let found = pod(json!({
            "containers": [{"name": "a", "resources": cpu("1")}, {"name": "b", "resources": cpu("500m")}],
            "initContainers": [
                {"name": "first", "resources": cpu("3")},
                {"name": "side", "restartPolicy": "Always", "resources": cpu("1")},
                {"name": "second", "resources": cpu("2500m")},
            ],
            "overhead": {"cpu": "100m", "memory": "1Mi"},
        }));
        // second with the sidecar beside it, and the overhead.
        assert_eq!(found.request_milli_cpu(), 3600);
        assert_eq!(found.request("memory"), (3 << 30) + (1 << 20));
        assert!(found.memory_limited && !found.cpu_limited);
    }

    #[test]
    fn resources_of_the_pod_count_more() {
        let found = pod(json!({
            "containers": [{"name": "a", "resources": cpu("1")}, {"name": "b"}],
            "resources": {"limits": {"cpu": "4", "memory": "2Gi"}, "requests": {"cpu": "2"}},
        }));
        assert_eq!(found.request_milli_cpu(), 2000);
        assert_eq!(found.request("memory"), 2 << 30);
        assert!(found.cpu_limited && found.memory_limited);
    }
}
