//! What a pod asks for as a whole, in whole numbers: `cpu` in thousandths, others in units.

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use controlplane_api::pod::resources::{Amounts, Counting, pod_requests};

/// What a pod asks for.
pub(super) struct PodRequests {
    amounts: Amounts,
}

impl PodRequests {
    /// What the pod asks for, overhead included. Its spec has defaults and the allocated resources.
    pub(super) fn of(pod: &Pod) -> Self {
        Self {
            amounts: pod_requests(pod, Counting::default()),
        }
    }

    /// How much of a resource.
    pub(super) fn amount(&self, name: &str) -> i64 {
        let amount = self.amounts.get(name);
        amount.map_or(0, |amount| {
            if name == "cpu" {
                amount.milli_value()
            } else {
                amount.value()
            }
        })
    }

    /// The resources that it names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.amounts.keys().map(String::as_str)
    }
}
