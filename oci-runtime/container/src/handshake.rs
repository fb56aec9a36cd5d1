//! What the runtime and the process that becomes the container's say to each other.
//!
//! One socket pair that keeps messages whole, JSON in them. The child reports, the runtime answers where the child has
//! to wait. The order is fixed, and each side's code can only follow it (see [`Parent`]'s and [`Child`]'s methods):
//!
//! ```text
//!   child                               runtime
//!   NeedsMapping (new user namespace) ->
//!                                     <- Proceed   mappings and limits written
//!   NeedsHooks (if there are any)     ->
//!                                     <- Proceed   prestart and createRuntime hooks have run
//!   Ready                             ->
//!                                     <- Proceed   state with the pid is on disk
//! ```
//!
//! `Warning` and `Console` (with the terminal's main side) may come at any time before the end, and `Failed` instead
//! of anything. Whoever finds the other gone gives up: a runtime that is killed leaves no half-made container running.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_runtime_sys::socket;
use serde::{Deserialize, Serialize};

use crate::context::Context as _;
use crate::{ErrorKind, StepError};

/// No message is larger; a failure's text is cut before.
const MAX_BYTES: usize = 16 << 10;
/// More warnings than that are not kept.
const MAX_WARNINGS: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Forked(i32),
    NeedsMapping,
    NeedsHooks,
    Warning(String),
    Console,
    Ready,
    Failed(StepError),
}

/// Both ends, before the fork.
pub(crate) fn pair() -> Result<(Parent, Child), StepError> {
    let (parent, child) = socket::packet_pair().to(|| "make the socket pair to init")?;
    Ok((
        Parent {
            socket: Some(parent),
            warnings: Vec::new(),
            console: None,
        },
        Child { socket: child },
    ))
}

/// The runtime's end.
#[derive(Debug)]
pub(crate) struct Parent {
    socket: Option<OwnedFd>,
    pub(crate) warnings: Vec<String>,
    pub(crate) console: Option<OwnedFd>,
}

/// Where the child waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    Mapping,
    Hooks,
    Ready,
    /// Its end of the socket is closed: it has executed its command, or died.
    Gone,
}

impl Parent {
    /// In a forked child: while it holds this end, it would never see the runtime's end.
    pub(crate) fn close(&mut self) {
        self.socket = None;
    }

    fn socket(&self) -> Result<BorrowedFd<'_>, StepError> {
        let socket = self.socket.as_ref().map(OwnedFd::as_fd);
        socket.ok_or_else(|| StepError::other("the socket to init is closed"))
    }

    /// The pid of the process that the intermediate child has forked.
    pub(crate) fn forked(&mut self) -> Result<i32, StepError> {
        match self.receive()? {
            Some(Report::Forked(pid)) => Ok(pid),
            Some(Report::Failed(error)) => Err(error),
            other => Err(StepError::other(format!(
                "the stage child sent {other:?} too early"
            ))),
        }
    }

    /// Listens until the child waits for something, or is gone.
    pub(crate) fn next(&mut self) -> Result<Waits, StepError> {
        loop {
            match self.receive()? {
                None => return Ok(Waits::Gone),
                Some(Report::NeedsMapping) => return Ok(Waits::Mapping),
                Some(Report::NeedsHooks) => return Ok(Waits::Hooks),
                Some(Report::Ready) => return Ok(Waits::Ready),
                Some(Report::Failed(error)) => return Err(error),
                Some(Report::Warning(text)) if self.warnings.len() < MAX_WARNINGS => self.warnings.push(text),
                Some(Report::Warning(_) | Report::Console | Report::Forked(_)) => {}
            }
        }
    }

    /// Lets the child go on.
    pub(crate) fn proceed(&self) -> Result<(), StepError> {
        socket::send(self.socket()?, b"go", &[])
            .to(|| "let init go on")
            .map(drop)
    }

    fn receive(&mut self) -> Result<Option<Report>, StepError> {
        let mut buffer = vec![0; MAX_BYTES];
        let (length, mut fds) = match socket::receive(self.socket()?, &mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            other => other.to(|| "hear from init")?,
        };
        if length == 0 {
            return Ok(None);
        }
        let report = serde_json::from_slice(&buffer[..length])
            .map_err(|e| StepError::other(format!("init sent something that isn't a report: {e}")))?;
        if matches!(report, Report::Console) {
            self.console = fds.pop();
        }
        Ok(Some(report))
    }
}

/// The child's end.
#[derive(Debug)]
pub(crate) struct Child {
    socket: OwnedFd,
}

impl Child {
    /// The same end, in a child of the child.
    pub(crate) fn from_socket(socket: OwnedFd) -> Self {
        Self { socket }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn forked(&self, pid: i32) -> Result<(), StepError> {
        self.send(&Report::Forked(pid), &[])
    }

    pub(crate) fn needs_mapping(&self) -> Result<(), StepError> {
        self.send(&Report::NeedsMapping, &[])?;
        self.wait()
    }

    pub(crate) fn needs_hooks(&self) -> Result<(), StepError> {
        self.send(&Report::NeedsHooks, &[])?;
        self.wait()
    }

    pub(crate) fn ready(&self) -> Result<(), StepError> {
        self.send(&Report::Ready, &[])?;
        self.wait()
    }

    pub(crate) fn console(&self, main: BorrowedFd<'_>) -> Result<(), StepError> {
        self.send(&Report::Console, &[main])
    }

    /// Nothing depends on a warning's arrival.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        let mut text = text.into();
        cut(&mut text);
        let _ = self.send(&Report::Warning(text), &[]);
    }

    /// The last word.
    pub(crate) fn failed(&self, mut error: StepError) {
        cut(&mut error.message);
        let _ = self.send(&Report::Failed(error), &[]);
    }

    fn send(&self, report: &Report, fds: &[BorrowedFd<'_>]) -> Result<(), StepError> {
        let bytes = serde_json::to_vec(report).map_err(|e| StepError::other(e.to_string()))?;
        socket::send(self.socket.as_fd(), &bytes, fds)
            .to(|| "report to the runtime")
            .map(drop)
    }

    fn wait(&self) -> Result<(), StepError> {
        let mut buffer = [0; 8];
        match socket::receive(self.socket.as_fd(), &mut buffer).to(|| "hear from the runtime")? {
            (0, _) => Err(StepError::new(ErrorKind::Other, "the runtime is gone")),
            _ => Ok(()),
        }
    }
}

/// JSON escapes may make a byte six long.
fn cut(text: &mut String) {
    let mut end = text.len().min(MAX_BYTES / 8);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
