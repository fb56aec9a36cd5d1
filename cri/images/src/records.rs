//! Image records: which names, manifests and layers belong to one image ID.
//!
//! A record is one JSON file, replaced as a whole: written beside, synced, renamed, and the directory synced. A tag
//! moves from one image to another by two replacements; the number beside each tag says which came later, so whoever
//! opens the store between the two knows which one counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::FileError;
use crate::digest::Digest;
use crate::disk::{Disk, sync_dir, write_synced};
use crate::layers::Source;
use crate::manifest::Manifest;
use crate::reference::{Reference, Version};
use crate::step::Step;

/// The largest record that is read: thousands of tags.
const MAX_RECORD: u64 = 16 << 20;

/// One image on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The digest of the config.
    pub(crate) id: Digest,
    /// Full references with a tag, and when they came: a number that only grows.
    pub(crate) tags: BTreeMap<String, u64>,
    /// Full references with a digest.
    pub(crate) digests: BTreeSet<String>,
    /// Manifests and indexes through which it was pulled.
    pub(crate) manifests: BTreeSet<Digest>,
    /// The layers, bottom first.
    pub(crate) layers: Vec<LayerRecord>,
    /// Bytes of config and layers, as sent by the registry.
    pub(crate) size: u64,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// What it is when unpacked.
    pub(crate) diff_id: Digest,
    /// The blob it was unpacked from.
    pub(crate) blob: Digest,
    /// The chain ID, where that is its name, as it was unpacked on top of the layers below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) chain_id: Option<Digest>,
    /// Whether it says of what owner and mode the image's root is.
    pub(crate) has_root: bool,
    /// Whether it hides all layers below.
    pub(crate) is_opaque: bool,
}

impl LayerRecord {
    /// The name of its directory.
    pub(crate) fn name(&self) -> Digest {
        self.chain_id.unwrap_or(self.diff_id)
    }
}

impl Record {
    /// A record of an image without a name.
    pub(crate) fn new(manifest: &Manifest, layers: Vec<LayerRecord>) -> Self {
        Self {
            id: manifest.config.digest,
            tags: BTreeMap::new(),
            digests: BTreeSet::new(),
            manifests: BTreeSet::new(),
            layers,
            size: manifest
                .layers
                .iter()
                .fold(manifest.config.size, |sum, layer| sum.saturating_add(layer.size)),
        }
    }

    /// How the layer that is named so is made.
    pub(crate) fn source(&self, name: &Digest) -> Option<Source> {
        let at = self.layers.iter().position(|layer| layer.name() == *name)?;
        let LayerRecord { diff_id, blob, .. } = self.layers[at];
        let below = match self.layers[at].chain_id {
            Some(_) => self.layers[..at].iter().rev().map(LayerRecord::name).collect(),
            None => Vec::new(),
        };
        Some(Source {
            blob,
            diff_id,
            name: *name,
            below,
        })
    }

    /// All blobs that belong to it.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let layers = self.layers.iter().map(|layer| layer.blob);
        [self.id]
            .into_iter()
            .chain(self.manifests.iter().copied())
            .chain(layers)
    }

    /// Whether `reference` is one of its names.
    pub(crate) fn is_named(&self, reference: &Reference) -> bool {
        match reference.version() {
            Version::Tag(_) => self.tags.contains_key(&reference.to_string()),
            Version::Digest(_) => self.digests.contains(&reference.to_string()),
        }
    }
}

fn path(disk: &Disk, id: &Digest) -> PathBuf {
    disk.images().join(format!("{}.json", id.hex()))
}

/// Writes a record, in place of the one before.
pub(crate) fn save(disk: &Disk, record: &Record) -> Result<(), FileError> {
    let path = path(disk, &record.id);
    let temporary = disk.images().join(format!("{}.tmp", disk.unique()));
    let json = serde_json::to_vec_pretty(record).expect("a record has only strings and numbers");
    let written = write_synced(&temporary, &json).and_then(|()| {
        disk.steps.reach(Step::RecordWritten);
        fs::rename(&temporary, &path).map_err(FileError::of("rename", &path))
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    disk.steps.reach(Step::RecordRenamed);
    sync_dir(&disk.images())
}

/// Removes a record for good: what it referred to may be deleted afterwards.
pub(crate) fn remove(disk: &Disk, id: &Digest) -> Result<(), FileError> {
    let path = path(disk, id);
    fs::remove_file(&path).map_err(FileError::of("remove", &path))?;
    disk.steps.reach(Step::RecordRemoved);
    sync_dir(&disk.images())
}

/// Reads all records, with each tag at the image that got it last. What isn't a record is removed with a warning.
pub(crate) fn load(disk: &Disk) -> Result<BTreeMap<Digest, Record>, FileError> {
    let mut records = BTreeMap::new();
    for name in crate::disk::names(&disk.images())? {
        let file = disk.images().join(&name);
        let id = name.strip_suffix(".json").and_then(Digest::from_hex);
        let parsed = id.map(|id| {
            let bytes = crate::disk::read_bounded(&file, MAX_RECORD).map_err(|error| error.to_string())?;
            let record: Record = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
            if record.id == id {
                Ok(record)
            } else {
                Err("it is for another image".to_owned())
            }
        });
        match parsed {
            Some(Ok(record)) => {
                records.insert(record.id, record);
            }
            Some(Err(error)) => {
                tracing::warn!(file = %file.display(), error, "removed an image record that can't be read");
                disk.discard(&file)?;
            }
            // A temporary file of a write that was cut.
            None => {
                disk.discard(&file)?;
            }
        }
    }
    settle_tags(&mut records);
    Ok(records)
}

/// Leaves each tag only at the image that got it last. Returns the images that lost one.
fn settle_tags(records: &mut BTreeMap<Digest, Record>) -> BTreeSet<Digest> {
    let mut newest: BTreeMap<String, (u64, Digest)> = BTreeMap::new();
    for record in records.values() {
        for (tag, number) in &record.tags {
            let entry = newest.entry(tag.clone()).or_insert((*number, record.id));
            *entry = (*entry).max((*number, record.id));
        }
    }
    let mut changed = BTreeSet::new();
    for record in records.values_mut() {
        let before = record.tags.len();
        record.tags.retain(|tag, _| newest[tag].1 == record.id);
        if record.tags.len() < before {
            changed.insert(record.id);
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(names: &[(&str, u64)]) -> Record {
        let id = Digest::of(names.iter().map(|(name, _)| *name).collect::<String>().as_bytes());
        let (digests, tags): (Vec<_>, Vec<_>) = names.iter().partition(|(name, _)| name.contains('@'));
        Record {
            id,
            tags: tags
                .iter()
                .map(|(name, number)| ((*name).to_owned(), *number))
                .collect(),
            digests: digests.iter().map(|(name, _)| (*name).to_owned()).collect(),
            manifests: BTreeSet::new(),
            layers: Vec::new(),
            size: 0,
        }
    }

    #[test]
    fn a_tag_at_two_images_belongs_to_the_later_one() {
        let (old, new) = (
            record(&[("r.io/a:1", 1), ("r.io/b:1", 5)]),
            record(&[("r.io/a:1", 2)]),
        );
        let mut records = BTreeMap::from([(old.id, old.clone()), (new.id, new.clone())]);
        assert_eq!(settle_tags(&mut records), BTreeSet::from([old.id]));
        assert_eq!(records[&old.id].tags.keys().collect::<Vec<_>>(), ["r.io/b:1"]);
        assert_eq!(records[&new.id].tags.keys().collect::<Vec<_>>(), ["r.io/a:1"]);
    }
}
