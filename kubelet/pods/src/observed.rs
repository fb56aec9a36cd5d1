//! What the runtime holds of one pod, as the kubelet saw it last: its sandboxes and containers, without CRI's wire types.
//!
//! Newest first everywhere: `sandboxes[0]` is the sandbox that counts, and of the containers of one name the first is the
//! current one and the second is what its `lastState` tells of.

use std::collections::BTreeMap;
use std::net::IpAddr;

use controlplane_api::k8s_openapi::api::core::v1::ResourceRequirements;
use jiff::Timestamp;

/// What the runtime holds of one pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObservedPod {
    /// `metadata.uid`; for a static pod the hash of its manifest.
    pub uid: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// Newest first.
    pub sandboxes: Vec<ObservedSandbox>,
    /// Newest first, of all sandboxes.
    pub containers: Vec<ObservedContainer>,
}

/// A sandbox of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedSandbox {
    /// The runtime's.
    pub id: String,
    /// Whether containers can be made in it.
    pub ready: bool,
    /// How many sandboxes this pod had before it.
    pub attempt: u32,
    /// When it was made.
    pub created: Timestamp,
    /// Its addresses, the primary one first; none with the host's network.
    pub ips: Vec<IpAddr>,
    /// The runtime handler it was made with; empty is the default one.
    pub runtime_handler: String,
    /// Whether it uses the host's network, where the runtime tells it.
    pub host_network: Option<bool>,
}

/// A container of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedContainer {
    /// The runtime's.
    pub id: String,
    /// Its name in the pod's spec.
    pub name: String,
    /// The sandbox that it is in.
    pub sandbox_id: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// How many of this name the pod had before it: `restartCount`.
    pub attempt: u32,
    /// When it was made.
    pub created: Timestamp,
    /// The image as it was asked for.
    pub image: String,
    /// What the runtime calls the image: `imageID`.
    pub image_id: String,
    /// The hash of its spec that the kubelet left with it; none on a container that somebody else made.
    pub spec_hash: Option<u64>,
    /// What the kubelet left with it (annotations of the CRI container).
    pub annotations: BTreeMap<String, String>,
    /// Requests and limits that are in force, where the runtime tells them.
    pub resources: Option<ResourceRequirements>,
    /// The user that it runs as, where the runtime tells it: (uid, gid, supplemental groups).
    pub user: Option<(i64, i64, Vec<i64>)>,
    /// The signal that stops it, where the runtime tells it.
    pub stop_signal: Option<String>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its init process runs.
    Running {
        /// Since when.
        started: Timestamp,
    },
    /// Its init process has ended.
    Exited {
        /// When it was started; none when it never was.
        started: Option<Timestamp>,
        /// When it ended.
        finished: Timestamp,
        /// 128 plus the signal where a signal ended it.
        exit_code: i32,
        /// The runtime's word, such as `OOMKilled`, `Error` or `Completed`.
        reason: String,
        /// The runtime's message, or what the container left at its `terminationMessagePath`.
        message: String,
    },
    /// The runtime doesn't know.
    Unknown,
}

impl ObservedPod {
    /// The sandbox that counts: the newest one.
    pub fn sandbox(&self) -> Option<&ObservedSandbox> {
        self.sandboxes.first()
    }

    /// The newest container of a name.
    pub fn container(&self, name: &str) -> Option<&ObservedContainer> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The containers of a name, newest first.
    pub fn all_named<'a, 'n>(
        &'a self,
        name: &'n str,
    ) -> impl Iterator<Item = &'a ObservedContainer> + use<'a, 'n> {
        self.containers
            .iter()
            .filter(move |container| container.name == name)
    }

    /// The container with an ID.
    pub fn by_id(&self, id: &str) -> Option<&ObservedContainer> {
        self.containers.iter().find(|container| container.id == id)
    }
}

impl ObservedContainer {
    /// Whether its init process runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    /// Whether its init process has ended.
    pub fn has_exited(&self) -> bool {
        matches!(self.state, ContainerState::Exited { .. })
    }
}
