//! Whose turn it is among static pods of one full name (name and namespace).
//!
//! A changed manifest is a pod of another UID and the same name. It may start only once the old one has ended, and of several
//! that wait only the newest ever starts.

use std::collections::{BTreeMap, VecDeque};

/// Who runs under which full name, and who waits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StaticTurns {
    names: BTreeMap<(String, String), Turn>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Turn {
    started: Option<String>,
    waiting: VecDeque<String>,
}

/// How many pods of one name may wait; the oldest are forgotten, as they would never start.
const MOST_WAITING: usize = 16;

impl StaticTurns {
    /// Whether the pod may start now. If not, it waits in line.
    pub fn claim(&mut self, namespace: &str, name: &str, uid: &str) -> bool {
        let turn = self
            .names
            .entry((namespace.to_owned(), name.to_owned()))
            .or_default();
        match &turn.started {
            Some(started) => {
                let is_it = started == uid;
                if !is_it && !turn.waiting.iter().any(|waiting| waiting == uid) {
                    turn.waiting.push_back(uid.to_owned());
                    if turn.waiting.len() > MOST_WAITING {
                        turn.waiting.pop_front();
                    }
                }
                is_it
            }
            None => {
                turn.started = Some(uid.to_owned());
                true
            }
        }
    }

    /// The pod is gone, whether it had started or waited. Returns who may start now: the newest that waits.
    pub fn release(&mut self, namespace: &str, name: &str, uid: &str) -> Option<String> {
        let key = (namespace.to_owned(), name.to_owned());
        let turn = self.names.get_mut(&key)?;
        turn.waiting.retain(|waiting| waiting != uid);
        if turn.started.as_deref() != Some(uid) {
            return None;
        }
        turn.started = turn.waiting.pop_back();
        let next = turn.started.clone();
        if next.is_none() {
            self.names.remove(&key);
        }
        next
    }
}
