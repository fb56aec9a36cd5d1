//! Layers: tar archives whose bytes depend on nothing but what is put into them.

use std::io::Write;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// A layer under construction. Entries keep the order in which they are added; everything belongs to root.
pub(crate) struct Layer {
    tar: Builder<Vec<u8>>,
}

impl Layer {
    pub(crate) fn new() -> Self {
        Self {
            tar: Builder::new(Vec::new()),
        }
    }

    pub(crate) fn dir(mut self, path: &str, mode: u32) -> Result<Self> {
        let mut header = header(EntryType::Directory, mode, 0);
        self.tar
            .append_data(&mut header, format!("{path}/"), std::io::empty())?;
        Ok(self)
    }

    pub(crate) fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Result<Self> {
        let mut header = header(EntryType::Regular, mode, content.len() as u64);
        self.tar.append_data(&mut header, path, content)?;
        Ok(self)
    }

    pub(crate) fn hard_link(mut self, path: &str, to: &str) -> Result<Self> {
        self.tar
            .append_link(&mut header(EntryType::Link, 0o755, 0), path, to)?;
        Ok(self)
    }

    pub(crate) fn symlink(mut self, path: &str, to: &str) -> Result<Self> {
        self.tar
            .append_link(&mut header(EntryType::Symlink, 0o777, 0), path, to)?;
        Ok(self)
    }

    /// A file whose name is taken as it is, `..` and all: for images that must be refused.
    pub(crate) fn hostile_file(mut self, path: &str, content: &[u8]) -> Result<Self> {
        let mut header = header(EntryType::Regular, 0o644, content.len() as u64);
        let gnu = header.as_gnu_mut().context("the header isn't GNU's")?;
        gnu.name
            .get_mut(..path.len())
            .context("the name is too long")?
            .copy_from_slice(path.as_bytes());
        header.set_cksum();
        self.tar.append(&header, content)?;
        Ok(self)
    }

    /// The archive's bytes.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// gzip without a time stamp.
pub(crate) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    out.write_all(bytes)?;
    Ok(out.finish()?)
}

/// Zstandard.
pub(crate) fn zstd(bytes: &[u8]) -> Result<Vec<u8>> {
    Ok(::zstd::bulk::compress(bytes, 3)?)
}
