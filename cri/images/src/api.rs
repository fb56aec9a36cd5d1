//! The plain types of the public interface.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// How the image store works.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// The directory of the store; made when absent. It must be on a file system that can be an overlayfs layer.
    pub root: PathBuf,
    /// Where `<host[:port]>/hosts.toml` files are; without it each registry is its own only server.
    pub hosts_dir: Option<PathBuf>,
    /// How many layers are downloaded and unpacked at a time, over all pulls.
    pub max_parallel_layers: usize,
    /// How many images are pulled at a time; more wait.
    pub max_parallel_pulls: usize,
    /// How long a download may stand still before it is tried again.
    pub progress_timeout: Duration,
    /// References of images that a garbage collector must leave alone.
    pub pinned: Vec<String>,
    /// Whether layer blobs are dropped once unpacked: half the disk, but a damaged layer must be pulled again.
    pub discard_blobs: bool,
    /// What an image may hold at most.
    pub limits: Limits,
}

impl ImagesConfig {
    /// The defaults, for a store at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            hosts_dir: None,
            max_parallel_layers: 4,
            max_parallel_pulls: 16,
            progress_timeout: Duration::from_secs(60),
            pinned: Vec::new(),
            discard_blobs: false,
            limits: Limits::default(),
        }
    }
}

/// What an image may hold at most: a hostile one ends with an error, not with a full disk.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one unpacked layer.
    pub layer_bytes: u64,
    /// Files, directories and links in one layer.
    pub layer_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            layer_entries: 4_000_000,
        }
    }
}

/// Who pulls: the fields of CRI's AuthConfig; empty means absent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name, with `password`.
    pub username: String,
    /// Password, with `username`.
    pub password: String,
    /// Base64 of `username:password`, used when `username` is empty.
    pub auth: String,
    /// The registry that these are for; empty means the one of the image.
    pub server_address: String,
    /// A refresh token, exchanged for an access token at the registry's token server.
    pub identity_token: String,
    /// An access token, sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            username,
            server_address,
            ..
        } = self;
        f.debug_struct("Credentials")
            .field("username", username)
            .field("server_address", server_address)
            .finish_non_exhaustive()
    }
}

/// An image on this node.
#[derive(Debug, Clone)]
pub struct Image {
    /// The image ID: `sha256:` and the digest of its config.
    pub id: String,
    /// Full references with a tag, sorted, such as `docker.io/library/busybox:latest`.
    pub repo_tags: Vec<String>,
    /// Full references with a digest, sorted: the digest of what was pulled, be it an index or a manifest.
    pub repo_digests: Vec<String>,
    /// Bytes of the config and of the layers as the registry sends them.
    pub size: u64,
    /// The config.
    pub config: ImageConfiguration,
    /// Whether a garbage collector must leave it alone.
    pub pinned: bool,
}

/// What `Images::remove` did. The image's layers stay as long as a snapshot uses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The image ID.
    pub id: String,
    /// The references that are gone with it, tags and digests.
    pub names: Vec<String>,
}

/// How much disk the images take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The directory of the store.
    pub path: PathBuf,
    /// Bytes on disk of blobs and unpacked layers.
    pub used_bytes: u64,
    /// Inodes of blobs and unpacked layers.
    pub inodes: u64,
}

/// How much disk the writable part of one container takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What `Images::verify` found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Layers that were checked.
    pub checked: usize,
    /// Layers, by diff ID, that were damaged and are whole again.
    pub repaired: Vec<Digest>,
    /// Layers, by diff ID, that are damaged and must be pulled again; their images aren't listed until then.
    pub lost: Vec<Digest>,
}

/// One line of a uid or gid map of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// The first ID inside.
    pub container_id: u32,
    /// The first ID outside.
    pub host_id: u32,
    /// How many.
    pub length: u32,
}

/// What kind of snapshot is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotOptions {
    /// The uid map of the container's user namespace; empty without one. Files of the image that belong to 0 then
    /// belong to the host ID of 0 in the mount.
    pub uid_map: Vec<IdMapping>,
    /// The gid map, in the same way.
    pub gid_map: Vec<IdMapping>,
    /// No writable part: an image volume. Such a snapshot has no `upper` and no `work` directory.
    pub read_only: bool,
}

/// What is needed to mount a container's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The key it was made with.
    pub key: String,
    /// The ID of the image below.
    pub image_id: String,
    /// The layers, top first; never empty.
    pub lower: Vec<PathBuf>,
    /// The writable directory.
    pub upper: PathBuf,
    /// Overlayfs' scratch directory.
    pub work: PathBuf,
    /// How it was made.
    pub options: SnapshotOptions,
    /// Whether overlayfs' attributes are in the `user.` name space: inside a user namespace.
    pub user_xattr: bool,
}
