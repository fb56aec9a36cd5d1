//! Waiting for many descriptors at once.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::log::Source;

/// Events taken from the kernel at once.
const BATCH: usize = 16;

/// Whose descriptor is ready. Numbers are places in the shim's [`Slab`](crate::slab::Slab)s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// A daemon wants to connect.
    Listener,
    /// A child has ended.
    Signals,
    /// A connected daemon.
    Client(u32),
    /// A stage child's report.
    Stage(u32),
    /// A container's output.
    Output(u32, Source),
    /// A container's stdin has room.
    Input(u32),
    /// A container's attached client.
    Attached(u32, u32),
    /// A container's count of processes that were killed for memory.
    Kills(u32),
}

const PLACE: u64 = 0xff_ffff;

impl Token {
    fn pack(self) -> u64 {
        let (kind, a, b) = match self {
            Self::Listener => (0, 0, 0),
            Self::Signals => (1, 0, 0),
            Self::Client(n) => (2, n, 0),
            Self::Stage(n) => (3, n, 0),
            Self::Output(n, Source::Stdout) => (4, n, 1),
            Self::Output(n, Source::Stderr) => (4, n, 2),
            Self::Input(n) => (5, n, 0),
            Self::Attached(n, m) => (6, n, m),
            Self::Kills(n) => (7, n, 0),
        };
        kind << 56 | (u64::from(a) & PLACE) << 24 | (u64::from(b) & PLACE)
    }

    fn unpack(packed: u64) -> Option<Self> {
        let (a, b) = ((packed >> 24 & PLACE) as u32, (packed & PLACE) as u32);
        Some(match (packed >> 56, b) {
            (0, _) => Self::Listener,
            (1, _) => Self::Signals,
            (2, _) => Self::Client(a),
            (3, _) => Self::Stage(a),
            (4, 1) => Self::Output(a, Source::Stdout),
            (4, 2) => Self::Output(a, Source::Stderr),
            (5, _) => Self::Input(a),
            (6, _) => Self::Attached(a, b),
            (7, _) => Self::Kills(a),
            _ => return None,
        })
    }
}

/// What to wait for on a descriptor; hang-ups and errors come in any case.
pub(crate) type Interest = EventFlags;

/// Nothing but hang-ups and errors.
pub(crate) const HANG_UP: Interest = Interest::empty();

/// An epoll instance.
pub(crate) struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl fmt::Debug for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poll")
            .field("epoll", &self.epoll)
            .finish_non_exhaustive()
    }
}

impl Poll {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(BATCH),
        })
    }

    /// Waits until something is ready or the time is over, and hands over what is ready.
    pub(crate) fn wait(
        &mut self,
        most: Option<Duration>,
        ready: &mut Vec<(Token, Interest)>,
    ) -> Result<(), Errno> {
        ready.clear();
        self.events.clear();
        let most = most.map(|d| Timespec {
            tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(d.subsec_nanos()),
        });
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), most.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let token = |event: &Event| Some((Token::unpack(event.data.u64())?, event.flags));
        ready.extend(self.events.iter().filter_map(token));
        Ok(())
    }
}

/// What is being waited for on one descriptor. To be told `None` before the descriptor is closed: a stage child
/// may hold a copy for a moment, and would keep the kernel's registration alive.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    now: Option<Interest>,
}

impl Watch {
    /// Something is being waited for.
    pub(crate) fn is_on(&self) -> bool {
        self.now.is_some()
    }

    /// Waits for `wanted` from now on; `None`: for nothing at all.
    pub(crate) fn want(
        &mut self,
        poll: &Poll,
        fd: impl AsFd,
        token: Token,
        wanted: Option<Interest>,
    ) -> Result<(), Errno> {
        let data = EventData::new_u64(token.pack());
        match (self.now, wanted) {
            (now, wanted) if now == wanted => return Ok(()),
            (None, Some(flags)) => epoll::add(&poll.epoll, fd, data, flags)?,
            (Some(_), Some(flags)) => epoll::modify(&poll.epoll, fd, data, flags)?,
            (Some(_), None) => epoll::delete(&poll.epoll, fd)?,
            (None, None) => {}
        }
        self.now = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        let tokens = [
            Token::Listener,
            Token::Signals,
            Token::Client(7),
            Token::Stage(0),
            Token::Output(3, Source::Stdout),
            Token::Output(3, Source::Stderr),
            Token::Input(0xff_ffff),
            Token::Attached(9, 4),
            Token::Kills(5),
        ];
        for token in tokens {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}
