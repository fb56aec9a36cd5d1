//! What stands at a path when layers lie on top of each other: what overlayfs will show there.
//!
//! An archive may have `bin/tool` without an entry for `bin`. Where that goes is for what is there already to say, in
//! this layer and in the ones below: through a symlink of either, into a directory whose owner and mode it keeps, or
//! into a new directory. So paths are followed part by part through all layers at once, by overlayfs' rules: a directory
//! continues the directories of that name below, anything else ends them, and so do a whiteout and an opaque directory.
//!
//! Each lookup is one part further below directories that were just looked at, with links never followed by the kernel:
//! links are read and followed here, from the image's root, where `..` leads back to the root itself. Nothing in a layer
//! can lead out of it.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{EntryError, MAX_DEPTH, MAX_PATH, OverlayXattrs};

/// The most symlinks on the way to one entry: the kernel's own number.
const MAX_LINKS: usize = 40;
/// The most parts on the way to one entry, those of symlinks included.
const MAX_STEPS: usize = 1024;
/// The most looks into a layer's directory while one archive is unpacked: a minute or two of them. An archive whose
/// every entry leads through a maze of links would hold its place for hours.
const MAX_LOOKS: u64 = 64 << 20;

/// How many layers are held open: an image may have hundreds, and several are unpacked at a time.
const MAX_OPEN: usize = 32;

/// Layers on top of each other.
pub(super) struct Merged {
    /// Their root directories, the top one first.
    layers: Vec<Root>,
    xattrs: OverlayXattrs,
    looks: Cell<u64>,
}

/// The root directory of a layer.
enum Root {
    Open(OwnedFd),
    /// Opened for each look at it.
    Closed(PathBuf),
}

/// What stands at one path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing, or what is there is hidden.
    Nothing,
    /// A directory, in these layers, the top one first.
    Directory(Vec<usize>),
    /// A symlink, to this.
    Symlink(Vec<u8>),
    /// A file, device or pipe.
    Other,
}

/// One part of a path without symlinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: Vec<u8>,
    /// The layers that have this directory, the top one first; none when it is to be made.
    pub(super) layers: Vec<usize>,
}

/// Where a path leads.
#[derive(Debug, Default)]
pub(super) struct Route {
    /// The directories from the root on.
    pub(super) parts: Vec<Part>,
    /// Paths at which nothing was found and which a symlink's `..` left again.
    pub(super) crossed: Vec<Vec<u8>>,
    /// Whether there was a `..` in a symlink: then what goes into the directory may change the way to it.
    pub(super) is_winding: bool,
}

impl Route {
    /// The path so far.
    pub(super) fn path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.parts.iter().map(|part| &part.name[..]).collect();
        names.join(&b'/')
    }
}

impl Merged {
    /// These layers, the top one first.
    pub(super) fn open<P: AsRef<Path>>(
        layers: impl IntoIterator<Item = P>,
        xattrs: OverlayXattrs,
    ) -> io::Result<Self> {
        let open = |(n, path): (usize, P)| -> io::Result<Root> {
            let path = path.as_ref();
            let root = open_root(path)?;
            Ok(if n < MAX_OPEN {
                Root::Open(root)
            } else {
                Root::Closed(path.to_owned())
            })
        };
        let layers = layers.into_iter().enumerate().map(open);
        let layers = layers.collect::<io::Result<_>>()?;
        Ok(Self {
            layers,
            xattrs,
            looks: Cell::new(MAX_LOOKS),
        })
    }

    /// Whether there are layers below the top one.
    pub(super) fn has_below(&self) -> bool {
        self.layers.len() > 1
    }

    /// The layers whose root directories count.
    pub(super) fn roots(&self) -> rustix::io::Result<Vec<usize>> {
        let mut roots = Vec::with_capacity(self.layers.len());
        for layer in 0..self.layers.len() {
            roots.push(layer);
            if self.is_opaque(self.directory(layer, b"")?.as_fd())? {
                break;
            }
        }
        Ok(roots)
    }

    /// What stands at `path`, of whose parent these `layers` have a directory.
    pub(super) fn look(&self, layers: &[usize], path: &[u8]) -> rustix::io::Result<Standing> {
        let mut directories = Vec::new();
        for layer in layers {
            let found = match self.find(*layer, path, OFlags::PATH) {
                Ok(found) => found,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
            let stat = fs::fstat(&found)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                directories.push(*layer);
                let readable = fs::openat(&found, c".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                if self.is_opaque(readable.as_fd())? {
                    break;
                }
                continue;
            }
            // Anything else ends the directory that goes on above it.
            if !directories.is_empty() || is_whiteout(&stat) {
                break;
            }
            if kind == FileType::Symlink {
                let target = fs::readlinkat(&found, c"", Vec::new())?;
                return Ok(Standing::Symlink(target.into_bytes()));
            }
            return Ok(Standing::Other);
        }
        if directories.is_empty() {
            Ok(Standing::Nothing)
        } else {
            Ok(Standing::Directory(directories))
        }
    }

    /// Follows a path of directories from the root, through symlinks of all layers. What doesn't exist counts as a
    /// directory that is to be made.
    pub(super) fn follow(&self, path: &[&[u8]]) -> Result<Route, EntryError> {
        let kernel = |errno: Errno| EntryError::Kernel {
            action: "follow the path to its directory",
            source: errno.into(),
        };
        let roots = self.roots().map_err(kernel)?;
        let mut route = Route::default();
        let mut to_come: Vec<Vec<u8>> = path.iter().rev().map(|part| part.to_vec()).collect();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = to_come.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(EntryError::Parent);
            }
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    route.is_winding = true;
                    let path = route.path();
                    if route.parts.pop().is_some_and(|part| part.layers.is_empty()) {
                        route.crossed.push(path);
                    }
                    continue;
                }
                _ => {}
            }
            let layers = route.parts.last().map_or(&roots, |part| &part.layers).clone();
            let looks = self.looks.get().checked_sub(1 + layers.len() as u64);
            self.looks.set(looks.ok_or(EntryError::Maze)?);
            let mut path = route.path();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if name.len() > 255 || path.len() > MAX_PATH || route.parts.len() >= MAX_DEPTH {
                return Err(EntryError::Name);
            }
            match self.look(&layers, &path).map_err(kernel)? {
                Standing::Nothing => route.parts.push(Part {
                    name,
                    layers: Vec::new(),
                }),
                Standing::Directory(layers) => route.parts.push(Part { name, layers }),
                Standing::Other => return Err(EntryError::Parent),
                Standing::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(EntryError::Parent);
                    }
                    if target.starts_with(b"/") {
                        route.parts.clear();
                    }
                    to_come.extend(target.split(|c| *c == b'/').rev().map(<[u8]>::to_vec));
                }
            }
        }
        Ok(route)
    }

    /// Opens a directory of one layer, by a path without symlinks.
    pub(super) fn directory(&self, layer: usize, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        self.find(layer, path, OFlags::DIRECTORY)
    }

    fn find(&self, layer: usize, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        // Names without links and `..` are never unsure, so this isn't tried again.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened;
        let root = match &self.layers[layer] {
            Root::Open(root) => root,
            Root::Closed(path) => {
                opened = open_root(path)?;
                &opened
            }
        };
        fs::openat2(root, path, flags, Mode::empty(), resolve)
    }

    fn is_opaque(&self, directory: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        let mut value = [0; 1];
        match fs::fgetxattr(directory, self.xattrs.opaque(), &mut value) {
            Ok(size) => Ok(value[..size] == *b"y"),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            // A longer value, which isn't ours and means nothing to overlayfs.
            Err(Errno::RANGE) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

fn open_root(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty())
}

pub(super) fn is_whiteout(stat: &fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_counted_over_all_entries_of_an_archive() {
        let dir = tempfile::tempdir().unwrap();
        let merged = Merged::open([dir.path()], OverlayXattrs::Trusted).unwrap();
        merged.looks.set(5);
        assert!(merged.follow(&[b"a"]).is_ok());
        assert!(merged.follow(&[b"a"]).is_ok());
        let refused = merged.follow(&[b"a", b"b"]).unwrap_err();
        assert!(matches!(refused, EntryError::Maze), "{refused}");
    }
}
