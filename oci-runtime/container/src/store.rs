//! Containers on disk: a folder for each, below the runtime's root.
//!
//! ```text
//!   ROOT/ID/state.json   the record, replaced in one step
//!   ROOT/ID/init.lock    locked by init until it executes its command: that is how `created` is told from `running`
//!   ROOT/ID/start.sock   where init waits for start
//!   ROOT/ID/seccomp.bpf  the compiled profile, for exec
//! ```
//!
//! A folder without a record is what a crash between the first two steps left: it has nothing but itself.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_runtime_sys::open;

use crate::StoreError;
use crate::seccomp::Filter;
use crate::state::Record;

const RECORD: &str = "state.json";
const LOCK: &str = "init.lock";
const START: &str = "start.sock";
const FILTER: &str = "seccomp.bpf";
/// A record is a few KiB; with a huge environment a few hundred.
const MAX_RECORD: usize = 16 << 20;
/// Most records and filters are smaller.
const ROOM: usize = 8 << 10;

/// One container's folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    id: String,
    path: PathBuf,
}

impl Folder {
    /// Names it; nothing is touched.
    pub(crate) fn new(root: &Path, id: &str) -> Result<Self, StoreError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() || id.len() > 1024 || id.starts_with('.') || !id.chars().all(allowed) {
            return Err(StoreError::InvalidId { id: id.to_owned() });
        }
        Ok(Self {
            id: id.to_owned(),
            path: root.join(id),
        })
    }

    /// Makes it; two at once: one wins.
    pub(crate) fn create(&self) -> Result<(), StoreError> {
        let builder = |recursive: bool| {
            let mut builder = DirBuilder::new();
            builder.mode(0o711).recursive(recursive);
            builder
        };
        let mut made = builder(false).create(&self.path);
        if made.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            let root = self.path.parent().unwrap_or(Path::new("/"));
            DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(root)
                .map_err(StoreError::io("make the folder", root))?;
            made = builder(false).create(&self.path);
        }
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(StoreError::AlreadyExists { id: self.id.clone() })
            }
            other => other.map_err(StoreError::io("make the folder", &self.path)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn start_socket(&self) -> PathBuf {
        self.path.join(START)
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.path.join(RECORD);
        let bytes = serde_json::to_vec(record).map_err(|source| StoreError::Malformed {
            path: path.clone(),
            source,
        })?;
        replace(&path, &bytes).map_err(StoreError::io("write", &path))
    }

    pub(crate) fn read(&self) -> Result<Record, StoreError> {
        let path = self.path.join(RECORD);
        let bytes = match open::read_stored(&path, ROOM, MAX_RECORD) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::NotFound { id: self.id.clone() });
            }
            other => other.map_err(StoreError::io("read", &path))?,
        };
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Malformed { path, source })
    }

    /// Makes the lock's file and locks it, for init to inherit.
    pub(crate) fn lock(&self) -> Result<File, StoreError> {
        let path = self.path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("make", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(StoreError::AlreadyExists { id: self.id.clone() }),
            Err(TryLockError::Error(e)) => Err(StoreError::io("lock", &path)(e)),
        }
    }

    /// Whether init has not executed its command yet.
    pub(crate) fn is_locked(&self) -> bool {
        match File::open(self.path.join(LOCK)) {
            Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        }
    }

    /// Waits until init has executed its command or ended; whether it did in that time.
    pub(crate) fn unlocked_within(&self, limit: Duration) -> bool {
        const PAUSE: Duration = Duration::from_micros(100);
        let tries = limit.as_micros() / PAUSE.as_micros();
        for _ in 0..tries {
            if !self.is_locked() {
                return true;
            }
            std::thread::sleep(PAUSE);
        }
        false
    }

    pub(crate) fn write_filter(&self, filter: &Filter) -> Result<(), StoreError> {
        let path = self.path.join(FILTER);
        let mut bytes = filter.flags.to_le_bytes().to_vec();
        bytes.extend_from_slice(&filter.program);
        fs::write(&path, bytes).map_err(StoreError::io("write", &path))
    }

    pub(crate) fn read_filter(&self) -> Result<Filter, StoreError> {
        let path = self.path.join(FILTER);
        let bytes = open::read_stored(&path, ROOM, 1 << 20).map_err(StoreError::io("read", &path))?;
        match bytes.split_first_chunk::<4>() {
            Some((flags, program)) if !program.is_empty() && program.len().is_multiple_of(8) => Ok(Filter {
                flags: u32::from_le_bytes(*flags),
                program: program.to_vec(),
            }),
            _ => Err(StoreError::io("read", &path)(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Removes it. The record goes last, so that a crash in between leaves something that can be deleted again.
    pub(crate) fn remove(&self) -> Result<(), StoreError> {
        for name in [START, LOCK, FILTER, RECORD] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &path)(e));
                }
                _ => {}
            }
        }
        match fs::remove_dir(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            // A temporary file of a crash.
            Err(_) => fs::remove_dir_all(&self.path).map_err(StoreError::io("remove", &self.path)),
            Ok(()) => Ok(()),
        }
    }
}

/// The names of all containers, sorted.
pub(crate) fn names(root: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(StoreError::io("list", root))?,
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Writes beside the file, then puts it in place in one step.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o644)
        .open(&temporary)?;
    let done = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "../x", "ä", &"x".repeat(1025)] {
            assert!(Folder::new(Path::new("/r"), bad).is_err(), "{bad}");
        }
        assert!(Folder::new(Path::new("/r"), "a_B+1-2.3").is_ok());
    }

    #[test]
    fn the_lock_is_seen_while_its_holder_lives() {
        let tmp = tempfile::tempdir().unwrap();
        let folder = Folder::new(&tmp.path().join("root"), "c").unwrap();
        folder.create().unwrap();
        assert!(matches!(folder.create(), Err(StoreError::AlreadyExists { .. })));
        assert!(!folder.is_locked());
        let lock = folder.lock().unwrap();
        assert!(folder.is_locked());
        drop(lock);
        assert!(!folder.is_locked());
        folder.remove().unwrap();
        assert!(!folder.path().exists());
    }
}
