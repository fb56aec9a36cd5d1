//! What each request does at once, and what it gives to a stage child.

use std::os::fd::{AsRawFd as _, OwnedFd};

use cri_shim_protocol::{Create, ErrorKind, Exec, Reply, Request, ShimError};
use nix::sys::signal::Signal;

use crate::attached::{Attached, MAX_ATTACHED};
use crate::clients::ReplyTo;
use crate::container::{Container, Execed, MAX_CONTAINERS, MAX_EXECS, Phase};
use crate::log::{LogFile, Source};
use crate::oom::Oom;
use crate::reap;
use crate::shim::{Shim, not_found};
use crate::stage::{self, CreateWork, Handle, failed, refuse};
use crate::stages::Job;
use crate::stdio::{Stdio, Wanted, null_stream};

/// What answers a request at once; `None`: a stage child will.
type Now = Option<Result<Reply, ShimError>>;

/// The longest line of a log that may be asked for, which is also what the shim may keep in memory for each stream.
const MAX_LOG_LINE: u32 = 1 << 20;

impl Shim {
    /// Does what a daemon asks.
    pub(crate) fn request(&mut self, reply: ReplyTo, request: Request) {
        let now = match request {
            Request::Hello { .. } | Request::State => Some(Ok(Reply::State(self.state()))),
            Request::Subscribe => {
                if let Some(client) = self.clients.at_mut(reply.client) {
                    client.subscribed = true;
                }
                Some(Ok(Reply::State(self.state())))
            }
            Request::PinNamespaces(request) => {
                self.begin(Job::Pin, Some(reply), &[], || stage::pin_namespaces(&request));
                None
            }
            Request::Create(create) => self.create(reply, create),
            Request::Start { container } => self.start(reply, container),
            Request::Kill {
                container,
                signal,
                all,
            } => self.kill(reply, &container, signal, all),
            Request::Delete { container, force } => self.delete(reply, container, force),
            Request::Exec(exec) => self.exec(reply, exec),
            Request::KillExec {
                container,
                exec,
                signal,
            } => Some(self.kill_exec(&container, &exec, signal)),
            Request::Attach {
                container,
                stdin,
                stdout,
                stderr,
            } => Some(self.attach(reply, &container, (stdin, stdout, stderr))),
            Request::Resize {
                container,
                width,
                height,
            } => Some(self.resize(&container, width, height)),
            Request::ReopenLog { container } => Some(self.reopen_log(&container)),
            Request::Update { container, resources } => self.update(reply, &container, &resources),
            Request::Shutdown { force } => self.shutdown(reply, force),
        };
        if let Some(result) = now {
            self.answer(Some(reply), result);
        }
    }

    fn create(&mut self, reply: ReplyTo, create: Create) -> Now {
        if let Err(error) = self.check_create(&create) {
            return Some(Err(error));
        }
        let log = match create.log_path.map(|path| (LogFile::open(path.clone()), path)) {
            None => None,
            Some((Ok(log), _)) => Some(log),
            Some((Err(error), path)) => {
                return Some(Err(failed(format_args!("open log `{}`", path.display()), error)));
            }
        };
        let wanted = Wanted {
            terminal: create.terminal,
            stdin: create.stdin,
            stdin_once: create.stdin_once,
            max_line: create.max_log_line.min(MAX_LOG_LINE) as usize,
        };
        let (stdio, given) = match Stdio::new(wanted, log) {
            Ok(made) => made,
            Err(error) => return Some(Err(failed(format_args!("make pipes"), error))),
        };
        let handle = Handle {
            id: create.container,
            root: create.runtime_root,
            runtime: create.runtime,
            state_dir: self.state_dir.clone(),
        };
        let (container, for_stage) = (handle.id.clone(), handle.clone());
        let number = self.containers.insert(Container {
            handle,
            phase: Phase::Creating {
                stage: None,
                given_up: Vec::new(),
            },
            stdio,
            execs: Vec::new(),
            cgroup: None,
            oom: Oom::default(),
            busy: false,
            kill_all_at_exit: create.kill_all_at_exit,
        });
        let (keep, bundle) = (given.raw(), create.bundle);
        let job = Job::Create { container };
        let pid = self.begin(job, Some(reply), &keep, move || {
            stage::create(&for_stage, CreateWork { bundle, given })
        });
        self.set_stage(number, pid);
        None
    }

    /// Names the stage child that a delete may kill.
    pub(crate) fn set_stage(&mut self, number: u32, pid: Option<i32>) {
        if let Some(Phase::Creating { stage, .. }) = self.containers.at_mut(number).map(|c| &mut c.phase) {
            *stage = pid;
        }
    }

    fn check_create(&self, create: &Create) -> Result<(), ShimError> {
        let id = &create.container;
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
        if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.bytes().all(fine) {
            return Err(refuse(
                ErrorKind::Invalid,
                format_args!("`{id}` can't name a container"),
            ));
        }
        if create.max_log_line == 0 {
            return Err(refuse(ErrorKind::Invalid, format_args!("max_log_line is 0")));
        }
        if self.find(id).is_some() {
            return Err(refuse(
                ErrorKind::AlreadyExists,
                format_args!("container `{id}` already exists"),
            ));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            let message = format_args!("the pod has {MAX_CONTAINERS} containers already");
            return Err(refuse(ErrorKind::Failed, message));
        }
        Ok(())
    }

    fn start(&mut self, reply: ReplyTo, container: String) -> Now {
        let found = self.find(&container).and_then(|n| self.containers.at_mut(n));
        let Some(found) = found else {
            return Some(Err(not_found(&container)));
        };
        if found.busy || !matches!(found.phase, Phase::Created { .. }) {
            return Some(Err(wrong_state(&container, "waiting to be started")));
        }
        found.busy = true;
        let handle = found.handle.clone();
        let job = Job::Start { container };
        self.begin(job, Some(reply), &[], move || stage::start(&handle));
        None
    }

    fn kill(&mut self, reply: ReplyTo, container: &str, signal: i32, all: bool) -> Now {
        let Some(found) = self.find(container).and_then(|n| self.containers.at(n)) else {
            return Some(Err(not_found(container)));
        };
        if !(1..=64).contains(&signal) {
            return Some(Err(refuse(
                ErrorKind::Invalid,
                format_args!("{signal} is not a signal"),
            )));
        }
        if all {
            let Some(cgroup) = found.cgroup.clone() else {
                let message = format_args!("container `{container}` has no cgroup to find its processes in");
                return Some(Err(refuse(ErrorKind::Unsupported, message)));
            };
            self.begin(Job::Other, Some(reply), &[], move || {
                stage::kill_all(&cgroup, signal)
            });
            return None;
        }
        let Some(pid) = found.pid() else {
            return Some(Err(wrong_state(container, "running")));
        };
        let sent = reap::signal(pid, signal);
        Some(sent.map(|()| Reply::Done).map_err(|error| {
            let what = format_args!("signal container `{container}`");
            failed(what, error)
        }))
    }

    fn delete(&mut self, reply: ReplyTo, container: String, force: bool) -> Now {
        let Some(number) = self.find(&container) else {
            return Some(Ok(Reply::Done));
        };
        // `find` has just found it.
        let found = self.containers.at_mut(number)?;
        let handle = found.handle.clone();
        match &mut found.phase {
            Phase::Creating { stage, given_up } => {
                if given_up.len() >= 16 {
                    let message = format_args!("container `{container}` is being deleted");
                    return Some(Err(refuse(ErrorKind::Busy, message)));
                }
                given_up.push(reply);
                if let Some(stage) = *stage {
                    self.kill_stage(stage);
                }
                return None;
            }
            _ if found.busy => {
                let message = format_args!("container `{container}` is being started or deleted");
                return Some(Err(refuse(ErrorKind::Busy, message)));
            }
            Phase::Exited { .. } => {}
            Phase::Created { .. } | Phase::Running { .. } if !force => {
                return Some(Err(wrong_state(&container, "stopped")));
            }
            Phase::Created { pid } | Phase::Running { pid, .. } => {
                // The stage child kills the rest.
                let _ = reap::signal(*pid, Signal::SIGKILL as i32);
            }
        }
        found.busy = true;
        let job = Job::Delete { container };
        self.begin(job, Some(reply), &[], move || stage::delete(&handle));
        None
    }

    fn exec(&mut self, reply: ReplyTo, exec: Exec) -> Now {
        let wanted = [exec.stdin, exec.stdout, exec.stderr];
        let count = wanted.iter().filter(|w| **w).count();
        let fds = self.clients.at_mut(reply.client).and_then(|c| c.take_fds(count));
        let Some(fds) = fds else {
            let message = format_args!("an exec needs {count} file descriptors");
            return Some(Err(refuse(ErrorKind::Invalid, message)));
        };
        let found = self.find(&exec.container);
        let Some(found) = found.and_then(|n| self.containers.at_mut(n)) else {
            return Some(Err(not_found(&exec.container)));
        };
        if !matches!(found.phase, Phase::Running { .. }) {
            return Some(Err(wrong_state(&exec.container, "running")));
        }
        if found.exec(&exec.exec).is_some() {
            let message = format_args!("exec `{}` already runs", exec.exec);
            return Some(Err(refuse(ErrorKind::AlreadyExists, message)));
        }
        if found.execs.len() >= MAX_EXECS {
            let message = format_args!("{MAX_EXECS} execs already run in container `{}`", exec.container);
            return Some(Err(refuse(ErrorKind::Busy, message)));
        }
        let stdio = match exec_stdio(&exec.process, wanted, fds) {
            Ok(stdio) => stdio,
            Err(error) => return Some(Err(error)),
        };
        found.execs.push(Execed {
            name: exec.exec.clone(),
            pid: None,
            pending: None,
        });
        let handle = found.handle.clone();
        let keep: Vec<i32> = stdio.iter().flatten().map(|fd| fd.as_raw_fd()).collect();
        let (process, size) = (exec.process, exec.size);
        let job = Job::Exec {
            container: exec.container,
            exec: exec.exec,
        };
        self.begin(job, Some(reply), &keep, move || {
            stage::exec(&handle, &process, stdio, size)
        });
        None
    }

    fn kill_exec(&mut self, container: &str, exec: &str, signal: i32) -> Result<Reply, ShimError> {
        let found = self.find(container).and_then(|n| self.containers.at_mut(n));
        let found = found.ok_or_else(|| not_found(container))?;
        let Some(execed) = found.exec(exec) else {
            let message = format_args!("no exec `{exec}` runs in container `{container}`");
            return Err(refuse(ErrorKind::NotFound, message));
        };
        match execed.pid {
            Some(pid) => reap::signal(pid, signal)
                .map_err(|error| failed(format_args!("signal exec `{exec}`"), error))?,
            None => execed.pending = Some(signal),
        }
        Ok(Reply::Done)
    }

    fn attach(
        &mut self,
        reply: ReplyTo,
        container: &str,
        (stdin, stdout, stderr): (bool, bool, bool),
    ) -> Result<Reply, ShimError> {
        let fds = self.clients.at_mut(reply.client).and_then(|c| c.take_fds(1));
        let Some(socket) = fds.and_then(|mut fds| fds.pop()) else {
            return Err(refuse(
                ErrorKind::Invalid,
                format_args!("an attach needs a file descriptor"),
            ));
        };
        let number = self.find(container).ok_or_else(|| not_found(container))?;
        let found = self
            .containers
            .at_mut(number)
            .ok_or_else(|| not_found(container))?;
        if found.pid().is_none() {
            return Err(wrong_state(container, "running"));
        }
        if found.stdio.attached.len() >= MAX_ATTACHED {
            let message = format_args!("{MAX_ATTACHED} clients are attached to container `{container}`");
            return Err(refuse(ErrorKind::Busy, message));
        }
        // A terminal has one stream of output.
        let stdout = stdout || (stderr && found.stdio.has_terminal());
        let attached = Attached::new(socket, stdin, stdout, stderr);
        let place = found.stdio.attached.insert(attached);
        found.stdio.serve(number, place, &self.poll);
        Ok(Reply::Done)
    }

    fn resize(&mut self, container: &str, width: u16, height: u16) -> Result<Reply, ShimError> {
        let found = self.find(container).and_then(|n| self.containers.at(n));
        let found = found.ok_or_else(|| not_found(container))?;
        if !found.stdio.has_terminal() {
            let message = format_args!("container `{container}` has no terminal");
            return Err(refuse(ErrorKind::Invalid, message));
        }
        if found.pid().is_none() {
            return Err(wrong_state(container, "running"));
        }
        let resized = found.stdio.resize(width, height);
        resized.map_err(|error| failed(format_args!("resize the terminal"), error))?;
        Ok(Reply::Done)
    }

    fn reopen_log(&mut self, container: &str) -> Result<Reply, ShimError> {
        let found = self.find(container).and_then(|n| self.containers.at_mut(n));
        let found = found.ok_or_else(|| not_found(container))?;
        if let Some(log) = found.stdio.log_mut() {
            let reopened = log.reopen();
            reopened.map_err(|error| failed(format_args!("open log `{}`", log.path().display()), error))?;
        }
        Ok(Reply::Done)
    }

    fn update(&mut self, reply: ReplyTo, container: &str, resources: &str) -> Now {
        let Some(found) = self.find(container).and_then(|n| self.containers.at(n)) else {
            return Some(Err(not_found(container)));
        };
        if found.pid().is_none() {
            return Some(Err(wrong_state(container, "running")));
        }
        let handle = found.handle.clone();
        self.begin(Job::Other, Some(reply), &[], || stage::update(&handle, resources));
        None
    }

    fn shutdown(&mut self, reply: ReplyTo, force: bool) -> Now {
        if self.is_busy() && !force {
            let message = format_args!("containers of this pod still run");
            return Some(Err(refuse(ErrorKind::Busy, message)));
        }
        self.end(reply);
        None
    }
}

/// The streams of an exec: those that were passed, and nothing for the others. `None` for a terminal.
fn exec_stdio(
    process: &str,
    wanted: [bool; 3],
    fds: Vec<OwnedFd>,
) -> Result<Option<[OwnedFd; 3]>, ShimError> {
    #[derive(serde::Deserialize)]
    struct Facts {
        #[serde(default)]
        terminal: bool,
    }
    let facts: Facts = serde_json::from_str(process)
        .map_err(|error| refuse(ErrorKind::Invalid, format_args!("not an OCI process: {error}")))?;
    if facts.terminal {
        if !fds.is_empty() {
            let message = format_args!("an exec with a terminal takes no file descriptors");
            return Err(refuse(ErrorKind::Invalid, message));
        }
        return Ok(None);
    }
    let mut fds = fds.into_iter();
    let mut next = |wanted: bool, source| match wanted.then(|| fds.next()).flatten() {
        Some(fd) => Ok(fd),
        None => null_stream(source).map_err(|error| failed(format_args!("open `/dev/null`"), error)),
    };
    let [stdin, stdout, stderr] = wanted;
    Ok(Some([
        next(stdin, None)?,
        next(stdout, Some(Source::Stdout))?,
        next(stderr, Some(Source::Stderr))?,
    ]))
}

fn wrong_state(container: &str, wanted: &str) -> ShimError {
    refuse(
        ErrorKind::WrongState,
        format_args!("container `{container}` is not {wanted}"),
    )
}
