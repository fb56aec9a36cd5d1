//! Pod lifecycle events: which pods changed at the runtime.
//!
//! Events come first: the daemon's stream names the pod whose container was made, started, ended or removed, and that
//! pod's worker looks for itself. Since a look shows what is, an event that comes twice, late or out of order does no
//! harm, and one that is lost is found by relisting: every five minutes beside a stream, at once when the stream breaks,
//! and every second with a daemon that has none (as upstream's generic PLEG).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use cri_api::v1;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::Code;
use tracing::{info, warn};

use crate::runtime::observe::labels;
use crate::runtime::{CallError, Cri};

/// Between relists beside a stream of events.
const SAFETY_NET: Duration = Duration::from_secs(300);
/// Between relists without events.
const GENERIC: Duration = Duration::from_secs(1);
/// Before a broken stream is asked for again: doubled up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A pod that the runtime holds something of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuntimePod {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What the PLEG tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlegEvent {
    /// Something of a pod changed.
    Changed(String),
    /// All pods that the runtime holds something of.
    Listed(Vec<RuntimePod>),
    /// The runtime answers again: what failed meanwhile can be tried at once.
    Recovered,
}

/// Since when relisting worked: the kubelet isn't ready when that is long ago.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<AtomicI64>);

impl Health {
    fn relisted(&self, second: i64) {
        self.0.store(second, Ordering::Relaxed);
    }

    /// The second of the last relist that worked; 0 before the first.
    pub fn last_relist(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything of a pod at the runtime: ID and state of sandboxes and containers.
type Holdings = BTreeMap<RuntimePod, BTreeMap<String, i32>>;

/// Tells what changes until nobody listens. `now` counts seconds.
pub async fn run(cri: Cri, health: Health, events: mpsc::Sender<PlegEvent>, now: impl Fn() -> i64) {
    let mut known = Holdings::new();
    let mut stream = None;
    let mut has_events = true;
    let mut pause = Duration::from_millis(50);
    let mut away = false;
    loop {
        if stream.is_none() && has_events {
            match cri.container_events().await {
                Ok(opened) => {
                    stream = Some(opened);
                    pause = Duration::from_millis(50);
                }
                Err(error) if error.code == Code::Unimplemented => {
                    info!("the CRI daemon has no events: relisting every second");
                    has_events = false;
                }
                Err(_) => {}
            }
        }
        // After the stream is open, so that nothing is lost between the two.
        match relist(&cri).await {
            Ok(held) => {
                health.relisted(now());
                let mut said = changes(&known, &held)
                    .into_iter()
                    .map(PlegEvent::Changed)
                    .collect::<Vec<_>>();
                said.push(PlegEvent::Listed(held.keys().cloned().collect()));
                if std::mem::take(&mut away) {
                    said.push(PlegEvent::Recovered);
                }
                known = held;
                for event in said {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    warn!(%error, "failed to list what the runtime holds");
                }
            }
        }
        let wait = match (&stream, has_events) {
            (Some(_), _) if !away => SAFETY_NET,
            (None, false) => GENERIC,
            _ => {
                pause = (pause * 2).min(LONGEST_PAUSE);
                pause
            }
        };
        if !listen(&mut stream, Instant::now() + wait, &events).await {
            return;
        }
    }
}

/// Passes events on until it is time to relist or the stream breaks; false when nobody listens.
async fn listen(
    stream: &mut Option<tonic::Streaming<v1::ContainerEventResponse>>,
    until: Instant,
    events: &mpsc::Sender<PlegEvent>,
) -> bool {
    loop {
        let next = async {
            match stream {
                Some(stream) => stream.message().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = events.closed() => return false,
            () = sleep_until(until) => return true,
            event = next => match event {
                Ok(Some(event)) => {
                    if let Some(uid) = pod_of(&event)
                        && events.send(PlegEvent::Changed(uid)).await.is_err()
                    {
                        return false;
                    }
                }
                Ok(None) | Err(_) => {
                    *stream = None;
                    return true;
                }
            },
        }
    }
}

fn pod_of(event: &v1::ContainerEventResponse) -> Option<String> {
    let sandbox = event.pod_sandbox_status.as_ref()?;
    let uid = sandbox.metadata.as_ref().map(|metadata| metadata.uid.clone());
    uid.filter(|uid| !uid.is_empty())
}

async fn relist(cri: &Cri) -> Result<Holdings, CallError> {
    let (sandboxes, containers) = tokio::try_join!(
        cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()),
        cri.list_containers(v1::ListContainersRequest::default()),
    )?;
    let mut held = Holdings::new();
    for sandbox in sandboxes.items {
        // What crictl made without the kubelet's labels is not the kubelet's.
        if let Some(pod) = owner(&sandbox.labels) {
            held.entry(pod).or_default().insert(sandbox.id, sandbox.state);
        }
    }
    for container in containers.containers {
        if let Some(pod) = owner(&container.labels) {
            // Apart from the states of sandboxes, which share their numbers.
            held.entry(pod)
                .or_default()
                .insert(container.id, container.state + 16);
        }
    }
    Ok(held)
}

fn owner(labels: &std::collections::HashMap<String, String>) -> Option<RuntimePod> {
    let of = |key: &str| labels.get(key).cloned();
    Some(RuntimePod {
        uid: of(labels::POD_UID).filter(|uid| !uid.is_empty())?,
        namespace: of(labels::POD_NAMESPACE)?,
        name: of(labels::POD_NAME)?,
    })
}

/// The UIDs of the pods that aren't held as they were.
fn changes(before: &Holdings, after: &Holdings) -> BTreeSet<String> {
    let differs = |pod: &&RuntimePod| before.get(*pod) != after.get(*pod);
    let pods = before.keys().chain(after.keys());
    pods.filter(differs).map(|pod| pod.uid.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holdings(pods: &[(&str, &[(&str, i32)])]) -> Holdings {
        let pod = |uid: &str| RuntimePod {
            uid: uid.to_owned(),
            namespace: "default".to_owned(),
            name: uid.to_owned(),
        };
        pods.iter()
            .map(|(uid, held)| {
                (
                    pod(uid),
                    held.iter()
                        .map(|(id, state)| ((*id).to_owned(), *state))
                        .collect(),
                )
            })
            .collect()
    }

    #[test]
    fn what_came_went_or_changed_is_told_and_nothing_else() {
        let before = holdings(&[
            ("same", &[("a", 0)]),
            ("changed", &[("b", 17)]),
            ("gone", &[("c", 0)]),
        ]);
        let after = holdings(&[
            ("same", &[("a", 0)]),
            ("changed", &[("b", 18)]),
            ("new", &[("d", 0)]),
        ]);
        let said: Vec<_> = changes(&before, &after).into_iter().collect();
        assert_eq!(said, ["changed", "gone", "new"]);
    }

    #[test]
    fn sandboxes_without_the_kubelets_labels_are_not_its_pods() {
        let mut labels = std::collections::HashMap::new();
        labels.insert(labels::POD_UID.to_owned(), "u".to_owned());
        assert_eq!(owner(&labels), None);
        labels.insert(labels::POD_NAMESPACE.to_owned(), "n".to_owned());
        labels.insert(labels::POD_NAME.to_owned(), "p".to_owned());
        assert_eq!(owner(&labels).map(|pod| pod.uid).as_deref(), Some("u"));
    }

    /// A running container `web` of the pod `uid`.
    async fn run_web(daemon: &crate::testing::Running, uid: &str) {
        let metadata = v1::PodSandboxMetadata {
            name: uid.to_owned(),
            uid: uid.to_owned(),
            ..Default::default()
        };
        let config = v1::PodSandboxConfig {
            metadata: Some(metadata),
            labels: crate::testing::pod_labels(uid),
            ..Default::default()
        };
        let request = v1::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let sandbox = daemon.cri.run_pod_sandbox(request).await.expect("a sandbox");
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "web".to_owned(),
                attempt: 0,
            }),
            labels: crate::testing::pod_labels(uid),
            ..Default::default()
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox,
            config: Some(config),
            ..Default::default()
        };
        let container_id = daemon
            .cri
            .create_container(request)
            .await
            .expect("a container")
            .container_id;
        let request = v1::StartContainerRequest { container_id };
        daemon.cri.start_container(request).await.expect("it starts");
    }

    #[tokio::test]
    async fn an_end_is_told_at_once_and_what_is_there_at_first() {
        let daemon = crate::testing::FakeCri::start();
        run_web(&daemon, "u-1").await;
        assert_eq!(daemon.fake.running(), ["web"]);
        let (sender, mut events) = mpsc::channel(64);
        let health = Health::default();
        let task = tokio::spawn(run(daemon.cri.clone(), health.clone(), sender, || 7));
        assert_eq!(events.recv().await, Some(PlegEvent::Changed("u-1".to_owned())));
        let Some(PlegEvent::Listed(held)) = events.recv().await else {
            panic!("the first relist is told")
        };
        assert_eq!(held.len(), 1);
        assert_eq!(health.last_relist(), 7);
        daemon.fake.exit("web", 1);
        assert_eq!(events.recv().await, Some(PlegEvent::Changed("u-1".to_owned())));
        drop(events);
        task.await.expect("it ends when nobody listens");
    }

    #[tokio::test]
    async fn without_events_relisting_finds_what_changed() {
        let daemon = crate::testing::FakeCri::start();
        daemon.fake.fail(
            "get_container_events",
            u32::MAX,
            tonic::Status::unimplemented("no events"),
        );
        let (sender, mut events) = mpsc::channel(64);
        let task = tokio::spawn(run(daemon.cri.clone(), Health::default(), sender, || 7));
        assert_eq!(events.recv().await, Some(PlegEvent::Listed(Vec::new())));
        run_web(&daemon, "u-2").await;
        let found = async {
            loop {
                if events.recv().await == Some(PlegEvent::Changed("u-2".to_owned())) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), found)
            .await
            .expect("it is found");
        drop(events);
        task.await.expect("it ends when nobody listens");
    }
}
