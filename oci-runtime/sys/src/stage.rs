//! Stage children: forked copies of a small single-threaded process that do one piece of slow work and end.
//!
//! A stage child is a full process, free to allocate, to run hooks, to enter namespaces, because its parent had a
//! single thread at the fork: no lock is held by anybody who isn't there. What it must not keep are the parent's
//! descriptors: another container's pipe held open by a stage child (or by the container that it makes) would never
//! reach its end of file. So all but the named ones are closed before any work.

use std::io;
use std::os::fd::{IntoRawFd as _, OwnedFd, RawFd};

/// Forks a child that keeps `keep` and standard input, output and error, closes every other descriptor, has no signal blocked,
/// and ends with what `run` returns as its exit code. Returns the child's process ID.
///
/// `run` must not touch a descriptor that isn't in `keep`.
///
/// # Errors
/// When this process has a second thread (`ErrorKind::Unsupported`), or the kernel's.
pub fn fork_stage<F: FnOnce() -> i32>(keep: &[RawFd], run: F) -> io::Result<i32> {
    use std::os::unix::fs::MetadataExt as _;
    // A directory's links: two of its own and one of each thread's folder.
    if std::fs::metadata("/proc/self/task")?.nlink() != 3 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a process with several threads can't fork a stage child",
        ));
    }
    // SAFETY: this process has one thread, so the child's memory is consistent and every lock in it is free.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            unblock_signals();
            let closed = close_all_but(keep);
            // A panic must not unwind into the parent's code, in a second copy of the parent.
            let run = std::panic::AssertUnwindSafe(run);
            let code = match closed {
                Ok(()) => std::panic::catch_unwind(run).unwrap_or(101),
                Err(_) => 125,
            };
            // SAFETY: ends the child without running the parent's exit handlers a second time.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

fn unblock_signals() {
    // SAFETY: an all-zero sigset_t is a valid argument for sigemptyset, which initialises it before it's read.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Closes every descriptor from 3 on that isn't in `keep`. For processes that own none of the others: at a
/// program's start, or in a child that will not use what its parent had open.
///
/// # Errors
/// The kernel's.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut next = 3;
    for fd in kept.into_iter().filter(|fd| *fd >= 3) {
        if fd > next {
            close_range(next, fd - 1)?;
        }
        next = next.max(fd + 1);
    }
    close_range(next, u32::MAX)
}

/// Closes descriptors, those with consecutive numbers in one call.
pub fn close_together(fds: Vec<OwnedFd>) {
    // Numbers of descriptors are not negative.
    let mut numbers: Vec<u32> = fds
        .into_iter()
        .map(|fd| fd.into_raw_fd().cast_unsigned())
        .collect();
    numbers.sort_unstable();
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        if let [first, .., last] | [first @ last] = run {
            // Fails for no descriptor that is open.
            let _ = close_range(*first, *last);
        }
    }
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes plain numbers; what it closes is the caller's to close: used by nobody else in this process, by this
    // module's contract or because it was owned.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends any signal, real-time ones too, to one process.
///
/// # Errors
/// The kernel's; `pid` below 1, which would mean a group, is `InvalidInput`.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid < 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: takes plain numbers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
