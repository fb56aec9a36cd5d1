//! CreateContainer.

use std::sync::Arc;

use cri_api::v1::{CreateContainerRequest, CreateContainerResponse};

use super::handover::hand_over;
use crate::errors::CallError;
use crate::node::Node;
use crate::store::Container;

pub(super) async fn create(
    node: Arc<Node>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, CallError> {
    let config = request
        .config
        .ok_or_else(|| CallError::Invalid("the request has no container configuration".to_owned()))?;
    let work = node.clone().create_container(request.pod_sandbox_id, config);
    let container = hand_over(Box::pin(work), move |container: Arc<Container>| async move {
        tracing::info!(container_id = %container.id, "the caller is gone; its container is removed");
        if let Err(error) = node.remove_container(&container).await {
            tracing::warn!(container_id = %container.id, error = error.chain(), "failed to remove it");
        }
    })
    .await?;
    tracing::info!(container_id = %container.id, name = container.record().name, "container is created");
    Ok(CreateContainerResponse {
        container_id: container.id.to_string(),
    })
}
