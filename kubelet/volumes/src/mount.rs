//! Mounts: made detached and complete, then attached in one step; taken away without a trace elsewhere.
//!
//! Whether something is mounted somewhere is asked of that place (`statx`), so the table of all mounts is only read in
//! the rare case that a tree can't be removed because of a mount that somebody else made in it.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use oci_runtime_sys::mount::{Attributes, FsContext, clone_tree, move_to, set_attributes};
use oci_runtime_sys::open::{RESOLVE_NO_XDEV, is_mount_root};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};

use crate::folder::{by_descriptor, open_absolute, open_dir, open_place};

/// `MS_PRIVATE` and `MS_SHARED`.
const PRIVATE: u64 = 1 << 18;
const SHARED: u64 = 1 << 20;
/// How many mounts on top of each other are undone.
const MOST_STACKED: usize = 64;
/// Bytes of the table of mounts that are read.
const MOST_TABLE: u64 = 64 << 20;

/// What a file system in memory is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tmpfs {
    /// At most so many bytes; none is the kernel's default, half of the memory.
    pub(crate) size: Option<u64>,
    /// The root's mode.
    pub(crate) mode: u32,
}

/// Makes a file system in memory, detached; it isn't swapped out where the kernel can promise that (Linux 6.4).
pub(crate) fn tmpfs(options: Tmpfs) -> io::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.string("source", "tmpfs")?;
    context.string("mode", &format!("{:o}", options.mode))?;
    if let Some(size) = options.size {
        context.string("size", &size.to_string())?;
    }
    // Refused by older kernels, and in a user namespace.
    let _unknown = context.flag("noswap");
    context.create()?;
    context.mount(0)
}

/// Makes a file system of huge pages, detached. The size is the kernel's word for it, such as `2M`.
pub(crate) fn huge_pages(page_size: &str) -> io::Result<OwnedFd> {
    let context = FsContext::open("hugetlbfs")?;
    context.string("source", "nodev")?;
    context.string("pagesize", page_size)?;
    context.create()?;
    context.mount(0)
}

/// The root of a detached mount, for making files in it.
pub(crate) fn root_of(mount: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open_dir(mount, Path::new("."), 0)
}

/// Attaches a detached mount.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    move_to(mount, target)
}

/// Mounts what a descriptor points to, and nothing that is mounted below it, once more.
pub(crate) fn bind(place: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    move_to(clone_tree(place, false)?.as_fd(), target)
}

/// Whether something is mounted at an absolute path in which nothing is a symbolic link; there may be nothing.
pub(crate) fn is_mounted(path: &Path) -> io::Result<bool> {
    match place(path) {
        Ok(place) => is_mount_root(place.as_fd()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn place(path: &Path) -> io::Result<OwnedFd> {
    let root = open_absolute(Path::new("/"))?;
    open_place(root.as_fd(), path.strip_prefix("/").unwrap_or(path), 0)
}

/// Takes away whatever is mounted at an absolute path, however often; returns how many mounts that were. No link in the
/// path is followed.
///
/// Each becomes private first: a mount that shares with another one would take that one's mounts along.
pub(crate) fn detach_all(path: &Path) -> io::Result<usize> {
    for count in 0..MOST_STACKED {
        let top = match place(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(count),
            other => other?,
        };
        if !is_mount_root(top.as_fd())? {
            return Ok(count);
        }
        let private = Attributes {
            propagation: PRIVATE,
            ..Attributes::default()
        };
        set_attributes(top.as_fd(), private, true)?;
        // Of the very mount that was looked at, whatever the path leads to by now.
        unmount(by_descriptor(top.as_fd()), UnmountFlags::DETACH)?;
    }
    Err(io::Error::other("too many mounts on top of each other"))
}

/// What is mounted below a directory, or at it, the latest first.
pub(crate) fn beneath(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<_> = table()?
        .into_iter()
        .map(|mount| mount.at)
        .filter(|at| at.starts_with(dir))
        .collect();
    found.reverse();
    Ok(found)
}

/// A line of the table of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    at: PathBuf,
    shared: bool,
}

/// All mounts of this thread's namespace.
fn table() -> io::Result<Vec<Line>> {
    let file = std::fs::File::open("/proc/thread-self/mountinfo")?;
    let mut lines = BufReader::with_capacity(1 << 16, file.take(MOST_TABLE));
    let (mut found, mut line) = (Vec::new(), Vec::new());
    while lines.read_until(b'\n', &mut line)? > 0 {
        found.extend(parse(&line));
        line.clear();
    }
    Ok(found)
}

/// proc_pid_mountinfo(5): `36 35 98:0 / /mnt rw,noatime shared:1 - ext3 /dev/root rw`.
fn parse(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|byte| *byte == b' ');
    let at = unescape(fields.nth(4)?);
    let mut options = fields.skip(1).take_while(|field| *field != b"-");
    Some(Line {
        at: PathBuf::from(std::ffi::OsString::from_vec(at)),
        shared: options.any(|field| field.starts_with(b"shared:")),
    })
}

/// `\040` is a space, and so on.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Makes sure that mounts below a directory are seen by containers that ask for it, and theirs here: the mount that it
/// lies in must be shared. Where it isn't, the directory is mounted onto itself, shared. Returns whether it had to be.
pub(crate) fn share(dir: &Path) -> io::Result<bool> {
    let around = table()?
        .into_iter()
        .filter(|mount| dir.starts_with(&mount.at))
        .reduce(|best, next| {
            // Of mounts at one place the later one lies on top.
            if next.at.as_os_str().len() >= best.at.as_os_str().len() {
                next
            } else {
                best
            }
        });
    if around.is_some_and(|mount| mount.shared) {
        return Ok(false);
    }
    let target = open_absolute(dir)?;
    let copy = clone_tree(target.as_fd(), true)?;
    move_to(copy.as_fd(), target.as_fd())?;
    let shared = Attributes {
        propagation: SHARED,
        ..Attributes::default()
    };
    set_attributes(copy.as_fd(), shared, true)?;
    Ok(true)
}

/// Whether the kernel makes mounts recursively read-only (Linux 5.12): asked with a change of nothing.
pub(crate) fn recursive_read_only() -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open("/", flags, Mode::empty()) else {
        return false;
    };
    match set_attributes(root.as_fd(), Attributes::default(), true) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() != Some(rustix::io::Errno::NOSYS.raw_os_error()),
    }
}

/// Makes the target of a mount, a directory or a file, and opens it; what is there of the other kind, and isn't a mount,
/// gives way.
pub(crate) fn make_target(at: BorrowedFd<'_>, name: &OsStr, is_dir: bool) -> io::Result<OwnedFd> {
    let name = Path::new(name);
    let kept = open_place(at, name, RESOLVE_NO_XDEV);
    if let Ok(kept) = kept {
        let found = oci_runtime_sys::open::facts(kept.as_fd())?;
        if found.is_dir() == is_dir && !found.is_symlink() {
            return Ok(kept);
        }
        let flags = if found.is_dir() {
            rustix::fs::AtFlags::REMOVEDIR
        } else {
            rustix::fs::AtFlags::empty()
        };
        rustix::fs::unlinkat(at, name, flags)?;
    }
    if is_dir {
        rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o750))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o640))?;
    }
    open_place(at, name, RESOLVE_NO_XDEV)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn lines_of_the_table_are_read_with_their_escapes_and_propagation() {
        let line =
            parse(b"36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime master:1 shared:2 - ext3 /dev/root rw\n");
        let line = line.unwrap();
        assert_eq!(line.at, Path::new("/a b\\c"));
        assert!(line.shared);
        let line = parse(b"36 35 98:0 / /x rw - ext3 shared:3 rw\n").unwrap();
        assert!(!line.shared);
        assert_eq!(parse(b"nonsense"), None);
        assert_eq!(unescape(b"\\4"), b"\\4");
        assert_eq!(OsStr::from_bytes(&unescape(b"\\999")), "\\999");
    }

    #[test]
    fn the_kernel_is_asked_for_recursive_read_only_mounts() {
        // Linux 6.1 is the least that is supported.
        assert!(recursive_read_only());
    }
}
