//! Freezing, killing and removing: what must work whatever state the processes and hierarchies are in.
//!
//! Every wait is bounded. On hybrid hosts a process of another runtime may be in v1's hierarchies only, so v2's
//! `cgroup.kill` is followed by a look at those.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::hierarchy::Version;
use crate::{Cgroup, CgroupError, files, removal};

/// How long removal waits for processes that are ending, in all hierarchies together.
const REMOVE_WITHIN: Duration = Duration::from_secs(2);
/// How long one walk through the cgroups below may take: a container that may make cgroups can make very many.
const WALK_WITHIN: Duration = Duration::from_secs(20);
/// How long freezing may take.
const FREEZE_WITHIN: Duration = Duration::from_secs(2);
/// How long rounds of SIGKILL go on where the kernel has no `cgroup.kill`.
const KILL_WITHIN: Duration = Duration::from_secs(3);
/// Nobody nests deeper; the kernel's own default for cgroup.max.depth is no limit.
const MAX_DEPTH: usize = 64;
/// How many cgroups below one are walked.
const MAX_DESCENDANTS: usize = 65_536;
/// How many pids an error names.
const PIDS_SHOWN: usize = 8;

/// Growing pauses from 0.5 to 20 ms until a deadline.
struct Pauses {
    next: Duration,
    deadline: Instant,
}

impl Pauses {
    fn within(limit: Duration) -> Self {
        Self {
            next: Duration::from_micros(500),
            deadline: Instant::now() + limit,
        }
    }

    /// Sleeps once; false when the time is over.
    fn pause(&mut self) -> bool {
        if Instant::now() >= self.deadline {
            return false;
        }
        sleep(self.next);
        self.next = (self.next * 2).min(Duration::from_millis(20));
        true
    }
}

/// The processes in the directories, sorted, each once.
pub(crate) fn pids(
    directories: impl Iterator<Item = PathBuf>,
    recursive: bool,
) -> Result<Vec<i32>, CgroupError> {
    let mut found = BTreeSet::new();
    for directory in directories {
        if recursive {
            for level in tree(&directory)? {
                collect_pids(&level, &mut found)?;
            }
        } else {
            collect_pids(&directory, &mut found)?;
        }
    }
    Ok(found.into_iter().collect())
}

fn collect_pids(directory: &Path, into: &mut BTreeSet<i32>) -> Result<(), CgroupError> {
    let path = directory.join("cgroup.procs");
    // Absent, going away, or (v2, EOPNOTSUPP) a threaded cgroup whose processes its domain lists.
    if let Some(text) = files::read_if_there(&path)? {
        // 0 stands for a process that this PID namespace can't see.
        into.extend(
            text.lines()
                .filter_map(|l| l.parse::<i32>().ok())
                .filter(|&pid| pid > 0),
        );
    }
    Ok(())
}

/// A directory and all below it, children before parents. Absent is empty.
fn tree(top: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = Vec::new();
    let mut level = vec![top.to_owned()];
    for _ in 0..MAX_DEPTH {
        let mut below = Vec::new();
        for directory in level {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(e) if files::is_absent(&e) => continue,
                Err(e) => return Err(CgroupError::read(&directory, e)),
            };
            let is_dir = |e: &fs::DirEntry| e.file_type().is_ok_and(|t| t.is_dir());
            below.extend(entries.flatten().filter(is_dir).map(|e| e.path()));
            found.push(directory);
        }
        if below.is_empty() || found.len() > MAX_DESCENDANTS {
            break;
        }
        level = below;
    }
    found.reverse();
    Ok(found)
}

/// SIGKILL for everything.
pub(crate) fn kill_all(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let mut in_v2 = None;
    if let Some(v2) = cgroup.v2_directory() {
        let file = v2.join("cgroup.kill");
        match files::write_once(&file, "1") {
            // There is nowhere else to look, and looking may take long: cgroups below can be many.
            Ok(()) if cgroup.hierarchies().is_unified() => return Ok(()),
            Ok(()) => in_v2 = Some(pids(std::iter::once(v2), true)?),
            // Absent, or a kernel without the file (before 5.14).
            Err(e) if files::is_absent(&e) || e.kind() == io::ErrorKind::PermissionDenied => {}
            Err(e) => return Err(CgroupError::write(&file, "1", e)),
        }
    }
    // The kernel is done with those in v2, so only others need rounds of their own.
    let dying = in_v2.unwrap_or_default();
    let left = |cgroup: &Cgroup| -> Result<Vec<i32>, CgroupError> {
        let all = pids(cgroup.directories().map(|(_, dir)| dir), true)?;
        Ok(all
            .into_iter()
            .filter(|pid| dying.binary_search(pid).is_err())
            .collect())
    };
    kill_in_rounds(cgroup, left)
}

/// Freeze, so that nothing forks away; kill; thaw, so that they can die; look again.
fn kill_in_rounds(
    cgroup: &Cgroup,
    left: impl Fn(&Cgroup) -> Result<Vec<i32>, CgroupError>,
) -> Result<(), CgroupError> {
    let mut pauses = Pauses::within(KILL_WITHIN);
    loop {
        let mut pids = left(cgroup)?;
        if pids.is_empty() {
            return Ok(());
        }
        let freezer = cgroup.directory("freezer").map(|dir| dir.join("freezer.state"));
        if let Some(freezer) = &freezer {
            // Best effort: what can't be frozen (uninterruptible sleep) can't fork either.
            let _ = files::write_once(freezer, "FROZEN");
            pids = left(cgroup)?;
        }
        for pid in &pids {
            // Gone meanwhile is what was wanted.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if let Some(freezer) = &freezer {
            let _ = files::write_once(freezer, "THAWED");
        }
        if !pauses.pause() {
            pids.truncate(PIDS_SHOWN);
            let path = cgroup
                .directories()
                .next()
                .map(|(_, dir)| dir)
                .unwrap_or_default();
            return Err(CgroupError::KillTimeout { path, pids });
        }
    }
}

/// Where this cgroup is frozen: v2 when it is there, as its freezer lets frozen processes be killed.
fn freezer(cgroup: &Cgroup) -> Result<(Version, PathBuf), CgroupError> {
    if let Some(v2) = cgroup
        .v2_directory()
        .filter(|v2| v2.join("cgroup.freeze").exists())
    {
        return Ok((Version::V2, v2));
    }
    match cgroup.directory("freezer") {
        Some(v1) => Ok((Version::V1, v1)),
        None if cgroup.hierarchies().is_unified() => {
            let path = cgroup.v2_directory().unwrap_or_default().join("cgroup.freeze");
            Err(CgroupError::read(&path, io::ErrorKind::NotFound.into()))
        }
        None => Err(CgroupError::MissingController {
            controller: "freezer".to_owned(),
            file: "freezer.state".to_owned(),
        }),
    }
}

pub(crate) fn freeze(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let (version, directory) = freezer(cgroup)?;
    let mut pauses = Pauses::within(FREEZE_WITHIN);
    let frozen = match version {
        Version::V2 => freeze_v2(&directory, &mut pauses)?,
        Version::V1 => freeze_v1(&directory, &mut pauses)?,
    };
    if frozen {
        return Ok(());
    }
    thaw(cgroup)?;
    Err(CgroupError::FreezeTimeout {
        path: directory,
        millis: FREEZE_WITHIN.as_millis() as u64,
    })
}

fn freeze_v2(directory: &Path, pauses: &mut Pauses) -> Result<bool, CgroupError> {
    files::write(&directory.join("cgroup.freeze"), "1")?;
    let events = directory.join("cgroup.events");
    loop {
        if files::read(&events)?.lines().any(|line| line == "frozen 1") {
            return Ok(true);
        }
        if !pauses.pause() {
            return Ok(false);
        }
    }
}

fn freeze_v1(directory: &Path, pauses: &mut Pauses) -> Result<bool, CgroupError> {
    let state = directory.join("freezer.state");
    loop {
        // Written again each time: tasks forked while freezing are caught by the next write only.
        files::write(&state, "FROZEN")?;
        if files::read(&state)?.trim() == "FROZEN" {
            return Ok(true);
        }
        if !pauses.pause() {
            return Ok(false);
        }
    }
}

/// In both hierarchies of a hybrid host: another program may have frozen it in the one that isn't used here.
pub(crate) fn thaw(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let thaw_v1 = |directory: &Path| files::write(&directory.join("freezer.state"), "THAWED");
    match freezer(cgroup)? {
        (Version::V2, directory) => {
            files::write(&directory.join("cgroup.freeze"), "0")?;
            match cgroup.directory("freezer") {
                Some(v1) if v1 != directory && v1.is_dir() => thaw_v1(&v1),
                _ => Ok(()),
            }
        }
        (Version::V1, directory) => thaw_v1(&directory),
    }
}

pub(crate) fn is_frozen(cgroup: &Cgroup) -> Result<bool, CgroupError> {
    let is_set = |file: &Path| Ok(files::read(file)?.trim() == "1");
    let frozen_v1 = |directory: &Path| is_set(&directory.join("freezer.self_freezing"));
    match freezer(cgroup)? {
        (Version::V2, directory) => {
            let v1 = cgroup.directory("freezer").filter(|v1| *v1 != directory);
            Ok(is_set(&directory.join("cgroup.freeze"))?
                || v1.is_some_and(|v1| frozen_v1(&v1).unwrap_or(false)))
        }
        (Version::V1, directory) => frozen_v1(&directory),
    }
}

/// Where a process that joins the cgroup, or what is made of it, would be frozen at once: the directory that says so,
/// in any hierarchy that freezes.
pub(crate) fn frozen_at(cgroup: &Cgroup) -> Result<Option<PathBuf>, CgroupError> {
    for hierarchy in &cgroup.hierarchies().all {
        let bottom = cgroup.directory_in(hierarchy);
        let frozen = match hierarchy.version {
            Version::V2 => frozen_v2_at(&bottom, &hierarchy.mount)?,
            Version::V1 if hierarchy.has("freezer") => frozen_v1_at(&bottom, &hierarchy.mount)?,
            Version::V1 => None,
        };
        if frozen.is_some() {
            return Ok(frozen);
        }
    }
    Ok(None)
}

fn up_to<'a>(mount: &'a Path, bottom: &'a Path) -> impl Iterator<Item = &'a Path> {
    bottom
        .ancestors()
        .take_while(move |level| level.starts_with(mount))
}

/// `cgroup.freeze` is what was asked for, which one stuck process keeps from becoming true; `cgroup.events` also knows
/// of what is above this process's cgroup namespace. A root has neither, or, before Linux 5.2, nobody has.
fn frozen_v2_at(bottom: &Path, mount: &Path) -> Result<Option<PathBuf>, CgroupError> {
    for level in up_to(mount, bottom) {
        let asked = files::read_if_there(&level.join("cgroup.freeze"))?;
        let events = files::read_if_there(&level.join("cgroup.events"))?;
        if asked.is_some_and(|text| text.trim() == "1")
            || events.is_some_and(|text| text.lines().any(|line| line == "frozen 1"))
        {
            return Ok(Some(level.to_owned()));
        }
    }
    Ok(None)
}

/// The state of the nearest that exists is that of all above it, too.
fn frozen_v1_at(bottom: &Path, mount: &Path) -> Result<Option<PathBuf>, CgroupError> {
    for level in up_to(mount, bottom) {
        if let Some(state) = files::read_if_there(&level.join("freezer.state"))? {
            return Ok((state.trim() != "THAWED").then(|| level.to_owned()));
        }
    }
    Ok(None)
}

/// Whether the directories are gone before the time for removing them is over.
pub(crate) fn vanishes(directories: impl Iterator<Item = PathBuf>) -> bool {
    let mut pauses = Pauses::within(REMOVE_WITHIN);
    for directory in directories {
        while directory.exists() {
            if !pauses.pause() {
                return false;
            }
        }
    }
    true
}

/// Removes every directory with what is below it.
pub(crate) fn remove(directories: impl Iterator<Item = PathBuf>) -> Result<(), CgroupError> {
    let mut pauses = Pauses::within(REMOVE_WITHIN);
    for directory in directories {
        remove_tree(&directory, &mut pauses)?;
    }
    Ok(())
}

fn remove_tree(top: &Path, pauses: &mut Pauses) -> Result<(), CgroupError> {
    // The usual case: no children, no processes.
    if rmdir(top).is_ok() {
        return Ok(());
    }
    loop {
        let source = match removal::remove(top, WALK_WITHIN) {
            Ok(()) => return Ok(()),
            Err(source) => source,
        };
        if source.raw_os_error() != Some(nix::libc::EBUSY) || !pauses.pause() {
            let mut pids = pids(std::iter::once(top.to_owned()), true).unwrap_or_default();
            pids.truncate(PIDS_SHOWN);
            let path = top.to_owned();
            return Err(CgroupError::Remove { path, pids, source });
        }
    }
}

fn rmdir(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(e) if !files::is_absent(&e) => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_lists_children_before_parents() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir_all(tmp.path().join("a/b/c")).unwrap();
        fs::create_dir_all(tmp.path().join("a/d")).unwrap();
        fs::write(tmp.path().join("a/file"), "").unwrap();
        let found = tree(&tmp.path().join("a")).unwrap();
        assert_eq!(found.len(), 4);
        assert_eq!(found[0], tmp.path().join("a/b/c"));
        assert_eq!(found[3], tmp.path().join("a"));
        assert!(tree(&tmp.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn pids_are_sorted_once_each_and_without_the_unseen() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir_all(tmp.path().join("x/y")).unwrap();
        fs::write(tmp.path().join("x/cgroup.procs"), "9\n0\n3\n").unwrap();
        fs::write(tmp.path().join("x/y/cgroup.procs"), "3\n7\n").unwrap();
        let list = |recursive| pids(std::iter::once(tmp.path().join("x")), recursive).unwrap();
        assert_eq!(list(false), [3, 9]);
        assert_eq!(list(true), [3, 7, 9]);
    }

    #[test]
    fn removing_the_absent_is_fine() {
        remove(std::iter::once(PathBuf::from("/sys/fs/cgroup/orlop-no-such"))).unwrap();
    }
}
