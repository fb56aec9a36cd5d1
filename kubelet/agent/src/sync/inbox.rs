//! What a pod's worker is told: updates of its pod's life, in order, and that it should look again.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use kubelet_pods::worker::Update;
use tokio::sync::Notify;

/// Updates that wait. Sources coalesce; nobody else sends many.
const MAX_WAITING: usize = 64;

#[derive(Debug, Default)]
struct Waiting {
    updates: VecDeque<Update>,
    look: bool,
    /// It is its turn among static pods of its name.
    turn: bool,
}

/// A worker's inbox.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

/// What was in an inbox.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// In order.
    pub(crate) updates: VecDeque<Update>,
    /// Whether something of the pod may have changed.
    pub(crate) look: bool,
    /// Whether it is the pod's turn.
    pub(crate) turn: bool,
}

impl Inbox {
    /// Tells the worker what happens to its pod.
    pub(crate) fn push(&self, update: Update) {
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            // Of two specs one after the other only the second counts.
            if matches!(update, Update::Set(_)) && matches!(waiting.updates.back(), Some(Update::Set(_))) {
                waiting.updates.pop_back();
            }
            if waiting.updates.len() == MAX_WAITING {
                waiting.updates.pop_front();
            }
            waiting.updates.push_back(update);
        }
        self.wake.notify_one();
    }

    /// Has the worker look again.
    pub(crate) fn look(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).look = true;
        self.wake.notify_one();
    }

    /// Tells the worker that it is its pod's turn.
    pub(crate) fn turn(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).turn = true;
        self.wake.notify_one();
    }

    /// Takes what is there.
    pub(crate) fn take(&self) -> Taken {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = std::mem::take(&mut *waiting);
        Taken {
            updates: waiting.updates,
            look: waiting.look,
            turn: waiting.turn,
        }
    }

    /// Waits until something is there; may be early.
    pub(crate) async fn wait(&self) {
        self.wake.notified().await;
    }
}
