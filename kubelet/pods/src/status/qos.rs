//! A pod's QoS class, which never changes.

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use controlplane_api::pod::resources::{QosClass, qos_class as by_spec};

/// What the API server has, else what follows from the pod's spec.
pub fn class(pod: &Pod) -> QosClass {
    match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => QosClass::Guaranteed,
        Some("Burstable") => QosClass::Burstable,
        Some("BestEffort") => QosClass::BestEffort,
        _ => by_spec(pod),
    }
}

/// Its name: `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Pod) -> &'static str {
    class(pod).as_str()
}
