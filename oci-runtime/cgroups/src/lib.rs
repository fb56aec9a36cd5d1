//! Pod and container cgroups: a thin layer over libcgroups with fast paths beside it.
//!
//! A [`Cgroup`] is one absolute path, like `/orlop/pod1234/c5678`, in every hierarchy that is mounted: in the one v2
//! hierarchy, in each v1 controller's, or in both on a hybrid host. The life of a container's cgroup:
//!
//! 1. [`Cgroup::create`] makes the directories, parents too, and readies them for tasks.
//! 2. [`Cgroup::apply`] writes the limits of the OCI `linux.resources`.
//! 3. The init process joins. Moving another process by its pid costs milliseconds, because the kernel waits for a
//!    grace period to lock all threads; so [`Cgroup::clone_fd`] is for `clone3(CLONE_INTO_CGROUP)` on v2, and
//!    [`Cgroup::attach_fds`] opens v1's `tasks` files for a single-threaded child that writes `0` to each.
//! 4. [`Cgroup::stats`], [`Cgroup::freeze`], [`Cgroup::kill_all`] while it lives.
//! 5. [`Cgroup::remove`], children first, as often as needed: absent is fine, so a crash between any two steps is
//!    repaired by doing the step again.
//!
//! With systemd as the writer of the hierarchy, step 1 is its work, see [`CgroupDriver::Systemd`]; the rest is the same.
//!
//! libcgroups applies CPU and memory limits on v2; what else there is in [`limits`] is ours (device rules are
//! a small eBPF program there, as the library's own would bring libelf along). On v1 it looks up every controller's mount twice for each cgroup (hundreds of
//! system calls), so the writes to v1 are planned here ([`limits`]); reading, freezing, killing and removing are here
//! too, because they must work on hybrid hosts and when a controller is missing.

mod attach;
mod control;
mod create;
mod error;
mod files;
pub mod hierarchy;
pub mod limits;
mod oom;
mod read;
mod removal;
mod stats;
mod systemd;

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

pub use attach::{AttachFailure, AttachFds};
pub use error::CgroupError;
use hierarchy::{Hierarchies, Hierarchy, Version};
pub use oom::OomEvents;
pub use stats::{CpuStats, HugetlbStats, IoStats, MemoryStats, PidsStats, Pressure, Psi, Stall, Stats};
use systemd::Unit;

/// Who makes the directories.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// Orlop, directly.
    #[default]
    Cgroupfs,
    /// systemd, asked over D-Bus, on hosts with v2 alone: containers are scopes, pods are slices.
    Systemd,
}

impl CgroupDriver {
    /// Whose form a cgroup's name has: absolute paths are Orlop's own.
    #[must_use]
    pub fn of(path: &str) -> Self {
        if path.starts_with('/') {
            Self::Cgroupfs
        } else {
            Self::Systemd
        }
    }
}

/// One container's or pod's cgroup, in every mounted hierarchy. Holds no file open and owns nothing on disk.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: String,
    unit: Option<Unit>,
    hierarchies: Arc<Hierarchies>,
}

impl Cgroup {
    /// Names a cgroup; nothing is created. [`CgroupDriver::Cgroupfs`] takes an absolute path from the root of the
    /// hierarchies, [`CgroupDriver::Systemd`] `slice:prefix:name` for the scope `prefix-name.scope` (no slice:
    /// `system.slice`), or the name of a slice.
    ///
    /// # Errors
    /// When the name isn't in the driver's form, or is the root; for the systemd driver on a host with v1
    /// controllers; when no hierarchy is mounted.
    pub fn new(path: &str, driver: CgroupDriver) -> Result<Self, CgroupError> {
        match driver {
            CgroupDriver::Cgroupfs => Self::in_hierarchies(path, Hierarchies::of_this_process()?),
            CgroupDriver::Systemd => {
                let unit = Unit::parse(path)?;
                let hierarchies = Hierarchies::of_this_process()?;
                if !hierarchies.is_unified() {
                    return Err(CgroupError::SystemdNeedsV2);
                }
                Ok(Self {
                    path: checked_path(&unit.path())?,
                    unit: Some(unit),
                    hierarchies,
                })
            }
        }
    }

    /// Names a cgroup by a name that was recorded, by whichever driver.
    ///
    /// # Errors
    /// As for [`Cgroup::new`].
    pub fn named(path: &str) -> Result<Self, CgroupError> {
        Self::new(path, CgroupDriver::of(path))
    }

    /// The path from the root of the hierarchies that a name of either driver stands for, whatever this host has.
    ///
    /// # Errors
    /// When the name isn't in the form of a driver.
    pub fn path_of(name: &str) -> Result<String, CgroupError> {
        match CgroupDriver::of(name) {
            CgroupDriver::Cgroupfs => checked_path(name),
            CgroupDriver::Systemd => checked_path(&Unit::parse(name)?.path()),
        }
    }

    /// The same, in hierarchies that the caller knows.
    ///
    /// # Errors
    /// As for [`Cgroup::new`].
    pub fn in_hierarchies(path: &str, hierarchies: Arc<Hierarchies>) -> Result<Self, CgroupError> {
        Ok(Self {
            path: checked_path(path)?,
            unit: None,
            hierarchies,
        })
    }

    /// A cgroup below this one, which somebody else makes and removes. Empty or `/`: this one.
    ///
    /// # Errors
    /// When the path has a `.` or `..`.
    pub fn below(&self, path: &str) -> Result<Self, CgroupError> {
        Self::in_hierarchies(&format!("{}/{path}", self.path), Arc::clone(&self.hierarchies))
    }

    /// The cgroup that a process is in, in the v2 hierarchy; `None` where that isn't all there is, for the root, and
    /// when the process is gone.
    #[must_use]
    pub fn of_process(pid: u32) -> Option<Self> {
        let hierarchies = Hierarchies::of_this_process()
            .ok()
            .filter(|all| all.is_unified())?;
        let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = table.lines().find_map(|line| line.strip_prefix("0::"))?;
        Self::in_hierarchies(path, hierarchies).ok()
    }

    /// The path from the root of the hierarchies, without needless slashes.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directory in the hierarchy that carries a controller.
    #[must_use]
    pub fn directory(&self, controller: &str) -> Option<PathBuf> {
        self.hierarchies.of(controller).map(|h| self.directory_in(h))
    }

    /// The directory in the v2 hierarchy.
    #[must_use]
    pub fn v2_directory(&self) -> Option<PathBuf> {
        self.hierarchies.v2().map(|h| self.directory_in(h))
    }

    /// Makes the directory and its missing parents in every hierarchy, and readies them for tasks: `cpuset.cpus` and
    /// `cpuset.mems` inherited on v1, controllers delegated on v2. What exists already is fine.
    ///
    /// # Errors
    /// The directory that can't be made, or the file that can't be written; [`CgroupError::NeedsProcess`] for a scope
    /// of systemd's; what systemd says.
    pub fn create(&self) -> Result<(), CgroupError> {
        match &self.unit {
            Some(Unit::Scope { .. }) => Err(CgroupError::NeedsProcess {
                path: self.path.clone(),
            }),
            Some(Unit::Slice { name }) => {
                systemd::start_slice(name, &LinuxResources::default())?;
                self.make_directories()
            }
            None => self.make_directories(),
        }
    }

    /// The same for processes that need no controllers: on v2 none are delegated, so that the cgroup above may hold
    /// processes as well.
    ///
    /// # Errors
    /// The directory that can't be made, or the file that can't be written.
    pub fn create_leaf(&self) -> Result<(), CgroupError> {
        self.hierarchies
            .all
            .iter()
            .try_for_each(|h| create::create_leaf(h, &self.path))
    }

    /// Whether the cgroup is made only around a process: [`Cgroup::create_around`].
    #[must_use]
    pub fn needs_process(&self) -> bool {
        matches!(self.unit, Some(Unit::Scope { .. }))
    }

    /// The same as [`Cgroup::create`] and [`Cgroup::apply`]; a scope of systemd's is made around the process, which is
    /// in it then. It goes with its last process, so this one has to stay until others are there.
    ///
    /// # Errors
    /// As for both.
    pub fn create_around(&self, pid: i32, resources: &LinuxResources) -> Result<(), CgroupError> {
        match &self.unit {
            Some(Unit::Scope { name, slice }) => {
                systemd::start_scope((name, slice), pid.unsigned_abs(), resources)?;
            }
            Some(Unit::Slice { name }) => systemd::start_slice(name, resources)?,
            None => {}
        }
        self.make_directories()?;
        limits::apply(self, resources)
    }

    fn make_directories(&self) -> Result<(), CgroupError> {
        self.hierarchies
            .all
            .iter()
            .try_for_each(|h| create::create(h, &self.path))
    }

    /// Gives the v2 directory, and those of its files that the kernel lets one delegate, to a user: the root of a
    /// container's user namespace, who may then make sub-cgroups. Nothing where v2 isn't mounted.
    ///
    /// # Errors
    /// The file whose owner can't be changed.
    pub fn delegate_to(&self, uid: u32) -> Result<(), CgroupError> {
        self.v2_directory()
            .map_or(Ok(()), |directory| create::delegate_to(&directory, uid))
    }

    /// Writes the limits. Called again with other limits it changes those that are named, in an order that the kernel
    /// accepts.
    ///
    /// # Errors
    /// A limit that is out of range, that the kernel refuses, or whose controller the host does not have; the error
    /// names controller and file. What was written before stays.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        if let Some(unit) = &self.unit {
            // systemd would write the limit first.
            self.v2_directory()
                .map_or(Ok(()), |directory| limits::check_usage(&directory, resources))?;
            // systemd 252 writes this one with the others, and has no word for it in a scope.
            let group = self.v2_directory().map(|dir| dir.join("memory.oom.group"));
            let kept = group.as_deref().map(files::read_if_there).transpose()?.flatten();
            systemd::set(unit, resources)?;
            if let (Some(file), Some(value)) = (group, kept.filter(|value| value.trim() == "1")) {
                files::write(&file, value.trim())?;
            }
        }
        limits::apply(self, resources)
    }

    /// Moves the calling thread into the cgroup: for a single-threaded caller.
    ///
    /// # Errors
    /// The file that can't be opened or written.
    pub fn add_self(&self) -> Result<(), CgroupError> {
        let fds = self.attach_fds()?;
        fds.join().map_err(|failure| fds.explain(failure))
    }

    /// Opens what a child writes to in order to join; see [`AttachFds`].
    ///
    /// # Errors
    /// The file that can't be opened.
    pub fn attach_fds(&self) -> Result<AttachFds, CgroupError> {
        AttachFds::open(self.directories())
    }

    /// Opens the v2 directory for `clone3(CLONE_INTO_CGROUP)`; `None` where v2 is not mounted or the cgroup is not
    /// there. On a hybrid host the child still has to join the v1 hierarchies, see [`AttachFds::join_v1`].
    #[must_use]
    pub fn clone_fd(&self) -> Option<OwnedFd> {
        let directory = self.v2_directory()?;
        let flags = nix::fcntl::OFlag::O_DIRECTORY.bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(directory);
        opened.ok().map(OwnedFd::from)
    }

    /// Moves a process with all its threads into the cgroup. Slow (see the crate's documentation): for processes that
    /// can't join by themselves.
    ///
    /// # Errors
    /// The `cgroup.procs` that can't be written.
    pub fn add_pid(&self, pid: i32) -> Result<(), CgroupError> {
        let value = pid.to_string();
        self.directories()
            .try_for_each(|(_, dir)| files::write(&dir.join("cgroup.procs"), &value))
    }

    /// The processes in the cgroup, sorted; with those of its descendants if `recursive`. Absent is empty.
    ///
    /// # Errors
    /// A `cgroup.procs` that can't be read.
    pub fn pids(&self, recursive: bool) -> Result<Vec<i32>, CgroupError> {
        control::pids(self.directories().map(|(_, dir)| dir), recursive)
    }

    /// Sends SIGKILL to every process in the cgroup and its descendants, forks in flight included. They may take a
    /// moment to be gone. Absent is fine.
    ///
    /// # Errors
    /// When processes outlive a bounded number of rounds.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        control::kill_all(self)
    }

    /// Stops every process in the cgroup and its descendants, and waits (at most two seconds) until they have.
    ///
    /// # Errors
    /// When no freezer is mounted, or processes don't stop in time; they are thawed again then.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        control::freeze(self)
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// When no freezer is mounted or the file can't be written.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        control::thaw(self)
    }

    /// Whether the cgroup was asked to freeze (itself, not through a parent).
    ///
    /// # Errors
    /// When the freezer's file can't be read.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        control::is_frozen(self)
    }

    /// The directory by which a process that joined would be frozen at once: this cgroup's, or that of one above it,
    /// whether this one exists yet or not.
    ///
    /// # Errors
    /// When a freezer's file can't be read.
    pub fn frozen_at(&self) -> Result<Option<PathBuf>, CgroupError> {
        control::frozen_at(self)
    }

    /// Removes the directories with their descendants in every hierarchy, waiting (bounded) for processes that are
    /// just ending. Absent is fine. Kill first: a cgroup with live processes stays, and is an error.
    ///
    /// # Errors
    /// The directory that can't be removed, with processes in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let stopped = match &self.unit {
            // systemd takes it away by itself when it's empty, and forgets it.
            Some(Unit::Scope { .. }) if control::vanishes(self.directories().map(|(_, dir)| dir)) => Ok(()),
            Some(unit) => systemd::stop(unit),
            None => Ok(()),
        };
        control::remove(self.directories().map(|(_, dir)| dir))?;
        match stopped {
            // It can't hold what isn't there.
            Err(CgroupError::NoSystemd { .. }) => Ok(()),
            other => other,
        }
    }

    /// What its processes use and used. Files and controllers that are missing leave their numbers empty.
    ///
    /// # Errors
    /// When the cgroup does not exist, or a file is not in the kernel's format.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        read::stats(self)
    }

    /// How many processes the OOM killer ended in this cgroup (on v2: and below).
    ///
    /// # Errors
    /// When the memory controller is not there or the file can't be read.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        read::oom_kills(self)
    }

    /// The cgroup above; `None` for one at the top.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (above, _) = self.path.rsplit_once('/')?;
        Self::in_hierarchies(above, Arc::clone(&self.hierarchies)).ok()
    }

    /// Whether the directory is there in any hierarchy.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.directories().any(|(_, dir)| dir.is_dir())
    }

    pub(crate) fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    pub(crate) fn directory_in(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mount.join(&self.path[1..])
    }

    pub(crate) fn directories(&self) -> impl Iterator<Item = (Version, PathBuf)> + '_ {
        self.hierarchies
            .all
            .iter()
            .map(|h| (h.version, self.directory_in(h)))
    }

    /// A file of the v2 directory for poll(2): it reports POLLPRI when the cgroup becomes empty, full or frozen.
    #[must_use]
    pub fn events_file(&self) -> Option<File> {
        File::open(self.v2_directory()?.join("cgroup.events")).ok()
    }
}

/// Absolute, no way upwards, not the root; slashes are joined.
fn checked_path(path: &str) -> Result<String, CgroupError> {
    let refuse = |reason| {
        Err(CgroupError::Path {
            path: path.to_owned(),
            reason,
        })
    };
    if !path.starts_with('/') {
        return refuse("is not absolute");
    }
    if path.len() > 3072 {
        return refuse("is longer than 3072 bytes");
    }
    let mut clean = String::with_capacity(path.len());
    for name in path.split('/').filter(|name| !name.is_empty()) {
        if name == ".." || name == "." {
            return refuse("has a `.` or `..` in it");
        }
        if name.len() > 255 || name.contains(['\0', '\n']) {
            return refuse("has a name that no directory can have");
        }
        clean.push('/');
        clean.push_str(name);
    }
    if clean.is_empty() {
        return refuse("is the root, which is not ours");
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_below_the_root_are_taken() {
        assert_eq!(checked_path("/a//b/").unwrap(), "/a/b");
        for bad in [
            "",
            "/",
            "//",
            "a/b",
            "/a/../b",
            "/a/./b",
            "/..",
            "/a\nb",
            "system.slice:x:y",
        ] {
            assert!(checked_path(bad).is_err(), "{bad:?} was taken");
        }
        assert!(checked_path(&format!("/{}", "x".repeat(256))).is_err());
    }

    #[test]
    fn a_name_s_form_says_whose_it_is() {
        assert_eq!(CgroupDriver::of("/a/b"), CgroupDriver::Cgroupfs);
        assert_eq!(CgroupDriver::of("a.slice:b:c"), CgroupDriver::Systemd);
        let refused = Cgroup::new("/a", CgroupDriver::Systemd).unwrap_err().to_string();
        assert!(refused.contains("slice:prefix:name"), "{refused}");
    }
}
