//! Writes a volume's files so that readers see the old ones or the new ones, never some of each.
//!
//! The layout is upstream's, which programs watch: files lie in a directory `..2026_11_21_18_04_47.123456789`, the link
//! `..data` leads to it, and for each first component of a path there is a link `NAME -> ..data/NAME`. New content goes
//! into a directory of its own; then a link `..data_tmp` to it is renamed to `..data`: that is the one step in which the
//! content changes. Whatever an earlier try left is swept away first, so a write may end anywhere, and nothing needs to
//! be undone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, readlinkat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::error::PluginError;
use crate::folder::{BENEATH, entries, make_dir, open_dir, set_mode, set_owner};
use crate::ownership::GroupOwnership;
use crate::payload::{Content, Payload};
use crate::remove::remove_tree;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
/// Entries of one directory.
const MOST: usize = 100_000;

/// Writes to one volume.
pub(crate) struct Writer<'a> {
    /// The volume's directory.
    pub(crate) dir: BorrowedFd<'a>,
    /// Its path, for errors.
    pub(crate) shown: &'a Path,
    /// For the name of the new directory.
    pub(crate) now: Timestamp,
    /// The pod's group, which may read.
    pub(crate) group: Option<u32>,
    /// Asked before each change on disk; tests end the write there.
    pub(crate) step: &'a dyn Fn() -> io::Result<()>,
}

impl Writer<'_> {
    /// Makes the volume hold exactly these files; returns whether it held others before.
    pub(crate) fn write(&self, payload: &Payload) -> Result<bool, PluginError> {
        let files = checked(payload).map_err(PluginError::Told)?;
        let fail = |source| PluginError::kernel("write to", self.shown)(source);
        let current = self.current().map_err(fail)?;
        self.sweep(current.as_deref())?;
        let fresh = match &current {
            Some(current) => self.holds(current, &files).map_err(fail)?,
            None => false,
        };
        if !fresh {
            self.replace(&files).map_err(fail)?;
        }
        self.link(&files).map_err(fail)?;
        if let Some(old) = current.filter(|_| !fresh) {
            self.remove(&old)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The directory that `..data` leads to.
    fn current(&self) -> io::Result<Option<OsString>> {
        let target = match readlinkat(self.dir, DATA, Vec::new()) {
            Ok(target) => OsString::from_vec(target.into_bytes()),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match open_dir(self.dir, Path::new(&target), 0) {
            Ok(_) if is_ours(&target) => Ok(Some(target)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes what no write that came to its end has left.
    fn sweep(&self, current: Option<&OsStr>) -> Result<(), PluginError> {
        let found = entries(self.dir, MOST).map_err(PluginError::kernel("read", self.shown))?;
        for entry in found {
            let name = entry.name.as_os_str();
            if name.as_encoded_bytes().starts_with(b"..") && name != DATA && Some(name) != current {
                self.remove(name)?;
            }
        }
        Ok(())
    }

    fn remove(&self, name: &OsStr) -> Result<(), PluginError> {
        (self.step)().map_err(PluginError::kernel("remove from", self.shown))?;
        remove_tree(self.dir, name, &self.shown.join(name))
    }

    /// Whether a directory holds exactly these files, with their modes and owners.
    fn holds(&self, current: &OsStr, files: &BTreeMap<PathBuf, &Content>) -> io::Result<bool> {
        let root = open_dir(self.dir, Path::new(current), 0)?;
        let mut wanted_dirs: BTreeSet<&Path> = files.keys().flat_map(|path| parents(path)).collect();
        wanted_dirs.insert(Path::new(""));
        let mut found = 0;
        for dir in &wanted_dirs {
            let opened = match *dir {
                path if path.as_os_str().is_empty() => root.try_clone()?,
                path => match open_dir(root.as_fd(), path, 0) {
                    Ok(opened) => opened,
                    Err(error) if is_other_kind(&error) => return Ok(false),
                    Err(error) => return Err(error),
                },
            };
            if !self.owned_right(&opened, self.mode(0o755, true), None)? {
                return Ok(false);
            }
            for entry in entries(opened.as_fd(), MOST)? {
                let path = dir.join(&entry.name);
                if entry.is_dir {
                    if !wanted_dirs.contains(path.as_path()) {
                        return Ok(false);
                    }
                    continue;
                }
                let Some(content) = files.get(&path) else {
                    return Ok(false);
                };
                if !self.file_is(opened.as_fd(), &entry.name, content)? {
                    return Ok(false);
                }
                found += 1;
            }
        }
        Ok(found == files.len())
    }

    fn file_is(&self, dir: BorrowedFd<'_>, name: &OsStr, content: &Content) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = flags.bits().cast_signed();
        let file = match oci_runtime_sys::open::openat2(dir, Path::new(name), flags, 0, BENEATH) {
            Err(error) if is_other_kind(&error) => return Ok(false),
            other => other?,
        };
        let stat = fstat(&file)?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let length = content.bytes.len();
        if !is_file || u64::try_from(stat.st_size) != Ok(length as u64) {
            return Ok(false);
        }
        if !self.owned_right(&file, self.mode(content.mode, false), content.user)? {
            return Ok(false);
        }
        let mut bytes = Vec::with_capacity(length + 1);
        std::fs::File::from(file)
            .take(length as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes == content.bytes)
    }

    fn owned_right(&self, fd: &OwnedFd, mode: u32, user: Option<u32>) -> io::Result<bool> {
        let stat = fstat(fd)?;
        let owner = user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        Ok(stat.st_mode & 0o7777 == mode
            && stat.st_uid == owner
            && self.group.is_none_or(|group| stat.st_gid == group))
    }

    fn mode(&self, mode: u32, is_dir: bool) -> u32 {
        let read_only = |group| GroupOwnership {
            group,
            read_only: true,
            on_root_mismatch: false,
        };
        self.group
            .map_or(mode, |group| read_only(group).mode(mode, is_dir))
    }

    /// Writes a new directory and makes `..data` lead to it.
    fn replace(&self, files: &BTreeMap<PathBuf, &Content>) -> io::Result<()> {
        let (name, dir) = self.new_dir()?;
        for (path, content) in files {
            let mut parent = dir.try_clone()?;
            for part in path.parent().into_iter().flat_map(Path::iter) {
                (self.step)()?;
                let (next, made) = make_dir(parent.as_fd(), Path::new(part), 0o755)?;
                if made {
                    self.own(next.as_fd(), 0o755, true, None)?;
                }
                parent = next;
            }
            self.write_file(parent.as_fd(), path.file_name().unwrap_or_default(), content)?;
        }
        (self.step)()?;
        symlinkat(&name, self.dir, NEW_DATA)?;
        (self.step)()?;
        Ok(renameat(self.dir, NEW_DATA, self.dir, DATA)?)
    }

    /// A directory with a name that nothing has.
    fn new_dir(&self) -> io::Result<(String, OwnedFd)> {
        let start = self.now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
        let fraction = self.now.subsec_nanosecond().unsigned_abs();
        for number in 0..1000 {
            let name = format!("{start}.{:09}", (fraction + number) % 1_000_000_000);
            (self.step)()?;
            let (dir, made) = make_dir(self.dir, Path::new(&name), 0o755)?;
            if made {
                self.own(dir.as_fd(), 0o755, true, None)?;
                return Ok((name, dir));
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn write_file(&self, dir: BorrowedFd<'_>, name: &OsStr, content: &Content) -> io::Result<()> {
        (self.step)()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        (self.step)()?;
        file.write_all(&content.bytes)?;
        (self.step)()?;
        self.own(file.as_fd(), content.mode, false, content.user)
    }

    fn own(&self, fd: BorrowedFd<'_>, mode: u32, is_dir: bool, user: Option<u32>) -> io::Result<()> {
        if self.group.is_some() || user.is_some() {
            set_owner(fd, user, self.group)?;
        }
        set_mode(fd, self.mode(mode, is_dir))
    }

    /// Makes the links that users see, and removes those of files that there are no more. What else lies there, such as
    /// the target of another volume's mount, stays.
    fn link(&self, files: &BTreeMap<PathBuf, &Content>) -> io::Result<()> {
        let wanted: BTreeSet<&OsStr> = files.keys().filter_map(|path| path.iter().next()).collect();
        for name in &wanted {
            let target = Path::new(DATA).join(name);
            if readlinkat(self.dir, *name, Vec::new()) == Err(Errno::NOENT) {
                (self.step)()?;
                symlinkat(&target, self.dir, *name)?;
            }
        }
        for entry in entries(self.dir, MOST)? {
            let name = entry.name.as_os_str();
            if wanted.contains(name) || entry.is_dir || name.as_encoded_bytes().starts_with(b"..") {
                continue;
            }
            let target = Path::new(DATA).join(name);
            let ours = readlinkat(self.dir, name, Vec::new())
                .is_ok_and(|found| OsString::from_vec(found.into_bytes()) == target);
            if ours {
                (self.step)()?;
                unlinkat(self.dir, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

/// Whether a link leads to a directory that a write has made.
fn is_ours(target: &OsStr) -> bool {
    let bytes = target.as_encoded_bytes();
    bytes.len() > 2 && bytes.starts_with(b"..") && !bytes.contains(&b'/')
}

fn is_other_kind(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO)
    )
}

fn parents(path: &Path) -> impl Iterator<Item = &Path> {
    path.ancestors()
        .skip(1)
        .filter(|path| !path.as_os_str().is_empty())
}

/// The files by clean paths; refuses, in upstream's words, paths that lead elsewhere, and those that can't all be there.
fn checked(payload: &Payload) -> Result<BTreeMap<PathBuf, &Content>, String> {
    let mut files = BTreeMap::new();
    for (path, content) in payload {
        files.insert(clean(path)?, content);
    }
    for path in files.keys() {
        if let Some(other) = parents(path).find(|parent| files.contains_key(*parent)) {
            let (other, path) = (other.display(), path.display());
            return Err(format!("invalid path: {other} is both a file and part of {path}"));
        }
    }
    Ok(files)
}

fn clean(path: &str) -> Result<PathBuf, String> {
    if path.is_empty() {
        return Err("invalid path: must not be empty: \"\"".to_owned());
    }
    if path.starts_with('/') {
        return Err(format!("invalid path: must be relative path: {path}"));
    }
    if path.len() > 4096 {
        return Err("invalid path: must be less than or equal to 4096 characters".to_owned());
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("invalid path: must not contain '..': {path}"));
    }
    if path.split('/').any(|part| part.len() > 255) {
        return Err("invalid path: filenames must be less than or equal to 255 characters".to_owned());
    }
    let parts: PathBuf = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.as_os_str().as_encoded_bytes().starts_with(b"..") {
        return Err(format!("invalid path: must not start with '..': {path}"));
    }
    if parts.as_os_str().is_empty() || path.contains('\0') {
        return Err(format!("invalid path: names no file: {path:?}"));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests;
