//! One call of one plugin, and the seam through which it is made.

use std::{fmt, path::PathBuf, str::FromStr};

use serde_json::Value;

use crate::{CniError, ErrorCode};

/// CNI_COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it; fine when it isn't attached.
    Del,
    /// Is the attachment as ADD left it?
    Check,
    /// Remove whatever belongs to no valid attachment.
    Gc,
    /// Could ADD be served now?
    Status,
    /// Which versions of the specification?
    Version,
}

impl Command {
    /// As in CNI_COMMAND.
    pub fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Command {
    type Err = CniError;
    fn from_str(text: &str) -> Result<Self, CniError> {
        let all = [
            Self::Add,
            Self::Del,
            Self::Check,
            Self::Gc,
            Self::Status,
            Self::Version,
        ];
        all.into_iter().find(|c| c.as_str() == text).ok_or_else(|| {
            CniError::new(
                ErrorCode::INVALID_ENVIRONMENT,
                format!("unknown CNI_COMMAND {text:?}"),
            )
        })
    }
}

/// The environment and standard input of one plugin call.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// CNI_COMMAND.
    pub command: Command,
    /// CNI_CONTAINERID; empty for GC, STATUS and VERSION.
    pub container_id: String,
    /// CNI_NETNS; none when the namespace is gone (DEL only) and for GC, STATUS and VERSION.
    pub netns: Option<PathBuf>,
    /// CNI_IFNAME; empty for GC, STATUS and VERSION.
    pub ifname: String,
    /// CNI_ARGS, in order; a plugin looks for the keys that it knows.
    pub args: Vec<(String, String)>,
    /// CNI_PATH: where plugins that this one delegates to are found.
    pub path: Vec<PathBuf>,
    /// Standard input: the plugin's configuration with name, cniVersion, runtimeConfig and prevResult filled in.
    pub config: Value,
}

/// What may go wrong when a plugin is called.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The plugin itself refused.
    #[error("{command} of plugin {plugin} failed")]
    Plugin {
        /// Its type.
        plugin: String,
        /// What it was asked.
        command: Command,
        /// Its answer.
        source: CniError,
    },
    /// No such plugin.
    #[error(
        "plugin {plugin} is neither built in nor an executable in {dirs}; install it there or correct the network configuration"
    )]
    NotFound {
        /// Its type.
        plugin: String,
        /// The directories searched, joined.
        dirs: String,
    },
    /// It didn't end in time and was killed.
    #[error("plugin {plugin} hung: {command} was killed after {seconds:.1} s")]
    Hung {
        /// Its type.
        plugin: String,
        /// What it was asked.
        command: Command,
        /// How long it had.
        seconds: f64,
    },
    /// It could not be run, or its answer could not be read.
    #[error("failed to run plugin `{plugin}` ({what})")]
    Run {
        /// Its path or type.
        plugin: String,
        /// Which step.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It answered something that is not of the specification.
    #[error("plugin {plugin} answered {command} with {what}")]
    Answer {
        /// Its type.
        plugin: String,
        /// What it was asked.
        command: Command,
        /// What is wrong about it, with the beginning of what it printed.
        what: String,
    },
}

impl ExecError {
    /// The code of the specification that fits best, for a plugin that passes on its delegate's failure.
    pub fn code(&self) -> ErrorCode {
        match self {
            ExecError::Plugin { source, .. } => source.code,
            ExecError::NotFound { .. } => ErrorCode::INVALID_CONFIG,
            ExecError::Hung { .. } => ErrorCode::TRY_AGAIN_LATER,
            ExecError::Run { .. } => ErrorCode::IO_FAILURE,
            ExecError::Answer { .. } => ErrorCode::DECODING_FAILURE,
        }
    }
}

/// Something that runs plugins: as processes, or our own ones inside this process.
pub trait PluginExec: Send + Sync {
    /// Whether this one can run plugins of that type.
    fn provides(&self, plugin: &str) -> bool;

    /// Whether this one runs plugins of that type inside this process.
    fn is_builtin(&self, plugin: &str) -> bool;

    /// Runs one call to its end. `delegate` runs the plugins that this one calls itself (IPAM). The answer is the
    /// JSON that the plugin prints: a result for ADD, versions for VERSION, else usually nothing.
    fn exec(
        &self,
        plugin: &str,
        invocation: &Invocation,
        delegate: &dyn PluginExec,
    ) -> Result<Option<Value>, ExecError>;
}
