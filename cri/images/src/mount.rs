//! Mounts snapshots.
//!
//! With the mount API of file descriptors each layer is an option of its own, so hundreds of them are fine; it needs
//! `lowerdir+`, which Linux has since 6.7. Where that is missing, or a path is longer than the 255 characters that an
//! option may have, the old mount call is used with short relative names: links `l/0`, `l/1`, ... beside the upper
//! directory, from there on a thread with a working directory of its own. One page of options holds all 500.
//!
//! For a user namespace the lower layers come through one detached mount of all layers that maps their owners; files
//! that are copied up then belong to the mapped owner, so the upper directory needs no mapping. Before Linux 6.15
//! overlayfs takes no detached mount; there it is attached beside the upper directory while the overlay is made.
//!
//! Overlays are volatile: what containers write in their root file systems isn't synced, not by their fsync either. A
//! power cut ends the container, its snapshot goes, and nobody ever mounts it again, so there is nothing to sync for;
//! and an overlay that isn't volatile syncs the whole file system below it, with everybody's data, when it is unmounted.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use oci_runtime_sys::mount::{clone_tree, detach, map_ids, move_to};
use oci_runtime_sys::user_namespace::user_namespace;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags};

use crate::{FileError, IdMapping, Snapshot};

/// How many mounts on top of each other are undone.
const MAX_STACKED: usize = 16;

/// A snapshot that can't be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The target can't be opened.
    #[error("failed to mount the snapshot `{key}`")]
    Target {
        /// The snapshot.
        key: String,
        /// What failed.
        #[source]
        source: FileError,
    },
    /// The kernel refused the overlay.
    #[error("failed to mount the overlay of snapshot `{key}`{messages}")]
    Overlay {
        /// The snapshot.
        key: String,
        /// What the kernel says about it, after a colon; often nothing.
        messages: String,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The owners can't be mapped.
    #[error(
        "failed to map the owners of the layers of snapshot `{key}`; the file system must support mapped mounts"
    )]
    Mapping {
        /// The snapshot.
        key: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// It can't be unmounted.
    #[error("failed to unmount the snapshot")]
    Unmount(#[source] FileError),
}

/// Mounts a snapshot on `target`, an existing directory, in the mount namespace of the caller. `readonly` makes the
/// mount itself read-only; a snapshot without a writable part always is. Blocks; not for an async thread.
pub fn mount_overlay(snapshot: &Snapshot, target: &Path, readonly: bool) -> Result<(), MountError> {
    let key = || snapshot.key.clone();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target_fd = rustix::fs::open(target, flags, Mode::empty()).map_err(|error| MountError::Target {
        key: key(),
        source: FileError::of("open", target)(error),
    })?;
    let readonly = readonly || snapshot.options.read_only;
    let mapped = match snapshot.options.uid_map.is_empty() && snapshot.options.gid_map.is_empty() {
        true => None,
        false => Some(Mapped::of(snapshot).map_err(|source| MountError::Mapping { key: key(), source })?),
    };
    let mount = |lower: &[PathBuf]| mount_layers(snapshot, lower, target_fd.as_fd(), readonly);
    let mounted = match &mapped {
        None => mount(&snapshot.lower),
        Some(mapped) => mount(&mapped.lower(snapshot, &mapped.by_descriptor())).or_else(|_| {
            let _attached = mapped.attach(snapshot)?;
            mount(&mapped.lower(snapshot, &attach_point(snapshot)))
        }),
    };
    mounted.map_err(|(source, messages)| MountError::Overlay {
        key: key(),
        messages,
        source,
    })
}

/// By descriptors, or by the old call where this kernel or a long path wants that.
fn mount_layers(
    snapshot: &Snapshot,
    lower: &[PathBuf],
    target: BorrowedFd<'_>,
    readonly: bool,
) -> Result<(), Failure> {
    forget_volatile(snapshot)
        .map_err(|error| (error, ": failed to remove an earlier try's mark".to_owned()))?;
    match overlay(snapshot, lower, readonly)? {
        Made::Detached(mount) => move_to(mount.as_fd(), target).map_err(|error| (error, String::new())),
        Made::NeedsOldCall { because } => {
            old_mount(snapshot, lower, target, readonly).map_err(|error| (error, because))
        }
    }
}

/// Before it mounts, overlayfs leaves a mark that this writable part may be incomplete, and refuses to mount it again. A
/// try that fails after that, or a daemon that dies then, must not keep the snapshot from being mounted: nothing was
/// written to it yet.
fn forget_volatile(snapshot: &Snapshot) -> io::Result<()> {
    match fs::remove_dir_all(snapshot.work.join("work/incompat")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Unmounts what is mounted on `target`, lazily; fine when nothing is or when `target` doesn't exist.
pub fn unmount(target: &Path) -> Result<(), MountError> {
    for _ in 0..MAX_STACKED {
        match detach(target) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(code) if code == Errno::INVAL.raw_os_error() || code == Errno::NOENT.raw_os_error()) =>
            {
                return Ok(());
            }
            Err(error) => return Err(MountError::Unmount(FileError::of("unmount", target)(error))),
        }
    }
    Ok(())
}

/// An error and what the kernel says about it.
type Failure = (io::Error, String);

/// What came of making an overlay by descriptors.
enum Made {
    Detached(OwnedFd),
    /// This kernel, or a long path, wants the old mount call.
    NeedsOldCall {
        because: String,
    },
}

fn overlay(snapshot: &Snapshot, lower: &[PathBuf], readonly: bool) -> Result<Made, Failure> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| (errno.into(), String::new()))?;
    match configure(context.as_fd(), snapshot, lower, readonly) {
        Ok(mount) => Ok(Made::Detached(mount)),
        Err(errno) => {
            let messages = messages(context.as_fd());
            let is_long = |path: &PathBuf| path.as_os_str().len() > 255;
            // Before 6.5, the kernel collects options for overlayfs up to a page, and overlayfs refuses them together
            // in the end, saying nothing here.
            let is_old = messages.is_empty()
                || ["Unknown parameter", "Legacy"]
                    .iter()
                    .any(|sign| messages.contains(sign));
            if errno == Errno::INVAL && (is_old || lower.iter().any(is_long) || is_long(&snapshot.upper)) {
                return Ok(Made::NeedsOldCall { because: messages });
            }
            Err((errno.into(), messages))
        }
    }
}

fn configure(
    context: BorrowedFd<'_>,
    snapshot: &Snapshot,
    lower: &[PathBuf],
    readonly: bool,
) -> rustix::io::Result<OwnedFd> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount};
    for dir in lower {
        fsconfig_set_string(context, "lowerdir+", dir)?;
    }
    if !snapshot.options.read_only {
        fsconfig_set_string(context, "upperdir", &snapshot.upper)?;
        fsconfig_set_string(context, "workdir", &snapshot.work)?;
        fsconfig_set_flag(context, "volatile")?;
    }
    if snapshot.user_xattr {
        fsconfig_set_flag(context, "userxattr")?;
    }
    fsconfig_set_string(context, "source", "overlay")?;
    fsconfig_create(context)?;
    let attributes = if readonly {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    };
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// What the kernel says about the last error of a file system being configured, after a colon.
fn messages(context: BorrowedFd<'_>) -> String {
    let mut text = String::new();
    let mut line = [0; 512];
    // The kernel keeps eight messages.
    for _ in 0..8 {
        let Ok(read) = rustix::io::read(context, &mut line) else {
            break;
        };
        let message = String::from_utf8_lossy(&line[..read]);
        text.push_str(": ");
        text.push_str(message.trim_end().trim_start_matches("e "));
    }
    text
}

/// Mounts by mount(2), on a thread whose working directory is its own.
fn old_mount(
    snapshot: &Snapshot,
    lower: &[PathBuf],
    target: BorrowedFd<'_>,
    readonly: bool,
) -> io::Result<()> {
    let dir = snapshot.upper.parent().expect("a directory in the snapshot's");
    let links = dir.join("l");
    match fs::remove_dir_all(&links) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir(&links)?,
    }
    let mut names = Vec::with_capacity(lower.len());
    for (number, path) in lower.iter().enumerate() {
        let name = number.to_string();
        symlink(path, links.join(&name))?;
        names.push(name);
    }
    let mut options = format!("lowerdir={}", names.join(":"));
    if !snapshot.options.read_only {
        options.push_str(",upperdir=../upper,workdir=../work,volatile");
    }
    if snapshot.user_xattr {
        options.push_str(",userxattr");
    }
    let options = CString::new(options).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    let flags = if readonly {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    let mounted = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            const CLONE_FS: i32 = 0x200;
            oci_runtime_sys::clone::unshare(CLONE_FS)?;
            std::env::set_current_dir(&links)?;
            Ok(rustix::mount::mount(
                "overlay", &target, "overlay", flags, &*options,
            )?)
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    });
    // The overlay holds the directories themselves; the names were needed only to find them.
    let _ = fs::remove_dir_all(&links);
    mounted
}

/// All layers, with their owners mapped, in a detached mount.
struct Mapped {
    mount: OwnedFd,
    layers: PathBuf,
}

impl Mapped {
    fn of(snapshot: &Snapshot) -> io::Result<Self> {
        // `layers` and `empty` have one parent: the store's root.
        let dir = snapshot
            .upper
            .parent()
            .and_then(Path::parent)
            .and_then(Path::parent);
        let layers = dir.expect("a snapshot is three levels below the root").to_owned();
        let options = &snapshot.options;
        let namespace = user_namespace(&map_text(&options.uid_map), &map_text(&options.gid_map))?;
        let root = rustix::fs::open(
            &layers,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mount = clone_tree(root.as_fd(), false)?;
        map_ids(mount.as_fd(), namespace.as_fd(), false)?;
        Ok(Self { mount, layers })
    }

    fn by_descriptor(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.mount.as_raw_fd()))
    }

    /// The lower directories as they are found below `at`.
    fn lower(&self, snapshot: &Snapshot, at: &Path) -> Vec<PathBuf> {
        let below = |path: &PathBuf| at.join(path.strip_prefix(&self.layers).unwrap_or(path));
        snapshot.lower.iter().map(below).collect()
    }

    fn attach(&self, snapshot: &Snapshot) -> Result<Attached, Failure> {
        let point = attach_point(snapshot);
        let attach = || -> io::Result<()> {
            remove_attached(&point)?;
            fs::create_dir(&point)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&point, flags, Mode::empty())?;
            move_to(self.mount.as_fd(), fd.as_fd())
        };
        match attach() {
            Ok(()) => Ok(Attached(point)),
            Err(error) => Err((error, ": failed to attach the mapped layers".to_owned())),
        }
    }
}

fn attach_point(snapshot: &Snapshot) -> PathBuf {
    snapshot.upper.with_file_name("mapped")
}

/// Undoes an attached mapping: the overlay has the directories by then.
struct Attached(PathBuf);

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(error) = remove_attached(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "failed to detach mapped layers");
        }
    }
}

/// Removes what an attached mapping of a snapshot left, after a kill for example.
pub(crate) fn remove_attached(point: &Path) -> io::Result<()> {
    match detach(point) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::remove_dir(point)
}

/// The text form of a map, for `/proc/<pid>/uid_map`. The image's ID x is the mount's `host_id` + x, so that inside the
/// user namespace it is x again.
fn map_text(map: &[IdMapping]) -> String {
    map.iter()
        .map(|line| format!("{} {} {}\n", line.container_id, line.host_id, line.length))
        .collect()
}

#[cfg(test)]
mod tests;
