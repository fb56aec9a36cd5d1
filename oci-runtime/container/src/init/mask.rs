//! Masked and read-only paths.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::libc;
use oci_runtime_sys::mount::{self, Attributes, FsContext};
use oci_runtime_sys::open;

use super::leave_open;
use crate::StepError;
use crate::context::Context as _;
use crate::inside::Inside;

/// Hides paths: files behind the host's /dev/null, folders behind an empty read-only tmpfs.
pub(super) fn mask(root: BorrowedFd<'_>, paths: &[impl AsRef<Path>]) -> Result<(), StepError> {
    let mut null = None;
    let mut empty: Option<OwnedFd> = None;
    for (index, path) in paths.iter().map(AsRef::as_ref).enumerate() {
        if paths[..index].iter().any(|earlier| earlier.as_ref() == path) {
            continue;
        }
        let what = || format!("mask `{}`", path.display());
        let Some(target) = present(root, path)? else {
            continue;
        };
        let is_dir = open::facts(target.as_fd()).to(what)?.is_dir();
        let cover = if is_dir {
            match &empty {
                // One tmpfs is enough: the same nothing, seen at several places.
                Some(first) => mount::clone_tree(first.as_fd(), false).to(what)?,
                None => empty_folder().to(what)?,
            }
        } else {
            if null.is_none() {
                null = Some(host_null()?);
            }
            let null = null.as_ref().map(OwnedFd::as_fd).unwrap_or(root);
            mount::clone_tree(null, false).to(what)?
        };
        mount::move_to(cover.as_fd(), target.as_fd()).to(what)?;
        leave_open(target);
        if is_dir && empty.is_none() {
            empty = Some(cover);
        } else {
            leave_open(cover);
        }
    }
    null.into_iter().chain(empty).for_each(leave_open);
    Ok(())
}

/// Makes paths read-only where they are, with everything below.
pub(super) fn make_readonly(root: BorrowedFd<'_>, paths: &[impl AsRef<Path>]) -> Result<(), StepError> {
    let readonly = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    };
    for path in paths.iter().map(AsRef::as_ref) {
        let what = || format!("make `{}` read-only", path.display());
        let Some(target) = present(root, path)? else {
            continue;
        };
        let copy = mount::clone_tree(target.as_fd(), true).to(what)?;
        mount::set_attributes(copy.as_fd(), readonly, true).to(what)?;
        mount::move_to(copy.as_fd(), target.as_fd()).to(what)?;
        leave_open(copy);
        leave_open(target);
    }
    Ok(())
}

/// What isn't there needs no cover.
fn present(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, StepError> {
    match Inside(root).place(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(StepError::io(
            format!("find `{}` in the container", path.display()),
            e,
        )),
    }
}

/// The host's /dev/null, never the container's, and only if it is the real one.
fn host_null() -> Result<OwnedFd, StepError> {
    let null = open::place(Path::new("/dev/null")).to(|| "open the host's /dev/null")?;
    if !open::facts(null.as_fd())
        .to(|| "look at /dev/null")?
        .is_char_device(1, 3)
    {
        return Err(StepError::other("the host's /dev/null is not the null device"));
    }
    Ok(null)
}

fn empty_folder() -> io::Result<OwnedFd> {
    let tmpfs = FsContext::open("tmpfs")?;
    tmpfs.string("source", "tmpfs")?;
    tmpfs.string("nr_blocks", "1")?;
    tmpfs.string("nr_inodes", "1")?;
    tmpfs.create()?;
    let folder = tmpfs.mount(
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
    )?;
    leave_open(tmpfs.into());
    Ok(folder)
}
