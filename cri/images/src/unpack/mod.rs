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
//! Layers are unpacked each by itself, not on top of each other; a hard link to a file of another layer is refused.

pub mod tar;
mod tree;

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::is_no_space;
use crate::{Limits, PullErrorKind};
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
    /// `..` in its name or in a hard link's target.
    #[error("`..` is not allowed")]
    Climbs,
    /// A name that no Linux file can have.
    #[error("its name is empty, too long, too deep or contains a zero byte")]
    Name,
    /// A file, device or broken symlink where a directory should be.
    #[error("its directory is not one: a file or a broken symlink stands there")]
    Parent,
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

/// Unpacks the tar stream `source` into the empty directory `root`; returns the number of entries. Blocks.
pub fn unpack<R: Read>(
    source: R,
    root: &Path,
    xattrs: OverlayXattrs,
    limits: &Limits,
) -> Result<u64, UnpackError> {
    let mut tree = Tree::open(root, xattrs).map_err(UnpackError::Root)?;
    let mut archive = Archive::new(source);
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > limits.layer_entries {
            return Err(UnpackError::TooManyEntries(limits.layer_entries));
        }
        place(&mut tree, &entry, &mut archive).map_err(|source| UnpackError::Entry {
            path: shown(&entry.path),
            source,
        })?;
    }
    tree.finish().map_err(|(path, source)| UnpackError::Entry {
        path: shown(&path),
        source,
    })?;
    // The digest of the layer covers what comes after the end of the archive, too.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TarError::Read)?;
    Ok(entries)
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

/// Splits a path into its parts; a leading slash and single dots mean nothing.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, EntryError> {
    // Both bounds are far above what images hold; deeper trees could be built but never be walked again.
    const MAX_DEPTH: usize = 256;
    if path.is_empty() || path.len() > 4095 || path.contains(&0) {
        return Err(EntryError::Name);
    }
    let parts: Vec<&[u8]> = path
        .split(|c| *c == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    if parts.contains(&&b".."[..]) {
        return Err(EntryError::Climbs);
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
mod tests;
