//! A part of a volume, mounted by itself: `subPath`.
//!
//! Containers write to volumes while the path is looked up, so nothing is resolved twice: the kernel finds the place
//! beneath the volume's root and hands out a descriptor, and what that points to is mounted at
//! `pods/UID/volume-subpaths/VOLUME/CONTAINER/INDEX`, where no container gets. Links within the volume are followed,
//! those that lead out of it are refused.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_runtime_sys::open::{
    Facts, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, facts, is_mount_root, openat2, place,
};
use rustix::fs::{AtFlags, Mode, OFlags, unlinkat};
use rustix::io::Errno;

use crate::folder::{BENEATH, entries, make_dirs, open_dir, open_place, set_mode};
use crate::layout::{PODS, SUB_PATHS};
use crate::mount::{bind, detach_all, make_target};
use crate::remove::remove_empty;

/// Entries of a directory of ours.
const MOST: usize = 100_000;

/// Opens a part of a volume, and makes it, a directory, where there is nothing yet.
pub(crate) fn open(volume: &Path, sub_path: &str) -> io::Result<OwnedFd> {
    let root = place(volume)?;
    match find(root.as_fd(), Path::new(sub_path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(root.as_fd(), Path::new(sub_path)),
        other => other,
    }
}

fn find(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH.bits().cast_signed();
    openat2(root, path, flags, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
}

/// Makes what is missing of a path: from the last directory that there is, step by step, none of which is a link. The
/// last one gets the mode of the volume's root, so that who may write there may write here.
fn make(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let mode = facts(root)?.mode & 0o7777;
    let parts: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let mut at = root.try_clone_to_owned()?;
    let mut known = 0;
    // Of more parts than these a path can't be made.
    for length in (1..parts.len()).rev() {
        let prefix: PathBuf = parts[..length].iter().collect();
        match find(root, &prefix) {
            Ok(found) => {
                (at, known) = (found, length);
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    for name in &parts[known..] {
        match rustix::fs::mkdirat(&at, *name, Mode::from_raw_mode(mode & 0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        at = openat2(
            at.as_fd(),
            Path::new(name),
            flags.bits().cast_signed(),
            0,
            BENEATH,
        )?;
    }
    // Without the sticky bit, which is the volume's own.
    set_mode(at.as_fd(), mode & 0o2777)?;
    Ok(at)
}

/// Where a part of a volume is mounted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) uid: &'a str,
    pub(crate) volume: &'a str,
    pub(crate) container: &'a str,
    pub(crate) index: usize,
}

/// Mounts what a descriptor points to at a target below the kubelet's root, whose path is `shown`; what is mounted there
/// already stays if it is the same.
pub(crate) fn mount(
    root: BorrowedFd<'_>,
    shown: &Path,
    target: Target<'_>,
    source: BorrowedFd<'_>,
) -> io::Result<PathBuf> {
    let name = target.index.to_string();
    let dirs = [PODS, target.uid, SUB_PATHS, target.volume, target.container];
    let parent = make_dirs(root, &dirs, 0o750)?;
    let mut path = shown.to_owned();
    path.extend(dirs);
    path.push(&name);
    let wanted = facts(source)?;
    match open_place(parent.as_fd(), Path::new(&name), 0) {
        Ok(there) if is_mount_root(there.as_fd())? => {
            if same(facts(there.as_fd())?, wanted) {
                return Ok(path);
            }
            drop(there);
            detach_all(&path)?;
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let at = make_target(parent.as_fd(), OsStr::new(&name), wanted.is_dir())?;
    bind(source, at.as_fd())?;
    Ok(path)
}

fn same(a: Facts, b: Facts) -> bool {
    (a.dev, a.inode) == (b.dev, b.inode)
}

/// Unmounts the parts of volumes that a container mounted, or all containers of a pod, and removes their targets.
pub(crate) fn clean(
    root: BorrowedFd<'_>,
    shown: &Path,
    uid: &str,
    container: Option<&str>,
) -> io::Result<()> {
    let below: PathBuf = [PODS, uid, SUB_PATHS].iter().collect();
    let pod: PathBuf = [PODS, uid].iter().collect();
    let top = match open_dir(root, &below, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for volume in entries(top.as_fd(), MOST)? {
        let dir = open_dir(top.as_fd(), Path::new(&volume.name), 0)?;
        for found in entries(dir.as_fd(), MOST)? {
            if container.is_some_and(|container| found.name != container) {
                continue;
            }
            let targets = open_dir(dir.as_fd(), Path::new(&found.name), 0)?;
            let path = shown.join(&below).join(&volume.name).join(&found.name);
            for target in entries(targets.as_fd(), MOST)? {
                detach_all(&path.join(&target.name))?;
                remove_target(targets.as_fd(), &target.name)?;
            }
            remove_empty(dir.as_fd(), &found.name)?;
        }
        remove_empty(top.as_fd(), &volume.name)?;
    }
    remove_empty(open_dir(root, &pod, 0)?.as_fd(), OsStr::new(SUB_PATHS))?;
    Ok(())
}

/// A target is an empty file or an empty directory.
fn remove_target(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?),
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}
