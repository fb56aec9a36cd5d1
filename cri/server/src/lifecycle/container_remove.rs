//! RemoveContainer: the one way down, also for what was half made and for what a crash left.
//!
//! Every part may find nothing to do: a container that has exited gives back its cgroup and its mounts at once, since it
//! may be kept for long, and a removal under way is begun anew after a crash.

use std::sync::Arc;

use cri_api::v1::ContainerEventType;
use cri_shim_protocol::Runtime;

use super::Step;
use super::files;
use super::sandbox_remove::drop_cgroup;
use crate::errors::CallError;
use crate::node::{Node, blocking};
use crate::shim::ShimCallError;
use crate::store::{Container, ContainerPhase};

impl Node {
    /// Removes a container; one that runs is killed.
    pub(crate) async fn remove_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), CallError> {
        let _alone = container.gate.lock().await;
        let id = container.id.as_str();
        if self.store.container_by_id(id).is_none() {
            // Somebody else was faster.
            return Ok(());
        }
        let visible = container.record().phase != ContainerPhase::Creating;
        let entry = &container.entry;
        self.step(entry, Step::ContainerRemove, self.kill_container(container))
            .await?;
        self.plugins_removed(container).await;
        self.step(entry, Step::ContainerDelete, self.forget_in_runtime(container))
            .await?;
        self.step(entry, Step::ContainerUnmount, self.free(container))
            .await?;
        self.step(entry, Step::ContainerDropSnapshot, self.drop_snapshots(container))
            .await?;
        self.forget(container.clone()).await?;
        self.cpu.forget(id);
        if visible {
            self.announce_container(container, ContainerEventType::ContainerDeletedEvent);
        }
        Ok(())
    }

    /// The last steps, for which one thread will do.
    async fn forget(self: &Arc<Self>, container: Arc<Container>) -> Result<(), CallError> {
        let node = self.clone();
        blocking(move || {
            let entry = &container.entry;
            node.quick_step(entry, Step::ContainerDropBundle, || {
                files::remove_tree(&node.paths.bundle(container.id.as_str()))
            })?;
            // Its volumes go too, however much is in them.
            node.quick_step(entry, Step::ContainerForget, || {
                Ok(node.store.forget_container(&container)?)
            })
        })
        .await
    }

    /// Frees what an exited container needs no more. Not a step: nothing is made, and what this doesn't get done, its
    /// removal does.
    pub(crate) async fn tidy(self: Arc<Self>, container: Arc<Container>) {
        let _alone = container.gate.lock().await;
        let known = self.store.container_by_id(container.id.as_str()).is_some();
        if !known || !matches!(container.record().phase, ContainerPhase::Exited(_)) {
            return;
        }
        if let Err(error) = self.free(&container).await {
            let (error, container_id) = (error.chain(), &container.id);
            tracing::warn!(%container_id, error, "failed to free what an exited container holds; its removal will try again");
        }
    }

    /// Removes a container's cgroup, with whatever is in it, and its mounts.
    async fn free(&self, container: &Container) -> Result<(), CallError> {
        let id = container.id.as_str();
        let (rootfs, images) = (self.paths.rootfs(id), self.paths.image_mounts(id));
        let cgroup = container.record().cgroup.clone();
        blocking(move || {
            drop_cgroup(&cgroup)?;
            files::unmount(&rootfs)?;
            files::unmount_tree(&images)
        })
        .await
    }

    /// Takes back a half-made container. What can't be taken back now goes with the sandbox, or after a restart.
    pub(crate) async fn undo_container(self: &Arc<Self>, container: &Arc<Container>) {
        if let Err(error) = self.remove_container(container).await {
            let (error, container_id) = (error.chain(), &container.id);
            tracing::warn!(%container_id, error, "failed to undo a half-made container; it goes with its sandbox");
            self.store.free_name(container.id.as_str());
        }
    }

    /// Has the shim forget the container: its cgroup and the runtime's state go. Without a shim it is done here.
    pub(crate) async fn delete_from_runtime(&self, container: &Container) -> Result<(), CallError> {
        self.forget_in_runtime(container).await?;
        // The shim may not have known the container, and a foreign runtime may leave its cgroup.
        self.drop_cgroup(container.record().cgroup.clone()).await
    }

    async fn forget_in_runtime(&self, container: &Container) -> Result<(), CallError> {
        let id = container.id.as_str();
        let sandbox = self.store.sandbox_by_id(&container.sandbox);
        if let Some(shim) = sandbox.and_then(|s| s.shim()) {
            match shim.delete(id, true).await {
                Ok(()) => return Ok(()),
                Err(ShimCallError::Died) => {}
                Err(error) => return Err(CallError::shim("delete the container")(error)),
            }
        }
        self.drop_cgroup(container.record().cgroup.clone()).await?;
        let state = self.paths.oci().join(id);
        if state.exists() {
            let runtime = self.runtime_of(container);
            self.runtime
                .destroy(id, &self.paths.oci(), &runtime)
                .await
                .map_err(CallError::shim("delete the container without its shim"))?;
        }
        blocking(move || files::remove_tree(&state)).await
    }

    /// The runtime that made a container; one that is no longer configured counts as the built-in one.
    fn runtime_of(&self, container: &Container) -> Runtime {
        let settings = self.config();
        let sandbox = self.store.sandbox_by_id(&container.sandbox);
        let handler = sandbox.map(|s| s.record().runtime_handler.clone());
        settings
            .oci_runtime(&handler.unwrap_or_default())
            .unwrap_or(Runtime::Builtin {
                systemd_cgroup: false,
            })
    }

    async fn drop_snapshots(&self, container: &Container) -> Result<(), CallError> {
        let id = container.id.as_str();
        self.images.remove_snapshot(id).await?;
        for n in 0..container.record().config.mounts.len() {
            let key = format!("{id}-{n}");
            if self.images.snapshot(&key).is_some() {
                self.images.remove_snapshot(&key).await?;
            }
        }
        Ok(())
    }
}
