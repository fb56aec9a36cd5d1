//! Limits: the OCI `linux.resources` on the files of this host.
//!
//! Plan, then act: [`plan`] turns the resources into writes for v1's controllers, and [`apply`] makes them. On a v2
//! host libcgroups applies those of CPU and memory, `unified` here plans the others, and the device rules become a
//! program of ours. A limit that nothing here can hold is an error that names the controller and the file, never a
//! silent nothing; but a limit of "unlimited" on a controller that is not there is what one has anyway.

mod device_filter;
mod devices;
mod plan;
mod unified;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use libcgroups::common::{CgroupManager as _, ControllerOpt};
use oci_spec::runtime::LinuxResources;

pub use plan::{Observed, Write, WriteKind, plan};
pub(crate) use unified::{cpu_weight, io_weight};

use crate::hierarchy::Version;
use crate::{Cgroup, CgroupError, files};

/// Writes the limits to the cgroup in every hierarchy.
pub(crate) fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), CgroupError> {
    let hierarchies = cgroup.hierarchies();
    if let (None, Some(v2)) = (hierarchies.of("devices"), cgroup.v2_directory()) {
        let rules = devices::rules(resources.devices().as_deref().unwrap_or_default());
        if !rules.is_empty() {
            device_filter::attach(&v2, &device_filter::DeviceFilter::new(&rules)?)?;
        }
    }
    if hierarchies.is_unified() {
        apply_unified(cgroup, resources)?;
    } else {
        let writes = plan(resources, &observe(cgroup, resources)?)?;
        let mut open = None;
        let mut early: Option<&Write> = None;
        for write in &writes {
            // What did not have to wait is not written again.
            if early.is_some_and(|e| e.file == write.file && e.value == write.value) {
                continue;
            }
            let done = act(cgroup, write, &mut open)?;
            if done && write.kind == WriteKind::MayWait {
                early = Some(write);
            }
        }
    }
    let unified = resources
        .unified()
        .as_ref()
        .filter(|_| !cgroup.hierarchies().is_unified());
    // In the order of the names, so that the first error is always the same.
    for (file, value) in unified.into_iter().flatten().collect::<BTreeMap<_, _>>() {
        write_unified(cgroup, file, value)?;
    }
    Ok(())
}

/// Refuses a limit of memory on a v2 host that is below what is in use, where `checkBeforeUpdate` asks for that. The
/// kernel would reclaim, and then kill.
pub(crate) fn check_usage(directory: &Path, resources: &LinuxResources) -> Result<(), CgroupError> {
    let checked = (*resources.memory()).filter(|memory| memory.check_before_update() == Some(true));
    let Some(limit) = checked.and_then(|memory| memory.limit()) else {
        return Ok(());
    };
    // A cgroup without the controller uses nothing that is counted; its limit is refused later, by name.
    let usage = files::read_if_there(&directory.join("memory.current"))?;
    plan::check_usage(limit, usage.and_then(|text| text.trim().parse().ok()))
}

/// What the plan has to know of the present.
fn observe(cgroup: &Cgroup, resources: &LinuxResources) -> Result<Observed, CgroupError> {
    let mut observed = Observed::default();
    let Some(memory) = resources.memory() else {
        return Ok(observed);
    };
    let Some(dir) = cgroup.directory("memory") else {
        return Ok(observed);
    };
    if memory.limit().is_some() && memory.swap().is_some() {
        let path = dir.join("memory.limit_in_bytes");
        observed.memory_limit = files::read(&path)?.trim().parse().ok();
    }
    if memory.check_before_update() == Some(true) {
        let path = dir.join("memory.usage_in_bytes");
        observed.memory_usage = files::read(&path)?.trim().parse().ok();
    }
    Ok(observed)
}

/// A file that stays open between writes to it: device rules are a dozen writes to two files.
type Open = Option<(PathBuf, File)>;

/// Whether it was written now; what isn't needs no writing, or is to be written once more.
fn act(cgroup: &Cgroup, write: &Write, open: &mut Open) -> Result<bool, CgroupError> {
    let Some(hierarchy) = cgroup.hierarchies().of(write.controller) else {
        return match write.kind {
            WriteKind::Unlimited => Ok(false),
            _ => Err(missing(write.controller, &write.file)),
        };
    };
    let file = match (&write.v2_file, hierarchy.version) {
        (Some(v2), Version::V2) => v2,
        (None, Version::V2) => return Err(missing(write.controller, &write.file)),
        (_, Version::V1) => &write.file,
    };
    let directory = cgroup.directory_in(hierarchy);
    let path = directory.join(file);
    match write_kept_open(open, &path, &write.value) {
        Ok(()) => Ok(true),
        Err(e) if write.kind == WriteKind::Unlimited && files::is_absent(&e) && directory.is_dir() => {
            Ok(false)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => match &write.otherwise {
            Some(other) => files::write(&directory.join(other), &write.value).map(|()| true),
            None => Err(CgroupError::write(&path, &write.value, e)),
        },
        // A period that does not go with the quota in force is set after the new quota.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput && write.kind == WriteKind::MayWait => {
            tracing::trace!(path = %path.display(), "left for a later write");
            Ok(false)
        }
        Err(e) => Err(CgroupError::write(&path, &write.value, e)),
    }
}

fn write_kept_open(open: &mut Open, path: &Path, value: &str) -> io::Result<()> {
    let file = match open {
        Some((known, file)) if known == path => file,
        _ => {
            let file = File::options().write(true).open(path)?;
            &mut open.insert((path.to_owned(), file)).1
        }
    };
    file.write_all(value.as_bytes())
}

fn missing(controller: &str, file: &str) -> CgroupError {
    CgroupError::MissingController {
        controller: controller.to_owned(),
        file: file.to_owned(),
    }
}

/// `linux.resources.unified` beside v1: its files can only be the v2 hierarchy's.
fn write_unified(cgroup: &Cgroup, file: &str, value: &str) -> Result<(), CgroupError> {
    if file.contains('/') || file.is_empty() {
        return Err(CgroupError::Limit {
            limit: "unified",
            value: file.to_owned(),
            reason: "a file name can't have a slash".to_owned(),
        });
    }
    let controller = file.split('.').next().unwrap_or(file);
    match cgroup.v2_directory() {
        Some(dir) if dir.join(file).exists() => files::write(&dir.join(file), value),
        _ => Err(missing(controller, file)),
    }
}

/// libcgroups on v2 and what it leaves out, after a check that the controllers are there, so that the error says which
/// is not.
fn apply_unified(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), CgroupError> {
    let Some(hierarchy) = cgroup.hierarchies().v2() else {
        return Err(CgroupError::NoHierarchy);
    };
    let directory = cgroup.directory_in(hierarchy);
    check_usage(&directory, resources)?;
    let has = files::read(&directory.join("cgroup.controllers"))?;
    let has = |controller: &str| has.split_whitespace().any(|c| c == controller);
    let offers = unified::Offers {
        bfq: directory.join("io.bfq.weight").exists(),
        swap: directory.join("memory.swap.max").exists(),
    };
    let first = match resources.memory() {
        Some(memory) => unified::plan_first(memory, offers)?,
        None => Vec::new(),
    };
    let writes = unified::plan(resources, offers)?;
    for (controller, file) in plan::needed_on_v2(resources) {
        if !has(controller) {
            return Err(missing(controller, file));
        }
    }
    if !offers.swap && resources.memory().as_ref().is_some_and(unified::wants_swap) {
        return Err(missing("memory (of swap)", "memory.swap.max"));
    }
    let failed = |source| CgroupError::Apply {
        path: directory.clone(),
        source: Box::new(source),
    };
    let act = |write: &unified::Write| {
        let path = directory.join(&write.file);
        match files::write_once(&path, &write.value) {
            Err(e) if write.lifts && files::is_absent(&e) => Ok(()),
            Err(e) if files::is_absent(&e) && write.controller != "cgroup" && !has(&write.controller) => {
                Err(missing(&write.controller, &write.file))
            }
            other => other.map_err(|e| CgroupError::write(&path, &write.value, e)),
        }
    };
    first.iter().try_for_each(act)?;
    let manager = libcgroups::v2::manager::Manager::new(hierarchy.mount.clone(), cgroup.path()[1..].into());
    let options = ControllerOpt {
        resources: &unified::for_libcgroups(resources),
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    manager.and_then(|m| m.apply(&options)).map_err(failed)?;
    writes.iter().try_for_each(act)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_what_is_in_use_is_refused_if_that_is_asked_for() {
        let cgroup = tempfile::tempdir().unwrap();
        let check = |json: &str| check_usage(cgroup.path(), &serde_json::from_str(json).unwrap());
        let asked = r#"{"memory":{"limit":10,"checkBeforeUpdate":true}}"#;
        check(asked).unwrap();
        std::fs::write(cgroup.path().join("memory.current"), "20\n").unwrap();
        let refused = check(asked).unwrap_err().to_string();
        assert_eq!(
            refused,
            "the limit memory.limit can't be set to 10: 20 bytes are in use"
        );
        for fine in [
            r#"{"memory":{"limit":10}}"#,
            r#"{"memory":{"limit":20,"checkBeforeUpdate":true}}"#,
            r#"{"memory":{"limit":-1,"checkBeforeUpdate":true}}"#,
            r#"{"memory":{"checkBeforeUpdate":true}}"#,
        ] {
            check(fine).unwrap();
        }
    }
}
