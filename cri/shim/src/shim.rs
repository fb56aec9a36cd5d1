//! The shim itself: everything it holds, and the loop that deals with one event at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cri_shim_protocol::{ErrorKind, Event, Frame, Reply, ShimError, ShimState, VERSION};
use nix::sys::signal::{SigSet, Signal};
use oci_runtime_sys::footprint::{ProgramText, trim_heap};
use rustix::net::{SocketFlags, accept_with};

use crate::clients::{Client, Hangup, Incoming, MAX_CLIENTS, ReplyTo};
use crate::container::{Container, ExitFiles, Phase};
use crate::diary::Diary;
use crate::log::{Gather, LogChange, Source};
use crate::oom::{Account, Oom};
use crate::poll::{Interest, Poll, Token, Watch};
use crate::reap::{self, Ended, Orphans};
use crate::rest::{GiveBack, Rest};
use crate::slab::Slab;
use crate::stage;
use crate::stages::{Job, Stage};
use crate::stdio::Shared;

/// The buffer that everything is read into.
const SCRATCH_BYTES: usize = 16 << 10;
/// How long a forced shutdown waits for killed children.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// The shim's own end.
#[derive(Debug)]
struct Ending {
    reply: Option<ReplyTo>,
    until: Instant,
}

#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) state_dir: PathBuf,
    pub(crate) poll: Poll,
    listener: OwnedFd,
    signals: OwnedFd,
    pub(crate) clients: Slab<Client>,
    serial: u64,
    pub(crate) containers: Slab<Container>,
    pub(crate) stages: Slab<Stage>,
    pub(crate) orphans: Orphans,
    /// The pod's own init.
    pub(crate) init: Option<i32>,
    pub(crate) exits: ExitFiles,
    scratch: Vec<u8>,
    gather: Gather,
    pub(crate) diary: Diary,
    account: Account,
    ending: Option<Ending>,
    text: ProgramText,
    rest: Rest,
}

impl Shim {
    /// Gets ready to serve what connects to `listener`.
    pub(crate) fn new(state_dir: PathBuf, listener: OwnedFd) -> io::Result<Self> {
        let poll = Poll::new()?;
        let signals = block_signals()?;
        crate::wire::set_nonblocking(&listener)?;
        let readable = Some(Interest::IN);
        Watch::default().want(&poll, &listener, Token::Listener, readable)?;
        Watch::default().want(&poll, &signals, Token::Signals, readable)?;
        Ok(Self {
            poll,
            listener,
            signals,
            clients: Slab::new(),
            serial: 0,
            containers: Slab::new(),
            stages: Slab::new(),
            orphans: Orphans::default(),
            init: None,
            exits: ExitFiles::open(&state_dir)?,
            scratch: vec![0; SCRATCH_BYTES],
            gather: Gather::new(),
            diary: Diary::open(&state_dir),
            account: Account::default(),
            ending: None,
            // Without it the shim is larger, and works.
            text: ProgramText::find().unwrap_or_default(),
            rest: Rest::default(),
            state_dir,
        })
    }

    /// Serves until a shutdown.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::with_capacity(16);
        loop {
            let give_back = self.rest.give_back(Instant::now());
            let most = self.next_wait();
            if give_back == GiveBack::All {
                trim_heap();
            }
            if give_back != GiveBack::Nothing {
                // Nothing between this and the wait that needs much of the program.
                self.text.release();
            }
            self.poll.wait(most, &mut ready)?;
            if !ready.is_empty() {
                let output = |(token, _): &(Token, _)| matches!(token, Token::Output(..));
                self.rest.heard(Instant::now(), ready.iter().all(output));
            }
            for (token, flags) in &ready {
                self.handle(*token, *flags);
            }
            self.expire();
            self.send_all();
            if self.has_ended() {
                return Ok(());
            }
        }
    }

    fn handle(&mut self, token: Token, flags: Interest) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => self.reap(),
            Token::Client(client) => self.hear(client, flags),
            Token::Stage(stage) => self.stage_reports(stage),
            Token::Output(number, source) => self.pump(number, source),
            Token::Kills(number) => self.kills_changed(number),
            Token::Input(number) => {
                if let Some(container) = self.containers.at_mut(number) {
                    container.stdio.feed(number, &self.poll);
                }
            }
            Token::Attached(number, place) => {
                let mut shared = Shared {
                    poll: &self.poll,
                    scratch: &mut self.scratch,
                    gather: &mut self.gather,
                };
                if let Some(container) = self.containers.at_mut(number) {
                    container.stdio.hear(number, place, flags, &mut shared);
                }
            }
        }
    }

    // ---- time ----

    fn next_wait(&self) -> Option<Duration> {
        let stages = self
            .stages
            .iter()
            .filter(|(_, s)| !s.overdue)
            .map(|(_, s)| s.deadline);
        let attached = self.containers.iter().flat_map(|(_, c)| c.stdio.attached.iter());
        let attached = attached.filter_map(|(_, client)| client.until());
        let ending = self.ending.as_ref().map(|e| e.until);
        let next = stages
            .chain(attached)
            .chain(ending)
            .chain(self.rest.next())
            .min()?;
        // A moment more, so that it's over when the wait is.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for place in 0..self.stages.end() {
            let stage = self.stages.at_mut(place);
            if let Some(stage) = stage.filter(|stage| now >= stage.deadline && !stage.overdue) {
                stage.overdue = true;
                reap::kill_group(stage.pid);
            }
        }
        for number in 0..self.containers.end() {
            if let Some(container) = self.containers.at_mut(number) {
                container.stdio.expire(number, now, &self.poll);
            }
        }
    }

    // ---- daemons ----

    fn accept(&mut self) {
        while let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            if self.clients.len() >= MAX_CLIENTS {
                self.diary
                    .note(format_args!("refused a connection: {MAX_CLIENTS} are open"));
                continue;
            }
            self.serial += 1;
            let client = self.clients.insert(Client::new(socket, self.serial));
            self.flush(client);
        }
    }

    fn hear(&mut self, place: u32, flags: Interest) {
        if !flags.intersects(Interest::IN | Interest::HUP | Interest::ERR) {
            return;
        }
        let Some(client) = self.clients.at_mut(place) else {
            return;
        };
        let mut result = client.receive(&mut self.scratch);
        while result.is_ok() {
            let Some(client) = self.clients.at_mut(place) else {
                return;
            };
            let serial = client.serial;
            match client.next_call() {
                Ok(None) => return,
                Ok(Some(Incoming::Unknown(id, error))) => client.answer(id, Err(error), None),
                Ok(Some(Incoming::Call(call))) => {
                    let reply = ReplyTo {
                        client: place,
                        serial,
                        call: call.id,
                    };
                    self.request(reply, call.request);
                }
                Err(hangup) => result = Err(hangup),
            }
        }
        if let Err(hangup) = result {
            self.drop_client(place, &hangup);
        }
    }

    fn drop_client(&mut self, place: u32, Hangup(why): &Hangup) {
        if let Some(client) = self.clients.remove(place) {
            if *why != "closed" {
                self.diary.note(format_args!("disconnected a daemon: {why}"));
            }
            client.close(&self.poll, Token::Client(place));
        }
    }

    pub(crate) fn answer(&mut self, to: Option<ReplyTo>, result: Result<Reply, ShimError>) {
        self.answer_with(to, result, None);
    }

    pub(crate) fn answer_with(
        &mut self,
        to: Option<ReplyTo>,
        result: Result<Reply, ShimError>,
        fd: Option<OwnedFd>,
    ) {
        let Some(to) = to else { return };
        match self.clients.at_mut(to.client) {
            Some(client) if client.serial == to.serial => client.answer(to.call, result, fd),
            // The daemon that asked is gone; the next one asks for the state.
            _ => {}
        }
    }

    fn publish(&mut self, event: Event) {
        let frame = Frame::Event(event);
        for place in 0..self.clients.end() {
            if let Some(client) = self.clients.at_mut(place).filter(|c| c.subscribed) {
                client.push(&frame, None);
            }
        }
    }

    fn send_all(&mut self) {
        for place in 0..self.clients.end() {
            self.flush(place);
        }
    }

    fn flush(&mut self, place: u32) {
        let sent = match self.clients.at_mut(place) {
            Some(client) => client.send(&self.poll, Token::Client(place)),
            None => return,
        };
        if let Err(hangup) = sent {
            self.drop_client(place, &hangup);
        }
    }

    /// All that the shim holds.
    pub(crate) fn state(&self) -> ShimState {
        ShimState {
            version: VERSION,
            // A process ID is a positive i32.
            pid: std::process::id() as i32,
            init_pid: self.init,
            containers: self.containers.iter().filter_map(|(_, c)| c.state()).collect(),
        }
    }

    // ---- containers ----

    pub(crate) fn find(&self, container: &str) -> Option<u32> {
        self.containers.find(|c| c.handle.id == container)
    }

    fn pump(&mut self, number: u32, source: Source) {
        let mut shared = Shared {
            poll: &self.poll,
            scratch: &mut self.scratch,
            gather: &mut self.gather,
        };
        let Some(container) = self.containers.at_mut(number) else {
            return;
        };
        let change = container.stdio.pump(number, source, &mut shared);
        self.note_log(number, change);
    }

    fn note_log(&mut self, number: u32, change: Option<LogChange>) {
        let Some(container) = self.containers.at_mut(number) else {
            return;
        };
        let id = &container.handle.id;
        match change {
            Some(LogChange::Fails(why)) => {
                self.diary
                    .note(format_args!("the log of container {id} is being lost: {why}"));
            }
            Some(LogChange::Works { lost }) => {
                self.diary.note(format_args!(
                    "the log of container {id} works again, {lost} records were lost"
                ));
            }
            None => {}
        }
    }

    pub(crate) fn forget(&mut self, number: u32) {
        if let Some(mut container) = self.containers.remove(number) {
            container.stdio.close(&self.poll, number);
            // The kernel forgets it with the file, at the latest when the last stage child has ended.
            let _ = container.oom.close(&self.poll, number);
            self.exits.remove(&container.handle.id);
            // The container's end was theirs too; nobody will look them up when they are collected.
            for exec in container.execs {
                self.publish(Event::ExecExited {
                    container: container.handle.id.clone(),
                    exec: exec.name,
                    exit: reap::killed(),
                });
            }
        }
    }

    // ---- children ----

    fn reap(&mut self) {
        // The count of signals says nothing: one may stand for many children.
        let mut signals = [0; 128 * 4];
        while rustix::io::read(&self.signals, &mut signals).is_ok_and(|n| n == signals.len()) {}
        self.reap_now();
    }

    /// Collects every child that has ended.
    pub(crate) fn reap_now(&mut self) {
        while let Some(ended) = reap::collect() {
            self.ended(ended);
        }
    }

    pub(crate) fn ended(&mut self, ended: Ended) {
        if self.init == Some(ended.pid) {
            self.init = None;
            self.publish(Event::InitExited);
        } else if let Some(number) = self.containers.find(|c| c.pid() == Some(ended.pid)) {
            self.container_ended(number, ended);
        } else if let Some(place) = self.stages.find(|s| s.pid == ended.pid) {
            self.stage_ended(place, ended);
        } else if !self.exec_ended(ended) && self.stages.len() > 0 {
            self.orphans.remember(ended);
        }
    }

    fn container_ended(&mut self, number: u32, ended: Ended) {
        let mut shared = Shared {
            poll: &self.poll,
            scratch: &mut self.scratch,
            gather: &mut self.gather,
        };
        let Some(container) = self.containers.at_mut(number) else {
            return;
        };
        let started_at = match container.phase {
            Phase::Running { started_at, .. } => started_at,
            _ => 0,
        };
        let change = container.stdio.drain(number, &mut shared);
        let oom_killed = self.explain(number, |account, oom, others| {
            account.explains(ended.signal, oom, others)
        });
        let Some(container) = self.containers.at_mut(number) else {
            return;
        };
        let exit = ended.exit(oom_killed);
        container.phase = Phase::Exited { started_at, exit };
        let left = container.cgroup.clone().filter(|_| container.kill_all_at_exit);
        let written = container.state().map(|state| self.exits.write(&state));
        let container = container.handle.id.clone();
        self.note_log(number, change);
        if let Some(Err(error)) = written {
            self.diary.note(format_args!(
                "failed to write the exit file of container {container}: {error}"
            ));
        }
        if let Some(cgroup) = left {
            self.begin(Job::Other, None, &[], move || {
                stage::kill_all(&cgroup, Signal::SIGKILL as i32)
            });
        }
        self.publish(Event::ContainerExited { container, exit });
    }

    /// Calls `work` with a container's counts of kills, and those of the others that live.
    pub(crate) fn explain<T>(
        &mut self,
        number: u32,
        work: impl FnOnce(&mut Account, &mut Oom, &mut [&mut Oom]) -> T,
    ) -> T {
        let mut own = self.containers.at_mut(number).map(|c| std::mem::take(&mut c.oom));
        let mut others: Vec<&mut Oom> = self
            .containers
            .iter_mut()
            .filter(|(other, container)| *other != number && container.pid().is_some())
            .map(|(_, container)| &mut container.oom)
            .collect();
        let done = work(&mut self.account, own.get_or_insert_default(), &mut others);
        if let (Some(container), Some(own)) = (self.containers.at_mut(number), own) {
            container.oom = own;
        }
        done
    }

    /// The kernel says that the OOM killer has been in a container.
    fn kills_changed(&mut self, number: u32) {
        let Some(container) = self.containers.at_mut(number) else {
            return;
        };
        if let Err(error) = container.oom.changed(&self.poll, number) {
            self.diary
                .note(format_args!("failed to unwatch a container's memory: {error}"));
        }
    }

    fn exec_ended(&mut self, ended: Ended) -> bool {
        for number in 0..self.containers.end() {
            let Some(container) = self.containers.at_mut(number) else {
                continue;
            };
            let place = container.execs.iter().position(|e| e.pid == Some(ended.pid));
            let Some(place) = place else { continue };
            let exec = container.execs.swap_remove(place).name;
            // Only a killed process can have been killed for memory.
            let killed = ended.signal == Some(Signal::SIGKILL as i32);
            let oom_killed = killed && container.oom.count().is_any();
            let container = container.handle.id.clone();
            let exit = ended.exit(oom_killed);
            self.publish(Event::ExecExited {
                container,
                exec,
                exit,
            });
            return true;
        }
        false
    }

    // ---- the end ----

    /// Ends the shim, once what it has killed is collected.
    pub(crate) fn end(&mut self, reply: ReplyTo) {
        for (_, stage) in self.stages.iter() {
            reap::kill_group(stage.pid);
        }
        let containers = self.containers.iter().filter_map(|(_, c)| c.pid());
        for pid in containers.chain(self.init) {
            // It may have ended.
            let _ = reap::signal(pid, Signal::SIGKILL as i32);
        }
        self.ending = Some(Ending {
            reply: Some(reply),
            until: Instant::now() + LAST_WAIT,
        });
    }

    fn has_ended(&mut self) -> bool {
        let lives = self.init.is_some() || self.containers.iter().any(|(_, c)| c.pid().is_some());
        let Some(ending) = &mut self.ending else {
            return false;
        };
        let over = Instant::now() >= ending.until;
        if lives && !over {
            return false;
        }
        if let Some(reply) = ending.reply.take() {
            self.answer(Some(reply), Ok(Reply::Done));
            self.send_all();
        }
        over || self.clients.iter().all(|(_, c)| c.is_flushed())
    }

    pub(crate) fn is_busy(&self) -> bool {
        let busy = |c: &Container| !matches!(c.phase, Phase::Exited { .. });
        self.containers.find(busy).is_some()
    }
}

/// Blocks every signal that would end or stop the shim, and makes children's ends readable.
fn block_signals() -> io::Result<OwnedFd> {
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let mut blocked = children;
    let others = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGPIPE,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGTSTP,
    ];
    for signal in others {
        blocked.add(signal);
    }
    blocked.thread_block()?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // An owned copy, so that everything the loop waits for is of one type.
    use std::os::fd::AsFd as _;
    signals.as_fd().try_clone_to_owned()
}

/// Says that the shim has no such container.
pub(crate) fn not_found(container: &str) -> ShimError {
    stage::refuse(ErrorKind::NotFound, format_args!("no container `{container}`"))
}
