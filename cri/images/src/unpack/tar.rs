//! Reads tar streams: ustar, GNU and PAX, from a source that may be hostile.
//!
//! Pure: bytes in, entries out. It is our own because it must have bounds that the usual readers lack (a long name or
//! a PAX header is read into memory, so it can't be longer than [`MAX_EXTENSION`]), must give PAX extended attributes
//! and both forms of sparse files, and must never guess: a header with a wrong checksum ends the reading.
//!
//! Sources: POSIX pax interchange format, GNU tar manual ("Basic Tar Format", "Storing Sparse Files").

use std::io::{self, Read};

/// The longest long name, long link or PAX header.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// The most extended attributes of one entry.
const MAX_XATTRS: usize = 1024;
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

/// What PAX headers say about an entry.
#[derive(Debug, Clone, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: SparseFields,
}

#[derive(Debug, Clone, Default)]
struct SparseFields {
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    is_v1: bool,
    regions: Vec<(u64, u64)>,
    /// An offset whose length is still to come (version 0.0).
    offset: Option<u64>,
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
        // A hard link may carry the content again; only a file's is of use, but all has to be skipped.
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

    /// The sparse map of GNU's old format: four regions in the header, more in blocks after it.
    fn read_gnu_sparse(&mut self, header: &[u8; BLOCK], at: u64, entry: &mut Entry) -> Result<(), TarError> {
        let bad = || TarError::Field {
            field: "sparse map",
            at,
        };
        let mut regions = Vec::new();
        let add = |bytes: &[u8], regions: &mut Vec<(u64, u64)>| -> Result<(), TarError> {
            for pair in bytes.chunks_exact(24) {
                if pair[0] != 0 && pair[12] != 0 {
                    let region = number(&pair[..12]).zip(number(&pair[12..])).ok_or_else(bad)?;
                    regions.push(region);
                }
            }
            if regions.len() > MAX_REGIONS {
                Err(bad())
            } else {
                Ok(())
            }
        };
        add(&header[386..482], &mut regions)?;
        let mut more = header[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            self.source.read_exact(&mut block)?;
            self.position += BLOCK as u64;
            add(&block[..504], &mut regions)?;
            more = block[504] != 0;
        }
        let real_size = number(&header[483..495]).ok_or_else(bad)?;
        self.set_regions(regions, real_size, at, entry)
    }

    /// The sparse map of PAX: versions 0.0 and 0.1 have it in the header, 1.0 at the beginning of the data.
    fn read_pax_sparse(
        &mut self,
        mut sparse: SparseFields,
        at: u64,
        entry: &mut Entry,
    ) -> Result<(), TarError> {
        let bad = || TarError::Field {
            field: "sparse map",
            at,
        };
        if sparse.is_v1 {
            let mut numbers = Vec::new();
            let mut wanted = 1;
            let mut text = Vec::new();
            // The map is decimal numbers, one a line, filled up to a whole block.
            while numbers.len() < wanted {
                let mut block = [0; BLOCK];
                let mut filled = 0;
                while filled < BLOCK {
                    match self.read_data(&mut block[filled..])? {
                        0 => return Err(bad()),
                        read => filled += read,
                    }
                }
                for byte in block {
                    if byte != b'\n' {
                        text.push(byte);
                        continue;
                    }
                    if numbers.len() == wanted {
                        break;
                    }
                    let number = decimal(&text).ok_or_else(bad)?;
                    text.clear();
                    if numbers.is_empty() {
                        let count = usize::try_from(number)
                            .ok()
                            .filter(|c| *c <= MAX_REGIONS)
                            .ok_or_else(bad)?;
                        wanted = 1 + 2 * count;
                    }
                    numbers.push(number);
                }
                if text.len() > 2 * BLOCK {
                    return Err(bad());
                }
            }
            sparse.regions = numbers[1..]
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect();
        }
        let real_size = sparse.real_size.ok_or_else(bad)?;
        self.set_regions(sparse.regions, real_size, at, entry)
    }

    /// Takes a map when it is in order, within the file, and as long as the data.
    fn set_regions(
        &mut self,
        regions: Vec<(u64, u64)>,
        size: u64,
        at: u64,
        entry: &mut Entry,
    ) -> Result<(), TarError> {
        let bad = || TarError::Field {
            field: "sparse map",
            at,
        };
        let (mut end, mut total) = (0_u64, 0_u64);
        for (offset, length) in &regions {
            if *offset < end {
                return Err(bad());
            }
            end = offset
                .checked_add(*length)
                .filter(|end| *end <= size)
                .ok_or_else(bad)?;
            total += length;
        }
        if total != self.remaining {
            return Err(bad());
        }
        entry.size = size;
        entry.regions = Some(regions);
        Ok(())
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

impl Pax {
    /// Takes in the records of one header: `length key=value\n`, the length counting all of it.
    fn read(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() && bytes[0] != 0 {
            let space = bytes.iter().take(20).position(|c| *c == b' ')?;
            let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|c| *c == b'=')?;
            self.set(&record[..equals], &record[equals + 1..])?;
            bytes = &bytes[length..];
        }
        Some(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        const XATTR: &[u8] = b"SCHILY.xattr.";
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(u32::try_from(decimal(value)?).ok()?),
            b"gid" => self.gid = Some(u32::try_from(decimal(value)?).ok()?),
            b"mtime" => self.mtime = Some(timestamp(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.major" => self.sparse.is_v1 = value == b"1",
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(decimal(value)?),
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => {
                self.sparse
                    .regions
                    .push((self.sparse.offset.take()?, decimal(value)?));
            }
            b"GNU.sparse.map" => {
                let numbers = value
                    .split(|c| *c == b',')
                    .map(decimal)
                    .collect::<Option<Vec<_>>>()?;
                self.sparse.regions = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        (self.xattrs.len() <= MAX_XATTRS && self.sparse.regions.len() <= MAX_REGIONS).then_some(())
    }
}

/// The path in the header: with ustar's prefix when there is one.
fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    // GNU's magic is "ustar  "; it uses the prefix field for other things.
    let prefix = if &header[257..263] == b"ustar\0" {
        until_nul(&header[345..500])
    } else {
        b""
    };
    if prefix.is_empty() {
        name.to_vec()
    } else {
        [prefix, b"/", name].concat()
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|c| *c == 0).unwrap_or(bytes.len())]
}

/// A number field that can't be negative.
fn number(bytes: &[u8]) -> Option<u64> {
    signed(bytes).and_then(|n| u64::try_from(n).ok())
}

/// A number field: octal digits, or big-endian binary with the top bit of the first byte set.
fn signed(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    if first & 0x80 != 0 {
        // Two's complement below the marker bit; the second highest bit is the sign.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        value = value << 6 | i128::from(first & 0x3f);
        for byte in &bytes[1..] {
            value = value << 8 | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    let text: Vec<u8> = bytes.iter().copied().take_while(|c| *c != 0).collect();
    let text = text.trim_ascii();
    text.iter().try_fold(0_i64, |value, c| match c {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(c - b'0')),
        _ => None,
    })
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`.
fn timestamp(bytes: &[u8]) -> Option<(i64, u32)> {
    let (negative, bytes) = match bytes.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, bytes),
    };
    let (whole, fraction) = match bytes.iter().position(|c| *c == b'.') {
        Some(dot) => (&bytes[..dot], &bytes[dot + 1..]),
        None => (bytes, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0, |nanos: u32, c| nanos * 10 + u32::from(c - b'0'));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
        let mut archive = Archive::new(bytes);
        let mut entries = Vec::new();
        while let Some(entry) = archive.next_entry()? {
            let mut data = Vec::new();
            let mut buffer = [0; 100];
            loop {
                match archive.read_data(&mut buffer)? {
                    0 => break,
                    read => data.extend_from_slice(&buffer[..read]),
                }
            }
            entries.push((entry, data));
        }
        Ok(entries)
    }

    #[test]
    fn numbers_of_all_forms() {
        assert_eq!(signed(b"0000644\0"), Some(0o644));
        assert_eq!(signed(b" 644 \0"), Some(0o644));
        assert_eq!(signed(b"\0\0\0\0"), Some(0));
        assert_eq!(signed(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(2 << 32));
        assert_eq!(
            signed(&[
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ]),
            Some(-1)
        );
        assert_eq!(signed(b"9"), None);
        assert_eq!(timestamp(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(timestamp(b"-12.25"), Some((-13, 750_000_000)));
        assert_eq!(timestamp(b"1.x"), None);
    }

    #[test]
    fn names_longer_than_a_header_and_attributes() {
        let long = "d/".repeat(120) + "file";
        let mut builder = tar::Builder::new(Vec::new());
        builder
            .append_pax_extensions([
                ("SCHILY.xattr.user.a", &b"v=1\n"[..]),
                ("mtime", b"7.25"),
                ("uid", b"70000"),
            ])
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o4755);
        builder.append_data(&mut header, "short", &b"hello"[..]).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "link", "x".repeat(300)).unwrap();
        let entries = entries(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(entries[0].0.xattrs, [(b"user.a".to_vec(), b"v=1\n".to_vec())]);
        assert_eq!(
            (entries[0].0.mtime, entries[0].0.uid, entries[0].0.mode),
            ((7, 250_000_000), 70000, 0o4755)
        );
        assert_eq!(entries[0].1, b"hello");
        assert_eq!(
            (&entries[1].0.path[..], &entries[1].1[..]),
            (long.as_bytes(), &b"abc"[..])
        );
        assert!(entries[1].0.xattrs.is_empty());
        assert_eq!((entries[2].0.kind, entries[2].0.link.len()), (Kind::Symlink, 300));
    }

    #[test]
    fn a_huge_extension_is_refused_before_it_is_read() {
        for kind in [b'L', b'K', b'x', b'g'] {
            let mut header = tar::Header::new_gnu();
            header.set_size(MAX_EXTENSION + 1);
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_cksum();
            assert!(matches!(
                entries(header.as_bytes()),
                Err(TarError::Extension { .. })
            ));
        }
    }

    #[test]
    fn damage_and_truncation_are_errors() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(1000);
        builder.append_data(&mut header, "a", &[7; 1000][..]).unwrap();
        let whole = builder.into_inner().unwrap();
        assert_eq!(entries(&whole).unwrap().len(), 1);
        for cut in [1, 511, 513, 1024, 1535] {
            assert!(matches!(entries(&whole[..cut]), Err(TarError::Read(_))), "{cut}");
        }
        let mut damaged = whole;
        damaged[0] ^= 1;
        assert!(matches!(entries(&damaged), Err(TarError::Header(0))));
    }

    #[test]
    fn sparse_files_of_gnu_tar_in_all_formats() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("holes")).unwrap();
        for n in 0..40_u64 {
            std::os::unix::fs::FileExt::write_at(&file, &[b'x'; 4096], n * 65536).unwrap();
        }
        file.set_len(40 * 65536 + 1).unwrap();
        for format in [
            &["--format=gnu"][..],
            &["--format=pax", "--sparse-version=0.0"],
            &["--sparse-version=0.1", "--format=pax"],
            &["--sparse-version=1.0", "--format=pax"],
        ] {
            let output = std::process::Command::new("tar")
                .args(["-cS", "-f", "-"])
                .args(format)
                .arg("-C")
                .arg(dir.path())
                .arg("holes")
                .output()
                .unwrap();
            assert!(output.status.success());
            let entries = entries(&output.stdout).unwrap();
            let (entry, data) = &entries[0];
            assert_eq!(
                (&entry.path[..], entry.size),
                (&b"holes"[..], 40 * 65536 + 1),
                "{format:?}"
            );
            let regions = entry.regions.as_ref().unwrap();
            assert!(
                regions.iter().filter(|r| r.1 == 4096).count() >= 40,
                "{format:?}: {regions:?}"
            );
            assert!(data.len() >= 40 * 4096 && data.iter().filter(|b| **b == b'x').count() == 40 * 4096);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            flips in proptest::collection::vec((0_usize..512, any::<u8>()), 0..8),
        ) {
            let _ = entries(&bytes);
            // Close to a good archive, with a good checksum, more is reached.
            let mut header = tar::Header::new_gnu();
            for (at, value) in flips {
                header.as_mut_bytes()[at] = value;
            }
            header.set_cksum();
            let _ = entries(&[header.as_bytes(), &bytes[..]].concat());
        }
    }
}
