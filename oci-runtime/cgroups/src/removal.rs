//! Removing a tree of cgroups, however deep and wide it is.
//!
//! A container with a cgroup namespace of its own can nest cgroups until no path reaches the innermost, so the walk goes
//! by directory descriptors: down to a directory without others, and back up by `..`, removing on the way. Only one
//! descriptor is open at a time, and nothing is remembered but the names on the way down.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, statat, unlinkat};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes the directory and the directories below it; files are the kernel's, which go with their directory. Absent is
/// fine.
///
/// What was removed stays so when the time is over or a directory can't be removed: the next walk has less to do.
pub(crate) fn remove(top: &Path, within: Duration) -> io::Result<()> {
    let deadline = Instant::now() + within;
    let mut here = match open(top, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        opened => opened?,
    };
    let mut names: Vec<CString> = Vec::new();
    loop {
        // Down by the first directory that isn't empty; those that are, go at once.
        if let Some((name, below)) = clear(&here, deadline)? {
            names.push(name);
            here = below;
            continue;
        }
        let Some(name) = names.pop() else { break };
        here = openat(&here, c"..", DIRECTORY, Mode::empty())?;
        remove_one(&here, &name)?;
    }
    match std::fs::remove_dir(top) {
        Err(error) if !crate::files::is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Removes the empty directories in one, up to the first that isn't.
fn clear(here: &OwnedFd, deadline: Instant) -> io::Result<Option<(CString, OwnedFd)>> {
    for entry in Dir::read_from(here)? {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." || !is_directory(here, name, entry.file_type()) {
            continue;
        }
        match remove_one(here, name) {
            Ok(()) => {}
            // Busy is also the kernel's word for a cgroup that has cgroups.
            Err(Errno::BUSY | Errno::NOTEMPTY) => match openat(here, name, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT | Errno::NODEV) => {}
                Ok(below) if has_directory(&below)? => return Ok(Some((name.to_owned(), below))),
                Ok(_) => return Err(Errno::BUSY.into()),
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

fn has_directory(here: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(here)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." && is_directory(here, name, entry.file_type()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_directory(here: &OwnedFd, name: &CStr, said: FileType) -> bool {
    match said {
        FileType::Unknown => statat(here, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        said => said == FileType::Directory,
    }
}

fn remove_one(here: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match unlinkat(here, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::mkdirat;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_no_path_reaches_is_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let top = tmp.path().join("top");
        fs::create_dir_all(top.join("beside/below")).unwrap();
        let name = CString::new(vec![b'x'; 200]).unwrap();
        let mut here = open(&top, DIRECTORY, Mode::empty()).unwrap();
        // 20 KiB of path, five times what a path may have.
        for _ in 0..100 {
            mkdirat(&here, name.as_c_str(), Mode::RWXU).unwrap();
            mkdirat(&here, c"sibling", Mode::RWXU).unwrap();
            here = openat(&here, name.as_c_str(), DIRECTORY, Mode::empty()).unwrap();
        }
        remove(&top, LONG).unwrap();
        assert!(!top.exists());
        remove(&top, LONG).unwrap();
    }

    #[test]
    fn what_isn_t_a_directory_is_not_followed_and_time_is_bounded() {
        let tmp = tempfile::tempdir().unwrap();
        let (top, outside) = (tmp.path().join("top"), tmp.path().join("outside"));
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::create_dir_all(outside.join("kept")).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("a/link")).unwrap();
        assert_eq!(
            remove(&top, Duration::ZERO).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        assert!(top.join("a/b").exists());
        // A file that isn't the kernel's stays, and so does its directory: busy, as far as cgroups go.
        remove(&top, LONG).unwrap_err();
        assert!(outside.join("kept").exists() && !top.join("a/b").exists());
    }
}
