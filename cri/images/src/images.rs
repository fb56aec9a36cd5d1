//! The store as its users see it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Mutex, Semaphore};

use crate::digest::Digest;
use crate::disk::{Chain, Disk};
use crate::layers::Source;
use crate::mount::remove_attached;
use crate::records::LayerRecord;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::snapshots::{self, SnapshotRecord};
use crate::state::{Flights, Known, Layer, Lease, Shared, State};
use crate::step::{Step, Steps};
use crate::unpack::OverlayXattrs;
use crate::{
    Credentials, FileError, FsUsage, Image, ImagesConfig, OpenError, PullError, PullErrorKind, RemoveError,
    Removed, Repaired, Snapshot, SnapshotError, SnapshotOptions, SnapshotUsage, layers, open, records,
};

/// The images of a node. Cheap to clone; all methods may be called at once.
#[derive(Debug, Clone)]
pub struct Images(Arc<Store>);

/// What the parts of the store share.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) config: ImagesConfig,
    pub(crate) disk: Arc<Disk>,
    pub(crate) shared: Shared,
    pub(crate) registry: Registry,
    pub(crate) xattrs: OverlayXattrs,
    pub(crate) flights: Flights,
    pub(crate) pull_slots: Semaphore,
    pub(crate) layer_slots: Arc<Semaphore>,
    /// Held while image records change.
    pub(crate) records: Arc<Mutex<()>>,
    pinned: BTreeSet<String>,
    _lock: File,
}

impl Images {
    /// Opens the store, making it when absent. Removes temporary files, finishes deletions, drops unreferenced layers.
    pub async fn open(config: ImagesConfig) -> Result<Self, OpenError> {
        Self::open_with(config, Steps::default()).await
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.0
    }

    /// Opens the store, telling `steps` about each step.
    pub(crate) async fn open_with(config: ImagesConfig, steps: Steps) -> Result<Self, OpenError> {
        let began = Instant::now();
        let root = config.root.clone();
        let opened = blocking(move || open::open(root, steps))
            .await
            .ok_or(OpenError::Lost)??;
        let pinned = config.pinned.iter();
        let store = Store {
            registry: Registry::new(config.progress_timeout),
            xattrs: opened.xattrs,
            flights: Flights::default(),
            pull_slots: Semaphore::new(config.max_parallel_pulls.max(1)),
            layer_slots: Arc::new(Semaphore::new(config.max_parallel_layers.max(1))),
            records: Arc::default(),
            pinned: pinned
                .filter_map(|name| Some(name.parse::<Reference>().ok()?.to_string()))
                .collect(),
            disk: Arc::new(opened.disk),
            shared: Shared::new(opened.state),
            config,
            _lock: opened.lock,
        };
        store.empty_trash();
        let images = store.shared.with(|state| state.images.len());
        tracing::debug!(images, took = ?began.elapsed(), "opened the image store");
        Ok(Self(Arc::new(store)))
    }

    /// Checks all layers against their markers and repairs damaged ones from the blobs on disk. To be run in the
    /// background after `open`; layers that were found whole earlier in this boot of the machine aren't read again.
    pub async fn verify(&self) -> Result<Repaired, OpenError> {
        let mut report = Repaired::default();
        for layer in self.0.shared.with(|state| state.layers_upwards()) {
            report.checked += 1;
            match self.0.ensure_sound(&layer).await? {
                Soundness::Sound => {}
                Soundness::Repaired => report.repaired.push(layer),
                // Unless it was removed meanwhile.
                Soundness::Lost if self.0.shared.with(|state| state.layers.contains_key(&layer)) => {
                    report.lost.push(layer);
                }
                Soundness::Lost => {}
            }
        }
        let disk = self.0.disk.clone();
        blocking(move || open::remember_boot(&disk))
            .await
            .ok_or(OpenError::Lost)??;
        Ok(report)
    }

    /// Pulls an image, or finds that it is there already and current.
    pub async fn pull(&self, reference: &str, auth: Option<Credentials>) -> Result<Image, PullError> {
        // The future is large, and callers have large futures of their own.
        let known = Box::pin(crate::pull::pull(&self.0, reference, auth)).await?;
        Ok(self.0.image(&known))
    }

    /// All images, by ID.
    pub fn list(&self) -> Vec<Image> {
        self.0.shared.with(|state| {
            let usable = state
                .images
                .values()
                .filter(|known| state.is_usable(&known.record));
            usable.map(|known| self.0.image(known)).collect()
        })
    }

    /// The image that `spec` names: an ID with or without `sha256:`, a reference with a tag (`latest` by default) or a
    /// digest, or the unambiguous beginning of an ID.
    pub fn find(&self, spec: &str) -> Option<Image> {
        self.0.shared.with(|state| {
            let known = state.find(spec).filter(|known| state.is_usable(&known.record))?;
            Some(self.0.image(known))
        })
    }

    /// Removes the image that `spec` names, by ID or by any of its references, with all its names: so the CRI has it.
    /// `None` when there is no such image.
    pub async fn remove(&self, spec: &str) -> Result<Option<Removed>, RemoveError> {
        let guard = self.0.records.clone().lock_owned().await;
        let (store, spec) = (self.0.clone(), spec.to_owned());
        let removed = blocking(move || {
            let _guard = guard;
            store.remove_image(&spec)
        });
        removed.await.ok_or(RemoveError::Lost)?
    }

    /// How much disk blobs and layers take.
    pub async fn fs_usage(&self) -> FsUsage {
        let (used_bytes, inodes) = self.0.shared.with(|state| {
            let markers = state.layers.values().filter_map(|layer| match layer {
                Layer::Whole { marker, .. } => Some((marker.bytes, marker.inodes + 2)),
                Layer::Damaged => None,
            });
            let blobs = state.blobs.values().map(|size| (size.next_multiple_of(4096), 1));
            markers
                .chain(blobs)
                .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        });
        FsUsage {
            path: self.0.config.root.clone(),
            used_bytes,
            inodes,
        }
    }

    /// Makes a snapshot of an image under a key (a container ID, or `<container ID>-<volume>`).
    pub async fn prepare(
        &self,
        key: &str,
        image_id: &str,
        options: SnapshotOptions,
    ) -> Result<Snapshot, SnapshotError> {
        if !snapshots::is_key(key) {
            return Err(SnapshotError::InvalidKey(key.chars().take(140).collect()));
        }
        let record = self.0.reserve(key, image_id, options)?;
        let made = self.0.make_snapshot(key, &record).await;
        if made.is_err() {
            self.0.shared.with(|state| state.snapshots.remove(key));
        }
        made?;
        Ok(snapshots::describe(&self.0.disk, self.0.xattrs, key, &record))
    }

    /// The snapshot with this key.
    pub fn snapshot(&self, key: &str) -> Option<Snapshot> {
        let record = self.0.shared.with(|state| state.snapshots.get(key).cloned())?;
        Some(snapshots::describe(&self.0.disk, self.0.xattrs, key, &record))
    }

    /// Removes a snapshot; it should not be mounted any more. Fine when there is none. What it held on the disk is
    /// deleted in the background.
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), SnapshotError> {
        if !self.0.shared.with(|state| state.snapshots.contains_key(key)) {
            return Ok(());
        }
        let (store, key) = (self.0.clone(), key.to_owned());
        let removed = blocking(move || -> Result<(), FileError> {
            let dir = store.disk.snapshots().join(&key);
            remove_attached(&dir.join("mapped")).map_err(FileError::of("unmount", &dir))?;
            store.disk.discard(&dir)?;
            store.disk.steps.reach(Step::SnapshotTrashed);
            store.shared.with(|state| {
                state.snapshots.remove(&key);
                open::discard_unreferenced(&store.disk, state)
            })?;
            store.empty_trash();
            Ok(())
        });
        Ok(removed.await.ok_or(SnapshotError::Lost)??)
    }

    /// The keys of all snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        self.0
            .shared
            .with(|state| state.snapshots.keys().cloned().collect())
    }

    /// How much disk the writable part of a snapshot takes.
    pub async fn snapshot_usage(&self, key: &str) -> Result<SnapshotUsage, SnapshotError> {
        let snapshot = self
            .snapshot(key)
            .ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
        Ok(blocking(move || snapshots::usage(&snapshot.upper))
            .await
            .ok_or(SnapshotError::Lost)??)
    }
}

/// How a layer was found.
pub(crate) enum Soundness {
    Sound,
    Repaired,
    /// Damaged, and nothing is there to repair it from.
    Lost,
}

impl Store {
    fn image(&self, known: &Known) -> Image {
        let Known { record, config } = known;
        Image {
            id: record.id.to_string(),
            repo_tags: record.tags.keys().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size: record.size,
            config: (**config).clone(),
            pinned: record
                .tags
                .keys()
                .chain(&record.digests)
                .any(|name| self.pinned.contains(name)),
        }
    }

    /// Deletes what is in the trash, without waiting for it.
    pub(crate) fn empty_trash(&self) {
        let disk = self.disk.clone();
        // From a blocking thread as well as from a task: a plain thread of the runtime's pool either way.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(move || disk.empty_trash()));
        }
    }

    fn remove_image(&self, spec: &str) -> Result<Option<Removed>, RemoveError> {
        let Some(record) = self
            .shared
            .with(|state| state.find(spec).map(|known| known.record.clone()))
        else {
            // What is no ID and no reference either is a mistake of the caller's.
            if Digest::from_hex(spec.strip_prefix("sha256:").unwrap_or(spec)).is_none() {
                spec.parse::<Reference>()?;
            }
            return Ok(None);
        };
        records::remove(&self.disk, &record.id)?;
        self.shared.with(|state| {
            state.images.remove(&record.id);
            open::discard_unreferenced(&self.disk, state)
        })?;
        self.empty_trash();
        Ok(Some(Removed {
            id: record.id.to_string(),
            names: record.tags.into_keys().chain(record.digests).collect(),
        }))
    }

    /// Enters a snapshot into the state before it is made, so that its layers stay.
    fn reserve(
        &self,
        key: &str,
        image: &str,
        options: SnapshotOptions,
    ) -> Result<SnapshotRecord, SnapshotError> {
        self.shared.with(|state: &mut State| {
            let known = state
                .find(image)
                .ok_or_else(|| SnapshotError::NoImage(image.to_owned()))?;
            let record = SnapshotRecord::new(&known.record, options);
            if state.snapshots.contains_key(key) {
                return Err(SnapshotError::Exists(key.to_owned()));
            }
            state.snapshots.insert(key.to_owned(), record.clone());
            Ok(record)
        })
    }

    async fn make_snapshot(
        self: &Arc<Self>,
        key: &str,
        record: &SnapshotRecord,
    ) -> Result<(), SnapshotError> {
        for layer in &record.layers {
            let soundness = self.ensure_sound(layer).await.map_err(|error| match error {
                OpenError::File(error) => SnapshotError::File(error),
                _ => SnapshotError::Lost,
            })?;
            if let Soundness::Lost = soundness {
                return Err(SnapshotError::Damaged {
                    image: record.image.to_string(),
                    layer: *layer,
                });
            }
        }
        let (disk, key, record) = (self.disk.clone(), key.to_owned(), record.clone());
        Ok(blocking(move || snapshots::create(&disk, &key, &record))
            .await
            .ok_or(SnapshotError::Lost)??)
    }

    /// Looks at a layer that wasn't looked at since the machine started, and repairs it when it is damaged. Callers look
    /// at those below it first.
    pub(crate) async fn ensure_sound(self: &Arc<Self>, layer: &Digest) -> Result<Soundness, OpenError> {
        let is_known_sound = |state: &mut State| {
            matches!(
                state.layers.get(layer),
                Some(Layer::Whole { is_checked: true, .. })
            )
        };
        if self.shared.with(is_known_sound) {
            return Ok(Soundness::Sound);
        }
        let guard = self.flights.lock(format!("layer {layer}")).await;
        if self.shared.with(is_known_sound) {
            return Ok(Soundness::Sound);
        }
        let (store, layer) = (self.clone(), *layer);
        let checked = blocking(move || {
            let _guard = guard;
            store.check_or_repair(&layer)
        });
        Ok(checked.await.ok_or(OpenError::Lost)??)
    }

    fn check_or_repair(self: &Arc<Self>, layer: &Digest) -> Result<Soundness, FileError> {
        let lease = Lease::new(self);
        let checked = self.check_or_repair_leased(layer, &lease);
        drop(lease);
        // What was to go meanwhile goes now.
        self.collect();
        checked
    }

    fn check_or_repair_leased(&self, layer: &Digest, lease: &Lease) -> Result<Soundness, FileError> {
        let path = self.disk.layer(layer);
        let (known, sources) = self.shared.with(|state| {
            let images = state.images.values();
            let sources: Vec<Source> = images.filter_map(|known| known.record.source(layer)).collect();
            lease.extend_in(state, [*layer]);
            for source in &sources {
                lease.extend_in(state, source.below.iter().copied().chain([source.blob]));
            }
            (state.layers.get(layer).cloned(), sources)
        });
        // Gone since: removed with its last image.
        let Some(known) = known else {
            return Ok(Soundness::Lost);
        };
        if let Layer::Whole { marker, .. } = known
            && layers::check(&path)
        {
            self.set_layer(
                layer,
                Layer::Whole {
                    marker,
                    is_checked: true,
                },
            );
            return Ok(Soundness::Sound);
        }
        tracing::warn!(%layer, "a layer is damaged");
        self.set_layer(layer, Layer::Damaged);
        // Without its marker the layer counts as damaged whenever the store is opened.
        let _ = fs::remove_file(path.join("complete"));
        for source in sources {
            if !crate::content::is_sound(&self.disk, &source.blob) {
                // Of no use to anybody; a pull must fetch it anew.
                self.shared.with(|state| state.blobs.remove(&source.blob));
                self.disk.discard(&self.disk.blob(&source.blob))?;
                continue;
            }
            let is_whole =
                |state: &mut State, layer| matches!(state.layers.get(layer), Some(Layer::Whole { .. }));
            if !self
                .shared
                .with(|state| source.below.iter().all(|layer| is_whole(state, layer)))
            {
                continue;
            }
            let unpacked = layers::unpack(&self.disk, &source, self.xattrs, &self.config.limits);
            let (made, marker) = match unpacked {
                Ok(made) => made,
                // The disk is full, say: the layer may be repaired another time.
                Err(error) if matches!(error.kind(), PullErrorKind::NoSpace | PullErrorKind::Internal) => {
                    let kind = match error.kind() {
                        PullErrorKind::NoSpace => io::ErrorKind::StorageFull,
                        _ => io::ErrorKind::Other,
                    };
                    return Err(FileError::of("repair", &path)(io::Error::new(
                        kind,
                        Chain(&error).to_string(),
                    )));
                }
                Err(error) => {
                    tracing::warn!(%layer, error = %Chain(&error), "failed to repair a layer");
                    continue;
                }
            };
            self.exchange_layer(layer, &made)?;
            self.set_layer(
                layer,
                Layer::Whole {
                    marker,
                    is_checked: true,
                },
            );
            tracing::info!(%layer, "repaired a damaged layer from its blob");
            return Ok(Soundness::Repaired);
        }
        Ok(Soundness::Lost)
    }

    /// Drops what nobody needs.
    pub(crate) fn collect(&self) {
        let collected = self
            .shared
            .with(|state| open::discard_unreferenced(&self.disk, state));
        if let Err(error) = collected {
            // The next removal, or the next open, tries again.
            tracing::warn!(error = %Chain(&error), "failed to drop what no image needs");
        }
        self.empty_trash();
    }

    /// With blobs not to be kept, drops those of unpacked layers that nobody is about to use.
    pub(crate) fn discard_blobs(&self) -> Result<(), FileError> {
        if !self.config.discard_blobs {
            return Ok(());
        }
        let discarded = self.shared.with(|state| -> Result<(), FileError> {
            let leased: BTreeSet<Digest> = state.leases.values().flatten().copied().collect();
            let layers = state.images.values().flat_map(|known| &known.record.layers);
            let whole =
                |layer: &&LayerRecord| matches!(state.layers.get(&layer.name()), Some(Layer::Whole { .. }));
            let unpacked = layers.filter(whole);
            let blobs: BTreeSet<Digest> = unpacked.map(|layer| layer.blob).collect();
            for blob in blobs.difference(&leased) {
                if state.blobs.remove(blob).is_some() {
                    self.disk.discard(&self.disk.blob(blob))?;
                    self.disk.steps.reach(Step::BlobDiscarded);
                }
            }
            Ok(())
        });
        self.empty_trash();
        discarded
    }

    pub(crate) fn set_layer(&self, name: &Digest, layer: Layer) {
        self.shared.with(|state| state.layers.insert(*name, layer));
    }

    /// Gives a new layer its name; a damaged one that has it goes. The name itself is made durable before a record refers
    /// to it; a repaired layer whose name is lost is damaged again, and repaired again.
    pub(crate) fn exchange_layer(&self, name: &Digest, made: &std::path::Path) -> Result<(), FileError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let path = self.disk.layer(name);
        match renameat_with(CWD, made, CWD, &path, RenameFlags::EXCHANGE) {
            Ok(()) => {
                self.disk.steps.reach(Step::LayerExchanged);
                self.disk.discard(made)?;
                self.empty_trash();
            }
            Err(rustix::io::Errno::NOENT) => {
                fs::rename(made, &path).map_err(FileError::of("rename", &path))?;
                self.disk.steps.reach(Step::LayerRenamed);
            }
            Err(errno) => return Err(FileError::of("rename", &path)(errno)),
        }
        Ok(())
    }
}

/// Runs something that blocks; `None` when the runtime ends or it panics.
pub(crate) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(act).await.ok()
}
