//! A pull, from a name to a record on the disk.
//!
//! Whoever pulls what somebody else is pulling waits and then finds it there: pulls of one reference come one after the
//! other, and so do makers of one blob and of one layer. What a pull has or will have is leased, so that a removal at
//! the same time doesn't collect it. Parts that are there already are taken as they are; a blob that turns out damaged
//! is fetched again. A pull that fails or is given up doesn't wait for layers that are being unpacked: those go on by
//! themselves, and hold on to their place, their lease and the right to make that layer until they are done.

mod stack;

use std::sync::Arc;

use crate::content;
use crate::digest::Digest;
use crate::disk::{read_bounded, sync_dir};
use crate::error::FileError;
use crate::images::{Store, blocking};
use crate::manifest::{
    self, Descriptor, Document, MAX_CONFIG, MAX_MANIFEST, Manifest, ManifestError, Platform,
};
use crate::records::{self, Record};
use crate::reference::{Reference, Version};
use crate::registry::{RegistryError, Session};
use crate::state::{Known, Lease};
use crate::step::Step;
use crate::{Credentials, PullError, hosts};

/// Makes errors that name what was pulled.
struct Pull<'a> {
    store: &'a Arc<Store>,
    reference: &'a Reference,
    session: Session<'a>,
    lease: Lease,
}

/// What a reference means on this machine.
struct Resolved {
    /// The digest of what the reference names: an index or a manifest.
    top: Digest,
    /// All documents on the way, with their bytes.
    documents: Vec<(Digest, Vec<u8>)>,
    manifest: Manifest,
}

/// Pulls an image.
pub(crate) async fn pull(
    store: &Arc<Store>,
    reference: &str,
    credentials: Option<Credentials>,
) -> Result<Known, PullError> {
    let reference: Reference = reference.parse()?;
    let _flight = store.flights.lock(format!("pull {reference}")).await;
    let endpoints = hosts::endpoints(store.config.hosts_dir.as_deref(), reference.host())?;
    let lost = || PullError::Lost {
        reference: reference.to_string(),
    };
    let _slot = store.pull_slots.acquire().await.map_err(|_| lost())?;
    let session = store.registry.session(&reference, endpoints, credentials);
    let pull = Pull {
        store,
        reference: &reference,
        session,
        lease: Lease::new(store),
    };
    if let Some(known) = pull.find_current().await {
        return Ok(known);
    }
    let made = pull.make().await;
    drop(pull);
    let is_chained = made
        .as_ref()
        .is_ok_and(|known| known.record.layers.iter().any(|layer| layer.chain_id.is_some()));
    let theirs = store.clone();
    let tidied = blocking(move || {
        if is_chained {
            // What such layers are when unpacked by themselves is of use only to an image that has them so.
            theirs.collect();
        }
        // After a failed pull, too: it may have leased what another one would have discarded.
        theirs.discard_blobs()
    });
    let tidied = tidied.await.ok_or_else(lost)?;
    let known = made?;
    tidied.map_err(|source| PullError::File {
        reference: reference.to_string(),
        source,
    })?;
    Ok(known)
}

impl Pull<'_> {
    /// Fetches, unpacks and records the image.
    async fn make(&self) -> Result<Known, PullError> {
        let resolved = self.resolve().await?;
        let (config, diff_ids) = self.config(&resolved).await?;
        let layers = self.layers(&resolved.manifest.layers, &diff_ids).await?;
        let mut record = Record::new(&resolved.manifest, layers);
        record.manifests = resolved.documents.iter().map(|(digest, _)| *digest).collect();
        let known = Known {
            record,
            config: Arc::new(config),
        };
        self.commit(known, resolved.top).await
    }

    fn registry_error(&self, source: RegistryError) -> PullError {
        PullError::Registry {
            reference: self.reference.to_string(),
            source,
        }
    }

    fn manifest_error(&self, source: ManifestError) -> PullError {
        PullError::Manifest {
            reference: self.reference.to_string(),
            source,
        }
    }

    fn file_error(&self, source: FileError) -> PullError {
        PullError::File {
            reference: self.reference.to_string(),
            source,
        }
    }

    fn lost(&self) -> PullError {
        PullError::Lost {
            reference: self.reference.to_string(),
        }
    }

    /// The image that is there already, when nothing of it is missing and the registry still means the same: for a
    /// digest nobody is asked, for a tag one cheap question.
    async fn find_current(&self) -> Option<Known> {
        let known = self.store.shared.with(|state| {
            let known = state
                .named(self.reference)
                .filter(|known| state.is_whole(&known.record))?;
            Some(known.clone())
        })?;
        let Version::Tag(tag) = self.reference.version() else {
            return Some(known);
        };
        let current = self.session.head(tag).await?;
        known
            .record
            .digests
            .contains(&self.reference.at(current).to_string())
            .then_some(known)
    }

    /// Follows the reference to one manifest.
    async fn resolve(&self) -> Result<Resolved, PullError> {
        const MAX_DEPTH: usize = 3;
        let mut documents = Vec::new();
        let mut version = self.reference.version().clone();
        for _ in 0..MAX_DEPTH {
            let (digest, bytes, content_type) = self.document(&version).await?;
            self.lease.extend([digest]);
            let parsed = manifest::parse(&bytes, content_type.as_deref());
            documents.push((digest, bytes));
            match parsed.map_err(|error| self.manifest_error(error))? {
                Document::Manifest(manifest) => {
                    let top = documents.first().map_or(digest, |(digest, _)| *digest);
                    return Ok(Resolved {
                        top,
                        documents,
                        manifest,
                    });
                }
                Document::Index(entries) => {
                    let entry = manifest::select(&entries, &Platform::host());
                    let entry = entry.map_err(|error| self.manifest_error(error))?;
                    if entry.size > MAX_MANIFEST {
                        let error = ManifestError::TooLarge {
                            what: "manifest",
                            size: entry.size,
                            max: MAX_MANIFEST,
                        };
                        return Err(self.manifest_error(error));
                    }
                    version = Version::Digest(entry.digest);
                }
            }
        }
        Err(self.manifest_error(ManifestError::Nested))
    }

    async fn document(&self, version: &Version) -> Result<(Digest, Vec<u8>, Option<String>), PullError> {
        if let Version::Digest(digest) = version
            && let Some(bytes) = self.stored(digest, MAX_MANIFEST)
        {
            return Ok((*digest, bytes, None));
        }
        let fetched = self
            .session
            .manifest(version)
            .await
            .map_err(|error| self.registry_error(error))?;
        Ok((fetched.digest, fetched.bytes, fetched.content_type))
    }

    /// A small blob that is on the disk and sound.
    fn stored(&self, digest: &Digest, max: u64) -> Option<Vec<u8>> {
        if !self.store.shared.with(|state| state.blobs.contains_key(digest)) {
            return None;
        }
        let bytes = read_bounded(&self.store.disk.blob(digest), max).ok()?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Stores the manifests, and fetches and reads the config.
    async fn config(
        &self,
        resolved: &Resolved,
    ) -> Result<(oci_spec::image::ImageConfiguration, Vec<Digest>), PullError> {
        let Manifest { config, layers } = &resolved.manifest;
        self.lease.extend([config.digest]);
        self.lease.extend(layers.iter().map(|layer| layer.digest));
        let (disk, documents) = (self.store.disk.clone(), resolved.documents.clone());
        let sizes: Vec<_> = documents
            .iter()
            .map(|(digest, bytes)| (*digest, bytes.len() as u64))
            .collect();
        let put = move || {
            documents
                .iter()
                .try_for_each(|(digest, bytes)| content::put(&disk, digest, bytes))
        };
        let stored = async {
            blocking(put)
                .await
                .ok_or_else(|| self.lost())?
                .map_err(|error| self.file_error(error))?;
            self.store.shared.with(|state| state.blobs.extend(sizes));
            Ok::<(), PullError>(())
        };
        let fetched = async {
            if self.stored(&config.digest, MAX_CONFIG).is_none() {
                self.fetch(config).await?;
            }
            Ok(())
        };
        futures_util::future::try_join(stored, fetched).await?;
        let bytes = read_bounded(&self.store.disk.blob(&config.digest), MAX_CONFIG);
        let bytes = bytes.map_err(|error| self.file_error(error))?;
        let (config, diff_ids) =
            manifest::parse_config(&bytes, layers.len()).map_err(|error| self.manifest_error(error))?;
        self.lease.extend(diff_ids.iter().copied());
        Ok((config, diff_ids))
    }

    /// Downloads a blob, in place of a damaged one if need be.
    async fn fetch(&self, blob: &Descriptor) -> Result<(), PullError> {
        self.session
            .blob(&self.store.disk, blob)
            .await
            .map_err(|error| self.registry_error(error))?;
        self.store
            .shared
            .with(|state| state.blobs.insert(blob.digest, blob.size));
        Ok(())
    }

    /// Writes the record: from here on the image is there.
    async fn commit(&self, known: Known, top: Digest) -> Result<Known, PullError> {
        let guard = self.store.records.clone().lock_owned().await;
        let (store, reference) = (self.store.clone(), self.reference.clone());
        let committed = blocking(move || {
            let _guard = guard;
            commit(&store, known, &reference, top)
        });
        committed
            .await
            .ok_or_else(|| self.lost())?
            .map_err(|error| self.file_error(error))
    }
}

/// Writes the record with the name it was pulled by, and takes a moved tag from the image that had it.
fn commit(store: &Store, mut known: Known, reference: &Reference, top: Digest) -> Result<Known, FileError> {
    sync_dir(&store.disk.blobs())?;
    sync_dir(&store.disk.layers())?;
    store.disk.steps.reach(Step::PartsSynced);
    let (before, number, had_tag) = store.shared.with(|state| {
        let before = state
            .images
            .get(&known.record.id)
            .map(|known| known.record.clone());
        let others = state
            .images
            .values()
            .filter(|other| other.record.id != known.record.id);
        let had_tag: Vec<_> = others
            .filter(|other| other.record.is_named(reference))
            .map(|other| other.record.clone())
            .collect();
        (before, state.next_number(), had_tag)
    });
    if let Some(before) = before {
        // Pulled before, by another name or through another manifest: both count.
        known.record.tags = before.tags;
        known.record.digests = before.digests;
        known.record.manifests.extend(before.manifests);
    }
    known.record.digests.insert(reference.at(top).to_string());
    let tag = matches!(reference.version(), Version::Tag(_)).then(|| reference.to_string());
    if let Some(tag) = &tag {
        known.record.tags.insert(tag.clone(), number);
    }
    records::save(&store.disk, &known.record)?;
    store
        .shared
        .with(|state| state.images.insert(known.record.id, known.clone()));
    if let Some(tag) = tag {
        store.disk.steps.reach(Step::TagAdded);
        for mut other in had_tag {
            other.tags.remove(&tag);
            records::save(&store.disk, &other)?;
            store.shared.with(|state| {
                if let Some(known) = state.images.get_mut(&other.id) {
                    known.record = other;
                }
            });
        }
    }
    Ok(known)
}
