//! clone3 as a fork into new namespaces and cgroups.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::check;

/// `CLONE_INTO_CGROUP` of linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_CLEAR_SIGHAND` of linux/sched.h.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// Which process this is after a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The one that called, with the child's pid in its own PID namespace.
    Parent(i32),
    /// The new one.
    Child,
}

/// Forks with `CLONE_*` flags. The child runs on a copy of the stack, as after fork(2), and is sent SIGCHLD for.
///
/// The child has the default action for every signal, as a new program expects it, and its parent's mask.
/// With `into_cgroup` the child starts in that v2 cgroup (`CLONE_INTO_CGROUP`).
///
/// The caller must be single-threaded, which is checked: locks held by other threads (malloc's among them) would stay
/// locked for ever in the child.
///
/// # Errors
/// The kernel's; `EBUSY` when the process has more than one thread; `EINVAL` for flags that share memory or file
/// descriptors.
pub fn fork(flags: u64, into_cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    const SHARING: libc::c_int = libc::CLONE_VM
        | libc::CLONE_FILES
        | libc::CLONE_VFORK
        | libc::CLONE_THREAD
        | libc::CLONE_SIGHAND
        | libc::CLONE_SETTLS;
    if flags & SHARING as u64 != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if !single_threaded()? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let into = if into_cgroup.is_some() {
        CLONE_INTO_CGROUP
    } else {
        0
    };
    let mut args: libc::clone_args = zeroed_args();
    args.flags = flags | into | CLONE_CLEAR_SIGHAND;
    // With CLONE_PARENT the kernel takes the exit signal from the caller, and refuses any other.
    args.exit_signal = if flags & libc::CLONE_PARENT as u64 != 0 {
        0
    } else {
        libc::SIGCHLD as u64
    };
    args.cgroup = into_cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: without CLONE_VM the child has its own copy of the whole address space, the stack included, exactly as
    // after fork(2); `args` outlives the call. The process has one thread, so no lock is held by somebody who is gone.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match check(result)? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid as i32)),
    }
}

fn zeroed_args() -> libc::clone_args {
    // SAFETY: clone_args is a struct of u64 fields, for which all zeroes is a value.
    unsafe { std::mem::zeroed() }
}

/// Whether this is the only thread, as the kernel counts them: /proc/self/task has `.`, `..` and one entry, which
/// the directory's link count tells.
fn single_threaded() -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    match std::fs::metadata("/proc/self/task") {
        Ok(meta) => Ok(meta.nlink() == 3),
        // No procfs: an intermediate stage that has entered another mount namespace. It was forked from a checked one.
        Err(_) => Ok(true),
    }
}

/// Ends this process at once, without running anything that was registered for its end.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// `setns` by flags through a pidfd, or of one namespace by its file.
///
/// # Errors
/// The kernel's.
pub fn setns(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: takes a descriptor and flags only.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }.into()).map(drop)
}

/// `unshare`.
///
/// # Errors
/// The kernel's.
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: takes flags only; refuses what would break threads' assumptions by itself.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}
