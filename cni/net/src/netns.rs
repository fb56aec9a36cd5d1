//! Network namespaces that are kept by a mount of their file (a "pin"), and work inside of them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};

/// A namespace can't be made, entered or removed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} the network namespace `{}`", path.display())]
pub struct NetnsError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl NetnsError {
    /// Whether the path holds no namespace (any more).
    pub fn is_absent(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound || self.source.raw_os_error() == Some(nix::libc::EINVAL)
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetnsError {
    let path = path.to_owned();
    move |source| NetnsError { what, path, source }
}

/// The namespace of the calling thread; a process's other threads may be elsewhere.
const OWN: &str = "/proc/thread-self/ns/net";

/// Runs `work` inside the network namespace at `path`, on a thread that exits afterwards.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let namespace = File::open(path).map_err(failed("open", path))?;
    on_thread(path, move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|e| failed("enter", path)(e.into()))?;
        Ok(work())
    })
}

/// Runs `work` in a new network namespace that ends with it, unless `work` keeps it.
pub fn make_netns<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let path = Path::new(OWN);
    on_thread(path, move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("make", path)(e.into()))?;
        Ok(work())
    })
}

fn on_thread<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(failed("start a thread for", path))?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Makes a new network namespace and pins it at `path` (a file that is made, as are the directories above it). It
/// stays until [`unpin_netns`], whatever becomes of this process. A pin that is there already is replaced.
pub fn pin_netns(path: &Path) -> Result<(), NetnsError> {
    unpin_netns(path)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make the directory of", path))?;
    }
    File::create(path).map_err(failed("make the file of", path))?;
    make_netns(|| {
        mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| failed("pin", path)(e.into()))
    })
    .and_then(|pinned| pinned)
    .inspect_err(|_| {
        // The caller hears why pinning failed; an empty file is harmless and replaced next time.
        let _ = fs::remove_file(path);
    })
}

/// Removes a pin; the namespace ends when nothing else is in it. Fine when it is gone.
pub fn unpin_netns(path: &Path) -> Result<(), NetnsError> {
    // More than one mount may lie on it after a crash between two tries.
    for _ in 0..16 {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(error) => return Err(failed("unpin", path)(error.into())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove the file of", path)(error))
        }
        _ => Ok(()),
    }
}

/// Whether `path` holds the network namespace of the calling thread.
pub fn is_own_netns(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    matches!((identity(path), identity(Path::new(OWN))), (Ok(a), Ok(b)) if a == b)
}

/// Whether `path` holds a namespace's file: a pin whose mount is gone is an ordinary one.
pub fn is_netns(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}
