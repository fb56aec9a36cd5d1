//! ListContainers, StreamContainers, ContainerStatus, ReopenContainerLog.

use std::collections::HashMap;
use std::sync::Arc;

use cri_api::v1::*;
use serde_json::{Value, json};

use super::{Answers, stream_list};
use crate::errors::CallError;
use crate::lifecycle::phase_name;
use crate::node::Node;
use crate::status;
use crate::store::{Container as Stored, ContainerPhase, filter};

fn listed(node: &Node, wanted: Option<&ContainerFilter>) -> Vec<Arc<Stored>> {
    let mut all = node.store.containers();
    all.retain(|c| filter::container(wanted, &c.record()));
    all
}

pub(super) async fn list(
    node: Arc<Node>,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, CallError> {
    let items = listed(&node, request.filter.as_ref());
    Ok(ListContainersResponse {
        containers: items
            .iter()
            .filter_map(|c| status::container_item(&c.record()))
            .collect(),
    })
}

pub(super) async fn stream(
    node: Arc<Node>,
    request: StreamContainersRequest,
) -> Result<Answers<StreamContainersResponse>, CallError> {
    Ok(stream_list(
        listed(&node, request.filter.as_ref()),
        |c| status::container_item(&c.record()),
        |containers| StreamContainersResponse { containers },
    ))
}

pub(super) async fn status(
    node: Arc<Node>,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, CallError> {
    let container = node.store.find_container(&request.container_id)?;
    let info = if request.verbose {
        info(&node, &container).await
    } else {
        HashMap::new()
    };
    Ok(ContainerStatusResponse {
        status: node.container_status(&container),
        info,
    })
}

/// What `crictl inspect` shows beside the status: above all the OCI specification.
async fn info(node: &Node, container: &Stored) -> HashMap<String, String> {
    let record = container.record();
    let id = container.id.as_str();
    let pid = match record.phase {
        ContainerPhase::Created { pid } | ContainerPhase::Running { pid, .. } => pid,
        ContainerPhase::Creating | ContainerPhase::Exited(_) => 0,
    };
    let spec = tokio::fs::read(node.paths.bundle(id).join("config.json"))
        .await
        .ok();
    let spec: Option<Value> = spec.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let info = json!({
        "sandboxID": container.sandbox.as_str(),
        "pid": pid,
        "phase": record.phase,
        "bundle": node.paths.bundle(id),
        "cgroup": record.cgroup,
        "runtimeSpec": spec,
    });
    [("info".to_owned(), info.to_string())].into()
}

pub(super) async fn reopen_log(
    node: Arc<Node>,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, CallError> {
    let container = node.store.find_container(&request.container_id)?;
    running(&container)?;
    node.shim_of(&container)?
        .reopen_log(container.id.as_str())
        .await
        .map_err(CallError::shim("reopen the container's log"))?;
    Ok(ReopenContainerLogResponse {})
}

/// Refuses a container that doesn't run.
pub(super) fn running(container: &Stored) -> Result<(), CallError> {
    match &container.record().phase {
        ContainerPhase::Running { .. } => Ok(()),
        phase => Err(CallError::State(format!(
            "container {} is {}, not running",
            container.id,
            phase_name(phase)
        ))),
    }
}
