//! The benchmark's own cgroup, of the same name in every hierarchy: everything that the daemons make is below it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// How often a cgroup whose processes are still dying is tried again, 10 ms apart.
const TRIES: u32 = 500;

/// Removes it with all that is below it.
pub(crate) fn remove(name: &str) -> Result<()> {
    remove_below(Path::new("/sys/fs/cgroup"), name)
}

fn remove_below(top: &Path, name: &str) -> Result<()> {
    let mut roots = vec![top.join(name)];
    for entry in fs::read_dir(top).with_context(|| format!("failed to list `{}`", top.display()))? {
        roots.push(entry?.path().join(name));
    }
    for root in roots {
        let mut tries = 0;
        while let Err(error) = deepest_first(&root).iter().try_for_each(|dir| remove_one(dir)) {
            tries += 1;
            if tries == TRIES {
                return Err(error)
                    .with_context(|| format!("failed to remove the cgroup `{}`", root.display()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn deepest_first(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(deepest_first(&entry.path()));
        }
    }
    found.push(dir.to_owned());
    found
}

fn remove_one(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        // A hierarchy without it, or a file.
        Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&e.kind()) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_from_every_hierarchy_and_nothing_else_does() {
        let top = tempfile::tempdir().unwrap();
        for dir in [
            "cpu/mine/pod/one",
            "cpu/mine/pod/two",
            "memory/mine",
            "cpu/other/pod",
            "mine/x",
        ] {
            fs::create_dir_all(top.path().join(dir)).unwrap();
        }
        fs::write(top.path().join("release_agent"), "").unwrap();
        remove_below(top.path(), "mine").unwrap();
        let left = deepest_first(top.path());
        let left: Vec<_> = left.iter().map(|d| d.strip_prefix(top.path()).unwrap()).collect();
        assert!(left.contains(&Path::new("cpu/other/pod")) && left.contains(&Path::new("memory")));
        assert!(
            left.iter().all(|d| !d.to_string_lossy().contains("mine")),
            "{left:?}"
        );
        remove_below(top.path(), "mine").unwrap();
    }
}
