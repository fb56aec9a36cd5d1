//! A pod's QoS class, from the CPU and memory that it asks for.

use controlplane_api::k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use crate::containers::{init_containers, regular_containers, spec};
use crate::quantity::{Resources, amount};

/// `Guaranteed`, `Burstable` or `BestEffort`. It never changes: what the API server has counts.
pub fn qos_class(pod: &Pod) -> &'static str {
    let told = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
    match told {
        Some("Guaranteed") => return "Guaranteed",
        Some("Burstable") => return "Burstable",
        Some("BestEffort") => return "BestEffort",
        _ => {}
    }
    let of_pod = spec(pod).and_then(|spec| spec.resources.clone()).filter(asks);
    let parts: Vec<ResourceRequirements> = match of_pod {
        Some(whole) => vec![whole],
        None => {
            let all = init_containers(pod).iter().chain(regular_containers(pod));
            all.map(|one| one.resources.clone().unwrap_or_default()).collect()
        }
    };
    if !parts.iter().any(asks) {
        return "BestEffort";
    }
    if parts.iter().all(is_guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn positive(list: Option<&Resources>, name: &str) -> Option<i64> {
    amount(list, name).filter(|&amount| amount > 0)
}

fn asks(resources: &ResourceRequirements) -> bool {
    ["cpu", "memory"].into_iter().any(|name| {
        positive(resources.requests.as_ref(), name)
            .or(positive(resources.limits.as_ref(), name))
            .is_some()
    })
}

/// Both resources limited, and as much asked for; a request that isn't given is the limit.
fn is_guaranteed(resources: &ResourceRequirements) -> bool {
    ["cpu", "memory"].into_iter().all(|name| {
        let limit = positive(resources.limits.as_ref(), name);
        let request = positive(resources.requests.as_ref(), name).or(limit);
        limit.is_some() && request == limit
    })
}
