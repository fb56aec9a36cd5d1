//! Ends pods when the node runs low on memory, disk or process numbers, or when they exceed their own limits of disk.
//!
//! Every ten seconds what is left is read ([`observe`]) and handed to [`crate::node::eviction`], which decides. Looking
//! costs little while nothing is low: what each pod uses is asked only of those that have limits of disk, and of all only
//! when one of them has to go.

mod observe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use cri_api::v1;
use jiff::SignedDuration;
use kubelet_pods::status::StatusOverride;
use kubelet_pods::worker::{Cause, Update};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::adapters::NodeAdmission;
use super::garbage::Garbage;
use super::serving::optional;
use crate::config::KubeletConfiguration;
use crate::events::EventType;
use crate::metrics::KubeletMetrics;
use crate::node::cgroups::{Cgroups, Kernel};
use crate::node::eviction::{
    Candidate, Condition, Eviction, REASON, Reclaim, Settings, Shortage, State, ThresholdError, Usage,
    thresholds_of,
};
use crate::node::resources::limits_of;
use crate::runtime::{CallError, Cri};
use crate::sync::Context;

/// How often the node is looked at, as upstream.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long the next look waits for an evicted pod to end, and how often it asks.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);

/// What watches over the node.
pub(super) struct Pressure {
    pub(super) ctx: Arc<Context>,
    pub(super) admission: Arc<NodeAdmission>,
    pub(super) cgroups: Arc<Cgroups<Kernel>>,
    pub(super) garbage: Arc<Garbage>,
    pub(super) metrics: KubeletMetrics,
    pub(super) settings: Settings,
}

/// What a configuration says of evictions.
pub(super) fn settings(config: &KubeletConfiguration) -> Result<Settings, ThresholdError> {
    Ok(Settings {
        thresholds: thresholds_of(config)?,
        transition: SignedDuration::from_nanos(config.eviction_pressure_transition_period.as_nanos()),
        most_grace_seconds: i64::from(config.eviction_max_pod_grace_period),
        local_storage: config.local_storage_capacity_isolation,
        // There is no API server: all pods are static ones.
        spare_static: false,
        ..Settings::default()
    })
}

impl Pressure {
    /// Looks for ever.
    pub(super) async fn run(mut self) {
        let mut state = State::default();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut places = None;
        loop {
            ticks.tick().await;
            if places.is_none() {
                places = self.places().await;
            }
            self.look(&mut state, places.as_ref()).await;
        }
    }

    /// Where the runtime has images and layers; none while it doesn't tell.
    async fn places(&mut self) -> Option<observe::Places> {
        let answer = self.ctx.cri.image_fs_info(v1::ImageFsInfoRequest {}).await.ok()?;
        let root = self.ctx.settings.root.clone();
        let places = self
            .ctx
            .blocking(move || observe::places(&answer, &root))
            .await??;
        self.settings.disks = places.disks;
        Some(places)
    }

    async fn look(&self, state: &mut State, places: Option<&observe::Places>) {
        let Some(observations) = self.observe(places).await else {
            return;
        };
        let pods = self.ctx.registry.active();
        let limited: Vec<_> = pods.iter().filter(|pod| has_disk_limits(pod)).cloned().collect();
        let usage = if self.settings.local_storage && !limited.is_empty() {
            // What isn't known exceeds nothing.
            self.usage(&limited).await.unwrap_or_default()
        } else {
            BTreeMap::new()
        };
        let candidates = candidates(&pods, &usage);
        let decision = state.synchronize(&self.settings, &observations, &candidates, self.ctx.now());
        self.tell_conditions(&decision.conditions);
        let mut evicted = Vec::new();
        for eviction in &decision.over_limit {
            evicted.extend(self.evict(eviction, limit_signal(&eviction.message), None));
        }
        if let Some(shortage) = &decision.shortage {
            evicted.extend(self.relieve(shortage, places).await);
        }
        self.wait_for(&evicted).await;
    }

    /// Gives back what the node can, or else ends a pod; its UID.
    async fn relieve(&self, shortage: &Shortage, places: Option<&observe::Places>) -> Option<String> {
        let signal = shortage.threshold.signal.name();
        warn!(signal, "the node runs low");
        for reclaim in &shortage.reclaim {
            let done = match reclaim {
                Reclaim::DeadContainers => self.garbage.remove_dead(true).await,
                Reclaim::UnusedImages => self.garbage.remove_images(true).await,
            };
            if let Err(error) = done {
                warn!(%error, ?reclaim, "failed to give back what isn't used");
            }
        }
        if !shortage.reclaim.is_empty() {
            let after = self.observe(places).await?;
            if shortage.is_over(&self.settings, &after) {
                info!(signal, "the node has enough again");
                return None;
            }
        }
        let pods = self.ctx.registry.active();
        // Without it all would rank alike, and the wrong one would go: the next look may know more.
        let usage = self.usage(&pods).await?;
        let Some(eviction) = shortage.victim(&self.settings, &candidates(&pods, &usage)) else {
            warn!(signal, "the node runs low, and there is no pod to evict");
            return None;
        };
        let disruption = ("TerminationByKubelet".to_owned(), eviction.message.clone());
        self.evict(&eviction, signal, Some(disruption))
    }

    async fn observe(&self, places: Option<&observe::Places>) -> Option<crate::node::eviction::Observations> {
        let (root, now) = (self.ctx.settings.root.clone(), self.ctx.now());
        let pods_cgroup = self.cgroups.tree().kubepods();
        let places = places.cloned();
        let seen = self
            .ctx
            .blocking(move || observe::observations(&root, &pods_cgroup, places.as_ref(), now));
        seen.await
    }

    /// What pods use, by UID; `None` when the runtime doesn't tell.
    async fn usage(&self, pods: &[Arc<Pod>]) -> Option<BTreeMap<String, Usage>> {
        let measured = measured(&self.ctx.cri).await.inspect_err(|error| {
            warn!(%error, "the CRI daemon doesn't tell what pods use");
        });
        let mut used = measured.ok()?;
        let (ctx, pods) = (self.ctx.clone(), pods.to_vec());
        let read = self.ctx.blocking(move || {
            let logs = ctx.facts().pod_logs_dir.clone();
            for pod in &pods {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let volumes = ctx.volumes.usage(&uid).unwrap_or_default();
                observe::add_disk(used.entry(uid).or_default(), pod, &volumes, logs.as_ref());
            }
            used
        });
        read.await
    }

    fn tell_conditions(&self, conditions: &BTreeSet<Condition>) {
        let names: BTreeSet<String> = conditions.iter().map(|one| one.name().to_owned()).collect();
        let node = &self.admission.node;
        let mut node = node.write().unwrap_or_else(PoisonError::into_inner);
        if node.pressure != names {
            info!(?names, "the node's conditions of want change");
            node.pressure = names;
        }
    }

    /// Ends a pod; its UID, if it was there.
    fn evict(
        &self,
        eviction: &Eviction,
        signal: &str,
        disruption: Option<(String, String)>,
    ) -> Option<String> {
        let pod = self.ctx.registry.by_uid(&eviction.uid)?;
        let message = eviction.message.clone();
        self.ctx
            .event(&pod, None, EventType::Warning, REASON, message.clone());
        self.metrics.evictions.inc(&[signal]);
        let update = kill(eviction, disruption);
        self.ctx
            .registry
            .tell(&eviction.uid, update)
            .then(|| eviction.uid.clone())
    }

    /// Waits a while for pods to end, so that what they give back is seen before another one goes.
    async fn wait_for(&self, uids: &[String]) {
        let until = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < until {
            let active = self.ctx.registry.active();
            let is_there = |uid: &String| active.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid));
            if !uids.iter().any(is_there) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        warn!(?uids, "evicted pods haven't ended yet");
    }
}

/// What the runtime measures of pods, by UID; of a runtime without statistics of sandboxes what those of containers add up
/// to.
async fn measured(cri: &Cri) -> Result<BTreeMap<String, Usage>, CallError> {
    let sandboxes = cri.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default());
    if let Some(answer) = optional(sandboxes.await)? {
        return Ok(observe::of_runtime(&answer.stats));
    }
    let containers = cri.list_container_stats(v1::ListContainerStatsRequest::default());
    Ok(observe::of_containers(&containers.await?.stats))
}

/// What an evicted pod's worker is told.
fn kill(eviction: &Eviction, disruption: Option<(String, String)>) -> Update {
    Update::Kill {
        cause: Cause::Evicted,
        grace: Some(eviction.grace_seconds),
        status: Some(StatusOverride {
            reason: REASON.to_owned(),
            message: eviction.message.clone(),
            failed: true,
            disruption,
        }),
    }
}

/// The label of the metric for a pod that exceeded a limit of its own, by what it was told.
fn limit_signal(message: &str) -> &'static str {
    match message {
        _ if message.starts_with("Usage of EmptyDir") => "emptydirfs.limit",
        _ if message.starts_with("Pod ephemeral") => "ephemeralpodfs.limit",
        _ => "ephemeralcontainerfs.limit",
    }
}

/// Whether anything of a pod has a limit of disk.
fn has_disk_limits(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let volumes = spec.volumes.iter().flatten();
    let mut limits = volumes.filter_map(|volume| volume.empty_dir.as_ref()?.size_limit.as_ref());
    let mut containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    limits.next().is_some()
        || containers.any(|container| limits_of(container).contains_key("ephemeral-storage"))
}

fn candidates<'a>(pods: &'a [Arc<Pod>], usage: &'a BTreeMap<String, Usage>) -> Vec<Candidate<'a>> {
    let all = pods.iter().map(|pod| Candidate {
        pod,
        usage: pod.metadata.uid.as_ref().and_then(|uid| usage.get(uid)),
    });
    all.collect()
}

#[cfg(test)]
mod tests;
