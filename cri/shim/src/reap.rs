//! Children: the shim is the subreaper of all that its containers' runtimes start.
//!
//! One `SIGCHLD`, however many children have ended: every zombie is collected and looked up by process ID. Until
//! then an ended child keeps its process ID, so signalling a known, uncollected child can't hit a stranger.

use std::collections::VecDeque;

use cri_shim_protocol::Exit;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::log::now;

/// How many unknown children's ends are remembered while a stage child is about to say whose they are.
const MAX_ORPHANS: usize = 1024;

/// A child's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) pid: i32,
    /// The exit code, or 128 plus the signal's number.
    pub(crate) code: i32,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    pub(crate) at: i64,
}

impl Ended {
    pub(crate) fn exit(self, oom_killed: bool) -> Exit {
        Exit {
            code: self.code,
            oom_killed,
            at: self.at,
        }
    }
}

/// The end of a process that is killed with its container, before it is collected.
pub(crate) fn killed() -> Exit {
    Exit {
        code: 128 + Signal::SIGKILL as i32,
        oom_killed: false,
        at: now(),
    }
}

/// Collects one ended child.
pub(crate) fn collect() -> Option<Ended> {
    loop {
        let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code, None),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32, Some(signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return None,
            // Stops and continuations aren't asked for; a signal may interrupt.
            Ok(_) | Err(nix::Error::EINTR) => continue,
            Err(_) => return None,
        };
        return Some(Ended {
            pid: pid.as_raw(),
            code,
            signal,
            at: now(),
        });
    }
}

/// Whether this child is still to be collected (it may have ended).
pub(crate) fn is_ours(pid: i32) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(Pid::from_raw(pid)), flags).is_ok()
}

/// Signals a process.
pub(crate) fn signal(pid: i32, signal: i32) -> nix::Result<()> {
    // Below 1 are groups, and everybody.
    if pid < 1 {
        return Err(nix::Error::ESRCH);
    }
    match Signal::try_from(signal) {
        Ok(signal) => nix::sys::signal::kill(Pid::from_raw(pid), signal),
        Err(error) => real_time(pid, signal).unwrap_or(Err(error)),
    }
}

/// Signals that nix has no name for.
fn real_time(pid: i32, signal: i32) -> Option<nix::Result<()>> {
    if !(34..=64).contains(&signal) {
        return None;
    }
    let sent = oci_runtime_sys::stage::kill(pid, signal);
    Some(sent.map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))))
}

/// Kills a stage child with all that it has started.
pub(crate) fn kill_group(leader: i32) {
    // It may have ended already; if it hasn't set its group yet, it dies alone.
    let pid = Pid::from_raw(leader);
    let _ = nix::sys::signal::killpg(pid, Signal::SIGKILL);
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
}

/// Ends of children that nobody knows yet: a container's init may end before its stage child has reported it.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    ended: VecDeque<Ended>,
}

impl Orphans {
    pub(crate) fn remember(&mut self, ended: Ended) {
        if self.ended.len() == MAX_ORPHANS {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    pub(crate) fn take(&mut self, pid: i32) -> Option<Ended> {
        let place = self.ended.iter().rposition(|e| e.pid == pid)?;
        self.ended.remove(place)
    }

    /// No stage child is under way: nobody will ask.
    pub(crate) fn forget(&mut self) {
        self.ended = VecDeque::new();
    }
}
