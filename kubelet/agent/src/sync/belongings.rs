//! What a pod has on the node besides containers and volumes: its directory, `/etc/hosts`, files for termination messages,
//! its logs; and the way back to nothing. All of it blocks.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kubelet_pods::cri::NodeFacts;
use kubelet_pods::cri::userns::IdRange;

/// The file in a pod's directory that says which user IDs are the pod's.
const USER_NAMESPACE: &str = "userns";
/// Files of a container's log folder that are looked at for the next attempt.
const MAX_LOGS: usize = 10_000;

/// A failed step, with its path.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} `{}`: {source}", path.display())]
pub struct BelongingsError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BelongingsError {
    let path = path.to_owned();
    move |source| BelongingsError { what, path, source }
}

/// Makes a directory and those above it.
///
/// # Errors
/// The kernel's.
pub fn make_dir(path: &Path, mode: u32) -> Result<(), BelongingsError> {
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed("create", path))
}

/// Writes a small file as a whole: nobody sees half of it, whenever the power goes.
///
/// # Errors
/// The kernel's.
pub fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), BelongingsError> {
    if fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(failed("write", path))
}

/// Writes a pod's `/etc/hosts`. A file that containers already have mounted is written in place, so that they see it.
///
/// # Errors
/// The kernel's.
pub fn write_hosts(
    facts: &NodeFacts,
    uid: &str,
    text: &str,
    owner: Option<IdRange>,
) -> Result<(), BelongingsError> {
    let path = PathBuf::from(facts.hosts_file(uid));
    if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    make_dir(Path::new(&facts.pod_dir(uid)), 0o750)?;
    fs::write(&path, text).map_err(failed("write", &path))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
        .map_err(failed("set the mode of", &path))?;
    give_to(&path, owner)
}

/// Makes the file that is mounted at a container's `terminationMessagePath`.
///
/// # Errors
/// The kernel's.
pub fn termination_log(
    root: &Path,
    uid: &str,
    container: &str,
    attempt: u32,
    owner: Option<IdRange>,
) -> Result<PathBuf, BelongingsError> {
    let path = crate::last_words::file(root, uid, container, attempt);
    if let Some(folder) = path.parent() {
        make_dir(folder, 0o750)?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(failed("create", &path))?;
    // Whatever user the container runs as may write its last words.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
        .map_err(failed("set the mode of", &path))?;
    give_to(&path, owner)?;
    Ok(path)
}

/// Gives a file to root of a user namespace.
fn give_to(path: &Path, owner: Option<IdRange>) -> Result<(), BelongingsError> {
    let Some(range) = owner else { return Ok(()) };
    std::os::unix::fs::chown(path, Some(range.first), Some(range.first)).map_err(failed("give away", path))
}

/// Notes which user IDs are a pod's, before they are used.
///
/// # Errors
/// The kernel's.
pub fn note_user_namespace(facts: &NodeFacts, uid: &str, range: IdRange) -> Result<(), BelongingsError> {
    let folder = PathBuf::from(facts.pod_dir(uid));
    make_dir(&folder, 0o750)?;
    let text = format!("{} {}\n", range.first, range.length);
    write_whole(&folder.join(USER_NAMESPACE), text.as_bytes(), 0o644)
}

/// Which user IDs were noted to be a pod's.
pub fn noted_user_namespace(root: &Path, uid: &str) -> Option<IdRange> {
    let text = fs::read_to_string(root.join("pods").join(uid).join(USER_NAMESPACE)).ok()?;
    let (first, length) = text.trim().split_once(' ')?;
    Some(IdRange {
        first: first.parse().ok()?,
        length: length.parse().ok()?,
    })
}

/// The attempt that a container's next log belongs to, by the logs that are there.
pub fn next_log_attempt(log_dir: &str, container: &str) -> u32 {
    let Ok(entries) = fs::read_dir(Path::new(log_dir).join(container)) else {
        return 0;
    };
    let names: Vec<_> = entries
        .flatten()
        .take(MAX_LOGS)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    kubelet_pods::cri::logs::next_attempt(names.iter().map(String::as_str))
}

/// Links a container's log where older collectors look for it. Fine when it is there already.
///
/// # Errors
/// The kernel's.
pub fn link_log(links: &Path, name: &str, log: &Path) -> Result<(), BelongingsError> {
    make_dir(links, 0o755)?;
    let link = links.join(name);
    match std::os::unix::fs::symlink(log, &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", &link)(error)),
        _ => Ok(()),
    }
}

/// Removes links whose log is gone.
pub fn sweep_links(links: &Path) {
    let Ok(entries) = fs::read_dir(links) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link && fs::metadata(&path).is_err() {
            // One that can't be removed now is met again at the next sweep.
            let _ = fs::remove_file(&path);
        }
    }
}

/// Removes a pod's logs.
///
/// # Errors
/// The kernel's.
pub fn remove_logs(log_dir: &Path) -> Result<(), BelongingsError> {
    match fs::remove_dir_all(log_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", log_dir)(error)),
        _ => Ok(()),
    }
}

/// The folders of logs that are there, with the UID of the pod that each belongs to.
pub fn log_folders(root: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let folders = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // NAMESPACE_NAME_UID, none of which has an underscore.
            let (_, uid) = name.rsplit_once('_')?;
            Some((uid.to_owned(), entry.path()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn termination_logs_can_be_written_by_anybody_and_start_empty() {
        let root = tempfile::tempdir().expect("a folder");
        let path = termination_log(root.path(), "u", "web", 3, None).expect("made");
        assert!(path.ends_with("pods/u/containers/web/00000003"));
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        fs::write(&path, "old").expect("written");
        termination_log(root.path(), "u", "web", 3, None).expect("made again");
        assert_eq!(fs::read(&path).expect("readable"), b"");
    }

    #[test]
    fn user_namespaces_are_noted_and_found_again() {
        let root = tempfile::tempdir().expect("a folder");
        let facts = NodeFacts {
            root_dir: root.path().display().to_string(),
            ..NodeFacts::default()
        };
        let range = IdRange {
            first: 131_072,
            length: 65_536,
        };
        note_user_namespace(&facts, "u", range).expect("noted");
        assert_eq!(noted_user_namespace(root.path(), "u"), Some(range));
        assert_eq!(noted_user_namespace(root.path(), "other"), None);
    }

    #[test]
    fn logs_tell_attempts_pods_and_dead_links() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("pods/default_web_u-1");
        fs::create_dir_all(folder.join("web")).expect("made");
        let log = folder.join("web/4.log");
        fs::write(&log, "").expect("written");
        assert_eq!(next_log_attempt(&folder.display().to_string(), "web"), 5);
        assert_eq!(next_log_attempt(&folder.display().to_string(), "other"), 0);
        assert_eq!(
            log_folders(&root.path().join("pods")),
            [("u-1".to_owned(), folder.clone())]
        );
        let links = root.path().join("containers");
        link_log(&links, "a.log", &log).expect("linked");
        link_log(&links, "a.log", &log).expect("twice is fine");
        sweep_links(&links);
        assert!(links.join("a.log").exists());
        remove_logs(&folder).expect("removed");
        remove_logs(&folder).expect("twice is fine");
        sweep_links(&links);
        assert_eq!(fs::read_dir(&links).expect("readable").count(), 0);
    }
}
