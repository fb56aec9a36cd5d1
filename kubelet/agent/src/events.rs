//! Events of pods and of the node, as `kubectl describe` shows them: kept in memory for the node's own tools, logged, and
//! later handed to the API server.
//!
//! What happens again is counted rather than kept again. Both the number of pods and the number of events of one are
//! bounded; the oldest go first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tracing::{info, warn};

/// Events that are kept of one pod.
const MAX_OF_A_POD: usize = 32;
/// Pods that events are kept of.
const MAX_PODS: usize = 2_048;

/// Whether all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EventType {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Who an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regarding<'a> {
    /// The pod's UID; the node's name for the node.
    pub uid: &'a str,
    /// The pod's namespace; empty for the node.
    pub namespace: &'a str,
    /// The pod's or node's name.
    pub name: &'a str,
    /// The container that it is about, as upstream's `fieldPath` names it: `spec.containers{web}`.
    pub field: Option<String>,
}

/// Something that happened, once or again.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Whether all is well.
    pub r#type: EventType,
    /// One word: `Pulled`, `BackOff`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The container, as `spec.containers{web}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_path: Option<String>,
    /// How often.
    pub count: u32,
    /// When first.
    pub first_timestamp: Timestamp,
    /// When last.
    pub last_timestamp: Timestamp,
}

#[derive(Debug, Default)]
struct Kept {
    by_uid: BTreeMap<String, VecDeque<Event>>,
    order: VecDeque<String>,
}

/// Keeps events.
#[derive(Debug, Default)]
pub struct Events(Mutex<Kept>);

impl Events {
    /// Keeps an event.
    pub fn record(
        &self,
        about: &Regarding<'_>,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
        now: Timestamp,
    ) {
        let message = message.into();
        let (pod, namespace, field) = (about.name, about.namespace, about.field.as_deref().unwrap_or(""));
        match kind {
            EventType::Normal => info!(pod, namespace, pod_uid = about.uid, field, reason, "{message}"),
            EventType::Warning => warn!(pod, namespace, pod_uid = about.uid, field, reason, "{message}"),
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *kept;
        if !kept.by_uid.contains_key(about.uid) {
            kept.order.push_back(about.uid.to_owned());
            if kept.order.len() > MAX_PODS
                && let Some(oldest) = kept.order.pop_front()
            {
                kept.by_uid.remove(&oldest);
            }
        }
        let events = kept.by_uid.entry(about.uid.to_owned()).or_default();
        let same = |event: &&mut Event| {
            event.reason == reason && event.message == message && event.field_path == about.field
        };
        if let Some(event) = events.iter_mut().rev().find(same) {
            event.count = event.count.saturating_add(1);
            event.last_timestamp = now;
            return;
        }
        if events.len() == MAX_OF_A_POD {
            events.pop_front();
        }
        events.push_back(Event {
            r#type: kind,
            reason: reason.to_owned(),
            message,
            field_path: about.field.clone(),
            count: 1,
            first_timestamp: now,
            last_timestamp: now,
        });
    }

    /// The events of a pod, oldest first.
    pub fn of(&self, uid: &str) -> Vec<Event> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.by_uid
            .get(uid)
            .map(|events| events.iter().cloned().collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(uid: &str) -> Regarding<'_> {
        Regarding {
            uid,
            namespace: "default",
            name: "web",
            field: None,
        }
    }

    #[test]
    fn what_happens_again_is_counted() {
        let events = Events::default();
        let later = Timestamp::from_second(60).expect("a time");
        events.record(
            &about("u"),
            EventType::Warning,
            "BackOff",
            "again",
            Timestamp::UNIX_EPOCH,
        );
        events.record(
            &about("u"),
            EventType::Normal,
            "Pulled",
            "there",
            Timestamp::UNIX_EPOCH,
        );
        events.record(&about("u"), EventType::Warning, "BackOff", "again", later);
        let kept = events.of("u");
        assert_eq!(kept.len(), 2);
        assert_eq!((kept[0].count, kept[0].last_timestamp), (2, later));
    }

    #[test]
    fn memory_is_bounded_in_both_directions() {
        let events = Events::default();
        for pod in 0..MAX_PODS + 10 {
            events.record(
                &about(&pod.to_string()),
                EventType::Normal,
                "A",
                "a",
                Timestamp::UNIX_EPOCH,
            );
        }
        assert!(events.of("0").is_empty());
        for number in 0..100 {
            events.record(
                &about("u"),
                EventType::Normal,
                "A",
                number.to_string(),
                Timestamp::UNIX_EPOCH,
            );
        }
        let kept = events.of("u");
        assert_eq!((kept.len(), kept[0].message.as_str()), (MAX_OF_A_POD, "68"));
    }
}
