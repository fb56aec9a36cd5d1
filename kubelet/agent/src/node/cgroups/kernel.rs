//! The tree on this host.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use oci_runtime_cgroups::{Cgroup, CgroupError, Stats};

use super::Writer;
use super::limits::{Limits, is_harmless};

/// Controllers whose hierarchies are looked into on v1.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "freezer", "blkio"];

/// Cgroups by the names of their drivers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

fn directories(cgroup: &Cgroup) -> BTreeSet<PathBuf> {
    let v1 = CONTROLLERS
        .iter()
        .filter_map(|controller| cgroup.directory(controller));
    v1.chain(cgroup.v2_directory()).collect()
}

impl Writer for Kernel {
    fn create(&self, name: &str) -> Result<(), CgroupError> {
        Cgroup::named(name)?.create()
    }

    fn apply(&self, name: &str, limits: &Limits) -> Result<(), CgroupError> {
        let cgroup = Cgroup::named(name)?;
        let apply = |limits: &Limits| match limits.to_oci() {
            Ok(resources) => cgroup.apply(&resources),
            // No field is demanded, so this is nothing to apply.
            Err(_) => Ok(()),
        };
        match apply(limits) {
            Err(error) if is_harmless(&error, limits) => apply(&Limits {
                hugepages: std::collections::BTreeMap::new(),
                ..limits.clone()
            }),
            other => other,
        }
    }

    fn exists(&self, name: &str) -> bool {
        Cgroup::named(name).is_ok_and(|cgroup| cgroup.exists())
    }

    fn remove(&self, name: &str) -> Result<(), CgroupError> {
        let cgroup = Cgroup::named(name)?;
        cgroup.kill_all()?;
        cgroup.remove()
    }

    fn children(&self, name: &str) -> Vec<String> {
        let Ok(cgroup) = Cgroup::named(name) else {
            return Vec::new();
        };
        let mut found = BTreeSet::new();
        for directory in directories(&cgroup) {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            found.extend(folders.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        found.into_iter().collect()
    }

    fn stats(&self, name: &str) -> Result<Stats, CgroupError> {
        Cgroup::named(name)?.stats()
    }
}
