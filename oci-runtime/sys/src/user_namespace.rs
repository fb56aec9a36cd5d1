//! A user namespace that nobody lives in: only its mappings are wanted, for mounts that map owners.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::{check, owned};

/// Makes a user namespace with these mappings, in the text form of `/proc/<pid>/uid_map`, and returns its file.
///
/// May be called from a process with several threads: the process that the namespace is made with makes nothing but
/// system calls, and is gone when this returns. It dies with the calling thread, whatever happens.
///
/// # Errors
/// The kernel's: `EINVAL` for mappings that overlap, `EPERM` for IDs that the caller has no right to.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    // SAFETY: clone_args is a struct of u64 fields, for which all zeroes is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let mut pidfd = -1;
    args.flags = (libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::CLONE_PIDFD) as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // No signal when it ends, so nobody who waits for children of his own sees it.
    args.exit_signal = 0;
    // SAFETY: without CLONE_VM the child has a copy of the address space, as after fork(2). Other threads' locks may be
    // held in that copy, so the child only makes system calls. It shares the descriptor table and doesn't use it.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    let pid = check(result)?;
    if pid == 0 {
        idle();
    }
    let pidfd = owned(pidfd.into())?;
    let opened = map_and_open(pid, uid_map, gid_map);
    // The child must be gone whether that worked or not; it can't refuse, so this can't hang.
    end(&pidfd);
    opened
}

fn map_and_open(pid: libc::c_long, uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    std::fs::write(format!("/proc/{pid}/uid_map"), uid_map)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), gid_map)?;
    File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
}

fn idle() -> ! {
    loop {
        // SAFETY: takes numbers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}

fn end(pidfd: &OwnedFd) {
    // SAFETY: takes numbers and a null pointer, which means "no details".
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<u8>(),
            0,
        )
    };
    loop {
        // SAFETY: siginfo_t is plain data, for which all zeroes is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the struct lives through the call.
        let result = unsafe {
            let id = pidfd.as_raw_fd().cast_unsigned();
            libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::__WALL)
        };
        if result == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_outlives_its_process_and_bad_maps_are_refused() {
        let fd = user_namespace("0 100000 65536\n", "0 200000 65536\n").unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        assert!(link.to_string_lossy().starts_with("user:["));
        assert_ne!(link, std::fs::read_link("/proc/self/ns/user").unwrap());
        assert!(user_namespace("nonsense", "0 0 1").is_err());
    }
}
