//! Processes: pidfds, prctl, descriptors at exec, keyrings.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::ptr;

use crate::{check, owned};

/// Opens a process by its pid.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends a signal to the process.
///
/// # Errors
/// `ESRCH` when it has ended and been waited for.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed and means the default one.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result).map(drop)
}

/// Waits until a descriptor is readable (a pidfd is when its process has ended); false when the time is over.
/// `None` waits without end.
///
/// # Errors
/// The kernel's.
pub fn wait_readable(fd: BorrowedFd<'_>, millis: Option<u32>) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout = millis.map_or(-1, |m| i32::try_from(m).unwrap_or(i32::MAX));
    loop {
        // SAFETY: one pollfd is passed, and it lives through the call.
        match check(unsafe { libc::poll(&raw mut poll, 1, timeout) }.into()) {
            Ok(ready) => return Ok(ready > 0),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with that code.
    Code(i32),
    /// By that signal.
    Signal(i32),
}

impl Exit {
    /// The code that shells and runc give it: 128 + signal.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Waits for a child (`pid` -1: any). `None` only without `block`, when none has ended.
///
/// # Errors
/// `ECHILD` when there is no such child.
pub fn wait(pid: i32, block: bool) -> io::Result<Option<(i32, Exit)>> {
    let mut status = 0;
    loop {
        // SAFETY: the status lives through the call.
        let result = unsafe { libc::waitpid(pid, &raw mut status, if block { 0 } else { libc::WNOHANG }) };
        match check(result.into()) {
            Ok(0) => return Ok(None),
            Ok(ended) => {
                let exit = if libc::WIFSIGNALED(status) {
                    Exit::Signal(libc::WTERMSIG(status))
                } else {
                    Exit::Code(libc::WEXITSTATUS(status))
                };
                return Ok(Some((ended as i32, exit)));
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// The kernel's.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: changes a flag of descriptors, whose owners go on being valid.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Makes `number` a copy of `fd`, not close-on-exec.
///
/// # Errors
/// The kernel's.
pub fn become_number(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // SAFETY: takes numbers only.
        return check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: takes numbers only; 0 to 2 are what callers replace, which no Rust object owns.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// Takes ownership of a descriptor that this process was started with (a socket passed by number).
///
/// # Errors
/// `EBADF` when it is not open.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only; sets close-on-exec and tells whether it is open.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    owned(number.into())
}

fn prctl(option: i32, a: u64, b: u64) -> io::Result<i32> {
    // SAFETY: all options that this crate uses take numbers only.
    check(unsafe { libc::prctl(option, a, b, 0u64, 0u64) }.into()).map(|r| r as i32)
}

/// `PR_SET_NO_NEW_PRIVS`.
///
/// # Errors
/// The kernel's.
pub fn set_no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// `PR_SET_KEEPCAPS`: keep permitted capabilities when leaving uid 0.
///
/// # Errors
/// The kernel's.
pub fn set_keep_caps(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0).map(drop)
}

/// `PR_SET_DUMPABLE`: whether others of the same user may look into this process.
///
/// # Errors
/// The kernel's.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, dumpable.into(), 0).map(drop)
}

/// `PR_SET_PDEATHSIG`.
///
/// # Errors
/// The kernel's.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0).map(drop)
}

/// Starts a process that inherits a socket under the number that it has here, and that the kernel kills with SIGKILL
/// when the calling thread ends, however it does: so this is for threads that wait for their child.
///
/// # Errors
/// The kernel's, or `ESRCH` when this process has ended meanwhile.
pub fn start_with_socket(command: &mut Command, socket: &OwnedFd) -> io::Result<Child> {
    let number = socket.as_raw_fd();
    let parent = std::process::id();
    let inherit = move || {
        set_parent_death_signal(libc::SIGKILL)?;
        // SAFETY: takes nothing.
        if u32::try_from(unsafe { libc::getppid() }) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // SAFETY: takes numbers only.
        check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }.into()).map(drop)
    };
    // SAFETY: after fork the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(inherit) };
    command.spawn()
}

/// `PR_SET_CHILD_SUBREAPER`.
///
/// # Errors
/// The kernel's.
pub fn set_child_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

/// `PR_SET_NAME`: at most 15 bytes are kept.
///
/// # Errors
/// The kernel's.
pub fn set_name(name: &str) -> io::Result<()> {
    let name = crate::c_str(name)?;
    // SAFETY: the string is NUL-terminated and lives through the call.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0u64, 0u64, 0u64) }.into()).map(drop)
}

/// `personality`.
///
/// # Errors
/// The kernel's.
pub fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: takes a number only.
    check(unsafe { libc::personality(domain as libc::c_ulong) }.into()).map(drop)
}

/// Joins a new session keyring of that name.
///
/// # Errors
/// The kernel's: `ENOSYS` without key support, `EDQUOT` over the user's quota.
pub fn new_session_keyring(name: &str) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    const KEYCTL_SETPERM: i32 = 5;
    const SESSION: i32 = -3;
    // Possessor: everything; user: view, read, search (so that the keyring survives a change of user).
    const PERMISSIONS: u32 = 0x3f13_0000;
    let name = crate::c_str(name)?;
    // SAFETY: the string is NUL-terminated and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, SESSION, PERMISSIONS) }).map(drop)
}

/// Replaces this process. Only returns when it could not.
pub fn execve(path: &std::ffi::CStr, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: all strings are NUL-terminated, both arrays end with null, and all live until the process is replaced.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this process by the program behind a descriptor. Only returns when it could not.
pub fn execve_fd(program: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: as for `execve`; the empty path with AT_EMPTY_PATH means the descriptor itself.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// A memory file for executing: filled, then sealed against every change.
///
/// # Errors
/// The kernel's.
pub fn memfd(name: &str) -> io::Result<OwnedFd> {
    let name = crate::c_str(name)?;
    // SAFETY: the string is NUL-terminated and lives through the call.
    owned(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) }.into())
}

const ALL_SEALS: i32 = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

/// Seals a memory file against every change.
///
/// # Errors
/// The kernel's.
pub fn seal(memfd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::fcntl(memfd.as_raw_fd(), libc::F_ADD_SEALS, ALL_SEALS) }.into()).map(drop)
}

/// Whether a file is a memory file sealed against every change.
#[must_use]
pub fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: takes numbers only.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & ALL_SEALS == ALL_SEALS
}

/// Signals as a new program expects them: none blocked, and SIGPIPE, which every Rust program ignores from its start
/// on, ending it again. What the caller itself was started with ignored stays so.
pub fn restore_signals() {
    // SAFETY: the set is initialized by sigemptyset before it's used, and lives through both calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
    // SAFETY: the default action runs no code of this process.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
