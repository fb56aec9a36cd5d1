//! What a process can do to its container: take memory, print, write, catch signals, end.

use std::fs::OpenOptions;
use std::io::Write;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::Failure;

/// The largest amount of memory that is taken, so that a typing error can't hurt the machine.
pub(crate) const MOST_MIB: u64 = 4096;

/// Takes memory, touches every page, and keeps it until SIGTERM.
pub(crate) fn eat(mib: u64) -> Result<u8, Failure> {
    let eaten = take(mib)?;
    say(&format!("ate {} MiB", eaten.len()))?;
    pause()
}

/// The memory, a block for each MiB, every page of it written to.
pub(crate) fn take(mib: u64) -> Result<Vec<Vec<u8>>, Failure> {
    if mib > MOST_MIB {
        return Err(format!(
            "{mib} MiB is more than the {MOST_MIB} this program takes"
        ));
    }
    Ok((0..mib).map(|n| vec![(n % 251) as u8 + 1; 1 << 20]).collect())
}

/// Prints the name of each signal that arrives; SIGTERM ends it.
pub(crate) fn signals() -> Result<u8, Failure> {
    let mut wanted = SigSet::empty();
    for signal in Signal::iterator() {
        // These two can't be blocked; a real fault must still end the program.
        let fatal = [
            Signal::SIGKILL,
            Signal::SIGSTOP,
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
        ];
        if !fatal.contains(&signal) {
            wanted.add(signal);
        }
    }
    wanted
        .thread_block()
        .map_err(|e| format!("failed to block signals: {e}"))?;
    say("ready")?;
    loop {
        let signal = wanted
            .wait()
            .map_err(|e| format!("failed to wait for a signal: {e}"))?;
        say(signal.as_str())?;
        if signal == Signal::SIGTERM {
            return Ok(0);
        }
    }
}

/// Waits for SIGTERM or SIGINT, also as the first process of a PID namespace, which gets no default action.
pub(crate) fn pause() -> Result<u8, Failure> {
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGTERM);
    wanted.add(Signal::SIGINT);
    wanted
        .thread_block()
        .map_err(|e| format!("failed to block signals: {e}"))?;
    wanted
        .wait()
        .map_err(|e| format!("failed to wait for a signal: {e}"))?;
    Ok(0)
}

/// Appends a line to a file, several times.
pub(crate) fn write(path: &str, text: &str, count: u64, ms: u64) -> Result<u8, Failure> {
    let fail = |e: std::io::Error| format!("failed to write to `{path}`: {e}");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(fail)?;
    for _ in 0..count {
        writeln!(file, "{text}").map_err(fail)?;
        thread::sleep(Duration::from_millis(ms));
    }
    Ok(0)
}

/// Prints numbered lines, padded to a width, so that a reader can tell whether one is missing.
pub(crate) fn lines(count: u64, width: u64, ms: u64) -> Result<u8, Failure> {
    let width = usize::try_from(width.min(1 << 20)).expect("a MiB fits");
    let mut out = std::io::stdout().lock();
    for n in 0..count {
        writeln!(out, "{n:.<width$}").map_err(|e| format!("failed to print: {e}"))?;
        if ms > 0 {
            out.flush().map_err(|e| format!("failed to print: {e}"))?;
            thread::sleep(Duration::from_millis(ms));
        }
    }
    out.flush().map_err(|e| format!("failed to print: {e}"))?;
    Ok(0)
}

/// Ends with a status, after a while.
pub(crate) fn exit(status: u8, ms: u64) -> Result<u8, Failure> {
    thread::sleep(Duration::from_millis(ms));
    Ok(status)
}

/// One line on standard output, at once.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|e| format!("failed to print: {e}"))
}
