//! Making a cgroup's directories and readying them for tasks.
//!
//! Every step may be repeated: a crash after a mkdir leaves a directory whose cpuset is empty or whose parents don't
//! delegate their controllers, so both are looked at whether or not the directory was there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files;
use crate::hierarchy::{Hierarchy, Version};
use crate::{CgroupError, files::is_absent};

/// v1's cpuset refuses tasks (ENOSPC) until both are set.
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Makes the directory for an absolute path in one hierarchy.
pub(crate) fn create(hierarchy: &Hierarchy, path: &str) -> Result<(), CgroupError> {
    let levels = levels(&hierarchy.mount, path);
    let leaf = levels.last().expect("a checked path has at least one name");
    let is_new = make(leaf, &levels)?;
    match hierarchy.version {
        Version::V1 if hierarchy.has("cpuset") => inherit_cpuset(&hierarchy.mount, &levels, is_new),
        Version::V1 => Ok(()),
        Version::V2 => delegate(hierarchy, &levels),
    }
}

/// The directory alone on v2; v1's cpuset takes no process without a list of CPUs.
pub(crate) fn create_leaf(hierarchy: &Hierarchy, path: &str) -> Result<(), CgroupError> {
    match hierarchy.version {
        Version::V1 => create(hierarchy, path),
        Version::V2 => {
            let levels = levels(&hierarchy.mount, path);
            let leaf = levels.last().expect("a checked path has at least one name");
            make(leaf, &levels).map(drop)
        }
    }
}

/// `/m`, `/a/b` → `/m/a`, `/m/a/b`
fn levels(mount: &Path, path: &str) -> Vec<PathBuf> {
    let mut level = mount.to_owned();
    let names = path.split('/').filter(|name| !name.is_empty());
    names
        .map(|name| {
            level.push(name);
            level.clone()
        })
        .collect()
}

/// The leaf straight away: the parents are almost always there. Whether it's new, below parents that are not.
fn make(leaf: &Path, levels: &[PathBuf]) -> Result<bool, CgroupError> {
    match fs::create_dir(leaf) {
        Ok(()) => return Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(e) if is_absent(&e) => {}
        Err(source) => {
            return Err(CgroupError::Create {
                path: leaf.to_owned(),
                source,
            });
        }
    }
    for level in levels {
        match fs::create_dir(level) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::Create {
                    path: level.clone(),
                    source: e,
                });
            }
            _ => {}
        }
    }
    Ok(false)
}

/// Fills empty cpusets from the nearest parent that has one. A leaf that was there is looked at first: when it is
/// filled, its parents were. A new one is empty.
fn inherit_cpuset(mount: &Path, levels: &[PathBuf], is_new: bool) -> Result<(), CgroupError> {
    let leaf = levels.last().expect("a checked path has at least one name");
    for name in CPUSET_FILES {
        if !is_new && !files::read(&leaf.join(name))?.trim().is_empty() {
            continue;
        }
        let mut empty_from = levels.len() - 1;
        let inherited = loop {
            let parent = empty_from.checked_sub(1).map_or(mount, |above| &levels[above]);
            let own = files::read(&parent.join(name))?;
            if empty_from == 0 || !own.trim().is_empty() {
                break own;
            }
            empty_from -= 1;
        };
        for level in &levels[empty_from..] {
            files::write(&level.join(name), inherited.trim())?;
        }
    }
    Ok(())
}

/// Lets every parent delegate every controller, unless the leaf has all that the root has. One that can't be had (a
/// parent holds processes, or a namespace delegates less) is left out: a limit that needs it fails by name.
fn delegate(hierarchy: &Hierarchy, levels: &[PathBuf]) -> Result<(), CgroupError> {
    if hierarchy.controllers.is_empty() {
        return Ok(());
    }
    let leaf = levels.last().expect("a checked path has at least one name");
    // Beside v1, the hierarchy may have been unmounted since it was found.
    let Some(has) = files::read_if_there(&leaf.join("cgroup.controllers"))? else {
        return Ok(());
    };
    let missing = |has: &str| {
        hierarchy
            .controllers
            .iter()
            .any(|c| !has.split_whitespace().any(|h| h == c))
    };
    if !missing(&has) {
        return Ok(());
    }
    let parents = std::iter::once(hierarchy.mount.as_path());
    for parent in parents
        .chain(levels.iter().map(PathBuf::as_path))
        .take(levels.len())
    {
        let file = parent.join("cgroup.subtree_control");
        let enabled = files::read(&file)?;
        for controller in &hierarchy.controllers {
            if enabled.split_whitespace().any(|e| e == controller) {
                continue;
            }
            if let Err(error) = files::write_once(&file, &format!("+{controller}")) {
                tracing::debug!(controller, file = %file.display(), %error, "controller not delegated");
            }
        }
    }
    Ok(())
}

/// What the kernel lists as safe to hand over, or what it would on a kernel too old to say (before 4.15).
pub(crate) fn delegate_to(directory: &Path, uid: u32) -> Result<(), CgroupError> {
    let listed = files::read_if_there(Path::new("/sys/kernel/cgroup/delegate"))?;
    let listed = listed
        .as_deref()
        .unwrap_or("cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n");
    give(directory, uid)?;
    for name in listed
        .lines()
        .filter(|name| !name.is_empty() && !name.contains('/'))
    {
        match give(&directory.join(name), uid) {
            // Of a controller that this cgroup hasn't got.
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
    }
    Ok(())
}

fn give(path: &Path, uid: u32) -> Result<(), CgroupError> {
    std::os::unix::fs::chown(path, Some(uid), None)
        .map_err(|source| CgroupError::write(path, &format!("owner {uid}"), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_go_from_the_top_down() {
        assert_eq!(
            levels(Path::new("/m"), "/a/b/c"),
            [Path::new("/m/a"), Path::new("/m/a/b"), Path::new("/m/a/b/c")]
        );
    }

    #[test]
    fn empty_cpusets_are_filled_from_the_nearest_parent_that_has_one() {
        let tmp = tempfile::tempdir().unwrap();
        let levels = levels(tmp.path(), "/a/b/c");
        fs::create_dir_all(&levels[2]).unwrap();
        for (dir, cpus, mems) in [
            (tmp.path(), "0-3\n", "0\n"),
            (&levels[0], "1-2\n", "\n"),
            (&levels[1], "\n", "\n"),
            (&levels[2], "\n", "\n"),
        ] {
            fs::write(dir.join("cpuset.cpus"), cpus).unwrap();
            fs::write(dir.join("cpuset.mems"), mems).unwrap();
        }
        inherit_cpuset(tmp.path(), &levels, false).unwrap();
        let read = |dir: &Path, name: &str| fs::read_to_string(dir.join(name)).unwrap().trim().to_owned();
        assert_eq!(read(&levels[0], "cpuset.cpus"), "1-2");
        assert_eq!(read(&levels[2], "cpuset.cpus"), "1-2");
        assert_eq!(read(&levels[0], "cpuset.mems"), "0");
        assert_eq!(read(&levels[2], "cpuset.mems"), "0");
        fs::write(levels[2].join("cpuset.cpus"), "1\n").unwrap();
        inherit_cpuset(tmp.path(), &levels, false).unwrap();
        assert_eq!(read(&levels[2], "cpuset.cpus"), "1", "what is set stays");
    }
}
