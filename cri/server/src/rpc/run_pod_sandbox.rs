//! RunPodSandbox.
//!
//! A caller that went away meanwhile doesn't know the ID, and would try again under the same name: so what it asked for
//! is removed, as if it had failed.

use std::sync::Arc;

use cri_api::v1::{RunPodSandboxRequest, RunPodSandboxResponse};
use tokio::sync::oneshot;
use tracing::Instrument as _;

use crate::errors::CallError;
use crate::node::Node;

pub(super) async fn run(
    node: Arc<Node>,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, CallError> {
    let config = request
        .config
        .ok_or_else(|| CallError::Invalid("the request has no sandbox configuration".to_owned()))?;
    let (answer, answered) = oneshot::channel();
    let work = async move {
        let result = node.clone().run_sandbox(config, request.runtime_handler).await;
        let Err(unheard) = answer.send(result) else { return };
        if let Ok(sandbox) = unheard {
            tracing::info!(sandbox_id = %sandbox.id, "the caller is gone; its sandbox is removed");
            if let Err(error) = node.remove_sandbox(&sandbox).await {
                tracing::warn!(sandbox_id = %sandbox.id, error = error.chain(), "failed to remove it");
            }
        }
    };
    tokio::spawn(Box::pin(work).in_current_span());
    let sandbox = answered.await.unwrap_or(Err(CallError::Lost))?;
    tracing::info!(sandbox_id = %sandbox.id, pod = sandbox.record().name, "sandbox is ready");
    Ok(RunPodSandboxResponse {
        pod_sandbox_id: sandbox.id.to_string(),
    })
}
