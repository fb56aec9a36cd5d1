//! What all workers share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use controlplane_api::k8s_openapi::api::core::v1::{ObjectReference, Pod};
use jiff::Timestamp;
use kubelet_pods::cri::NodeFacts;
use kubelet_pods::cri::userns::UserNamespaces;
use kubelet_pods::observed::ObservedPod;
use kubelet_pods::probe::ProbeResults;
use kubelet_volumes::Volumes;

use super::registry::Registry;
use crate::events::{EventType, Events, Regarding};
use crate::images::{Keyring, Puller};
use crate::last_words::OnDisk;
use crate::runtime::Cri;
use crate::sources::Objects;
use crate::timeline::Timelines;

/// Tells the time.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Numbers of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `syncFrequency`: how often a pod is synced though nothing happened.
    pub sync_frequency: Duration,
    /// `crashLoopBackOff.maxContainerRestartPeriod`.
    pub max_restart_period: Option<Duration>,
    /// The kubelet's own directory.
    pub root: PathBuf,
    /// Where links to containers' logs are, `/var/log/containers`; none makes none.
    pub container_logs: Option<PathBuf>,
    /// The directory of host files that pods see, `/etc/hosts`.
    pub hosts_file: PathBuf,
}

/// Pods' cgroups, as the sync loop needs them. Blocking.
pub trait PodCgroups: Send + Sync {
    /// Makes the pod's cgroup with its limits, or sets them anew; what CRI calls its cgroup's parent.
    ///
    /// # Errors
    /// In words for the pod's events.
    fn ensure(&self, pod: &Pod) -> Result<String, String>;

    /// Removes the pod's cgroup and ends what is left in it.
    ///
    /// # Errors
    /// In words for the log.
    fn remove(&self, uid: &str) -> Result<(), String>;

    /// The UIDs of the pods that have one.
    ///
    /// # Errors
    /// In words for the log.
    fn present(&self) -> Result<Vec<String>, String>;
}

/// What the node decides beside the pod itself: which CPUs, memory and devices a container gets.
pub trait Allocations: Send + Sync {
    /// Whether the pod fits the node beside the active ones; reason and message when it doesn't. What it is given stays
    /// its own until [`Allocations::release`].
    ///
    /// # Errors
    /// The reason and the message of its status.
    fn admit(&self, pod: &Pod, active: &[Arc<Pod>]) -> Result<(), (String, String)>;

    /// What a container of an admitted pod gets.
    fn container(&self, pod: &Pod, container: &str) -> Allocated;

    /// The pod has ended.
    fn release(&self, uid: &str);
}

/// What a container gets of the node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allocated {
    /// CPUs, as a list of the kernel's; empty is any.
    pub cpus: String,
    /// Memory nodes; empty is any.
    pub memory_nodes: String,
    /// Whether the CPUs are its own.
    pub exclusive: bool,
    /// Devices.
    pub devices: Vec<cri_api::v1::Device>,
    /// Mounts of devices.
    pub mounts: Vec<cri_api::v1::Mount>,
    /// Variables of devices.
    pub env: Vec<(String, String)>,
    /// Names of CDI devices.
    pub cdi: Vec<String>,
    /// Annotations of devices.
    pub annotations: BTreeMap<String, String>,
}

/// Probes, as the sync loop needs them.
pub trait Probes: Send + Sync {
    /// The pod is to be probed as it is now; `observed` says which of its containers run where.
    fn update(&self, pod: &Arc<Pod>, observed: &ObservedPod);

    /// The pod ends: only readiness goes on.
    fn terminating(&self, uid: &str);

    /// The pod is gone.
    fn remove(&self, uid: &str);

    /// What the probes of a pod's containers say.
    fn results(&self, uid: &str) -> ProbeResults;
}

/// Lifecycle hooks, as the sync loop needs them.
#[async_trait]
pub trait Hooks: Send + Sync {
    /// Runs a container's `postStart` hook, if it has one.
    ///
    /// # Errors
    /// In words for the pod's events.
    async fn post_start(
        &self,
        pod: &Pod,
        ip: Option<std::net::IpAddr>,
        name: &str,
        id: &str,
    ) -> Result<(), String>;

    /// Runs a container's `preStop` hook, if it has one, for `grace` at most.
    ///
    /// # Errors
    /// In words for the pod's events.
    async fn pre_stop(
        &self,
        pod: &Pod,
        ip: Option<std::net::IpAddr>,
        name: &str,
        id: &str,
        grace: Duration,
    ) -> Result<(), String>;
}

/// What all workers share.
pub struct Context {
    /// The CRI daemon.
    pub cri: Cri,
    /// `containerd`, `orlop-cri`: the prefix of container IDs in statuses.
    pub runtime_name: String,
    /// Pulls images.
    pub puller: Arc<Puller>,
    /// Volumes.
    pub volumes: Arc<Volumes>,
    /// cgroups of pods.
    pub cgroups: Arc<dyn PodCgroups>,
    /// CPUs, memory, devices, admission.
    pub allocations: Arc<dyn Allocations>,
    /// Probes.
    pub probes: Arc<dyn Probes>,
    /// Lifecycle hooks.
    pub hooks: Arc<dyn Hooks>,
    /// Termination messages.
    pub words: OnDisk,
    /// The node; another one when it changes.
    pub facts: RwLock<Arc<NodeFacts>>,
    /// ConfigMaps, Secrets and RuntimeClasses.
    pub objects: Arc<RwLock<Objects>>,
    /// Credentials from the node's own files.
    pub node_keyring: RwLock<Arc<Keyring>>,
    /// Events.
    pub events: Arc<Events>,
    /// How pods start.
    pub timelines: Timelines,
    /// The pods.
    pub registry: Arc<Registry>,
    /// Who has which range of user IDs.
    pub user_namespaces: Mutex<UserNamespaces>,
    /// Whether the runtime's network is up; why not.
    pub network: RwLock<Result<(), String>>,
    /// Numbers.
    pub settings: Settings,
    /// The time.
    pub now: Now,
}

impl Context {
    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// The node as it is now.
    pub fn facts(&self) -> Arc<NodeFacts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The objects as they are now.
    pub fn objects(&self) -> Objects {
        self.objects
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Why pods can't have a network now, if so.
    pub fn network_problem(&self) -> Option<String> {
        self.network
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .err()
    }

    /// Records an event of a pod, or of a container of it.
    pub fn event(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let reference = reference(pod);
        let about = Regarding {
            uid: reference.uid.as_deref().unwrap_or_default(),
            namespace: reference.namespace.as_deref().unwrap_or_default(),
            name: reference.name.as_deref().unwrap_or_default(),
            field: container.map(|container| field_path(pod, container)),
        };
        self.events.record(&about, kind, reason, message, self.now());
    }

    /// Runs what blocks on a thread of its own. None when the kubelet stops.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        tokio::task::spawn_blocking(work).await.ok()
    }
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        uid: pod.metadata.uid.clone(),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        ..Default::default()
    }
}

/// How upstream names a container of a pod: `spec.containers{web}`.
fn field_path(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref();
    let is_init = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .is_some_and(|list| list.iter().any(|one| one.name == container));
    let is_ephemeral = spec
        .and_then(|spec| spec.ephemeral_containers.as_ref())
        .is_some_and(|list| list.iter().any(|one| one.name == container));
    let list = match (is_init, is_ephemeral) {
        (true, _) => "initContainers",
        (_, true) => "ephemeralContainers",
        _ => "containers",
    };
    format!("spec.{list}{{{container}}}")
}
