//! What may go wrong in a plugin, and the code of the specification for it.

use std::{error::Error, io, path::PathBuf};

use cni_net::{NetlinkError, NetnsError, SysctlError};
use cni_types::{CniError, ErrorCode, ExecError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginError {
    #[error(transparent)]
    Cni(#[from] CniError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Delegate(#[from] ExecError),
    #[error("failed to {what} `{}`", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl PluginError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        PluginError::Cni(CniError::new(code, message))
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        PluginError::new(ErrorCode::INVALID_CONFIG, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        PluginError::new(ErrorCode::INTERNAL, message)
    }

    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| PluginError::Io { what, path, source }
    }

    pub(crate) fn into_cni(self) -> CniError {
        let code = match &self {
            PluginError::Cni(_) => ErrorCode::INTERNAL,
            PluginError::Delegate(error) => error.code(),
            PluginError::Io { .. } => ErrorCode::IO_FAILURE,
            PluginError::Netns(error) if error.is_absent() => ErrorCode::UNKNOWN_CONTAINER,
            _ => ErrorCode::INTERNAL,
        };
        match self {
            PluginError::Cni(error) => error,
            other => {
                let error = CniError::new(code, other.to_string());
                match other.source() {
                    Some(source) => error.because(source),
                    None => error,
                }
            }
        }
    }
}
