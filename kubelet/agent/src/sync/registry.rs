//! The pods of this node with their statuses, for everybody who asks: the server, eviction, garbage collection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use controlplane_api::k8s_openapi::api::core::v1::{Pod, PodStatus};
use kubelet_pods::worker::Update;

use super::inbox::Inbox;

struct Entry {
    pod: Arc<Pod>,
    inbox: Arc<Inbox>,
    /// Whether containers of it may run, now or later.
    active: bool,
}

/// The pods of this node.
#[derive(Default)]
pub struct Registry {
    pods: RwLock<BTreeMap<String, Entry>>,
    settled: AtomicBool,
    changes: AtomicU64,
}

impl Registry {
    pub(super) fn enter(&self, uid: &str, pod: Arc<Pod>, inbox: Arc<Inbox>) {
        self.write().insert(
            uid.to_owned(),
            Entry {
                pod,
                inbox,
                active: true,
            },
        );
    }

    pub(super) fn leave(&self, uid: &str) {
        self.write().remove(uid);
    }

    /// Sets a pod's spec and status.
    pub(super) fn publish(&self, uid: &str, pod: &Pod, status: PodStatus, active: bool) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        if let Some(entry) = self.write().get_mut(uid) {
            entry.pod = Arc::new(Pod {
                status: Some(status),
                ..pod.clone()
            });
            entry.active = active;
        }
    }

    /// Every source has been heard: who isn't known now isn't named by anybody.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// Whether every source has been heard. Before, nothing may be taken from a pod for not being known.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// How often a status was told, so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// All pods, each with its status, in the order of their UIDs.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.read().values().map(|entry| entry.pod.clone()).collect()
    }

    /// Pods of which containers may run.
    pub fn active(&self) -> Vec<Arc<Pod>> {
        let pods = self.read();
        let active = pods.values().filter(|entry| entry.active);
        active.map(|entry| entry.pod.clone()).collect()
    }

    /// The pod of a UID.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        self.read().get(uid).map(|entry| entry.pod.clone())
    }

    /// Whether a pod of that UID is known.
    pub fn knows(&self, uid: &str) -> bool {
        self.read().contains_key(uid)
    }

    /// Tells a pod's worker something; false when there is no such pod.
    pub fn tell(&self, uid: &str, update: Update) -> bool {
        let inbox = self.read().get(uid).map(|entry| entry.inbox.clone());
        inbox.inspect(|inbox| inbox.push(update)).is_some()
    }

    /// Has a pod's worker look again; false when there is no such pod.
    pub fn wake(&self, uid: &str) -> bool {
        let inbox = self.read().get(uid).map(|entry| entry.inbox.clone());
        inbox.inspect(|inbox| inbox.look()).is_some()
    }

    /// Has all workers look again.
    pub fn wake_all(&self) {
        let inboxes: Vec<_> = self.read().values().map(|entry| entry.inbox.clone()).collect();
        inboxes.iter().for_each(|inbox| inbox.look());
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Entry>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Entry>> {
        self.pods.write().unwrap_or_else(PoisonError::into_inner)
    }
}
