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
    make(leaf, &levels)?;
    match hierarchy.version {
        Version::V1 if hierarchy.has("cpuset") => inherit_cpuset(&hierarchy.mount, &levels),
        Version::V1 => Ok(()),
        Version::V2 => delegate(hierarchy, &levels),
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

/// The leaf straight away: the parents are almost always there.
fn make(leaf: &Path, levels: &[PathBuf]) -> Result<(), CgroupError> {
    match fs::create_dir(leaf) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
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
    Ok(())
}

/// Fills empty cpusets from the top down, each from its parent. The leaf is looked at first: when it is filled,
/// its parents were.
fn inherit_cpuset(mount: &Path, levels: &[PathBuf]) -> Result<(), CgroupError> {
    let leaf = levels.last().expect("a checked path has at least one name");
    for name in CPUSET_FILES {
        if !files::read(&leaf.join(name))?.trim().is_empty() {
            continue;
        }
        let mut inherited = files::read(&mount.join(name))?;
        for level in levels {
            let file = level.join(name);
            let own = files::read(&file)?;
            if own.trim().is_empty() {
                files::write(&file, inherited.trim())?;
            } else {
                inherited = own;
            }
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
    let has = files::read(&leaf.join("cgroup.controllers"))?;
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
        inherit_cpuset(tmp.path(), &levels).unwrap();
        let read = |dir: &Path, name: &str| fs::read_to_string(dir.join(name)).unwrap().trim().to_owned();
        assert_eq!(read(&levels[0], "cpuset.cpus"), "1-2");
        assert_eq!(read(&levels[2], "cpuset.cpus"), "1-2");
        assert_eq!(read(&levels[0], "cpuset.mems"), "0");
        assert_eq!(read(&levels[2], "cpuset.mems"), "0");
    }
}
