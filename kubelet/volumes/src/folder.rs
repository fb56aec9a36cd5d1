//! Directories by descriptor: every step from one to the next is one component, and follows no symbolic link.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use oci_runtime_sys::open::{RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid};

/// How everything below a root is resolved: no way out, and no symbolic link.
pub(crate) const BENEATH: u64 = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) is_dir: bool,
}

/// Opens a directory beneath another for reading; `resolve` adds to [`BENEATH`].
pub(crate) fn open_dir(at: BorrowedFd<'_>, path: &Path, resolve: u64) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    openat2(at, path, flags.bits().cast_signed(), 0, BENEATH | resolve)
}

/// Opens a directory by an absolute path in which nothing is a symbolic link.
pub(crate) fn open_absolute(path: &Path) -> io::Result<OwnedFd> {
    let root = std::fs::File::open("/")?;
    match path.strip_prefix("/") {
        Ok(below) if !below.as_os_str().is_empty() => open_dir(root.as_fd(), below, 0),
        Ok(_) => Ok(root.into()),
        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Makes the directory that a volume's directory, or its notes, lie in, and opens it.
pub(crate) fn make_parent(dir: &Path) -> io::Result<OwnedFd> {
    let parent = dir.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o755);
    builder.recursive(true).create(parent)?;
    open_absolute(parent)
}

/// Opens the directory that a volume's directory, or its notes, lie in; none when there is none.
pub(crate) fn open_parent(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let parent = dir.parent().ok_or(io::ErrorKind::InvalidInput)?;
    match open_absolute(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Opens whatever lies beneath a directory as a mere place.
pub(crate) fn open_place(at: BorrowedFd<'_>, path: &Path, resolve: u64) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    openat2(at, path, flags.bits().cast_signed(), 0, BENEATH | resolve)
}

/// Makes a directory of exactly that mode where there is none, and opens it; returns whether it was made.
pub(crate) fn make_dir(at: BorrowedFd<'_>, name: &Path, mode: u32) -> io::Result<(OwnedFd, bool)> {
    let made = match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(mode)) {
        Ok(()) => true,
        Err(rustix::io::Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    let dir = open_dir(at, name, 0)?;
    if made {
        // The process's umask may have taken bits away.
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
    }
    Ok((dir, made))
}

/// Makes a chain of directories of that mode, and opens the last one.
pub(crate) fn make_dirs(at: BorrowedFd<'_>, names: &[&str], mode: u32) -> io::Result<OwnedFd> {
    let mut dir = at.try_clone_to_owned()?;
    for name in names {
        dir = make_dir(dir.as_fd(), Path::new(name), mode)?.0;
    }
    Ok(dir)
}

/// What a directory holds, up to `most` entries, in the order of names.
pub(crate) fn entries(dir: BorrowedFd<'_>, most: usize) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        if bytes == b"." || bytes == b".." {
            continue;
        }
        if found.len() == most {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too many entries"));
        }
        let is_dir = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            _ => false,
        };
        found.push(Entry {
            name: OsString::from_vec(bytes.to_vec()),
            is_dir,
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The way to a descriptor's file through procfs, for what has no system call by descriptor.
pub(crate) fn by_descriptor(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Changes the mode of a descriptor's file, a mere place's too; must be no symbolic link.
pub(crate) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(by_descriptor(fd), std::fs::Permissions::from_mode(mode))
}

/// Gives a descriptor's file a mode and perhaps a group, unless it has them already: nobody who watches it is woken for
/// nothing.
pub(crate) fn ensure(fd: BorrowedFd<'_>, mode: u32, group: Option<u32>) -> io::Result<()> {
    let found = rustix::fs::fstat(fd)?;
    let other = group.filter(|group| *group != found.st_gid);
    if other.is_some() {
        set_owner(fd, None, other)?;
    }
    if other.is_some() || found.st_mode & 0o7777 != mode {
        set_mode(fd, mode)?;
    }
    Ok(())
}

/// Changes the owner or the group of a descriptor's file, a mere place's and a symbolic link's too.
pub(crate) fn set_owner(fd: BorrowedFd<'_>, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
    Ok(rustix::fs::chownat(fd, c"", user, group, AtFlags::EMPTY_PATH)?)
}
