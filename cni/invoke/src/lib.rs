//! Conflists, plugin execution and the result cache: the runtime's half of the CNI specification 1.1.
//!
//! The story of one ADD: [`Cni::add`] reads the first valid file of the configuration directory, writes its intent
//! into the cache (so that a killed ADD can be found and undone), brings `lo` up, runs the chain, each plugin with the
//! result of the one before, and writes the final result into the cache. When a plugin fails, DEL runs for it and for
//! those before it, and the entry goes. DEL takes the configuration and the result from the cache, because the file
//! may have changed since. Everything blocks, and everything has a time limit.

mod cache;
mod chain;
mod conf_dir;
mod process;
mod runner;

use std::path::PathBuf;

use cni_types::{ExecError, InvalidId, ResultError, RuntimeConfig};

pub use cache::CacheError;
pub use chain::{Cni, CniConfig};
pub use cni_types::{Bandwidth, PortMapping, Protocol, RuntimeDns};
pub use conf_dir::{LoadError, load_network};
pub use process::ProcessExec;
pub use runner::Runner;

/// One container's interface on the network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attachment {
    /// CNI_CONTAINERID: the sandbox's id.
    pub container_id: String,
    /// The sandbox's network namespace. For DEL it may be gone.
    pub netns: PathBuf,
    /// The interface's name inside, normally `eth0`.
    pub ifname: String,
    /// CNI_ARGS: `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, ...
    pub args: Vec<(String, String)>,
    /// Port mappings, bandwidth, DNS, addresses, cgroup path...; for DEL it may be left empty: the cache knows it.
    pub runtime: RuntimeConfig,
}

/// What may go wrong with a network operation.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no usable configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A name is not allowed.
    #[error("failed to use the attachment")]
    Attachment(#[from] InvalidId),
    /// The path holds no network namespace.
    #[error("failed to use `{}` as network namespace: it isn't one", .0.display())]
    NotNetns(PathBuf),
    /// ADD failed; what ran was undone.
    #[error("failed to add container {container_id} to network {network}{}", undo_text(.undo))]
    Add {
        /// The network.
        network: String,
        /// The container.
        container_id: String,
        /// Why.
        source: Box<ExecError>,
        /// Why undoing failed too; the attachment stays in the cache, and DEL must be repeated.
        undo: Option<Box<ExecError>>,
    },
    /// Another command failed.
    #[error("failed to {what} network {network}")]
    Exec {
        /// What was tried.
        what: &'static str,
        /// The network.
        network: String,
        /// Why.
        source: Box<ExecError>,
    },
    /// A plugin's result can't be used.
    #[error("failed to use the result of plugin {plugin}")]
    Result {
        /// The plugin.
        plugin: String,
        /// Why.
        source: ResultError,
    },
    /// The cache can't be read or written.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// CHECK needs 0.4.0.
    #[error(
        "network {network} is configured for CNI {version}, which has no CHECK; set cniVersion to 0.4.0 or newer"
    )]
    NoCheck {
        /// The network.
        network: String,
        /// Its version.
        version: cni_types::Version,
    },
    /// CHECK of something that was never added.
    #[error("container {container_id} has no interface {ifname} on network {network}")]
    NotAttached {
        /// The network.
        network: String,
        /// The container.
        container_id: String,
        /// The interface.
        ifname: String,
    },
    /// GC removed what it could; the rest is listed.
    #[error("failed to remove {} stale attachments or leftovers: {}", failures.len(), failures.join("; "))]
    Gc {
        /// One line each.
        failures: Vec<String>,
    },
}

fn undo_text(undo: &Option<Box<ExecError>>) -> String {
    undo.as_ref()
        .map(|error| format!(" (undoing it failed too: {error})"))
        .unwrap_or_default()
}
