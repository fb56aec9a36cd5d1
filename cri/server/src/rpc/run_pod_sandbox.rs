//! RunPodSandbox.

use std::sync::Arc;

use cri_api::v1::{RunPodSandboxRequest, RunPodSandboxResponse};

use super::handover::hand_over;
use crate::errors::CallError;
use crate::node::Node;
use crate::store::Sandbox;

pub(super) async fn run(
    node: Arc<Node>,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, CallError> {
    let config = request
        .config
        .ok_or_else(|| CallError::Invalid("the request has no sandbox configuration".to_owned()))?;
    let work = node.clone().run_sandbox(config, request.runtime_handler);
    let sandbox = hand_over(Box::pin(work), move |sandbox: Arc<Sandbox>| async move {
        tracing::info!(sandbox_id = %sandbox.id, "the caller is gone; its sandbox is removed");
        if let Err(error) = node.remove_sandbox(&sandbox).await {
            tracing::warn!(sandbox_id = %sandbox.id, error = error.chain(), "failed to remove it");
        }
    })
    .await?;
    tracing::info!(sandbox_id = %sandbox.id, pod = sandbox.record().name, "sandbox is ready");
    Ok(RunPodSandboxResponse {
        pod_sandbox_id: sandbox.id.to_string(),
    })
}
