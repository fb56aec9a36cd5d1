//! How a child joins its cgroup by itself.
//!
//! The parent opens the files before it clones; the child then only writes one byte to each, which is safe between
//! clone and exec, and cheap: for a write of `0` to a v1 `tasks` file the kernel moves one thread and need not stop
//! the others. v2 has no such file, so there a clone right into the cgroup is the fast way.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use crate::hierarchy::Version;
use crate::{CgroupError, files};

/// The files to write to, open for as long as this lives (close-on-exec).
#[derive(Debug)]
pub struct AttachFds {
    /// v1 first, v2 last.
    targets: Vec<Target>,
}

#[derive(Debug)]
struct Target {
    version: Version,
    path: PathBuf,
    file: File,
}

/// Which write failed, as plain numbers that a child can send to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachFailure {
    /// Which file, see [`AttachFds::path`].
    pub index: usize,
    /// The kernel's answer.
    pub errno: i32,
}

impl AttachFds {
    pub(crate) fn open(directories: impl Iterator<Item = (Version, PathBuf)>) -> Result<Self, CgroupError> {
        let open = |(version, dir): (Version, PathBuf)| {
            let path = dir.join(if version == Version::V1 {
                "tasks"
            } else {
                "cgroup.procs"
            });
            files::open_for_write(&path).map(|file| Target { version, path, file })
        };
        Ok(Self {
            targets: directories.map(open).collect::<Result<_, _>>()?,
        })
    }

    /// Moves the calling thread, the only one of its process, into every hierarchy. Allocates nothing and takes no
    /// lock: it may be called between clone and exec.
    ///
    /// # Errors
    /// The first write that the kernel refused; earlier ones stay done.
    pub fn join(&self) -> Result<(), AttachFailure> {
        self.join_where(|_| true)
    }

    /// The same for a child that was cloned into the v2 cgroup already.
    ///
    /// # Errors
    /// As for [`AttachFds::join`].
    pub fn join_v1(&self) -> Result<(), AttachFailure> {
        self.join_where(|version| version == Version::V1)
    }

    fn join_where(&self, wanted: impl Fn(Version) -> bool) -> Result<(), AttachFailure> {
        for (index, target) in self.targets.iter().enumerate().filter(|(_, t)| wanted(t.version)) {
            if let Err(error) = (&target.file).write(b"0") {
                return Err(AttachFailure {
                    index,
                    errno: errno(&error),
                });
            }
        }
        Ok(())
    }

    /// The descriptors, for whoever closes them with others.
    #[must_use]
    pub fn into_fds(self) -> Vec<OwnedFd> {
        self.targets.into_iter().map(|t| t.file.into()).collect()
    }

    /// The descriptors, for a child that keeps some open while it closes the rest.
    pub fn raw_fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.targets.iter().map(|t| t.file.as_raw_fd())
    }

    /// The file that a failure's index stands for.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<&Path> {
        self.targets.get(index).map(|t| t.path.as_path())
    }

    /// A failure with the file's name.
    #[must_use]
    pub fn explain(&self, failure: AttachFailure) -> CgroupError {
        let path = self.path(failure.index).unwrap_or(Path::new("cgroup.procs"));
        CgroupError::write(path, "0", io::Error::from_raw_os_error(failure.errno))
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(nix::libc::EIO)
}
