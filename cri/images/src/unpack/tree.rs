//! The directory that a layer becomes: every operation goes through a descriptor of the parent directory.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::attributes::{PLAIN, accept_xattr, copy_attributes, owner, set_attributes, settable, timestamps};
use super::merged::{Merged, Part, is_whiteout};
use super::tar::{Archive, Entry, Kind};
use super::{EntryError, Implied, OverlayXattrs, parts};

const BUFFER: usize = 128 << 10;
/// How often openat2 is tried again when a rename elsewhere on the machine made it unsure.
const MAX_RETRIES: usize = 1000;
/// The most bytes of paths of implied directories that are kept.
const MAX_IMPLIED: usize = 4 << 20;

type Result<T, E = EntryError> = std::result::Result<T, E>;

pub(super) struct Tree {
    /// This layer, and those below when it is unpacked on top of them.
    layers: Merged,
    xattrs: OverlayXattrs,
    root: Place,
    /// The directory of the last entry, as entries have it: they come directory by directory.
    last: Option<(Vec<u8>, Place)>,
    /// Times of directories: set at the end, as each entry inside changes them.
    directories: Vec<(Vec<u8>, (i64, u32))>,
    /// Directories that were made without an entry of their own, though one may have come later.
    implied: BTreeSet<Vec<u8>>,
    implied_bytes: usize,
    /// How many of these were made.
    made: u64,
    /// Whether the root has an entry.
    pub(super) has_root: bool,
    /// Whether the root hides all layers below.
    pub(super) is_opaque: bool,
    buffer: Vec<u8>,
}

/// A directory that entries go into. Held as long as one of them is worked on, whatever becomes of its name.
#[derive(Clone)]
struct Place {
    directory: Rc<OwnedFd>,
    /// Where it is, without symlinks of lower layers.
    real: Rc<[u8]>,
}

impl Place {
    fn new(directory: OwnedFd, real: &[u8]) -> Self {
        Self {
            directory: Rc::new(directory),
            real: real.into(),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

pub(super) fn kernel(action: &'static str) -> impl FnOnce(Errno) -> EntryError {
    move |errno| EntryError::Kernel {
        action,
        source: errno.into(),
    }
}

impl Tree {
    /// The empty directory `root`, on top of the layers `below`, the top one first.
    pub(super) fn open(root: &Path, below: &[PathBuf], xattrs: OverlayXattrs) -> io::Result<Self> {
        let layers = [root].into_iter().chain(below.iter().map(PathBuf::as_path));
        let layers = Merged::open(layers, xattrs)?;
        Ok(Self {
            root: Place::new(layers.directory(0, b"")?, b""),
            layers,
            xattrs,
            last: None,
            directories: Vec::new(),
            implied: BTreeSet::new(),
            implied_bytes: 0,
            made: 0,
            has_root: false,
            is_opaque: false,
            buffer: vec![0; BUFFER],
        })
    }

    /// How many directories were made that have no entry.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// What is to be asked of the layers below before this one is put on them.
    pub(super) fn implied(&mut self) -> Implied {
        if self.implied_bytes > MAX_IMPLIED {
            Implied::TooMany
        } else {
            Implied::Paths(std::mem::take(&mut self.implied).into_iter().collect())
        }
    }

    /// Gives the root of the layer its owner, mode and time.
    pub(super) fn set_root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(EntryError::Root);
        }
        set_attributes(self.root.fd(), entry)?;
        self.has_root = true;
        self.directories.push((Vec::new(), entry.mtime));
        Ok(())
    }

    /// Makes a directory hide what lower layers have in it.
    pub(super) fn set_opaque(&mut self, parents: &[&[u8]]) -> Result<()> {
        let xattrs = self.xattrs;
        let look = |place: &Place| {
            let stat = fs::fstat(place.fd()).map_err(kernel("look at the directory"))?;
            Ok::<_, EntryError>((stat.st_dev, stat.st_ino))
        };
        let place = self.parent(parents)?;
        mark_opaque(place.fd(), xattrs)?;
        // A symlink may lead to the root, too.
        self.is_opaque |= look(&place)? == look(&self.root)?;
        Ok(())
    }

    /// Hides a name of lower layers.
    pub(super) fn add_whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let xattrs = self.xattrs;
        let place = self.parent(parents)?;
        let parent = place.fd();
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
        let (fd, _, _) = self.replacing(parents, name, "create the file", |parent| {
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
        let ((), place, hides) = self.replacing(parents, name, "make the directory", |parent| {
            match fs::mkdirat(parent, name, Mode::RWXU) {
                Err(Errno::EXIST) if is_directory(parent, name)? => Ok(()),
                made => made,
            }
        })?;
        let directory = open_at(place.fd(), name, OFlags::DIRECTORY | OFlags::NOFOLLOW)
            .map_err(kernel("open the directory"))?;
        set_attributes(directory.as_fd(), entry)?;
        if hides {
            mark_opaque(directory.as_fd(), xattrs)?;
        }
        let path = if place.real.is_empty() {
            name.to_vec()
        } else {
            [&place.real, name].join(&b'/')
        };
        self.directories.push((path, entry.mtime));
        Ok(())
    }

    fn add_hard_link(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<()> {
        let shown = || EntryError::LinkTarget(OsStr::from_bytes(&entry.link).to_string_lossy().into_owned());
        let target = parts(&entry.link)?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(shown());
        };
        let Some(from) = self.existing(target_parents)? else {
            return Err(shown());
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
        if id(self.parent(parents)?.fd(), name) == Some(target_id) {
            return Ok(());
        }
        self.replacing(parents, name, "make the hard link", |parent| {
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
        let ((), place, _) = self.replacing(parents, name, "make it", |parent| match entry.kind {
            Kind::Symlink => fs::symlinkat(&entry.link[..], parent, name),
            Kind::CharDevice => fs::mknodat(parent, name, FileType::CharacterDevice, mode, device),
            Kind::BlockDevice => fs::mknodat(parent, name, FileType::BlockDevice, mode, device),
            _ => fs::mknodat(parent, name, FileType::Fifo, mode, 0),
        })?;
        let parent = place.fd();
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
    /// Returns also the directory, and whether what went hid what lower layers have there: anything but a directory
    /// does. A directory in its place would show it again, unless it is made opaque.
    fn replacing<T>(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        action: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<(T, Place, bool)> {
        let place = self.parent(parents)?;
        let parent = place.fd();
        match make(parent) {
            Ok(made) => return Ok((made, place, false)),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(kernel(action)(errno)),
        }
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(kernel("look at what it replaces"))?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_directory {
            remove_directory(parent, name, 0).map_err(kernel("remove what it replaces"))?;
        } else {
            fs::unlinkat(parent, name, AtFlags::empty()).map_err(kernel("remove what it replaces"))?;
        }
        // It may have been a symlink on the way to this directory.
        self.last = None;
        let made = make(parent).map_err(kernel(action))?;
        Ok((made, place, !is_directory))
    }

    /// The directory of an entry, opened below the root; missing ones are made.
    fn parent(&mut self, parents: &[&[u8]]) -> Result<Place> {
        if parents.is_empty() {
            // What goes there may come in place of a lower layer's symlink on the way to the last one.
            self.last = None;
            return Ok(self.root.clone());
        }
        let written = parents.join(&b'/');
        if let Some((_, place)) = self.last.as_ref().filter(|(last, _)| *last == written) {
            return Ok(place.clone());
        }
        // What this layer has counts before what is below, so a path that leads to a directory of this layer through
        // this layer alone leads there in any case.
        let (place, is_winding) = match self.open_in_root(&written) {
            Ok(directory) => (Place::new(directory, &written), false),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.make_parents(parents)?,
            Err(Errno::XDEV) => return Err(EntryError::Parent),
            Err(errno) => return Err(kernel("open its directory")(errno)),
        };
        self.last = (!is_winding).then(|| (written, place.clone()));
        Ok(place)
    }

    /// Makes the directories that the archive didn't mention, where they belong on top of the layers below. Returns also
    /// whether the way there is winding.
    fn make_parents(&mut self, parents: &[&[u8]]) -> Result<(Place, bool)> {
        let route = self.layers.follow(parents)?;
        route.crossed.into_iter().for_each(|path| self.imply(path));
        let mut directory = self.open_in_root(b"").map_err(kernel("open the root"))?;
        let mut path = Vec::new();
        for part in route.parts {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&part.name);
            let name = &part.name[..];
            directory = match open_at(directory.as_fd(), name, OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => self.make_implied(directory.as_fd(), &path, &part, false)?,
                Err(Errno::NOTDIR) => {
                    let stat = fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW);
                    if !stat.is_ok_and(|stat| is_whiteout(&stat)) {
                        return Err(EntryError::Parent);
                    }
                    fs::unlinkat(&directory, name, AtFlags::empty()).map_err(kernel("replace a whiteout"))?;
                    self.make_implied(directory.as_fd(), &path, &part, true)?
                }
                Err(errno) => return Err(kernel("open its directory")(errno)),
            };
        }
        Ok((Place::new(directory, &path), route.is_winding))
    }

    /// Makes one of them: like the directory below that it continues, or else a plain one.
    fn make_implied(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &[u8],
        part: &Part,
        was_whiteout: bool,
    ) -> Result<OwnedFd> {
        fs::mkdirat(parent, &part.name[..], Mode::from_raw_mode(0o755))
            .map_err(kernel("make its directory"))?;
        let made = open_at(parent, &part.name, OFlags::DIRECTORY | OFlags::NOFOLLOW)
            .map_err(kernel("open its directory"))?;
        self.made += 1;
        if was_whiteout {
            mark_opaque(made.as_fd(), self.xattrs)?;
        } else {
            self.imply(path.to_vec());
        }
        let Some(layer) = part.layers.first() else {
            // The umask of the process must not shape the image.
            fs::fchmod(&made, PLAIN).map_err(kernel("set the mode of its directory"))?;
            return Ok(made);
        };
        let like = self.layers.directory(*layer, path);
        let like = like.map_err(kernel("open the directory of a lower layer"))?;
        let mtime = copy_attributes(like.as_fd(), made.as_fd())?;
        self.directories.push((path.to_vec(), mtime));
        Ok(made)
    }

    /// Notes that something depends on what layers below have at `path`. Only of use when they aren't known.
    fn imply(&mut self, path: Vec<u8>) {
        if self.layers.has_below() || self.implied_bytes > MAX_IMPLIED {
            return;
        }
        let length = path.len();
        if self.implied.insert(path) {
            self.implied_bytes += length;
        }
    }

    /// A directory of this layer, through symlinks of all layers.
    fn existing(&mut self, parents: &[&[u8]]) -> Result<Option<OwnedFd>> {
        let open = kernel("open the directory of the link's target");
        match self.open_in_root(&parents.join(&b'/')) {
            Ok(directory) => return Ok(Some(directory)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(open(errno)),
        }
        let route = match self.layers.follow(parents) {
            Ok(route) => route,
            Err(EntryError::Parent | EntryError::Name) => return Ok(None),
            Err(error) => return Err(error),
        };
        let path = route.path();
        route.crossed.into_iter().for_each(|path| self.imply(path));
        match self.layers.directory(0, &path) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(open(errno)),
        }
    }

    fn open_in_root(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let mut tries = 0;
        loop {
            match fs::openat2(self.root.fd(), path, flags, Mode::empty(), resolve) {
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
