//! `failed to X: why`, in as few words at the place of failure as can be.

use std::fmt::Display;
use std::io;

use crate::{ErrorKind, StepError};

/// Turns the kernel's errors into steps that failed.
pub(crate) trait Context<T> {
    /// `failed to WHAT: errno`.
    fn to<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, StepError>;
}

impl<T> Context<T> for io::Result<T> {
    fn to<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, StepError> {
        self.map_err(|e| StepError::new(kind_of(&e), format!("failed to {}: {e}", what())))
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn to<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, StepError> {
        self.map_err(io::Error::from).to(what)
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.raw_os_error() {
        Some(nix::libc::ENOSYS | nix::libc::EOPNOTSUPP) => ErrorKind::Unsupported,
        _ => ErrorKind::Other,
    }
}
