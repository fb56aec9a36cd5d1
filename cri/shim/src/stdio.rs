//! A container's stdio: its ends that the shim holds, and the pumping between them, the log and attached clients.
//!
//! ```text
//!   container ── pipe or terminal ──> scratch buffer ──> splitter ──> log file
//!                                                  └──> attached clients (copied, bounded)
//!   attached client ──> pending bytes (bounded: nobody is read while some are left) ──> pipe or terminal
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::attached::{Attached, Left, Said};
use crate::log::{Gather, LogChange, LogFile, Source, Splitter};
use crate::poll::{Interest, Poll, Token, Watch};
use crate::slab::Slab;
use crate::wire::{self, Flow};

/// How often one stream is read before the loop turns to others.
const READS_PER_TURN: usize = 4;
/// How often a stream is read after its container's end: more than the largest pipe holds. Only a process that
/// outlives the container's init and goes on writing reaches this.
const LAST_READS: usize = 128;

/// The container's ends, to be handed to the stage child.
#[derive(Debug)]
pub(crate) enum Given {
    /// Stdin, stdout, stderr.
    Pipes([OwnedFd; 3]),
    /// The runtime makes a terminal.
    Terminal,
}

impl Given {
    /// The descriptors that the stage child has to keep.
    pub(crate) fn raw(&self) -> Vec<RawFd> {
        match self {
            Self::Pipes(fds) => fds.iter().map(|fd| fd.as_raw_fd()).collect(),
            Self::Terminal => Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Output {
    source: Source,
    fd: OwnedFd,
    watch: Watch,
    splitter: Splitter,
}

#[derive(Debug, Default)]
struct Input {
    fd: Option<OwnedFd>,
    watch: Watch,
    pending: Vec<u8>,
    /// Close it once nothing is pending.
    ends: bool,
}

/// What the shim holds of one container's stdio.
#[derive(Debug)]
pub(crate) struct Stdio {
    outputs: Vec<Output>,
    input: Input,
    terminal: bool,
    stdin_once: bool,
    wants_stdin: bool,
    max_line: usize,
    log: Option<LogFile>,
    pub(crate) attached: Slab<Attached>,
}

/// How a container's stdio is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) max_line: usize,
}

/// What all containers share while one event is dealt with.
#[derive(Debug)]
pub(crate) struct Shared<'a> {
    pub(crate) poll: &'a Poll,
    pub(crate) scratch: &'a mut [u8],
    pub(crate) gather: &'a mut Gather,
}

fn null(write: bool) -> io::Result<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    Ok(options.read(!write).write(write).open("/dev/null")?.into())
}

/// `/dev/null`, for a stream that nobody wants.
pub(crate) fn null_stream(source: Option<Source>) -> io::Result<OwnedFd> {
    null(source.is_some())
}

impl Stdio {
    /// Makes the pipes of a container that has no terminal.
    pub(crate) fn new(wanted: Wanted, log: Option<LogFile>) -> io::Result<(Self, Given)> {
        let mut stdio = Self {
            outputs: Vec::new(),
            input: Input::default(),
            terminal: wanted.terminal,
            stdin_once: wanted.stdin_once,
            wants_stdin: wanted.stdin,
            max_line: wanted.max_line,
            log,
            attached: Slab::new(),
        };
        if wanted.terminal {
            return Ok((stdio, Given::Terminal));
        }
        let stdin = if wanted.stdin {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            wire::set_nonblocking(&ours)?;
            stdio.input.fd = Some(ours);
            theirs
        } else {
            null(false)?
        };
        let mut output = |source| -> io::Result<OwnedFd> {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            wire::set_nonblocking(&ours)?;
            stdio.outputs.push(Output::new(source, ours, wanted.max_line));
            Ok(theirs)
        };
        let given = Given::Pipes([stdin, output(Source::Stdout)?, output(Source::Stderr)?]);
        Ok((stdio, given))
    }

    /// Takes the main side of the terminal that the runtime made.
    pub(crate) fn take_console(&mut self, console: OwnedFd) -> io::Result<()> {
        wire::set_nonblocking(&console)?;
        if self.wants_stdin {
            // A descriptor of its own: reading and writing are waited for apart.
            self.input.fd = Some(console.try_clone()?);
        }
        self.outputs
            .push(Output::new(Source::Stdout, console, self.max_line));
        Ok(())
    }

    /// Begins to wait for output. `number` is the container's.
    pub(crate) fn watch(&mut self, poll: &Poll, number: u32) -> io::Result<()> {
        for output in &mut self.outputs {
            let token = Token::Output(number, output.source);
            output.watch.want(poll, &output.fd, token, Some(Interest::IN))?;
        }
        Ok(())
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal
    }

    pub(crate) fn log_mut(&mut self) -> Option<&mut LogFile> {
        self.log.as_mut()
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        match self.outputs.first() {
            Some(output) => set_size(&output.fd, width, height),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Reads output that has come.
    pub(crate) fn pump(&mut self, number: u32, source: Source, shared: &mut Shared<'_>) -> Option<LogChange> {
        self.read(number, source, READS_PER_TURN, shared)
    }

    /// Reads all output that an ended container left, and ends its attached clients and stdin.
    pub(crate) fn drain(&mut self, number: u32, shared: &mut Shared<'_>) -> Option<LogChange> {
        let mut change = None;
        for source in [Source::Stdout, Source::Stderr] {
            change = self.read(number, source, LAST_READS, shared).or(change);
        }
        let (log, gather) = (&mut self.log, &mut *shared.gather);
        for output in &mut self.outputs {
            output.flush(log.as_mut(), gather);
        }
        change = log.as_mut().and_then(|log| log.flush(gather)).or(change);
        self.close_input(shared.poll, number);
        for place in 0..self.attached.end() {
            if let Some(client) = self.attached.at_mut(place) {
                client.finish();
            }
            self.serve(number, place, shared.poll);
        }
        change
    }

    fn read(
        &mut self,
        number: u32,
        source: Source,
        most: usize,
        shared: &mut Shared<'_>,
    ) -> Option<LogChange> {
        let place = self.outputs.iter().position(|o| o.source == source)?;
        let (mut change, mut ended) = (None, false);
        for _ in 0..most {
            let output = &mut self.outputs[place];
            let n = match wire::read(&output.fd, shared.scratch) {
                Flow::Bytes(n) => n,
                Flow::Wait => break,
                Flow::Gone => {
                    ended = true;
                    break;
                }
            };
            let bytes = &shared.scratch[..n];
            if let Some(log) = &mut self.log {
                let gather = &mut *shared.gather;
                output
                    .splitter
                    .push(bytes, |record| log.add(gather, source, record));
                change = log.flush(gather).or(change);
            }
            for place in 0..self.attached.end() {
                if let Some(client) = self.attached.at_mut(place) {
                    client.output(source, bytes);
                }
            }
        }
        if ended {
            let mut output = self.outputs.swap_remove(place);
            output.flush(self.log.as_mut(), shared.gather);
            change = self.log.as_mut().and_then(|l| l.flush(shared.gather)).or(change);
            // Fails only when it was never waited for.
            let token = Token::Output(number, source);
            let _ = output.watch.want(shared.poll, &output.fd, token, None);
        }
        for place in 0..self.attached.end() {
            self.serve(number, place, shared.poll);
        }
        change
    }

    /// Sends an attached client what is kept for it; drops it when it has gone.
    pub(crate) fn serve(&mut self, number: u32, place: u32, poll: &Poll) {
        let blocked = !self.input.pending.is_empty();
        let token = Token::Attached(number, place);
        let Some(client) = self.attached.at_mut(place) else {
            return;
        };
        if client.send(poll, token, blocked) == Err(Left) {
            self.drop_client(number, place, poll);
        }
    }

    fn drop_client(&mut self, number: u32, place: u32, poll: &Poll) {
        if let Some(client) = self.attached.remove(place) {
            client.close(poll, Token::Attached(number, place));
        }
    }

    /// An attached client has said something, hung up, or has room.
    pub(crate) fn hear(&mut self, number: u32, place: u32, flags: Interest, shared: &mut Shared<'_>) {
        let Some(client) = self.attached.at_mut(place) else {
            return;
        };
        let mut left = false;
        if flags.intersects(Interest::IN | Interest::HUP | Interest::ERR) {
            let (input, once) = (&mut self.input, self.stdin_once);
            let heard = client.receive(shared.scratch, |said| match said {
                Said::Stdin(bytes) if input.fd.is_some() => input.pending.extend_from_slice(bytes),
                Said::Stdin(_) => {}
                Said::StdinEnded => input.ends |= once,
            });
            left = heard == Err(Left);
        }
        if left {
            self.drop_client(number, place, shared.poll);
        }
        self.feed(number, shared.poll);
        if !left {
            self.serve(number, place, shared.poll);
        }
    }

    /// Writes pending stdin; attached clients are heard again once none is left.
    pub(crate) fn feed(&mut self, number: u32, poll: &Poll) {
        let input = &mut self.input;
        let was_blocked = input.watch.is_on();
        while let (Some(fd), false) = (&input.fd, input.pending.is_empty()) {
            match wire::write(fd, &input.pending) {
                Flow::Bytes(n) => {
                    input.pending.drain(..n);
                }
                Flow::Wait => break,
                Flow::Gone => {
                    self.close_input(poll, number);
                    break;
                }
            }
        }
        let input = &mut self.input;
        if input.pending.is_empty() {
            input.pending = Vec::new();
            if input.ends && !self.terminal {
                self.close_input(poll, number);
            }
        }
        let input = &mut self.input;
        let blocked = !input.pending.is_empty();
        if let Some(fd) = &input.fd {
            let wanted = blocked.then_some(Interest::OUT);
            if input.watch.want(poll, fd, Token::Input(number), wanted).is_err() {
                self.close_input(poll, number);
            }
        }
        if was_blocked != blocked {
            for place in 0..self.attached.end() {
                self.serve(number, place, poll);
            }
        }
    }

    fn close_input(&mut self, poll: &Poll, number: u32) {
        let mut input = std::mem::take(&mut self.input);
        if let Some(fd) = &input.fd {
            // Fails only when it was never waited for.
            let _ = input.watch.want(poll, fd, Token::Input(number), None);
        }
    }

    /// Drops attached clients that had their time to read the rest.
    pub(crate) fn expire(&mut self, number: u32, now: Instant, poll: &Poll) {
        for place in 0..self.attached.end() {
            let until = self.attached.at(place).and_then(Attached::until);
            if until.is_some_and(|until| now >= until) {
                self.drop_client(number, place, poll);
            }
        }
    }

    /// Closes everything, before the container is forgotten.
    pub(crate) fn close(&mut self, poll: &Poll, number: u32) {
        self.close_input(poll, number);
        for output in &mut self.outputs {
            let token = Token::Output(number, output.source);
            // Fails only when it was never waited for.
            let _ = output.watch.want(poll, &output.fd, token, None);
        }
        for place in 0..self.attached.end() {
            self.drop_client(number, place, poll);
        }
    }
}

impl Output {
    fn new(source: Source, fd: OwnedFd, max_line: usize) -> Self {
        Self {
            source,
            fd,
            watch: Watch::default(),
            splitter: Splitter::new(max_line),
        }
    }

    fn flush(&mut self, log: Option<&mut LogFile>, gather: &mut Gather) {
        if let Some(log) = log {
            let source = self.source;
            self.splitter.flush(|record| log.add(gather, source, record));
        }
    }
}

/// Sets a terminal's size, in columns and rows.
pub(crate) fn set_size(terminal: impl AsFd, width: u16, height: u16) -> io::Result<()> {
    let mut size = rustix::termios::tcgetwinsize(&terminal)?;
    (size.ws_col, size.ws_row) = (width, height);
    Ok(rustix::termios::tcsetwinsize(&terminal, size)?)
}
