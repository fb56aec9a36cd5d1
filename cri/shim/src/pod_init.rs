//! The first process of a pod's shared PID namespace: it collects whatever loses its parent, and ends when asked.
//! When it ends, the kernel kills everything else in the namespace.

use std::process::ExitCode;

use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{SigSet, Signal};

use crate::reap;

pub(crate) fn run() -> ExitCode {
    // Its memory and descriptors are nobody's business, even that of containers in the same namespace.
    let hidden = set_dumpable(false);
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    if hidden.is_err() || signals.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => while reap::collect().is_some() {},
            Ok(_) => return ExitCode::SUCCESS,
            Err(nix::Error::EINTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}
