//! Where a pod is in its life on this node: an enum that transitions consume. The agent's task for the pod acts on it.
//!
//! ```text
//!   Waiting ---start---> Syncing ---deleted, removed, killed, completed, orphan---> Terminating
//!      |  (a static pod of the same full name still ends)                               | all containers ended
//!      +---------------------removed before it started---------+                        v
//!                                                              +----> Gone <------ Terminated
//!                                          its source doesn't name it any more, and nothing of it is left
//! ```
//!
//! It never goes back. A pod that its source names again with the same UID while the old one ends is handed out by
//! [`PodLife::Gone`], to be begun anew.

pub mod deadline;
pub mod turns;

use controlplane_api::k8s_openapi::api::core::v1::{Pod, PodStatus};
use jiff::Timestamp;

use crate::status::StatusOverride;

/// A pod's life on this node.
#[derive(Debug, Clone, PartialEq)]
pub enum PodLife {
    /// It may not start yet: another static pod of its full name is still here ([`turns`]).
    Waiting {
        /// As its source has it.
        pod: Box<Pod>,
    },
    /// It runs or should.
    Syncing {
        /// As its source has it.
        pod: Box<Pod>,
    },
    /// Its containers are being ended. Nothing is started any more.
    Terminating(Box<Ending>),
    /// No container runs. Its volumes and other belongings are being given back.
    Terminated {
        /// How it ended.
        ending: Box<Ending>,
        /// Whether nothing of it is left on the node.
        cleaned: bool,
    },
    /// Nothing is left of it and its source doesn't name it.
    Gone {
        /// The pod to begin with again, where the source named it again meanwhile.
        again: Option<Box<Pod>>,
    },
}

/// Whose containers end.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// A pod that a source named.
    Pod(Box<Pod>),
    /// One that only the runtime knows.
    RuntimeOnly {
        /// `metadata.uid`.
        uid: String,
        /// `metadata.name`.
        name: String,
        /// `metadata.namespace`.
        namespace: String,
    },
}

/// How a pod ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// Whose containers.
    pub subject: Subject,
    /// The first reason why.
    pub cause: Cause,
    /// Seconds that its containers have; only ever gets shorter.
    pub grace: i64,
    /// Since when.
    pub since: Timestamp,
    /// What its status says on top of what is observed.
    pub status: Option<StatusOverride>,
    /// Whether its source doesn't name it any more.
    pub removed: bool,
    /// The pod that its source named anew after it had removed it.
    pub again: Option<Box<Pod>>,
}

/// Why a pod ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was deleted through the API (`deletionTimestamp`).
    Deleted,
    /// Its source doesn't name it any more.
    Removed,
    /// The node ended it: preemption, `activeDeadlineSeconds`, shutdown.
    Killed,
    /// The node ended it for want of a resource.
    Evicted,
    /// All of its containers have ended for good.
    Completed,
    /// No source names it: only the runtime does.
    Orphaned,
}

/// What happens to a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// Its source names it: for the first time, or changed, perhaps with a `deletionTimestamp`.
    Set(Box<Pod>),
    /// Its source doesn't name it any more.
    Removed,
    /// The node wants it ended.
    Kill {
        /// Killed or evicted.
        cause: Cause,
        /// Seconds of grace instead of the pod's.
        grace: Option<i64>,
        /// What its status says from now on.
        status: Option<StatusOverride>,
    },
    /// All of its containers have ended for good: the phase is `Succeeded` or `Failed`.
    Completed,
    /// All of its containers are observed to have ended, after it was terminating.
    ContainersEnded,
    /// Nothing of it is left: volumes unmounted, cgroup removed, sandboxes stopped.
    CleanedUp,
}

/// What an update led to.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The life from here on.
    pub life: PodLife,
    /// What the pod's task does about it.
    pub effect: Effect,
}

/// What the pod's task does about an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Syncs once more, after what is under way.
    Sync,
    /// Stops waiting for what is under way and syncs: the pod ends, or ends sooner than it did.
    Interrupt,
}

impl PodLife {
    /// A pod that its source names: `may_start` tells whether it is its turn. One whose status is already final, and of
    /// which the runtime holds nothing that runs, is only cleaned up.
    pub fn begin(pod: Box<Pod>, may_start: bool, runs: bool, now: Timestamp) -> Self {
        if is_final(pod.status.as_ref()) && !runs {
            let ending = Ending::new(Subject::Pod(pod), Cause::Completed, None, None, now);
            return Self::Terminated {
                ending: Box::new(ending),
                cleaned: false,
            };
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return Self::Terminating(Box::new(Ending::new(
                Subject::Pod(pod),
                Cause::Deleted,
                None,
                None,
                now,
            )));
        }
        if may_start {
            Self::Syncing { pod }
        } else {
            Self::Waiting { pod }
        }
    }

    /// A pod found in the runtime that no source names: it ends, with one second of grace.
    pub fn orphan(uid: String, name: String, namespace: String, now: Timestamp) -> Self {
        let subject = Subject::RuntimeOnly { uid, name, namespace };
        let ending = Ending::new(subject, Cause::Orphaned, None, None, now);
        Self::Terminating(Box::new(Ending {
            removed: true,
            ..ending
        }))
    }

    /// It is the turn of a waiting pod.
    pub fn start(self) -> Self {
        match self {
            Self::Waiting { pod } => Self::Syncing { pod },
            other => other,
        }
    }

    /// The pod as its source has it.
    pub fn pod(&self) -> Option<&Pod> {
        match self {
            Self::Waiting { pod } | Self::Syncing { pod } => Some(pod),
            Self::Terminating(ending) | Self::Terminated { ending, .. } => ending.pod(),
            Self::Gone { .. } => None,
        }
    }

    /// How it ends, if it does.
    pub fn ending(&self) -> Option<&Ending> {
        match self {
            Self::Terminating(ending) | Self::Terminated { ending, .. } => Some(ending),
            _ => None,
        }
    }

    /// Whether containers of it may still run.
    pub fn may_run(&self) -> bool {
        matches!(self, Self::Syncing { .. } | Self::Terminating(_))
    }

    /// What an update makes of it.
    pub fn update(self, update: Update, now: Timestamp) -> Transition {
        match self {
            Self::Waiting { pod } => update_waiting(pod, update, now),
            Self::Syncing { pod } => update_syncing(pod, update, now),
            Self::Terminating(ending) => update_terminating(ending, update),
            Self::Terminated { ending, cleaned } => update_terminated(ending, cleaned, update),
            Self::Gone { again } => {
                let again = match update {
                    Update::Set(pod) => Some(pod),
                    Update::Removed => None,
                    _ => again,
                };
                Transition {
                    life: Self::Gone { again },
                    effect: Effect::None,
                }
            }
        }
    }
}

impl Ending {
    fn new(
        subject: Subject,
        cause: Cause,
        grace: Option<i64>,
        status: Option<StatusOverride>,
        since: Timestamp,
    ) -> Self {
        let mut ending = Self {
            subject,
            cause,
            grace: 0,
            since,
            status,
            removed: false,
            again: None,
        };
        ending.grace = ending.shortened(grace);
        ending
    }

    /// The pod, if a source named it.
    pub fn pod(&self) -> Option<&Pod> {
        match &self.subject {
            Subject::Pod(pod) => Some(pod),
            Subject::RuntimeOnly { .. } => None,
        }
    }

    /// The grace that counts: the shortest of what the API server, the node and earlier requests say; else the pod's own.
    /// At least 1.
    fn shortened(&self, wanted: Option<i64>) -> i64 {
        let pod = self.pod();
        let earlier = Some(self.grace).filter(|&grace| grace != 0);
        let deletion = pod.and_then(|pod| pod.metadata.deletion_grace_period_seconds);
        let told = [earlier, deletion, wanted].into_iter().flatten().min();
        let own = pod.and_then(|pod| pod.spec.as_ref()?.termination_grace_period_seconds);
        told.or(own).unwrap_or(1).max(1)
    }
}

fn is_final(status: Option<&PodStatus>) -> bool {
    matches!(
        status.and_then(|status| status.phase.as_deref()),
        Some("Succeeded" | "Failed")
    )
}

fn terminating(ending: Ending) -> Transition {
    Transition {
        life: PodLife::Terminating(Box::new(ending)),
        effect: Effect::Interrupt,
    }
}

fn update_waiting(pod: Box<Pod>, update: Update, now: Timestamp) -> Transition {
    match update {
        Update::Set(pod) if pod.metadata.deletion_timestamp.is_none() => Transition {
            life: PodLife::Waiting { pod },
            effect: Effect::None,
        },
        // It has never started: nothing is to be ended.
        Update::Set(_) | Update::Removed => Transition {
            life: PodLife::Gone { again: None },
            effect: Effect::None,
        },
        Update::Kill { cause, grace, status } => {
            terminating(Ending::new(Subject::Pod(pod), cause, grace, status, now))
        }
        _ => Transition {
            life: PodLife::Waiting { pod },
            effect: Effect::None,
        },
    }
}

fn update_syncing(pod: Box<Pod>, update: Update, now: Timestamp) -> Transition {
    let (cause, grace, status) = match update {
        Update::Set(pod) if pod.metadata.deletion_timestamp.is_some() => {
            return terminating(Ending::new(Subject::Pod(pod), Cause::Deleted, None, None, now));
        }
        Update::Set(pod) => {
            return Transition {
                life: PodLife::Syncing { pod },
                effect: Effect::Sync,
            };
        }
        Update::Removed => (Cause::Removed, None, None),
        Update::Kill { cause, grace, status } => (cause, grace, status),
        Update::Completed => (Cause::Completed, None, None),
        Update::ContainersEnded | Update::CleanedUp => {
            return Transition {
                life: PodLife::Syncing { pod },
                effect: Effect::None,
            };
        }
    };
    let removed = cause == Cause::Removed;
    terminating(Ending {
        removed,
        ..Ending::new(Subject::Pod(pod), cause, grace, status, now)
    })
}

/// What an update changes about how a pod ends; says whether its containers get less time than before.
fn amend(ending: &mut Ending, update: Update) -> bool {
    let mut wanted = None;
    match update {
        Update::Set(pod) if ending.removed => ending.again = Some(pod),
        Update::Set(pod) => ending.subject = Subject::Pod(pod),
        Update::Removed => {
            ending.removed = true;
            ending.again = None;
        }
        Update::Kill { grace, status, .. } => {
            wanted = grace;
            ending.status = ending.status.take().or(status);
        }
        Update::Completed | Update::ContainersEnded | Update::CleanedUp => {}
    }
    let grace = ending.shortened(wanted);
    let sooner = grace < ending.grace;
    ending.grace = grace;
    sooner
}

fn update_terminating(mut ending: Box<Ending>, update: Update) -> Transition {
    if update == Update::ContainersEnded {
        return Transition {
            life: PodLife::Terminated {
                ending,
                cleaned: false,
            },
            effect: Effect::Sync,
        };
    }
    let sooner = amend(&mut ending, update);
    let effect = if sooner { Effect::Interrupt } else { Effect::None };
    Transition {
        life: PodLife::Terminating(ending),
        effect,
    }
}

fn update_terminated(mut ending: Box<Ending>, cleaned: bool, update: Update) -> Transition {
    let cleaned = cleaned || update == Update::CleanedUp;
    amend(&mut ending, update);
    let life = if cleaned && ending.removed {
        PodLife::Gone { again: ending.again }
    } else {
        PodLife::Terminated { ending, cleaned }
    };
    Transition {
        life,
        effect: Effect::None,
    }
}

#[cfg(test)]
mod tests;
