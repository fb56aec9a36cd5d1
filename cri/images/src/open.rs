//! Opening a store: what the directories hold, and what a kill or a power cut left in them.
//!
//! Everything is derived from the disk. Temporary names are removed, names that nobody refers to as well; a layer whose
//! marker can't be read is known as damaged. No file of a layer is looked at here, so that opening stays quick: whether
//! layers are whole after the machine was restarted is `Images::verify`'s and `prepare`'s to find out.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Digest;
use crate::disk::{Disk, names};
use crate::state::{Known, Layer, State};
use crate::step::Steps;
use crate::unpack::OverlayXattrs;
use crate::{FileError, OpenError, layers, manifest, records, snapshots};

/// What opening a store gives.
pub(crate) struct Opened {
    pub(crate) disk: Disk,
    pub(crate) state: State,
    pub(crate) xattrs: OverlayXattrs,
    /// Held as long as the store is open.
    pub(crate) lock: File,
}

/// Opens the store at `root`. Blocks.
pub(crate) fn open(root: PathBuf, steps: Steps) -> Result<Opened, OpenError> {
    let disk = Disk::open(root, steps)?;
    let path = disk.root().join("lock");
    let lock = File::create(&path).map_err(FileError::of("create", &path))?;
    take(&lock, &path, disk.root())?;
    for name in names(&disk.ingest())? {
        disk.discard(&disk.ingest().join(name))?;
    }
    let mut state = State::default();
    load_blobs(&disk, &mut state)?;
    load_layers(&disk, &mut state)?;
    load_images(&disk, &mut state)?;
    state.snapshots = snapshots::load(&disk)?.into_iter().collect();
    discard_unreferenced(&disk, &mut state)?;
    let xattrs = overlay_xattrs();
    Ok(Opened {
        disk,
        state,
        xattrs,
        lock,
    })
}

fn load_blobs(disk: &Disk, state: &mut State) -> Result<(), FileError> {
    for name in names(&disk.blobs())? {
        let path = disk.blobs().join(&name);
        match (Digest::from_hex(&name), fs::metadata(&path)) {
            (Some(digest), Ok(metadata)) if metadata.is_file() => {
                state.blobs.insert(digest, metadata.len());
            }
            _ => {
                disk.discard(&path)?;
            }
        }
    }
    Ok(())
}

fn load_layers(disk: &Disk, state: &mut State) -> Result<(), FileError> {
    let is_checked = read_boot(disk).is_some_and(|boot| Some(boot) == this_boot());
    for name in names(&disk.layers())? {
        let path = disk.layers().join(&name);
        let Some(digest) = Digest::from_hex(&name) else {
            disk.discard(&path)?;
            continue;
        };
        let layer = match layers::read_marker(&path) {
            Ok(marker) => Layer::Whole { marker, is_checked },
            Err(_) => Layer::Damaged,
        };
        state.layers.insert(digest, layer);
    }
    Ok(())
}

fn load_images(disk: &Disk, state: &mut State) -> Result<(), FileError> {
    for (id, record) in records::load(disk)? {
        let bytes = crate::disk::read_bounded(&disk.blob(&id), manifest::MAX_CONFIG);
        let config = bytes.ok().filter(|bytes| Digest::of(bytes) == id);
        let config = config.and_then(|bytes| manifest::parse_config(&bytes, record.layers.len()).ok());
        let Some((config, _)) = config else {
            tracing::warn!(image = %id, "removed an image whose config is damaged; it has to be pulled again");
            records::remove(disk, &id)?;
            if state.blobs.remove(&id).is_some() {
                disk.discard(&disk.blob(&id))?;
            }
            continue;
        };
        for layer in &record.layers {
            state.layers.entry(layer.name()).or_insert(Layer::Damaged);
        }
        state.images.insert(
            id,
            Known {
                record,
                config: Arc::new(config),
            },
        );
    }
    Ok(())
}

/// Moves what nobody needs into the trash.
pub(crate) fn discard_unreferenced(disk: &Disk, state: &mut State) -> Result<(), FileError> {
    use crate::step::Step;
    let (layers, blobs) = state.unreferenced();
    for layer in layers {
        disk.discard(&disk.layer(&layer))?;
        state.layers.remove(&layer);
        disk.steps.reach(Step::LayerTrashed);
    }
    for digest in blobs {
        disk.discard(&disk.blob(&digest))?;
        state.blobs.remove(&digest);
        disk.steps.reach(Step::BlobTrashed);
    }
    Ok(())
}

/// The boot in which all layers were last found whole.
fn read_boot(disk: &Disk) -> Option<String> {
    fs::read_to_string(disk.root().join("boot"))
        .ok()
        .map(|boot| boot.trim().to_owned())
}

fn this_boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .map(|boot| boot.trim().to_owned())
}

/// Remembers that all layers are whole: until the next boot, nothing but this store changes them.
pub(crate) fn remember_boot(disk: &Disk) -> Result<(), FileError> {
    let Some(boot) = this_boot() else { return Ok(()) };
    let (temporary, path) = (disk.root().join("boot.tmp"), disk.root().join("boot"));
    crate::disk::write_synced(&temporary, boot.as_bytes())?;
    fs::rename(&temporary, &path).map_err(FileError::of("rename", &path))
}

/// In a user namespace overlayfs keeps its attributes in the `user.` name space.
fn overlay_xattrs() -> OverlayXattrs {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
    if is_initial || map.is_empty() {
        OverlayXattrs::Trusted
    } else {
        OverlayXattrs::User
    }
}

/// How often a held lock is tried again, [`LOCK_PAUSE`] apart.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Locks the store. A child that the last holder was just forking has the lock too until it executes its program, even
/// when the holder was killed; so a held lock is waited for, though not for long.
fn take(lock: &File, path: &Path, root: &Path) -> Result<(), OpenError> {
    for _ in 0..LOCK_TRIES {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::Error(error)) => return Err(FileError::of("lock", path)(error).into()),
        }
    }
    Err(OpenError::InUse(root.to_owned()))
}
