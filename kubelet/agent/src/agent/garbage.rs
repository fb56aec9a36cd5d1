//! Clears away what isn't needed any more: dead containers with their logs, sandboxes, images.
//!
//! What goes [`crate::node::garbage`] decides; here it is asked what there is, and done. Pods that nobody names are the
//! sync loop's: their containers go with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use cri_api::v1;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use super::node_stats::file_system;
use crate::config::KubeletConfiguration;
use crate::events::{EventType, Regarding};
use crate::images::reference::{registry_and_path, with_default_tag};
use crate::metrics::KubeletMetrics;
use crate::node::garbage::containers::{self, Dead, PodState};
use crate::node::garbage::images::{self, Disk, Image, Images};
use crate::runtime::CallError;
use crate::runtime::observe::labels::{CONTAINER_NAME, POD_UID, RESTART_COUNT};
use crate::sync::Context;

/// How often images are looked at, as upstream.
const IMAGES_INTERVAL: Duration = Duration::from_secs(300);
/// Younger containers and sandboxes may still be looked at.
const MINIMUM_AGE: SignedDuration = SignedDuration::from_secs(60);
/// Files of a log's folder that are looked at.
const MOST_FILES: usize = 10_000;

/// Clears away.
pub(super) struct Garbage {
    ctx: Arc<Context>,
    metrics: KubeletMetrics,
    policy: images::Policy,
    /// When images were seen and used; held while they are removed, so that nobody removes twice.
    images: Mutex<Images>,
}

/// What can be removed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    containers: Vec<String>,
    sandboxes: Vec<String>,
}

impl Garbage {
    pub(super) fn new(ctx: Arc<Context>, config: &KubeletConfiguration, metrics: KubeletMetrics) -> Self {
        let percent = |given: i32| u8::try_from(given.clamp(0, 100)).unwrap_or(100);
        let policy = images::Policy {
            high_percent: percent(config.image_gc_high_threshold_percent),
            low_percent: percent(config.image_gc_low_threshold_percent),
            minimum_age: SignedDuration::from_nanos(config.image_minimum_gc_age.as_nanos()),
            maximum_age: SignedDuration::from_nanos(config.image_maximum_gc_age.as_nanos()),
        };
        let images = Mutex::new(Images::new(ctx.now()));
        Self {
            ctx,
            metrics,
            policy,
            images,
        }
    }

    /// Looks at images for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(IMAGES_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.policy.high_percent >= 100 && self.policy.maximum_age.is_zero() {
                continue;
            }
            if let Err(error) = self.remove_images(false).await {
                warn!(%error, "failed to remove unused images");
            }
        }
    }

    /// Removes dead containers and sandboxes that aren't needed; when the node is short of room (`everything`), all of
    /// pods that have ended too. One that can't be removed keeps none of the others.
    pub(super) async fn remove_dead(&self, everything: bool) -> Result<(), CallError> {
        let cri = &self.ctx.cri;
        let (sandboxes, containers) = tokio::try_join!(
            cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()),
            cri.list_containers(v1::ListContainersRequest::default()),
        )?;
        let active: BTreeSet<String> = self
            .ctx
            .registry
            .active()
            .iter()
            .filter_map(|pod| pod.metadata.uid.clone())
            .collect();
        let state = |uid: &str| match self.ctx.registry.knows(uid) && !active.contains(uid) {
            true => PodState::Ended,
            // Also those that nobody knows, who are the sync loop's to end.
            false => PodState::Alive,
        };
        let plan = plan(
            &sandboxes.items,
            &containers.containers,
            state,
            everything,
            self.ctx.now(),
        );
        for id in plan.containers {
            let log = self.log_of(&id).await;
            let request = v1::RemoveContainerRequest {
                container_id: id.clone(),
            };
            match cri.remove_container(request).await {
                Ok(_) => {
                    if let Some(log) = log {
                        self.remove_log(log).await;
                    }
                }
                Err(error) => warn!(container = id, %error, "failed to remove a dead container"),
            }
        }
        for id in plan.sandboxes {
            let request = v1::RemovePodSandboxRequest {
                pod_sandbox_id: id.clone(),
            };
            if let Err(error) = cri.remove_pod_sandbox(request).await {
                warn!(sandbox = id, %error, "failed to remove a sandbox that is over");
            }
        }
        Ok(())
    }

    async fn log_of(&self, id: &str) -> Option<PathBuf> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let path = self
            .ctx
            .cri
            .container_status(request)
            .await
            .ok()?
            .status?
            .log_path;
        (!path.is_empty()).then(|| PathBuf::from(path))
    }

    async fn remove_log(&self, log: PathBuf) {
        let removed = self.ctx.blocking(move || {
            remove_log_files(&log).inspect_err(|error| {
                warn!(%error, log = %log.display(), "failed to remove a container's log");
            })
        });
        // Told already; a kubelet that stops leaves it to the next.
        let _ = removed.await;
    }

    /// Removes images by the thresholds, or all that aren't used.
    pub(super) async fn remove_images(&self, everything: bool) -> Result<(), CallError> {
        let (ctx, cri) = (&self.ctx, &self.ctx.cri);
        let mut seen = self.images.lock().await;
        let (listed, containers) = tokio::try_join!(
            cri.list_images(v1::ListImagesRequest::default()),
            cri.list_containers(v1::ListContainersRequest::default()),
        )?;
        let images: Vec<Image> = listed
            .images
            .iter()
            .map(|one| Image {
                id: one.id.clone(),
                size: one.size,
                pinned: one.pinned,
            })
            .collect();
        let mounted = mounted_images(&ctx.registry.active());
        let in_use = in_use(&listed.images, &containers.containers, &mounted);
        let plan = if everything {
            seen.all_unused(&images, &in_use, ctx.now())
        } else {
            let Some(disk) = self.image_disk().await? else {
                debug!("the runtime tells no image file system");
                return Ok(());
            };
            match seen.plan(&self.policy, &images, &in_use, disk, ctx.now()) {
                Ok(plan) => plan,
                Err(error) => {
                    self.tell("InvalidDiskCapacity", error.to_string());
                    return Ok(());
                }
            }
        };
        let mut freed = 0_u64;
        for (index, (id, size)) in plan.remove.iter().enumerate() {
            if index >= plan.expired && freed >= plan.wanted {
                break;
            }
            let image = v1::ImageSpec {
                image: id.clone(),
                ..Default::default()
            };
            match cri
                .remove_image(v1::RemoveImageRequest { image: Some(image) })
                .await
            {
                Ok(_) => {
                    info!(image = id, bytes = size, "removed an unused image");
                    freed = freed.saturating_add(*size);
                    let reason = if index < plan.expired { "age" } else { "space" };
                    self.metrics.image_garbage_collected_total.inc(&[reason]);
                }
                Err(error) => warn!(image = id, %error, "failed to remove an unused image"),
            }
        }
        if !everything && let Some((reason, message)) = plan.shortfall(freed) {
            self.tell(reason, message);
        }
        Ok(())
    }

    /// The disk that images are on, where the runtime tells.
    async fn image_disk(&self) -> Result<Option<Disk>, CallError> {
        let answer = self.ctx.cri.image_fs_info(v1::ImageFsInfoRequest {}).await?;
        let place = answer.image_filesystems.into_iter().next();
        let Some(place) = place.and_then(|usage| usage.fs_id) else {
            return Ok(None);
        };
        let now = self.ctx.now();
        let found = self
            .ctx
            .blocking(move || file_system(Path::new(&place.mountpoint), now));
        Ok(found.await.flatten().map(|stats| Disk {
            capacity: stats.capacity_bytes.unwrap_or(0),
            available: stats.available_bytes.unwrap_or(0),
        }))
    }

    fn tell(&self, reason: &str, message: String) {
        let name = self.ctx.facts().node_name.clone();
        let about = Regarding {
            uid: &name,
            namespace: "",
            name: &name,
            field: None,
        };
        let events = &self.ctx.events;
        events.record(&about, EventType::Warning, reason, message, self.ctx.now());
    }
}

/// The images that volumes of pods are made of, by every name that the runtime may know them by.
fn mounted_images(pods: &[Arc<Pod>]) -> BTreeSet<String> {
    let volumes = pods
        .iter()
        .filter_map(|pod| pod.spec.as_ref())
        .flat_map(|spec| spec.volumes.iter().flatten());
    let references = volumes.filter_map(|volume| volume.image.as_ref()?.reference.as_ref());
    references.flat_map(|reference| names_of(reference)).collect()
}

/// A reference as it was written, with the tag that is meant, and with registry and repository in full.
fn names_of(reference: &str) -> Vec<String> {
    let mut names = vec![reference.to_owned()];
    if let Ok(tagged) = with_default_tag(reference) {
        let (registry, repository) = registry_and_path(&tagged);
        let place = format!("{registry}/{repository}");
        match tagged.split_once('@') {
            // A digest counts more than a tag.
            Some((_, digest)) => names.push(format!("{place}@{digest}")),
            None => names.extend(tagged.rsplit_once(':').map(|(_, tag)| format!("{place}:{tag}"))),
        }
        names.push(tagged);
    }
    names
}

/// The images that containers use, dead ones too, and those `mounted`: by ID, tag or digest, whichever is told.
fn in_use(
    images: &[v1::Image],
    containers: &[v1::Container],
    mounted: &BTreeSet<String>,
) -> BTreeSet<String> {
    let mut named: BTreeSet<&str> = mounted.iter().map(String::as_str).collect();
    for container in containers {
        named.insert(container.image_id.as_str());
        named.insert(container.image_ref.as_str());
        named.extend(container.image.iter().map(|image| image.image.as_str()));
    }
    let used = images.iter().filter(|image| {
        let names = image.repo_tags.iter().chain(&image.repo_digests);
        names
            .chain([&image.id])
            .any(|name| !name.is_empty() && named.contains(name.as_str()))
    });
    used.map(|image| image.id.clone()).collect()
}

/// What can go of what the runtime lists, of containers and sandboxes with the kubelet's labels.
fn plan(
    sandboxes: &[v1::PodSandbox],
    all: &[v1::Container],
    state: impl Fn(&str) -> PodState,
    everything: bool,
    now: Timestamp,
) -> Plan {
    let time = |nanos: i64| Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH);
    let key = |one: &v1::Container| {
        Some((
            one.labels.get(POD_UID)?.clone(),
            one.labels.get(CONTAINER_NAME)?.clone(),
        ))
    };
    // The attempt counts first: the clock may have stepped back.
    let age = |one: &v1::Container| (attempt(one), one.created_at);
    let mut newest: BTreeMap<(String, String), (u32, i64)> = BTreeMap::new();
    for one in all {
        if let Some(key) = key(one) {
            let latest = newest.entry(key).or_insert(age(one));
            *latest = age(one).max(*latest);
        }
    }
    let dead: Vec<Dead> = all
        .iter()
        .filter(|one| one.state() == v1::ContainerState::ContainerExited)
        .filter_map(|one| {
            let (uid, name) = key(one)?;
            // The current one stays beside the one that `lastState` tells of.
            let current = newest.get(&(uid.clone(), name.clone())) == Some(&age(one));
            let spared = current && !(everything && state(&uid) == PodState::Ended);
            (!spared).then(|| Dead {
                id: one.id.clone(),
                uid,
                name,
                attempt: attempt(one),
                created: time(one.created_at),
            })
        })
        .collect();
    let policy = containers::Policy {
        minimum_age: MINIMUM_AGE,
        ..containers::Policy::default()
    };
    let gone = containers::containers(&policy, &dead, &state, true, everything, now);
    let known: Vec<containers::Sandbox> = sandboxes
        .iter()
        .filter_map(|one| {
            let mut held = all.iter().filter(|container| container.pod_sandbox_id == one.id);
            Some(containers::Sandbox {
                id: one.id.clone(),
                uid: one.labels.get(POD_UID)?.clone(),
                attempt: one.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
                created: time(one.created_at),
                ready: one.state() == v1::PodSandboxState::SandboxReady,
                has_containers: held.any(|container| !gone.contains(&container.id)),
            })
        })
        .collect();
    let young: BTreeSet<&str> = known
        .iter()
        .filter(|one| now.duration_since(one.created) < MINIMUM_AGE)
        .map(|one| one.id.as_str())
        .collect();
    let mut over = containers::sandboxes(&known, &state, true, everything);
    over.retain(|id| !young.contains(id.as_str()));
    Plan {
        containers: gone,
        sandboxes: over,
    }
}

/// Which of its name a container is: what the kubelet noted, else what the runtime was told.
fn attempt(one: &v1::Container) -> u32 {
    let noted = one.annotations.get(RESTART_COUNT);
    noted
        .and_then(|text| text.parse().ok())
        .or_else(|| Some(one.metadata.as_ref()?.attempt))
        .unwrap_or(0)
}

/// Removes a container's log, and what it was rotated to. Blocks.
fn remove_log_files(log: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else {
        return Ok(());
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let name = name.to_string_lossy().into_owned();
    let rotated = format!("{name}.");
    for entry in entries.take(MOST_FILES) {
        let entry = entry?;
        let found = entry.file_name().to_string_lossy().into_owned();
        if found == name || found.starts_with(&rotated) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
