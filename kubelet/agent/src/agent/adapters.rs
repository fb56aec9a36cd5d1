//! Between the parts: what volumes, probes, hooks, cgroups and admission need of each other, handed on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, Pod, PodCertificateProjection, ResourceFieldSelector, Secret,
    ServiceAccountTokenProjection,
};
use controlplane_api::pod::resources::qos_class;
use kubelet_pods::admission::{Admission, Node, admit};
use kubelet_pods::cri::NodeFacts;
use kubelet_pods::cri::downward::{PodIps, field_value, resource_value};
use kubelet_volumes::{Downward, ObjectError, ObjectSource, PodCertificate};

use super::placement::Placement;
use crate::metrics::KubeletMetrics;
use crate::node::cgroups::{self, Cgroups, Kernel};
use crate::node::resources::PodResources;
use crate::node::shutdown::NOT_ADMITTED;
use crate::runtime::CallMetrics;
use crate::sources::Objects;
use crate::sync::Registry;
use crate::sync::context::{Allocated, Allocations, PodCgroups};

/// Calls to the CRI daemon, counted.
pub(super) struct CountedCalls(pub(super) KubeletMetrics);

impl CallMetrics for CountedCalls {
    fn called(&self, operation: &'static str, took: Duration, failed: bool) {
        let labels = [operation];
        self.0.runtime_operations_total.inc(&labels);
        self.0
            .runtime_operations_duration_seconds
            .observe_duration(&labels, took);
        if failed {
            self.0.runtime_operations_errors_total.inc(&labels);
        }
    }
}

/// Objects for volumes, from what the sources name.
pub(super) struct SourceObjects {
    pub(super) objects: Arc<RwLock<Objects>>,
    pub(super) allocatable_memory: u64,
}

impl SourceObjects {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Objects> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn needs_api(what: &str) -> ObjectError {
    ObjectError::new(format!("{what} come from an API server, and this node has none"))
}

impl ObjectSource for SourceObjects {
    fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, ObjectError> {
        Ok(self.read().config_map(namespace, name))
    }

    fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, ObjectError> {
        Ok(self.read().secret(namespace, name))
    }

    fn service_account_token(
        &self,
        _: &Pod,
        _: &ServiceAccountTokenProjection,
    ) -> Result<String, ObjectError> {
        Err(needs_api("tokens of service accounts"))
    }

    fn cluster_trust_bundle(&self, _: &ClusterTrustBundleProjection) -> Result<Option<Vec<u8>>, ObjectError> {
        Err(needs_api("trust bundles"))
    }

    fn pod_certificate(
        &self,
        _: &Pod,
        _: &str,
        _: usize,
        _: &PodCertificateProjection,
    ) -> Result<PodCertificate, ObjectError> {
        Err(needs_api("certificates of pods"))
    }

    fn allocatable_memory(&self) -> Result<u64, ObjectError> {
        Ok(self.allocatable_memory)
    }
}

/// Values of the downward API for volumes.
pub(super) struct DownwardValues(pub(super) NodeFacts);

impl Downward for DownwardValues {
    fn field(&self, pod: &Pod, path: &str) -> Result<String, ObjectError> {
        // Volumes can't name addresses: the pod has none yet.
        let ips = PodIps {
            pod: &[],
            host: &self.0.host_ips,
        };
        field_value(pod, path, ips).map_err(|error| ObjectError::new(error.to_string()))
    }

    fn resource(&self, pod: &Pod, selector: &ResourceFieldSelector) -> Result<String, ObjectError> {
        resource_value(pod, "", selector, &self.0).map_err(|error| ObjectError::new(error.to_string()))
    }
}

/// cgroups of pods, for the sync loop.
pub(super) struct TreeCgroups(pub(super) Arc<Cgroups<Kernel>>);

impl PodCgroups for TreeCgroups {
    fn ensure(&self, pod: &Pod) -> Result<String, String> {
        use cgroups::PodCgroups as _;
        let uid = uid(pod);
        let qos = class(pod);
        let made = self.0.ensure(uid, qos, &PodResources::of(pod));
        made.map_err(|error| chain(&error))?;
        Ok(self.0.parent_name(uid, qos))
    }

    fn remove(&self, uid: &str) -> Result<(), String> {
        cgroups::PodCgroups::remove(&*self.0, uid).map_err(|error| chain(&error))
    }

    fn present(&self) -> Result<Vec<String>, String> {
        Ok(cgroups::PodCgroups::list(&*self.0))
    }
}

/// A pod's class in the words of the cgroup tree.
pub(super) fn class(pod: &Pod) -> cgroups::QosClass {
    cgroups::QosClass::named(qos_class(pod).as_str())
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Admission by what the node has.
pub(super) struct NodeAdmission {
    pub(super) node: RwLock<Node>,
    pub(super) registry: Arc<Registry>,
    pub(super) placement: Placement,
    /// Whether the machine shuts down: no pod is taken any more.
    pub(super) shutting_down: AtomicBool,
}

impl Allocations for NodeAdmission {
    fn admit(&self, pod: &Pod, active: &[Arc<Pod>]) -> Result<(), (String, String)> {
        if self.shutting_down.load(Ordering::SeqCst) {
            let (reason, message) = NOT_ADMITTED;
            return Err((reason.to_owned(), message.to_owned()));
        }
        let node = self.node.read().unwrap_or_else(PoisonError::into_inner);
        let others: Vec<&Pod> = active.iter().map(|pod| &**pod).collect();
        match admit(pod, &node, &others) {
            Admission::Admitted => self.placement.admit(pod, &[]),
            Admission::Rejected(rejection) => Err((rejection.reason, rejection.message)),
            Admission::Preempt { victims } => {
                // First, so that nobody ends for a pod that is refused all the same.
                self.placement.admit(pod, &victims)?;
                for victim in victims {
                    let kill = kubelet_pods::worker::Update::Kill {
                        cause: kubelet_pods::worker::Cause::Killed,
                        grace: None,
                        status: Some(kubelet_pods::admission::preempted()),
                    };
                    self.registry.tell(&victim, kill);
                }
                Ok(())
            }
        }
    }

    fn container(&self, pod: &Pod, container: &str) -> Allocated {
        self.placement.of(uid(pod), container)
    }

    fn release(&self, uid: &str) {
        self.placement.release(uid);
    }
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Labels of a node that the kubelet sets itself, and those of `--node-labels`.
pub(super) fn node_labels(name: &str, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = given.clone();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    for (key, value) in [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}
