//! Images of a node: pulled from registries, kept on disk so that no power cut hurts them, mounted as container roots.
//!
//! The story of a pull. [`reference`] says which image on which registry, [`hosts`] which mirrors stand in for that
//! registry, `registry` speaks to them (tokens, retries, resumed downloads), [`manifest`] picks what fits this
//! machine. Blobs go to `content`, hashed while they arrive; each layer is unpacked by [`unpack`] from its verified
//! blob; a record under `images/` names it all and is written last. Nothing becomes visible before its bytes are
//! durable, so after a power cut the store is what it was before the step that was cut.
//!
//! The story of a container root. [`Images::prepare`] makes a snapshot: a writable directory over the image's layers,
//! and remembers it, so that the layers stay while the container does, even when the image is removed.
//! [`mount_overlay`] turns it into a mount.
//!
//! On disk, below the root:
//!
//! | path | what |
//! |---|---|
//! | `blobs/sha256/<hex>` | content as the registry sent it |
//! | `ingest/` | blobs on their way in; emptied at open |
//! | `layers/<hex of the diff ID or chain ID>/fs` | an unpacked layer; `complete` beside it holds its counts, `implied` what depends on lower ones |
//! | `images/<hex of the image ID>.json` | an image record with its tags and digests |
//! | `snapshots/<key>/{snapshot.json,upper,work}` | the writable part of a container |
//! | `trash/` | what is being deleted; emptied at open |
//! | `lock`, `boot` | one opener at a time; the boot in which all layers were last found whole |

mod api;
mod content;
pub mod digest;
mod disk;
mod durable;
mod error;
pub mod hosts;
mod images;
pub mod layers;
pub mod manifest;
mod mount;
mod open;
mod pull;
mod records;
pub mod reference;
pub mod registry;
mod removal;
mod snapshots;
mod state;
mod step;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod unpack;

pub use api::{
    Credentials, FsUsage, IdMapping, Image, ImagesConfig, Limits, Removed, Repaired, Snapshot,
    SnapshotOptions, SnapshotUsage,
};
pub use error::{FileError, OpenError, OverlayError, PullError, PullErrorKind, RemoveError, SnapshotError};
pub use images::Images;
pub use mount::{MountError, mount_overlay, unmount};
