//! A volume's files for a pod's `fsGroup`: the group owns them and may read and write (or only read) them, and what is
//! made in a directory gets its group.
//!
//! The root is changed last, so that `OnRootMismatch` never takes a half-changed volume for a changed one.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use oci_runtime_sys::open::{RESOLVE_NO_XDEV, facts};
use rustix::fs::{FileType, fstat};

use crate::error::PluginError;
use crate::folder::{open_place, set_mode, set_owner};
use crate::walk::{Bounds, Seen, walk};

/// Deeper trees, and larger ones, are refused.
const BOUNDS: Bounds = Bounds {
    depth: 256,
    entries: 100_000_000,
};

/// How a group gets a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupOwnership {
    /// The group.
    pub group: u32,
    /// Whether it may only read.
    pub read_only: bool,
    /// Whether a volume whose root is right already is left as it is (`OnRootMismatch`).
    pub on_root_mismatch: bool,
}

impl GroupOwnership {
    /// The mode that a file or directory of that mode gets.
    pub(crate) fn mode(self, mode: u32, is_dir: bool) -> u32 {
        let bits = if self.read_only { 0o440 } else { 0o660 };
        mode | bits | if is_dir { 0o2110 } else { 0 }
    }

    fn fits(self, mode: u32, group: u32) -> bool {
        let bits = 0o2110 | if self.read_only { 0o440 } else { 0o660 };
        group == self.group && mode & bits == bits
    }

    /// Gives a whole directory to the group. Symbolic links aren't followed, other mounts aren't entered. Ends early,
    /// with an error, once `stop` is set. `shown` is the directory's path for errors.
    ///
    /// # Errors
    /// The kernel's, or that there is too much.
    pub fn apply(self, dir: BorrowedFd<'_>, stop: &AtomicBool, shown: &Path) -> Result<(), PluginError> {
        let fail = PluginError::kernel("set the group in", shown);
        let root = match fstat(dir) {
            Ok(root) => root,
            Err(error) => return Err(fail(error.into())),
        };
        if self.on_root_mismatch && self.fits(root.st_mode, root.st_gid) {
            return Ok(());
        }
        let mut stopped = false;
        let walked = walk(dir, BOUNDS, &mut |parent, name| {
            stopped = stop.load(Ordering::Relaxed);
            if stopped {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.change(parent, name)
        });
        if stopped {
            return Err(PluginError::Unfinished(shown.to_owned()));
        }
        let changed = match walked {
            Ok(Seen::Part) => Err(io::Error::other(
                "it has too many files, or directories nested too deeply",
            )),
            Ok(Seen::All) => set_owner(dir, None, Some(self.group))
                .and_then(|()| set_mode(dir, self.mode(root.st_mode & 0o7777, true))),
            Err(error) => Err(error),
        };
        changed.map_err(fail)
    }

    fn change(self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let name = Path::new(OsStr::from_bytes(name.to_bytes()));
        let place = match open_place(parent, name, RESOLVE_NO_XDEV) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => return Ok(()),
            other => other?,
        };
        let found = facts(place.as_fd())?;
        // This takes setuid and setgid bits away from files, so the mode comes second.
        set_owner(place.as_fd(), None, Some(self.group))?;
        if found.is_symlink() {
            return Ok(());
        }
        let is_dir = FileType::from_raw_mode(found.mode) == FileType::Directory;
        set_mode(place.as_fd(), self.mode(found.mode & 0o7777, is_dir))
    }
}

#[cfg(test)]
mod tests;
