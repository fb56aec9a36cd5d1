//! Messages and descriptors over Unix sockets.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use crate::{check, owned};

/// At most so many descriptors are taken from one message.
pub const MAX_FDS: usize = 16;

/// A pair of connected sockets that keep the bounds of messages.
///
/// # Errors
/// The kernel's.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has the two elements that are written.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }.into())?;
    Ok((owned(fds[0].into())?, owned(fds[1].into())?))
}

/// Sends one message with descriptors. Nobody listening is `EPIPE`, without a signal.
///
/// # Errors
/// The kernel's.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let payload = size_of::<RawFd>() * raw.len();
    // u64s, so that the control message's header is aligned.
    let mut control = [0u64; 16];
    let mut message = empty_message();
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if !raw.is_empty() {
        if raw.len() > MAX_FDS {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: computes a number.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload as u32) } as _;
        // SAFETY: the control buffer has room for a header with MAX_FDS descriptors (16 + 64 of 128 bytes), and
        // CMSG_FIRSTHDR points to its beginning; the payload is written right behind the header.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload as u32) as _;
            ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), payload);
        }
    }
    loop {
        // SAFETY: the message's parts live through the call.
        match check(
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
                as libc::c_long,
        ) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|sent| sent as usize),
        }
    }
}

/// Receives one message into the buffer, with its descriptors; 0 bytes: the other side is gone.
///
/// # Errors
/// The kernel's; `EMSGSIZE` when the message or its descriptors are larger than there is room for.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = [0u64; 16];
    let mut message = empty_message();
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: computes a number.
    message.msg_controllen = unsafe { libc::CMSG_SPACE((size_of::<RawFd>() * MAX_FDS) as u32) } as _;
    let length = loop {
        // SAFETY: the message's parts live through the call and are as long as said.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match check(result as libc::c_long) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other? as usize,
        }
    };
    let fds = received_fds(&message);
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((length, fds))
}

fn received_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel filled the control buffer; the CMSG macros walk within its length.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    // The kernel has installed these descriptors for us just now.
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

fn empty_message() -> libc::msghdr {
    // SAFETY: msghdr is a struct of integers and pointers, for which all zeroes (null) is a value.
    unsafe { std::mem::zeroed() }
}
