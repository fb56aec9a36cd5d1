//! Reads tar streams: ustar, GNU and PAX, from a source that may be hostile.
//!
//! Pure: bytes in, entries out. It is our own because it must have bounds that the usual readers lack (a long name or
//! a PAX header is read into memory, so it can't be longer than [`MAX_EXTENSION`]), must give PAX extended attributes
//! and both forms of sparse files, and must never guess: a header with a wrong checksum ends the reading.
//!
//! Sources: POSIX pax interchange format, GNU tar manual ("Basic Tar Format", "Storing Sparse Files").

mod fields;
mod pax;
mod sparse;

use std::io::{self, Read};

use fields::{header_path, number, signed, until_nul};
use pax::Pax;

/// The longest long name, long link or PAX header.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// The most data regions of one sparse file.
const MAX_REGIONS: usize = 1 << 18;
const BLOCK: usize = 512;

/// A stream that isn't a sound tar.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The source failed, or ended too early.
    #[error("failed to read the archive")]
    Read(#[from] io::Error),
    /// The header is not one.
    #[error("the archive has a damaged header at byte {0}")]
    Header(u64),
    /// A field that can't be right.
    #[error("the archive has an invalid {field} at byte {at}")]
    Field {
        /// Which.
        field: &'static str,
        /// Where its header begins.
        at: u64,
    },
    /// Larger than allowed.
    #[error("the archive has an extended header of {size} bytes at byte {at}, more than {MAX_EXTENSION}")]
    Extension {
        /// How large.
        size: u64,
        /// Where.
        at: u64,
    },
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file with content.
    File,
    /// Another name of an earlier entry.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Something else, by its type byte.
    Other(u8),
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its path, as written.
    pub path: Vec<u8>,
    /// What a link points to, as written.
    pub link: Vec<u8>,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Device number: major and minor.
    pub device: (u32, u32),
    /// Bytes of the file as it will be, holes included.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data of a sparse file goes: offset and length; `None` when the file has no holes.
    pub regions: Option<Vec<(u64, u64)>>,
}

/// Reads entries one after the other.
pub struct Archive<R> {
    source: R,
    /// Bytes read so far.
    position: u64,
    /// Bytes of the current entry's data that weren't read yet.
    remaining: u64,
    /// Bytes after them up to the next block.
    padding: u64,
    globals: Pax,
}

impl<R: Read> Archive<R> {
    /// Reads the archive that `source` holds.
    pub fn new(source: R) -> Self {
        Self {
            source,
            position: 0,
            remaining: 0,
            padding: 0,
            globals: Pax::default(),
        }
    }

    /// The next entry; `None` at the end of the archive. Skips what wasn't read of the one before.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let (mut name, mut link, mut pax) = (None, None, self.globals.clone());
        // Each turn reads at least one block, and the stream is bounded by its reader.
        loop {
            self.skip_data()?;
            let at = self.position;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            let size = number(&header[124..136]).ok_or(TarError::Field { field: "size", at })?;
            match header[156] {
                b'L' => name = Some(until_nul(&self.read_extension(size, at)?).to_vec()),
                b'K' => link = Some(until_nul(&self.read_extension(size, at)?).to_vec()),
                b'x' => {
                    let bytes = self.read_extension(size, at)?;
                    pax.read(&bytes).ok_or(TarError::Field {
                        field: "PAX header",
                        at,
                    })?;
                }
                b'g' => {
                    let bytes = self.read_extension(size, at)?;
                    self.globals.read(&bytes).ok_or(TarError::Field {
                        field: "PAX header",
                        at,
                    })?;
                    pax = self.globals.clone();
                }
                _ => return self.finish_entry(&header, at, name, link, pax).map(Some),
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.source.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        self.remaining -= read as u64;
        Ok(read)
    }

    /// The source, for what comes after the end of the archive.
    pub fn into_inner(self) -> R {
        self.source
    }

    fn finish_entry(
        &mut self,
        header: &[u8; BLOCK],
        at: u64,
        name: Option<Vec<u8>>,
        link: Option<Vec<u8>>,
        pax: Pax,
    ) -> Result<Entry, TarError> {
        let field = |field| TarError::Field { field, at };
        let id = |bytes: &[u8], what| {
            number(bytes)
                .and_then(|n| u32::try_from(n).ok())
                .ok_or(TarError::Field { field: what, at })
        };
        let stored = match pax.size {
            Some(size) => size,
            None => number(&header[124..136]).ok_or_else(|| field("size"))?,
        };
        let path = pax
            .sparse
            .name
            .clone()
            .or(pax.path.clone())
            .or(name)
            .unwrap_or_else(|| header_path(header));
        let kind = match header[156] {
            // Before POSIX a directory was a file with a slash at the end.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        };
        // Links, directories, devices and pipes have no data, whatever their size says: so the tools that make and read
        // images see it.
        let stored = if (b'1'..=b'6').contains(&header[156]) {
            0
        } else {
            stored
        };
        self.remaining = stored;
        self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => (
                id(&header[329..337], "device number")?,
                id(&header[337..345], "device number")?,
            ),
            _ => (0, 0),
        };
        let mut entry = Entry {
            kind,
            path,
            link: pax
                .link
                .or(link)
                .unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
            mode: id(&header[100..108], "mode")? & 0o7777,
            uid: match pax.uid {
                Some(uid) => uid,
                None => id(&header[108..116], "uid")?,
            },
            gid: match pax.gid {
                Some(gid) => gid,
                None => id(&header[116..124], "gid")?,
            },
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (signed(&header[136..148]).ok_or_else(|| field("mtime"))?, 0),
            },
            device,
            size: if kind == Kind::File { stored } else { 0 },
            xattrs: pax.xattrs,
            regions: None,
        };
        // The kernel reads this ID as "leave it".
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(field("owner"));
        }
        if header[156] == b'S' {
            self.read_gnu_sparse(header, at, &mut entry)?;
        } else if kind == Kind::File && (pax.sparse.is_v1 || pax.sparse.real_size.is_some()) {
            self.read_pax_sparse(pax.sparse, at, &mut entry)?;
        }
        Ok(entry)
    }

    /// Reads a header block; `None` at a block of zeros or where the stream ends between entries.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let at = self.position;
        self.position += BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(n, byte)| {
                if (148..156).contains(&n) {
                    u64::from(b' ')
                } else {
                    u64::from(*byte)
                }
            })
            .sum();
        if number(&block[148..156]) != Some(sum) {
            return Err(TarError::Header(at));
        }
        Ok(Some(block))
    }

    fn read_extension(&mut self, size: u64, at: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::Extension { size, at });
        }
        let mut bytes = vec![0; usize::try_from(size).expect("bounded above")];
        self.source.read_exact(&mut bytes)?;
        self.position += size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(bytes)
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let skip = self.remaining + self.padding;
        let skipped = io::copy(&mut (&mut self.source).take(skip), &mut io::sink())?;
        if skipped < skip {
            return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        self.position += skip;
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
