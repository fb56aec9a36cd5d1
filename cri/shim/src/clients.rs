//! Connected daemons: frames in, answers and events out.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};

use cri_shim_protocol::{Call, ErrorKind, Frame, FrameReader, MAX_FRAME_FDS, Reply, ShimError, encode};
use serde::Deserialize;

use crate::poll::{Interest, Poll, Token, Watch};
use crate::wire::{self, Flow};

/// How many daemons may be connected at once.
pub(crate) const MAX_CLIENTS: usize = 8;
/// What a daemon may leave unread before it's disconnected.
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// Where an answer goes; the daemon may be gone by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    pub(crate) client: u32,
    /// Tells apart daemons that had the same number.
    pub(crate) serial: u64,
    pub(crate) call: u64,
}

/// What a frame turned out to be.
#[derive(Debug)]
pub(crate) enum Incoming {
    Call(Box<Call>),
    /// A call of this number that this shim can't read: a newer daemon's.
    Unknown(u64, ShimError),
}

/// A connected daemon.
#[derive(Debug)]
pub(crate) struct Client {
    socket: OwnedFd,
    pub(crate) serial: u64,
    pub(crate) subscribed: bool,
    reader: FrameReader,
    fds: VecDeque<OwnedFd>,
    queue: VecDeque<Outgoing>,
    queued: usize,
    watch: Watch,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fd: Option<OwnedFd>,
}

/// The client is to be dropped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hangup(pub(crate) &'static str);

impl Client {
    pub(crate) fn new(socket: OwnedFd, serial: u64) -> Self {
        Self {
            socket,
            serial,
            subscribed: false,
            reader: FrameReader::new(),
            fds: VecDeque::new(),
            queue: VecDeque::new(),
            queued: 0,
            watch: Watch::default(),
        }
    }

    /// Takes what has come, using `scratch`.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Result<(), Hangup> {
        match wire::receive(&self.socket, scratch, &mut self.fds) {
            Flow::Bytes(n) => self.reader.push(&scratch[..n]),
            Flow::Wait => {}
            Flow::Gone => return Err(Hangup("closed")),
        }
        if self.fds.len() > 4 * MAX_FRAME_FDS {
            return Err(Hangup("too many file descriptors"));
        }
        Ok(())
    }

    /// The next whole call.
    pub(crate) fn next_call(&mut self) -> Result<Option<Incoming>, Hangup> {
        #[derive(Deserialize)]
        struct Numbered {
            id: u64,
        }
        let body = self.reader.next_body().map_err(|_| Hangup("frame too long"))?;
        let Some(body) = body else { return Ok(None) };
        match serde_json::from_slice::<Call>(&body) {
            Ok(call) => Ok(Some(Incoming::Call(Box::new(call)))),
            Err(error) => {
                let numbered = serde_json::from_slice::<Numbered>(&body);
                let Numbered { id } = numbered.map_err(|_| Hangup("malformed frame"))?;
                // What descriptors it came with can't be known.
                self.fds.clear();
                let message = format!("this shim does not understand the request: {error}");
                let kind = ErrorKind::Unsupported;
                Ok(Some(Incoming::Unknown(id, ShimError { kind, message })))
            }
        }
    }

    /// The descriptors that came with a call.
    pub(crate) fn take_fds(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (self.fds.len() >= count).then(|| self.fds.drain(..count).collect())
    }

    pub(crate) fn answer(&mut self, id: u64, result: Result<Reply, ShimError>, fd: Option<OwnedFd>) {
        self.push(&Frame::Answer { id, result }, fd);
    }

    pub(crate) fn push(&mut self, frame: &Frame, fd: Option<OwnedFd>) {
        let bytes = encode(frame).unwrap_or_else(|error| {
            let Frame::Answer { id, .. } = frame else {
                return Vec::new();
            };
            let error = ShimError {
                kind: ErrorKind::Failed,
                message: error.to_string(),
            };
            let result = Err(error);
            encode(&Frame::Answer { id: *id, result }).unwrap_or_default()
        });
        self.queued += bytes.len();
        self.queue.push_back(Outgoing { bytes, sent: 0, fd });
    }

    /// Sends what it can, and waits for the right thing next.
    pub(crate) fn send(&mut self, poll: &Poll, token: Token) -> Result<(), Hangup> {
        while let Some(head) = self.queue.front_mut() {
            let rest = [IoSlice::new(&head.bytes[head.sent..])];
            let fd = head.fd.as_ref().map(|fd| fd.as_fd());
            match wire::send(&self.socket, &rest, fd) {
                Flow::Bytes(n) => {
                    head.fd = None;
                    head.sent += n;
                    self.queued -= n;
                    if head.sent == head.bytes.len() {
                        self.queue.pop_front();
                    }
                }
                Flow::Wait => break,
                Flow::Gone => return Err(Hangup("closed")),
            }
        }
        if self.queued > MAX_QUEUED_BYTES {
            return Err(Hangup("too much unread"));
        }
        let mut interest = Interest::IN;
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        } else {
            interest |= Interest::OUT;
        }
        let watched = self.watch.want(poll, &self.socket, token, Some(interest));
        watched.map_err(|_| Hangup("can't be waited for"))
    }

    /// Has nothing more to send.
    pub(crate) fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn close(mut self, poll: &Poll, token: Token) {
        // Fails only when it was never waited for.
        let _ = self.watch.want(poll, &self.socket, token, None);
    }
}
