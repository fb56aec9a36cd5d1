//! The OOM killer's count of one cgroup, held open.
//!
//! systemd removes a scope as soon as its last process has ended, so whoever looks only then finds nothing. This file
//! stays open meanwhile, says when its count has changed, and can be read until the cgroup is gone.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use crate::hierarchy::Version;
use crate::{Cgroup, read};

/// The file is a line for each of a handful of counters.
const MOST: usize = 512;

/// A cgroup's count of processes that the OOM killer ended in it (on v2: and below).
#[derive(Debug)]
pub struct OomEvents {
    file: File,
    notifies: bool,
}

impl OomEvents {
    /// The count; `None` once the cgroup is gone.
    #[must_use]
    pub fn kills(&self) -> Option<u64> {
        let mut text = [0; MOST];
        let length = self.file.read_at(&mut text, 0).ok()?;
        read::oom_kills_in(str::from_utf8(text.get(..length)?).ok()?)
    }

    /// Whether poll(2) reports POLLPRI when the count has changed since it was read, and when the cgroup goes. v1's
    /// doesn't.
    #[must_use]
    pub fn notifies(&self) -> bool {
        self.notifies
    }
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Cgroup {
    /// Opens the count; `None` without the memory controller, or when the cgroup isn't there.
    #[must_use]
    pub fn oom_events(&self) -> Option<OomEvents> {
        let (version, path) = read::oom_path(self)?;
        Some(OomEvents {
            file: File::open(path).ok()?,
            notifies: version == Version::V2,
        })
    }
}
