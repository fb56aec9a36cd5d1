//! ListPodSandbox, StreamPodSandboxes, PodSandboxStatus.

use std::collections::HashMap;
use std::sync::Arc;

use cri_api::v1::*;
use serde_json::json;

use super::{Answers, stream_list};
use crate::errors::CallError;
use crate::node::Node;
use crate::status;
use crate::store::{Sandbox, filter};

fn listed(node: &Node, wanted: Option<&PodSandboxFilter>) -> Vec<Arc<Sandbox>> {
    let mut all = node.store.sandboxes();
    all.retain(|s| filter::sandbox(wanted, &s.record()));
    all
}

pub(super) async fn list(
    node: Arc<Node>,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, CallError> {
    let items = listed(&node, request.filter.as_ref());
    Ok(ListPodSandboxResponse {
        items: items.iter().map(|s| status::sandbox_item(&s.record())).collect(),
    })
}

pub(super) async fn stream(
    node: Arc<Node>,
    request: StreamPodSandboxesRequest,
) -> Result<Answers<StreamPodSandboxesResponse>, CallError> {
    Ok(stream_list(
        listed(&node, request.filter.as_ref()),
        |s| Some(status::sandbox_item(&s.record())),
        |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes },
    ))
}

pub(super) async fn status(
    node: Arc<Node>,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, CallError> {
    let sandbox = node.store.find_sandbox(&request.pod_sandbox_id)?;
    Ok(PodSandboxStatusResponse {
        status: Some(status::sandbox_status(&sandbox.record())),
        info: if request.verbose {
            info(&node, &sandbox)
        } else {
            HashMap::new()
        },
        containers_statuses: node.container_statuses(&sandbox),
        timestamp: node.clock.now(),
    })
}

/// What `crictl inspectp` shows beside the status.
fn info(node: &Node, sandbox: &Sandbox) -> HashMap<String, String> {
    let record = sandbox.record();
    let id = sandbox.id.as_str();
    let pinned: Vec<_> = crate::lifecycle::kinds(&record.namespaces)
        .into_iter()
        .map(|kind| node.paths.namespace(id, kind))
        .collect();
    let info = json!({
        "shimPid": sandbox.shim().map(|shim| shim.pid()),
        "phase": record.phase,
        "runtimeHandler": record.runtime_handler,
        "cgroupParent": record.cgroup_parent.name(),
        "namespaces": pinned,
        "folder": node.paths.pod(id),
        "ips": record.ips,
    });
    [("info".to_owned(), info.to_string())].into()
}
