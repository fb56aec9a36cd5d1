//! Device files and the links of `/dev`.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;

use nix::libc;
use nix::sys::stat::{Mode, SFlag, mknodat};
use nix::unistd::{Gid, Uid};
use oci_runtime_sys::{mount, open};

use super::rootfs::Prepared;
use crate::StepError;
use crate::context::Context as _;
use crate::inside::Inside;
use crate::plan::DevicePlan;

/// Makes the devices, or binds the host's where a user namespace can't make any.
pub(super) fn make(
    root: BorrowedFd<'_>,
    devices: &[DevicePlan],
    prepared: &Prepared,
) -> Result<(), StepError> {
    let inside = Inside(root);
    for (index, device) in devices.iter().enumerate() {
        let what = || format!("make the device `{}`", device.path.display());
        let bound = prepared.device(index);
        if let Some(host) = bound {
            let target = inside.make_file(&device.path).to(what)?;
            mount::move_to(host, target.as_fd()).to(what)?;
            continue;
        }
        make_node(inside, device)?;
    }
    Ok(())
}

fn make_node(inside: Inside<'_>, device: &DevicePlan) -> Result<(), StepError> {
    let what = || format!("make the device `{}`", device.path.display());
    let (folder, name) = inside.parent_of(&device.path).to(what)?;
    let raw = Some(folder.as_raw_fd());
    let kind = SFlag::from_bits_truncate(device.kind);
    let mode = Mode::from_bits_truncate(device.mode);
    let number = nix::sys::stat::makedev(device.major, device.minor);
    match mknodat(raw, &name, kind, mode, number) {
        Ok(()) => {}
        Err(nix::Error::EEXIST) => return same(folder.as_fd(), &name, device).to(what),
        Err(e) => return Err(e).to(what),
    }
    // The umask is 0 while the root is built, so the mode is as asked for.
    if (device.uid, device.gid) != (0, 0) {
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        nix::unistd::fchownat(raw, &name, Some(uid), Some(gid), flags).to(what)?;
    }
    Ok(())
}

/// An image may bring the device itself; it must be that one.
fn same(folder: BorrowedFd<'_>, name: &Path, device: &DevicePlan) -> io::Result<()> {
    let there = open::openat2(
        folder,
        name,
        libc::O_PATH | libc::O_NOFOLLOW,
        0,
        open::RESOLVE_BENEATH,
    )?;
    let facts = open::facts(there.as_fd())?;
    let number = nix::sys::stat::makedev(device.major, device.minor);
    if facts.mode & libc::S_IFMT == device.kind && (device.kind == libc::S_IFIFO || facts.rdev == number) {
        Ok(())
    } else {
        Err(io::Error::other("something else is there already"))
    }
}

/// The links that every container's `/dev` has.
pub(super) fn link(root: BorrowedFd<'_>) -> Result<(), StepError> {
    let what = || "make the links in /dev";
    let dev = Inside(root).make_dir(Path::new("/dev")).to(what)?;
    let mut links = vec![
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    if Inside(root).place(Path::new("/proc/kcore")).is_ok() {
        links.push(("/proc/kcore", "core"));
    }
    for (target, name) in links {
        match nix::unistd::symlinkat(target, Some(dev.as_raw_fd()), name) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(e) => return Err(e).to(what),
        }
    }
    // The image's own ptmx would be that of another devpts.
    match nix::unistd::unlinkat(
        Some(dev.as_raw_fd()),
        "ptmx",
        nix::unistd::UnlinkatFlags::NoRemoveDir,
    ) {
        Ok(()) | Err(nix::Error::ENOENT) => {}
        Err(e) => return Err(e).to(what),
    }
    nix::unistd::symlinkat("pts/ptmx", Some(dev.as_raw_fd()), "ptmx").to(what)
}
