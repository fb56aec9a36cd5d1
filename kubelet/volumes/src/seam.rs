//! What volumes need from the rest of the kubelet, and what a kind of volumes must be able to do.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use controlplane_api::k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, Pod, PodCertificateProjection, ResourceFieldSelector, Secret,
    ServiceAccountTokenProjection, Volume,
};
use jiff::Timestamp;

use crate::error::PluginError;
use crate::ownership::GroupOwnership;

/// Objects of the cluster, and facts about the node, that volumes are made of.
///
/// `Ok(None)` is "there is no such object", which an optional source forgives; an error is anything else and is tried
/// again.
pub trait ObjectSource: Send + Sync {
    /// A ConfigMap.
    ///
    /// # Errors
    /// When it can't be told whether there is one.
    fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, ObjectError>;

    /// A Secret.
    ///
    /// # Errors
    /// When it can't be told whether there is one.
    fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, ObjectError>;

    /// A token for the pod's service account, bound to the pod; the same one until it should be replaced.
    ///
    /// # Errors
    /// When none can be had.
    fn service_account_token(
        &self,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<String, ObjectError>;

    /// The PEM certificates of a ClusterTrustBundle, or of all that a signer's selector matches; none when there is none.
    ///
    /// # Errors
    /// When it can't be told.
    fn cluster_trust_bundle(
        &self,
        projection: &ClusterTrustBundleProjection,
    ) -> Result<Option<Vec<u8>>, ObjectError>;

    /// The key and certificates that a signer issued to the pod for the source with that index of a volume.
    ///
    /// # Errors
    /// When none can be had (yet).
    fn pod_certificate(
        &self,
        pod: &Pod,
        volume: &str,
        source: usize,
        projection: &PodCertificateProjection,
    ) -> Result<PodCertificate, ObjectError>;

    /// The node's allocatable memory in bytes: no volume in memory is larger.
    ///
    /// # Errors
    /// When it isn't known.
    fn allocatable_memory(&self) -> Result<u64, ObjectError>;

    /// Whether the runtime handler of the pod makes mounts recursively read-only; none when the runtime doesn't tell, and
    /// the kernel is asked.
    fn recursive_read_only(&self, _pod: &Pod) -> Option<bool> {
        None
    }
}

/// Values of the downward API: fields of the pod, and resources of its containers.
pub trait Downward: Send + Sync {
    /// What `fieldRef` with that `fieldPath` stands for.
    ///
    /// # Errors
    /// For a path that isn't supported.
    fn field(&self, pod: &Pod, path: &str) -> Result<String, ObjectError>;

    /// What a `resourceFieldRef` stands for.
    ///
    /// # Errors
    /// For a resource or container that there isn't.
    fn resource(&self, pod: &Pod, selector: &ResourceFieldSelector) -> Result<String, ObjectError>;
}

/// Why an object, a token or a value can't be had; told to users as it is.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ObjectError {
    message: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ObjectError {
    /// With words for the user.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    /// With words for the user and the reason.
    pub fn because(message: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            message: message.into(),
            source: Some(source.into()),
        }
    }
}

/// A private key and the certificates for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCertificate {
    /// PEM, PKCS#8.
    pub key: Vec<u8>,
    /// PEM, the leaf first.
    pub chain: Vec<u8>,
}

/// What plugins share.
pub struct Host {
    pub(crate) objects: Arc<dyn ObjectSource>,
    pub(crate) downward: Arc<dyn Downward>,
    pub(crate) now: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Host {
    /// Where objects come from.
    pub fn objects(&self) -> &dyn ObjectSource {
        &*self.objects
    }

    /// Where values of the downward API come from.
    pub fn downward(&self) -> &dyn Downward {
        &*self.downward
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }
}

/// A volume of a pod that is to be set up.
pub struct SetUp<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its UID, which was checked to be one component of a path.
    pub uid: &'a str,
    /// The volume; its name was checked likewise.
    pub volume: &'a Volume,
    /// `pods/UID/volumes/PLUGIN/NAME`; neither it nor its parent need exist.
    pub dir: &'a Path,
    /// `pods/UID/plugins/PLUGIN/NAME`, for the plugin's own notes; neither it nor its parent need exist.
    pub notes: &'a Path,
    /// The pod's `fsGroup` with its change policy.
    pub group: Option<GroupOwnership>,
    /// Set once the pod is to be torn down: long work should end early.
    pub stop: &'a AtomicBool,
    /// What plugins share.
    pub host: &'a Host,
}

/// A volume that is to be torn down; all that is known is what the disk tells.
pub struct TearDown<'a> {
    /// The pod's UID.
    pub uid: &'a str,
    /// The volume's name.
    pub name: &'a str,
    /// `pods/UID/volumes/PLUGIN/NAME`.
    pub dir: &'a Path,
    /// `pods/UID/plugins/PLUGIN/NAME`.
    pub notes: &'a Path,
}

/// How containers must treat a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Whether it is read-only whatever the mount says.
    pub read_only: bool,
    /// Whether the runtime should give it the pod's SELinux label.
    pub relabel: bool,
}

/// What a container mounts for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory or file of the node.
    Path(PathBuf),
    /// An image that the runtime mounts by itself.
    Image {
        /// Its reference as the pod's spec has it.
        reference: String,
    },
}

/// A kind of volumes.
///
/// Every call may come again after a crash anywhere in an earlier one. Calls for one pod never overlap.
pub trait VolumePlugin: Send + Sync {
    /// Such as `kubernetes.io/empty-dir`; on disk `/` is `~`.
    fn name(&self) -> &'static str;

    /// Whether a volume is of this kind.
    fn supports(&self, volume: &Volume) -> bool;

    /// Makes a volume ready for containers, or makes sure that it is; returns whether content that there was before has
    /// changed.
    ///
    /// # Errors
    /// In words for the pod's events.
    fn set_up(&self, request: &SetUp<'_>) -> Result<bool, PluginError>;

    /// Whether a volume's content follows objects, so that setting it up again from time to time refreshes it.
    fn refreshes(&self) -> bool {
        false
    }

    /// Unmounts and removes a volume, whatever state it is in.
    ///
    /// # Errors
    /// When something of it is left.
    fn tear_down(&self, request: &TearDown<'_>) -> Result<(), PluginError>;

    /// What containers mount; `dir` is where the volume would be.
    fn source(&self, _volume: &Volume, dir: &Path) -> Source {
        Source::Path(dir.to_owned())
    }

    /// How containers must treat it.
    fn attributes(&self, volume: &Volume) -> Attributes;

    /// Whether what it holds counts for its pod's usage.
    fn measured(&self) -> bool {
        false
    }
}
