//! Unpacked layers, one directory each, named by the diff ID: the digest of the layer's uncompressed tar.
//!
//! Not by the chain ID: overlayfs stacks layers that know nothing of each other, so a layer that several images have
//! at different heights is on the disk once, and layers of one image are unpacked side by side. A layer whose content
//! does depend on those below (an entry goes through a symlink of theirs, or into a directory of theirs with an owner
//! or mode of its own that the layer doesn't repeat) is unpacked on top of them and named by its chain ID. The lowest
//! layer's chain ID is its diff ID, so one name never means two things.
//!
//! A layer is unpacked into `layers/<hex>.<n>.tmp`, with a marker `complete` beside its files; all of it is made durable;
//! then it gets its name, which is on the disk before a record refers to it. The marker holds counts and a
//! fingerprint of names, sizes, owners, modes and times: a layer that lost bytes in a power cut (the classic: files of
//! zero bytes) no longer has it, is found by [`check`] and made anew from its blob. `implied`, where there is one, lists
//! the directories without entries, which [`fits`] asks about.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher, HashingReader};
use crate::disk::Disk;
use crate::step::Step;
use crate::unpack::{self, EntryError, Implied, OverlayXattrs, UnpackError};
use crate::{FileError, Limits, PullErrorKind};

/// The longest list of implied directories: what unpacking keeps of them, and the bytes between.
const MAX_IMPLIED: u64 = 16 << 20;
/// The deepest directory that is looked into.
const MAX_DEPTH: usize = 400;
const MARKER: &str = "complete";
const IMPLIED: &str = "implied";

/// A layer that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive.
    #[error("failed to unpack the archive")]
    Unpack(#[source] UnpackError),
    /// Not the content that the config promises.
    #[error("the unpacked content has the digest {got} instead of the config's diff ID {wanted}")]
    DiffId {
        /// By the config.
        wanted: Digest,
        /// Computed.
        got: Digest,
    },
    /// Larger than allowed.
    #[error("the layer is larger than {0} bytes unpacked")]
    TooLarge(u64),
    /// The disk.
    #[error("failed to store the layer")]
    File(#[from] FileError),
}

impl LayerError {
    /// What a caller can do about it.
    pub fn kind(&self) -> PullErrorKind {
        match self {
            Self::Unpack(error) => error.kind(),
            Self::DiffId { .. } => PullErrorKind::Corrupt,
            Self::TooLarge(_) => PullErrorKind::Unsupported,
            Self::File(error) if error.is_no_space() => PullErrorKind::NoSpace,
            Self::File(_) => PullErrorKind::Internal,
        }
    }

    /// Whether the layer may be sound on top of the layers below it: a hard link's target may be reached through them.
    pub(crate) fn may_need_below(&self) -> bool {
        matches!(
            self,
            Self::Unpack(UnpackError::Entry {
                source: EntryError::LinkTarget(_),
                ..
            })
        )
    }
}

/// What the file `complete` says about a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// Inodes.
    pub(crate) inodes: u64,
    /// Names, sizes, owners, modes and times in one number.
    pub(crate) fingerprint: Digest,
    /// What depends on the layers below.
    pub(crate) depends: Depends,
    /// Whether it says of what owner and mode the image's root is.
    pub(crate) has_root: bool,
    /// Whether it hides all layers below.
    pub(crate) is_opaque: bool,
}

/// What in an unpacked layer depends on the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Depends {
    /// Nothing, or it was unpacked on top of them.
    Nothing,
    /// The directories in a list with this digest.
    Listed(Digest),
    /// Too much for a list.
    Much,
}

/// What is to be unpacked, and to which name.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The compressed layer.
    pub(crate) blob: Digest,
    /// What it has to be when uncompressed.
    pub(crate) diff_id: Digest,
    /// The layer's name: the diff ID, or the chain ID when it is unpacked on top of others.
    pub(crate) name: Digest,
    /// Those others, the top one first.
    pub(crate) below: Vec<Digest>,
}

/// The chain IDs of an image's layers, bottom first (OCI image spec, config.md, "Layer ChainID").
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// Whether a layer that was unpacked by itself is right on top of those `below`, the top one first. Blocks.
pub(crate) fn fits(
    disk: &Disk,
    layer: &Digest,
    depends: Depends,
    below: &[Digest],
    xattrs: OverlayXattrs,
) -> Result<bool, FileError> {
    let layer = disk.layer(layer);
    let list = match depends {
        Depends::Nothing => return Ok(true),
        Depends::Much => return Ok(false),
        Depends::Listed(digest) => {
            let bytes = crate::disk::read_bounded(&layer.join(IMPLIED), MAX_IMPLIED);
            // Without its list it is taken for one that depends on all, which is always right.
            match bytes.ok().filter(|bytes| Digest::of(bytes) == digest) {
                Some(bytes) => bytes,
                None => return Ok(false),
            }
        }
    };
    let paths = list.split(|c| *c == 0).filter(|path| !path.is_empty());
    let paths: Vec<Vec<u8>> = paths.map(<[u8]>::to_vec).collect();
    let below: Vec<PathBuf> = below.iter().map(|layer| files(&disk.layer(layer))).collect();
    unpack::fits(&paths, &below, xattrs).map_err(FileError::of("compare with lower layers", &layer))
}

/// The files of a layer.
pub(crate) fn files(layer: &Path) -> PathBuf {
    layer.join("fs")
}

/// Reads the marker of a layer; an error when it isn't whole.
pub(crate) fn read_marker(layer: &Path) -> Result<Marker, FileError> {
    let path = layer.join(MARKER);
    let bytes = crate::disk::read_bounded(&path, 4096)?;
    if !files(layer).is_dir() {
        return Err(FileError::of("open", files(layer))(io::Error::from(
            io::ErrorKind::NotFound,
        )));
    }
    serde_json::from_slice(&bytes).map_err(|error| FileError::of("parse", &path)(io::Error::other(error)))
}

/// Whether a layer still is what its marker says. Reads all directories, no file.
pub(crate) fn check(layer: &Path) -> bool {
    let Ok(marker) = read_marker(layer) else {
        return false;
    };
    survey(&files(layer)).is_ok_and(|found| found.fingerprint == marker.fingerprint)
}

/// Unpacks a blob into a temporary directory beside its later place and returns that, durable and whole. Blocks.
pub(crate) fn unpack(
    disk: &Disk,
    source: &Source,
    xattrs: OverlayXattrs,
    limits: &Limits,
) -> Result<(PathBuf, Marker), LayerError> {
    let temporary = disk
        .layers()
        .join(format!("{}.{}.tmp", source.name.hex(), disk.unique()));
    let made = fill(disk, &temporary, source, xattrs, limits);
    match made {
        Ok(marker) => Ok((temporary, marker)),
        Err(error) => {
            // Best effort: the next open removes what stays.
            if disk.discard(&temporary).is_ok() {
                disk.empty_trash();
            }
            Err(error)
        }
    }
}

fn fill(
    disk: &Disk,
    temporary: &Path,
    source: &Source,
    xattrs: OverlayXattrs,
    limits: &Limits,
) -> Result<Marker, LayerError> {
    let root = files(temporary);
    fs::create_dir_all(&root).map_err(FileError::of("create", &root))?;
    let plain = Mode::from_raw_mode(0o755);
    rustix::fs::chmod(&root, plain).map_err(FileError::of("set the mode of", &root))?;
    rustix::fs::chmod(temporary, plain).map_err(FileError::of("set the mode of", temporary))?;
    disk.steps.reach(Step::LayerCreated);

    let path = disk.blob(&source.blob);
    let file = File::open(&path).map_err(FileError::of("open", &path))?;
    let archive = decompress(file).map_err(FileError::of("read", &path))?;
    let mut archive = HashingReader::new(Bounded {
        inner: archive,
        left: limits.layer_bytes,
        is_over: false,
    });
    let below = source.below.iter().map(|layer| files(&disk.layer(layer)));
    let below: Vec<PathBuf> = below.collect();
    let unpacked = unpack::unpack(&mut archive, &root, &below, xattrs, limits);
    if archive.get_ref().is_over {
        return Err(LayerError::TooLarge(limits.layer_bytes));
    }
    let unpacked = unpacked.map_err(LayerError::Unpack)?;
    let (got, _) = archive.finish();
    if got != source.diff_id {
        return Err(LayerError::DiffId {
            wanted: source.diff_id,
            got,
        });
    }
    disk.steps.reach(Step::LayerUnpacked);

    let depends = write_implied(temporary, &unpacked.implied)?;
    disk.steps.reach(Step::LayerListed);
    let survey = survey(&root)?;
    let marker = Marker {
        bytes: survey.bytes,
        inodes: survey.inodes,
        fingerprint: survey.fingerprint,
        depends,
        has_root: unpacked.has_root,
        is_opaque: unpacked.is_opaque,
    };
    let path = temporary.join(MARKER);
    let json = serde_json::to_vec(&marker).expect("a marker has only strings and numbers");
    fs::write(&path, json).map_err(FileError::of("write", &path))?;
    disk.steps.reach(Step::LayerMarked);
    crate::durable::sync_tree(temporary, marker.inodes)?;
    disk.steps.reach(Step::LayerSynced);
    Ok(marker)
}

/// Lists the directories without entries beside the files.
fn write_implied(layer: &Path, implied: &Implied) -> Result<Depends, FileError> {
    let paths = match implied {
        Implied::Paths(paths) if paths.is_empty() => return Ok(Depends::Nothing),
        Implied::Paths(paths) => paths,
        Implied::TooMany => return Ok(Depends::Much),
    };
    let list = paths.join(&0);
    let path = layer.join(IMPLIED);
    fs::write(&path, &list).map_err(FileError::of("write", &path))?;
    Ok(Depends::Listed(Digest::of(&list)))
}

/// The uncompressed bytes of a blob. Its first bytes say how it is compressed: media types are often wrong.
fn decompress(file: File) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::with_capacity(256 << 10, file);
    let begin = file.fill_buf()?;
    if begin.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(BufReader::with_capacity(
            128 << 10,
            flate2::bufread::MultiGzDecoder::new(file),
        )))
    } else if begin.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || (begin.len() >= 4 && begin[0] & 0xf0 == 0x50 && begin[1..4] == [0x2a, 0x4d, 0x18])
    {
        // The second form is a skippable frame, with which seekable zstd files may begin.
        let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
        decoder.window_log_max(27)?;
        Ok(Box::new(BufReader::with_capacity(128 << 10, decoder)))
    } else {
        Ok(Box::new(file))
    }
}

/// Ends a stream that is longer than allowed with an error.
struct Bounded<R> {
    inner: R,
    left: u64,
    is_over: bool,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => {
                self.is_over = true;
                Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than allowed"))
            }
        }
    }
}

/// What a walk through the files of a layer found.
struct Found {
    bytes: u64,
    inodes: u64,
    fingerprint: Digest,
}

/// Counts and fingerprints the files of a layer.
fn survey(root: &Path) -> Result<Found, FileError> {
    let mut survey = Survey {
        hasher: Hasher::default(),
        bytes: 0,
        inodes: 0,
        links: Default::default(),
    };
    let open = rustix::fs::open(
        root,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    );
    open.and_then(|dir| survey.directory(dir.as_fd(), 0))
        .map_err(FileError::of("look through", root))?;
    let Survey {
        hasher,
        bytes,
        inodes,
        ..
    } = survey;
    Ok(Found {
        bytes,
        inodes,
        fingerprint: hasher.finish(),
    })
}

struct Survey {
    hasher: Hasher,
    bytes: u64,
    inodes: u64,
    /// Files with several names that were seen already.
    links: std::collections::BTreeSet<(u64, u64)>,
}

impl Survey {
    fn directory(&mut self, directory: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(rustix::io::Errno::NAMETOOLONG);
        }
        self.count(&rustix::fs::fstat(directory)?);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(directory)? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort_unstable();
        for name in names {
            let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            // The size of a directory is the file system's business.
            let size = if kind == FileType::Directory {
                0
            } else {
                stat.st_size
            };
            self.hasher.update(&(name.as_bytes().len() as u64).to_le_bytes());
            self.hasher.update(name.as_bytes());
            for number in [
                u64::from(stat.st_mode),
                u64::from(stat.st_uid),
                u64::from(stat.st_gid),
                stat.st_rdev,
                size.cast_unsigned(),
                stat.st_mtime.cast_unsigned(),
                stat.st_mtime_nsec,
            ] {
                self.hasher.update(&number.to_le_bytes());
            }
            if kind == FileType::Directory {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(directory, &name, flags, Mode::empty())?;
                self.directory(below.as_fd(), depth + 1)?;
                self.hasher.update(b"/");
            } else {
                self.count(&stat);
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &rustix::fs::Stat) {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_directory && stat.st_nlink > 1 && !self.links.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.inodes += 1;
        self.bytes += stat.st_blocks.cast_unsigned() * 512;
    }
}
