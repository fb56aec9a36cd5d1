//! Limits that plugins change of containers.
//!
//! An update of a container that is still being made waits in [`Told`](super::Told) until there is something to set
//! limits of, and is set before its creation is over: whoever waited for that instead could wait for itself. One that
//! asks about another container never fails that one: it may have ended in the meantime, or its shim may be slow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::LinuxContainerResources;
use cri_nri::v1alpha1::ContainerUpdate;
use oci_spec::runtime::LinuxResources;

use super::limits;
use crate::errors::CallError;
use crate::lifecycle::phase_name;
use crate::node::Node;
use crate::store::{Container, ContainerPhase};

/// Updates that wait for one container's creation.
const MAX_WAITING: usize = 64;

/// Updates that wait. Whoever holds the lock sets limits, so they are set in the order in which they were wished.
pub(super) type Waiting = tokio::sync::Mutex<VecDeque<ContainerUpdate>>;

impl Node {
    /// Changes limits as plugins wish, after something happened to the container `cause`. What fails is logged. Bounded
    /// by a request's time limit: what takes longer goes on by itself.
    pub(crate) async fn apply_updates(self: &Arc<Self>, cause: &str, updates: Vec<ContainerUpdate>) {
        if updates.is_empty() {
            return;
        }
        let limit = Duration::from_secs(self.config().nri.request_timeout_seconds);
        let (node, why) = (self.clone(), cause.to_owned());
        let all = tokio::spawn(async move {
            for update in updates {
                if let Err(error) = node.apply_update(&update).await {
                    node.log_update(&why, &update, &error);
                }
            }
        });
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!(
                cause,
                "updates that NRI plugins wish take long; nobody waits for them"
            );
        }
    }

    fn log_update(&self, cause: &str, update: &ContainerUpdate, error: &CallError) {
        let (id, error) = (&update.container_id, error.chain());
        let container = self.store.container_by_id(id);
        let gone = container.is_none_or(|c| matches!(c.record().phase, ContainerPhase::Exited(_)));
        if gone || update.ignore_failure {
            tracing::debug!(cause, id, error, "an update that NRI plugins wish failed; it may");
        } else {
            tracing::warn!(cause, id, error, "failed to update what NRI plugins wish");
        }
    }

    /// Sets the limits that a plugin wishes, or has them wait for the container's creation.
    pub(crate) async fn apply_update(&self, update: &ContainerUpdate) -> Result<(), CallError> {
        let id = &update.container_id;
        let container = self.store.container_by_id(id);
        let container =
            container.ok_or_else(|| CallError::NotFound(format!("there is no container `{id}`")))?;
        // What makes no sense is refused at once.
        self.wished_limits(update)?;
        let mut waiting = container.told.updates.lock().await;
        if container.record().phase == ContainerPhase::Creating {
            if waiting.len() >= MAX_WAITING {
                return Err(CallError::Unavailable(format!(
                    "{MAX_WAITING} updates wait already until container {id} is created; try again then"
                )));
            }
            waiting.push_back(update.clone());
            return Ok(());
        }
        self.set_waiting(&container, &mut waiting).await;
        self.set_wished(&container, update).await
    }

    /// Sets what has waited for a container's creation.
    pub(crate) async fn plugins_waited(&self, container: &Container) {
        let mut waiting = container.told.updates.lock().await;
        self.set_waiting(container, &mut waiting).await;
    }

    async fn set_waiting(&self, container: &Container, waiting: &mut VecDeque<ContainerUpdate>) {
        while let Some(update) = waiting.pop_front() {
            if let Err(error) = self.set_wished(container, &update).await {
                self.log_update(container.id.as_str(), &update, &error);
            }
        }
    }

    async fn set_wished(&self, container: &Container, update: &ContainerUpdate) -> Result<(), CallError> {
        let phase = container.record().phase.clone();
        if !matches!(
            phase,
            ContainerPhase::Created { .. } | ContainerPhase::Running { .. }
        ) {
            let state = phase_name(&phase);
            return Err(CallError::State(format!("container {} is {state}", container.id)));
        }
        let (resources, cri) = self.wished_limits(update)?;
        self.set_limits(container, &resources, &cri).await
    }

    fn wished_limits(
        &self,
        update: &ContainerUpdate,
    ) -> Result<(LinuxResources, LinuxContainerResources), CallError> {
        let wish = update.linux.clone().unwrap_or_default();
        let wish = wish.resources.unwrap_or_default();
        let mut resources = LinuxResources::default();
        resources.set_devices(None);
        limits::lay_over(&mut resources, &wish, &self.host)?;
        Ok((resources, limits::to_cri(&wish)))
    }
}
