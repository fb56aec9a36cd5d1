//! Stage children: all that is slow, or may hang, or eats memory, happens in a fork of the shim that reports once and
//! ends.
//!
//! A report is one packet: JSON, with at most one descriptor (a terminal's main side). A stage child that ends
//! without one has died, which is an error like any other; one that takes longer than [`DEADLINE`] is killed with
//! its process group.

mod builtin;
mod command;
mod pin;
mod work;

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use cri_shim_protocol::{ErrorKind, ShimError};
use oci_runtime_sys::stage::fork_stage;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

pub(crate) use work::{CreateWork, Handle, create, delete, exec, kill_all, pin_namespaces, start, update};

use crate::wire::{self, Flow};

/// How long a stage child may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// The longest message of an error.
const MAX_MESSAGE_BYTES: usize = 4096;
/// The longest report.
const MAX_REPORT_BYTES: usize = 64 << 10;

/// What a stage child achieved.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    Done,
    Created { pid: i32, cgroup: Option<String> },
    ExecStarted { pid: i32 },
    Pinned { init_pid: Option<i32> },
}

/// What a stage child achieved, with the terminal that it made.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) report: Report,
    pub(crate) console: Option<OwnedFd>,
    /// For the diary.
    pub(crate) warnings: Vec<String>,
}

impl Outcome {
    pub(crate) fn of(report: Report) -> Self {
        Self {
            report,
            console: None,
            warnings: Vec::new(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Packet {
    result: Result<Report, ShimError>,
    warnings: Vec<String>,
}

/// An error in one line: what failed, and why, down to the cause.
pub(crate) fn failure(kind: ErrorKind, error: &dyn std::error::Error) -> ShimError {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their cause in their own words.
        if !message.ends_with(&cause_text) {
            message.push_str(": ");
            message.push_str(&cause_text);
        }
        source = cause.source();
    }
    ShimError { kind, message }
}

/// An error with words of its own.
pub(crate) fn refuse(kind: ErrorKind, message: fmt::Arguments<'_>) -> ShimError {
    ShimError {
        kind,
        message: message.to_string(),
    }
}

/// A failed system call: what was tried, and the kernel's answer.
pub(crate) fn failed(what: fmt::Arguments<'_>, error: impl fmt::Display) -> ShimError {
    refuse(ErrorKind::Failed, format_args!("failed to {what}: {error}"))
}

/// Forks a stage child that does `work`, keeping the descriptors `keep`. Returns its process and where its report
/// will come.
pub(crate) fn spawn(
    keep: &[RawFd],
    work: impl FnOnce() -> Result<Outcome, ShimError>,
) -> io::Result<(i32, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let mut keep = keep.to_vec();
    keep.push(theirs.as_raw_fd());
    let pid = fork_stage(&keep, || {
        // A group of its own, so that a deadline reaches whatever it has started.
        let grouped = rustix::process::setpgid(None, None);
        let result = grouped
            .map_err(|error| failed(format_args!("set a process group"), error))
            .and_then(|()| work());
        i32::from(report(&theirs, result).is_err())
    })?;
    Ok((pid, ours))
}

fn report(socket: &OwnedFd, result: Result<Outcome, ShimError>) -> io::Result<()> {
    let (result, console, mut warnings) = match result {
        Ok(outcome) => (Ok(outcome.report), outcome.console, outcome.warnings),
        Err(error) => (Err(error), None, Vec::new()),
    };
    let result = result.map_err(|mut error| {
        shorten(&mut error.message);
        error
    });
    warnings.truncate(8);
    warnings.iter_mut().for_each(shorten);
    let bytes = serde_json::to_vec(&Packet { result, warnings })?;
    match wire::send(
        socket,
        &[IoSlice::new(&bytes)],
        console.as_ref().map(|fd| fd.as_fd()),
    ) {
        Flow::Bytes(n) if n == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

fn shorten(text: &mut String) {
    if text.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|n| text.is_char_boundary(*n));
        text.truncate(end.unwrap_or(0));
        text.push_str("...");
    }
    // One line, whatever a runtime or a hook printed.
    if text.contains(['\n', '\r']) {
        *text = text.replace(['\n', '\r'], " ");
    }
}

/// Takes a stage child's report, if it has come.
pub(crate) fn receive(socket: &OwnedFd) -> Option<Result<Outcome, ShimError>> {
    let mut bytes = vec![0; MAX_REPORT_BYTES];
    let mut fds = Vec::new();
    let Flow::Bytes(n) = wire::receive(socket, &mut bytes, &mut fds) else {
        return None;
    };
    let packet: Packet = match serde_json::from_slice(&bytes[..n]) {
        Ok(packet) => packet,
        Err(error) => return Some(Err(failed(format_args!("read a stage's report"), error))),
    };
    Some(packet.result.map(|report| Outcome {
        report,
        console: fds.pop(),
        warnings: packet.warnings,
    }))
}
