//! Where pods come from: folders of manifests, a URL, later the API server.
//!
//! A source hands over everything that it names, each time that changes ([`Update`]); the sync loop works out what came,
//! changed and went. A manifest that can't be read or isn't valid is a [`Finding`] and leaves the other pods alone: what
//! the same file named when it was last whole stays, so that a slip of the editor ends no pod.
//!
//! Besides Pods, the sources of a node without an API server may name the objects that its pods refer to: ConfigMaps,
//! Secrets and RuntimeClasses ([`Objects`]).

mod file;
mod http;
mod manifest;
mod objects;

pub use file::Folder;
pub use http::Url;
pub use manifest::{Manifest, Named, read};
pub use objects::Objects;

use std::sync::Arc;

use controlplane_api::k8s_openapi::api::core::v1::Pod;

/// Annotations of pods that don't come from an API server; `k8s.io/kubernetes/pkg/kubelet/types`.
pub mod annotations {
    /// The source's name: `file`, `http` or `api`.
    pub const SOURCE: &str = "kubernetes.io/config.source";
    /// The hash of the manifest: a static pod's UID.
    pub const HASH: &str = "kubernetes.io/config.hash";
    /// When it was first seen, RFC 3339.
    pub const SEEN: &str = "kubernetes.io/config.seen";
}

/// What kind of source a pod comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    /// A folder of manifests.
    File,
    /// A URL.
    Http,
    /// The API server.
    Api,
}

impl SourceKind {
    /// Upstream's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Http => "http",
            Self::Api => "api",
        }
    }
}

/// Something about a source that its owner must mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file or URL, with line and column where there is one.
    pub place: String,
    /// What is wrong, and the remedy.
    pub message: String,
}

/// Everything that a source names now.
#[derive(Debug, Clone)]
pub struct Update {
    /// Which source.
    pub source: SourceKind,
    /// Its pods: defaulted, valid, with UID, node name and the annotations above.
    pub pods: Vec<Arc<Pod>>,
    /// The other objects.
    pub objects: Objects,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}
