//! What a store knows in memory: the contents of its directories, and who needs what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use oci_spec::image::ImageConfiguration;
use tokio::sync::OwnedMutexGuard;

use crate::digest::Digest;
use crate::images::Store;
use crate::layers::Marker;
use crate::records::{LayerRecord, Record};
use crate::reference::Reference;
use crate::snapshots::SnapshotRecord;

/// One layer on the disk.
#[derive(Debug, Clone)]
pub(crate) enum Layer {
    /// As its marker says, as far as one has looked.
    Whole {
        /// Its counts.
        marker: Marker,
        /// Whether its files were compared with the marker since the machine started.
        is_checked: bool,
    },
    /// Files are missing or empty.
    Damaged,
}

/// One image.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) record: Record,
    pub(crate) config: Arc<ImageConfiguration>,
}

/// All that is in the store. Changed only after the disk was.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<Digest, Known>,
    /// By name: diff ID or chain ID.
    pub(crate) layers: BTreeMap<Digest, Layer>,
    /// With their sizes.
    pub(crate) blobs: BTreeMap<Digest, u64>,
    pub(crate) snapshots: BTreeMap<String, SnapshotRecord>,
    /// What pulls in flight have or will have, by pull.
    pub(crate) leases: BTreeMap<u64, BTreeSet<Digest>>,
    last_lease: u64,
}

impl State {
    /// The next number for a tag.
    pub(crate) fn next_number(&self) -> u64 {
        let tags = self.images.values().flat_map(|known| known.record.tags.values());
        tags.max().map_or(1, |number| number + 1)
    }

    /// Whether all layers of an image are there, or can be made from blobs that are.
    pub(crate) fn is_usable(&self, record: &Record) -> bool {
        record.layers.iter().all(|layer| {
            matches!(self.layers.get(&layer.name()), Some(Layer::Whole { .. }))
                || self.blobs.contains_key(&layer.blob)
        })
    }

    /// Whether nothing of an image is missing.
    pub(crate) fn is_whole(&self, record: &Record) -> bool {
        record
            .layers
            .iter()
            .all(|layer| matches!(self.layers.get(&layer.name()), Some(Layer::Whole { .. })))
    }

    /// All layers, each after those that it was unpacked on top of.
    pub(crate) fn layers_upwards(&self) -> Vec<Digest> {
        let of_images = self.images.values().flat_map(|known| &known.record.layers);
        let chained = of_images.clone().filter(|layer| layer.chain_id.is_some());
        let chained: Vec<Digest> = chained.map(LayerRecord::name).collect();
        let mut later: BTreeSet<Digest> = chained.iter().copied().collect();
        let alone = self.layers.keys().filter(|name| !later.contains(name));
        let mut all: Vec<Digest> = alone.copied().collect();
        all.extend(chained.into_iter().filter(|name| later.remove(name)));
        all
    }

    /// The image that is named so.
    pub(crate) fn named(&self, reference: &Reference) -> Option<&Known> {
        self.images
            .values()
            .find(|known| known.record.is_named(reference))
    }

    /// The image that `spec` means: an ID with or without its algorithm, a reference, or the beginning of one ID.
    pub(crate) fn find(&self, spec: &str) -> Option<&Known> {
        let bare = spec.strip_prefix("sha256:").unwrap_or(spec);
        if let Some(id) = Digest::from_hex(bare) {
            return self.images.get(&id);
        }
        if let Some(known) = spec
            .parse::<Reference>()
            .ok()
            .and_then(|reference| self.named(&reference))
        {
            return Some(known);
        }
        if bare.len() < 3 || !bare.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = self
            .images
            .values()
            .filter(|known| known.record.id.hex().starts_with(bare));
        matching.next().filter(|_| matching.next().is_none())
    }

    /// Layers and blobs that nobody needs: no image, no snapshot, no pull.
    pub(crate) fn unreferenced(&self) -> (Vec<Digest>, Vec<Digest>) {
        let mut layers: BTreeSet<Digest> = self.leases.values().flatten().copied().collect();
        let mut blobs = layers.clone();
        for known in self.images.values() {
            layers.extend(known.record.layers.iter().map(LayerRecord::name));
            blobs.extend(known.record.blobs());
        }
        layers.extend(
            self.snapshots
                .values()
                .flat_map(|snapshot| &snapshot.layers)
                .copied(),
        );
        let layers = self
            .layers
            .keys()
            .filter(|id| !layers.contains(id))
            .copied()
            .collect();
        let blobs = self
            .blobs
            .keys()
            .filter(|id| !blobs.contains(id))
            .copied()
            .collect();
        (layers, blobs)
    }
}

/// A state that several tasks look at.
#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<State>);

impl Shared {
    pub(crate) fn new(state: State) -> Self {
        Self(Mutex::new(state))
    }

    /// Looks at it or changes it; never while waiting for anything.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps digests from being collected while a pull or a repair goes on, until the last clone is gone: threads that
/// work for one that was given up have theirs.
#[derive(Clone)]
pub(crate) struct Lease(Arc<Leased>);

struct Leased {
    store: Arc<Store>,
    number: u64,
}

impl Lease {
    pub(crate) fn new(store: &Arc<Store>) -> Self {
        let number = store.shared.with(|state| {
            state.last_lease += 1;
            state.leases.insert(state.last_lease, BTreeSet::new());
            state.last_lease
        });
        let store = store.clone();
        Self(Arc::new(Leased { store, number }))
    }

    /// Keeps more.
    pub(crate) fn extend(&self, digests: impl IntoIterator<Item = Digest>) {
        self.0.store.shared.with(|state| self.extend_in(state, digests));
    }

    /// Keeps more, together with the look at the state that says what.
    pub(crate) fn extend_in(&self, state: &mut State, digests: impl IntoIterator<Item = Digest>) {
        state.leases.entry(self.0.number).or_default().extend(digests);
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.store.shared.with(|state| state.leases.remove(&self.number));
    }
}

/// Locks by name: whoever wants what another one is making waits, and then finds it made.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Flights {
    /// Waits until nobody else makes `name`.
    pub(crate) async fn lock(&self, name: String) -> OwnedMutexGuard<()> {
        let lock = {
            let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            flights.retain(|_, lock| lock.strong_count() > 0);
            let known = flights.get(&name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(tokio::sync::Mutex::new(()));
                flights.insert(name, Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
}
