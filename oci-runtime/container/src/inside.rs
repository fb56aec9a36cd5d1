//! Paths inside a container's root, which somebody hostile may have prepared: every one is resolved by the kernel as if
//! the root were `/`, without magic links, into a descriptor, and only descriptors are used from there on.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use oci_runtime_sys::open::{self, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS};

/// As many symbolic links as the kernel follows.
const MAX_LINKS: usize = 40;

/// A root that isn't trusted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inside<'a>(pub(crate) BorrowedFd<'a>);

impl Inside<'_> {
    /// Opens a path; the last component's symbolic link is followed, inside.
    pub(crate) fn open(self, path: &Path, flags: i32) -> io::Result<OwnedFd> {
        open::openat2(self.0, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    }

    /// A mere place, to mount on or to look at.
    pub(crate) fn place(self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, libc::O_PATH)
    }

    /// The folder, made with missing parents if it isn't there.
    pub(crate) fn make_dir(self, path: &Path) -> io::Result<OwnedFd> {
        self.make(path, MAX_LINKS, &make_dir_at)
    }

    /// The folder, made with missing parents if it isn't there; `ENOTDIR` when the last component is anything else, a
    /// symbolic link to a folder too.
    pub(crate) fn make_real_dir(self, path: &Path) -> io::Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        match self.open(path, flags) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        self.make_dir(path)?;
        // Once more, as somebody may have put something else there meanwhile.
        self.open(path, flags)
    }

    /// The file, made empty with missing parents if it isn't there.
    pub(crate) fn make_file(self, path: &Path) -> io::Result<OwnedFd> {
        self.make(path, MAX_LINKS, &make_file_at)
    }

    fn make(
        self,
        path: &Path,
        links: usize,
        last: &dyn Fn(BorrowedFd<'_>, &Path) -> nix::Result<()>,
    ) -> io::Result<OwnedFd> {
        match self.place(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        let name = Path::new(name);
        let folder = self.make(parent, links, &make_dir_at)?;
        match last(folder.as_fd(), name) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let look = |flags| {
            let flags = libc::O_PATH | libc::O_NOFOLLOW | flags;
            open::openat2(folder.as_fd(), name, flags, 0, open::RESOLVE_BENEATH)
        };
        // Almost always a folder was wanted and is there, and this tells at once.
        if let Ok(made) = look(libc::O_DIRECTORY) {
            return Ok(made);
        }
        let made = look(0)?;
        if !open::facts(made.as_fd())?.is_symlink() {
            return Ok(made);
        }
        // A symbolic link to nothing yet: what it points to is made, inside.
        if links == 0 {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        use std::os::fd::AsRawFd as _;
        let target = nix::fcntl::readlinkat(Some(folder.as_raw_fd()), name)?;
        let target = crate::plan::clean(&parent.join(target));
        self.make(&target, links - 1, last)
    }
}

fn make_dir_at(folder: BorrowedFd<'_>, name: &Path) -> nix::Result<()> {
    use std::os::fd::AsRawFd as _;
    nix::sys::stat::mkdirat(Some(folder.as_raw_fd()), name, Mode::from_bits_truncate(0o755))
}

fn make_file_at(folder: BorrowedFd<'_>, name: &Path) -> nix::Result<()> {
    use std::os::fd::AsRawFd as _;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::openat(
        Some(folder.as_raw_fd()),
        name,
        flags,
        Mode::from_bits_truncate(0o644),
    )?;
    // The descriptor was only needed to make the file.
    nix::unistd::close(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_out_of_the_root_stay_inside() {
        let outside = tempfile::tempdir().unwrap();
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        symlink(outside.path(), root.join("absolute")).unwrap();
        symlink("../../../../../..", root.join("up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let fd = open::place(root).unwrap();
        let inside = Inside(fd.as_fd());
        inside.make_dir(Path::new("/absolute/a/b")).unwrap();
        inside.make_file(Path::new("/up/etc/file")).unwrap();
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none(), "escaped");
        assert!(
            root.join(outside.path().strip_prefix("/").unwrap())
                .join("a/b")
                .is_dir()
        );
        assert!(root.join("etc/file").is_file());
        assert!(inside.make_dir(Path::new("/loop/x")).is_err());
    }

    #[test]
    fn magic_links_are_not_followed() {
        let root = open::place(Path::new("/")).unwrap();
        let error = Inside(root.as_fd())
            .place(Path::new("/proc/self/root/etc"))
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
