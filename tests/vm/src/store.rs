//! `target/vm`: things that were made once, named by what they were made from.
//!
//! An entry is a folder `KIND/KEY`. It is made in `KIND/KEY.half` under the lock `KIND/KEY.lock` and becomes visible by
//! a rename; who wants the same meanwhile waits. Who uses an entry holds its lock shared, so that [`Store::prune`] only
//! takes what nobody uses. `runs` holds a folder for each process that runs guests; its lock tells whether that process
//! lives, and the next one removes what a dead one left.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

/// An entry, safe from pruning as long as this value exists.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    _lock: File,
}

/// A folder for what belongs to one run; gone when it is dropped, or when the next run sees that nobody holds it.
#[derive(Debug)]
pub(crate) struct RunFolder {
    pub(crate) path: PathBuf,
    _lock: File,
}

/// How many entries of a kind are kept.
const KEPT: &[(&str, usize)] = &[
    ("images", 2),
    ("initrds", 4),
    ("jobs", 4),
    ("snapshots", 4),
    ("stripped", 200),
];

impl Store {
    /// Below cargo's target folder of this workspace.
    pub(crate) fn open() -> Result<Self> {
        Self::at(&target().join("vm"))
    }

    pub(crate) fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("failed to create `{}`", root.display()))?;
        let root = root.canonicalize()?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The entry, made by `build` in a folder of its own if it isn't there; whether it was.
    pub(crate) fn ensure(
        &self,
        kind: &str,
        key: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<(Entry, bool)> {
        let folder = self.root.join(kind);
        fs::create_dir_all(&folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
        let path = folder.join(key);
        let lock_path = folder.join(format!("{key}.lock"));
        let shared = locked(&lock_path, File::lock_shared)?;
        if path.exists() {
            touch(&path);
            return Ok((Entry { path, _lock: shared }, true));
        }
        drop(shared);
        let lock = locked(&lock_path, File::lock)?;
        if !path.exists() {
            let half = folder.join(format!("{key}.half"));
            remove(&half)?;
            fs::create_dir(&half).with_context(|| format!("failed to create `{}`", half.display()))?;
            let built = build(&half).and_then(|()| {
                fs::rename(&half, &path).with_context(|| format!("failed to rename `{}`", half.display()))
            });
            if let Err(e) = built {
                // The error that led here is the one to be told.
                let _ = remove(&half);
                return Err(e);
            }
        }
        lock.lock_shared()?;
        touch(&path);
        self.prune(kind);
        Ok((Entry { path, _lock: lock }, false))
    }

    /// Forgets an entry that turned out to be broken.
    pub(crate) fn forget(&self, entry: Entry) -> Result<()> {
        let path = entry.path.clone();
        drop(entry);
        let lock = locked(&path.with_extension("lock"), File::lock)?;
        let done = remove(&path);
        drop(lock);
        done
    }

    /// Removes the entries used longest ago. What can't be removed now will be later.
    fn prune(&self, kind: &str) {
        let folder = self.root.join(kind);
        let kept = KEPT.iter().find(|(k, _)| *k == kind).map_or(8, |(_, n)| *n);
        let mut entries: Vec<(SystemTime, PathBuf)> = fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.path().extension().is_none())
            .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
            .collect();
        entries.sort();
        let surplus = entries.len().saturating_sub(kept);
        for (_, path) in entries.into_iter().take(surplus) {
            sweep(&path);
        }
    }

    /// Removes what makers left that were killed.
    fn sweep_halves(&self) {
        for (kind, _) in KEPT {
            for entry in fs::read_dir(self.root.join(kind)).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|e| e == "half") {
                    sweep(&entry.path());
                }
            }
        }
    }

    /// A folder for this run, after removing those of dead ones.
    pub(crate) fn run_folder(&self) -> Result<RunFolder> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        self.sweep_halves();
        let runs = self.root.join("runs");
        fs::create_dir_all(&runs).with_context(|| format!("failed to create `{}`", runs.display()))?;
        for entry in fs::read_dir(&runs)?.flatten() {
            if entry.path().extension().is_none() {
                sweep(&entry.path());
            }
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = runs.join(format!("{}-{count}", std::process::id()));
        let lock = locked(&path.with_extension("lock"), File::lock)?;
        remove(&path)?;
        fs::create_dir(&path).with_context(|| format!("failed to create `{}`", path.display()))?;
        Ok(RunFolder { path, _lock: lock })
    }

    /// Fails where the disk has less room than that.
    pub(crate) fn needs_mib(&self, mib: u64, what: &str) -> Result<()> {
        let stat = nix::sys::statvfs::statvfs(&self.root)
            .with_context(|| format!("failed to look at the disk of `{}`", self.root.display()))?;
        let free = stat.blocks_available() * stat.fragment_size() / (1024 * 1024);
        ensure!(
            free >= mib,
            "{what} needs {mib} MiB on the disk of `{}`, which has {free} MiB left: make room, or set \
             CARGO_TARGET_DIR to a folder on another disk",
            self.root.display()
        );
        Ok(())
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // The next run would sweep what is left.
        let _ = remove(&self.path);
        let _ = fs::remove_file(self.path.with_extension("lock"));
    }
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace().join(target)
}

/// The repository.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// A short name for some bytes.
pub(crate) fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Opens and locks a lock file that is still the one of that name: a sweeper may remove it between the two.
fn locked(path: &Path, lock: impl Fn(&File) -> std::io::Result<()>) -> Result<File> {
    for _ in 0..100 {
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("failed to open `{}`", path.display()))?;
        lock(&file).with_context(|| format!("failed to lock `{}`", path.display()))?;
        if same(&file, path) {
            return Ok(file);
        }
    }
    anyhow::bail!("`{}` keeps being removed", path.display())
}

fn same(file: &File, path: &Path) -> bool {
    let (Ok(mine), Ok(now)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    mine.ino() == now.ino() && mine.dev() == now.dev()
}

/// Removes an entry, a half or a run's folder, with its lock, if nobody holds that.
fn sweep(path: &Path) {
    let lock_path = path.with_extension("lock");
    let Ok(lock) = File::options().create(true).append(true).open(&lock_path) else {
        return;
    };
    if lock.try_lock().is_ok()
        && same(&lock, &lock_path)
        && remove(path).is_ok()
        && !path.with_extension("").exists()
    {
        let _ = fs::remove_file(&lock_path);
    }
}

/// Removes a folder that may hold files of a user's subordinate IDs.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let done = match fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            // Those are only theirs to remove, and what they leave, such as the folder itself, is ours. What neither
            // can remove is told by the second try.
            let _ = Command::new("mmdebstrap")
                .args(["--unshare-helper", "find"])
                .arg(path)
                .args(["-depth", "-delete"])
                .stderr(std::process::Stdio::null())
                .status();
            fs::remove_dir_all(path).or(Err(e))
        }
        done => done,
    };
    done.with_context(|| format!("failed to remove `{}`", path.display()))
}

fn touch(path: &Path) {
    // Only the order of pruning depends on it.
    let _ = File::open(path).and_then(|dir| dir.set_modified(SystemTime::now()));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn store(name: &str) -> (Store, PathBuf) {
        let dir = std::env::temp_dir().join(format!("orlop-store-{name}-{}", std::process::id()));
        (Store::at(&dir).unwrap(), dir)
    }

    #[test]
    fn who_wants_the_same_at_once_gets_what_one_makes() {
        let (store, dir) = store("once");
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (entry, _) = store
                        .ensure("images", "a", |half| {
                            made.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(std::time::Duration::from_millis(50));
                            Ok(fs::write(half.join("it"), "whole")?)
                        })
                        .unwrap();
                    assert_eq!(fs::read_to_string(entry.path.join("it")).unwrap(), "whole");
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_failed_half_way_is_never_seen_and_gone() {
        let (store, dir) = store("half");
        let failed = store.ensure("images", "a", |half| {
            fs::write(half.join("it"), "half")?;
            anyhow::bail!("no more")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert!(!dir.join("images/a").exists() && !dir.join("images/a.half").exists());
        // As a killed maker leaves it.
        fs::create_dir(dir.join("images/b.half")).unwrap();
        drop(store.run_folder().unwrap());
        assert!(!dir.join("images/b.half").exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_oldest_entries_go_unless_they_are_in_use() {
        let (store, dir) = store("prune");
        let make = |key: &str| store.ensure("images", key, |_| Ok(())).unwrap().0;
        let old = |path: &Path, seconds: u64| {
            let time = SystemTime::now() - std::time::Duration::from_secs(seconds);
            File::open(path).unwrap().set_modified(time).unwrap();
        };
        let used = make("used");
        let idle = make("idle");
        old(&used.path, 900);
        old(&idle.path, 800);
        drop(idle);
        make("third");
        make("fourth");
        let left = |key: &str| dir.join("images").join(key).exists();
        assert!(left("used") && !left("idle") && left("third") && left("fourth"));
        assert!(!left("idle.lock"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_a_killed_run_left_goes_and_what_a_living_one_has_stays() {
        let (store, dir) = store("runs");
        let living = store.run_folder().unwrap();
        let dead = dir.join("runs/1-0");
        fs::create_dir(&dead).unwrap();
        let next = store.run_folder().unwrap();
        assert!(living.path.exists() && !dead.exists());
        drop((living, next));
        assert_eq!(fs::read_dir(dir.join("runs")).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_full_disk_is_named_with_what_is_needed() {
        let (store, dir) = store("full");
        let error = store.needs_mib(u64::MAX >> 1, "a test").unwrap_err().to_string();
        assert!(
            error.contains("a test needs") && error.contains("make room"),
            "{error}"
        );
        fs::remove_dir_all(dir).unwrap();
    }
}
