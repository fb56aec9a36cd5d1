//! One shim's connection: calls numbered and many at once, answers and events as they come.
//!
//! Two tasks own the socket. The writer takes whole frames from a queue, so that a caller who gives up leaves no half
//! frame. The reader matches answers to calls, ends of execs to their handles, and sends every other event on. When
//! the connection ends, the reader connects again, however long that takes: refused, and nothing else, means that the
//! shim is dead. Then the shim's whole state is asked for: exits in it are sent on as events, once more for those that
//! had been heard, and execs that are not in it have ended unheard.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cri_api::PodSandboxId;
use cri_shim_protocol::{Call, Event, Exit, Frame, FrameReader, Reply, Request, ShimError, Status, encode};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::shims::Folder;
use super::{ShimCallError, ShimEvent};

/// How many frames wait to be written.
const MAX_OUTGOING: usize = 64;
/// How many events wait to be taken. More than a pod can have containers.
const MAX_EVENTS: usize = 2048;
/// How much is read at once.
const READ_BYTES: usize = 16 << 10;

/// How long apart tries are to connect anew to a shim that may live: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);

type Answer = Result<(Reply, Option<OwnedFd>), ShimError>;
/// A container and the name of an exec in it.
type ExecKey = (String, String);

struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

#[derive(Debug, Default)]
struct Pending {
    calls: BTreeMap<u64, Asked>,
    execs: BTreeMap<ExecKey, Running>,
}

/// A call without answer.
#[derive(Debug)]
struct Asked {
    sender: oneshot::Sender<Answer>,
    /// The exec that it is to start.
    exec: Option<ExecKey>,
    /// Held until the shim has answered, even if the caller has left: its work goes on.
    turn: Option<OwnedSemaphorePermit>,
}

/// An exec whose end is waited for.
#[derive(Debug)]
struct Running {
    sender: oneshot::Sender<Exit>,
    /// The shim has said that it started.
    started: bool,
}

/// Where the shim is in its life, as far as the daemon can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Alive,
    Dead,
}

#[derive(Debug)]
pub(super) struct Connection {
    sandbox: PodSandboxId,
    pod: Folder,
    next_id: AtomicU64,
    pending: Mutex<Pending>,
    /// Replaced with each new connection; `None` while there is none.
    outgoing: watch::Sender<Option<mpsc::Sender<Outgoing>>>,
    /// Its receiver hears when the last handle is gone.
    held: watch::Sender<()>,
    life: watch::Sender<Life>,
    /// Somebody asked the shim to end: its end is no surprise.
    expected: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a call off the list when its caller stops waiting, unless the shim's work on it counts.
struct Waiting<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut pending = lock(&self.connection.pending);
        if pending
            .calls
            .get(&self.id)
            .is_some_and(|asked| asked.turn.is_none())
        {
            pending.calls.remove(&self.id);
        }
    }
}

impl Connection {
    /// Serves a connected socket; `child` is the shim when this daemon started it.
    pub(super) fn serve(
        sandbox: PodSandboxId,
        pod: Folder,
        stream: UnixStream,
        child: Option<Child>,
        events: mpsc::Sender<(PodSandboxId, ShimEvent)>,
    ) -> Arc<Self> {
        let connection = Arc::new(Self {
            sandbox,
            pod,
            next_id: AtomicU64::new(1),
            pending: Mutex::default(),
            outgoing: watch::Sender::new(None),
            held: watch::Sender::new(()),
            life: watch::Sender::new(Life::Alive),
            expected: AtomicBool::new(false),
        });
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        tokio::spawn(forward(connection.sandbox.clone(), receiver, events));
        let stream = connection.begin(stream);
        let held = connection.held.subscribe();
        tokio::spawn(keep(Arc::downgrade(&connection), held, stream, child, sender));
        connection
    }

    /// Starts the writer of a new connection.
    fn begin(&self, stream: UnixStream) -> Arc<UnixStream> {
        let stream = Arc::new(stream);
        let (outgoing, queue) = mpsc::channel(MAX_OUTGOING);
        self.outgoing.send_replace(Some(outgoing));
        tokio::spawn(write(stream.clone(), queue));
        stream
    }

    /// The shim's end from now on is no surprise.
    pub(super) fn expect_end(&self, expected: bool) {
        self.expected.store(expected, Ordering::Relaxed);
    }

    /// Waits until the shim is dead.
    pub(super) async fn died(&self) {
        // Errs only when the sender, which is in `self`, is gone.
        let _ = self.life.subscribe().wait_for(|life| *life == Life::Dead).await;
    }

    fn is_dead(&self) -> bool {
        *self.life.borrow() == Life::Dead
    }

    /// Registers interest in the end of an exec, before it's asked for.
    pub(super) fn expect_exec(&self, container: &str, exec: &str) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let key = (container.to_owned(), exec.to_owned());
        let started = false;
        lock(&self.pending).execs.insert(key, Running { sender, started });
        receiver
    }

    /// Takes back [`Connection::expect_exec`].
    pub(super) fn forget_exec(&self, container: &str, exec: &str) {
        let key = (container.to_owned(), exec.to_owned());
        lock(&self.pending).execs.remove(&key);
    }

    /// Sends a request without waiting for the answer.
    pub(super) async fn send(&self, request: Request) -> Result<(), ShimCallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.enqueue(&Call { id, request }, Vec::new()).await
    }

    /// Asks, and waits for the answer.
    pub(super) async fn call(
        &self,
        call: &'static str,
        request: Request,
        fds: Vec<OwnedFd>,
        turn: Option<OwnedSemaphorePermit>,
        after: Duration,
    ) -> Result<(Reply, Option<OwnedFd>), ShimCallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let exec = match &request {
            Request::Exec(exec) => Some((exec.container.clone(), exec.exec.clone())),
            _ => None,
        };
        let asked = Asked { sender, exec, turn };
        lock(&self.pending).calls.insert(id, asked);
        let _waiting = Waiting { connection: self, id };
        let asked = async {
            self.enqueue(&Call { id, request }, fds).await?;
            match answer.await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(ShimCallError::Refused(error)),
                Err(_) if self.is_dead() => Err(ShimCallError::Died),
                Err(_) => Err(ShimCallError::Disconnected { call }),
            }
        };
        match tokio::time::timeout(after, asked).await {
            Ok(result) => result,
            Err(_) => Err(ShimCallError::Timeout { call, after }),
        }
    }

    /// Gives a frame to the writer; while the connection is broken, to that of the next one.
    async fn enqueue(&self, frame: &Call, fds: Vec<OwnedFd>) -> Result<(), ShimCallError> {
        let bytes = encode(frame).map_err(ShimCallError::Encode)?;
        let mut queues = self.outgoing.subscribe();
        let mut frame = Outgoing { bytes, fds };
        loop {
            let queue = queues.borrow_and_update().clone();
            if let Some(queue) = queue {
                match queue.send(frame).await {
                    Ok(()) => return Ok(()),
                    Err(unsent) => frame = unsent.0,
                }
            }
            if self.is_dead() || queues.changed().await.is_err() {
                return Err(ShimCallError::Died);
            }
        }
    }

    /// Deals with a frame; the event is what others are to know.
    fn take(&self, frame: Frame, fds: &mut VecDeque<OwnedFd>) -> Option<Event> {
        match frame {
            Frame::Answer { id, result } => {
                let has_console = matches!(result, Ok(Reply::ExecStarted { console: true, .. }));
                let console = has_console.then(|| fds.pop_front()).flatten();
                let mut pending = lock(&self.pending);
                let asked = pending.calls.remove(&id);
                if let Some(Asked { sender, exec, .. }) = asked {
                    if let Some(running) = exec.and_then(|key| pending.execs.get_mut(&key)) {
                        running.started = result.is_ok();
                    }
                    drop(pending);
                    // A caller that left meanwhile doesn't care.
                    let _ = sender.send(result.map(|reply| (reply, console)));
                }
                None
            }
            Frame::Event(Event::ExecExited {
                container,
                exec,
                exit,
            }) => {
                let running = lock(&self.pending).execs.remove(&(container, exec));
                if let Some(running) = running {
                    // As above.
                    let _ = running.sender.send(exit);
                }
                None
            }
            Frame::Event(event) => Some(event),
        }
    }

    /// What a subscription's answer tells that may have been missed. Only an answer that nobody waits for is one:
    /// that is how the connection itself subscribes.
    fn missed(&self, frame: &Frame) -> Vec<ShimEvent> {
        let Frame::Answer {
            id,
            result: Ok(Reply::State(state)),
        } = frame
        else {
            return Vec::new();
        };
        let mut pending = lock(&self.pending);
        if pending.calls.contains_key(id) {
            return Vec::new();
        }
        // One that had started and isn't there any more ended while nobody listened; how, nobody knows.
        pending.execs.retain(|(container, exec), running| {
            let of = state.containers.iter().find(|c| c.container == *container);
            !running.started || of.is_some_and(|c| c.execs.contains(exec))
        });
        drop(pending);
        let exited = state.containers.iter().filter_map(|c| match c.status {
            Status::Exited { exit, .. } => Some(ShimEvent::Event(Event::ContainerExited {
                container: c.container.clone(),
                exit,
            })),
            _ => None,
        });
        exited.collect()
    }

    /// Fails everything that waits on the connection that has ended.
    fn disconnect(&self) {
        self.outgoing.send_replace(None);
        let calls = std::mem::take(&mut lock(&self.pending).calls);
        drop(calls);
    }

    fn bury(&self) {
        self.life.send_replace(Life::Dead);
        self.disconnect();
        let execs = std::mem::take(&mut lock(&self.pending).execs);
        drop(execs);
    }
}

/// Sends events on; apart from the reader, so that whoever is slow to take events still gets answers.
async fn forward(
    sandbox: PodSandboxId,
    mut queue: mpsc::Receiver<ShimEvent>,
    events: mpsc::Sender<(PodSandboxId, ShimEvent)>,
) {
    while let Some(event) = queue.recv().await {
        if events.send((sandbox.clone(), event)).await.is_err() {
            return;
        }
    }
}

/// Writes frames until nobody sends any more or the connection breaks.
async fn write(stream: Arc<UnixStream>, mut queue: mpsc::Receiver<Outgoing>) {
    while let Some(Outgoing { bytes, fds }) = queue.recv().await {
        let (mut rest, mut fds) = (&bytes[..], &fds[..]);
        while !rest.is_empty() {
            let sent = stream.async_io(Interest::WRITABLE, || {
                let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
                oci_runtime_sys::socket::send(stream.as_fd(), rest, &fds)
            });
            match sent.await {
                Ok(n) => {
                    // Descriptors travel with the first byte.
                    fds = &[];
                    rest = &rest[n..];
                }
                // The reader sees the end too.
                Err(_) => return,
            }
        }
    }
}

/// Reads until the shim is dead or the last handle on it is gone, over as many connections as it takes.
async fn keep(
    connection: Weak<Connection>,
    mut held: watch::Receiver<()>,
    mut stream: Arc<UnixStream>,
    child: Option<Child>,
    events: mpsc::Sender<ShimEvent>,
) {
    loop {
        let ended = read(&connection, &mut held, &stream, &events).await;
        let Some(connection) = connection.upgrade() else {
            break;
        };
        if let Err(error) = ended {
            tracing::debug!(sandbox_id = %connection.sandbox, %error, "connection to the shim ended");
        }
        connection.disconnect();
        let connection = Arc::downgrade(&connection);
        match reconnect(&connection).await {
            Some((connection, Reached::Alive(again))) => {
                stream = connection.begin(again);
                // When it fails, the next read does too.
                let _ = connection.send(Request::Subscribe).await;
            }
            Some((connection, Reached::Dead)) => {
                connection.bury();
                if !connection.expected.load(Ordering::Relaxed) {
                    // Nobody listens in a daemon that is ending.
                    let _ = events.send(ShimEvent::Died).await;
                }
                break;
            }
            None => break,
        }
    }
    if let Some(mut child) = child {
        // The shim is dead, or the daemon is about to be: collects it, once it has ended.
        tokio::task::spawn_blocking(move || child.wait());
    }
}

/// What came of connecting to a shim.
pub(super) enum Reached {
    Alive(UnixStream),
    /// Nobody listens: the socket was the shim's for as long as it lived.
    Dead,
}

/// Connects to the shim of a pod.
///
/// # Errors
/// When it may live and can't be reached: out of descriptors, its queue is full.
pub(super) async fn reach(pod: &Folder) -> io::Result<Reached> {
    match UnixStream::connect(pod.socket()).await {
        Ok(stream) => Ok(Reached::Alive(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(Reached::Dead),
            _ => Err(error),
        },
    }
}

/// Connects to the shim anew, for as long as somebody has a handle on it.
async fn reconnect(connection: &Weak<Connection>) -> Option<(Arc<Connection>, Reached)> {
    let mut pause = FIRST_PAUSE;
    loop {
        let held = connection.upgrade()?;
        match reach(&held.pod).await {
            Ok(reached) => return Some((held, reached)),
            Err(error) => {
                tracing::warn!(sandbox_id = %held.sandbox, %error, "failed to connect to the shim; trying again");
            }
        }
        drop(held);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn read(
    connection: &Weak<Connection>,
    held: &mut watch::Receiver<()>,
    stream: &UnixStream,
    events: &mpsc::Sender<ShimEvent>,
) -> io::Result<()> {
    let (mut reader, mut fds) = (FrameReader::new(), VecDeque::new());
    loop {
        let received = stream.async_io(Interest::READABLE, || {
            // On the stack for the moment of the read: thousands of idle connections hold no buffer.
            let mut buffer = [0; READ_BYTES];
            let (n, received) = oci_runtime_sys::socket::receive(stream.as_fd(), &mut buffer)?;
            reader.push(&buffer[..n]);
            fds.extend(received);
            Ok(n)
        });
        let count = tokio::select! {
            count = received => count?,
            // Errs when the last handle is gone; nothing is ever sent.
            _ = held.changed() => 0,
        };
        if count == 0 {
            return Ok(());
        }
        let Some(connection) = connection.upgrade() else {
            return Ok(());
        };
        loop {
            let frame = reader.next_frame::<Frame>().map_err(io::Error::other)?;
            let Some(frame) = frame else { break };
            for event in connection.missed(&frame) {
                events.try_send(event).map_err(|_| io::ErrorKind::OutOfMemory)?;
            }
            if let Some(event) = connection.take(frame, &mut fds) {
                // Full: nobody has taken events for long. The state, asked for anew, has them all.
                let sent = events.try_send(ShimEvent::Event(event));
                sent.map_err(|_| io::ErrorKind::OutOfMemory)?;
            }
        }
    }
}
