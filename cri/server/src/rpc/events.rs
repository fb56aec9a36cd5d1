//! GetContainerEvents.

use std::sync::Arc;

use cri_api::v1::{ContainerEventResponse, GetEventsRequest};
use tokio::sync::broadcast::error::RecvError;

use super::Answers;
use crate::errors::CallError;
use crate::node::Node;

pub(super) async fn events(
    node: Arc<Node>,
    _request: GetEventsRequest,
) -> Result<Answers<ContainerEventResponse>, CallError> {
    let start = Some((node.events.subscribe(), node.closing()));
    Ok(Box::pin(futures_util::stream::unfold(
        start,
        |state| async move {
            let (mut events, mut closed) = state?;
            let event = tokio::select! {
                event = events.recv() => event,
                _ = closed.wait_for(|closed| *closed) => return None,
            };
            match event {
                Ok(event) => Some((Ok(event), Some((events, closed)))),
                Err(RecvError::Closed) => None,
                Err(RecvError::Lagged(missed)) => {
                    let text = format!("the client fell behind and missed {missed} events; list anew");
                    Some((Err(CallError::Lagged(text).into()), None))
                }
            }
        },
    )))
}
