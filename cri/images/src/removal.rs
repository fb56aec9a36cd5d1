//! Removes trees of any depth with few descriptors.
//!
//! A container can leave a directory nested thousands deep, where recursion runs out of descriptors or stack. Here what
//! is deeper than [`MAX_DEPTH`] is moved up into the directory that is being emptied, and has its turn there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::FileError;

const MAX_DEPTH: usize = 32;

/// Removes all that is in `directory`, which only this process works in. What comes in meanwhile may stay.
pub(crate) fn empty(directory: &Path) -> Result<(), FileError> {
    let failed = |errno: Errno| FileError::of("empty", directory)(errno);
    let top = open(fs::CWD, directory.as_os_str().as_encoded_bytes()).map_err(failed)?;
    let mut moved = 0;
    loop {
        let before = moved;
        // Names that are moved up while we look may or may not be seen in this round: so another one follows.
        remove_entries(top.as_fd(), top.as_fd(), 0, &mut moved).map_err(failed)?;
        if moved == before {
            return Ok(());
        }
    }
}

fn open(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    fs::openat(
        parent,
        name,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn remove_entries(
    top: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    depth: usize,
    moved: &mut u64,
) -> rustix::io::Result<()> {
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        match fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        if depth >= MAX_DEPTH {
            let up = format!("deep-{}-{moved}", std::process::id());
            *moved += 1;
            match fs::renameat_with(directory, name, top, &up, fs::RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            }
        }
        let below = match open(directory, name) {
            Err(Errno::NOENT) => continue,
            below => below?,
        };
        remove_entries(top, below.as_fd(), depth + 1, moved)?;
        match fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            // What was moved up left it empty; what came in through a name clash waits for the next round.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let mut at = open(fs::CWD, dir.path().as_os_str().as_encoded_bytes()).unwrap();
        for _ in 0..3000 {
            fs::mkdirat(&at, "deeper", Mode::RWXU).unwrap();
            at = open(at.as_fd(), b"deeper").unwrap();
        }
        drop(at);
        empty(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
