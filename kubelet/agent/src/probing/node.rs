//! The prober as the sync loop knows it: pods as they are seen become probes, failures events, changes looks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod};
use kubelet_pods::containers::{
    AfterExit, ContainerKind, after_exit, init_containers, is_sidecar, regular_containers,
};
use kubelet_pods::observed::{ContainerState, ObservedPod};
use kubelet_pods::probe::{Change, ProbeKind, ProbeResults};
use tonic::Code;

use super::prober::id_of;
use super::{
    Exec, ExecError, ExecOutput, Jitter, Limits, PodProbes, ProbeSink, Probed, ProbedContainer, Prober, Seen,
};
use crate::events::{EventType, Events, Regarding};
use crate::metrics::KubeletMetrics;
use crate::runtime::Cri;
use crate::sync::context::{Now, Probes};

/// What stands for no deadline.
const A_DAY: Duration = Duration::from_secs(86_400);

#[async_trait]
impl Exec for Cri {
    async fn exec_sync(
        &self,
        container_id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, ExecError> {
        let timeout = if timeout.is_zero() { A_DAY } else { timeout };
        match Cri::exec_sync(self, container_id, command, timeout).await {
            Ok(answer) => Ok(ExecOutput {
                stdout: answer.stdout,
                stderr: answer.stderr,
                exit_code: answer.exit_code,
            }),
            Err(error) if error.code == Code::DeadlineExceeded => Err(ExecError::Timeout),
            Err(error) => Err(ExecError::Failed(error.message)),
        }
    }
}

/// Has a pod looked at again.
pub type Wake = Box<dyn Fn(&str) + Send + Sync>;

/// The node's probes.
pub struct NodeProbes {
    prober: Arc<Prober>,
    pods: Arc<Pods>,
    host_ip: Option<IpAddr>,
    now: Now,
}

/// Pods that have probes, by UID, and who hears of them.
struct Pods {
    known: Mutex<BTreeMap<String, (Arc<Pod>, PodProbes)>>,
    events: Arc<Events>,
    wake: Wake,
    now: Now,
    metrics: KubeletMetrics,
}

impl NodeProbes {
    /// The node's probes, and the prober of theirs, which somebody must [run](Prober::run).
    pub fn new(
        exec: Arc<dyn Exec>,
        events: Arc<Events>,
        wake: Wake,
        host_ip: Option<IpAddr>,
        jitter: Jitter,
        now: Now,
        metrics: KubeletMetrics,
    ) -> (Arc<NodeProbes>, Arc<Prober>) {
        let pods = Arc::new(Pods {
            known: Mutex::default(),
            events,
            wake,
            now: now.clone(),
            metrics,
        });
        let prober = Prober::new(exec, pods.clone(), Limits::default(), jitter, now());
        (
            Arc::new(NodeProbes {
                prober: prober.clone(),
                pods,
                host_ip,
                now,
            }),
            prober,
        )
    }
}

impl Probes for NodeProbes {
    fn update(&self, pod: &Arc<Pod>, observed: &ObservedPod) {
        let mut probes = pod_probes(pod, observed, self.host_ip);
        let mut known = self.pods.lock();
        if probes.containers.is_empty() {
            return;
        }
        probes.terminating = known
            .get(&probes.uid)
            .is_some_and(|(_, before)| before.terminating);
        known.insert(probes.uid.clone(), (pod.clone(), probes.clone()));
        drop(known);
        self.prober.observe(&probes, (self.now)());
    }

    fn terminating(&self, uid: &str) {
        let mut known = self.pods.lock();
        let Some((_, probes)) = known.get_mut(uid) else {
            return;
        };
        probes.terminating = true;
        let probes = probes.clone();
        drop(known);
        self.prober.observe(&probes, (self.now)());
    }

    fn remove(&self, uid: &str) {
        self.pods.lock().remove(uid);
        self.prober.remove(uid);
    }

    fn results(&self, uid: &str) -> ProbeResults {
        let known = self.pods.lock();
        let containers = known
            .get(uid)
            .map(|(_, probes)| probes.containers.as_slice())
            .unwrap_or_default();
        let ids: Vec<String> = containers
            .iter()
            .filter_map(|one| id_of(&one.seen))
            .map(str::to_owned)
            .collect();
        drop(known);
        let mut own = ProbeResults::default();
        self.prober.with_results(|all| {
            for id in &ids {
                for kind in [ProbeKind::Liveness, ProbeKind::Readiness, ProbeKind::Startup] {
                    if let Some(result) = all.of(id, kind) {
                        own.set(id, kind, result);
                    }
                }
            }
        });
        own
    }
}

impl Pods {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (Arc<Pod>, PodProbes)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pods {
    fn count(&self, pod: &Pod, probed: &Probed<'_>) {
        let kind = match probed.kind {
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Startup => "Startup",
        };
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let labels = [
            kind,
            probed.outcome.label(),
            probed.container,
            name,
            namespace,
            probed.pod_uid,
        ];
        self.metrics.prober_probe_total.inc(&labels);
        self.metrics
            .prober_probe_duration_seconds
            .observe_duration(&[kind, probed.container, name, namespace], probed.took);
    }
}

impl ProbeSink for Pods {
    fn changed(&self, pod_uid: &str, _: &Change) {
        (self.wake)(pod_uid);
    }

    fn probed(&self, probed: &Probed<'_>) {
        let pod = self.lock().get(probed.pod_uid).map(|(pod, _)| pod.clone());
        let Some(pod) = pod else { return };
        self.count(&pod, probed);
        let Some((reason, message)) = probed.outcome.event(probed.kind) else {
            return;
        };
        let init = init_containers(&pod)
            .iter()
            .any(|one| one.name == probed.container);
        let list = if init { "initContainers" } else { "containers" };
        let about = Regarding {
            uid: probed.pod_uid,
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
            name: pod.metadata.name.as_deref().unwrap_or_default(),
            field: Some(format!("spec.{list}{{{}}}", probed.container)),
        };
        self.events
            .record(&about, EventType::Warning, reason, message, (self.now)());
    }
}

/// What of a pod is to be probed, as the runtime shows it now.
pub(crate) fn pod_probes(pod: &Pod, observed: &ObservedPod, host_ip: Option<IpAddr>) -> PodProbes {
    let host_network = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false);
    let own = observed
        .sandbox()
        .and_then(|sandbox| sandbox.ips.first().copied());
    let sidecars = init_containers(pod).iter().filter(|init| is_sidecar(init));
    let regular = regular_containers(pod)
        .iter()
        .map(|one| (ContainerKind::Regular, one));
    let containers = sidecars.map(|one| (ContainerKind::Sidecar, one)).chain(regular);
    PodProbes {
        uid: observed.uid.clone(),
        ip: if host_network { host_ip } else { own },
        terminating: false,
        containers: containers
            .filter(|(_, spec)| has_probes(spec))
            .map(|(kind, spec)| ProbedContainer {
                spec: Arc::new(spec.clone()),
                seen: seen(pod, kind, spec, observed),
            })
            .collect(),
    }
}

fn has_probes(spec: &Container) -> bool {
    spec.liveness_probe.is_some() || spec.readiness_probe.is_some() || spec.startup_probe.is_some()
}

fn seen(pod: &Pod, kind: ContainerKind, spec: &Container, observed: &ObservedPod) -> Seen {
    let Some(container) = observed.container(&spec.name) else {
        return Seen::Absent;
    };
    match &container.state {
        ContainerState::Running { started } => Seen::Running {
            id: container.id.clone(),
            started: *started,
        },
        ContainerState::Exited { exit_code, .. } => Seen::Ended {
            id: container.id.clone(),
            again: after_exit(pod, spec, kind, *exit_code) != AfterExit::Stay,
        },
        ContainerState::Created | ContainerState::Unknown => Seen::Absent,
    }
}
