//! `orlop pods`: the table of `kubectl get pods -A -o wide`.

use controlplane_api::k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStatus, Pod, PodStatus,
};
use controlplane_api::pod::is_sidecar;
use jiff::Timestamp;

use crate::args::{Output, PodsArguments};
use crate::client::Client;
use crate::failure::{Failure, print};
use crate::select::{self, name, namespace};
use crate::{table, yaml};

/// Prints the pods.
pub(crate) async fn run(client: &Client, options: &PodsArguments) -> Result<(), Failure> {
    let mut pods = select::all(client).await?;
    if let Some(wanted) = &options.namespace {
        pods.retain(|pod| namespace(pod) == wanted);
    }
    match options.output {
        None | Some(Output::Wide) if pods.is_empty() => {
            eprintln!("No resources found");
            Ok(())
        }
        None | Some(Output::Wide) => print(&table(&pods, Timestamp::now())),
        Some(Output::Name) => print(
            &pods
                .iter()
                .map(|pod| format!("pod/{}\n", name(pod)))
                .collect::<String>(),
        ),
        Some(Output::Json) => print(&format!("{:#}\n", list(&pods)?)),
        Some(Output::Yaml) => print(&yaml::render(&list(&pods)?)),
    }
}

fn list(pods: &[Pod]) -> Result<serde_json::Value, Failure> {
    let items = serde_json::to_value(pods).map_err(|error| Failure::new(error.to_string()))?;
    Ok(
        serde_json::json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}}),
    )
}

fn table(pods: &[Pod], now: Timestamp) -> String {
    let head = [
        "NAMESPACE",
        "NAME",
        "READY",
        "STATUS",
        "RESTARTS",
        "AGE",
        "IP",
        "NODE",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for pod in pods {
        let shown = Shown::of(pod, now);
        let none = || "<none>".to_owned();
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let started = pod
            .status
            .as_ref()
            .and_then(|status| status.start_time.as_ref())
            .map(|time| time.0);
        rows.push(vec![
            namespace(pod).to_owned(),
            name(pod).to_owned(),
            format!("{}/{}", shown.ready, shown.total),
            shown.status,
            shown.restarts,
            table::age(created.or(started), now),
            pod.status
                .as_ref()
                .and_then(|status| status.pod_ip.clone())
                .unwrap_or_else(none),
            pod.spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .unwrap_or_else(none),
        ]);
    }
    table::render(&rows)
}

/// What kubectl shows of a pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) ready: usize,
    pub(crate) total: usize,
    pub(crate) status: String,
    pub(crate) restarts: String,
}

/// Restarts, and when the last of them was.
#[derive(Default)]
struct Restarts {
    count: i32,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &ContainerStatus) {
        self.count += status.restart_count;
        let ended = status
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        let finished = ended
            .and_then(|ended| ended.finished_at.as_ref())
            .map(|time| time.0);
        self.last = self.last.max(finished);
    }

    fn text(&self, now: Timestamp) -> String {
        match self.last {
            Some(_) if self.count != 0 => format!("{} ({} ago)", self.count, table::age(self.last, now)),
            _ => self.count.to_string(),
        }
    }
}

impl Shown {
    pub(crate) fn of(pod: &Pod, now: Timestamp) -> Self {
        let empty = PodStatus::default();
        let status = pod.status.as_ref().unwrap_or(&empty);
        let no_containers: &[Container] = &[];
        let (containers, init) = pod.spec.as_ref().map_or((no_containers, no_containers), |spec| {
            (
                spec.containers.as_slice(),
                spec.init_containers.as_deref().unwrap_or_default(),
            )
        });
        let phase = status.phase.as_deref().unwrap_or_default();
        let mut reason = match status.reason.as_deref() {
            Some(reason) if !reason.is_empty() => reason.to_owned(),
            _ => phase.to_owned(),
        };
        let mut ready = 0;
        let (mut restarts, mut sidecars) = (Restarts::default(), Restarts::default());
        let total = containers.len() + init.iter().filter(|container| is_sidecar(container)).count();
        let mut initializing = false;
        for (index, own) in status.init_container_statuses.iter().flatten().enumerate() {
            let sidecar = init
                .iter()
                .any(|container| container.name == own.name && is_sidecar(container));
            restarts.add(own);
            if sidecar {
                sidecars.add(own);
            }
            let state = own.state.clone().unwrap_or_default();
            if state
                .terminated
                .as_ref()
                .is_some_and(|ended| ended.exit_code == 0)
            {
                continue;
            }
            if sidecar && own.started == Some(true) {
                ready += usize::from(own.ready);
                continue;
            }
            reason = initializing_reason(&state, index, init.len());
            initializing = true;
            break;
        }
        if !initializing || condition(status, "Initialized") {
            restarts = sidecars;
            let mut running = false;
            for own in status.container_statuses.iter().flatten().rev() {
                restarts.add(own);
                let state = own.state.clone().unwrap_or_default();
                if let Some(why) = reason_of(&state) {
                    reason = why;
                } else if own.ready && state.running.is_some() {
                    running = true;
                    ready += 1;
                }
            }
            if reason == "Completed" && running {
                let word = if condition(status, "Ready") {
                    "Running"
                } else {
                    "NotReady"
                };
                reason = word.to_owned();
            }
        }
        if pod.metadata.deletion_timestamp.is_some() {
            if status.reason.as_deref() == Some("NodeLost") {
                reason = "Unknown".to_owned();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                reason = "Terminating".to_owned();
            }
        }
        Self {
            ready,
            total,
            status: reason,
            restarts: restarts.text(now),
        }
    }
}

fn condition(status: &PodStatus, kind: &str) -> bool {
    let mut all = status.conditions.iter().flatten();
    all.any(|condition| condition.type_ == kind && condition.status == "True")
}

fn initializing_reason(state: &ContainerState, index: usize, count: usize) -> String {
    if state.terminated.is_some() {
        return format!("Init:{}", reason_of(state).unwrap_or_default());
    }
    match state
        .waiting
        .as_ref()
        .and_then(|waiting| waiting.reason.as_deref())
    {
        Some(reason) if !reason.is_empty() && reason != "PodInitializing" => format!("Init:{reason}"),
        _ => format!("Init:{index}/{count}"),
    }
}

/// Why a container doesn't run.
fn reason_of(state: &ContainerState) -> Option<String> {
    let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.clone());
    if let Some(reason) = waiting.filter(|reason| !reason.is_empty()) {
        return Some(reason);
    }
    let ended = state.terminated.as_ref()?;
    Some(match (ended.reason.as_deref(), ended.signal) {
        (Some(reason), _) if !reason.is_empty() => reason.to_owned(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", ended.exit_code),
    })
}

#[cfg(test)]
mod tests;
