//! The directories of a store, and the few ways in which files come and go in them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::digest::Digest;
use crate::step::Steps;
use crate::{FileError, removal};

/// The directories of one store.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    /// When the store was opened: names of different openings differ.
    opened: u128,
    counter: AtomicU64,
    /// How often the emptying of the trash was asked for since somebody began with it.
    emptying: AtomicU64,
    /// Told about each step.
    pub(crate) steps: Steps,
}

impl Disk {
    /// Makes the directories that are missing.
    pub(crate) fn open(root: PathBuf, steps: Steps) -> Result<Self, FileError> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let opened = since.map_or(0, |since| since.as_nanos());
        let disk = Self {
            root,
            opened,
            counter: AtomicU64::new(0),
            emptying: AtomicU64::new(0),
            steps,
        };
        fs::create_dir_all(&disk.root).map_err(FileError::of("create", &disk.root))?;
        for dir in [
            disk.blobs(),
            disk.ingest(),
            disk.layers(),
            disk.images(),
            disk.snapshots(),
            disk.trash(),
            disk.empty(),
        ] {
            fs::create_dir_all(&dir).map_err(FileError::of("create", &dir))?;
        }
        // Layers belong to containers' users; the daemon's own files to nobody else.
        for dir in [&disk.root, &disk.layers(), &disk.snapshots(), &disk.empty()] {
            set_mode(dir, 0o711)?;
        }
        for dir in [disk.blobs(), disk.ingest(), disk.images(), disk.trash()] {
            set_mode(&dir, 0o700)?;
        }
        set_mode(&disk.empty(), 0o755)?;
        Ok(disk)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// A layer's directory, by its diff ID or chain ID.
    pub(crate) fn layer(&self, name: &Digest) -> PathBuf {
        self.layers().join(name.hex())
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// An empty directory: the bottom of an overlay that would otherwise have too few layers.
    pub(crate) fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// A name that no other file has, not even one in the trash of an earlier opening that is still being emptied.
    pub(crate) fn unique(&self) -> String {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        format!("{}-{}-{number}", self.opened, std::process::id())
    }

    /// Moves a file or directory into the trash: one step, and it is gone for everyone. `false` when it wasn't there.
    pub(crate) fn discard(&self, path: &Path) -> Result<bool, FileError> {
        match fs::rename(path, self.trash().join(self.unique())) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FileError::of("remove", path)(error)),
        }
    }

    /// Deletes what is in the trash, or leaves that to whoever is at it. What can't be deleted stays until the next open.
    pub(crate) fn empty_trash(&self) {
        // Several at once would be in each other's way in one directory.
        let mut asked = self.emptying.fetch_add(1, Ordering::AcqRel) + 1;
        if asked > 1 {
            return;
        }
        // Goes on as long as others ask meanwhile.
        loop {
            if let Err(error) = removal::empty(&self.trash()) {
                tracing::warn!(error = %Chain(&error), "failed to empty the trash of the image store");
            }
            match self
                .emptying
                .compare_exchange(asked, 0, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return,
                Err(more) => asked = more,
            }
        }
    }
}

/// An error with its sources, for a log line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// Makes sure that the names in a directory are on the disk.
pub(crate) fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(FileError::of("sync", path))
}

/// Writes a file and makes sure that its bytes are on the disk.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = File::create(path).map_err(FileError::of("create", path))?;
    file.write_all(bytes).map_err(FileError::of("write", path))?;
    file.sync_all().map_err(FileError::of("sync", path))
}

/// Reads a file of at most `max` bytes.
pub(crate) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes));
    match read {
        Ok(read) if read as u64 <= max => Ok(bytes),
        Ok(_) => Err(FileError::of("read", path)(io::Error::from(
            io::ErrorKind::FileTooLarge,
        ))),
        Err(error) => Err(FileError::of("read", path)(error)),
    }
}

/// The names in a directory of ours, sorted; those that aren't UTF-8 aren't ours.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(FileError::of("list", path))? {
        let entry = entry.map_err(FileError::of("list", path))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), FileError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(FileError::of("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_to_be_deleted_is_deleted_by_whoever_is_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().to_owned(), Steps::default()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let disk = &disk;
                scope.spawn(move || {
                    for n in 0..50 {
                        let tree = dir_of(disk, &format!("{thread}-{n}"));
                        assert!(disk.discard(&tree).unwrap());
                        disk.empty_trash();
                    }
                });
            }
        });
        assert!(names(&disk.trash()).unwrap().is_empty());
        assert_eq!(disk.emptying.load(Ordering::Acquire), 0);
    }

    fn dir_of(disk: &Disk, name: &str) -> PathBuf {
        let dir = disk.layers().join(name);
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/file"), "x").unwrap();
        dir
    }

    #[test]
    fn names_of_two_openings_differ() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Disk::open(dir.path().to_owned(), Steps::default()).unwrap();
        assert_ne!(open().unique(), open().unique());
    }
}
