//! The directory that a volume of ours lies in: making it, with a file system in memory on it if need be, and taking all
//! of it away.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::error::PluginError;
use crate::folder::{make_dir, make_parent, open_parent};
use crate::mount::{attach, beneath, detach_all, is_mounted, root_of};
use crate::remove::remove_tree;
use crate::seam::{SetUp, TearDown};

/// What a volume's files are written to.
pub(crate) enum Backing {
    /// A directory of the node's disk.
    Disk,
    /// A file system of its own, made when nothing is mounted yet.
    Own(Box<dyn Fn() -> io::Result<OwnedFd>>),
}

impl Backing {
    /// Makes a volume's directory and fills it with `fill`. A new file system is filled before anybody can see it; then
    /// it is there in one step.
    pub(crate) fn prepare<T>(
        &self,
        request: &SetUp<'_>,
        fill: impl FnOnce(BorrowedFd<'_>) -> Result<T, PluginError>,
    ) -> Result<T, PluginError> {
        let fail = |source| PluginError::kernel("make", request.dir)(source);
        let make = || {
            let parent = make_parent(request.dir)?;
            Ok(make_dir(parent.as_fd(), Path::new(&request.volume.name), 0o777)?.0)
        };
        let dir = make().map_err(fail)?;
        let new = match self {
            Self::Own(new) if !is_mounted(request.dir).map_err(fail)? => new,
            Self::Own(_) => return fill(dir.as_fd()),
            Self::Disk => return fill(dir.as_fd()),
        };
        let fail = |source| PluginError::kernel("mount", request.dir)(source);
        let mount = new().map_err(fail)?;
        let root = root_of(mount.as_fd()).map_err(fail)?;
        let filled = fill(root.as_fd())?;
        attach(mount.as_fd(), dir.as_fd()).map_err(fail)?;
        Ok(filled)
    }
}

/// Takes away a volume that lies in its directory. The notes go first: without them nobody takes what is left for a
/// volume that is ready.
pub(crate) fn tear_down(request: &TearDown<'_>) -> Result<(), PluginError> {
    remove_all(request.notes)?;
    remove_all(request.dir)
}

/// Unmounts everything at and below a path, and removes it; fine when there is nothing.
pub(crate) fn remove_all(path: &Path) -> Result<(), PluginError> {
    let Some(parent) = open_parent(path).map_err(PluginError::kernel("open", path))? else {
        return Ok(());
    };
    let name = path.file_name().unwrap_or(OsStr::new(""));
    let unmount = |path: &Path| {
        detach_all(path)
            .map(drop)
            .map_err(PluginError::kernel("unmount", path))
    };
    unmount(path)?;
    match remove_tree(parent.as_fd(), name, path) {
        Err(PluginError::Mounted(_)) => {}
        other => return other,
    }
    // Somebody mounted something in it, as containers with bidirectional propagation do.
    for mount in beneath(path).map_err(PluginError::kernel("find mounts below", path))? {
        unmount(&mount)?;
    }
    remove_tree(parent.as_fd(), name, path)
}
