//! Saved guests: booted once, saved while the agent waits, gone on with ever after.
//!
//! What is saved is the memory, by QEMU's migration into a file, and the root disk's changes up to then, a qcow2 file
//! over the image. Both are only read by those who go on: their changes are thrown away, so any number of them can at
//! the same time. The key is the command line, the image and the initial RAM disk; the job's disk is mounted only
//! afterwards, so that every job goes with every saved guest.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::job;
use crate::qemu::{Drive, Machine, Writes, command_line};
use crate::store::{Entry, Store, key};

const LIMIT: Duration = Duration::from_secs(120);

/// The machine as it goes on from a saved guest, which is made if it isn't there.
pub(crate) fn ensure(
    store: &Store,
    machine: &Machine,
    boot: impl Fn(&Machine, &Path) -> Result<(UnixStream, Box<dyn std::any::Any>)>,
) -> Result<(Entry, Machine, bool)> {
    // The job's disk goes by another name every time and has nothing to do with what is saved.
    let mut plain = machine.clone();
    plain.drives.retain(|drive| drive.serial != "job");
    let version = Command::new("qemu-system-x86_64")
        .arg("--version")
        .env("PATH", crate::qemu::PATH)
        .output()
        .context("failed to run `qemu-system-x86_64`")?;
    let key = key(&[command_line(&plain).join("\0").as_bytes(), &version.stdout]);
    let (entry, known) = store.ensure("snapshots", &key, |half| {
        store.needs_mib(1024, "saving a guest")?;
        save(machine, half, &boot)
    })?;
    let mut next = machine.clone();
    for drive in &mut next.drives {
        if drive.serial == "root" {
            drive.file = entry.path.join("root.qcow2");
            drive.format = "qcow2";
        }
    }
    next.incoming = Some(entry.path.join("state"));
    Ok((entry, next, known))
}

fn save(
    machine: &Machine,
    half: &Path,
    boot: &impl Fn(&Machine, &Path) -> Result<(UnixStream, Box<dyn std::any::Any>)>,
) -> Result<()> {
    let disk = half.join("root.qcow2");
    let mut first = machine.clone();
    for drive in &mut first.drives {
        match drive.serial.as_str() {
            "root" => overlay(drive, &disk)?,
            "job" => {
                drive.file = half.join("blank");
                job::blank(&drive.file)?;
            }
            _ => bail!("a guest with a disk that survives can't be saved"),
        }
    }
    let (monitor, guest) = boot(&first, half)?;
    let state = half.join("state");
    let mut monitor = Monitor::new(monitor)?;
    monitor.say("migrate_set_parameter max-bandwidth 8G")?;
    monitor.say(&format!("migrate \"exec:cat > '{}'\"", state.display()))?;
    let told = monitor.say("info migrate")?;
    ensure!(told.contains("completed"), "QEMU couldn't save the guest: {told}");
    // Ends QEMU, which flushes the disk.
    monitor.quit()?;
    drop(guest);
    let socket = machine.network.map(|node| format!("n{node}"));
    for left in ["blank", "qemu.log", "console.log"]
        .into_iter()
        .chain(socket.as_deref())
    {
        match fs::remove_file(half.join(left)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("failed to remove `{left}`"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn overlay(drive: &mut Drive, disk: &PathBuf) -> Result<()> {
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", drive.format, "-b"])
        .args([&drive.file, disk])
        .env("PATH", crate::qemu::PATH)
        .output()
        .context("failed to run `qemu-img` (qemu-utils)")?;
    ensure!(
        output.status.success(),
        "`qemu-img create` failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    drive.file.clone_from(disk);
    drive.format = "qcow2";
    drive.writes = Writes::Saved;
    Ok(())
}

/// QEMU's monitor, in the form for people: it prompts when a command is done.
struct Monitor(UnixStream);

impl Monitor {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut monitor = Self(stream);
        monitor.until_prompt()?;
        Ok(monitor)
    }

    fn say(&mut self, command: &str) -> Result<String> {
        self.0
            .write_all(format!("{command}\n").as_bytes())
            .context("QEMU's monitor is gone")?;
        self.until_prompt()
    }

    fn quit(&mut self) -> Result<()> {
        self.0.write_all(b"quit\n").context("QEMU's monitor is gone")?;
        let begun = Instant::now();
        let mut rest = [0; 4096];
        while begun.elapsed() < LIMIT {
            match self.0.read(&mut rest) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
                Err(e) => return Err(e).context("QEMU's monitor failed"),
            }
        }
        bail!("QEMU didn't quit")
    }

    fn until_prompt(&mut self) -> Result<String> {
        let begun = Instant::now();
        let mut told = Vec::new();
        let mut part = [0; 4096];
        while begun.elapsed() < LIMIT {
            match self.0.read(&mut part) {
                Ok(0) => bail!(
                    "QEMU ended while it was saved: {}",
                    String::from_utf8_lossy(&told)
                ),
                Ok(count) => told.extend_from_slice(&part[..count]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).context("QEMU's monitor failed"),
            }
            if told.ends_with(b"(qemu) ") {
                return Ok(String::from_utf8_lossy(&told).into_owned());
            }
        }
        bail!(
            "QEMU's monitor doesn't answer: {}",
            String::from_utf8_lossy(&told)
        )
    }
}
