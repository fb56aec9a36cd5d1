//! CreateContainer.
//!
//! A caller that went away meanwhile doesn't know the ID, and would try again under the same name: so what it asked for
//! is removed, as if it had failed.

use std::sync::Arc;

use cri_api::v1::{CreateContainerRequest, CreateContainerResponse};
use tokio::sync::oneshot;
use tracing::Instrument as _;

use crate::errors::CallError;
use crate::node::Node;

pub(super) async fn create(
    node: Arc<Node>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, CallError> {
    let config = request
        .config
        .ok_or_else(|| CallError::Invalid("the request has no container configuration".to_owned()))?;
    let (answer, answered) = oneshot::channel();
    let work = async move {
        let result = node
            .clone()
            .create_container(request.pod_sandbox_id, config)
            .await;
        let Err(unheard) = answer.send(result) else { return };
        if let Ok(container) = unheard {
            tracing::info!(container_id = %container.id, "the caller is gone; its container is removed");
            if let Err(error) = node.remove_container(&container).await {
                tracing::warn!(container_id = %container.id, error = error.chain(), "failed to remove it");
            }
        }
    };
    tokio::spawn(Box::pin(work).in_current_span());
    let container = answered.await.unwrap_or(Err(CallError::Lost))?;
    tracing::info!(container_id = %container.id, name = container.record().name, "container is created");
    Ok(CreateContainerResponse {
        container_id: container.id.to_string(),
    })
}
