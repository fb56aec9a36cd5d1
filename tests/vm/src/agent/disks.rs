//! Disks by their serial numbers: the order in which a kernel numbers them is nobody's promise.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

const LIMIT: Duration = Duration::from_secs(20);

/// The device of the disk with that serial number, awaited.
pub(crate) fn find(serial: &str) -> Result<PathBuf> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            if found.trim() == serial {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("no disk has the serial number `{serial}`")
}

/// Mounts a disk on a folder, which is made. `rest` is the type of file system (ext4) and options.
pub(crate) fn mount_serial(serial: &str, folder: &str, rest: &[&str]) -> Result<()> {
    let device = find(serial)?;
    fs::create_dir_all(folder).with_context(|| format!("failed to create `{folder}`"))?;
    let kind = rest.first().copied().unwrap_or("ext4");
    mount(
        Some(&device),
        folder,
        Some(kind),
        MsFlags::empty(),
        rest.get(1).copied(),
    )
    .with_context(|| {
        format!(
            "failed to mount the disk `{serial}` ({}) on `{folder}`",
            device.display()
        )
    })
}
