//! StartContainer.

use std::sync::Arc;

use cri_api::v1::{StartContainerRequest, StartContainerResponse};

use crate::errors::CallError;
use crate::node::{Node, detached};

pub(super) async fn start(
    node: Arc<Node>,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, CallError> {
    let container = node.store.find_container(&request.container_id)?;
    detached(async move {
        node.start_container(&container).await?;
        tracing::info!(container_id = %container.id, "container is started");
        Ok(StartContainerResponse {})
    })
    .await
}
