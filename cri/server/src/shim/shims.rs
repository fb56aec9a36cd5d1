//! Real shims: processes, and calls over their sockets.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use cri_api::PodSandboxId;
use cri_shim_protocol::{
    ContainerState, Create, Exec, PinNamespaces, Reply, Request, Runtime, ShimError, ShimState, VERSION,
};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};

use super::connection::{Connection, Reached, reach};
use super::kill::kill_shim;
use super::{AttachStream, AttachTo, ExecHandle, OciRuntime, Shim, ShimCallError, ShimEvent, ShimImage};

/// For what the shim gives to a stage child, which has two minutes there.
const LONG: Duration = Duration::from_secs(130);
/// For what the shim does at once.
const SHORT: Duration = Duration::from_secs(15);
/// How much work of each kind one shim's stage children are given at once. In all fewer than it takes; apart, so that
/// what hangs on the way up (a command on a dead file system, a hook) never holds up the way down.
const MAX_MAKING: usize = 16;
const MAX_STARTING: usize = 8;
const MAX_EXECS_STARTING: usize = 16;
const MAX_ENDING: usize = 16;

/// How to run shims.
#[derive(Debug, Clone)]
pub struct ShimsConfig {
    /// The `orlop-shim` executable.
    pub shim: PathBuf,
    /// The folder with one folder per pod, in which each shim has `shim.sock` and `shim/`.
    pub state_dir: PathBuf,
    /// The leaf cgroup that shims join; `None`: they stay in the daemon's.
    pub cgroup: Option<String>,
}

/// The pods' shims.
#[derive(Debug)]
pub struct Shims {
    config: ShimsConfig,
    image: OnceLock<ShimImage>,
    events: mpsc::Sender<(PodSandboxId, ShimEvent)>,
}

impl Shims {
    /// No shim is started or looked for yet. What they say unasked goes to `events`.
    pub fn new(config: ShimsConfig, events: mpsc::Sender<(PodSandboxId, ShimEvent)>) -> Self {
        Self {
            config,
            image: OnceLock::new(),
            events,
        }
    }

    /// The executable that shims are started from, made at first use.
    ///
    /// # Errors
    /// See [`ImageError`](super::ImageError).
    pub fn image(&self) -> Result<&ShimImage, ShimCallError> {
        if let Some(image) = self.image.get() {
            return Ok(image);
        }
        let empty = self.config.state_dir.with_file_name("empty");
        let image = ShimImage::new(&self.config.shim, &empty).map_err(ShimCallError::Image)?;
        // When two make one at once, one is dropped.
        Ok(self.image.get_or_init(|| image))
    }

    fn socket(&self, sandbox: &PodSandboxId) -> PathBuf {
        self.config.state_dir.join(sandbox.as_str()).join("shim.sock")
    }

    fn folder(&self, sandbox: &PodSandboxId) -> PathBuf {
        self.config.state_dir.join(sandbox.as_str()).join("shim")
    }

    /// Makes the shim's folder and its listening socket.
    fn listen(
        &self,
        sandbox: &PodSandboxId,
    ) -> Result<(Folder, std::os::unix::net::UnixListener), ShimCallError> {
        let folder = self.folder(sandbox);
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&folder).map_err(io_error("create", &folder))?;
        let pod = self.config.state_dir.join(sandbox.as_str());
        let pod = Folder::open(pod)?;
        let socket = self.socket(sandbox);
        let listener = match std::os::unix::net::UnixStream::connect(pod.socket()) {
            Ok(_) => return Err(ShimCallError::AlreadyRunning(sandbox.clone())),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    // A dead shim's.
                    std::fs::remove_file(&socket).map_err(io_error("remove", &socket))?;
                }
                std::os::unix::net::UnixListener::bind(pod.socket())
            }
        };
        let listener = listener.map_err(io_error("listen on", &socket))?;
        Ok((pod, listener))
    }

    fn spawn(
        &self,
        sandbox: &PodSandboxId,
        listener: std::os::unix::net::UnixListener,
    ) -> Result<Child, ShimCallError> {
        let image = self.image()?;
        let mut command = Command::new(image.path());
        command.arg0("orlop-shim");
        command.arg("--state-dir").arg(self.folder(sandbox));
        command.args(["--sandbox", sandbox.as_str()]);
        if let Some(cgroup) = &self.config.cgroup {
            command.args(["--cgroup", cgroup]);
        }
        command.env_clear().current_dir("/");
        // Runtimes look for their helpers, hooks for theirs.
        command.env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null());
        command.spawn().map_err(|source| ShimCallError::Spawn {
            path: self.config.shim.clone(),
            source,
        })
    }

    fn serve(
        &self,
        sandbox: &PodSandboxId,
        pod: Folder,
        stream: UnixStream,
        child: Option<Child>,
    ) -> Arc<Connection> {
        Connection::serve(sandbox.clone(), pod, stream, child, self.events.clone())
    }
}

/// A pod's folder, held open: sockets in it are reached by a path that is short enough however deep it lies.
#[derive(Debug)]
pub(super) struct Folder {
    file: std::fs::File,
}

impl Folder {
    /// Opens it.
    pub(super) fn open(path: PathBuf) -> Result<Self, ShimCallError> {
        let file = std::fs::File::open(&path).map_err(io_error("open", &path))?;
        Ok(Self { file })
    }

    /// The socket's path, however deep it lies.
    pub(super) fn socket(&self) -> PathBuf {
        format!("/proc/self/fd/{}/shim.sock", self.file.as_raw_fd()).into()
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ShimCallError {
    let path = path.to_owned();
    move |source| ShimCallError::Io { what, path, source }
}

/// Ends a shim that was started and can't be reached.
fn abandon(mut child: Child) {
    // Fails only when it has ended.
    let _ = child.kill();
    tokio::task::spawn_blocking(move || child.wait());
}

#[async_trait]
impl OciRuntime for Shims {
    async fn start_shim(&self, sandbox: &PodSandboxId) -> Result<Arc<dyn Shim>, ShimCallError> {
        let (pod, listener) = self.listen(sandbox)?;
        let child = self.spawn(sandbox, listener)?;
        // A process ID is a positive i32.
        let pid = child.id() as i32;
        let stream = match UnixStream::connect(pod.socket()).await {
            Ok(stream) => stream,
            Err(error) => {
                abandon(child);
                return Err(io_error("connect to", &self.socket(sandbox))(error));
            }
        };
        let connection = self.serve(sandbox, pod, stream, Some(child));
        // Not waited for: the next call finds out whether the shim works.
        connection.send(Request::Subscribe).await?;
        Ok(RealShim::over(connection, pid))
    }

    async fn find_shim(&self, sandbox: &PodSandboxId) -> Result<Option<Arc<dyn Shim>>, ShimCallError> {
        let socket = self.socket(sandbox);
        let pod = match Folder::open(self.config.state_dir.join(sandbox.as_str())) {
            Ok(pod) => pod,
            Err(ShimCallError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let stream = match reach(&pod).await.map_err(io_error("connect to", &socket))? {
            Reached::Alive(stream) => stream,
            Reached::Dead => return Ok(None),
        };
        let connection = self.serve(sandbox, pod, stream, None);
        let hello = Request::Hello { version: VERSION };
        let (reply, _) = connection.call("hello", hello, Vec::new(), None, SHORT).await?;
        let Reply::State(ShimState { pid, .. }) = reply else {
            return Err(ShimCallError::WrongAnswer { call: "hello" });
        };
        connection.send(Request::Subscribe).await?;
        Ok(Some(RealShim::over(connection, pid)))
    }

    async fn kill_shim(&self, sandbox: &PodSandboxId) -> Result<(), ShimCallError> {
        let socket = self.socket(sandbox);
        let pod = match Folder::open(self.config.state_dir.join(sandbox.as_str())) {
            Ok(pod) => pod,
            Err(ShimCallError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Ok(Reached::Dead) = reach(&pod).await {
            return Ok(());
        }
        let id = sandbox.clone();
        let killed = tokio::task::spawn_blocking(move || kill_shim(id.as_str())).await;
        let killed = killed
            .map_err(|_| ShimCallError::Died)?
            .map_err(io_error("kill the shim at", &socket))?;
        tracing::warn!(sandbox_id = %sandbox, processes = killed, "killed a shim that did not answer");
        match reach(&pod).await.map_err(io_error("connect to", &socket))? {
            Reached::Dead => Ok(()),
            Reached::Alive(_) => Err(ShimCallError::AlreadyRunning(sandbox.clone())),
        }
    }

    async fn recorded_exits(&self, sandbox: &PodSandboxId) -> Result<Vec<ContainerState>, ShimCallError> {
        let folder = self.folder(sandbox).join("exits");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read", &folder)(error)),
        };
        let mut exits = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("read", &folder))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                // Half written when the shim was killed.
                continue;
            }
            let path = entry.path();
            let bytes = std::fs::read(&path).map_err(io_error("read", &path))?;
            match serde_json::from_slice::<ContainerState>(&bytes) {
                Ok(state) => exits.push(state),
                Err(error) => tracing::warn!(path = %path.display(), %error, "exit file is damaged"),
            }
        }
        exits.sort_by(|a, b| a.container.cmp(&b.container));
        Ok(exits)
    }

    async fn destroy(&self, container: &str, root: &Path, runtime: &Runtime) -> Result<(), ShimCallError> {
        let mut command = Command::new(self.image()?.path());
        command
            .arg("destroy")
            .arg("--root")
            .arg(root)
            .args(["--id", container]);
        if let Runtime::Command { path, .. } = runtime {
            command.arg("--runtime").arg(path);
        }
        let (Runtime::Builtin { systemd_cgroup } | Runtime::Command { systemd_cgroup, .. }) = runtime;
        if *systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let spawn = |source| ShimCallError::Spawn {
            path: self.config.shim.clone(),
            source,
        };
        let child = command.spawn().map_err(spawn)?;
        let pid = child.id() as i32;
        let waiting = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output = match tokio::time::timeout(LONG, waiting).await {
            Ok(Ok(output)) => output.map_err(spawn)?,
            Ok(Err(_)) => return Err(ShimCallError::Died),
            Err(_) => {
                // Ours and not collected: the thread still waits for it.
                let _ = oci_runtime_sys::stage::kill(pid, nix::libc::SIGKILL);
                return Err(ShimCallError::Timeout {
                    call: "destroy",
                    after: LONG,
                });
            }
        };
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ShimCallError::Refused(ShimError {
            kind: cri_shim_protocol::ErrorKind::Failed,
            message,
        }))
    }

    async fn remove_traces(&self, sandbox: &PodSandboxId) -> Result<(), ShimCallError> {
        let (socket, folder) = (self.socket(sandbox), self.folder(sandbox));
        let absent = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        absent(std::fs::remove_file(&socket)).map_err(io_error("remove", &socket))?;
        absent(std::fs::remove_dir_all(&folder)).map_err(io_error("remove", &folder))
    }
}

#[derive(Debug)]
struct RealShim {
    connection: Arc<Connection>,
    pid: i32,
    making: Arc<Semaphore>,
    starting: Arc<Semaphore>,
    execs: Arc<Semaphore>,
    ending: Arc<Semaphore>,
}

impl RealShim {
    fn over(connection: Arc<Connection>, pid: i32) -> Arc<dyn Shim> {
        Arc::new(Self {
            connection,
            pid,
            making: Arc::new(Semaphore::new(MAX_MAKING)),
            starting: Arc::new(Semaphore::new(MAX_STARTING)),
            execs: Arc::new(Semaphore::new(MAX_EXECS_STARTING)),
            ending: Arc::new(Semaphore::new(MAX_ENDING)),
        })
    }

    /// Asks for something that the shim does at once.
    async fn ask(
        &self,
        call: &'static str,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, ShimCallError> {
        let answer = self.connection.call(call, request, fds, None, SHORT).await;
        answer.map(|(reply, _)| reply)
    }

    /// Asks for something that the shim gives to a stage child.
    async fn work(
        &self,
        call: &'static str,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Option<OwnedFd>), ShimCallError> {
        let turns = match &request {
            Request::Start { .. } => &self.starting,
            Request::Exec(_) => &self.execs,
            Request::Kill { .. } | Request::Delete { .. } => &self.ending,
            _ => &self.making,
        };
        let timeout = |_| ShimCallError::Timeout { call, after: LONG };
        let turn = tokio::time::timeout(LONG, turns.clone().acquire_owned()).await;
        // The semaphores are never closed.
        let turn = turn.map_err(timeout)?.map_err(|_| ShimCallError::Died)?;
        self.connection.call(call, request, fds, Some(turn), LONG).await
    }
}

/// Expects no end of an exec that didn't start, or whose caller left before it was known to have.
struct Expected<'a> {
    connection: &'a Connection,
    container: String,
    exec: String,
    started: bool,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        if !self.started {
            self.connection.forget_exec(&self.container, &self.exec);
        }
    }
}

fn done(call: &'static str, reply: Reply) -> Result<(), ShimCallError> {
    match reply {
        Reply::Done => Ok(()),
        _ => Err(ShimCallError::WrongAnswer { call }),
    }
}

#[async_trait]
impl Shim for RealShim {
    fn pid(&self) -> i32 {
        self.pid
    }

    async fn pin_namespaces(&self, request: PinNamespaces) -> Result<Option<i32>, ShimCallError> {
        let call = "pin namespaces";
        match self
            .work(call, Request::PinNamespaces(request), Vec::new())
            .await?
        {
            (Reply::Pinned { init_pid }, _) => Ok(init_pid),
            _ => Err(ShimCallError::WrongAnswer { call }),
        }
    }

    async fn create(&self, request: Create) -> Result<i32, ShimCallError> {
        match self.work("create", Request::Create(request), Vec::new()).await? {
            (Reply::Created { pid }, _) => Ok(pid),
            _ => Err(ShimCallError::WrongAnswer { call: "create" }),
        }
    }

    async fn start(&self, container: &str) -> Result<(), ShimCallError> {
        let container = container.to_owned();
        let (reply, _) = self
            .work("start", Request::Start { container }, Vec::new())
            .await?;
        done("start", reply)
    }

    async fn kill(&self, container: &str, signal: i32, all: bool) -> Result<(), ShimCallError> {
        let container = container.to_owned();
        let request = Request::Kill {
            container,
            signal,
            all,
        };
        let reply = match all {
            true => self.work("kill", request, Vec::new()).await?.0,
            false => self.ask("kill", request, Vec::new()).await?,
        };
        done("kill", reply)
    }

    async fn delete(&self, container: &str, force: bool) -> Result<(), ShimCallError> {
        let container = container.to_owned();
        let request = Request::Delete { container, force };
        done("delete", self.work("delete", request, Vec::new()).await?.0)
    }

    async fn exec(&self, request: Exec, fds: Vec<OwnedFd>) -> Result<ExecHandle, ShimCallError> {
        let (container, exec) = (request.container.clone(), request.exec.clone());
        let exit = self.connection.expect_exec(&container, &exec);
        let mut expected = Expected {
            connection: &self.connection,
            container,
            exec,
            started: false,
        };
        match self.work("exec", Request::Exec(request), fds).await? {
            (Reply::ExecStarted { pid, .. }, console) => {
                expected.started = true;
                Ok(ExecHandle { pid, console, exit })
            }
            _ => Err(ShimCallError::WrongAnswer { call: "exec" }),
        }
    }

    async fn kill_exec(&self, container: &str, exec: &str, signal: i32) -> Result<(), ShimCallError> {
        let (container, exec) = (container.to_owned(), exec.to_owned());
        let request = Request::KillExec {
            container,
            exec,
            signal,
        };
        done("kill exec", self.ask("kill exec", request, Vec::new()).await?)
    }

    async fn attach(&self, container: &str, to: AttachTo) -> Result<AttachStream, ShimCallError> {
        let pair = std::os::unix::net::UnixStream::pair().and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
        });
        let (ours, theirs) = pair.map_err(io_error("make", Path::new("socket pair")))?;
        let request = Request::Attach {
            container: container.to_owned(),
            stdin: to.stdin,
            stdout: to.stdout,
            stderr: to.stderr,
        };
        done("attach", self.ask("attach", request, vec![theirs]).await?)?;
        Ok(AttachStream::new(ours))
    }

    async fn resize(&self, container: &str, width: u16, height: u16) -> Result<(), ShimCallError> {
        let container = container.to_owned();
        let request = Request::Resize {
            container,
            width,
            height,
        };
        done("resize", self.ask("resize", request, Vec::new()).await?)
    }

    async fn reopen_log(&self, container: &str) -> Result<(), ShimCallError> {
        let container = container.to_owned();
        let request = Request::ReopenLog { container };
        done("reopen log", self.ask("reopen log", request, Vec::new()).await?)
    }

    async fn update(&self, container: &str, resources: String) -> Result<(), ShimCallError> {
        let container = container.to_owned();
        let request = Request::Update { container, resources };
        done("update", self.work("update", request, Vec::new()).await?.0)
    }

    async fn state(&self) -> Result<ShimState, ShimCallError> {
        match self.ask("state", Request::State, Vec::new()).await? {
            Reply::State(state) => Ok(state),
            _ => Err(ShimCallError::WrongAnswer { call: "state" }),
        }
    }

    async fn shutdown(&self, force: bool) -> Result<(), ShimCallError> {
        self.connection.expect_end(true);
        let asked = self
            .ask("shutdown", Request::Shutdown { force }, Vec::new())
            .await;
        match asked.and_then(|reply| done("shutdown", reply)) {
            Ok(()) | Err(ShimCallError::Died | ShimCallError::Disconnected { .. }) => {}
            Err(error) => {
                self.connection.expect_end(false);
                return Err(error);
            }
        }
        let died = tokio::time::timeout(SHORT, self.connection.died()).await;
        died.map_err(|_| ShimCallError::Timeout {
            call: "shutdown",
            after: SHORT,
        })
    }
}
