//! The daemon's side of the shim: starting one per pod, finding it again after a restart, calling it, hearing
//! from it.
//!
//! The rest of the server sees two traits. An [`OciRuntime`] has the pods' shims; a [`Shim`] is one of them. What
//! happens without being asked (a container's end, a shim's death) arrives as a [`ShimEvent`] on one channel for all
//! pods. [`Shims`] is the real thing: processes, sockets, [`cri_shim_protocol`]; [`fake::FakeShims`] is a scripted
//! one in memory, for tests of everything above.
//!
//! ```text
//!   start_shim ──> bind shim.sock ──> spawn orlop-shim, the listening socket as its stdin ──> connect ──> Subscribe
//!   find_shim  ──> connect: refused ──> None, the shim is dead      accepted ──> Subscribe ──> its whole state
//!   the process ends ──> connect: refused ──> every call under way fails with `Died`, then `ShimEvent::Died`
//!   the connection ends ──> calls under way fail with `Disconnected`; connect ──> accepted ──> Subscribe
//! ```
//!
//! No order of kills loses an exit code: the shim keeps each one in its memory for [`Shim::state`] and on disk for
//! [`OciRuntime::recorded_exits`].

mod attach;
mod connection;

pub mod fake;
mod image;
mod kill;
mod shims;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cri_api::PodSandboxId;
use cri_shim_protocol::{
    ContainerState, Create, Event, Exec, Exit, PinNamespaces, Runtime, ShimError, ShimState,
};
use tokio::sync::oneshot;

pub use attach::{AttachReader, AttachStream, AttachWriter};
pub use image::{ImageError, ShimImage};
pub use shims::{Shims, ShimsConfig};

/// Has the pods' shims.
#[async_trait]
pub trait OciRuntime: Send + Sync {
    /// Starts the sandbox's shim; its folder is made when it is missing.
    ///
    /// # Errors
    /// When a shim of this sandbox lives already, or the new one can't be started or reached.
    async fn start_shim(&self, sandbox: &PodSandboxId) -> Result<Arc<dyn Shim>, ShimCallError>;

    /// Connects to the shim that an earlier daemon started; `None` when it is dead.
    ///
    /// # Errors
    /// When it lives but can't be reached or doesn't answer.
    async fn find_shim(&self, sandbox: &PodSandboxId) -> Result<Option<Arc<dyn Shim>>, ShimCallError>;

    /// Ends a shim that can't be reached or doesn't answer, by force; that there is none is no error.
    ///
    /// # Errors
    /// When it can't be found or doesn't end.
    async fn kill_shim(&self, sandbox: &PodSandboxId) -> Result<(), ShimCallError>;

    /// The exits that a shim, dead by now, wrote down, by container.
    ///
    /// # Errors
    /// When its folder can't be read; that it doesn't exist is no error.
    async fn recorded_exits(&self, sandbox: &PodSandboxId) -> Result<Vec<ContainerState>, ShimCallError>;

    /// Deletes a container whose shim is dead, running or not, through its runtime; that there is none is no error.
    ///
    /// # Errors
    /// [`ShimCallError::Refused`] in the runtime's words.
    async fn destroy(&self, container: &str, root: &Path, runtime: &Runtime) -> Result<(), ShimCallError>;

    /// Removes the dead shim's socket and folder; that there is none is no error.
    ///
    /// # Errors
    /// When something can't be removed.
    async fn remove_traces(&self, sandbox: &PodSandboxId) -> Result<(), ShimCallError>;
}

/// One pod's shim. Every call has a time-out of its own and fails with [`ShimCallError::Died`] as soon as the shim
/// is gone.
#[async_trait]
pub trait Shim: Send + Sync {
    /// The shim's process.
    fn pid(&self) -> i32;

    /// Makes and pins the pod's namespaces; returns the pod's own init, with a PID namespace.
    async fn pin_namespaces(&self, request: PinNamespaces) -> Result<Option<i32>, ShimCallError>;

    /// Creates a container; returns its init's process ID.
    async fn create(&self, request: Create) -> Result<i32, ShimCallError>;

    /// Lets a created container's init go.
    async fn start(&self, container: &str) -> Result<(), ShimCallError>;

    /// Signals a container's init, or all of the container's processes. A container that has exited is refused
    /// with [`WrongState`](cri_shim_protocol::ErrorKind::WrongState).
    async fn kill(&self, container: &str, signal: i32, all: bool) -> Result<(), ShimCallError>;

    /// Removes a container; that the shim doesn't know it is no error.
    async fn delete(&self, container: &str, force: bool) -> Result<(), ShimCallError>;

    /// Runs a process in a running container. `fds` as [`cri_shim_protocol::Request::Exec`] says.
    async fn exec(&self, request: Exec, fds: Vec<OwnedFd>) -> Result<ExecHandle, ShimCallError>;

    /// Signals an exec'd process; with `SIGKILL` of one that still starts, it never runs.
    async fn kill_exec(&self, container: &str, exec: &str, signal: i32) -> Result<(), ShimCallError>;

    /// Joins a container's stdio.
    async fn attach(&self, container: &str, streams: AttachTo) -> Result<AttachStream, ShimCallError>;

    /// Sets the size of a container's terminal, in columns and rows.
    async fn resize(&self, container: &str, width: u16, height: u16) -> Result<(), ShimCallError>;

    /// Opens the container's log path anew, between two lines.
    async fn reopen_log(&self, container: &str) -> Result<(), ShimCallError>;

    /// Applies new limits: an OCI `LinuxResources` in JSON.
    async fn update(&self, container: &str, resources: String) -> Result<(), ShimCallError>;

    /// All that the shim holds.
    async fn state(&self) -> Result<ShimState, ShimCallError>;

    /// Ends the shim, the pod's own init with it, and returns once the process is gone. Refused with
    /// [`Busy`](cri_shim_protocol::ErrorKind::Busy) while a container lives, unless `force`. A shim that is already
    /// gone is no error.
    async fn shutdown(&self, force: bool) -> Result<(), ShimCallError>;
}

/// Which of a container's streams to join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachTo {
    /// Send stdin.
    pub stdin: bool,
    /// Hear stdout.
    pub stdout: bool,
    /// Hear stderr.
    pub stderr: bool,
}

/// A process that was started in a running container.
#[derive(Debug)]
pub struct ExecHandle {
    /// Its process ID, in the host's PID namespace.
    pub pid: i32,
    /// The main side of its terminal, if it has one; see [`oci_runtime_sys`] for setting its size.
    pub console: Option<OwnedFd>,
    /// Its end. Errs when the shim dies first.
    pub exit: oneshot::Receiver<Exit>,
}

/// What a shim says unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimEvent {
    /// A container or the pod's own init ended. (The end of an exec goes to its [`ExecHandle`].)
    Event(Event),
    /// The shim is gone, without having been asked by [`Shim::shutdown`]; its containers live on without stdio.
    Died,
}

/// Why a call to a shim failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimCallError {
    /// The shim did what it could and says why it failed.
    #[error("{0}")]
    Refused(ShimError),
    /// The shim is gone.
    #[error("shim died")]
    Died,
    /// No answer came.
    #[error("shim did not answer `{call}` within {after:?}")]
    Timeout {
        /// What was asked.
        call: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke although the shim lives; it's made anew, but what came of this call is unknown.
    #[error("connection to the shim broke during `{call}`")]
    Disconnected {
        /// What was asked.
        call: &'static str,
    },
    /// The shim answered something that doesn't fit the question.
    #[error("shim gave an answer that does not fit `{call}`")]
    WrongAnswer {
        /// What was asked.
        call: &'static str,
    },
    /// A shim of this sandbox lives already.
    #[error("a shim of sandbox {0} is already running")]
    AlreadyRunning(PodSandboxId),
    /// The shim's executable can't be protected from containers.
    #[error("failed to prepare the shim's executable")]
    Image(#[source] ImageError),
    /// The shim's executable can't be run.
    #[error("failed to start shim `{path}`")]
    Spawn {
        /// The executable.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file, folder or socket of the shim.
    #[error("failed to {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The request can't be sent.
    #[error("failed to encode a request for the shim")]
    Encode(#[source] cri_shim_protocol::FrameError),
}

impl ShimCallError {
    /// The shim's own words on what kind of failure this is, where it had a say.
    pub fn kind(&self) -> Option<cri_shim_protocol::ErrorKind> {
        match self {
            Self::Refused(error) => Some(error.kind),
            _ => None,
        }
    }
}
