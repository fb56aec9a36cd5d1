//! What plugins ask of the node: its state, changed limits, evictions. And their beginning and end.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use cri_nri::v1alpha1::{ContainerEviction, ContainerUpdate};
use cri_nri::{Nri, NriConfig, Runtime, StartError, State};

use crate::config::NriSettings;
use crate::node::Node;
use crate::store::{ContainerPhase, SandboxPhase};

/// A node's plugins.
pub(crate) struct Link {
    pub(super) nri: Arc<Nri>,
    pub(super) node: Weak<Node>,
}

/// The node, as plugins may use it.
struct NodeRuntime(Weak<Node>);

#[async_trait]
impl Runtime for NodeRuntime {
    async fn state(&self) -> State {
        match self.0.upgrade() {
            Some(node) => node.plugins_state().await,
            None => State::default(),
        }
    }

    async fn update(&self, plugin: &str, updates: Vec<ContainerUpdate>) -> Vec<ContainerUpdate> {
        let Some(node) = self.0.upgrade() else {
            return updates;
        };
        let mut failed = Vec::new();
        for update in updates {
            if let Err(error) = node.apply_update(&update).await {
                let (id, error) = (update.container_id.clone(), error.chain());
                tracing::warn!(plugin, id, error, "an NRI plugin's update of a container failed");
                failed.push(update);
            }
        }
        failed
    }

    async fn evict(&self, plugin: &str, evictions: Vec<ContainerEviction>) {
        if let Some(node) = self.0.upgrade() {
            tracing::info!(plugin, count = evictions.len(), "an NRI plugin evicts containers");
            node.evict(evictions);
        }
    }
}

impl Node {
    /// Begins to serve plugins, if the configuration says so.
    pub(crate) async fn begin_nri(self: &Arc<Self>) -> Result<(), StartError> {
        let settings = self.config().nri.clone();
        if !settings.enabled {
            return Ok(());
        }
        // What was there before plugins could come, they find in their list; what has ended, nobody tells them of.
        for sandbox in self.store.sandboxes() {
            sandbox.told.set_made();
            if sandbox.record().phase != SandboxPhase::Ready {
                // Nobody else has begun.
                let _ = sandbox.told.stopped.set(());
            }
        }
        for container in self.store.containers() {
            container.told.set_made();
            if matches!(container.record().phase, ContainerPhase::Exited(_)) {
                let _ = container.told.stopped.set(());
            }
        }
        let runtime = Arc::new(NodeRuntime(Arc::downgrade(self)));
        let nri = Nri::new(nri_config(settings), runtime);
        let link = Link {
            nri: nri.clone(),
            node: Arc::downgrade(self),
        };
        // Set once: this is the only place.
        let _ = self.nri.set(link);
        nri.start().await
    }

    /// Tells plugins that the daemon ends.
    pub(crate) async fn end_nri(&self) {
        if let Some(link) = self.nri.get() {
            link.nri.shut_down().await;
        }
    }

    /// All that plugins were told of, or would have been, and that hasn't ended.
    async fn plugins_state(&self) -> State {
        let mut state = State::default();
        for sandbox in self.store.sandboxes() {
            let record = sandbox.record();
            let alive = matches!(record.phase, SandboxPhase::Creating | SandboxPhase::Ready);
            if alive && sandbox.told.is_made() && !sandbox.told.is_stopped() {
                state.pods.push(self.pod_message(&record, None));
            }
        }
        for container in self.store.containers() {
            let ended = matches!(container.record().phase, ContainerPhase::Exited(_));
            if !ended && container.told.is_made() && !container.told.is_stopped() {
                state.containers.push(self.container_message(&container).await);
            }
        }
        state
    }

    /// Stops containers in the background, without a grace period.
    pub(super) fn evict(self: &Arc<Self>, evictions: Vec<ContainerEviction>) {
        for eviction in evictions {
            let node = self.clone();
            tokio::spawn(async move {
                let (id, reason) = (&eviction.container_id, &eviction.reason);
                tracing::info!(id, reason, "NRI plugins evict a container");
                let stopped = match node.store.find_container(id) {
                    Ok(container) => node.stop_container(&container, 0).await,
                    Err(error) => Err(error.into()),
                };
                if let Err(error) = stopped {
                    tracing::warn!(id, error = error.chain(), "failed to evict a container");
                }
            });
        }
    }
}

fn nri_config(settings: NriSettings) -> NriConfig {
    NriConfig {
        name: "orlop".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        socket: settings.socket,
        plugin_dir: settings.plugin_dir,
        config_dir: settings.plugin_config_dir,
        registration_timeout: Duration::from_secs(settings.registration_timeout_seconds),
        request_timeout: Duration::from_secs(settings.request_timeout_seconds),
    }
}
