//! A walk through a tree that somebody else fills: by descriptors, never through a symbolic link, never into another
//! mount, and bounded. A directory is visited after what it holds.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use oci_runtime_sys::open::RESOLVE_NO_XDEV;
use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use crate::folder::open_dir;

/// How far a walk goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Directories inside of each other, which are all open at once.
    pub(crate) depth: usize,
    /// Entries altogether.
    pub(crate) entries: u64,
}

/// Whether a walk saw everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// All of it.
    All,
    /// Something lies deeper, or there is more.
    Part,
}

/// Walks through everything below a directory, not itself; `visit` gets each entry's directory and name.
///
/// What disappears while it is walked is no error.
pub(crate) fn walk(
    root: BorrowedFd<'_>,
    bounds: Bounds,
    visit: &mut dyn FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
) -> io::Result<Seen> {
    let mut seen = Seen::All;
    let mut left = bounds.entries;
    let mut stack: Vec<(Dir, CString)> = vec![(Dir::read_from(root)?, CString::default())];
    while let Some((dir, _)) = stack.last_mut() {
        let Some(entry) = dir.read() else {
            let Some((_, name)) = stack.pop() else { break };
            if let Some((above, _)) = stack.last() {
                gone_is_fine(visit(above.fd()?, &name))?;
            }
            continue;
        };
        let entry = match entry {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if left == 0 {
            return Ok(Seen::Part);
        }
        left -= 1;
        let here = dir.fd()?;
        if !is_dir(here, name, entry.file_type())? {
            gone_is_fine(visit(here, name))?;
            continue;
        }
        let child = open_dir(
            here,
            Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())),
            RESOLVE_NO_XDEV,
        );
        let (child, name) = (child, name.to_owned());
        match child {
            Ok(_) if stack.len() > bounds.depth => seen = Seen::Part,
            Ok(child) => stack.push((Dir::new(child)?, name)),
            Err(error) => match Errno::from_io_error(&error) {
                // Another mount, or no directory any more.
                Some(Errno::XDEV | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                _ => return Err(error),
            },
        }
    }
    Ok(seen)
}

fn is_dir(here: BorrowedFd<'_>, name: &CStr, told: FileType) -> io::Result<bool> {
    if told != FileType::Unknown {
        return Ok(told == FileType::Directory);
    }
    match rustix::fs::statat(here.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
