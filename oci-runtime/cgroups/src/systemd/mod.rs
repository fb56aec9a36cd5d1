//! Cgroups that systemd makes: a scope for each container, a slice for each pod.
//!
//! On a machine with systemd every cgroup has one writer, which is systemd, but for what it hands over: a unit with
//! `Delegate=yes` and all below is the container's runtime's. So the scope is asked for over D-Bus, with the limits
//! that systemd knows ([`properties`]), and then treated like any other cgroup: its files are written, processes
//! cloned into it, and sub-cgroups made. systemd doesn't make a scope without a process, and takes it away as soon as
//! its last one has ended; hence [`start_scope`] wants one that stays until the container's init is there.
//!
//! The client is ours ([`message`], [`bus`]): a few calls, each with a deadline, and the end of the job waited for.

mod bus;
mod message;
mod properties;
mod units;

use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;

use bus::{PATIENCE, Systemd};
use message::{Property, Value};
pub(crate) use units::Unit;

use crate::CgroupError;

/// How long a name may stay taken by a unit that has ended.
const NAME_FREE_WITHIN: Duration = Duration::from_secs(2);

/// What every unit of ours has: all is counted, so that statistics and limits work below.
fn accounting() -> Vec<Property> {
    let mut all = vec![("DefaultDependencies", Value::Bool(false))];
    for name in [
        "CPUAccounting",
        "MemoryAccounting",
        "IOAccounting",
        "TasksAccounting",
    ] {
        all.push((name, Value::Bool(true)));
    }
    all
}

/// Makes a scope around a process, with limits from its first moment.
pub(crate) fn start_scope(
    (name, slice): (&str, &str),
    pid: u32,
    resources: &LinuxResources,
) -> Result<(), CgroupError> {
    let mut all = vec![
        ("Description", Value::Text(format!("orlop container {name}"))),
        ("Slice", Value::Text(slice.to_owned())),
        ("Delegate", Value::Bool(true)),
        ("PIDs", Value::Numbers(vec![pid])),
        // Nobody has to reset a failed one (by the OOM killer, say) before the name is free.
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
    ];
    all.extend(accounting());
    all.extend(properties::of_scope(resources));
    let mut systemd = Systemd::connect(PATIENCE)?;
    let deadline = Instant::now() + NAME_FREE_WITHIN;
    let started = loop {
        match systemd.start(name, &all) {
            // One that has just ended, or was left by a process that was killed while it made the unit, is about to be
            // forgotten: it can't be in use, as what is has a record of its own.
            Err(failure) if failure.is_unit_exists() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => break other,
        }
    };
    started.map_err(|failure| failure.at("start", name))
}

/// Makes a slice, if there is none.
pub(crate) fn start_slice(name: &str, resources: &LinuxResources) -> Result<(), CgroupError> {
    let mut all = vec![("Description", Value::Text(format!("orlop pod {name}")))];
    if let Some(parent) = Unit::parent_of_slice(name) {
        all.push(("Wants", Value::Texts(vec![parent])));
    }
    all.extend(accounting());
    let limits = properties::properties(resources);
    all.extend(limits.iter().cloned());
    let mut systemd = Systemd::connect(PATIENCE)?;
    let started = match systemd.start(name, &all) {
        Err(failure) if failure.is_unit_exists() && limits.is_empty() => Ok(()),
        Err(failure) if failure.is_unit_exists() => systemd.set(name, &limits),
        other => other,
    };
    started.map_err(|failure| failure.at("start", name))
}

/// Changes the limits that systemd knows of.
pub(crate) fn set(unit: &Unit, resources: &LinuxResources) -> Result<(), CgroupError> {
    let limits = properties::properties(resources);
    if limits.is_empty() {
        return Ok(());
    }
    let set = Systemd::connect(PATIENCE)?.set(unit.name(), &limits);
    set.map_err(|failure| failure.at("set the limits of", unit.name()))
}

/// Stops a unit and waits until systemd has let go of it. Absent is fine.
///
/// A unit that ends by itself at this moment takes our job with it, and nobody is told; so it is asked for again, with
/// growing patience, until it is gone.
pub(crate) fn stop(unit: &Unit) -> Result<(), CgroupError> {
    let deadline = Instant::now() + PATIENCE;
    let mut patience = Duration::from_millis(100);
    loop {
        let mut systemd = Systemd::connect(PATIENCE)?;
        match systemd.stop(unit.name(), patience) {
            Err(failure) if failure.is_no_such_unit() => return Ok(()),
            Err(failure) if failure.is_timeout() && Instant::now() < deadline => patience *= 2,
            other => return other.map_err(|failure| failure.at("stop", unit.name())),
        }
    }
}
