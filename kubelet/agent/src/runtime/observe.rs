//! From CRI's words to what decisions are made from: [`ObservedPod`].
//!
//! A pod's worker owns a [`View`] of it. Exited containers and sandboxes that aren't ready don't come back, so they are
//! asked about once; the rest is asked about at every look. Which containers there are is listed by the pod's label, so
//! that what a call made that seemed to fail is found too.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use controlplane_api::k8s_openapi::api::core::v1::ResourceRequirements;
use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use cri_api::v1;
use futures_util::future::try_join_all;
use jiff::Timestamp;
use kubelet_pods::observed::{ContainerState, ObservedContainer, ObservedPod, ObservedSandbox};

use super::{CallError, Cri};

/// Labels and annotations that say whose a container is; `k8s.io/kubernetes/pkg/kubelet/types`.
pub mod labels {
    /// The pod's name.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// The pod's namespace.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// The pod's UID.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// The container's name.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// The hash of the container's spec, hexadecimal.
    pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    /// How often it was restarted.
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
}

/// Reads what a container left behind at its end, beside what the runtime says: the termination message. Blocking.
pub trait LastWords: Send + Sync {
    /// The message of an exited container, or none.
    fn of(&self, status: &v1::ContainerStatus) -> Option<String>;
}

/// What is known of one pod at the runtime.
#[derive(Debug, Default)]
pub struct View {
    /// Exited containers, by ID: they are as they are.
    ended: BTreeMap<String, ObservedContainer>,
    /// Sandboxes that aren't ready (any more), by ID.
    gone: BTreeMap<String, ObservedSandbox>,
}

impl View {
    /// Looks at a pod.
    ///
    /// # Errors
    /// The daemon refuses, or doesn't answer in time: nothing is known.
    pub async fn look(
        &mut self,
        cri: &Cri,
        (uid, namespace, name): (&str, &str, &str),
        words: &dyn LastWords,
    ) -> Result<ObservedPod, CallError> {
        let (sandboxes, containers) = tokio::try_join!(
            cri.list_pod_sandbox(v1::ListPodSandboxRequest {
                filter: Some(v1::PodSandboxFilter {
                    label_selector: selector(uid),
                    ..Default::default()
                }),
            }),
            cri.list_containers(v1::ListContainersRequest {
                filter: Some(v1::ContainerFilter {
                    label_selector: selector(uid),
                    ..Default::default()
                }),
            }),
        )?;
        let mut seen = try_join_all(
            sandboxes
                .items
                .iter()
                .map(|listed| sandbox(cri, listed, self.gone.get(&listed.id))),
        )
        .await?
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
        let mut held = try_join_all(
            containers
                .containers
                .iter()
                .map(|listed| container(cri, listed, self.ended.get(&listed.id), words)),
        )
        .await?
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
        seen.sort_by_key(|one| Reverse((one.attempt, one.created)));
        // By attempts first: a clock may have been set back between two of them.
        held.sort_by_key(|one| Reverse((one.attempt, one.created)));
        self.gone = seen
            .iter()
            .filter(|sandbox| !sandbox.ready)
            .map(|sandbox| (sandbox.id.clone(), sandbox.clone()))
            .collect();
        self.ended = held
            .iter()
            .filter(|container| container.has_exited())
            .map(|container| (container.id.clone(), container.clone()))
            .collect();
        Ok(ObservedPod {
            uid: uid.to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            sandboxes: seen,
            containers: held,
        })
    }
}

fn selector(uid: &str) -> std::collections::HashMap<String, String> {
    [(labels::POD_UID.to_owned(), uid.to_owned())].into()
}

/// One sandbox; none when it went since it was listed.
async fn sandbox(
    cri: &Cri,
    listed: &v1::PodSandbox,
    known: Option<&ObservedSandbox>,
) -> Result<Option<ObservedSandbox>, CallError> {
    if let Some(known) = known {
        return Ok(Some(known.clone()));
    }
    let asked = v1::PodSandboxStatusRequest {
        pod_sandbox_id: listed.id.clone(),
        verbose: false,
    };
    match cri.pod_sandbox_status(asked).await {
        Ok(answer) => Ok(answer.status.map(|status| observed_sandbox(&status))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// One container; none when it went since it was listed.
async fn container(
    cri: &Cri,
    listed: &v1::Container,
    known: Option<&ObservedContainer>,
    words: &dyn LastWords,
) -> Result<Option<ObservedContainer>, CallError> {
    if let Some(known) = known {
        return Ok(Some(known.clone()));
    }
    let asked = v1::ContainerStatusRequest {
        container_id: listed.id.clone(),
        verbose: false,
    };
    match cri.container_status(asked).await {
        Ok(answer) => Ok(answer
            .status
            .map(|status| observed_container(status, &listed.pod_sandbox_id, words))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn observed_sandbox(status: &v1::PodSandboxStatus) -> ObservedSandbox {
    let network = status.network.as_ref();
    let more = network.map(|network| network.additional_ips.iter().map(|ip| ip.ip.as_str()));
    ObservedSandbox {
        id: status.id.clone(),
        ready: status.state() == v1::PodSandboxState::SandboxReady,
        attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        created: time(status.created_at).unwrap_or_default(),
        host_network: status
            .linux
            .as_ref()
            .and_then(|linux| linux.namespaces.as_ref()?.options.as_ref())
            .map(|options| options.network() == v1::NamespaceMode::Node),
        ips: network
            .map(|network| network.ip.as_str())
            .into_iter()
            .chain(more.into_iter().flatten())
            .filter_map(|ip| ip.parse::<IpAddr>().ok())
            .collect(),
        runtime_handler: status.runtime_handler.clone(),
    }
}

/// A container as its status tells; `sandbox` is where it was listed to be.
pub fn observed_container(
    status: v1::ContainerStatus,
    sandbox: &str,
    words: &dyn LastWords,
) -> ObservedContainer {
    let state = state(&status, words);
    let metadata = status.metadata.clone().unwrap_or_default();
    let hash = status.annotations.get(labels::CONTAINER_HASH);
    ObservedContainer {
        id: status.id.clone(),
        name: status
            .labels
            .get(labels::CONTAINER_NAME)
            .cloned()
            .unwrap_or(metadata.name),
        sandbox_id: sandbox.to_owned(),
        state,
        attempt: status
            .annotations
            .get(labels::RESTART_COUNT)
            .and_then(|count| count.parse().ok())
            .unwrap_or(metadata.attempt),
        created: time(status.created_at).unwrap_or_default(),
        image: image_name(&status),
        image_id: status.image_ref.clone(),
        spec_hash: hash.and_then(|hash| u64::from_str_radix(hash, 16).ok()),
        resources: status
            .resources
            .as_ref()
            .and_then(|resources| resources.linux.as_ref())
            .map(resources),
        user: status
            .user
            .as_ref()
            .and_then(|user| user.linux.as_ref())
            .map(|user| (user.uid, user.gid, user.supplemental_groups.clone())),
        stop_signal: match status.stop_signal() {
            v1::Signal::RuntimeDefault => None,
            signal => Some(signal.as_str_name().trim_start_matches("SIGNAL_").to_owned()),
        },
        annotations: status.annotations.into_iter().collect(),
    }
}

fn image_name(status: &v1::ContainerStatus) -> String {
    let image = status.image.clone().unwrap_or_default();
    if image.user_specified_image.is_empty() {
        image.image
    } else {
        image.user_specified_image
    }
}

fn state(status: &v1::ContainerStatus, words: &dyn LastWords) -> ContainerState {
    match status.state() {
        v1::ContainerState::ContainerCreated => ContainerState::Created,
        v1::ContainerState::ContainerRunning => ContainerState::Running {
            started: time(status.started_at).unwrap_or_default(),
        },
        v1::ContainerState::ContainerExited => ContainerState::Exited {
            started: time(status.started_at),
            finished: time(status.finished_at).unwrap_or_default(),
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: words.of(status).unwrap_or_else(|| status.message.clone()),
        },
        v1::ContainerState::ContainerUnknown => ContainerState::Unknown,
    }
}

/// Nanoseconds since 1970; none for zero, which is CRI's "never".
fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds != 0).then(|| Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default())
}

/// The weight of one CPU in `cpu.shares`.
const SHARES_PER_CPU: i64 = 1024;

/// Requests and limits that a container's cgroup stands for.
fn resources(linux: &v1::LinuxContainerResources) -> ResourceRequirements {
    let mut limits = BTreeMap::new();
    let mut requests = BTreeMap::new();
    if linux.cpu_shares > 2 {
        let milli = (linux.cpu_shares * 1000 + SHARES_PER_CPU - 1) / SHARES_PER_CPU;
        requests.insert("cpu".to_owned(), Quantity(format!("{milli}m")));
    }
    if linux.cpu_quota > 0 && linux.cpu_period > 0 {
        let milli = linux.cpu_quota.saturating_mul(1000) / linux.cpu_period;
        limits.insert("cpu".to_owned(), Quantity(format!("{milli}m")));
    }
    if linux.memory_limit_in_bytes > 0 {
        limits.insert(
            "memory".to_owned(),
            Quantity(linux.memory_limit_in_bytes.to_string()),
        );
    }
    ResourceRequirements {
        limits: (!limits.is_empty()).then_some(limits),
        requests: (!requests.is_empty()).then_some(requests),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;

    impl LastWords for Silent {
        fn of(&self, _: &v1::ContainerStatus) -> Option<String> {
            None
        }
    }

    #[test]
    fn a_container_is_known_by_what_the_kubelet_left_with_it() {
        let status = v1::ContainerStatus {
            id: "c1".to_owned(),
            metadata: Some(v1::ContainerMetadata {
                name: "other".to_owned(),
                attempt: 1,
            }),
            state: v1::ContainerState::ContainerExited.into(),
            created_at: 1_000_000_000,
            finished_at: 3_000_000_000,
            exit_code: 137,
            reason: "OOMKilled".to_owned(),
            labels: [(labels::CONTAINER_NAME.to_owned(), "web".to_owned())].into(),
            annotations: [
                (labels::CONTAINER_HASH.to_owned(), "ff".to_owned()),
                (labels::RESTART_COUNT.to_owned(), "4".to_owned()),
            ]
            .into(),
            ..Default::default()
        };
        let seen = observed_container(status, "s1", &Silent);
        assert_eq!(
            (seen.name.as_str(), seen.attempt, seen.spec_hash),
            ("web", 4, Some(255))
        );
        let ContainerState::Exited {
            started,
            exit_code,
            reason,
            ..
        } = seen.state
        else {
            panic!("it has exited: {:?}", seen.state);
        };
        assert_eq!((started, exit_code, reason.as_str()), (None, 137, "OOMKilled"));
    }

    #[test]
    fn addresses_come_in_the_runtimes_order() {
        let status = v1::PodSandboxStatus {
            network: Some(v1::PodSandboxNetworkStatus {
                ip: "10.0.0.2".to_owned(),
                additional_ips: vec![v1::PodIp {
                    ip: "fd00::2".to_owned(),
                }],
            }),
            ..Default::default()
        };
        let ips: Vec<_> = observed_sandbox(&status)
            .ips
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ips, ["10.0.0.2", "fd00::2"]);
    }

    #[test]
    fn weights_and_quotas_become_requests_and_limits() {
        let seen = resources(&v1::LinuxContainerResources {
            cpu_shares: 256,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        });
        let of = |map: &Option<BTreeMap<String, Quantity>>, key: &str| {
            map.as_ref()
                .and_then(|map| map.get(key))
                .map(|quantity| quantity.0.clone())
        };
        assert_eq!(of(&seen.requests, "cpu").as_deref(), Some("250m"));
        assert_eq!(of(&seen.limits, "cpu").as_deref(), Some("500m"));
        assert_eq!(of(&seen.limits, "memory").as_deref(), Some("67108864"));
    }
}
