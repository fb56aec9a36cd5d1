//! Shims in memory, for tests of what sits above them: containers that are entries in a map, ends and failures
//! when the test says so.
//!
//! A [`FakeShims`] outlives the server under test, as real shims outlive the daemon: hand the same one to a second
//! server to play a restart ([`FakeShims::subscribe`] moves the events over).

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cri_api::PodSandboxId;
use cri_shim_protocol::{
    ContainerState, Create, ErrorKind, Event, Exec, Exit, NamespaceKind, PinNamespaces, Runtime, ShimError,
    ShimState, Status, VERSION,
};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::{AttachStream, AttachTo, ExecHandle, OciRuntime, Shim, ShimCallError, ShimEvent};

/// Where the fakes' events go.
pub type Events = mpsc::Sender<(PodSandboxId, ShimEvent)>;

/// What the next exec does.
#[derive(Debug, Clone, Default)]
pub struct ExecScript {
    /// Written to its stdout.
    pub stdout: Vec<u8>,
    /// Written to its stderr.
    pub stderr: Vec<u8>,
    /// Its exit code; `None`: it runs until [`Shim::kill_exec`].
    pub code: Option<i32>,
}

/// All the fake shims.
#[derive(Debug)]
pub struct FakeShims {
    events: Mutex<Option<Events>>,
    shims: Mutex<BTreeMap<PodSandboxId, Arc<FakeShim>>>,
    /// Exits that survive [`FakeShims::die`].
    recorded: Mutex<BTreeMap<PodSandboxId, Vec<ContainerState>>>,
    /// Sandboxes whose traces are there.
    traces: Mutex<BTreeMap<PodSandboxId, ()>>,
    destroyed: Mutex<Vec<String>>,
    killed: Mutex<Vec<PodSandboxId>>,
    next_pid: Arc<AtomicI32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeShims {
    /// No shims yet; their events go to `events`.
    pub fn new(events: Events) -> Arc<Self> {
        Arc::new(Self {
            events: Mutex::new(Some(events)),
            shims: Mutex::default(),
            recorded: Mutex::default(),
            traces: Mutex::default(),
            destroyed: Mutex::default(),
            killed: Mutex::default(),
            next_pid: Arc::new(AtomicI32::new(1_000_000)),
        })
    }

    /// Containers given to [`OciRuntime::destroy`], in that order.
    pub fn destroyed(&self) -> Vec<String> {
        lock(&self.destroyed).clone()
    }

    /// Shims given to [`OciRuntime::kill_shim`], in that order.
    pub fn killed(&self) -> Vec<PodSandboxId> {
        lock(&self.killed).clone()
    }

    /// Sends later events here: a new daemon.
    pub fn subscribe(&self, events: Events) {
        *lock(&self.events) = Some(events);
    }

    /// Sends events nowhere: the daemon is down.
    pub fn unsubscribe(&self) {
        *lock(&self.events) = None;
    }

    /// The sandbox's shim, if it lives.
    pub fn shim(&self, sandbox: &PodSandboxId) -> Option<Arc<FakeShim>> {
        lock(&self.shims).get(sandbox).cloned()
    }

    /// Sandboxes that have left something: a live shim, a socket, a folder.
    pub fn left(&self) -> Vec<PodSandboxId> {
        lock(&self.traces).keys().cloned().collect()
    }

    /// A container ends by itself.
    pub async fn exit(&self, sandbox: &PodSandboxId, container: &str, exit: Exit) {
        let Some(shim) = self.shim(sandbox) else { return };
        if shim.end(container, exit) && !shim.inner().mute {
            let container = container.to_owned();
            self.send(
                sandbox,
                ShimEvent::Event(Event::ContainerExited { container, exit }),
            )
            .await;
        }
    }

    /// The shim is killed.
    pub async fn die(&self, sandbox: &PodSandboxId) {
        let Some(shim) = lock(&self.shims).remove(sandbox) else {
            return;
        };
        shim.inner().dead = true;
        let exited = shim.states().into_iter();
        let exited = exited
            .filter(|c| matches!(c.status, Status::Exited { .. }))
            .collect();
        lock(&self.recorded).insert(sandbox.clone(), exited);
        self.send(sandbox, ShimEvent::Died).await;
    }

    async fn send(&self, sandbox: &PodSandboxId, event: ShimEvent) {
        let events = lock(&self.events).clone();
        if let Some(events) = events {
            // A server that is gone hears nothing; that is what a test of its end wants.
            let _ = events.send((sandbox.clone(), event)).await;
        }
    }
}

#[async_trait]
impl OciRuntime for Arc<FakeShims> {
    async fn start_shim(&self, sandbox: &PodSandboxId) -> Result<Arc<dyn Shim>, ShimCallError> {
        let mut shims = lock(&self.shims);
        if shims.contains_key(sandbox) {
            return Err(ShimCallError::AlreadyRunning(sandbox.clone()));
        }
        let shim = Arc::new(FakeShim {
            sandbox: sandbox.clone(),
            shims: Arc::downgrade(self),
            pid: self.next_pid.fetch_add(1, Ordering::Relaxed),
            next_pid: self.next_pid.clone(),
            inner: Mutex::default(),
        });
        shims.insert(sandbox.clone(), shim.clone());
        lock(&self.traces).insert(sandbox.clone(), ());
        Ok(shim)
    }

    async fn find_shim(&self, sandbox: &PodSandboxId) -> Result<Option<Arc<dyn Shim>>, ShimCallError> {
        if self.shim(sandbox).is_some_and(|shim| shim.inner().hangs) {
            return Err(no_answer("hello"));
        }
        Ok(self.shim(sandbox).map(|shim| shim as Arc<dyn Shim>))
    }

    async fn kill_shim(&self, sandbox: &PodSandboxId) -> Result<(), ShimCallError> {
        lock(&self.killed).push(sandbox.clone());
        self.die(sandbox).await;
        Ok(())
    }

    async fn recorded_exits(&self, sandbox: &PodSandboxId) -> Result<Vec<ContainerState>, ShimCallError> {
        Ok(lock(&self.recorded).get(sandbox).cloned().unwrap_or_default())
    }

    async fn destroy(&self, container: &str, _root: &Path, _runtime: &Runtime) -> Result<(), ShimCallError> {
        lock(&self.destroyed).push(container.to_owned());
        Ok(())
    }

    async fn remove_traces(&self, sandbox: &PodSandboxId) -> Result<(), ShimCallError> {
        lock(&self.recorded).remove(sandbox);
        lock(&self.traces).remove(sandbox);
        Ok(())
    }
}

/// One fake shim.
#[derive(Debug)]
pub struct FakeShim {
    sandbox: PodSandboxId,
    shims: std::sync::Weak<FakeShims>,
    pid: i32,
    next_pid: Arc<AtomicI32>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    dead: bool,
    init_pid: Option<i32>,
    containers: BTreeMap<String, Status>,
    calls: Vec<String>,
    failures: BTreeMap<&'static str, VecDeque<ShimError>>,
    scripts: VecDeque<ExecScript>,
    execs: BTreeMap<(String, String), oneshot::Sender<Exit>>,
    attached: BTreeMap<String, Vec<UnixStream>>,
    updates: BTreeMap<String, String>,
    created: BTreeMap<String, Create>,
    ignores_signals: bool,
    hangs: bool,
    mute: bool,
    loses_start: bool,
}

impl FakeShim {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Makes the next call of that name (`"create"`, `"start"`, ...) fail; calls queue.
    pub fn fail_next(&self, call: &'static str, kind: ErrorKind, message: &str) {
        let message = message.to_owned();
        let error = ShimError { kind, message };
        self.inner().failures.entry(call).or_default().push_back(error);
    }

    /// What the next exec does; without a script it writes nothing and exits 0.
    pub fn script_exec(&self, script: ExecScript) {
        self.inner().scripts.push_back(script);
    }

    /// Makes containers outlive every signal but `SIGKILL`.
    pub fn ignore_signals(&self) {
        self.inner().ignores_signals = true;
    }

    /// Makes every call time out, until it is told otherwise.
    pub fn hang(&self, hangs: bool) {
        self.inner().hangs = hangs;
    }

    /// Makes the next start work, and its answer be lost.
    pub fn lose_start(&self) {
        self.inner().loses_start = true;
    }

    /// Makes it tell nobody of ends, until it is told otherwise.
    pub fn mute(&self, mute: bool) {
        self.inner().mute = mute;
    }

    /// Every call so far, as `"create c1"`.
    pub fn calls(&self) -> Vec<String> {
        self.inner().calls.clone()
    }

    /// The request that created the container.
    pub fn created(&self, container: &str) -> Option<Create> {
        self.inner().created.get(container).cloned()
    }

    /// The last resources given to the container.
    pub fn updated(&self, container: &str) -> Option<String> {
        self.inner().updates.get(container).cloned()
    }

    /// The shim's ends of the container's attach streams.
    pub fn attached(&self, container: &str) -> Vec<UnixStream> {
        self.inner().attached.remove(container).unwrap_or_default()
    }

    /// The containers, in the order of their IDs.
    pub fn states(&self) -> Vec<ContainerState> {
        let inner = self.inner();
        let state = |(container, status): (&String, &Status)| ContainerState {
            container: container.clone(),
            status: status.clone(),
            execs: Vec::new(),
        };
        inner.containers.iter().map(state).collect()
    }

    fn call(&self, call: &'static str, on: &str) -> Result<MutexGuard<'_, Inner>, ShimCallError> {
        let mut inner = self.inner();
        if inner.dead {
            return Err(ShimCallError::Died);
        }
        inner.calls.push(format!("{call} {on}").trim_end().to_owned());
        if inner.hangs {
            return Err(no_answer(call));
        }
        match inner.failures.get_mut(call).and_then(VecDeque::pop_front) {
            Some(error) => Err(ShimCallError::Refused(error)),
            None => Ok(inner),
        }
    }

    fn pick_pid(&self) -> i32 {
        self.next_pid.fetch_add(1, Ordering::Relaxed)
    }

    fn end(&self, container: &str, exit: Exit) -> bool {
        let mut inner = self.inner();
        let Some(status) = inner.containers.get_mut(container) else {
            return false;
        };
        let started_at = match status {
            Status::Created { .. } => 0,
            Status::Running { started_at, .. } => *started_at,
            Status::Exited { .. } => return false,
        };
        *status = Status::Exited { started_at, exit };
        inner.attached.remove(container);
        true
    }
}

fn refused(kind: ErrorKind, message: String) -> ShimCallError {
    ShimCallError::Refused(ShimError { kind, message })
}

fn no_answer(call: &'static str) -> ShimCallError {
    ShimCallError::Timeout {
        call,
        after: Duration::ZERO,
    }
}

fn unknown(container: &str) -> ShimCallError {
    refused(ErrorKind::NotFound, format!("no container `{container}`"))
}

#[async_trait]
impl Shim for FakeShim {
    fn pid(&self) -> i32 {
        self.pid
    }

    async fn pin_namespaces(&self, request: PinNamespaces) -> Result<Option<i32>, ShimCallError> {
        let mut inner = self.call("pin_namespaces", "")?;
        if request
            .namespaces
            .iter()
            .any(|(kind, _)| *kind == NamespaceKind::Pid)
        {
            inner.init_pid = Some(self.pick_pid());
        }
        Ok(inner.init_pid)
    }

    async fn create(&self, request: Create) -> Result<i32, ShimCallError> {
        let mut inner = self.call("create", &request.container)?;
        if inner.containers.contains_key(&request.container) {
            let message = format!("container `{}` already exists", request.container);
            return Err(refused(ErrorKind::AlreadyExists, message));
        }
        let pid = self.pick_pid();
        let created = Status::Created { pid };
        inner.containers.insert(request.container.clone(), created);
        inner.created.insert(request.container.clone(), request);
        Ok(pid)
    }

    async fn start(&self, container: &str) -> Result<(), ShimCallError> {
        let mut inner = self.call("start", container)?;
        let status = inner
            .containers
            .get_mut(container)
            .ok_or_else(|| unknown(container))?;
        let Status::Created { pid } = *status else {
            let message = format!("container `{container}` is not in the created state");
            return Err(refused(ErrorKind::WrongState, message));
        };
        *status = Status::Running { pid, started_at: 1 };
        if std::mem::take(&mut inner.loses_start) {
            return Err(no_answer("start"));
        }
        Ok(())
    }

    async fn kill(&self, container: &str, signal: i32, _all: bool) -> Result<(), ShimCallError> {
        let dies = {
            let inner = self.call("kill", container)?;
            match inner.containers.get(container) {
                None => return Err(unknown(container)),
                Some(Status::Exited { .. }) => {
                    return Err(refused(ErrorKind::WrongState, "container not running".to_owned()));
                }
                Some(_) => signal == 9 || !inner.ignores_signals,
            }
        };
        let Some(shims) = self.shims.upgrade().filter(|_| dies) else {
            return Ok(());
        };
        let exit = Exit {
            code: 128 + signal,
            oom_killed: false,
            at: 2,
        };
        shims.exit(&self.sandbox, container, exit).await;
        Ok(())
    }

    async fn delete(&self, container: &str, force: bool) -> Result<(), ShimCallError> {
        let mut inner = self.call("delete", container)?;
        match inner.containers.get(container) {
            Some(Status::Created { .. } | Status::Running { .. }) if !force => {
                let message = format!("container `{container}` is still running");
                Err(refused(ErrorKind::WrongState, message))
            }
            _ => {
                inner.containers.remove(container);
                Ok(())
            }
        }
    }

    async fn exec(&self, request: Exec, fds: Vec<OwnedFd>) -> Result<ExecHandle, ShimCallError> {
        let mut inner = self.call("exec", &request.container)?;
        match inner.containers.get(&request.container) {
            None => return Err(unknown(&request.container)),
            Some(Status::Running { .. }) => {}
            Some(_) => return Err(refused(ErrorKind::WrongState, "container not running".to_owned())),
        }
        let script = inner.scripts.pop_front();
        let script = script.unwrap_or(ExecScript {
            code: Some(0),
            ..ExecScript::default()
        });
        let mut fds = fds.into_iter();
        let _stdin = request.stdin.then(|| fds.next());
        for (passed, bytes) in [(request.stdout, &script.stdout), (request.stderr, &script.stderr)] {
            if let Some(fd) = passed.then(|| fds.next()).flatten() {
                // A reader that went away is the caller's own doing.
                let _ = File::from(fd).write_all(bytes);
            }
        }
        let (sender, exit) = oneshot::channel();
        match script.code {
            Some(code) => {
                let _ = sender.send(Exit {
                    code,
                    oom_killed: false,
                    at: 2,
                });
            }
            None => {
                inner.execs.insert((request.container, request.exec), sender);
            }
        }
        let pid = self.pick_pid();
        Ok(ExecHandle {
            pid,
            console: None,
            exit,
        })
    }

    async fn kill_exec(&self, container: &str, exec: &str, signal: i32) -> Result<(), ShimCallError> {
        let mut inner = self.call("kill_exec", container)?;
        let key = (container.to_owned(), exec.to_owned());
        if let Some(sender) = inner.execs.remove(&key) {
            let _ = sender.send(Exit {
                code: 128 + signal,
                oom_killed: false,
                at: 2,
            });
        }
        Ok(())
    }

    async fn attach(&self, container: &str, _streams: AttachTo) -> Result<AttachStream, ShimCallError> {
        let mut inner = self.call("attach", container)?;
        if !inner.containers.contains_key(container) {
            return Err(unknown(container));
        }
        let (ours, theirs) = UnixStream::pair().map_err(|source| ShimCallError::Io {
            what: "make",
            path: "socket pair".into(),
            source,
        })?;
        inner
            .attached
            .entry(container.to_owned())
            .or_default()
            .push(theirs);
        Ok(AttachStream::new(ours))
    }

    async fn resize(&self, container: &str, _width: u16, _height: u16) -> Result<(), ShimCallError> {
        self.call("resize", container).map(drop)
    }

    async fn reopen_log(&self, container: &str) -> Result<(), ShimCallError> {
        self.call("reopen_log", container).map(drop)
    }

    async fn update(&self, container: &str, resources: String) -> Result<(), ShimCallError> {
        let mut inner = self.call("update", container)?;
        inner.updates.insert(container.to_owned(), resources);
        Ok(())
    }

    async fn state(&self) -> Result<ShimState, ShimCallError> {
        let init_pid = self.call("state", "")?.init_pid;
        Ok(ShimState {
            version: VERSION,
            pid: self.pid,
            init_pid,
            containers: self.states(),
        })
    }

    async fn shutdown(&self, force: bool) -> Result<(), ShimCallError> {
        let mut inner = match self.call("shutdown", "") {
            Err(ShimCallError::Died) => return Ok(()),
            other => other?,
        };
        let lives = |status: &Status| !matches!(status, Status::Exited { .. });
        if !force && inner.containers.values().any(lives) {
            return Err(refused(ErrorKind::Busy, "containers still run".to_owned()));
        }
        inner.dead = true;
        drop(inner);
        if let Some(shims) = self.shims.upgrade() {
            lock(&shims.shims).remove(&self.sandbox);
        }
        Ok(())
    }
}
