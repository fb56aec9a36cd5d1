//! What a pod asks for as a whole.
//!
//! Regular containers and sidecars run side by side: their requests add up. An init container runs beside the sidecars before
//! it: the greatest such sum counts where it is greater. Requests of the pod itself (KEP-2837) replace the sum; overhead comes
//! on top. A request that isn't given is the limit.

use std::collections::{BTreeMap, BTreeSet};

use controlplane_api::k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use crate::containers::{init_containers, is_sidecar, regular_containers, spec};
use crate::quantity::amount;

/// Amounts by resource name: `cpu` in thousandths, others in units.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodRequests {
    amounts: BTreeMap<String, i64>,
}

impl PodRequests {
    /// What the pod asks for.
    pub fn of(pod: &Pod) -> Self {
        let mut names = BTreeSet::new();
        let all = init_containers(pod)
            .iter()
            .chain(regular_containers(pod))
            .filter_map(|one| one.resources.as_ref());
        let whole = spec(pod).and_then(|spec| spec.resources.as_ref());
        for resources in all.chain(whole) {
            names.extend(resources.requests.iter().flat_map(BTreeMap::keys));
            names.extend(resources.limits.iter().flat_map(BTreeMap::keys));
        }
        let overhead = spec(pod).and_then(|spec| spec.overhead.as_ref());
        names.extend(overhead.iter().flat_map(|overhead| overhead.keys()));
        let total = |name: &str| {
            let asked = whole
                .and_then(|whole| request(whole, name))
                .unwrap_or_else(|| of_containers(pod, name));
            asked.saturating_add(amount(overhead, name).unwrap_or(0))
        };
        Self {
            amounts: names
                .into_iter()
                .map(|name| (name.clone(), total(name)))
                .collect(),
        }
    }

    /// How much of a resource.
    pub fn amount(&self, name: &str) -> i64 {
        self.amounts.get(name).copied().unwrap_or(0)
    }

    /// The resources that it names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.amounts.keys().map(String::as_str)
    }
}

fn request(resources: &ResourceRequirements, name: &str) -> Option<i64> {
    amount(resources.requests.as_ref(), name).or_else(|| amount(resources.limits.as_ref(), name))
}

fn of_containers(pod: &Pod, name: &str) -> i64 {
    let of =
        |resources: Option<&ResourceRequirements>| resources.and_then(|all| request(all, name)).unwrap_or(0);
    let (mut sidecars, mut greatest) = (0_i64, 0_i64);
    for init in init_containers(pod) {
        let own = of(init.resources.as_ref());
        if is_sidecar(init) {
            sidecars = sidecars.saturating_add(own);
            greatest = greatest.max(sidecars);
        } else {
            greatest = greatest.max(sidecars.saturating_add(own));
        }
    }
    let regular = regular_containers(pod).iter().fold(sidecars, |sum, one| {
        sum.saturating_add(of(one.resources.as_ref()))
    });
    regular.max(greatest)
}
