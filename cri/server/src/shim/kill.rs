//! Ending a shim that doesn't listen.
//!
//! A shim has no pid file: it is found by its command line, and held by a pidfd before that is read, so that no other
//! process can get its number in between. Its stage children have the same command line, and end with it.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;

use oci_runtime_sys::process::{pidfd_open, pidfd_send_signal, wait_readable};

/// How long a killed process may take to be gone. One that takes longer hangs in the kernel.
const PATIENCE_MILLIS: u32 = 10_000;

/// Kills the sandbox's shim and waits for its end. Returns how many processes it was. Blocks.
pub(super) fn kill_shim(sandbox: &str) -> io::Result<usize> {
    let mut killed = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // It may have ended.
        let Ok(process) = pidfd_open(pid) else { continue };
        let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        if is_shim(&command, sandbox) && pidfd_send_signal(process.as_fd(), nix::libc::SIGKILL).is_ok() {
            killed.push(process);
        }
    }
    for process in &killed {
        if !wait_readable(process.as_fd(), Some(PATIENCE_MILLIS))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(killed.len())
}

/// Whether a command line, as `/proc` has it, is that of the sandbox's shim.
fn is_shim(command: &[u8], sandbox: &str) -> bool {
    let mut arguments = command.split(|byte| *byte == 0);
    arguments.next() == Some(b"orlop-shim")
        && arguments.any(|a| a == b"--sandbox")
        && arguments.next() == Some(sandbox.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn only_this_pods_shim_is_meant() {
        let is = |command: &[u8]| is_shim(command, "abc");
        assert!(is(b"orlop-shim\0--state-dir\0/run/abc/shim\0--sandbox\0abc\0"));
        assert!(is(b"orlop-shim\0--sandbox\0abc\0--state-dir\0/run/abc/shim\0"));
        assert!(!is(b"orlop-shim\0--sandbox\0abcd\0"));
        assert!(!is(b"orlop-shim\0--sandbox\0x\0--state-dir\0abc\0"));
        assert!(!is(b"sh\0orlop-shim\0--sandbox\0abc\0"));
        assert!(!is(b"orlop-shim\0--sandbox"));
        assert!(!is(b""));
    }

    /// A shell that waits for its input's end, which doesn't come.
    fn start(sandbox: &str) -> Child {
        let mut command = Command::new("sh");
        command
            .arg0("orlop-shim")
            .args(["-s", "--", "--sandbox", sandbox]);
        let child = command.stdin(Stdio::piped()).spawn().unwrap();
        // The kernel lets the parent go on a moment before the child's arguments can be read.
        let arguments = format!("/proc/{}/cmdline", child.id());
        while fs::read(&arguments).unwrap().is_empty() {
            std::thread::yield_now();
        }
        child
    }

    #[test]
    fn it_is_found_and_killed_and_nobody_else_is() {
        let unique = format!("test-{}", std::process::id());
        let (mut mine, mut other) = (start(&unique), start(&format!("{unique}x")));
        assert_eq!(kill_shim(&unique).unwrap(), 1);
        assert_eq!(mine.wait().unwrap().signal(), Some(9));
        assert!(other.try_wait().unwrap().is_none());
        assert_eq!(kill_shim(&unique).unwrap(), 0);
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
