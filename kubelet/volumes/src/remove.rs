//! Removing a tree that somebody else filled: by descriptors, never through a symbolic link, never into another mount,
//! however deep it is and however many entries it has.
//!
//! Only a few directories are open at a time. A directory that lies deeper is first moved up to the tree's top: it is to
//! go away anyway, and so no path ever gets too long and no stack too deep.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use oci_runtime_sys::open::RESOLVE_NO_XDEV;
use rustix::fs::{AtFlags, Dir, RenameFlags};
use rustix::io::Errno;

use crate::error::PluginError;
use crate::folder::open_dir;

/// Directories that are open at a time.
const DEEPEST: usize = 32;
/// Entries that one call removes.
const MOST: u64 = 4_000_000;

struct Frame {
    dir: OwnedFd,
    name: OsString,
}

/// Removes the entry `name` of the directory `at` with all that it holds; that there is none is fine. `shown` is its path
/// for errors.
pub(crate) fn remove_tree(at: BorrowedFd<'_>, name: &OsStr, shown: &Path) -> Result<(), PluginError> {
    let mut left = MOST;
    let fail = |error: Errno, path: PathBuf| match error {
        Errno::XDEV | Errno::BUSY => PluginError::Mounted(path),
        error => PluginError::kernel("remove", &path)(error.into()),
    };
    let Some(top) = remove_or_open(at, name).map_err(|error| fail(error, shown.to_owned()))? else {
        return Ok(());
    };
    let mut stack = vec![Frame {
        dir: top,
        name: name.to_owned(),
    }];
    let mut moved = 0_u64;
    while let Some(frame) = stack.last() {
        let path = |child: &OsStr| {
            let above: PathBuf = stack.iter().skip(1).map(|frame| frame.name.as_os_str()).collect();
            shown.join(above).join(child)
        };
        match empty(&frame.dir, &mut left) {
            Err((error, child)) => return Err(fail(error, path(&child))),
            Ok(Emptied::Budget) => return Err(PluginError::Unfinished(shown.to_owned())),
            Ok(Emptied::All) => {
                let Some(done) = stack.pop() else { break };
                let parent = stack.last().map_or(at, |frame| frame.dir.as_fd());
                let removed = rustix::fs::unlinkat(parent, &*done.name, AtFlags::REMOVEDIR);
                // Somebody who still writes to it: its new entries are found in the next round.
                match removed {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::NOTEMPTY | Errno::EXIST) if left > 0 => {
                        left -= 1;
                        stack.push(done);
                    }
                    Err(error) => return Err(fail(error, shown.to_owned())),
                }
            }
            Ok(Emptied::Until(child, dir)) => {
                if stack.len() < DEEPEST {
                    stack.push(Frame { dir, name: child });
                    continue;
                }
                moved += 1;
                let up = move_up(&frame.dir, &child, &stack[0].dir, moved);
                up.map_err(|error| fail(error, path(&child)))?;
            }
        }
    }
    Ok(())
}

/// Removes what is no directory, or an empty one; opens what is left.
fn remove_or_open(at: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OwnedFd>, Errno> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(None),
        // A directory, or one in which nothing may be removed.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    match open_dir(at, Path::new(name), RESOLVE_NO_XDEV) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) => match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
            Errno::NOENT => Ok(None),
            error => Err(error),
        },
    }
}

enum Emptied {
    /// Nothing is left in it.
    All,
    /// A directory in it must be emptied first.
    Until(OsString, OwnedFd),
    /// Enough was removed for one call.
    Budget,
}

/// Removes a directory's entries up to the first directory with something in it.
fn empty(dir: &OwnedFd, left: &mut u64) -> Result<Emptied, (Errno, OsString)> {
    let here = |error: Errno| (error, OsString::new());
    for entry in Dir::read_from(dir).map_err(here)? {
        let entry = entry.map_err(here)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if *left == 0 {
            return Ok(Emptied::Budget);
        }
        *left -= 1;
        let child = remove_or_open(dir.as_fd(), name).map_err(|error| (error, name.to_owned()))?;
        let Some(child) = child else { continue };
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Emptied::Until(name.to_owned(), child)),
            Err(error) => return Err((error, name.to_owned())),
        }
    }
    Ok(Emptied::All)
}

/// Moves a directory up to the top under a name that nothing has.
fn move_up(from: &OwnedFd, name: &OsStr, top: &OwnedFd, number: u64) -> Result<(), Errno> {
    let mut last = Errno::EXIST;
    for attempt in 0..1000 {
        let new = format!("..gone-{number}-{attempt}");
        match rustix::fs::renameat_with(from, name, top, &new, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => last = Errno::EXIST,
            Err(Errno::NOENT) => return Ok(()),
            other => return other,
        }
    }
    Err(last)
}

/// Removes an empty directory; one that isn't empty, or isn't there, is left.
pub(crate) fn remove_empty(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
