//! The guest's agent: one static executable for everything that a guest does for its host.
//!
//! - As the initial RAM disk's `/init` it loads modules, finds the root disk by its serial number, puts itself and
//!   systemd's units for it into `/run`, and hands over to systemd, or to itself in a bare guest ([`boot`]).
//! - As a bare guest's first process it mounts what a machine has and reaps ([`bare`]).
//! - As the agent it runs what the host asks for over the virtio-serial port ([`serve`]).
//! - `mount SERIAL FOLDER [TYPE [OPTIONS]]` mounts a disk by its serial number, as the host names them.
//!
//! A failure is told on the console, which the host keeps, and ends the guest where it can't go on.

mod bare;
mod boot;
mod disks;
mod serve;

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};

/// Where the agent is found in a guest once the root disk is mounted; the host's commands name it, too.
const SELF: &str = "/run/orlop-vm/agent";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let first = std::process::id() == 1;
    let done = match words.as_slice() {
        ["bare"] if first => bare::run(),
        _ if first => boot::run(),
        ["serve"] => serve::run(),
        ["mount", serial, folder, rest @ ..] if rest.len() <= 2 => disks::mount_serial(serial, folder, rest),
        _ => Err(anyhow::anyhow!(
            "the agent is called as `serve` or `mount SERIAL FOLDER [TYPE [OPTIONS]]`"
        )),
    };
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    eprintln!("vm-agent: {error:#}");
    if first {
        tell(&format!("orlop: failed: {error:#}"));
        // A first process must not end; the host sees QEMU's end and reads the console.
        let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    }
    ExitCode::FAILURE
}

/// A line on the console, which the host keeps in a file.
fn tell(line: &str) {
    if let Ok(mut console) = fs::OpenOptions::new().write(true).open("/dev/ttyS0") {
        // Nobody else could be told.
        let _ = console.write_all(format!("{line}\n").as_bytes());
    }
}

/// The value of a kernel argument (empty for one without a value).
fn kernel_argument(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        (key == name).then(|| value.to_owned())
    })
}

/// Mounts a file system of the kernel's own, with its folder.
fn mount_kernel(kind: &str, at: &str, options: Option<&str>) -> Result<()> {
    fs::create_dir_all(at)?;
    let mounted = nix::mount::mount(Some(kind), at, Some(kind), nix::mount::MsFlags::empty(), options);
    match mounted {
        // The kernel mounts devtmpfs by itself; systemd the rest.
        Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(e) => bail!("failed to mount {kind} on `{at}`: {e}"),
    }
}
