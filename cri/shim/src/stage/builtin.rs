//! The linked-in runtime library.

use std::os::fd::OwnedFd;

use cri_shim_protocol::{ErrorKind, ShimError};
use oci_runtime_container as oci;
use oci_runtime_container::{CreateOptions, ExecOptions, Stdio};
use oci_spec::runtime::{LinuxResources, Process};

use super::work::{CreateWork, Handle};
use super::{failure, refuse};
use crate::stdio::Given;

type Made = (i32, Option<OwnedFd>, Vec<String>);

fn runtime(handle: &Handle) -> oci::Runtime {
    oci::Runtime::new(&handle.root, handle.driver())
}

fn kind(kind: oci::ErrorKind) -> ErrorKind {
    match kind {
        oci::ErrorKind::NotFound => ErrorKind::NotFound,
        oci::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        oci::ErrorKind::WrongState => ErrorKind::WrongState,
        oci::ErrorKind::CommandNotFound | oci::ErrorKind::CommandNotExecutable => ErrorKind::CommandNotFound,
        oci::ErrorKind::Invalid => ErrorKind::Invalid,
        oci::ErrorKind::Unsupported => ErrorKind::Unsupported,
        oci::ErrorKind::Other => ErrorKind::Failed,
    }
}

pub(super) fn create(handle: &Handle, work: CreateWork) -> Result<Made, ShimError> {
    let mut options = CreateOptions::new(&handle.id, work.bundle);
    options.stdio = match work.given {
        Given::Pipes(fds) => Stdio::Fds(fds),
        Given::Terminal => Stdio::ConsoleFd,
    };
    options.clone_parent = true;
    let created = runtime(handle).create(options);
    let created = created.map_err(|error| failure(kind(error.kind()), &error))?;
    Ok((created.pid, created.console, created.warnings))
}

pub(super) fn start(handle: &Handle) -> Result<Vec<String>, ShimError> {
    let started = runtime(handle).start(&handle.id);
    started.map_err(|error| failure(kind(error.kind()), &error))
}

pub(super) fn exec(handle: &Handle, process: &str, stdio: Option<[OwnedFd; 3]>) -> Result<Made, ShimError> {
    let process: Process = serde_json::from_str(process)
        .map_err(|error| refuse(ErrorKind::Invalid, format_args!("not an OCI process: {error}")))?;
    let mut options = ExecOptions::new(&handle.id, process);
    options.stdio = stdio.map_or(Stdio::ConsoleFd, Stdio::Fds);
    options.clone_parent = true;
    let execed = runtime(handle).exec(options);
    let execed = execed.map_err(|error| failure(kind(error.kind()), &error))?;
    Ok((execed.pid, execed.console, execed.warnings))
}

pub(super) fn update(handle: &Handle, resources: &str) -> Result<(), ShimError> {
    let resources: LinuxResources = serde_json::from_str(resources)
        .map_err(|error| refuse(ErrorKind::Invalid, format_args!("not OCI resources: {error}")))?;
    let updated = runtime(handle).update(&handle.id, &resources);
    updated.map_err(|error| failure(kind(error.kind()), &error))
}

pub(super) fn delete(handle: &Handle) -> Result<(), ShimError> {
    match runtime(handle).delete(&handle.id, true) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == oci::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failure(kind(error.kind()), &error)),
    }
}
