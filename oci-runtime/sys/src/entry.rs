//! A program's start without the standard library's own, which looks for the stack's end in `/proc/self/maps` and makes a
//! second stack for a handler that explains overflows: some fifteen system calls, of a runtime that is executed twice
//! for each command.
//!
//! What matters of it is done here: descriptors 0 to 2 are open, so that no file of ours is taken for one of them, and
//! a pipe that nobody reads is an error, not the end. A stack overflow ends the process as before, without words.

use std::io::{self, Write as _};

/// Makes a function `fn() -> u8`, which returns the exit code, the program's start. For crates with `#![no_main]`.
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        const _: () = {
            #[unsafe(export_name = "main")]
            extern "C" fn start(_count: i32, _arguments: *const *const u8) -> i32 {
                $crate::entry::start($run)
            }
        };
    };
}

/// What [`entry`](crate::entry!) runs.
#[doc(hidden)]
pub fn start(run: fn() -> u8) -> i32 {
    if open_standard_streams().is_err() {
        // Nobody could be told.
        return 71;
    }
    // SAFETY: ignoring a signal installs no code; this process has one thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let code = run();
    // Standard output gathers bytes up to the end of a line; whoever closed it misses nothing.
    let _ = io::stdout().flush();
    i32::from(code)
}

/// Opens `/dev/null` in the place of each that is closed.
fn open_standard_streams() -> io::Result<()> {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the array lives through the call, and its length is passed.
    let polled = unsafe { libc::poll(streams.as_mut_ptr(), 3, 0) };
    crate::check(polled.into())?;
    for _ in streams.iter().filter(|s| s.revents & libc::POLLNVAL != 0) {
        // SAFETY: a constant string. The lowest free number is that of a closed stream.
        crate::check(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) }.into())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_exit_code_is_what_the_program_returns() {
        assert_eq!(super::start(|| 7), 7);
    }
}
