//! A node's own subtree of every cgroup hierarchy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::driver::{self, Driver};

const TOP: &str = "/sys/fs/cgroup";

/// A folder of the same name in each hierarchy; empty ones go when it is dropped.
#[derive(Debug)]
pub(crate) struct Subtree {
    name: String,
    roots: Vec<PathBuf>,
    driver: Driver,
}

impl Subtree {
    /// Makes the folders. There must be no such name yet.
    pub(crate) fn new(name: &str, driver: Driver) -> Result<Self> {
        let mut subtree = Self {
            name: name.to_owned(),
            roots: Vec::new(),
            driver,
        };
        if driver == Driver::Systemd {
            // systemd makes it for the first unit in it.
            subtree.name = Driver::slice(name);
            subtree.roots.push(Path::new(TOP).join(&subtree.name));
            return Ok(subtree);
        }
        for hierarchy in hierarchies(Path::new(TOP))? {
            let root = hierarchy.join(name);
            fs::create_dir(&root)
                .with_context(|| format!("failed to create the cgroup `{}`", root.display()))?;
            // Version 1's cpuset takes no process before both lists are filled.
            for list in ["cpuset.cpus", "cpuset.mems"] {
                if hierarchy.ends_with("cpuset") && root.join(list).exists() {
                    let value = fs::read_to_string(hierarchy.join(list))?;
                    fs::write(root.join(list), value.trim())?;
                }
            }
            subtree.roots.push(root);
        }
        Ok(subtree)
    }

    /// The path of it in each hierarchy.
    pub(crate) fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Every cgroup below, by hierarchy and path.
    pub(crate) fn children(&self) -> Vec<String> {
        let mut found = Vec::new();
        for root in &self.roots {
            let hierarchy = root
                .parent()
                .and_then(Path::file_name)
                .unwrap_or_default()
                .to_string_lossy();
            for dir in below(root) {
                let path = dir.strip_prefix(root).unwrap_or(&dir).display();
                found.push(format!("{hierarchy}:{path}"));
            }
        }
        found.sort();
        found
    }

    /// Kills what is in it, where no PID namespace does.
    pub(crate) fn kill(&self) -> Result<()> {
        let kill = |root: &PathBuf| match fs::write(root.join("cgroup.kill"), "1") {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.with_context(|| format!("failed to kill what is in `{}`", root.display())),
        };
        match self.driver {
            Driver::Cgroupfs => Ok(()),
            Driver::Systemd => self.roots.iter().try_for_each(kill),
        }
    }

    /// Removes it with all that is below. Processes in it must be dead or about to die.
    pub(crate) fn remove(&mut self) -> Result<()> {
        if self.driver == Driver::Systemd && !self.roots.is_empty() {
            driver::stop_slice(&self.name)?;
        }
        let begun = Instant::now();
        while let Some(root) = self.roots.last() {
            let mut dirs = below(root);
            dirs.push(root.clone());
            // The longest paths first: children before parents.
            dirs.sort_by_key(|dir| std::cmp::Reverse(dir.components().count()));
            match dirs.iter().try_for_each(|dir| remove(dir)) {
                Ok(()) => {
                    self.roots.pop();
                }
                Err(_) if begun.elapsed() < Duration::from_secs(10) => {
                    thread::sleep(Duration::from_millis(10))
                }
                Err(e) => {
                    return Err(e)
                        .with_context(|| format!("failed to remove the cgroup `{}`", root.display()));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        // `remove` says what went wrong; here nobody could hear it.
        let _ = self.remove();
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The mounted hierarchies: version 2 alone, or one for each controller of version 1 (and `unified`).
fn hierarchies(top: &Path) -> Result<Vec<PathBuf>> {
    if top.join("cgroup.controllers").exists() {
        return Ok(vec![top.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(top).with_context(|| format!("failed to list `{}`", top.display()))? {
        let entry = entry?;
        // `cpu` may be a link to `cpu,cpuacct`.
        if entry.file_type()?.is_dir() && entry.path().join("cgroup.procs").exists() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
            found.push(entry.path());
        }
    }
    found
}
