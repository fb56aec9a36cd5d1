//! A folder of manifests, or one manifest: `staticPodPath`.
//!
//! inotify says that something changed, a look at the folder says what: files are known by what `stat` says of them and
//! only read again when that changed. Every `fileCheckFrequency` the folder is looked at anyway, because a network file
//! system tells inotify nothing.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::manifest::{MAX_BYTES, Manifest, collect, is_manifest, read};
use super::{Finding, SourceKind, Update};

/// Files of one folder that are read; the rest is told of.
const MAX_FILES: usize = 5_000;
/// How long a folder must be quiet before it is looked at: editors write in several steps.
const QUIET: Duration = Duration::from_millis(10);

/// What `stat` says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A folder of manifests, or one manifest.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    node: String,
    files: BTreeMap<PathBuf, (Stamp, Manifest)>,
    told: bool,
}

impl Folder {
    /// The folder or file at a path, for the node of a name.
    pub fn new(path: &Path, node: &str) -> Self {
        Self {
            path: path.to_owned(),
            node: node.to_owned(),
            files: BTreeMap::new(),
            told: false,
        }
    }

    /// Looks at the folder and hands over what it names, now and whenever that changes, until nobody listens.
    pub async fn run(mut self, every: Duration, updates: mpsc::Sender<Update>, now: impl Fn() -> Timestamp) {
        let mut watch = Watch::of(&self.path);
        loop {
            match self.look(now()) {
                Ok(Some(update)) => {
                    if updates.send(update).await.is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(error) => warn!(path = %self.path.display(), %error, "failed to read manifests"),
            }
            if watch.is_none() {
                watch = Watch::of(&self.path);
            }
            tokio::select! {
                () = updates.closed() => return,
                () = tokio::time::sleep(every) => {}
                kept = changed(watch.as_ref()) => {
                    // A folder that was itself moved or removed is watched anew at the next look.
                    if !kept {
                        watch = None;
                    }
                    tokio::time::sleep(QUIET).await;
                }
            }
        }
    }

    /// What the folder names, if that changed since the last look.
    ///
    /// # Errors
    /// The folder can't be read; what it named stays.
    pub fn look(&mut self, now: Timestamp) -> io::Result<Option<Update>> {
        let (paths, mut more) = self.list()?;
        let mut changed = false;
        let before = self.files.len();
        self.files.retain(|path, _| paths.contains_key(path));
        changed |= before != self.files.len();
        for (path, stamp) in paths {
            if self.files.get(&path).is_some_and(|(known, _)| *known == stamp) {
                continue;
            }
            changed = true;
            let manifest = self.read(&path, now);
            debug!(path = %path.display(), named = manifest.named.len(), "manifest read");
            self.files.insert(path, (stamp, manifest));
        }
        if !changed && self.told {
            return Ok(None);
        }
        self.told = true;
        let names = self
            .files
            .iter()
            .map(|(path, (_, manifest))| (path.display().to_string(), manifest));
        let names: Vec<_> = names.collect();
        let (pods, objects, mut findings) =
            collect(names.iter().map(|(path, manifest)| (path.as_str(), *manifest)));
        findings.append(&mut more);
        Ok(Some(Update {
            source: SourceKind::File,
            pods,
            objects,
            findings,
        }))
    }

    /// The manifests that are there, and what is wrong with the list.
    fn list(&self) -> io::Result<(BTreeMap<PathBuf, Stamp>, Vec<Finding>)> {
        let mut found = BTreeMap::new();
        let mut findings = Vec::new();
        let metadata = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((found, findings)),
            Err(error) => return Err(error),
        };
        if metadata.is_file() {
            found.insert(self.path.clone(), stamp(&metadata));
            return Ok((found, findings));
        }
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            // A link to a manifest counts, as upstream; a folder doesn't.
            let Ok(metadata) = std::fs::metadata(&path) else {
                continue;
            };
            if !metadata.is_file() || !is_manifest(&path) {
                continue;
            }
            if found.len() == MAX_FILES {
                findings.push(Finding {
                    place: self.path.display().to_string(),
                    message: format!("more than {MAX_FILES} manifests: the rest is left out"),
                });
                break;
            }
            found.insert(path, stamp(&metadata));
        }
        Ok((found, findings))
    }

    /// Reads a file. One that is broken goes on naming what it named.
    fn read(&self, path: &Path, now: Timestamp) -> Manifest {
        let place = path.display().to_string();
        let mut manifest = match text(path) {
            Ok(text) => read(&text, &place, SourceKind::File, &self.node, now),
            Err(error) => Manifest {
                named: Vec::new(),
                findings: vec![Finding {
                    place,
                    message: error.to_string(),
                }],
            },
        };
        for finding in &manifest.findings {
            warn!(place = %finding.place, "{}", finding.message);
        }
        if manifest.is_broken()
            && let Some((_, last)) = self.files.get(path)
        {
            manifest.named.clone_from(&last.named);
        }
        manifest
    }
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)?;
    if read as u64 > MAX_BYTES {
        return Err(io::Error::other(format!(
            "larger than {} MiB, which no manifest needs",
            MAX_BYTES >> 20
        )));
    }
    Ok(text)
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    Stamp {
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

/// A watch over a folder, or over the folder that holds a file.
#[derive(Debug)]
struct Watch(AsyncFd<Descriptor>);

/// inotify's descriptor, as tokio wants it.
#[derive(Debug)]
struct Descriptor(Inotify);

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// A watch; none where the folder isn't there or the kernel refuses, then only time helps.
    fn of(path: &Path) -> Option<Self> {
        let folder = if path.is_file() { path.parent()? } else { path };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(folder, flags).ok()?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; Descriptor owns one open descriptor until it is dropped"
        )]
        let watch = AsyncFd::new(Descriptor(inotify));
        watch.ok().map(Self)
    }
}

/// Waits until something changed; false when the folder itself went.
async fn changed(watch: Option<&Watch>) -> bool {
    let Some(Watch(watch)) = watch else {
        return std::future::pending().await;
    };
    loop {
        let Ok(mut ready) = watch.readable().await else {
            return false;
        };
        let read = ready.try_io(|inotify| inotify.get_ref().0.read_events().map_err(io::Error::from));
        match read {
            Ok(Ok(events)) => {
                let gone =
                    AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_IGNORED;
                return !events.iter().any(|event| event.mask.intersects(gone));
            }
            Ok(Err(_)) => return false,
            Err(_would_block) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: c\n    image: demo\n"
        )
    }

    fn names(update: &Update) -> Vec<String> {
        update
            .pods
            .iter()
            .filter_map(|pod| pod.metadata.name.clone())
            .collect()
    }

    #[test]
    fn only_what_changed_is_told_and_dotfiles_are_not_manifests() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("a.yaml"), pod("a")).expect("written");
        std::fs::write(dir.path().join(".b.yaml.swp"), pod("b")).expect("written");
        let mut folder = Folder::new(dir.path(), "n");
        let first = folder
            .look(Timestamp::UNIX_EPOCH)
            .expect("readable")
            .expect("an update");
        assert_eq!(names(&first), ["a-n"]);
        assert!(folder.look(Timestamp::UNIX_EPOCH).expect("readable").is_none());
        std::fs::remove_file(dir.path().join("a.yaml")).expect("removed");
        let last = folder
            .look(Timestamp::UNIX_EPOCH)
            .expect("readable")
            .expect("an update");
        assert!(last.pods.is_empty());
    }

    #[test]
    fn a_file_that_breaks_goes_on_naming_what_it_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.yaml");
        std::fs::write(&file, pod("a")).expect("written");
        let mut folder = Folder::new(dir.path(), "n");
        folder.look(Timestamp::UNIX_EPOCH).expect("readable");
        std::fs::write(&file, pod("a").replace("containers", "container")).expect("written");
        let update = folder
            .look(Timestamp::UNIX_EPOCH)
            .expect("readable")
            .expect("an update");
        assert_eq!(names(&update), ["a-n"]);
        assert_eq!(update.findings.len(), 1, "{:?}", update.findings);
    }

    #[test]
    fn an_empty_folder_and_one_that_is_not_there_name_nothing_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut folder = Folder::new(&dir.path().join("absent"), "n");
        assert!(folder.look(Timestamp::UNIX_EPOCH).expect("no error").is_some());
        assert!(folder.look(Timestamp::UNIX_EPOCH).expect("no error").is_none());
    }

    #[tokio::test]
    async fn a_new_file_is_seen_at_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let (sender, mut updates) = mpsc::channel(4);
        let folder = Folder::new(dir.path(), "n");
        let task = tokio::spawn(folder.run(Duration::from_secs(3600), sender, || Timestamp::UNIX_EPOCH));
        assert!(updates.recv().await.expect("the first update").pods.is_empty());
        std::fs::write(dir.path().join("a.yaml"), pod("a")).expect("written");
        let update = tokio::time::timeout(Duration::from_secs(30), updates.recv()).await;
        assert_eq!(names(&update.expect("in time").expect("an update")), ["a-n"]);
        drop(updates);
        task.await.expect("it ends when nobody listens");
    }
}
