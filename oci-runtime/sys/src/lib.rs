//! Syscall wrappers that nix lacks; the only crate with `unsafe`.
//!
//! Everything takes and returns owned descriptors and plain values, sets close-on-exec, and reports the kernel's
//! errno as an [`std::io::Error`]. One module per family: processes ([`process`], [`clone`]), the mount API of file
//! descriptors ([`mount`]), path resolution inside an untrusted root ([`open`]), terminals, capabilities, seccomp,
//! and descriptors sent over sockets ([`socket`]).
#![allow(unsafe_code, reason = "the one crate for it")]

pub mod bpf;
pub mod caps;
pub mod clone;
pub mod entry;
pub mod footprint;
pub mod in_root;
pub mod mount;
pub mod net;
pub mod open;
pub mod process;
pub mod sched;
pub mod seccomp;
pub mod socket;
pub mod stage;
pub mod tty;
pub mod user_namespace;
pub mod writeback;

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A path for the kernel.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

pub(crate) fn c_str(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A syscall's result: -1 is errno.
pub(crate) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A syscall's new descriptor.
pub(crate) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
