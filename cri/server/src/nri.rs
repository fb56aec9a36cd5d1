//! NRI: what plugins are told of pods and containers, and what becomes of their wishes.
//!
//! Each hook finds out first whether anybody is there, and is done if not (see [`cri_nri::Nri::is_alone`]). What a
//! plugin is told of is noted while it has the word (see [`cri_nri::Turn`]), so that one that joins later finds it in
//! its list or hears of it, and never neither. Ends are told once, whoever brings them about.

mod adjust;
mod cgroup;
mod limits;
mod link;
mod messages;
#[cfg(test)]
mod tests;
mod updates;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cri_api::v1;
use cri_nri::v1alpha1 as nri;
use cri_nri::v1alpha1::Event;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use tokio::sync::{Mutex, OnceCell};

pub use adjust::AdjustError;
pub(crate) use link::Link;

use crate::errors::CallError;
use crate::node::{Node, blocking};
use crate::spec::{Peering, linux_resources, peering_of};
use crate::store::{Container, Sandbox, SandboxRecord};

/// What plugins were told of a pod or container.
#[derive(Debug, Default)]
pub struct Told {
    /// That it is being made.
    made: AtomicBool,
    stopped: OnceCell<()>,
    removed: OnceCell<()>,
    /// Held while its start is told, so that its end is told later.
    starting: Mutex<()>,
    /// Limits that wait until it is made.
    updates: updates::Waiting,
}

impl Told {
    /// Whether plugins were told that it is being made.
    fn is_made(&self) -> bool {
        self.made.load(Ordering::Relaxed)
    }

    fn set_made(&self) {
        self.made.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.initialized()
    }

    #[cfg(test)]
    pub(crate) fn is_starting(&self) -> bool {
        self.starting.try_lock().is_err()
    }

    /// An end that nobody was there to hear of.
    fn set_stopped(&self) {
        // Someone else may have said so, or be saying it.
        let _ = self.stopped.set(());
    }
}

/// A failure that must not keep anything.
fn log(what: &'static str, id: &str, result: Result<(), cri_nri::NriError>) {
    if let Err(error) = result {
        let error = CallError::from(error).chain();
        tracing::warn!(id, what, error, "an NRI plugin failed, and it goes on");
    }
}

impl Node {
    /// Where to tell plugins something, if any is there; else what is to be known of it later is noted.
    fn listeners(&self, note: impl FnOnce()) -> Option<&Link> {
        self.nri.get().filter(|link| !link.nri.is_alone(note))
    }

    fn pod_message(&self, record: &SandboxRecord, ips: Option<&[IpAddr]>) -> nri::PodSandbox {
        messages::pod(record, &self.paths, ips)
    }

    fn pod_message_of(&self, container: &Container) -> nri::PodSandbox {
        match self.store.sandbox_by_id(&container.sandbox) {
            Some(sandbox) => self.pod_message(&sandbox.record(), None),
            None => messages::unknown_pod(container.sandbox.as_str()),
        }
    }

    /// A container with what its bundle says, if that is written.
    async fn container_message(&self, container: &Container) -> nri::Container {
        let record = container.record();
        let path = self.paths.bundle(container.id.as_str()).join("config.json");
        let spec = blocking(move || {
            let read = std::fs::read(&path).ok();
            Ok(read.and_then(|bytes| serde_json::from_slice::<Spec>(&bytes).ok()))
        });
        let spec = spec.await.unwrap_or(None);
        let image = self.images.find(&record.image_id);
        messages::container(&record, spec.as_ref(), image.as_ref())
    }

    /// Asks plugins about a pod that is about to be ready.
    pub(crate) async fn plugins_run(&self, sandbox: &Sandbox, ips: &[IpAddr]) -> Result<(), CallError> {
        let Some(link) = self.listeners(|| sandbox.told.set_made()) else {
            return Ok(());
        };
        let turn = link.nri.turn().await;
        sandbox.told.set_made();
        if turn.is_empty() {
            return Ok(());
        }
        let pod = self.pod_message(&sandbox.record(), Some(ips));
        Ok(Box::pin(turn.pod(Event::RunPodSandbox, pod)).await?)
    }

    /// Tells plugins, once, that a pod's containers have stopped and the rest of it will.
    pub(crate) async fn plugins_stop(&self, sandbox: &Sandbox) {
        let told = &sandbox.told;
        let Some(link) = self.listeners(|| told.set_stopped()) else {
            return;
        };
        if !told.is_made() {
            return;
        }
        let tell = async {
            let turn = link.nri.turn().await;
            if !turn.is_empty() {
                let pod = self.pod_message(&sandbox.record(), None);
                let result = turn.pod(Event::StopPodSandbox, pod).await;
                log("StopPodSandbox", sandbox.id.as_str(), result);
            }
        };
        Box::pin(told.stopped.get_or_init(|| tell)).await;
    }

    /// Tells plugins, once, that a pod goes.
    pub(crate) async fn plugins_remove(&self, sandbox: &Sandbox) {
        let told = &sandbox.told;
        let Some(link) = self.listeners(|| told.set_stopped()) else {
            return;
        };
        if !told.is_made() {
            return;
        }
        let tell = async {
            let turn = link.nri.turn().await;
            if !turn.is_empty() {
                let pod = self.pod_message(&sandbox.record(), None);
                let result = turn.pod(Event::RemovePodSandbox, pod).await;
                log("RemovePodSandbox", sandbox.id.as_str(), result);
            }
        };
        Box::pin(told.removed.get_or_init(|| tell)).await;
    }

    /// Whether plugins have a say about a new container. Without any, it is noted for those that join later.
    pub(crate) async fn plugins_listen(&self, container: &Container) -> bool {
        let Some(link) = self.listeners(|| container.told.set_made()) else {
            return false;
        };
        let turn = link.nri.turn().await;
        if turn.is_empty() {
            container.told.set_made();
        }
        !turn.is_empty()
    }

    /// Has plugins adjust a new container's specification, and changes others as they wish.
    pub(crate) async fn plugins_create(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        container: &Container,
        mut spec: Spec,
    ) -> Result<Spec, CallError> {
        let Some(link) = self.nri.get() else {
            return Ok(spec);
        };
        let record = container.record();
        let image = self.images.find(&record.image_id);
        let message = messages::container(&record, Some(&spec), image.as_ref());
        let pod = self.pod_message(&sandbox.record(), None);
        let turn = link.nri.turn().await;
        container.told.set_made();
        let wish = turn.create_container(pod, message).await?;
        let node = self.clone();
        let adjust = wish.adjust.clone();
        let adjusted = blocking(move || {
            let mounted = |path: &std::path::Path| peering_of(path).unwrap_or(Peering::Private);
            let ground = adjust::Ground {
                host: &node.host,
                peering: &mounted,
            };
            adjust::adjust(&mut spec, &adjust, &ground)?;
            Ok(spec)
        });
        let spec = adjusted.await?;
        self.note_adjustment(
            container,
            &spec,
            wish.adjust.linux.unwrap_or_default(),
            &wish.owners,
        )?;
        // Before anybody else has the word, so that limits are set in the order in which they were wished.
        self.apply_updates(container.id.as_str(), wish.updates).await;
        drop(turn);
        self.evict(wish.evict);
        Ok(spec)
    }

    /// What the record says of a container follows what plugins made of it.
    fn note_adjustment(
        &self,
        container: &Container,
        spec: &Spec,
        wish: nri::LinuxContainerAdjustment,
        owners: &nri::FieldOwners,
    ) -> Result<(), CallError> {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone());
        let own_pid_namespace = namespaces
            .into_iter()
            .flatten()
            .any(|n| n.typ() == LinuxNamespaceType::Pid && n.path().is_none());
        if !wish.cgroups_path.is_empty() {
            self.check_cgroup(container, &wish.cgroups_path, &cgroup::who(owners))?;
        }
        container.entry.update(|record| {
            record.own_pid_namespace = own_pid_namespace;
            if !wish.cgroups_path.is_empty() {
                record.cgroup.clone_from(&wish.cgroups_path);
            }
            if let Some(resources) = &wish.resources {
                record.overlay_limits(&limits::to_cri(resources));
            }
        })?;
        Ok(())
    }

    /// Tells plugins of something about a container that they have no say in.
    pub(crate) async fn plugins_hear(&self, container: &Container, event: Event) {
        let Some(link) = self.listeners(|| ()) else { return };
        if link.nri.turn().await.is_empty() {
            return;
        }
        // Elsewhere than in every caller's future, as all that is done for plugins alone.
        let tell = async {
            let message = self.container_message(container).await;
            let pod = self.pod_message_of(container);
            let result = link.nri.turn().await.container(event, pod, message).await;
            log(event.as_str_name(), container.id.as_str(), result);
        };
        Box::pin(tell).await;
    }

    /// Asks plugins whether a container may start. Its end is told after its start while the guard is held, also to one
    /// that joins meanwhile.
    pub(crate) async fn plugins_start<'a>(
        &self,
        container: &'a Container,
    ) -> Result<tokio::sync::MutexGuard<'a, ()>, CallError> {
        let starting = container.told.starting.lock().await;
        let Some(link) = self.listeners(|| ()) else {
            return Ok(starting);
        };
        if link.nri.turn().await.is_empty() {
            return Ok(starting);
        }
        let ask = async {
            let message = self.container_message(container).await;
            let pod = self.pod_message_of(container);
            let turn = link.nri.turn().await;
            turn.container(Event::StartContainer, pod, message).await?;
            Ok(starting)
        };
        Box::pin(ask).await
    }

    /// Tells plugins, once, that a container has stopped, and changes others as they wish.
    pub(crate) async fn plugins_stopped(self: &Arc<Self>, container: &Container) {
        let told = &container.told;
        let Some(link) = self.listeners(|| told.set_stopped()) else {
            return;
        };
        if !told.is_made() {
            return;
        }
        let tell = async {
            let _starting = told.starting.lock().await;
            if link.nri.turn().await.is_empty() {
                return;
            }
            let message = self.container_message(container).await;
            let pod = self.pod_message_of(container);
            let turn = link.nri.turn().await;
            let (updates, result) = turn.stop_container(pod, message).await;
            let id = container.id.as_str();
            log("StopContainer", id, result);
            self.apply_updates(id, updates).await;
        };
        Box::pin(told.stopped.get_or_init(|| tell)).await;
    }

    /// [`Node::plugins_stopped`] in the background, for where an end is heard of.
    pub(crate) fn plugins_hear_end(&self, container: &Container) {
        let link = self.listeners(|| container.told.set_stopped());
        let Some(node) = link.and_then(|link| link.node.upgrade()) else {
            return;
        };
        if let Some(container) = self.store.container_by_id(container.id.as_str()) {
            tokio::spawn(async move { node.plugins_stopped(&container).await });
        }
    }

    /// Tells plugins, once, that a container goes; before that, that it has stopped.
    pub(crate) async fn plugins_removed(self: &Arc<Self>, container: &Container) {
        if self.listeners(|| container.told.set_stopped()).is_none() || !container.told.is_made() {
            return;
        }
        self.plugins_stopped(container).await;
        let tell = self.plugins_hear(container, Event::RemoveContainer);
        Box::pin(container.told.removed.get_or_init(|| tell)).await;
    }

    /// Has plugins change an update of a container's limits; what is to be set then, in the specification's terms and
    /// as much of it as the CRI's can say.
    pub(crate) async fn plugins_update(
        self: &Arc<Self>,
        container: &Container,
        asked: v1::LinuxContainerResources,
    ) -> Result<(oci_spec::runtime::LinuxResources, v1::LinuxContainerResources), CallError> {
        let plain = |asked: v1::LinuxContainerResources| -> Result<_, CallError> {
            Ok((linux_resources(&asked, &self.host)?, asked))
        };
        let Some(link) = self.listeners(|| ()) else {
            return plain(asked);
        };
        if link.nri.turn().await.is_empty() {
            return plain(asked);
        }
        // What makes no sense is refused before anybody is asked.
        linux_resources(&asked, &self.host)?;
        let message = self.container_message(container).await;
        let pod = self.pod_message_of(container);
        let turn = link.nri.turn().await;
        let wish = turn
            .update_container(pod, message, limits::from_cri(&asked))
            .await?;
        let mut resources = oci_spec::runtime::LinuxResources::default();
        resources.set_devices(None);
        limits::lay_over(&mut resources, &wish.resources, &self.host)?;
        self.apply_updates(container.id.as_str(), wish.others).await;
        drop(turn);
        self.evict(wish.evict);
        let cri = v1::LinuxContainerResources {
            oom_score_adj: asked.oom_score_adj,
            ..limits::to_cri(&wish.resources)
        };
        Ok((resources, cri))
    }

    /// Asks plugins about new limits of a pod.
    pub(crate) async fn plugins_update_pod(
        &self,
        sandbox: &Sandbox,
        limits: &crate::store::PodLimits,
    ) -> Result<(), CallError> {
        let Some(link) = self.listeners(|| ()) else {
            return Ok(());
        };
        let turn = link.nri.turn().await;
        if turn.is_empty() {
            return Ok(());
        }
        let pod = self.pod_message(&sandbox.record(), None);
        let overhead = messages::pod_limits(limits.overhead.as_ref());
        let resources = messages::pod_limits(limits.resources.as_ref());
        Ok(Box::pin(turn.update_pod(pod, overhead, resources)).await?)
    }

    /// Tells plugins of a pod's new limits.
    pub(crate) async fn plugins_updated_pod(&self, sandbox: &Sandbox) {
        let Some(link) = self.listeners(|| ()) else { return };
        let turn = link.nri.turn().await;
        if !turn.is_empty() {
            let pod = self.pod_message(&sandbox.record(), None);
            let result = Box::pin(turn.pod(Event::PostUpdatePodSandbox, pod)).await;
            log("PostUpdatePodSandbox", sandbox.id.as_str(), result);
        }
    }
}
