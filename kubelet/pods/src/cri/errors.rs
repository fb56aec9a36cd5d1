//! Why a pod can't be said in CRI's words. What these display is what people see in `CreateContainerConfigError`.

use thiserror::Error;

/// Why a pod or one of its containers has no configuration. Displayed in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The pod has no container of this name.
    #[error("container {0} not found")]
    NoSuchContainer(String),
    /// `hostname`, `subdomain` or `hostnameOverride` is no name.
    #[error("pod {field} {value:?} is not a valid DNS {kind}: {reason}")]
    Hostname {
        /// Of the pod.
        field: &'static str,
        /// What it says.
        value: String,
        /// `label` or `subdomain`.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The name doesn't fit even when it is cut.
    #[error("hostname for pod {pod:?} was invalid: {hostname:?}")]
    HostnameInvalid {
        /// The pod's name.
        pod: String,
        /// The host name.
        hostname: String,
    },
    /// The kernel's names have 64 characters at most.
    #[error(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long (64 characters is the max, {length} characters requested)"
    )]
    FqdnTooLong {
        /// The name.
        fqdn: String,
        /// Its length.
        length: usize,
    },
    /// `seccompProfile.type: Localhost` without a file.
    #[error("localhostProfile must be set if seccompProfile type is Localhost.")]
    SeccompWithoutFile,
    /// `runAsUser: 0` with `runAsNonRoot`.
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunsAsRoot {
        /// Name, namespace and UID.
        pod: String,
        /// Its name.
        container: String,
    },
    /// The image's user is root.
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageRunsAsRoot {
        /// Name, namespace and UID.
        pod: String,
        /// Its name.
        container: String,
    },
    /// The image's user is a name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    ImageUserIsAName {
        /// The image's user.
        user: String,
        /// Name, namespace and UID.
        pod: String,
        /// Its name.
        container: String,
    },
    /// A sysctl that the node doesn't allow.
    #[error("forbidden sysctl: {name:?} {reason}")]
    Sysctl {
        /// Its name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// A user namespace where the runtime has none.
    #[error("RuntimeClass handler {handler:?} does not support user namespaces")]
    NoUserNamespaces {
        /// The handler's name.
        handler: String,
    },
    /// A ConfigMap, Secret or file that an environment variable needs isn't there.
    #[error("{kind} {name:?} not found")]
    NoObject {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// An object without the key that an environment variable needs.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The pod's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// A file of variables without the key that is needed.
    #[error("environment variable key {key:?} not found in file {path:?} of volume {volume:?}")]
    NoFileKey {
        /// The key.
        key: String,
        /// Within the volume.
        path: String,
        /// The volume's name.
        volume: String,
    },
    /// A `fieldPath` that names nothing.
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    /// A `resource` that names nothing.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// A quantity that is none.
    #[error("quantity {0:?} is not valid")]
    Quantity(String),
    /// A volume mount without its volume.
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume {
        /// The volume's name.
        volume: String,
        /// The container's name.
        container: String,
    },
    /// A `mountPropagation` that is none.
    #[error("invalid MountPropagation mode: {0:?}")]
    Propagation(String),
    /// A recursively read-only mount that can't be had.
    #[error("failed to resolve recursive read-only mode: {0}")]
    RecursiveReadOnly(String),
    /// Options of a bind mount that the runtime doesn't know.
    #[error("volume {0:?} requested bind mount options, but they are not supported by the runtime")]
    MountOptions(String),
    /// A `subPathExpr` with a variable that isn't set.
    #[error("missing value for {0:?}")]
    SubPathExpr(String),
    /// The container whose namespaces an ephemeral one asks for doesn't run.
    #[error("unable to find target container {0}")]
    NoTarget(String),
    /// A `supplementalGroupsPolicy` that is none, or that the runtime doesn't know.
    #[error("unsupported supplementalGroupsPolicy: {0}")]
    SupplementalGroupsPolicy(String),
    /// A `stopSignal` that is none.
    #[error("invalid stop signal {0:?}")]
    StopSignal(String),
}
