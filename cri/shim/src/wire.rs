//! Bytes and descriptors over Unix sockets that never block.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The most descriptors taken with one read.
const MAX_FDS: usize = 8;

/// What a read or write came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// So many bytes went through.
    Bytes(usize),
    /// Nothing for now.
    Wait,
    /// The other side is gone, or the descriptor is broken, which comes to the same.
    Gone,
}

fn flow(result: Result<usize, Errno>) -> Flow {
    match result {
        Ok(n) => Flow::Bytes(n),
        Err(Errno::AGAIN) => Flow::Wait,
        Err(_) => Flow::Gone,
    }
}

/// Receives bytes, and descriptors if some came with them.
pub(crate) fn receive(socket: impl AsFd, bytes: &mut [u8], fds: &mut impl Extend<OwnedFd>) -> Flow {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, flags));
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    match flow(received.map(|r| r.bytes)) {
        Flow::Bytes(0) => Flow::Gone,
        other => other,
    }
}

/// Sends bytes from several places, with a descriptor.
pub(crate) fn send(socket: impl AsFd, parts: &[IoSlice<'_>], fd: Option<BorrowedFd<'_>>) -> Flow {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let fds: &[BorrowedFd<'_>] = fd.as_slice();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    flow(retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        sendmsg(&socket, parts, &mut control, flags)
    }))
}

/// Reads from a pipe or terminal that was set not to block.
pub(crate) fn read(fd: impl AsFd, bytes: &mut [u8]) -> Flow {
    match flow(retry_on_intr(|| rustix::io::read(&fd, &mut *bytes))) {
        Flow::Bytes(0) => Flow::Gone,
        other => other,
    }
}

/// Writes to a pipe or terminal that was set not to block.
pub(crate) fn write(fd: impl AsFd, bytes: &[u8]) -> Flow {
    flow(retry_on_intr(|| rustix::io::write(&fd, bytes)))
}

/// Makes reads and writes return at once.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, true)?)
}
