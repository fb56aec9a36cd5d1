//! One netlink socket: requests, their answers, and errors with the kernel's extended text.
//!
//! The kernel makes whoever talks to it wait for grace periods that nothing depends on any more: for the memory of a
//! removed interface after everybody has lost sight of it, and, when an nfnetlink socket is closed, for the memory of
//! removed nftables elements. Both take some 10 ms. So removals are sent by a thread that does the waiting
//! ([`Channel::announce`]), and nfnetlink sockets are kept for the next one who needs one ([`crate::pool`]).

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use netlink_packet_core::Emitable;
use netlink_sys::{Socket, SocketAddr};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike},
    },
};

use crate::attr::Reader;

/// How long the kernel's answer to one request is waited for. It answers at once unless something is badly wrong.
pub const LIMIT: Duration = Duration::from_secs(10);
/// How long a removal may be on its way into the kernel. All changes to a machine's network configuration take turns,
/// and each removal keeps its turn for some 10 ms: the last of many has to wait for all others.
pub const REMOVAL_LIMIT: Duration = Duration::from_secs(120);
/// How often a sender aside is asked whether it failed.
const ASK_EVERY: u16 = 100;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;
pub(crate) const DUMP: u16 = 0x300;
/// The change that a request makes is reported to its sender too, as soon as it is made.
const ECHO: u16 = 0x8;
const DUMP_INTERRUPTED: u16 = 0x10;
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// The kernel's answers come in pieces of at most 32 KiB.
const BUFFER: usize = 64 << 10;
/// A dump that changed under the kernel's hands is taken again, this often.
const RETRIES: usize = 8;
/// So many threads wait for the kernel's clearing up at a time; who comes later waits himself.
const MAX_ASIDE: usize = 64;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what}{}", if extended.is_empty() { String::new() } else { format!(" (the kernel says: {extended})") })]
pub struct NetlinkError {
    what: String,
    extended: String,
    source: io::Error,
}

impl NetlinkError {
    pub(crate) fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        NetlinkError {
            what: what.into(),
            extended: String::new(),
            source: source.into(),
        }
    }

    pub(crate) fn about(mut self, what: impl FnOnce() -> String) -> Self {
        self.what = what();
        self
    }

    /// The kernel's error number.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the thing isn't there.
    pub fn is_absent(&self) -> bool {
        use nix::errno::Errno;
        let absent = [
            Errno::ENOENT,
            Errno::ENODEV,
            Errno::ENXIO,
            Errno::ESRCH,
            Errno::EADDRNOTAVAIL,
        ];
        self.errno()
            .is_some_and(|number| absent.iter().any(|errno| *errno as i32 == number))
    }

    /// Whether the thing is there already.
    pub fn is_present(&self) -> bool {
        self.errno() == Some(nix::errno::Errno::EEXIST as i32)
    }

    /// Whether this kernel doesn't know the feature.
    pub fn is_unsupported(&self) -> bool {
        use nix::errno::Errno;
        [Errno::EOPNOTSUPP, Errno::EPROTONOSUPPORT, Errno::EAFNOSUPPORT]
            .iter()
            .any(|errno| self.errno() == Some(*errno as i32))
    }
}

/// One message of an answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
}

#[cfg(test)]
impl std::os::fd::AsRawFd for Channel {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

/// What a received message is.
pub(crate) enum Received {
    /// Part of an answer.
    Reply(Reply),
    /// The end of a dump.
    Done,
    /// Success.
    Ack,
    /// Failure.
    Failed(NetlinkError),
}

/// Where a sender aside reports how it ended.
type SendEnd = mpsc::Receiver<Result<(), NetlinkError>>;

#[derive(Debug)]
pub(crate) struct Channel {
    socket: Arc<Socket>,
    sequence: u32,
    buffer: Vec<u8>,
    /// Nothing went wrong on it, so that the next one may use it.
    sound: bool,
}

impl Channel {
    pub(crate) fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let fail = |error: io::Error| NetlinkError::new("open a netlink socket", error);
        let mut socket = Socket::new(protocol).map_err(fail)?;
        socket.bind_auto().map_err(fail)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(fail)?;
        // Both only make error messages better; kernels without them still work.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let seconds = i64::try_from(LIMIT.as_secs()).unwrap_or(10);
        setsockopt(&socket.as_fd(), ReceiveTimeout, &TimeVal::seconds(seconds))
            .map_err(|e| fail(e.into()))?;
        Ok(Channel {
            socket: Arc::new(socket),
            sequence: first_sequence(),
            buffer: Vec::with_capacity(BUFFER),
            sound: true,
        })
    }

    /// Whether every answer that was waited for has come.
    pub(crate) fn is_sound(&self) -> bool {
        self.sound
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a typed message and waits for its acknowledgement.
    pub(crate) fn tell(
        &mut self,
        kind: u16,
        flags: u16,
        message: &impl Emitable,
    ) -> Result<(), NetlinkError> {
        let mut payload = vec![0; message.buffer_len()];
        message.emit(&mut payload);
        self.request(kind, flags | ACK, &payload).map(drop)
    }

    /// Sends one request and collects its whole answer.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> Result<Vec<Reply>, NetlinkError> {
        let mut replies = Vec::new();
        for _ in 0..RETRIES {
            replies.clear();
            if !self.each(kind, flags, payload, |reply| replies.push(reply))? {
                break;
            }
            // Should something change all the time, the last view is as good as any.
        }
        Ok(replies)
    }

    /// Sends one request and hands over its answer piece by piece; tells whether something changed meanwhile, so that
    /// pieces may be missing or have come twice.
    pub(crate) fn each(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &[u8],
        mut take: impl FnMut(Reply),
    ) -> Result<bool, NetlinkError> {
        let sequence = self.next_sequence();
        self.send(&encode(kind, flags | REQUEST, sequence, payload))?;
        let mut interrupted = false;
        loop {
            for (header, received) in self.receive()? {
                if header.sequence != sequence {
                    continue;
                }
                interrupted |= header.flags & DUMP_INTERRUPTED != 0;
                match received {
                    Received::Failed(error) => return Err(error),
                    Received::Done | Received::Ack => return Ok(interrupted),
                    Received::Reply(reply) => {
                        take(reply);
                        if flags & (ACK | DUMP) == 0 {
                            return Ok(false);
                        }
                    }
                }
            }
        }
    }

    /// Makes a change and returns as soon as the kernel reports it (the payload of a message of type `report`), which
    /// is before it has cleared up and acknowledges. Nothing is returned when the acknowledgement came first: a kernel
    /// before 6.2 doesn't report. Once begun, the change is completed whatever becomes of this process.
    pub(crate) fn announce(
        &mut self,
        kind: u16,
        message: &impl Emitable,
        report: u16,
    ) -> Result<Option<Reply>, NetlinkError> {
        let mut payload = vec![0; message.buffer_len()];
        message.emit(&mut payload);
        let sequence = self.next_sequence();
        let mut sending = self.send_aside(encode(kind, REQUEST | ACK | ECHO, sequence, &payload))?;
        let deadline = Instant::now() + REMOVAL_LIMIT;
        loop {
            if let Some(end) = &sending
                && self.sent_or_answered(end, deadline)?
            {
                sending = None;
            }
            for (header, received) in self.receive()? {
                if header.sequence != sequence {
                    continue;
                }
                match received {
                    Received::Failed(error) => return Err(error),
                    Received::Done | Received::Ack => return Ok(None),
                    Received::Reply(reply) if header.kind == report => return Ok(Some(reply)),
                    Received::Reply(_) => {}
                }
            }
        }
    }

    /// Sends from a thread that reports the end of it; nothing is returned when it has been sent already.
    fn send_aside(&self, bytes: Vec<u8>) -> Result<Option<SendEnd>, NetlinkError> {
        static ASIDE: AtomicUsize = AtomicUsize::new(0);
        let (socket, request) = (self.socket.clone(), bytes.clone());
        let (report, end) = mpsc::channel();
        let work = move || {
            let result = send(&socket, &request);
            ASIDE.fetch_sub(1, Ordering::Relaxed);
            // Nobody listens any more when the answer came first.
            let _ = report.send(result);
        };
        if ASIDE.fetch_add(1, Ordering::Relaxed) < MAX_ASIDE {
            let thread = thread::Builder::new().name("netlink".into());
            if thread.stack_size(64 << 10).spawn(work).is_ok() {
                return Ok(Some(end));
            }
        }
        ASIDE.fetch_sub(1, Ordering::Relaxed);
        send(&self.socket, &bytes)?;
        Ok(None)
    }

    /// Waits until there is something to receive (false) or the thread aside is done (true), so that the answer, which
    /// the kernel gives before it lets go of the sender, is there. Its failure is this request's.
    fn sent_or_answered(&mut self, end: &SendEnd, deadline: Instant) -> Result<bool, NetlinkError> {
        let what = "receive a netlink answer";
        let result = loop {
            let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut sockets, PollTimeout::from(ASK_EVERY)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => break Ok(false),
                Err(errno) => break Err(NetlinkError::new(what, errno)),
            }
            match end.try_recv() {
                Ok(sent) => break sent.map(|()| true),
                Err(mpsc::TryRecvError::Disconnected) => break Ok(true),
                Err(mpsc::TryRecvError::Empty) => {}
            }
            if Instant::now() >= deadline {
                let text = "the kernel has not come to the request: too many others change the network, or one hangs";
                let error = io::Error::new(io::ErrorKind::TimedOut, text);
                break Err(NetlinkError::new(what, error));
            }
        };
        result.inspect_err(|_| self.sound = false)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        send(&self.socket, bytes).inspect_err(|_| self.sound = false)
    }

    /// The next datagram's messages.
    pub(crate) fn receive(&mut self) -> Result<Vec<(Header, Received)>, NetlinkError> {
        self.receive_some().inspect_err(|_| self.sound = false)
    }

    fn receive_some(&mut self) -> Result<Vec<(Header, Received)>, NetlinkError> {
        const MSG_TRUNC: i32 = nix::sys::socket::MsgFlags::MSG_TRUNC.bits();
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, MSG_TRUNC) {
                Ok(size) if size > self.buffer.len() => {
                    let error = io::Error::other("an answer is larger than the buffer");
                    return Err(NetlinkError::new("receive a netlink answer", error));
                }
                Ok(_) => return Ok(decode(&self.buffer)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let error = io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer");
                    return Err(NetlinkError::new("receive a netlink answer", error));
                }
                Err(error) => return Err(NetlinkError::new("receive a netlink answer", error)),
            }
        }
    }
}

/// Sockets of different network namespaces may have the same port, and the kernel reports the removal of a veth pair's
/// other end to that port of the other namespace. Numbers that no two sockets share keep such a report from being taken
/// for an answer.
fn first_sequence() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1 << 16, Ordering::Relaxed)
}

fn send(socket: &Socket, bytes: &[u8]) -> Result<(), NetlinkError> {
    loop {
        match socket.send(bytes, 0) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(NetlinkError::new("send a netlink request", error)),
        }
    }
}

/// What of a message's header matters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) sequence: u32,
    kind: u16,
    flags: u16,
}

/// One message with its header, padded.
pub(crate) fn encode(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + payload.len() + 3);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    while !bytes.len().is_multiple_of(4) {
        bytes.push(0);
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Vec<(Header, Received)> {
    let mut messages = Vec::new();
    while let Some((header, payload, rest)) = split(bytes) {
        bytes = rest;
        let received = match header.kind {
            NLMSG_ERROR => error_of(header.flags, payload),
            // A dump that fails half-way says so in its last message.
            NLMSG_DONE => match payload.first_chunk().map(|b| i32::from_ne_bytes(*b)) {
                Some(code) if code < 0 => error_of(header.flags & !ACK_TLVS, payload),
                _ => Received::Done,
            },
            // Control messages: no-op, overrun.
            0..16 => continue,
            _ => Received::Reply(Reply {
                payload: payload.to_vec(),
            }),
        };
        messages.push((header, received));
    }
    messages
}

fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let head = bytes.get(..HEADER)?;
    let kind = u16::from_ne_bytes([head[4], head[5]]);
    let flags = u16::from_ne_bytes([head[6], head[7]]);
    let sequence = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
    let payload = bytes.get(HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    let header = Header {
        sequence,
        kind,
        flags,
    };
    Some((header, payload, rest))
}

fn error_of(flags: u16, payload: &[u8]) -> Received {
    let code = payload
        .first_chunk()
        .map_or(-nix::libc::EPROTO, |b| i32::from_ne_bytes(*b));
    if code == 0 {
        return Received::Ack;
    }
    let mut error = NetlinkError::new(
        "complete a netlink request",
        io::Error::from_raw_os_error(code.saturating_neg()),
    );
    if flags & ACK_TLVS != 0 {
        // After the code comes the request's header, and its body too unless it was left out.
        let body = payload
            .get(4..8)
            .and_then(|b| b.first_chunk())
            .map_or(0, |b| u32::from_ne_bytes(*b) as usize);
        let skip = 4 + if flags & CAPPED != 0 {
            HEADER
        } else {
            body.next_multiple_of(4)
        };
        const NLMSGERR_ATTR_MSG: u16 = 1;
        let text = payload
            .get(skip..)
            .and_then(|rest| Reader(rest).string(NLMSGERR_ATTR_MSG));
        error.extended = text.unwrap_or_default();
    }
    Received::Failed(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn noise_is_decoded_without_panic(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&noise);
        }
    }

    #[test]
    fn a_sender_aside_that_fails_is_heard_of_with_its_errno() {
        let mut channel = Channel::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        // More than any socket's send buffer takes.
        let end = channel.send_aside(vec![0; 1 << 26]).unwrap().unwrap();
        let far = Instant::now() + REMOVAL_LIMIT;
        let error = channel.sent_or_answered(&end, far).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EMSGSIZE as i32), "{error}");
        assert!(!channel.is_sound());
    }

    #[test]
    fn a_sender_aside_is_waited_for_until_the_deadline_only() {
        let mut channel = Channel::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        let far = Instant::now() + REMOVAL_LIMIT;
        let (report, end) = mpsc::channel();
        let error = channel.sent_or_answered(&end, Instant::now()).unwrap_err();
        assert!(error.source.to_string().contains("has not come to the request"));
        report.send(Ok(())).unwrap();
        assert!(channel.sent_or_answered(&end, far).unwrap());
        drop(report);
        assert!(channel.sent_or_answered(&end, far).unwrap());
        let (_still_sending, end) = mpsc::channel();
        // A no-op that asks for its acknowledgement.
        channel.send(&encode(1, REQUEST | ACK, 1, &[])).unwrap();
        assert!(!channel.sent_or_answered(&end, far).unwrap());
    }

    #[test]
    fn messages_are_split_and_errors_speak() {
        let mut bytes = encode(20, 0, 7, &[1, 2, 3]);
        let mut error = (-2i32).to_ne_bytes().to_vec();
        error.extend_from_slice(&[0; HEADER]);
        let mut attrs = crate::attr::Attrs::default();
        attrs.put_str(1, "no such thing");
        error.extend_from_slice(attrs.bytes());
        bytes.extend(encode(NLMSG_ERROR, CAPPED | ACK_TLVS, 7, &error));
        let messages = decode(&bytes);
        assert_eq!(messages.len(), 2);
        assert!(matches!(&messages[0].1, Received::Reply(r) if r.payload == [1, 2, 3]));
        let Received::Failed(error) = &messages[1].1 else {
            panic!()
        };
        assert!(
            error.is_absent() && error.to_string().ends_with("(the kernel says: no such thing)"),
            "{error}"
        );
    }
}
