//! Opening inside a root that isn't trusted.
//!
//! The kernel resolves the whole path with the given folder as `/`: absolute links and `..` stay inside, magic links
//! (those of `/proc/*/fd`) are refused. What comes back is what was checked; nobody resolves the path again.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// What to open for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading; never blocks, even on a fifo.
    Read,
    /// Only to name the place (`O_PATH`).
    Path,
}

/// Opens `path` as if `root` were `/`. The descriptor closes on exec.
///
/// # Errors
/// The kernel's, as from openat2(2): `NotFound` when nothing is there, `ELOOP` for a magic link.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, access: Access) -> io::Result<OwnedFd> {
    let flags = match access {
        Access::Read => OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY,
        Access::Path => OFlag::O_PATH,
    };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // An absolute path means the same as a relative one here, but an empty one is refused by the kernel.
    let path = if path.as_os_str().is_empty() {
        Path::new("/")
    } else {
        path
    };
    let mut tries = 0;
    let fd = loop {
        match openat2(root.as_raw_fd(), path, how) {
            // A rename somewhere on the way raced with us; the kernel asks to try again.
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) if tries < 100 => tries += 1,
            other => break other?,
        }
    };
    // SAFETY: openat2 has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
