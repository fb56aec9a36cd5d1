//! Standing in for a container's process in the foreground: signals go to it, a terminal's bytes go both ways, and its
//! exit code becomes this process's.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use oci_runtime_sys::process::{self, Exit};
use oci_runtime_sys::tty;

/// Signals taken from now on, instead of ending this process.
pub(crate) struct Relay {
    signals: SignalFd,
}

impl Relay {
    /// Blocks the signals that are passed on. Before the fork, so that none is lost.
    pub(crate) fn new() -> io::Result<Self> {
        let mut set = SigSet::all();
        for fatal in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGABRT,
            Signal::SIGPIPE,
        ] {
            set.remove(fatal);
        }
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            signals: SignalFd::with_flags(&set, flags)?,
        })
    }

    /// Waits for the process, passing on signals and bytes.
    pub(crate) fn wait(mut self, pid: i32, mut terminal: Option<Terminal>) -> io::Result<Exit> {
        let pidfd = process::pidfd_open(pid)?;
        loop {
            // The child may have ended before the signal descriptor was there, so it's asked each time.
            if let Some(exit) = self.pass_signals(pid, pidfd.as_fd(), terminal.as_ref())? {
                if let Some(terminal) = &mut terminal {
                    terminal.drain();
                }
                return Ok(exit);
            }
            let mut fds = vec![
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            ];
            if let Some(terminal) = &terminal {
                terminal.poll(&mut fds);
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(fds);
            if let Some(terminal) = &mut terminal {
                terminal.copy(&ready[2..]);
            }
        }
    }

    fn pass_signals(
        &mut self,
        pid: i32,
        pidfd: BorrowedFd<'_>,
        terminal: Option<&Terminal>,
    ) -> io::Result<Option<Exit>> {
        while let Some(signal) = self.signals.read_signal()? {
            let number = signal.ssi_signo as i32;
            if number == Signal::SIGCHLD as i32 || number == Signal::SIGURG as i32 {
                continue;
            }
            if let (true, Some(terminal)) = (number == Signal::SIGWINCH as i32, terminal) {
                terminal.resize();
                continue;
            }
            let _ = process::pidfd_send_signal(pidfd, number);
        }
        // Every child that has ended, as a subreaper gets orphans too; bounded by the number of processes.
        loop {
            match process::wait(-1, false)? {
                Some((ended, exit)) if ended == pid => return Ok(Some(exit)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }
}

/// The caller's terminal, raw while it's connected to the container's.
pub(crate) struct Terminal {
    main: File,
    before: Option<Termios>,
    input: bool,
    output: bool,
}

impl Terminal {
    /// Connects them; before the process writes anything, if it can be.
    pub(crate) fn new(main: OwnedFd) -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            termios::cfmakeraw(&mut raw);
            // Output goes on being processed here, so that nothing else need end its lines with a carriage return.
            raw.output_flags.insert(OutputFlags::OPOST);
            termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        }
        let main = File::from(main);
        // And not in the container's terminal as well: what goes to a file or a pipe here is as it was written.
        let mut inner = termios::tcgetattr(&main)?;
        inner.output_flags.remove(OutputFlags::ONLCR);
        termios::tcsetattr(&main, SetArg::TCSANOW, &inner)?;
        let terminal = Self {
            main,
            before,
            input: true,
            output: true,
        };
        terminal.resize();
        Ok(terminal)
    }

    fn resize(&self) {
        if let Ok((columns, rows)) = tty::size(io::stdin().as_fd()) {
            let _ = tty::resize(self.main.as_fd(), columns, rows);
        }
    }

    fn poll<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let wanted = |on: bool| if on { PollFlags::POLLIN } else { PollFlags::empty() };
        fds.push(PollFd::new(self.main.as_fd(), wanted(self.output)));
        if self.input {
            fds.push(PollFd::new(STDIN.as_fd(), PollFlags::POLLIN));
        }
    }

    fn copy(&mut self, ready: &[bool]) {
        if ready.first() == Some(&true) && self.output {
            self.output = pass(&self.main, &io::stdout());
        }
        if ready.get(1) == Some(&true) && self.input {
            self.input = pass(&io::stdin(), &self.main);
        }
    }

    /// What the process wrote before it ended; a bound, in case something else goes on writing.
    fn drain(&mut self) {
        for _ in 0..4096 {
            let ready = process::wait_readable(self.main.as_fd(), Some(0)).unwrap_or(false);
            if !ready || !self.output {
                return;
            }
            self.output = pass(&self.main, &io::stdout());
        }
    }
}

static STDIN: std::sync::LazyLock<io::Stdin> = std::sync::LazyLock::new(io::stdin);

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Copies what is there; false at the end.
fn pass(from: &impl std::os::fd::AsFd, to: &impl std::os::fd::AsFd) -> bool {
    let copy = || -> io::Result<bool> {
        let mut from = File::from(from.as_fd().try_clone_to_owned()?);
        let mut to = File::from(to.as_fd().try_clone_to_owned()?);
        let mut buffer = [0; 16 << 10];
        match from.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => to.write_all(&buffer[..length]).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            // EIO: the terminal's other side is closed.
            Err(e) => Err(e),
        }
    };
    copy().unwrap_or(false)
}
