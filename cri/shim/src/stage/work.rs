//! What stage children do, by request; each through the linked-in library or a foreign runtime's command line.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cri_shim_protocol::{ErrorKind, PinNamespaces, Runtime, ShimError};
use oci_runtime_cgroups::{Cgroup, CgroupDriver};
use serde::Deserialize;

use super::command::Command;
use super::{Outcome, Report, builtin, failed, failure, pin, refuse};
use crate::stdio::Given;

/// A container, as its runtime knows it.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) id: String,
    pub(crate) root: PathBuf,
    pub(crate) runtime: Runtime,
    /// Where a foreign runtime's log and pid files go for a moment.
    pub(crate) state_dir: PathBuf,
}

impl Handle {
    pub(crate) fn driver(&self) -> CgroupDriver {
        let (Runtime::Builtin { systemd_cgroup } | Runtime::Command { systemd_cgroup, .. }) = &self.runtime;
        if *systemd_cgroup {
            CgroupDriver::Systemd
        } else {
            CgroupDriver::Cgroupfs
        }
    }

    fn foreign(&self) -> Option<Command<'_>> {
        match &self.runtime {
            Runtime::Builtin { .. } => None,
            Runtime::Command { path, .. } => Some(Command::new(self, path)),
        }
    }
}

/// What creating needs beside the handle.
#[derive(Debug)]
pub(crate) struct CreateWork {
    pub(crate) bundle: PathBuf,
    pub(crate) given: Given,
}

pub(crate) fn create(handle: &Handle, work: CreateWork) -> Result<Outcome, ShimError> {
    let facts = Facts::read(&work.bundle)?;
    let terminal = matches!(work.given, Given::Terminal);
    if facts.process.is_some_and(|p| p.terminal) != terminal {
        let is = if terminal { "not set" } else { "set" };
        let message = format_args!(
            "`process.terminal` is {is} in `{}`, against the request",
            work.bundle.display()
        );
        return Err(refuse(ErrorKind::Invalid, message));
    }
    let cgroup = facts.linux.and_then(|linux| linux.cgroups_path);
    let (pid, console, warnings) = match handle.foreign() {
        None => builtin::create(handle, work)?,
        Some(command) => {
            let (pid, console) = command.create(work)?;
            (pid, console, Vec::new())
        }
    };
    Ok(Outcome {
        report: Report::Created { pid, cgroup },
        console,
        warnings,
    })
}

pub(crate) fn start(handle: &Handle) -> Result<Outcome, ShimError> {
    let mut outcome = Outcome::of(Report::Done);
    match handle.foreign() {
        None => outcome.warnings = builtin::start(handle)?,
        Some(command) => command.start()?,
    }
    Ok(outcome)
}

/// `stdio`: none for a terminal.
pub(crate) fn exec(
    handle: &Handle,
    process: &str,
    stdio: Option<[OwnedFd; 3]>,
    size: Option<(u16, u16)>,
) -> Result<Outcome, ShimError> {
    let process = match size {
        Some(size) => sized(process, size)?,
        None => process.to_owned(),
    };
    let (pid, console, warnings) = match handle.foreign() {
        None => builtin::exec(handle, &process, stdio)?,
        Some(command) => {
            let (pid, console) = command.exec(&process, stdio)?;
            (pid, console, Vec::new())
        }
    };
    // For runtimes that don't know `consoleSize`.
    if let (Some(console), Some((width, height))) = (&console, size) {
        let sized = crate::stdio::set_size(console, width, height);
        sized.map_err(|error| failed(format_args!("set the terminal's size"), error))?;
    }
    Ok(Outcome {
        report: Report::ExecStarted { pid },
        console,
        warnings,
    })
}

/// The process with a terminal of that size.
fn sized(process: &str, (width, height): (u16, u16)) -> Result<String, ShimError> {
    let invalid = || refuse(ErrorKind::Invalid, format_args!("not an OCI process"));
    let mut process: serde_json::Value = serde_json::from_str(process).map_err(|_| invalid())?;
    let fields = process.as_object_mut().ok_or_else(invalid)?;
    let size = serde_json::json!({ "width": width, "height": height });
    fields.insert("consoleSize".to_owned(), size);
    Ok(process.to_string())
}

pub(crate) fn update(handle: &Handle, resources: &str) -> Result<Outcome, ShimError> {
    match handle.foreign() {
        None => builtin::update(handle, resources)?,
        Some(command) => command.update(resources)?,
    }
    Ok(Outcome::of(Report::Done))
}

/// Removes a container in whatever state it is; that there is none is no error.
pub(crate) fn delete(handle: &Handle) -> Result<Outcome, ShimError> {
    match handle.foreign() {
        None => builtin::delete(handle)?,
        Some(command) => command.delete()?,
    }
    Ok(Outcome::of(Report::Done))
}

/// Signals every process in a container's cgroup.
pub(crate) fn kill_all(cgroup: &str, signal: i32) -> Result<Outcome, ShimError> {
    let failure = |error| failure(ErrorKind::Failed, &error);
    let cgroup = Cgroup::named(cgroup).map_err(failure)?;
    if signal == nix::libc::SIGKILL {
        cgroup.kill_all().map_err(failure)?;
    } else {
        let pids = cgroup.pids(true).map_err(failure)?;
        for pid in pids {
            // It may have ended meanwhile.
            let _ = crate::reap::signal(pid, signal);
        }
    }
    Ok(Outcome::of(Report::Done))
}

pub(crate) fn pin_namespaces(request: &PinNamespaces) -> Result<Outcome, ShimError> {
    pin::pin(request).map(|init_pid| Outcome::of(Report::Pinned { init_pid }))
}

/// The little of `config.json` that the shim itself wants to know.
#[derive(Debug, Deserialize)]
struct Facts {
    process: Option<ProcessFacts>,
    linux: Option<LinuxFacts>,
}

#[derive(Debug, Deserialize)]
struct ProcessFacts {
    #[serde(default)]
    terminal: bool,
}

#[derive(Debug, Deserialize)]
struct LinuxFacts {
    #[serde(rename = "cgroupsPath")]
    cgroups_path: Option<String>,
}

impl Facts {
    fn read(bundle: &Path) -> Result<Self, ShimError> {
        let path = bundle.join("config.json");
        let text =
            fs::read(&path).map_err(|error| failed(format_args!("read `{}`", path.display()), error))?;
        serde_json::from_slice(&text).map_err(|error| {
            let message = format_args!("`{}` is not a valid OCI configuration: {error}", path.display());
            refuse(ErrorKind::Invalid, message)
        })
    }
}
