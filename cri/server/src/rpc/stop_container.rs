//! StopContainer: one that isn't there, or doesn't run, is stopped.

use std::sync::Arc;

use cri_api::v1::{StopContainerRequest, StopContainerResponse};

use crate::errors::CallError;
use crate::node::{Node, detached};
use crate::store::StoreError;

pub(super) async fn stop(
    node: Arc<Node>,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, CallError> {
    let container = match node.store.find_container(&request.container_id) {
        Err(StoreError::NotFound { .. }) => return Ok(StopContainerResponse {}),
        other => other?,
    };
    detached(async move {
        node.stop_container(&container, request.timeout).await?;
        tracing::info!(container_id = %container.id, grace = request.timeout, "container is stopped");
        Ok(StopContainerResponse {})
    })
    .await
}
