//! Makes a tree of new files durable.
//!
//! syncfs is one call, but it waits for everybody's writes on that file system, which on a busy node can take long. So
//! up to [`MAX_SINGLE`] files are synced one by one: first the writing of all is begun, then each is waited for. The
//! first wait commits the journal for all of them, so the others are short. A large tree takes syncfs.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_runtime_sys::writeback::begin_writeback;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};

use crate::FileError;

/// The most inodes that are synced one by one.
const MAX_SINGLE: u64 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Begin,
    Wait,
}

/// Makes all of `root` durable; `inodes` is how many there are. Blocks.
pub(crate) fn sync_tree(root: &Path, inodes: u64) -> Result<(), FileError> {
    let open = || {
        fs::open(
            root,
            OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    let sync = || -> rustix::io::Result<()> {
        let top = open()?;
        if inodes > MAX_SINGLE {
            return fs::syncfs(&top);
        }
        for pass in [Pass::Begin, Pass::Wait] {
            walk(top.as_fd(), pass, &mut BTreeSet::new())?;
        }
        Ok(())
    };
    sync().map_err(FileError::of("sync", root))
}

/// Files before the directories that name them. The depth is bounded by what was unpacked and looked through before.
fn walk(directory: BorrowedFd<'_>, pass: Pass, seen: &mut BTreeSet<u64>) -> rustix::io::Result<()> {
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                FileType::from_raw_mode(fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            }
            kind => kind,
        };
        let open = |flags| -> rustix::io::Result<OwnedFd> {
            fs::openat(
                directory,
                name,
                flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        match kind {
            FileType::Directory => walk(open(OFlags::DIRECTORY)?.as_fd(), pass, seen)?,
            FileType::RegularFile if seen.insert(entry.ino()) => {
                let file = open(OFlags::RDONLY)?;
                match pass {
                    // No promise is needed here, so no error counts either.
                    Pass::Begin => drop(begin_writeback(file.as_fd())),
                    Pass::Wait => fs::fsync(&file)?,
                }
            }
            // Links and devices are in their directory and their inode, which go with the directory.
            _ => {}
        }
    }
    match pass {
        Pass::Begin => Ok(()),
        Pass::Wait => fs::fsync(directory),
    }
}
