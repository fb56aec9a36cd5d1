//! Commands for the host: a thread reads frames, every command has threads for its output and its end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::Pid;
use tests_vm::wire::{Frame, Kind, MOST, PORT, Words};

/// Debian's, for root.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PORT_LIMIT: Duration = Duration::from_secs(20);
/// After a command's end, how long its output may be silent while something still holds it open.
const SILENCE: Duration = Duration::from_secs(1);
/// Frames of standard input that wait for a command that doesn't read; more hold up the host.
const MOST_WAITING: usize = 256;

type Port = Arc<Mutex<File>>;

struct Running {
    group: Pid,
    input: Option<SyncSender<Vec<u8>>>,
}

type Table = Arc<Mutex<BTreeMap<u32, Running>>>;

/// Serves until the port can't be read.
pub(crate) fn run() -> Result<()> {
    let path = find_port()?;
    let mut from = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("failed to open `{}`", path.display()))?;
    let to: Port = Arc::new(Mutex::new(from.try_clone()?));
    let table = Table::default();
    loop {
        let frame = Frame::read(&mut from).with_context(|| format!("failed to read `{}`", path.display()))?;
        let Some(frame) = frame else {
            // Nobody is connected: the host is about to, or this guest is being saved.
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        answer(frame, &to, &table);
    }
}

fn find_port() -> Result<PathBuf> {
    let begun = Instant::now();
    while begun.elapsed() < PORT_LIMIT {
        for entry in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    bail!("there is no virtio port called {PORT}")
}

fn answer(frame: Frame, to: &Port, table: &Table) {
    let id = frame.id;
    match frame.kind {
        Kind::Hello => send(to, Kind::Hello, id, &frame.bytes),
        Kind::Run => match start(id, &frame.bytes, to, table) {
            Ok(()) => {}
            Err(e) => send(to, Kind::Failed, id, format!("{e:#}").as_bytes()),
        },
        Kind::Stdin => {
            let input = locked(table).get_mut(&id).and_then(|running| {
                if frame.bytes.is_empty() {
                    running.input.take()
                } else {
                    running.input.clone()
                }
            });
            if let Some(input) = input.filter(|_| !frame.bytes.is_empty()) {
                // One that closed its input doesn't want it.
                let _ = input.send(frame.bytes);
            }
        }
        Kind::Kill => {
            if let Some(running) = locked(table).get(&id) {
                // It may have ended meanwhile, which is what was asked for.
                let _ = killpg(running.group, Signal::SIGKILL);
            }
        }
        Kind::Clock => {
            if let Err(e) = set_clock(&frame.bytes) {
                send(to, Kind::Failed, id, format!("{e:#}").as_bytes());
            } else {
                send(to, Kind::Exit, id, &0_i32.to_le_bytes());
            }
        }
        Kind::Sync => {
            nix::unistd::sync();
            send(to, Kind::Exit, id, &0_i32.to_le_bytes());
        }
        Kind::Stdout | Kind::Stderr | Kind::Exit | Kind::Failed => {}
    }
}

fn set_clock(bytes: &[u8]) -> Result<()> {
    let nanoseconds = u64::from_le_bytes(bytes.try_into().context("a time has eight bytes")?);
    let time = TimeSpec::from_duration(Duration::from_nanos(nanoseconds));
    clock_settime(ClockId::CLOCK_REALTIME, time).context("failed to set the clock")
}

fn start(id: u32, bytes: &[u8], to: &Port, table: &Table) -> Result<()> {
    let words = Words::decode(bytes).context("this is no command")?;
    let (program, arguments) = words.arguments.split_first().context("a command has a program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .envs(words.variables)
        .current_dir(&words.folder)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to run `{program}` in `{}`", words.folder))?;
    let (input, waiting) = sync_channel(MOST_WAITING);
    if let Some(stdin) = child.stdin.take() {
        thread::spawn(move || feed(stdin, &waiting));
    }
    let group = Pid::from_raw(i32::try_from(child.id())?);
    locked(table).insert(
        id,
        Running {
            group,
            input: Some(input),
        },
    );
    let (to, table) = (Arc::clone(to), Arc::clone(table));
    thread::spawn(move || {
        let code = attend(id, child, &to);
        locked(&table).remove(&id);
        match code {
            Ok(code) => send(&to, Kind::Exit, id, &code.to_le_bytes()),
            Err(e) => send(&to, Kind::Failed, id, format!("{e:#}").as_bytes()),
        }
    });
    Ok(())
}

/// Until the command's input is ended by the host or closed by the command.
fn feed(mut stdin: std::process::ChildStdin, waiting: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = waiting.recv() {
        if stdin.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Passes the command's output on until its end: the exit code, or 128 and the signal.
fn attend(id: u32, mut child: Child, to: &Port) -> Result<i32> {
    let passed = Arc::new(AtomicU64::new(0));
    let (done, ended) = channel();
    if let Some(out) = child.stdout.take() {
        pass(Kind::Stdout, id, out, to, &passed, done.clone());
    }
    if let Some(err) = child.stderr.take() {
        pass(Kind::Stderr, id, err, to, &passed, done.clone());
    }
    drop(done);
    let status = child.wait().context("failed to wait for the command")?;
    // What it left running may hold the output open for ever; it is the command's end that counts.
    let mut seen = passed.load(Ordering::Relaxed);
    loop {
        match ended.recv_timeout(SILENCE) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let now = passed.load(Ordering::Relaxed);
                if now == seen {
                    break;
                }
                seen = now;
            }
        }
    }
    Ok(code(status))
}

fn pass(
    kind: Kind,
    id: u32,
    mut from: impl Read + Send + 'static,
    to: &Port,
    passed: &Arc<AtomicU64>,
    done: Sender<()>,
) {
    let (to, passed) = (Arc::clone(to), Arc::clone(passed));
    thread::spawn(move || {
        let mut buffer = vec![0; MOST];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            send(&to, kind, id, &buffer[..count]);
            passed.fetch_add(count as u64, Ordering::Relaxed);
        }
        // The other end is gone if nobody waits any more.
        let _ = done.send(());
    });
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn send(to: &Port, kind: Kind, id: u32, bytes: &[u8]) {
    // A host that is gone reads nothing; the guest ends with it.
    let _ = Frame::write(&mut *locked(to), kind, id, bytes);
}

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
