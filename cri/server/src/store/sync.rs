//! Brings records to the disk behind the callers' backs: one thread that flushes what was written lately.
//!
//! It lets a quarter of a second pass first. A flush takes the file system's journal for several milliseconds, for which
//! whoever removes a file waits; so what lives shortly is never flushed, and what changes often is flushed once.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a change may wait for others.
const PATIENCE: Duration = Duration::from_millis(250);

/// Takes paths of files that were renamed into place.
#[derive(Debug, Clone)]
pub(crate) struct Syncer {
    shared: Arc<Shared>,
    _end: Arc<End>,
}

#[derive(Debug, Default)]
struct Shared {
    // No larger than the number of records: a path is in it once, however often it was written.
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    paths: BTreeSet<PathBuf>,
    ended: bool,
}

/// Ends the thread when the last handle goes.
#[derive(Debug)]
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        lock(&self.0.waiting).ended = true;
        self.0.changed.notify_one();
    }
}

fn lock(mutex: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Syncer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("record-sync".to_owned())
            .stack_size(128 << 10)
            .spawn(move || run(&theirs))?;
        let end = Arc::new(End(shared.clone()));
        Ok(Self { shared, _end: end })
    }

    /// Has the file flushed soon, and the folders that lead to it.
    pub(super) fn flush_soon(&self, path: PathBuf) {
        lock(&self.shared.waiting).paths.insert(path);
        self.shared.changed.notify_one();
    }
}

fn run(shared: &Shared) {
    loop {
        let mut waiting = lock(&shared.waiting);
        while waiting.paths.is_empty() && !waiting.ended {
            waiting = shared
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if !waiting.ended {
            drop(waiting);
            std::thread::sleep(PATIENCE);
            waiting = lock(&shared.waiting);
        }
        let paths = std::mem::take(&mut waiting.paths);
        let ended = waiting.ended;
        drop(waiting);
        flush_all(&paths);
        if ended {
            return;
        }
    }
}

/// The files, then their folders (which name them), then the folders above (which name new folders).
fn flush_all(paths: &BTreeSet<PathBuf>) {
    for level in 0..3 {
        let at_level: BTreeSet<&Path> = paths
            .iter()
            .filter(|path| path.exists())
            .filter_map(|path| path.ancestors().nth(level))
            .collect();
        at_level.into_iter().for_each(flush);
    }
}

fn flush(path: &Path) {
    match File::open(path).and_then(|file| file.sync_all()) {
        // Removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "failed to flush a record; it may be lost in a power cut");
        }
        Ok(()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_no_trouble_and_the_thread_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        std::fs::write(&path, "x").unwrap();
        let syncer = Syncer::start().unwrap();
        syncer.flush_soon(path);
        syncer.flush_soon(dir.path().join("gone"));
        let weak = Arc::downgrade(&syncer.shared);
        drop(syncer);
        // Bounded: a second is far more than two flushes take.
        for _ in 0..100 {
            if weak.strong_count() == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the thread still runs");
    }
}
