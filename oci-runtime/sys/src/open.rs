//! Opening paths that somebody else prepared: openat2 with its resolution flags, and checks of what was opened.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::{c_path, check, owned};

/// How openat2 resolves: `RESOLVE_*`.
pub use libc::{
    RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV,
};

/// procfs, as fstatfs tells it.
pub const PROC_MAGIC: i64 = 0x9fa0;
/// devpts.
pub const DEVPTS_MAGIC: i64 = 0x1cd1;
/// overlayfs.
pub const OVERLAY_MAGIC: i64 = 0x794c_7630;
/// A tmpfs, and memory files.
pub const TMPFS_MAGIC: i64 = 0x0102_1994;
/// A namespace's file.
pub const NSFS_MAGIC: i64 = 0x6e73_6673;

/// `openat2`; close-on-exec is always set. `EAGAIN` (a rename raced with `..`) is tried again, boundedly.
///
/// # Errors
/// The kernel's.
pub fn openat2(dir: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: open_how is a struct of integers, for which all zeroes is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = mode.into();
    how.resolve = resolve;
    let mut last = io::Error::from_raw_os_error(libc::EAGAIN);
    for _ in 0..128 {
        // SAFETY: path and struct live through the call, and the struct's size is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match owned(result) {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => last = e,
            other => return other,
        }
    }
    Err(last)
}

/// Opens a path of the host as a mere place (`O_PATH`), following symbolic links.
///
/// # Errors
/// The kernel's.
pub fn place(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: the string is NUL-terminated and lives through the call.
    owned(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }.into())
}

/// Reads a file of at most `most` bytes; what is longer is cut there. With `room` for all of it, one read takes it and
/// one more sees its end: the size isn't asked for, which files of procfs and cgroups don't know anyway.
///
/// # Errors
/// The kernel's.
pub fn read(path: &Path, room: usize, most: u64) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::with_capacity(room);
    std::fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same for a file on a disk or in a tmpfs, where a read that brings less than was asked for is the last: of a file
/// that fits, one read takes all. Files of procfs and cgroups may bring less before their end.
///
/// # Errors
/// The kernel's.
pub fn read_stored(path: &Path, room: usize, most: usize) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path)?;
    let (mut bytes, mut length) = (vec![0; room.clamp(1, most)], 0);
    loop {
        match file.read(&mut bytes[length..]) {
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if length < bytes.len() || length == most {
            bytes.truncate(length);
            return Ok(bytes);
        }
        bytes.resize((length * 2).min(most), 0);
    }
}

/// The same for a file that the kernel makes of short lines, such as those of cgroups: a read brings as many as fit, so
/// one that leaves room for another two kilobytes has brought the last.
///
/// # Errors
/// The kernel's.
pub fn read_lines(path: &Path, room: usize, most: u64) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    const LONGEST: usize = 2048;
    let mut file = std::fs::File::open(path)?.take(most);
    let mut bytes = vec![0; room];
    let read = loop {
        match file.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    bytes.truncate(read);
    if read + LONGEST > room {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// What kind of file a descriptor is, and on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// The device's number, for a device file.
    pub rdev: u64,
    /// The file system's device.
    pub dev: u64,
    /// The inode.
    pub inode: u64,
}

impl Facts {
    /// Whether it is a folder.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFLNK
    }

    /// Whether it is the character device of that number.
    #[must_use]
    pub fn is_char_device(&self, major: u32, minor: u32) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFCHR && self.rdev == libc::makedev(major, minor)
    }
}

/// `fstat`; works for `O_PATH` descriptors too.
///
/// # Errors
/// The kernel's.
pub fn facts(fd: BorrowedFd<'_>) -> io::Result<Facts> {
    // SAFETY: stat is a struct of integers, for which all zeroes is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives through the call.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) }.into())?;
    Ok(Facts {
        mode: stat.st_mode,
        rdev: stat.st_rdev,
        dev: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Whether the mount that a descriptor is in is read-only.
///
/// # Errors
/// The kernel's.
pub fn is_read_only(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: statvfs is a struct of integers, for which all zeroes is a value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives through the call.
    check(unsafe { libc::fstatvfs(fd.as_raw_fd(), &raw mut found) }.into())?;
    Ok(found.f_flag & libc::ST_RDONLY != 0)
}

/// A file system's magic number.
///
/// # Errors
/// The kernel's.
pub fn magic(fd: BorrowedFd<'_>) -> io::Result<i64> {
    // SAFETY: statfs is a struct of integers, for which all zeroes is a value.
    let mut kind: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives through the call.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut kind) }.into())?;
    Ok(kind.f_type)
}

/// Whether a descriptor is the root of the mount it is in.
///
/// # Errors
/// The kernel's.
pub fn is_mount_root(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: statx is a struct of integers, for which all zeroes is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the string is static and the struct lives through the call.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_TYPE,
            &raw mut stat,
        )
    };
    check(result.into())?;
    Ok(stat.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

/// The current folder as the kernel sees it; it starts with `(unreachable)` when it is outside of the root.
///
/// # Errors
/// The kernel's.
pub fn current_dir() -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut buffer = vec![0u8; 4096];
    // SAFETY: the buffer is as long as said.
    let length = check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    // The kernel counts the terminating NUL.
    buffer.truncate((length as usize).saturating_sub(1));
    Ok(std::ffi::OsString::from_vec(buffer).into())
}

/// Opens the host's procfs, and makes sure that it is one: the root of a real procfs, not something put in its place.
///
/// # Errors
/// The kernel's; `ENOTSUP`-like text when `/proc` is something else.
pub fn procfs() -> io::Result<OwnedFd> {
    let proc = place(Path::new("/proc"))?;
    use std::os::fd::AsFd as _;
    // 1 is the inode of every procfs's root.
    if magic(proc.as_fd())? != PROC_MAGIC || facts(proc.as_fd())?.inode != 1 {
        return Err(io::Error::other("/proc is not the root of a procfs"));
    }
    Ok(proc)
}

/// Opens a file of a procfs for writing: no symbolic link but `self` is followed, no mount is crossed.
///
/// # Errors
/// The kernel's.
pub fn procfs_file(proc: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    use std::os::fd::AsFd as _;
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
    let file = openat2(proc, path, flags | libc::O_NOFOLLOW, 0, resolve)?;
    if magic(file.as_fd())? != PROC_MAGIC {
        return Err(io::Error::other("not a file of procfs"));
    }
    Ok(file)
}
