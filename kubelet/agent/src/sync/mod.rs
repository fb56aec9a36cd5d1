//! The sync loop: from what sources name and the runtime holds to pods that run.
//!
//! One task ([`SyncLoop`]) hears of everything and wakes the one worker of the pod that it is about; it never waits for a
//! pod. A [`worker`] owns its pod's life ([`kubelet_pods::worker::PodLife`]) and is the only one that acts on it: it looks
//! at the runtime, has the plan made ([`kubelet_pods::actions`]), carries it out ([`start`], [`stop`]), tells the status
//! and sleeps until it is woken. What it does can be cut short at any await: the next look shows how far it came.

pub mod belongings;
pub mod context;
mod inbox;
pub mod registry;
mod start;
mod stop;
pub mod sync_loop;
mod worker;

pub use context::{Context, Settings};
pub use registry::Registry;
pub use sync_loop::{Input, SyncLoop};
