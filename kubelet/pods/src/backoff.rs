//! When what failed may be tried again: restarts of containers ([`RestartBackoff`]) and pulls of images ([`PullBackoff`]).
//!
//! Both double from a first delay up to a greatest one. A container's first restart is at once; each start after an end sets
//! the delay of the next one, counted from the end. Who ran for more than twice the greatest delay starts anew (10 minutes).
//! Both are bounded: entries of what is forgotten or has expired go with [`RestartBackoff::forget`] and
//! [`RestartBackoff::expire`].

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod};
use jiff::{SignedDuration, Timestamp};

use crate::containers;
use crate::hash::container_hash;
use crate::observed::{ContainerState, ObservedPod};
use crate::times::after;

/// The first delay.
pub const FIRST_DELAY: SignedDuration = SignedDuration::from_secs(10);

/// The greatest delay, unless configured (`crashLoopBackOff.maxContainerRestartPeriod`).
pub const GREATEST_DELAY: SignedDuration = SignedDuration::from_secs(300);

/// What backs off: a container of a pod, as long as its spec stays the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackoffKey {
    /// The pod's UID.
    pub pod_uid: String,
    /// The container's name.
    pub container: String,
    /// The hash of its spec.
    pub spec_hash: u64,
}

impl BackoffKey {
    /// The key of a pod's container.
    pub fn of(pod: &Pod, container: &Container) -> Self {
        let pod_uid = pod.metadata.uid.clone().unwrap_or_default();
        Self {
            pod_uid,
            container: container.name.clone(),
            spec_hash: container_hash(container),
        }
    }
}

/// Delays of a doubling back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delays {
    /// The first one.
    pub first: SignedDuration,
    /// The greatest one.
    pub greatest: SignedDuration,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            first: FIRST_DELAY,
            greatest: GREATEST_DELAY,
        }
    }
}

impl Delays {
    fn next(self, last: SignedDuration) -> SignedDuration {
        last.checked_mul(2).unwrap_or(self.greatest).min(self.greatest)
    }

    fn first(self) -> SignedDuration {
        self.first.min(self.greatest)
    }

    /// Whether `then` lies so far before `now` that counting starts anew.
    fn is_over(self, then: Timestamp, now: Timestamp) -> bool {
        now.duration_since(then) > self.greatest.checked_mul(2).unwrap_or(SignedDuration::MAX)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    delay: SignedDuration,
    updated: Timestamp,
}

/// The back-off of containers' restarts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RestartBackoff {
    delays: Delays,
    entries: BTreeMap<BackoffKey, Entry>,
}

impl RestartBackoff {
    /// With these delays.
    pub fn new(delays: Delays) -> Self {
        Self {
            delays,
            entries: BTreeMap::new(),
        }
    }

    /// When a container whose predecessor ended at `ended` may start; none if it may now.
    ///
    /// An end that lies further in the future than the delay is one from before the clock was set back, and doesn't count.
    pub fn may_start_at(&self, key: &BackoffKey, ended: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let entry = self.entries.get(key)?;
        if self.delays.is_over(entry.updated, ended) || ended > after(now, entry.delay) {
            return None;
        }
        Some(after(ended, entry.delay)).filter(|&at| at > now)
    }

    /// The delay that counts now.
    pub fn delay(&self, key: &BackoffKey) -> Option<SignedDuration> {
        self.entries.get(key).map(|entry| entry.delay)
    }

    /// A container is about to be started whose predecessor ended at `ended` (`StartContainer::after`).
    pub fn started(&mut self, key: BackoffKey, ended: Timestamp, now: Timestamp) {
        let delay = match self.entries.get(&key) {
            Some(entry) if !self.delays.is_over(entry.updated, ended) => self.delays.next(entry.delay),
            _ => self.delays.first(),
        };
        self.entries.insert(key, Entry { delay, updated: now });
    }

    /// Derives again, from what the runtime holds, what is known of a pod's containers no more: for pods found at start.
    ///
    /// How long a container's start came after its predecessor's end tells the delay that was in force then; the next one
    /// doubles it. A start after a longer wait for something else counts as a greater delay, never above the greatest.
    pub fn recover(&mut self, pod: &Pod, observed: &ObservedPod) {
        let all = containers::init_containers(pod)
            .iter()
            .chain(containers::regular_containers(pod));
        for container in all {
            let key = BackoffKey::of(pod, container);
            if self.entries.contains_key(&key) {
                continue;
            }
            let mut instances = observed.all_named(&container.name);
            let Some(newest) = instances.next().filter(|one| one.attempt > 0) else {
                continue;
            };
            if newest.spec_hash.is_some_and(|hash| hash != key.spec_hash) {
                continue;
            }
            let started = match newest.state {
                ContainerState::Running { started } => started,
                ContainerState::Exited { started, .. } => started.unwrap_or(newest.created),
                ContainerState::Created | ContainerState::Unknown => newest.created,
            };
            let ended = instances.find_map(|one| match one.state {
                ContainerState::Exited { finished, .. } => Some(finished),
                _ => None,
            });
            let waited = ended
                .map(|ended| started.duration_since(ended))
                .unwrap_or_default();
            self.entries.insert(
                key,
                Entry {
                    delay: self.delay_after(waited),
                    updated: started,
                },
            );
        }
    }

    /// The delay in force after a start that came `waited` after an end.
    fn delay_after(&self, waited: SignedDuration) -> SignedDuration {
        let mut delay = self.delays.first();
        // Doubling ends at the greatest delay; 64 times is more than any duration has bits.
        for _ in 0..64 {
            if waited < delay || delay >= self.delays.greatest {
                break;
            }
            delay = self.delays.next(delay);
        }
        delay
    }

    /// Forgets a pod.
    pub fn forget(&mut self, pod_uid: &str) {
        self.entries.retain(|key, _| key.pod_uid != pod_uid);
    }

    /// Forgets what hasn't been started for so long that it counts no more, of pods that aren't `known`.
    pub fn expire(&mut self, now: Timestamp, known: impl Fn(&str) -> bool) {
        let delays = self.delays;
        self.entries
            .retain(|key, entry| known(&key.pod_uid) || !delays.is_over(entry.updated, now));
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The back-off of image pulls: per pod and image.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PullBackoff {
    delays: Delays,
    entries: BTreeMap<(String, String), (Entry, String)>,
}

/// Why an image isn't pulled now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullWait {
    /// When it may be.
    pub until: Timestamp,
    /// What `ImagePullBackOff` says: `Back-off pulling image "x": ErrImagePull: ...`.
    pub message: String,
}

impl PullBackoff {
    /// With these delays.
    pub fn new(delays: Delays) -> Self {
        Self {
            delays,
            entries: BTreeMap::new(),
        }
    }

    /// A pull failed; `error` begins with its reason, such as `ErrImagePull: `.
    pub fn failed(&mut self, pod_uid: &str, image: &str, error: &str, now: Timestamp) {
        let key = (pod_uid.to_owned(), image.to_owned());
        let delay = match self.entries.get(&key) {
            Some((entry, _)) if !self.delays.is_over(entry.updated, now) => self.delays.next(entry.delay),
            _ => self.delays.first(),
        };
        self.entries
            .insert(key, (Entry { delay, updated: now }, error.to_owned()));
    }

    /// Whether an image must not be pulled now for this pod. A clock that was set back doesn't prolong it.
    pub fn waits(&self, pod_uid: &str, image: &str, now: Timestamp) -> Option<PullWait> {
        let (entry, error) = self.entries.get(&(pod_uid.to_owned(), image.to_owned()))?;
        let until = after(entry.updated, entry.delay);
        if now >= until || now < entry.updated {
            return None;
        }
        let separator = if error.is_empty() { "" } else { ": " };
        Some(PullWait {
            until,
            message: format!("Back-off pulling image \"{image}\"{separator}{error}"),
        })
    }

    /// A pull succeeded: the next failure starts anew.
    pub fn succeeded(&mut self, pod_uid: &str, image: &str) {
        self.entries.remove(&(pod_uid.to_owned(), image.to_owned()));
    }

    /// Forgets a pod.
    pub fn forget(&mut self, pod_uid: &str) {
        self.entries.retain(|(uid, _), _| uid != pod_uid);
    }
}

#[cfg(test)]
mod tests;
