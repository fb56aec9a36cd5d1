//! RemovePodSandbox: one that isn't there is removed; one that runs is stopped, and its containers are removed.

use std::sync::Arc;

use cri_api::v1::{RemovePodSandboxRequest, RemovePodSandboxResponse};

use crate::errors::CallError;
use crate::node::{Node, detached};
use crate::store::StoreError;

pub(super) async fn remove(
    node: Arc<Node>,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, CallError> {
    let sandbox = match node.store.find_sandbox(&request.pod_sandbox_id) {
        Err(StoreError::NotFound { .. }) => return Ok(RemovePodSandboxResponse {}),
        other => other?,
    };
    detached(async move {
        node.remove_sandbox(&sandbox).await?;
        tracing::info!(sandbox_id = %sandbox.id, "sandbox is removed");
        Ok(RemovePodSandboxResponse {})
    })
    .await
}
