//! StopPodSandbox: one that isn't there, or is stopped already, is stopped.

use std::sync::Arc;

use cri_api::v1::{StopPodSandboxRequest, StopPodSandboxResponse};

use crate::errors::CallError;
use crate::node::{Node, detached};
use crate::store::StoreError;

pub(super) async fn stop(
    node: Arc<Node>,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, CallError> {
    let sandbox = match node.store.find_sandbox(&request.pod_sandbox_id) {
        Err(StoreError::NotFound { .. }) => return Ok(StopPodSandboxResponse {}),
        other => other?,
    };
    detached(async move {
        node.stop_sandbox(&sandbox).await?;
        tracing::info!(sandbox_id = %sandbox.id, "sandbox is stopped");
        Ok(StopPodSandboxResponse {})
    })
    .await
}
