//! Unpacks one layer: a tar stream becomes a directory that overlayfs takes as a lower layer.
//!
//! Everything in the stream is hostile. Names are split into parts, `..` is refused, and the directory of each entry is
//! opened with openat2(RESOLVE_IN_ROOT), so a symlink of the layer, absolute or climbing, leads nowhere outside. The
//! last part of a name is never followed: what stands there is replaced, not written through.
//!
//! Whiteouts of the OCI layer format become overlayfs' own: `.wh.name` a character device 0/0 called `name`,
//! `.wh..wh..opq` the attribute `overlay.opaque` of its directory. A whiteout hides what is in layers below and not
//! what the same layer holds, in whichever order they come (OCI image spec, layer.md, "Whiteouts").
//!
//! A layer is unpacked by itself as far as that goes. Where an entry's directory has no entry of its own, the result
//! depends on what is below: on a symlink there, which leads elsewhere, or on a directory with an owner and mode of its
//! own, which overlayfs would hide behind a plain one. So the paths of such directories are told, [`fits`] asks the
//! layers below about them, and a layer that doesn't fit is unpacked once more, on top of those (`merged`). A hard link
//! to a file of another layer is refused.

mod attributes;
mod merged;
pub mod tar;
mod tree;

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::is_no_space;
use crate::{Limits, PullErrorKind};
use merged::{Merged, Standing};
use tar::{Archive, Entry, TarError};
use tree::Tree;

/// A layer that can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream isn't a sound tar, or ended too early.
    #[error("failed to read the layer")]
    Tar(#[from] TarError),
    /// One entry that can't be.
    #[error("failed to unpack the entry `{path}`")]
    Entry {
        /// The entry, as written in the archive.
        path: String,
        /// Why.
        #[source]
        source: EntryError,
    },
    /// Too many.
    #[error("the layer has more than {0} entries")]
    TooManyEntries(u64),
    /// The directory to unpack into.
    #[error("failed to open the layer's directory")]
    Root(#[source] io::Error),
}

/// What is wrong with one entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// More `..` in its name or in a hard link's target than parts before them.
    #[error("`..` leads out of the image's root")]
    Climbs,
    /// A name that no Linux file can have.
    #[error("its name is empty, too long, too deep or contains a zero byte")]
    Name,
    /// A file, device or endless symlink where a directory should be.
    #[error("its directory is not one: a file, or a symlink that leads to itself, stands there")]
    Parent,
    /// The way to entries leads through so many links that following them would take hours.
    #[error("symlinks make the ways to this archive's entries too long in all")]
    Maze,
    /// The target of a hard link isn't there.
    #[error("the layer does not contain `{0}`, which it is a hard link to")]
    LinkTarget(String),
    /// `.wh.` and nothing, or a dot name.
    #[error("it is not a valid whiteout")]
    Whiteout,
    /// Something that isn't a file, link, directory, device or pipe.
    #[error("its type `{0}` is not supported")]
    Unsupported(char),
    /// The root of the layer as something else than a directory.
    #[error("the root of a layer must be a directory")]
    Root,
    /// The archive broke off or failed inside the entry.
    #[error("failed to read its content")]
    Read(#[source] io::Error),
    /// The kernel refused.
    #[error("failed to {action}")]
    Kernel {
        /// What.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    /// What a caller can do about it.
    pub fn kind(&self) -> PullErrorKind {
        match self {
            Self::Entry {
                source: EntryError::Kernel { source, .. },
                ..
            } if is_no_space(source) => PullErrorKind::NoSpace,
            Self::Entry {
                source: EntryError::Kernel { .. },
                ..
            }
            | Self::Root(_) => PullErrorKind::Internal,
            Self::Entry {
                source: EntryError::Unsupported(_),
                ..
            }
            | Self::TooManyEntries(_) => PullErrorKind::Unsupported,
            Self::Tar(_) | Self::Entry { .. } => PullErrorKind::Corrupt,
        }
    }
}

/// The name space of overlayfs' own attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayXattrs {
    /// `trusted.overlay.`: the usual.
    Trusted,
    /// `user.overlay.`: inside a user namespace.
    User,
}

impl OverlayXattrs {
    /// The attribute that makes a directory opaque.
    pub fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// Directories that a layer has without entries of its own for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Implied {
    /// Their paths, sorted.
    Paths(Vec<Vec<u8>>),
    /// More than are kept.
    TooMany,
}

/// What came of unpacking a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// How many entries it has.
    pub entries: u64,
    /// Directories that it has without entries; none when it was unpacked on top of others.
    pub implied: Implied,
    /// Whether it has an entry for the root directory.
    pub has_root: bool,
    /// Whether nothing of lower layers shows through, whatever it holds itself.
    pub is_opaque: bool,
}

/// Unpacks the tar stream `source` into the empty directory `root`, on top of the layers `below`, the top one first, or
/// by itself when there are none. Blocks.
pub fn unpack<R: Read>(
    source: R,
    root: &Path,
    below: &[PathBuf],
    xattrs: OverlayXattrs,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let mut tree = Tree::open(root, below, xattrs).map_err(UnpackError::Root)?;
    let mut archive = Archive::new(source);
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        place(&mut tree, &entry, &mut archive).map_err(|source| UnpackError::Entry {
            path: shown(&entry.path),
            source,
        })?;
        // Directories without entries are inodes as well.
        if entries + tree.made() > limits.layer_entries {
            return Err(UnpackError::TooManyEntries(limits.layer_entries));
        }
    }
    tree.finish().map_err(|(path, source)| UnpackError::Entry {
        path: shown(&path),
        source,
    })?;
    // The digest of the layer covers what comes after the end of the archive, too.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TarError::Read)?;
    Ok(Unpacked {
        entries,
        implied: tree.implied(),
        has_root: tree.has_root,
        is_opaque: tree.is_opaque,
    })
}

/// Whether a layer that was unpacked by itself is what it would be on top of the layers `below`, the top one first;
/// `implied` are the directories without entries that it has. What the layer did with them later (replace them, make
/// them opaque) is left out of account: entries may have gone through them before. Blocks.
pub fn fits(implied: &[Vec<u8>], below: &[PathBuf], xattrs: OverlayXattrs) -> io::Result<bool> {
    let merged = Merged::open(below, xattrs)?;
    let roots = merged.roots()?;
    // The way to the path before, with the layers of each directory: sorted paths have most of it in common.
    let mut way: Vec<(&[u8], Vec<usize>)> = Vec::new();
    for path in implied {
        let names: Vec<&[u8]> = path.split(|c| *c == b'/').collect();
        let common = way.iter().zip(&names).take_while(|((a, _), b)| a == *b).count();
        // All but the last part are on the list themselves, or have entries.
        way.truncate(common.min(names.len() - 1));
        let mut end: usize = way.iter().map(|(name, _)| name.len() + 1).sum();
        for (n, name) in names.iter().enumerate().skip(way.len()) {
            end += name.len();
            let (at, layers) = (&path[..end], way.last().map_or(&roots, |(_, layers)| layers));
            end += 1;
            let layers = match merged.look(layers, at)? {
                Standing::Directory(layers) => layers,
                Standing::Nothing => Vec::new(),
                _ if n + 1 == names.len() => return Ok(false),
                _ => Vec::new(),
            };
            if let (Some(top), true) = (layers.first(), n + 1 == names.len())
                && !attributes::is_plain(merged.directory(*top, at)?.as_fd())?
            {
                return Ok(false);
            }
            way.push((name, layers));
        }
    }
    Ok(true)
}

fn place<R: Read>(tree: &mut Tree, entry: &Entry, archive: &mut Archive<R>) -> Result<(), EntryError> {
    let parts = parts(&entry.path)?;
    let Some((name, parents)) = parts.split_last() else {
        return tree.set_root(entry);
    };
    // AUFS' own files, which old Docker layers carry, and all below them.
    if parts
        .iter()
        .any(|part| part.starts_with(b".wh..wh.") && *part != b".wh..wh..opq")
    {
        return Ok(());
    }
    if parents.iter().any(|part| part.starts_with(b".wh.")) {
        return Err(EntryError::Whiteout);
    }
    match name.strip_prefix(b".wh.") {
        Some(b".wh..opq") => tree.set_opaque(parents),
        Some(b"" | b"." | b"..") => Err(EntryError::Whiteout),
        Some(hidden) => tree.add_whiteout(parents, hidden),
        None => tree.add(parents, name, entry, archive),
    }
}

// Both bounds are far above what images hold; deeper trees could be built but never be walked again.
const MAX_DEPTH: usize = 256;
const MAX_PATH: usize = 4095;

/// Splits a path into its parts; a leading slash and single dots mean nothing, and `..` takes back the part before it.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, EntryError> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
        return Err(EntryError::Name);
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|c| *c == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop().ok_or(EntryError::Climbs)?),
            part => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH || parts.iter().any(|part| part.len() > 255) {
        return Err(EntryError::Name);
    }
    Ok(parts)
}

fn shown(path: &[u8]) -> String {
    let text = OsStr::from_bytes(path).to_string_lossy();
    text.chars().take(300).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod stacked_tests;
#[cfg(test)]
mod tests;
