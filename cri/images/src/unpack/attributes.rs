//! Owners, modes, extended attributes and times: of entries, and of lower directories that a layer continues.

use std::os::fd::BorrowedFd;

use rustix::fs::{self, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::EntryError;
use super::tar::Entry;
use super::tree::kernel;

/// The longest extended attribute, and list of their names (xattr(7)).
const MAX_XATTR: usize = 64 << 10;
/// The mode of directories that no entry describes.
pub(super) const PLAIN: Mode = Mode::from_raw_mode(0o755);

type Result<T> = std::result::Result<T, EntryError>;

pub(super) fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// Owner, then mode, then attributes: a change of owner clears setuid bits and file capabilities.
pub(super) fn set_attributes(fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    let (uid, gid) = owner(entry);
    fs::fchown(fd, uid, gid).map_err(kernel("set its owner"))?;
    fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(kernel("set its mode"))?;
    for (key, value) in settable(entry) {
        accept_xattr(key, fs::fsetxattr(fd, key, value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// The attributes of `entry` that a layer may set.
pub(super) fn settable(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    let all = entry.xattrs.iter();
    all.map(|(key, value)| (&key[..], &value[..]))
        .filter(|(key, _)| is_settable(key))
}

/// Overlayfs' own attributes would let a layer redirect names to other layers' files, and labels of security modules
/// are this machine's business.
fn is_settable(key: &[u8]) -> bool {
    !key.starts_with(b"trusted.overlay.")
        && !key.starts_with(b"user.overlay.")
        && key != b"security.selinux"
        && !key.is_empty()
        && !key.contains(&0)
}

/// Gives a directory owner, mode and attributes of another one, and returns that one's time.
pub(super) fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(i64, u32)> {
    let look = "look at the directory of a lower layer";
    let stat = fs::fstat(from).map_err(kernel(look))?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fs::fchown(to, Some(uid), Some(gid)).map_err(kernel("set its owner"))?;
    fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(kernel("set its mode"))?;
    for key in settable_of(from).map_err(kernel(look))? {
        let mut value = vec![0; MAX_XATTR];
        let size = fs::fgetxattr(from, &key[..], &mut value[..]).map_err(kernel(look))?;
        accept_xattr(
            &key,
            fs::fsetxattr(to, &key[..], &value[..size], XattrFlags::empty()),
        )?;
    }
    Ok((stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)))
}

/// The names of a directory's attributes that a layer may set.
fn settable_of(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; MAX_XATTR];
    let size = match fs::flistxattr(directory, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        size => size?,
    };
    let names = list[..size].split(|c| *c == 0).filter(|key| is_settable(key));
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// Whether a directory is as those are that are made for a path without entries.
pub(super) fn is_plain(directory: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let stat = fs::fstat(directory)?;
    let is_plain = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (PLAIN.as_raw_mode(), 0, 0);
    Ok(is_plain && settable_of(directory)?.is_empty())
}

/// Lets pass what the file system or the user namespace can't hold, but never a lost file capability.
pub(super) fn accept_xattr(key: &[u8], set: rustix::io::Result<()>) -> Result<()> {
    match set {
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM) if key != b"security.capability" => Ok(()),
        set => set.map_err(kernel("set an extended attribute")),
    }
}

pub(super) fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        },
    }
}
