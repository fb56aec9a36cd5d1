//! What every RPC works with.

use std::future::Future;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use cri_api::v1::{ContainerEventResponse, ContainerEventType};
use cri_images::{Image, Images};
use cri_streaming::StreamServer;
use serde::Serialize;
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::apparmor::AppArmor;
use crate::clock::Clock;
use crate::config::Config;
use crate::errors::CallError;
use crate::events::{self, Events};
use crate::lifecycle::{KillPoint, Side, Step};
use crate::network::PodNetwork;
use crate::nri;
use crate::paths::Paths;
use crate::shim::OciRuntime;
use crate::spec::HostFacts;
use crate::stats::CpuSamples;
use crate::status::{self, ImageNames};
use crate::store::{Container, ContainerRecord, Entry, RecordError, Sandbox, Store};

/// The daemon's one state.
pub struct Node {
    config: RwLock<Arc<Config>>,
    /// Where everything is on disk.
    pub paths: Paths,
    /// Sandboxes and containers.
    pub store: Store,
    /// Images.
    pub images: Arc<Images>,
    /// Shims.
    pub runtime: Arc<dyn OciRuntime>,
    /// The pods' network.
    pub network: Arc<dyn PodNetwork>,
    /// What GetContainerEvents streams.
    pub events: Events,
    /// Time and chance.
    pub clock: Arc<dyn Clock>,
    /// What the machine can do.
    pub host: HostFacts,
    /// AppArmor profiles.
    pub apparmor: Arc<AppArmor>,
    /// The machine's boot.
    pub boot_id: String,
    /// Where to die, for tests.
    pub kill: KillPoint,
    /// The streaming server, once it listens.
    pub streams: OnceLock<Arc<StreamServer>>,
    /// Plugins, once they are served.
    pub(crate) nri: OnceLock<nri::Link>,
    /// CPU readings, for rates.
    pub cpu: CpuSamples,
    /// Numbers execs.
    pub execs: AtomicU64,
    /// How many calls were served.
    pub calls: AtomicU64,
    closed: watch::Sender<bool>,
}

/// What a [`Node`] is made of.
pub struct Parts {
    /// The configuration, checked.
    pub config: Config,
    /// Sandboxes and containers.
    pub store: Store,
    /// Images.
    pub images: Arc<Images>,
    /// Shims.
    pub runtime: Arc<dyn OciRuntime>,
    /// The pods' network.
    pub network: Arc<dyn PodNetwork>,
    /// Time and chance.
    pub clock: Arc<dyn Clock>,
    /// What the machine can do.
    pub host: HostFacts,
    /// AppArmor profiles.
    pub apparmor: AppArmor,
    /// The machine's boot.
    pub boot_id: String,
    /// Where to die, for tests.
    pub kill: KillPoint,
}

impl Node {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Arc<Self> {
        // A shim may still run execs that an earlier daemon numbered.
        let first_exec = parts.clock.now().unsigned_abs();
        Arc::new(Self {
            paths: Paths::new(&parts.config.root, &parts.config.state),
            config: RwLock::new(Arc::new(parts.config)),
            store: parts.store,
            images: parts.images,
            runtime: parts.runtime,
            network: parts.network,
            events: Events::default(),
            clock: parts.clock,
            host: parts.host,
            apparmor: Arc::new(parts.apparmor),
            boot_id: parts.boot_id,
            kill: parts.kill,
            streams: OnceLock::new(),
            nri: OnceLock::new(),
            cpu: CpuSamples::default(),
            execs: AtomicU64::new(first_exec),
            calls: AtomicU64::new(0),
            closed: watch::Sender::new(false),
        })
    }

    /// The configuration as it is now.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Works by another configuration from now on.
    pub fn set_config(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Ends all streams: the daemon stops.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Tells when the daemon stops.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    /// Does one step of something's life, its name written first.
    pub(crate) async fn step<R, T>(
        &self,
        entry: &Entry<R>,
        step: Step,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError>
    where
        R: Clone + Serialize,
    {
        entry.begin(step)?;
        self.kill.reach(step, Side::Before);
        let began = Instant::now();
        let done = work.await;
        tracing::debug!(%step, ok = done.is_ok(), micros = began.elapsed().as_micros(), "step");
        let done = done?;
        self.kill.reach(step, Side::After);
        Ok(done)
    }

    /// A step that is a change of the record, or nothing but files of run time.
    pub(crate) fn quick_step<R, T>(
        &self,
        entry: &Entry<R>,
        step: Step,
        work: impl FnOnce() -> Result<T, CallError>,
    ) -> Result<T, CallError>
    where
        R: Clone + Serialize,
    {
        entry.begin(step)?;
        self.kill.reach(step, Side::Before);
        let done = work()?;
        self.kill.reach(step, Side::After);
        Ok(done)
    }

    /// How a container's image is called now.
    pub fn image_names(&self, record: &ContainerRecord) -> ImageNames {
        self.images
            .find(&record.image_id)
            .map(|image| names_of(&image))
            .unwrap_or_default()
    }

    /// ContainerStatus; `None` for a container that is being made.
    pub fn container_status(&self, container: &Container) -> Option<cri_api::v1::ContainerStatus> {
        let record = container.record();
        status::container_status(&record, &self.image_names(&record))
    }

    /// The statuses of a sandbox's containers.
    pub fn container_statuses(&self, sandbox: &Sandbox) -> Vec<cri_api::v1::ContainerStatus> {
        let containers = self.store.containers_in(&sandbox.id);
        containers
            .iter()
            .filter_map(|c| self.container_status(c))
            .collect()
    }

    /// Tells whoever listens what became of a container, or of a sandbox under its own ID.
    pub(crate) fn announce(&self, id: &str, kind: ContainerEventType, sandbox: &Sandbox) {
        tracing::debug!(id, event = events::name(kind), sandbox_id = %sandbox.id, "event");
        if !self.events.is_heard() {
            return;
        }
        self.events.send(ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: self.clock.now(),
            pod_sandbox_status: Some(status::sandbox_status(&sandbox.record())),
            containers_statuses: self.container_statuses(sandbox),
        });
    }

    /// [`Node::announce`] for a container.
    pub(crate) fn announce_container(&self, container: &Container, kind: ContainerEventType) {
        if let Some(sandbox) = self.store.sandbox_by_id(&container.sandbox) {
            self.announce(container.id.as_str(), kind, &sandbox);
        }
    }
}

/// An image's first tag and first digest.
pub fn names_of(image: &Image) -> ImageNames {
    ImageNames {
        tag: image.repo_tags.first().cloned(),
        digest: image.repo_digests.first().cloned(),
    }
}

/// Runs something that blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(CallError::Lost))
}

/// Runs something to its end even if the caller goes away: a change must not stop between two steps.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, CallError>> + Send + 'static,
) -> Result<T, CallError> {
    tokio::spawn(work.in_current_span())
        .await
        .unwrap_or(Err(CallError::Lost))
}

/// Whether a record error is worth stopping for when a fact is recorded; it is logged.
pub(crate) fn log_record(result: Result<(), RecordError>) {
    if let Err(error) = result {
        let error = CallError::from(error).chain();
        tracing::warn!(%error, "failed to settle a record");
    }
}
