//! RemoveContainer: one that isn't there is removed; one that runs is killed.

use std::sync::Arc;

use cri_api::v1::{RemoveContainerRequest, RemoveContainerResponse};

use crate::errors::CallError;
use crate::node::{Node, detached};
use crate::store::StoreError;

pub(super) async fn remove(
    node: Arc<Node>,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, CallError> {
    let container = match node.store.find_container(&request.container_id) {
        Err(StoreError::NotFound { .. }) => return Ok(RemoveContainerResponse {}),
        other => other?,
    };
    detached(async move {
        node.remove_container(&container).await?;
        tracing::info!(container_id = %container.id, "container is removed");
        Ok(RemoveContainerResponse {})
    })
    .await
}
