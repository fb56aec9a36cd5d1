//! The directory that a layer becomes: every operation goes through a descriptor of the parent directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::tar::{Archive, Entry, Kind};
use super::{EntryError, OverlayXattrs, parts};

const BUFFER: usize = 128 << 10;
/// How often openat2 is tried again when a rename elsewhere on the machine made it unsure.
const MAX_RETRIES: usize = 1000;

type Result<T, E = EntryError> = std::result::Result<T, E>;

pub(super) struct Tree {
    root: OwnedFd,
    xattrs: OverlayXattrs,
    /// The directory of the last entry: entries come directory by directory.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Times of directories: set at the end, as each entry inside changes them.
    directories: Vec<(Vec<u8>, (i64, u32))>,
    buffer: Vec<u8>,
}

fn kernel(action: &'static str) -> impl FnOnce(Errno) -> EntryError {
    move |errno| EntryError::Kernel {
        action,
        source: errno.into(),
    }
}

impl Tree {
    pub(super) fn open(root: &Path, xattrs: OverlayXattrs) -> io::Result<Self> {
        let root = fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self {
            root,
            xattrs,
            last: None,
            directories: Vec::new(),
            buffer: vec![0; BUFFER],
        })
    }

    /// Gives the root of the layer its owner, mode and time.
    pub(super) fn set_root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(EntryError::Root);
        }
        set_attributes(self.root.as_fd(), entry)?;
        self.directories.push((Vec::new(), entry.mtime));
        Ok(())
    }

    /// Makes a directory hide what lower layers have in it.
    pub(super) fn set_opaque(&mut self, parents: &[&[u8]]) -> Result<()> {
        let xattrs = self.xattrs;
        mark_opaque(self.parent(parents)?, xattrs)
    }

    /// Hides a name of lower layers.
    pub(super) fn add_whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let xattrs = self.xattrs;
        let parent = self.parent(parents)?;
        match fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            // This layer has such a name already: it hides a lower file by being there, a lower directory by being opaque.
            Err(Errno::EXIST) => match open_at(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                Ok(directory) => mark_opaque(directory.as_fd(), xattrs),
                Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(errno) => Err(kernel("open the directory")(errno)),
            },
            Err(errno) => Err(kernel("make the whiteout")(errno)),
        }
    }

    /// Adds an entry, in place of what has its name.
    pub(super) fn add<R: Read>(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<()> {
        match entry.kind {
            Kind::File => self.add_file(parents, name, entry, archive),
            Kind::Directory => self.add_directory(parents, name, entry),
            Kind::HardLink => self.add_hard_link(parents, name, entry),
            Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                self.add_node(parents, name, entry)
            }
            Kind::Other(byte) => Err(EntryError::Unsupported(char::from(byte))),
        }
    }

    /// Sets the times of the directories; deeper ones may come before or after.
    pub(super) fn finish(&mut self) -> std::result::Result<(), (Vec<u8>, EntryError)> {
        self.last = None;
        for (path, mtime) in std::mem::take(&mut self.directories) {
            let set = || -> Result<()> {
                // A later entry may have replaced it by something else; then it has no say.
                let directory = match self.open_in_root(&path) {
                    Ok(directory) => directory,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
                    Err(errno) => return Err(kernel("open the directory")(errno)),
                };
                fs::futimens(&directory, &timestamps(mtime)).map_err(kernel("set its time"))
            };
            set().map_err(|error| (path.clone(), error))?;
        }
        Ok(())
    }

    fn add_file<R: Read>(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (fd, _) = self.replacing(parents, name, false, "create the file", |parent| {
            fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let file = File::from(fd);
        let write = |source| EntryError::Kernel {
            action: "write the file",
            source,
        };
        let whole = [(0, entry.size)];
        for (offset, length) in entry.regions.as_deref().unwrap_or(&whole) {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let most = usize::try_from(end - at).map_or(BUFFER, |left| left.min(BUFFER));
                let read = archive
                    .read_data(&mut self.buffer[..most])
                    .map_err(EntryError::Read)?;
                if read == 0 {
                    return Err(EntryError::Read(io::ErrorKind::UnexpectedEof.into()));
                }
                file.write_all_at(&self.buffer[..read], at).map_err(write)?;
                at += read as u64;
            }
        }
        if entry.regions.is_some() {
            file.set_len(entry.size).map_err(write)?;
        }
        set_attributes(file.as_fd(), entry)?;
        fs::futimens(&file, &timestamps(entry.mtime)).map_err(kernel("set its time"))
    }

    fn add_directory(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<()> {
        let xattrs = self.xattrs;
        let (_, was_whiteout) =
            self.replacing(
                parents,
                name,
                true,
                "make the directory",
                |parent| match fs::mkdirat(parent, name, Mode::RWXU) {
                    Err(Errno::EXIST) if is_directory(parent, name)? => Ok(()),
                    made => made,
                },
            )?;
        let parent = self.parent(parents)?;
        let directory = open_at(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW)
            .map_err(kernel("open the directory"))?;
        set_attributes(directory.as_fd(), entry)?;
        if was_whiteout {
            mark_opaque(directory.as_fd(), xattrs)?;
        }
        let path = [parents, &[name]].concat().join(&b'/');
        self.directories.push((path, entry.mtime));
        Ok(())
    }

    fn add_hard_link(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<()> {
        let shown = || EntryError::LinkTarget(OsStr::from_bytes(&entry.link).to_string_lossy().into_owned());
        let target = parts(&entry.link)?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(shown());
        };
        let from = match self.open_in_root(&target_parents.join(&b'/')) {
            Ok(from) => from,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(shown()),
            Err(errno) => return Err(kernel("open the directory of the link's target")(errno)),
        };
        // A link to itself, which some tools write, must not delete itself first.
        let id = |at: BorrowedFd<'_>, name: &[u8]| {
            fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
                .map(|stat| (stat.st_dev, stat.st_ino))
                .ok()
        };
        let Some(target_id) = id(from.as_fd(), target_name) else {
            return Err(shown());
        };
        if id(self.parent(parents)?, name) == Some(target_id) {
            return Ok(());
        }
        self.replacing(parents, name, false, "make the hard link", |parent| {
            fs::linkat(&from, *target_name, parent, name, AtFlags::empty())
        })?;
        Ok(())
    }

    fn add_node(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<()> {
        if entry.kind == Kind::Symlink && (entry.link.is_empty() || entry.link.contains(&0)) {
            return Err(EntryError::Name);
        }
        let mode = Mode::from_raw_mode(entry.mode);
        let device = fs::makedev(entry.device.0, entry.device.1);
        self.replacing(parents, name, false, "make it", |parent| match entry.kind {
            Kind::Symlink => fs::symlinkat(&entry.link[..], parent, name),
            Kind::CharDevice => fs::mknodat(parent, name, FileType::CharacterDevice, mode, device),
            Kind::BlockDevice => fs::mknodat(parent, name, FileType::BlockDevice, mode, device),
            _ => fs::mknodat(parent, name, FileType::Fifo, mode, 0),
        })?;
        let parent = self.parent(parents)?;
        let (uid, gid) = owner(entry);
        fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(kernel("set its owner"))?;
        if entry.kind != Kind::Symlink {
            // Not a symlink: it was made a moment ago, and nobody else works in this directory.
            fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(kernel("set its mode"))?;
        }
        let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
        for (key, value) in settable(entry) {
            let set = fs::lsetxattr(&path[..], key, value, XattrFlags::empty());
            accept_xattr(key, set)?;
        }
        fs::utimensat(parent, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(kernel("set its time"))
    }

    /// Runs `make` in the entry's directory; where something with the name stands, that goes and `make` runs again.
    /// Returns also whether that was a whiteout.
    fn replacing<T>(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        is_dir: bool,
        action: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<(T, bool)> {
        let parent = self.parent(parents)?;
        match make(parent) {
            Ok(made) => return Ok((made, false)),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(kernel(action)(errno)),
        }
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(kernel("look at what it replaces"))?;
        let whiteout = is_whiteout(&stat);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            remove_directory(parent, name, 0).map_err(kernel("remove what it replaces"))?;
        } else {
            fs::unlinkat(parent, name, AtFlags::empty()).map_err(kernel("remove what it replaces"))?;
        }
        // The directory that was opened last may be gone, or reached by another way.
        self.last = None;
        let made = make(self.parent(parents)?).map_err(kernel(action))?;
        Ok((made, whiteout && is_dir))
    }

    /// The directory of an entry, opened below the root; missing ones are made.
    fn parent(&mut self, parents: &[&[u8]]) -> Result<BorrowedFd<'_>> {
        if parents.is_empty() {
            return Ok(self.root.as_fd());
        }
        let path = parents.join(&b'/');
        if self.last.as_ref().is_none_or(|(last, _)| *last != path) {
            let directory = match self.open_in_root(&path) {
                Ok(directory) => directory,
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(parents)?,
                Err(Errno::LOOP | Errno::XDEV) => return Err(EntryError::Parent),
                Err(errno) => return Err(kernel("open its directory")(errno)),
            };
            self.last = Some((path, directory));
        }
        let (_, directory) = self.last.as_ref().expect("set above");
        Ok(directory.as_fd())
    }

    /// Makes the directories that the archive didn't mention.
    fn make_parents(&self, parents: &[&[u8]]) -> Result<OwnedFd> {
        let mut directory = self.open_in_root(b"").map_err(kernel("open the root"))?;
        for depth in 1..=parents.len() {
            let path = parents[..depth].join(&b'/');
            let name = parents[depth - 1];
            directory = match self.open_in_root(&path) {
                Ok(directory) => directory,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let stat = fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW);
                    let was_whiteout = stat.is_ok_and(|stat| is_whiteout(&stat));
                    if was_whiteout {
                        fs::unlinkat(&directory, name, AtFlags::empty())
                            .map_err(kernel("replace a whiteout"))?;
                    }
                    match fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) => {}
                        Err(Errno::EXIST) => return Err(EntryError::Parent),
                        Err(errno) => return Err(kernel("make its directory")(errno)),
                    }
                    let made = self.open_in_root(&path).map_err(kernel("open its directory"))?;
                    // The umask of the process must not shape the image.
                    fs::fchmod(&made, Mode::from_raw_mode(0o755))
                        .map_err(kernel("set the mode of its directory"))?;
                    if was_whiteout {
                        mark_opaque(made.as_fd(), self.xattrs)?;
                    }
                    made
                }
                Err(Errno::LOOP | Errno::XDEV) => return Err(EntryError::Parent),
                Err(errno) => return Err(kernel("open its directory")(errno)),
            };
        }
        Ok(directory)
    }

    fn open_in_root(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let mut tries = 0;
        loop {
            match fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if tries < MAX_RETRIES => tries += 1,
                opened => return opened,
            }
        }
    }
}

fn open_at(parent: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    fs::openat(
        parent,
        name,
        flags | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn is_directory(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn is_whiteout(stat: &fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Removes a directory that a later entry replaces. A tree too deep for the descriptors at hand is an error.
fn remove_directory(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> rustix::io::Result<()> {
    if depth > 300 {
        return Err(Errno::NAMETOOLONG);
    }
    let directory = open_at(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
    for entry in fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        match fs::unlinkat(&directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => remove_directory(directory.as_fd(), name, depth + 1)?,
            removed => removed?,
        }
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn mark_opaque(directory: BorrowedFd<'_>, xattrs: OverlayXattrs) -> Result<()> {
    fs::fsetxattr(directory, xattrs.opaque(), b"y", XattrFlags::empty())
        .map_err(kernel("make the directory opaque"))
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// Owner, then mode, then attributes: a change of owner clears setuid bits and file capabilities.
fn set_attributes(fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    let (uid, gid) = owner(entry);
    fs::fchown(fd, uid, gid).map_err(kernel("set its owner"))?;
    fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(kernel("set its mode"))?;
    for (key, value) in settable(entry) {
        accept_xattr(key, fs::fsetxattr(fd, key, value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// The attributes that a layer may set: overlayfs' own would let it redirect names to other layers' files, and labels
/// of security modules are this machine's business.
fn settable(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    entry
        .xattrs
        .iter()
        .map(|(key, value)| (&key[..], &value[..]))
        .filter(|(key, _)| {
            !key.starts_with(b"trusted.overlay.")
                && !key.starts_with(b"user.overlay.")
                && *key != b"security.selinux"
                && !key.is_empty()
                && !key.contains(&0)
        })
}

/// Lets pass what the file system or the user namespace can't hold, but never a lost file capability.
fn accept_xattr(key: &[u8], set: rustix::io::Result<()>) -> Result<()> {
    match set {
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM) if key != b"security.capability" => Ok(()),
        set => set.map_err(kernel("set an extended attribute")),
    }
}

fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
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
