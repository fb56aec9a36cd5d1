//! The host's end of the agent's port: commands, their output and their ends.
//!
//! A thread reads frames and hands each to the command that it belongs to; who waits for a command waits with a
//! deadline, and learns at once when QEMU ends.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::wire::{Frame, Kind, Words};

/// How long a command may take when nothing else is said.
const LIMIT: Duration = Duration::from_secs(3600);

/// What shall run in the guest.
#[derive(Debug, Clone)]
pub struct Script {
    words: Words,
    input: Vec<u8>,
    limit: Duration,
}

impl Script {
    /// A program with its arguments.
    #[must_use]
    pub fn new<T: Into<String>>(arguments: impl IntoIterator<Item = T>) -> Self {
        Self {
            words: Words {
                folder: "/".to_owned(),
                variables: Vec::new(),
                arguments: arguments.into_iter().map(Into::into).collect(),
            },
            input: Vec::new(),
            limit: LIMIT,
        }
    }

    /// A line for the shell.
    #[must_use]
    pub fn shell(line: &str) -> Self {
        Self::new(["sh", "-c", line])
    }

    /// The folder in which it runs; `/` otherwise.
    #[must_use]
    pub fn folder(mut self, folder: &str) -> Self {
        folder.clone_into(&mut self.words.folder);
        self
    }

    /// A variable, beside PATH and HOME.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.words.variables.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Its standard input; nothing otherwise.
    #[must_use]
    pub fn input(mut self, bytes: &[u8]) -> Self {
        bytes.clone_into(&mut self.input);
        self
    }

    /// How long it may take; an hour otherwise.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

/// How a command ended, and what it said.
#[derive(Debug, Clone, Default)]
pub struct Finished {
    /// Its exit code, or 128 and the signal.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself, if the command succeeded.
    ///
    /// # Errors
    /// Tells the code and the end of what it said.
    pub fn ok(self) -> Result<Self> {
        ensure!(
            self.code == 0,
            "the guest's command ended with {}: {}{}",
            self.code,
            self.stdout_text(),
            self.stderr_text()
        );
        Ok(self)
    }
}

type Waiting = Arc<Mutex<Option<BTreeMap<u32, Sender<Frame>>>>>;

/// The port.
#[derive(Debug)]
pub(crate) struct Channel {
    to: Arc<Mutex<UnixStream>>,
    waiting: Waiting,
    last: u32,
}

/// A command that runs in the guest. Dropping it leaves the command alone.
#[derive(Debug)]
pub struct Task {
    id: u32,
    to: Arc<Mutex<UnixStream>>,
    frames: Receiver<Frame>,
    ends: Instant,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        let mut from = stream.try_clone()?;
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let table = Arc::clone(&waiting);
        thread::spawn(move || {
            while let Ok(Some(frame)) = Frame::read(&mut from) {
                let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(table) = table.as_mut() else { return };
                let last = matches!(frame.kind, Kind::Exit | Kind::Failed | Kind::Hello);
                let id = frame.id;
                if let Some(to) = table.get(&id) {
                    // One that was dropped doesn't want to know.
                    let _ = to.send(frame);
                }
                if last {
                    table.remove(&id);
                }
            }
            // QEMU ended: everybody who waits learns it by the end of their channel.
            *table.lock().unwrap_or_else(PoisonError::into_inner) = None;
        });
        Ok(Self {
            to: Arc::new(Mutex::new(stream)),
            waiting,
            last: 0,
        })
    }

    /// Sends one frame of a new conversation.
    fn ask(&mut self, kind: Kind, bytes: &[u8], limit: Duration) -> Result<Task> {
        self.last += 1;
        let id = self.last;
        let (sender, frames) = channel();
        {
            let mut table = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let table = table.as_mut().context("the guest has ended")?;
            table.insert(id, sender);
        }
        let task = Task {
            id,
            to: Arc::clone(&self.to),
            frames,
            ends: Instant::now() + limit,
        };
        task.send(kind, bytes)?;
        Ok(task)
    }

    /// Asks the agent whether it is there. The answer may come much later, when the guest is up.
    pub(crate) fn hello(&mut self) -> Result<Task> {
        self.ask(Kind::Hello, b"orlop", LIMIT)
    }

    /// Sets the guest's clock to the host's.
    pub(crate) fn set_clock(&mut self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let nanoseconds = u64::try_from(now.as_nanos())?;
        let task = self.ask(Kind::Clock, &nanoseconds.to_le_bytes(), Duration::from_secs(30))?;
        task.wait(|_, _| Ok(()))?;
        Ok(())
    }

    /// Has the guest write everything to its disks.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let task = self.ask(Kind::Sync, b"", Duration::from_secs(300))?;
        task.wait(|_, _| Ok(()))?;
        Ok(())
    }

    pub(crate) fn start(&mut self, script: &Script) -> Result<Task> {
        let bytes = script.words.encode();
        ensure!(
            bytes.len() <= crate::wire::MOST,
            "the command line has more than {} bytes",
            crate::wire::MOST
        );
        let task = self.ask(Kind::Run, &bytes, script.limit)?;
        if !script.input.is_empty() {
            task.send(Kind::Stdin, &script.input)?;
        }
        task.send(Kind::Stdin, b"")?;
        Ok(task)
    }
}

impl Task {
    fn send(&self, kind: Kind, bytes: &[u8]) -> Result<()> {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        Frame::write(&mut *to, kind, self.id, bytes)
            .and_then(|()| to.flush())
            .context("the guest has ended")
    }

    /// Waits until the agent answers `hello`, at most that long; false if it is still to come.
    pub(crate) fn answered(&self, within: Duration) -> Result<bool> {
        match self.frames.recv_timeout(within) {
            Ok(_) => Ok(true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => bail!("QEMU ended"),
        }
    }

    /// Kills the command.
    ///
    /// # Errors
    /// The guest has ended.
    pub fn kill(&self) -> Result<()> {
        self.send(Kind::Kill, b"")
    }

    /// Waits for the command's end, handing each piece of output on as it comes (true: standard error); the exit code.
    ///
    /// # Errors
    /// The command couldn't be started or took too long (it is killed then), the guest ended, or `take` failed.
    pub fn wait(self, mut take: impl FnMut(bool, &[u8]) -> Result<()>) -> Result<i32> {
        loop {
            let left = self.ends.saturating_duration_since(Instant::now());
            let frame = match self.frames.recv_timeout(left) {
                Ok(frame) => frame,
                Err(RecvTimeoutError::Disconnected) => bail!("QEMU ended while the command ran"),
                Err(RecvTimeoutError::Timeout) => {
                    self.kill()?;
                    return Err(TooLong.into());
                }
            };
            match frame.kind {
                Kind::Stdout => take(false, &frame.bytes)?,
                Kind::Stderr => take(true, &frame.bytes)?,
                Kind::Exit => {
                    let code = frame
                        .bytes
                        .as_slice()
                        .try_into()
                        .context("an exit code has four bytes")?;
                    return Ok(i32::from_le_bytes(code));
                }
                Kind::Failed => bail!("the guest's agent: {}", String::from_utf8_lossy(&frame.bytes)),
                Kind::Hello | Kind::Run | Kind::Stdin | Kind::Kill | Kind::Clock | Kind::Sync => {}
            }
        }
    }

    /// Waits for the command's end and keeps what it said.
    ///
    /// # Errors
    /// As [`Task::wait`].
    pub fn finish(self) -> Result<Finished> {
        let mut finished = Finished::default();
        finished.code = self.wait(|error, bytes| {
            if error {
                &mut finished.stderr
            } else {
                &mut finished.stdout
            }
            .extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(finished)
    }
}

/// The command took longer than it may.
#[derive(Debug)]
pub(crate) struct TooLong;

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the guest's command took too long and was killed")
    }
}

impl std::error::Error for TooLong {}
