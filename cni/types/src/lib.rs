//! CNI network configuration, results, errors and versions; pure (no I/O, no clock).
//!
//! The story: an administrator's file becomes a [`NetworkList`], a chain of [`PluginConfig`]s. For each of them the
//! runtime makes an [`Invocation`] (the environment and standard input of the CNI specification as one value) and
//! hands it to a [`PluginExec`], which is either a process or our own code in this process. ADD answers with an
//! [`AddResult`], which speaks every version of the specification from 0.3.0 to 1.1.0; what goes wrong is a
//! [`CniError`] with the specification's codes.

mod config;
mod error;
mod exec;
mod ids;
mod result;
mod runtime;
mod version;

pub use config::{ConfigError, NetworkList, PluginConfig};
pub use error::{CniError, ErrorCode};
pub use exec::{Command, ExecError, Invocation, PluginExec};
pub use ids::{InvalidId, check_container_id, check_ifname, check_network_name};
pub use result::{AddResult, Dns, Interface, IpConfig, ResultError, Route};
pub use runtime::{Bandwidth, PortMapping, Protocol, RuntimeConfig, RuntimeDns, ValidAttachment};
pub use version::{UnknownVersion, Version};
