//! A client attached to a container's stdio.
//!
//! ```text
//!   Open ── the container's output ends, or too much is unread ──> Closing ── all sent, or 10 s over ──> gone
//!     └──── the client hangs up ──> gone
//! ```
//!
//! Output is never held back for a client. What one doesn't read at once is kept for it, up to
//! [`MAX_UNREAD_BYTES`]; then it's told so and disconnected.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cri_shim_protocol::attach::{HEADER_BYTES, MAX_UNREAD_BYTES, Stream, header, parse_header};

use crate::log::Source;
use crate::poll::{HANG_UP, Interest, Poll, Token, Watch};
use crate::wire::{self, Flow};

/// How many clients may be attached to one container.
pub(crate) const MAX_ATTACHED: usize = 64;
/// How long a client has to read its last chunks.
const LINGER: Duration = Duration::from_secs(10);

/// Whether the client's stdin is still coming.
#[derive(Debug)]
enum Stdin {
    /// Expected; the state of the chunk being read.
    Open(ChunkReader),
    /// Ended, or never asked for; what comes is thrown away.
    Ended,
    /// Nothing more can come.
    Shut,
}

#[derive(Debug)]
pub(crate) struct Attached {
    socket: OwnedFd,
    watch: Watch,
    stdin: Stdin,
    stdout: bool,
    stderr: bool,
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the queue's head that are sent.
    sent: usize,
    queued: usize,
    /// Set once it's closing.
    until: Option<Instant>,
}

/// The client is to be dropped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left;

/// What a client's chunks say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Stdin(&'a [u8]),
    /// Its stdin has ended.
    StdinEnded,
}

impl Attached {
    pub(crate) fn new(socket: OwnedFd, stdin: bool, stdout: bool, stderr: bool) -> Self {
        let stdin = if stdin {
            Stdin::Open(ChunkReader::default())
        } else {
            Stdin::Ended
        };
        Self {
            socket,
            watch: Watch::default(),
            stdin,
            stdout,
            stderr,
            queue: VecDeque::new(),
            sent: 0,
            queued: 0,
            until: None,
        }
    }

    /// Keeps output for the client, if it asked for that stream.
    pub(crate) fn output(&mut self, source: Source, bytes: &[u8]) {
        let (wanted, stream) = match source {
            Source::Stdout => (self.stdout, Stream::Stdout),
            Source::Stderr => (self.stderr, Stream::Stderr),
        };
        if !wanted || self.until.is_some() || bytes.is_empty() {
            return;
        }
        self.push(stream, bytes);
    }

    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        // Reads of output are far shorter than u32::MAX.
        let header = header(stream, bytes.len() as u32);
        let mut start = 0;
        if self.queue.is_empty() {
            let parts = [IoSlice::new(&header), IoSlice::new(bytes)];
            match wire::send(&self.socket, &parts, None) {
                Flow::Bytes(n) => start = n,
                Flow::Wait | Flow::Gone => {}
            }
        }
        if start == HEADER_BYTES + bytes.len() {
            return;
        }
        self.queue.push_back([&header, bytes].concat());
        if self.queue.len() == 1 {
            self.sent = start;
        }
        self.queued += HEADER_BYTES + bytes.len() - start;
        if self.queued > MAX_UNREAD_BYTES && self.until.is_none() {
            // Only what is begun is finished: the reason is to get through, not the megabyte.
            self.queue.truncate(usize::from(self.sent > 0));
            self.queued = self.queue.front().map_or(0, |head| head.len() - self.sent);
            let reason = format!("disconnected: {MAX_UNREAD_BYTES} bytes of output were left unread");
            self.until = Some(Instant::now() + LINGER);
            self.push(Stream::Reason, reason.as_bytes());
        }
    }

    /// Nothing more will come: what is kept is still sent.
    pub(crate) fn finish(&mut self) {
        self.until.get_or_insert_with(|| Instant::now() + LINGER);
    }

    /// When it's dropped for good, if it's closing.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Sends what it can and waits for the right thing next. While `stdin_blocked`, nothing is read.
    pub(crate) fn send(&mut self, poll: &Poll, token: Token, stdin_blocked: bool) -> Result<(), Left> {
        while let Some(head) = self.queue.front() {
            match wire::send(&self.socket, &[IoSlice::new(&head[self.sent..])], None) {
                Flow::Bytes(n) => {
                    self.sent += n;
                    self.queued -= n;
                    if self.sent == head.len() {
                        self.queue.pop_front();
                        self.sent = 0;
                    }
                }
                Flow::Wait => break,
                Flow::Gone => return Err(Left),
            }
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
            if self.until.is_some() {
                return Err(Left);
            }
        }
        let mut wanted = match self.stdin {
            Stdin::Open(_) if stdin_blocked => None,
            Stdin::Open(_) | Stdin::Ended => Some(Interest::IN),
            Stdin::Shut => Some(HANG_UP),
        };
        if !self.queue.is_empty() {
            wanted = Some(wanted.unwrap_or(HANG_UP) | Interest::OUT);
        }
        self.watch
            .want(poll, &self.socket, token, wanted)
            .map_err(|_| Left)
    }

    /// Reads once, and tells what the client said.
    pub(crate) fn receive(&mut self, scratch: &mut [u8], mut said: impl FnMut(Said<'_>)) -> Result<(), Left> {
        let flow = wire::receive(&self.socket, scratch, &mut Vec::new());
        let read = match flow {
            Flow::Bytes(n) => &scratch[..n],
            Flow::Wait => return Ok(()),
            Flow::Gone => {
                // The end of what the client sends may be all that has ended; a hang-up after it is its own end.
                match std::mem::replace(&mut self.stdin, Stdin::Shut) {
                    Stdin::Open(_) => said(Said::StdinEnded),
                    Stdin::Ended => {}
                    Stdin::Shut => return Err(Left),
                }
                return Ok(());
            }
        };
        let Stdin::Open(reader) = &mut self.stdin else {
            return Ok(());
        };
        let mut ended = false;
        reader.push(read, |part| match part {
            _ if ended => {}
            [] => ended = true,
            part => said(Said::Stdin(part)),
        })?;
        if ended {
            self.stdin = Stdin::Ended;
            said(Said::StdinEnded);
        }
        Ok(())
    }

    pub(crate) fn close(mut self, poll: &Poll, token: Token) {
        // Fails only when it was never waited for.
        let _ = self.watch.want(poll, &self.socket, token, None);
    }
}

/// Cuts a client's bytes into the contents of its chunks, without keeping any.
#[derive(Debug, Default)]
struct ChunkReader {
    header: [u8; HEADER_BYTES],
    have: usize,
    left: usize,
}

impl ChunkReader {
    /// Hands over pieces of stdin; an empty one is the chunk that ends it.
    fn push(&mut self, mut bytes: &[u8], mut part: impl FnMut(&[u8])) -> Result<(), Left> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (now, rest) = bytes.split_at(self.left.min(bytes.len()));
                self.left -= now.len();
                part(now);
                bytes = rest;
                continue;
            }
            self.header[self.have] = bytes[0];
            bytes = &bytes[1..];
            self.have += 1;
            if self.have == HEADER_BYTES {
                self.have = 0;
                match parse_header(self.header) {
                    Some((Stream::Stdin, 0)) => part(&[]),
                    Some((Stream::Stdin, len)) => self.left = len,
                    _ => return Err(Left),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_survive_any_fragmentation(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..10),
            cut in 1usize..30,
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(&header(Stream::Stdin, chunk.len() as u32));
                bytes.extend_from_slice(chunk);
            }
            bytes.extend_from_slice(&header(Stream::Stdin, 0));
            let (mut reader, mut got, mut ends) = (ChunkReader::default(), Vec::new(), 0);
            for read in bytes.chunks(cut) {
                reader
                    .push(read, |part| {
                        got.extend_from_slice(part);
                        ends += usize::from(part.is_empty());
                    })
                    .unwrap();
            }
            prop_assert_eq!(got, chunks.concat());
            prop_assert_eq!(ends, 1);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = ChunkReader::default().push(&bytes, |_| {});
        }
    }

    #[test]
    fn only_stdin_is_taken() {
        let bytes = header(Stream::Stdout, 1);
        assert_eq!(ChunkReader::default().push(&bytes, |_| {}), Err(Left));
    }
}
