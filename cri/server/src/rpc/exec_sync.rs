//! ExecSync: runs a command in a container, and returns all that it wrote.
//!
//! Output is kept up to a bound and read beyond it, so that the command never waits. A time-out kills the command.
//! After its end, its children that hold on to its output are waited for a little, not for ever.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cri_api::v1::{ExecSyncRequest, ExecSyncResponse};
use cri_shim_protocol::{ErrorKind, Exec, Exit};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use oci_spec::runtime::{Process, Spec};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

use super::containers::running;
use crate::errors::CallError;
use crate::node::Node;
use crate::shim::ExecHandle;
use crate::spec;
use crate::store::Container;

/// What of each stream is returned at most: both fit into one message of 16 MiB, with room for its framing.
const MAX_OUTPUT: usize = (8 << 20) - (4 << 10);
/// How long children may hold on to a dead command's output.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a killed command may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;

pub(super) async fn exec(node: Arc<Node>, request: ExecSyncRequest) -> Result<ExecSyncResponse, CallError> {
    let container = node.store.find_container(&request.container_id)?;
    running(&container)?;
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(CallError::file("make", "a pipe".as_ref()));
    let (out_read, out_write) = pipe()?;
    let (err_read, err_write) = pipe()?;
    let reader =
        |fd: OwnedFd| Receiver::from_owned_fd(fd).map_err(CallError::file("read", "a pipe".as_ref()));
    let (out_read, err_read) = (reader(out_read)?, reader(err_read)?);
    let wanted = Wanted {
        cmd: request.cmd,
        tty: false,
        stdin: false,
        stdout: true,
        stderr: true,
        size: None,
    };
    let mut abandoned = Abandoned::new(&node, &container);
    let name = abandoned.name.clone();
    let handle = start_exec(&node, &container, &name, wanted, vec![out_write, err_write]).await?;
    let output = [Output::collect(out_read), Output::collect(err_read)];
    let finished = finish(&node, &container, &name, handle, request.timeout, output).await;
    abandoned.over = true;
    finished
}

/// Kills the command when its caller has left before it was over.
struct Abandoned {
    node: Arc<Node>,
    container: Arc<Container>,
    name: String,
    over: bool,
}

impl Abandoned {
    fn new(node: &Arc<Node>, container: &Arc<Container>) -> Self {
        Self {
            node: node.clone(),
            container: container.clone(),
            name: next_name(node),
            over: false,
        }
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let Ok(shim) = self.node.shim_of(&self.container) else {
            return;
        };
        let (container, name) = (self.container.id.to_string(), std::mem::take(&mut self.name));
        tokio::spawn(async move {
            match shim.kill_exec(&container, &name, SIGKILL).await {
                // It never came to be, or it is over.
                Err(error) if error.kind() == Some(ErrorKind::NotFound) => {}
                Err(error) => {
                    tracing::warn!(container_id = container, %error, "failed to kill an abandoned command")
                }
                Ok(()) => tracing::info!(container_id = container, "killed a command whose caller has left"),
            }
        });
    }
}

async fn finish(
    node: &Node,
    container: &Container,
    name: &str,
    handle: ExecHandle,
    timeout: i64,
    [mut stdout, mut stderr]: [Output; 2],
) -> Result<ExecSyncResponse, CallError> {
    let mut exit = handle.exit;
    let ended = match u64::try_from(timeout).ok().filter(|t| *t > 0) {
        None => (&mut exit).await,
        Some(seconds) => match tokio::time::timeout(Duration::from_secs(seconds), &mut exit).await {
            Ok(ended) => ended,
            Err(_) => {
                kill(node, container, name, exit).await;
                return Err(CallError::Deadline(format!(
                    "the command timed out after {seconds} s and was killed"
                )));
            }
        },
    };
    let exit = ended.map_err(|_| {
        CallError::Unavailable("the shim died or was out of reach when the command ended".to_owned())
    })?;
    let both = async { tokio::join!(stdout.ended(), stderr.ended()) };
    if tokio::time::timeout(DRAIN, both).await.is_err() {
        // What the command itself wrote was in the pipes before it ended, so it is here; its children go on alone.
        tracing::debug!(container_id = %container.id, "a command left processes that keep its output open");
    }
    Ok(ExecSyncResponse {
        stdout: stdout.take(),
        stderr: stderr.take(),
        exit_code: exit.code,
    })
}

async fn kill(node: &Node, container: &Container, name: &str, exit: tokio::sync::oneshot::Receiver<Exit>) {
    let Ok(shim) = node.shim_of(container) else { return };
    if let Err(error) = shim.kill_exec(container.id.as_str(), name, SIGKILL).await {
        tracing::warn!(container_id = %container.id, %error, "failed to kill a command that timed out");
        return;
    }
    if tokio::time::timeout(KILL_PATIENCE, exit).await.is_err() {
        tracing::warn!(container_id = %container.id, "a killed command is still there");
    }
}

/// What to run.
pub(crate) struct Wanted {
    /// The command.
    pub(crate) cmd: Vec<String>,
    /// With a terminal.
    pub(crate) tty: bool,
    /// A descriptor for stdin is passed.
    pub(crate) stdin: bool,
    /// A descriptor for stdout is passed.
    pub(crate) stdout: bool,
    /// A descriptor for stderr is passed.
    pub(crate) stderr: bool,
    /// The terminal's columns and rows.
    pub(crate) size: Option<(u16, u16)>,
}

/// A name for an exec.
pub(crate) fn next_name(node: &Node) -> String {
    format!("e{}", node.execs.fetch_add(1, Ordering::Relaxed))
}

/// Starts a command in a container under that name.
pub(crate) async fn start_exec(
    node: &Node,
    container: &Container,
    name: &str,
    wanted: Wanted,
    fds: Vec<OwnedFd>,
) -> Result<ExecHandle, CallError> {
    let process = process(node, container, &wanted.cmd, wanted.tty).await?;
    let process = serde_json::to_string(&process)
        .map_err(std::io::Error::from)
        .map_err(CallError::file("encode", "the process".as_ref()))?;
    let request = Exec {
        container: container.id.to_string(),
        exec: name.to_owned(),
        process,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
        size: wanted.size,
    };
    let started = node.shim_of(container)?.exec(request, fds).await;
    started.map_err(CallError::shim("run the command"))
}

/// The process of an exec, from the container's own, which is read from its bundle once.
async fn process(
    node: &Node,
    container: &Container,
    cmd: &[String],
    tty: bool,
) -> Result<Process, CallError> {
    let own = container
        .process
        .get_or_try_init(|| async {
            let path = node.paths.bundle(container.id.as_str()).join("config.json");
            let bytes = tokio::fs::read(&path)
                .await
                .map_err(CallError::file("read", &path))?;
            let spec: Spec = serde_json::from_slice(&bytes)
                .map_err(std::io::Error::from)
                .map_err(CallError::file("decode", &path))?;
            let process = spec.process().clone();
            process.map(Arc::new).ok_or(CallError::Lost)
        })
        .await?;
    let mut spec = Spec::default();
    spec.set_process(Some((**own).clone()));
    Ok(spec::exec_process(&spec, cmd, tty)?)
}

/// A stream that is read by a task of its own, to the end; the first [`MAX_OUTPUT`] bytes are kept.
struct Output {
    kept: Arc<Mutex<Vec<u8>>>,
    reading: JoinHandle<()>,
}

impl Output {
    fn collect(mut pipe: Receiver) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let theirs = kept.clone();
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
                let mut kept = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                let room = MAX_OUTPUT - kept.len();
                kept.extend_from_slice(&buffer[..n.min(room)]);
            }
        });
        Self { kept, reading }
    }

    /// Waits until nobody holds the stream open any more.
    async fn ended(&mut self) {
        // It can't fail: it doesn't panic, and is aborted only when this is dropped.
        let _ = (&mut self.reading).await;
    }

    /// What was read so far.
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn what_was_written_is_there_even_if_somebody_holds_the_pipe() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut output = Output::collect(Receiver::from_owned_fd(read).unwrap());
        let mut file = std::fs::File::from(write);
        file.write_all(b"said").unwrap();
        let held = tokio::time::timeout(Duration::from_millis(100), output.ended()).await;
        assert!(held.is_err());
        assert_eq!(output.take(), b"said");
        drop(file);
        output.ended().await;
    }

    #[tokio::test]
    async fn output_beyond_the_bound_is_read_and_dropped() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut output = Output::collect(Receiver::from_owned_fd(read).unwrap());
        let writer = std::thread::spawn(move || {
            let mut file = std::fs::File::from(write);
            let block = vec![7; 1 << 20];
            for _ in 0..17 {
                file.write_all(&block).unwrap();
            }
        });
        output.ended().await;
        writer.join().unwrap();
        assert_eq!(output.take().len(), MAX_OUTPUT);
    }
}
