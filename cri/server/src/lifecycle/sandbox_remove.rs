//! StopPodSandbox and RemovePodSandbox: the one way down, also for what was half made and for what a crash left.
//!
//! Every part may find nothing to do.

use std::sync::Arc;

use cri_api::v1::ContainerEventType;
use cri_shim_protocol::NamespaceKind;
use futures_util::future::join_all;
use oci_runtime_cgroups::Cgroup;

use super::files;
use super::sandbox_create::init_cgroup;
use super::{Operation, Step};
use crate::errors::CallError;
use crate::node::{Node, blocking, log_record};
use crate::store::{CgroupParent, Container, Sandbox, SandboxPhase, ShimLink};

impl Node {
    /// Kills a sandbox's containers and gives back all that it holds but its record.
    pub(crate) async fn stop_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CallError> {
        let _alone = sandbox.gate.write().await;
        if sandbox.record().phase == SandboxPhase::Stopped {
            return Ok(());
        }
        self.rouse(sandbox).await?;
        self.release(sandbox).await?;
        let written = self.quick_step(&sandbox.entry, Step::SandboxStopped, || {
            Ok(sandbox.entry.note(|r| r.phase = SandboxPhase::Stopped))
        })?;
        // A full disk must not keep anybody from stopping; a restart would find the stop under way, and finish it.
        if written {
            log_record(sandbox.entry.settle(Operation::Stop));
        }
        self.announce(
            sandbox.id.as_str(),
            ContainerEventType::ContainerStoppedEvent,
            sandbox,
        );
        Ok(())
    }

    /// Removes a sandbox with its containers.
    pub(crate) async fn remove_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CallError> {
        let _alone = sandbox.gate.write().await;
        if self.store.sandbox_by_id(&sandbox.id).is_none() {
            // Somebody else was faster.
            return Ok(());
        }
        let visible = sandbox.record().phase != SandboxPhase::Creating;
        self.take_down(sandbox).await?;
        if visible {
            self.announce(
                sandbox.id.as_str(),
                ContainerEventType::ContainerDeletedEvent,
                sandbox,
            );
        }
        Ok(())
    }

    /// Removes everything, whatever there is. The caller holds the sandbox's gate, or nobody else knows the sandbox.
    pub(crate) async fn take_down(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CallError> {
        let entry = &sandbox.entry;
        let id = sandbox.id.as_str();
        self.rouse(sandbox).await?;
        self.step(entry, Step::SandboxRemove, self.remove_containers(sandbox))
            .await?;
        if sandbox.record().phase != SandboxPhase::Stopped {
            // Killed in here, the sandbox is found stopped or half-stopped, and whoever removes it asks again.
            self.release(sandbox).await?;
        }
        self.plugins_remove(sandbox).await;
        self.step(entry, Step::SandboxDropFiles, async {
            let traces = self.runtime.remove_traces(&sandbox.id).await;
            traces.map_err(CallError::shim("remove the shim's traces"))?;
            let folder = self.paths.pod(id);
            blocking(move || files::remove_tree(&folder)).await
        })
        .await?;
        self.step(entry, Step::SandboxDropCgroup, self.drop_pod_cgroup(sandbox))
            .await?;
        self.quick_step(entry, Step::SandboxForget, || {
            Ok(self.store.forget_sandbox(sandbox)?)
        })?;
        self.cpu.forget(id);
        Ok(())
    }

    /// Stops what runs and gives back shim, tmpfs, network and namespaces. The network comes late: a plugin that
    /// hangs keeps the pod's network namespace from going, and nothing else.
    async fn release(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CallError> {
        let entry = &sandbox.entry;
        self.step(entry, Step::SandboxStopContainers, self.kill_containers(sandbox))
            .await?;
        self.plugins_stop(sandbox).await;
        // From here on it can't be used, even if it can't be stopped wholly.
        entry.note(|r| {
            if r.phase == SandboxPhase::Ready {
                r.phase = SandboxPhase::Lost;
            }
        });
        self.step(entry, Step::SandboxEndShim, self.end_shim(sandbox))
            .await?;
        self.quick_step(entry, Step::SandboxDropShm, || {
            files::unmount(&self.paths.shm(sandbox.id.as_str()))
        })?;
        self.step(entry, Step::SandboxReleaseNetwork, self.release_network(sandbox))
            .await?;
        self.step(entry, Step::SandboxUnpin, self.unpin(sandbox)).await
    }

    async fn kill_containers(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CallError> {
        let containers = self.store.containers_in(&sandbox.id);
        let kill = |container: Arc<Container>| async move {
            // Killed first: whoever holds its gate may be waiting for it.
            self.kill_container(&container).await?;
            self.plugins_stopped(&container).await;
            let _alone = container.gate.lock().await;
            // The shim ends next; nobody could ask it for this later.
            self.delete_from_runtime(&container).await
        };
        for result in join_all(containers.into_iter().map(kill)).await {
            result?;
        }
        Ok(())
    }

    async fn remove_containers(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), CallError> {
        let containers = self.store.containers_in(&sandbox.id);
        let remove = |container: Arc<Container>| async move { self.remove_container(&container).await };
        for result in join_all(containers.into_iter().map(remove)).await {
            result?;
        }
        Ok(())
    }

    async fn release_network(&self, sandbox: &Sandbox) -> Result<(), CallError> {
        if sandbox.record().namespaces.network {
            let netns = self.paths.namespace(sandbox.id.as_str(), NamespaceKind::Network);
            self.network.detach(&sandbox.id, netns).await?;
        }
        Ok(())
    }

    async fn end_shim(&self, sandbox: &Sandbox) -> Result<(), CallError> {
        if let Some(shim) = sandbox.shim() {
            shim.shutdown(true)
                .await
                .map_err(CallError::shim("end the sandbox's shim"))?;
            sandbox.set_link(ShimLink::None);
        }
        let record = sandbox.record();
        if record.namespaces.pid {
            // The pod's own init was in it; a dead shim may have left it running.
            self.drop_cgroup(init_cgroup(&record)).await?;
        }
        Ok(())
    }

    async fn unpin(&self, sandbox: &Sandbox) -> Result<(), CallError> {
        let folder = self.paths.namespaces(sandbox.id.as_str());
        blocking(move || files::unmount_tree(&folder)).await
    }

    async fn drop_pod_cgroup(&self, sandbox: &Sandbox) -> Result<(), CallError> {
        match sandbox.record().cgroup_parent.clone() {
            CgroupParent::Ours(path) => self.drop_cgroup(path).await,
            CgroupParent::Given(_) => Ok(()),
        }
    }

    /// Kills what is in a cgroup and removes it.
    pub(crate) async fn drop_cgroup(&self, path: String) -> Result<(), CallError> {
        blocking(move || drop_cgroup(&path)).await
    }
}

/// Kills what is in a cgroup and removes it; none is fine. Blocks.
pub(super) fn drop_cgroup(path: &str) -> Result<(), CallError> {
    let cgroup = Cgroup::named(path)?;
    if cgroup.exists() {
        cgroup.kill_all()?;
    }
    // systemd may still have a unit whose directory is gone.
    Ok(cgroup.remove()?)
}
