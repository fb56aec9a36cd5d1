//! What GetContainerEvents streams: every change of a container or sandbox, with the state of its whole pod.
//!
//! The queue is bounded. A client that falls behind by more than [`QUEUE`] events is told so by the end of its stream
//! (`DataLoss`): it has to list anew, which the kubelet's relist does anyway. Nothing ever waits for a client.

use cri_api::v1::{ContainerEventResponse, ContainerEventType};
use tokio::sync::broadcast;

/// How many events a slow client may be behind.
pub const QUEUE: usize = 1024;

/// Where events go.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<ContainerEventResponse>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(QUEUE),
        }
    }
}

impl Events {
    /// Whether anybody listens: making an event costs a little.
    pub fn is_heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Hears of everything from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.sender.subscribe()
    }

    /// Tells all who listen.
    pub fn send(&self, event: ContainerEventResponse) {
        // An error only says that nobody listens.
        let _ = self.sender.send(event);
    }
}

/// The event's name in logs.
pub fn name(kind: ContainerEventType) -> &'static str {
    match kind {
        ContainerEventType::ContainerCreatedEvent => "created",
        ContainerEventType::ContainerStartedEvent => "started",
        ContainerEventType::ContainerStoppedEvent => "stopped",
        ContainerEventType::ContainerDeletedEvent => "deleted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_that_falls_behind_is_told() {
        let events = Events::default();
        assert!(!events.is_heard());
        let mut listener = events.subscribe();
        for n in 0..=QUEUE {
            events.send(ContainerEventResponse {
                created_at: i64::try_from(n).unwrap(),
                ..ContainerEventResponse::default()
            });
        }
        assert!(matches!(
            listener.recv().await,
            Err(broadcast::error::RecvError::Lagged(1))
        ));
        assert_eq!(listener.recv().await.unwrap().created_at, 1);
    }
}
