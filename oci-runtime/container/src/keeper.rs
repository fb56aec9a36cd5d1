//! A process that does nothing but be in a cgroup.
//!
//! systemd makes a scope only around a process, and removes it when the last one has ended. Init can't be the first: it
//! is born inside, with one clone. So a child stands there from before the scope is made until init is in it.

use std::os::fd::AsFd as _;

use nix::libc;
use nix::unistd;
use oci_runtime_sys::clone::{self, Forked};
use oci_runtime_sys::process;

use crate::StepError;
use crate::context::Context as _;

/// The child; ends when this is dropped, or with the runtime.
#[derive(Debug)]
pub(crate) struct Keeper {
    pid: i32,
}

impl Keeper {
    /// Forks it.
    pub(crate) fn fork() -> Result<Self, StepError> {
        let parent = unistd::getpid();
        match clone::fork(0, None).to(|| "fork a process to keep the scope")? {
            Forked::Parent(pid) => Ok(Self { pid }),
            Forked::Child => {
                let bound = process::set_parent_death_signal(libc::SIGKILL);
                // The parent may have ended before it was bound to it.
                while bound.is_ok() && unistd::getppid() == parent {
                    unistd::pause();
                }
                clone::exit_now(0)
            }
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Not waited for yet, so the pid is still its own.
        if let Ok(pidfd) = process::pidfd_open(self.pid) {
            let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        let _ = process::wait(self.pid, true);
    }
}
