//! Device files and the links of `/dev`.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::libc;
use nix::sys::stat::{Mode, SFlag, mknodat};
use nix::unistd::{Gid, Uid};
use oci_runtime_sys::{mount, open};

use super::leave_open;
use super::rootfs::Prepared;
use crate::StepError;
use crate::context::Context as _;
use crate::inside::Inside;
use crate::plan::DevicePlan;

/// Makes the devices, or binds the host's where a user namespace can't make any; and the links of `/dev`.
pub(super) fn make(
    root: BorrowedFd<'_>,
    devices: &[DevicePlan],
    prepared: &Prepared,
) -> Result<(), StepError> {
    let inside = Inside(root);
    // Nearly all are in one folder, which is looked up once.
    let mut folder: Option<(&Path, OwnedFd)> = None;
    for (index, device) in devices.iter().enumerate() {
        let what = || format!("make the device `{}`", device.path.display());
        let bound = prepared.device(index);
        if let Some(host) = bound {
            let target = inside.make_file(&device.path).to(what)?;
            mount::move_to(host, target.as_fd()).to(what)?;
            continue;
        }
        let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL)).to(what);
        };
        let open = match folder.take().filter(|(known, _)| *known == parent) {
            Some((_, open)) => open,
            None => inside.make_dir(parent).to(what)?,
        };
        make_node(open.as_fd(), Path::new(name), device)?;
        folder = Some((parent, open));
    }
    let dev = match folder.take().filter(|(known, _)| *known == Path::new("/dev")) {
        Some((_, open)) => open,
        None => inside.make_dir(Path::new("/dev")).to(|| "open /dev")?,
    };
    link(inside, dev.as_fd())?;
    leave_open(dev);
    Ok(())
}

fn make_node(folder: BorrowedFd<'_>, name: &Path, device: &DevicePlan) -> Result<(), StepError> {
    let what = || format!("make the device `{}`", device.path.display());
    let raw = Some(folder.as_raw_fd());
    let kind = SFlag::from_bits_truncate(device.kind);
    let mode = Mode::from_bits_truncate(device.mode);
    let number = nix::sys::stat::makedev(device.major, device.minor);
    match mknodat(raw, name, kind, mode, number) {
        Ok(()) => {}
        Err(nix::Error::EEXIST) => return same(folder, name, device).to(what),
        Err(e) => return Err(e).to(what),
    }
    // The umask is 0 while the root is built, so the mode is as asked for.
    if (device.uid, device.gid) != (0, 0) {
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        nix::unistd::fchownat(raw, name, Some(uid), Some(gid), flags).to(what)?;
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
fn link(inside: Inside<'_>, dev: BorrowedFd<'_>) -> Result<(), StepError> {
    let what = || "make the links in /dev";
    let mut links = vec![
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    if inside.place(Path::new("/proc/kcore")).is_ok() {
        links.push(("/proc/kcore", "core"));
    }
    for (target, name) in links {
        match nix::unistd::symlinkat(target, Some(dev.as_raw_fd()), name) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(e) => return Err(e).to(what),
        }
    }
    let link_ptmx = || nix::unistd::symlinkat("pts/ptmx", Some(dev.as_raw_fd()), "ptmx");
    match link_ptmx() {
        Err(nix::Error::EEXIST) => {}
        other => return other.to(what),
    }
    // The image's own would be that of another devpts.
    let flag = nix::unistd::UnlinkatFlags::NoRemoveDir;
    nix::unistd::unlinkat(Some(dev.as_raw_fd()), "ptmx", flag).to(what)?;
    link_ptmx().to(what)
}
