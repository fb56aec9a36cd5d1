//! The versioned messages between the daemon and a pod's shim: all that `cri/server` knows of the shim.
//!
//! The shim listens on one Unix stream socket. A [`Frame`] on it is a little-endian `u32` length and that many
//! bytes of JSON; file descriptors travel as `SCM_RIGHTS` with the frame's first byte, in the order that the
//! request's documentation gives. The daemon opens one connection (more are allowed), numbers its requests, and
//! may have many under way; the shim answers each once, in any order, and after [`Request::Subscribe`] sends
//! [`Event`]s on that connection too. Whoever sends a frame that doesn't decode is disconnected.
//!
//! The daemon hands the listening socket to the shim at its start, as its standard input. So `connect` succeeds exactly while a shim lives
//! (even one that has not yet reached its main), and is refused when none does: no pid file, no polling.
//!
//! Compatibility: a daemon speaks to shims of older builds. Fields and variants are only added; a shim refuses a
//! variant that it doesn't know with [`ErrorKind::Unsupported`]; [`VERSION`] rises when a meaning changes.

mod frame;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use frame::{FrameError, FrameReader, MAX_FRAME_BYTES, MAX_FRAME_FDS, encode};

/// The version of this protocol's meaning.
pub const VERSION: u32 = 1;

/// What the daemon sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the daemon, unique among its calls under way on this connection; never 0.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the shim sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// The answer to the call of that number.
    Answer {
        /// The call's number.
        id: u64,
        /// What came of it.
        result: Result<Reply, ShimError>,
    },
    /// Something happened (only after [`Request::Subscribe`]).
    Event(Event),
}

/// A request to the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Request {
    /// Says who is speaking; answered by [`Reply::State`].
    Hello {
        /// The daemon's [`VERSION`].
        version: u32,
    },
    /// Sends this connection every later [`Event`]; answered by [`Reply::State`], so that nothing falls between.
    Subscribe,
    /// Makes the pod's namespaces in a stage child and pins each by a bind mount; answered by [`Reply::Pinned`].
    PinNamespaces(PinNamespaces),
    /// Creates a container up to the point where its init waits for [`Request::Start`]; answered by
    /// [`Reply::Created`].
    Create(Create),
    /// Lets a created container's init go; answered by [`Reply::Done`] once `execve` is let go.
    Start {
        /// The container.
        container: String,
    },
    /// Signals a container's init, or with `all` every process in it.
    Kill {
        /// The container.
        container: String,
        /// The signal's number.
        signal: i32,
        /// Every process of the container's cgroup.
        all: bool,
    },
    /// Removes a stopped (or with `force`, killed) container's state, cgroup and file descriptors; a container
    /// that the shim doesn't know is [`Reply::Done`] too. One that is still being created is given up.
    Delete {
        /// The container.
        container: String,
        /// Kill it first.
        force: bool,
    },
    /// Runs a process in a running container; answered by [`Reply::ExecStarted`], its end comes as
    /// [`Event::ExecExited`]. Descriptors without a terminal: one for each of stdin, stdout, stderr whose flag is
    /// set, in that order, each connected straight to the process. With a terminal: none; the terminal's main side
    /// comes back as the answer's one descriptor.
    Exec(Exec),
    /// Signals an exec'd process (and nothing else: its children are the container's). One that still starts gets
    /// the signal as soon as it exists.
    KillExec {
        /// The container.
        container: String,
        /// The exec's name.
        exec: String,
        /// The signal's number.
        signal: i32,
    },
    /// Joins a stream to a container's stdio. One descriptor: a stream socket on which both sides send
    /// chunks as [`attach`] says. Closed by the shim when the container ends, after all output.
    Attach {
        /// The container.
        container: String,
        /// Whether chunks of stdin are read.
        stdin: bool,
        /// Whether stdout is sent.
        stdout: bool,
        /// Whether stderr is sent.
        stderr: bool,
    },
    /// Sets the size of a container's terminal.
    Resize {
        /// The container.
        container: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Closes the log file and opens its path anew, between two lines.
    ReopenLog {
        /// The container.
        container: String,
    },
    /// Applies new limits. `resources` is an OCI `LinuxResources` in JSON.
    Update {
        /// The container.
        container: String,
        /// OCI `LinuxResources`, JSON.
        resources: String,
    },
    /// Asks for [`Reply::State`].
    State,
    /// Ends the shim: refused with [`ErrorKind::Busy`] while a container's process lives, unless `force`, which
    /// kills them. The pod's own init process, if any, ends with it.
    Shutdown {
        /// Kill what is left.
        force: bool,
    },
}

/// Which namespaces to make and where to pin them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinNamespaces {
    /// Each namespace to make with the path of an existing regular file to bind it to. A user namespace is made
    /// first and owns the others. A PID namespace starts the pod's own tiny init in it.
    pub namespaces: Vec<(NamespaceKind, PathBuf)>,
    /// Set in the new UTS namespace.
    pub hostname: Option<String>,
    /// Set with the new namespaces entered: names in dotted or slashed form.
    pub sysctls: Vec<(String, String)>,
    /// `(container, host, length)`; must not be empty where a user namespace is made.
    pub uid_mappings: Vec<(u32, u32, u32)>,
    /// As `uid_mappings`.
    pub gid_mappings: Vec<(u32, u32, u32)>,
    /// The cgroup that the pod's init is put into, as an OCI `linux.cgroupsPath`; only with a PID namespace.
    pub init_cgroup: Option<String>,
}

/// A kind of namespace that a sandbox can own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceKind {
    /// CLONE_NEWUSER.
    User,
    /// CLONE_NEWNET.
    Network,
    /// CLONE_NEWIPC.
    Ipc,
    /// CLONE_NEWUTS.
    Uts,
    /// CLONE_NEWPID.
    Pid,
}

/// How to create a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// The container's ID.
    pub container: String,
    /// The bundle's folder: `config.json` in it.
    pub bundle: PathBuf,
    /// Where the runtime keeps its state of containers.
    pub runtime_root: PathBuf,
    /// Which runtime creates it.
    pub runtime: Runtime,
    /// Whether stdio is a terminal; must agree with `process.terminal` in `config.json`.
    pub terminal: bool,
    /// Whether stdin is kept open for attach; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Whether stdin closes for good when the first attached client with stdin leaves.
    pub stdin_once: bool,
    /// The CRI log file; none: output is only for attached clients.
    pub log_path: Option<PathBuf>,
    /// A line longer than this many bytes is split into parts tagged `P`.
    pub max_log_line: u32,
    /// It has no PID namespace of its own, so the kernel leaves its other processes alone when its init ends: the
    /// shim kills them.
    #[serde(default)]
    pub kill_all_at_exit: bool,
}

/// Which OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// The linked-in library.
    Builtin {
        /// Cgroups are made by systemd, and `cgroupsPath` is `slice:prefix:name`.
        systemd_cgroup: bool,
    },
    /// A runc-compatible command line.
    Command {
        /// The executable.
        path: PathBuf,
        /// Pass `--systemd-cgroup`.
        systemd_cgroup: bool,
    },
}

/// How to run a process in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The container.
    pub container: String,
    /// Names this exec, unique in the container while it runs.
    pub exec: String,
    /// OCI `Process`, JSON.
    pub process: String,
    /// A descriptor for stdin is passed.
    pub stdin: bool,
    /// A descriptor for stdout is passed.
    pub stdout: bool,
    /// A descriptor for stderr is passed.
    pub stderr: bool,
    /// Columns and rows to start with; only for a terminal.
    pub size: Option<(u16, u16)>,
}

/// An answer without error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Reply {
    /// It is done.
    Done,
    /// The namespaces exist and are pinned.
    Pinned {
        /// The pod's own init, with a PID namespace.
        init_pid: Option<i32>,
    },
    /// The container exists.
    Created {
        /// Its init's process ID, in the shim's PID namespace.
        pid: i32,
    },
    /// The process runs.
    ExecStarted {
        /// Its process ID, in the shim's PID namespace.
        pid: i32,
        /// The main side of its terminal comes with this frame.
        #[serde(default)]
        console: bool,
    },
    /// All that the shim holds.
    State(ShimState),
}

/// What a shim holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimState {
    /// The shim's [`VERSION`].
    pub version: u32,
    /// The shim's own process.
    pub pid: i32,
    /// The pod's own init, if it has one that lives.
    pub init_pid: Option<i32>,
    /// Every container that was created and not yet deleted.
    pub containers: Vec<ContainerState>,
}

/// A container as its shim sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The container's ID.
    pub container: String,
    /// Where it is in its life.
    pub status: Status,
    /// The execs that run in it or are about to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub execs: Vec<String>,
}

/// Where a container is in its life: created, running, exited, in that order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum Status {
    /// Init waits for start.
    Created {
        /// Init's process ID.
        pid: i32,
    },
    /// Init runs.
    Running {
        /// Init's process ID.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Init has ended and all its output is in the log.
    Exited {
        /// Nanoseconds since the epoch; 0 if it was never started.
        started_at: i64,
        /// How it ended.
        exit: Exit,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 plus the signal's number.
    pub code: i32,
    /// The kernel's OOM killer ended something in this container's cgroup.
    pub oom_killed: bool,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

/// Something that happened, sent to subscribers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Event {
    /// A container's init ended; all its output is in the log.
    ContainerExited {
        /// The container.
        container: String,
        /// How.
        exit: Exit,
    },
    /// An exec'd process ended.
    ExecExited {
        /// The container.
        container: String,
        /// The exec's name.
        exec: String,
        /// How.
        exit: Exit,
    },
    /// The pod's own init ended, and with it every process of the shared PID namespace.
    InitExited,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ShimError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What failed, with its causes, in one line.
    pub message: String,
}

/// Kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The shim has no such container or exec.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The container isn't in the state that this needs.
    WrongState,
    /// The command to run doesn't exist or can't be executed.
    CommandNotFound,
    /// The request makes no sense.
    Invalid,
    /// Something still runs.
    Busy,
    /// This shim doesn't know the request.
    Unsupported,
    /// Anything else: the kernel, the disk, the runtime.
    Failed,
}

/// Chunks on an attach stream: a byte for the [`attach::Stream`], a little-endian `u32` length, the bytes.
pub mod attach {
    /// What an attached client may leave unread before the shim disconnects it, in bytes.
    pub const MAX_UNREAD_BYTES: usize = 1 << 20;
    /// The longest chunk either side sends, in bytes.
    pub const MAX_CHUNK_BYTES: usize = 32 << 10;
    /// A chunk's header, in bytes.
    pub const HEADER_BYTES: usize = 5;

    /// What a chunk carries.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Stream {
        /// To the container. An empty chunk says that the client's stdin has ended; with
        /// [`Create::stdin_once`](crate::Create::stdin_once) the container's ends then too.
        Stdin = 0,
        /// From the container.
        Stdout = 1,
        /// From the container.
        Stderr = 2,
        /// The reason, as text, for which the shim closes this stream; the last chunk.
        Reason = 3,
    }

    /// A header for `len` bytes on `stream`.
    pub fn header(stream: Stream, len: u32) -> [u8; HEADER_BYTES] {
        let len = len.to_le_bytes();
        [stream as u8, len[0], len[1], len[2], len[3]]
    }

    /// Reads a header; `None` for an unknown stream or a length over [`MAX_CHUNK_BYTES`].
    pub fn parse_header(bytes: [u8; HEADER_BYTES]) -> Option<(Stream, usize)> {
        let stream = match bytes[0] {
            0 => Stream::Stdin,
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            3 => Stream::Reason,
            _ => return None,
        };
        let len = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        (len <= MAX_CHUNK_BYTES).then_some((stream, len))
    }
}
