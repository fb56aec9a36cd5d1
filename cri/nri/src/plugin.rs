//! A registered plugin: asked about one event at a time, and dropped when it doesn't answer.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prost::Message;

use crate::connection::Connection;
use crate::error::{ConnectionError, NriError};
use crate::events::{self, Events};
use crate::launch::Launched;
use crate::ttrpc;
use crate::v1alpha1::{
    Container, ContainerUpdate, Empty, Event, FailurePolicy, PodSandbox, StateChangeEvent,
    SynchronizeRequest, SynchronizeResponse,
};

/// Bytes of pods and containers in one message; the rest of ttrpc's limit is for what goes around them.
const PART: usize = ttrpc::MAX_MESSAGE - (1 << 16);

/// A plugin that takes part.
#[derive(Debug)]
pub(crate) struct Plugin {
    /// Two digits: its place among others.
    pub(crate) index: String,
    /// Its own name.
    pub(crate) name: String,
    /// What it wants to know of.
    pub(crate) events: Events,
    /// What its silence means.
    pub(crate) policy: FailurePolicy,
    /// How long it may take.
    pub(crate) limit: Duration,
    /// How it is reached.
    pub(crate) connection: Connection,
    /// Ours, if it was started here; ends with this.
    pub(crate) process: Option<Launched>,
    /// Events that it knows by `StateChange` only.
    pub(crate) plain: AtomicU32,
}

impl Plugin {
    /// `index-name`.
    pub(crate) fn title(&self) -> String {
        format!("{}-{}", self.index, self.name)
    }

    /// Asks about an event. `None`: it doesn't want to know, or it failed and the rest goes on without it.
    pub(crate) async fn ask<A: Message + Default>(
        &self,
        event: Event,
        request: &impl Message,
    ) -> Result<Option<A>, NriError> {
        if !self.events.has(event) || self.connection.is_closed() {
            return Ok(None);
        }
        let method = events::method(event);
        match self.connection.call(method, request, self.limit).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => self.failed(method, error).map(|()| None),
        }
    }

    /// Tells of an event whose answer says nothing; plugins of old know it by another method.
    pub(crate) async fn tell(
        &self,
        event: Event,
        request: &impl Message,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), NriError> {
        if !self.events.has(event) || self.connection.is_closed() {
            return Ok(());
        }
        let bit = Events::bit(event);
        if self.plain.load(Ordering::Relaxed) & bit == 0 {
            let method = events::method(event);
            let told = self.connection.call::<Empty>(method, request, self.limit).await;
            match told {
                Ok(Empty {}) => return Ok(()),
                Err(ConnectionError::Refused { code, .. })
                    if code == ttrpc::UNIMPLEMENTED && events::is_plain(event) =>
                {
                    self.plain.fetch_or(bit, Ordering::Relaxed);
                }
                Err(error) => return self.failed(method, error),
            }
        }
        let change = StateChangeEvent {
            event: event as i32,
            pod: Some(pod.clone()),
            container: container.cloned(),
        };
        let told = self
            .connection
            .call::<Empty>("StateChange", &change, self.limit)
            .await;
        told.map(drop)
            .or_else(|error| self.failed(events::method(event), error))
    }

    /// Drops it where a failure means that; an error, where its policy or its own word wants one.
    fn failed(&self, request: &'static str, error: ConnectionError) -> Result<(), NriError> {
        let plugin = self.title();
        if let ConnectionError::Refused { message, .. } = error {
            return Err(NriError::Refused {
                plugin,
                request,
                message,
            });
        }
        self.drop_for(request, &error);
        if self.policy.fail_request {
            return Err(NriError::Failed {
                plugin,
                request,
                source: error,
            });
        }
        Ok(())
    }

    /// Disconnects it after a failure, unless it was only late and wants to stay then.
    pub(crate) fn drop_for(&self, request: &'static str, error: &ConnectionError) {
        let plugin = self.title();
        let late = matches!(error, ConnectionError::Timeout(_));
        if late && self.policy.keep_connected {
            tracing::warn!(plugin, request, %error, "an NRI plugin failed; it stays, as it wishes");
            return;
        }
        // What is too long for one message is no fault of the plugin's.
        if matches!(error, ConnectionError::TooLong(_)) {
            tracing::warn!(plugin, request, %error, "an NRI plugin can't be asked; going on without it");
            return;
        }
        tracing::warn!(plugin, request, %error, "an NRI plugin failed and is disconnected");
        self.connection.close();
    }

    /// Tells it of all that exists; what it wants changed. The limit is for all parts together.
    pub(crate) async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
        limit: Duration,
    ) -> Result<Option<Vec<ContainerUpdate>>, ConnectionError> {
        let all = self.synchronize_parts(parts(pods, containers, PART), limit);
        let late = Err(ConnectionError::Timeout(limit.as_millis()));
        tokio::time::timeout(limit, all).await.unwrap_or(late)
    }

    async fn synchronize_parts(
        &self,
        parts: Vec<SynchronizeRequest>,
        limit: Duration,
    ) -> Result<Option<Vec<ContainerUpdate>>, ConnectionError> {
        let mut parts = parts.into_iter().peekable();
        while let Some(part) = parts.next() {
            let more = parts.peek().is_some();
            let request = SynchronizeRequest { more, ..part };
            let answer: SynchronizeResponse = self.connection.call("Synchronize", &request, limit).await?;
            if !more {
                return Ok(Some(answer.update));
            }
            if !answer.more || !answer.update.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(Vec::new()))
    }
}

/// Pods and then containers, as many in one message as fit into `room` bytes, and at least one.
fn parts(pods: Vec<PodSandbox>, containers: Vec<Container>, room: usize) -> Vec<SynchronizeRequest> {
    /// Tag and length before each entry.
    const AROUND: usize = 6;
    let mut parts = vec![SynchronizeRequest::default()];
    let mut used = 0;
    let mut part_for = |size: usize, parts: &mut Vec<SynchronizeRequest>| {
        if used > 0 && used + size + AROUND > room {
            parts.push(SynchronizeRequest::default());
            used = 0;
        }
        used += size + AROUND;
    };
    for pod in pods {
        part_for(pod.encoded_len(), &mut parts);
        if let Some(part) = parts.last_mut() {
            part.pods.push(pod);
        }
    }
    for container in containers {
        part_for(container.encoded_len(), &mut parts);
        if let Some(part) = parts.last_mut() {
            part.containers.push(container);
        }
    }
    parts
}

/// What is wrong with a plugin's name or index.
pub(crate) fn check_name(index: &str, name: &str) -> Result<(), String> {
    if index.len() != 2 || !index.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("index `{index}` is not two digits"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(format!(
            "name `{name}` is empty or has other characters than letters, digits and `-_.+`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indices_are_checked() {
        check_name("00", "a-b_c.d+E9").unwrap();
        for (index, name) in [
            ("0", "a"),
            ("000", "a"),
            ("0x", "a"),
            ("00", ""),
            ("00", "a/b"),
            ("00", "ä"),
        ] {
            check_name(index, name).unwrap_err();
        }
    }

    #[test]
    fn long_lists_go_in_parts_and_nothing_is_lost() {
        let pods: Vec<_> = (0..5)
            .map(|n| PodSandbox {
                id: format!("pod{n}"),
                ..PodSandbox::default()
            })
            .collect();
        let containers: Vec<_> = (0..40)
            .map(|n| Container {
                id: format!("container{n}"),
                ..Container::default()
            })
            .collect();
        assert_eq!(parts(pods.clone(), containers.clone(), 1 << 20).len(), 1);
        assert_eq!(parts(Vec::new(), Vec::new(), 1 << 20).len(), 1);
        let some = parts(pods.clone(), containers.clone(), 100);
        assert!(some.len() > 5);
        for part in &some {
            assert!(part.encoded_len() <= 100, "{}", part.encoded_len());
        }
        let all: Vec<_> = some.iter().flat_map(|part| part.pods.clone()).collect();
        assert_eq!(all, pods);
        let all: Vec<_> = some.into_iter().flat_map(|part| part.containers).collect();
        assert_eq!(all, containers);
        // One that doesn't fit goes alone; the connection says that it is too long.
        assert_eq!(parts(pods, containers, 1).len(), 45);
    }
}
