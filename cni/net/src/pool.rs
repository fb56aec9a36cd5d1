//! Nfnetlink sockets that outlast their use.
//!
//! When such a socket is closed, the kernel waits until everything that nftables removed before is freed, a grace
//! period of some 10 ms, and keeps all others from changing rules meanwhile. A process that lives on spares itself and
//! them that: a socket that worked well is put aside for the next one who needs one in the same network namespace.

use std::{
    fs,
    ops::{Deref, DerefMut},
    os::unix::fs::MetadataExt,
    sync::{Mutex, PoisonError},
};

use crate::{NetlinkError, channel::Channel};

/// A network namespace. As long as a socket of it is open it exists, so its number can't become another one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Netns(u64, u64);

/// As many as are ever in use at once on a small machine; more are closed.
const MAX_IDLE: usize = 8;

/// Oldest first.
static IDLE: Mutex<Vec<(Netns, Channel)>> = Mutex::new(Vec::new());

/// An nfnetlink socket; at its end it is put aside.
#[derive(Debug)]
pub(crate) struct Pooled {
    /// Unknown without /proc; then it is closed.
    netns: Option<Netns>,
    channel: Option<Channel>,
}

impl Pooled {
    /// One in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let netns = fs::metadata("/proc/thread-self/ns/net")
            .ok()
            .map(|meta| Netns(meta.dev(), meta.ino()));
        let idle = netns.and_then(|netns| {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            let at = idle.iter().rposition(|(of, _)| *of == netns)?;
            Some(idle.remove(at).1)
        });
        let channel = match idle {
            Some(channel) => channel,
            None => Channel::open(netlink_sys::protocols::NETLINK_NETFILTER)?,
        };
        Ok(Pooled {
            netns,
            channel: Some(channel),
        })
    }
}

impl Deref for Pooled {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        self.channel.as_ref().expect("it is there until the drop")
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Channel {
        self.channel.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let (Some(netns), Some(channel)) = (self.netns, self.channel.take()) else {
            return;
        };
        if !channel.is_sound() {
            return;
        }
        let surplus = {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push((netns, channel));
            (idle.len() > MAX_IDLE).then(|| idle.remove(0))
        };
        // Closed when the list is free again.
        drop(surplus);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::make_netns;

    fn inode(socket: &Pooled) -> u64 {
        let path = format!("/proc/self/fd/{}", socket.channel.as_ref().unwrap().as_raw_fd());
        fs::metadata(path).unwrap().ino()
    }

    fn used_once() -> u64 {
        inode(&Pooled::open().unwrap())
    }

    #[test]
    fn a_socket_is_used_again_in_its_own_namespace_only() {
        let (first, second, both) = make_netns(|| {
            let first = used_once();
            let one = Pooled::open().unwrap();
            let other = Pooled::open().unwrap();
            (first, inode(&one), inode(&one) != inode(&other))
        })
        .unwrap();
        assert_eq!(first, second);
        assert!(both, "nobody shares one");
        assert_ne!(make_netns(used_once).unwrap(), first);
    }

    #[test]
    fn one_that_failed_is_closed() {
        make_netns(|| {
            let mut broken = Pooled::open().unwrap();
            let was = inode(&broken);
            // More than any socket takes.
            assert!(broken.send(&vec![0; 64 << 20]).is_err());
            let held = Pooled::open().unwrap();
            drop(broken);
            assert_ne!(used_once(), was);
            drop(held);
        })
        .unwrap();
    }
}
