//! The layers of an image: fetched and unpacked side by side, then put on top of each other.
//!
//! Each layer is first unpacked by itself, whatever comes below it. Then, from the bottom up, each is compared with the
//! layers that are below it: where an entry belongs elsewhere on top of those, the layer is unpacked once more, on top of
//! them, and has the name of the whole chain. Most images have no such layer.

use std::sync::Arc;

use futures_util::future::try_join_all;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};

use super::Pull;
use crate::content;
use crate::digest::Digest;
use crate::disk::Chain;
use crate::images::{Soundness, blocking};
use crate::layers::{self, Depends, LayerError, Marker, Source};
use crate::manifest::Descriptor;
use crate::records::LayerRecord;
use crate::state::{Layer, Lease};
use crate::{OpenError, PullError};

/// One layer of the image that is pulled.
struct Wanted<'a> {
    blob: &'a Descriptor,
    diff_id: Digest,
    /// The same as the diff ID for the lowest layer.
    chain_id: Digest,
}

/// What unpacking a layer needs until it is done, whatever becomes of the pull.
struct Held {
    /// The right to make this layer: two that made it at once would take it away from under a container.
    _flight: OwnedMutexGuard<()>,
    _slot: OwnedSemaphorePermit,
    /// The layers below must not be collected while they are looked at.
    _lease: Lease,
}

/// What came of unpacking one by itself.
enum Alone {
    /// It is there.
    Whole(Marker),
    /// An earlier pull found that it has to be unpacked on top of the others, and did so.
    Chained(Marker),
    /// It can't be: a hard link leads through the layers below, or nowhere.
    NeedsBelow,
}

impl Pull<'_> {
    /// Makes sure that all layers are there, unpacked, and says under which names.
    pub(super) async fn layers(
        &self,
        layers: &[Descriptor],
        diff_ids: &[Digest],
    ) -> Result<Vec<LayerRecord>, PullError> {
        let chain_ids = layers::chain_ids(diff_ids);
        self.lease.extend(chain_ids.iter().copied());
        let ids = diff_ids.iter().zip(&chain_ids);
        let wanted = layers.iter().zip(ids).map(|(blob, (diff_id, chain_id))| Wanted {
            blob,
            diff_id: *diff_id,
            chain_id: *chain_id,
        });
        let wanted: Vec<_> = wanted.collect();
        let alone = try_join_all(wanted.iter().map(|layer| self.alone(layer))).await?;
        let mut records: Vec<LayerRecord> = Vec::with_capacity(wanted.len());
        for (layer, alone) in wanted.iter().zip(alone) {
            let below: Vec<Digest> = records.iter().rev().map(LayerRecord::name).collect();
            let (marker, is_chained) = match alone {
                Alone::Whole(marker) if self.fits(layer, marker.depends, &below).await? => (marker, false),
                Alone::Chained(marker) => (marker, true),
                _ => (self.chained(layer, below).await?, true),
            };
            records.push(LayerRecord {
                diff_id: layer.diff_id,
                blob: layer.blob.digest,
                chain_id: is_chained.then_some(layer.chain_id),
                has_root: marker.has_root,
                is_opaque: marker.is_opaque,
            });
        }
        Ok(records)
    }

    /// The marker of a layer that is there.
    fn whole(&self, name: &Digest) -> Option<Marker> {
        self.store.shared.with(|state| match state.layers.get(name) {
            Some(Layer::Whole { marker, .. }) => Some(marker.clone()),
            _ => None,
        })
    }

    /// Makes sure that a layer is there, unpacked by itself.
    async fn alone(&self, layer: &Wanted<'_>) -> Result<Alone, PullError> {
        let is_lowest = layer.diff_id == layer.chain_id;
        let there = || {
            let chained = || self.whole(&layer.chain_id).map(Alone::Chained);
            if is_lowest { None } else { chained() }.or_else(|| self.whole(&layer.diff_id).map(Alone::Whole))
        };
        if let Some(there) = there() {
            return Ok(there);
        }
        let flight = self.store.flights.lock(format!("layer {}", layer.diff_id)).await;
        if let Some(there) = there() {
            return Ok(there);
        }
        match self.make_layer(flight, layer, layer.diff_id, Vec::new()).await {
            Err(PullError::Layer { source, .. }) if !is_lowest && source.may_need_below() => {
                Ok(Alone::NeedsBelow)
            }
            made => made.map(Alone::Whole),
        }
    }

    /// Whether a layer that was unpacked by itself is right on top of those below.
    async fn fits(&self, layer: &Wanted<'_>, depends: Depends, below: &[Digest]) -> Result<bool, PullError> {
        if below.is_empty() || depends == Depends::Nothing {
            return Ok(true);
        }
        let (store, diff_id, below) = (self.store.clone(), layer.diff_id, below.to_vec());
        blocking(move || layers::fits(&store.disk, &diff_id, depends, &below, store.xattrs))
            .await
            .ok_or_else(|| self.lost())?
            .map_err(|error| self.file_error(error))
    }

    /// Makes sure that a layer is there, unpacked on top of those below.
    async fn chained(&self, layer: &Wanted<'_>, below: Vec<Digest>) -> Result<Marker, PullError> {
        let flight = self.store.flights.lock(format!("layer {}", layer.chain_id)).await;
        if let Some(marker) = self.whole(&layer.chain_id) {
            return Ok(marker);
        }
        tracing::debug!(layer = %layer.diff_id, chain = %layer.chain_id, "unpacking a layer on top of those below");
        // What damage below would do to this layer, nobody would find.
        for name in below.iter().rev() {
            match self.store.ensure_sound(name).await {
                Ok(Soundness::Sound | Soundness::Repaired) => {}
                Ok(Soundness::Lost) => return Err(self.damaged(name)),
                Err(OpenError::File(error)) => return Err(self.file_error(error)),
                Err(_) => return Err(self.lost()),
            }
        }
        self.make_layer(flight, layer, layer.chain_id, below).await
    }

    fn damaged(&self, layer: &Digest) -> PullError {
        PullError::Damaged {
            reference: self.reference.to_string(),
            layer: *layer,
        }
    }

    /// Fetches a layer's blob, if need be, and unpacks it.
    async fn make_layer(
        &self,
        flight: OwnedMutexGuard<()>,
        layer: &Wanted<'_>,
        name: Digest,
        below: Vec<Digest>,
    ) -> Result<Marker, PullError> {
        let slot = self.store.layer_slots.clone().acquire_owned().await;
        let held = Arc::new(Held {
            _flight: flight,
            _slot: slot.map_err(|_| self.lost())?,
            _lease: self.lease.clone(),
        });
        let blob = layer.blob;
        let source = Source {
            blob: blob.digest,
            diff_id: layer.diff_id,
            name,
            below,
        };
        let was_there = {
            let _flight = self.store.flights.lock(format!("blob {}", blob.digest)).await;
            let was_there = self
                .store
                .shared
                .with(|state| state.blobs.contains_key(&blob.digest));
            if !was_there {
                self.fetch(blob).await?;
            }
            was_there
        };
        match self.unpack(&held, &source).await {
            Err(PullError::Layer { source: error, .. })
                if was_there && self.is_broken(&blob.digest).await =>
            {
                tracing::warn!(blob = %blob.digest, error = %Chain(&error), "a stored blob is damaged; fetching it again");
                self.fetch(blob).await?;
                self.unpack(&held, &source).await
            }
            unpacked => unpacked,
        }
    }

    async fn is_broken(&self, blob: &Digest) -> bool {
        let (disk, blob) = (self.store.disk.clone(), *blob);
        blocking(move || !content::is_sound(&disk, &blob))
            .await
            .unwrap_or(false)
    }

    async fn unpack(&self, held: &Arc<Held>, source: &Source) -> Result<Marker, PullError> {
        let (store, source, digest) = (self.store.clone(), source.clone(), source.blob);
        let held = held.clone();
        let unpacked = blocking(move || -> Result<Marker, LayerError> {
            // The pull may be given up meanwhile; this goes on.
            let _held = held;
            let (made, marker) = layers::unpack(&store.disk, &source, store.xattrs, &store.config.limits)?;
            store.exchange_layer(&source.name, &made)?;
            store.set_layer(
                &source.name,
                Layer::Whole {
                    marker: marker.clone(),
                    is_checked: true,
                },
            );
            Ok(marker)
        });
        let error = |source| PullError::Layer {
            reference: self.reference.to_string(),
            digest,
            source,
        };
        unpacked.await.ok_or_else(|| self.lost())?.map_err(error)
    }
}
