//! Header blocks: names and values, compressed with zlib from a dictionary that both sides know.
//!
//! Compression goes on over the whole connection: each block ends with a flush, and the next one builds on it. What
//! comes out of a block is bounded, so that a small frame can't become a large one.

use std::collections::BTreeMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The largest block that is taken, uncompressed, in bytes.
pub const MAX_BLOCK_BYTES: usize = 64 << 10;
/// The most headers in a block.
pub const MAX_HEADERS: usize = 256;

/// The checksum by which zlib names [`dictionary`].
pub const DICTIONARY_ADLER: u32 = 0xe3c6_a7c2;

/// Names and values; names are lower-case.
pub type Headers = BTreeMap<String, String>;

/// Why a block can't be read or written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Not zlib, or another dictionary.
    #[error("the block is not compressed as SPDY/3 says")]
    Compression,
    /// Too large.
    #[error("the block is larger than {MAX_BLOCK_BYTES} bytes or {MAX_HEADERS} headers")]
    TooLarge,
    /// The lengths in it don't add up.
    #[error("the block ends within a header")]
    Truncated,
    /// Not text.
    #[error("a header is not UTF-8")]
    NotText,
}

/// Reads the blocks of one direction of a connection.
#[derive(Debug)]
pub struct Inflater {
    zlib: Decompress,
    dictionary: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Inflater {
    /// For a new connection.
    pub fn new() -> Self {
        Self {
            zlib: Decompress::new(true),
            dictionary: dictionary(),
        }
    }

    /// Reads the next block.
    ///
    /// # Errors
    /// After one the connection can't go on.
    pub fn block(&mut self, compressed: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.inflate(compressed)?)
    }

    fn inflate(&mut self, mut compressed: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut plain = Vec::with_capacity(1 << 10);
        // Each round takes input, gives output, or ends: so their number is bounded by the two lengths.
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= MAX_BLOCK_BYTES {
                    return Err(HeaderError::TooLarge);
                }
                plain.reserve(plain.len());
            }
            let (taken, given) = (self.zlib.total_in(), plain.len());
            let result = self
                .zlib
                .decompress_vec(compressed, &mut plain, FlushDecompress::Sync);
            let taken = (self.zlib.total_in() - taken) as usize;
            compressed = compressed.get(taken..).ok_or(HeaderError::Compression)?;
            match result {
                Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Ok(_) if compressed.is_empty() && plain.len() < plain.capacity() => return Ok(plain),
                Ok(_) if taken > 0 || plain.len() > given => {}
                Ok(_) if plain.len() == plain.capacity() => {}
                Ok(_) => return Err(HeaderError::Compression),
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ADLER) => {
                    self.zlib
                        .set_dictionary(&self.dictionary)
                        .map_err(|_| HeaderError::Compression)?;
                }
                Err(_) => return Err(HeaderError::Compression),
            }
        }
    }
}

/// Writes the blocks of one direction of a connection.
#[derive(Debug)]
pub struct Deflater {
    zlib: Compress,
}

impl Default for Deflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Deflater {
    /// For a new connection.
    pub fn new() -> Self {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary())
            .expect("a new zlib stream takes a dictionary");
        Self { zlib }
    }

    /// Writes the next block.
    ///
    /// # Errors
    /// When the headers are too large.
    pub fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, HeaderError> {
        let plain = encode(headers)?;
        // zlib's own bound for one flush, and room for the stream's head.
        let mut compressed = Vec::with_capacity(plain.len() + plain.len() / 8 + 128);
        let before = self.zlib.total_in();
        self.zlib
            .compress_vec(&plain, &mut compressed, FlushCompress::Sync)
            .map_err(|_| HeaderError::Compression)?;
        if self.zlib.total_in() - before != plain.len() as u64 || compressed.len() == compressed.capacity() {
            return Err(HeaderError::Compression);
        }
        Ok(compressed)
    }
}

fn parse(plain: &[u8]) -> Result<Headers, HeaderError> {
    fn word(rest: &mut &[u8]) -> Result<usize, HeaderError> {
        let (word, tail) = rest.split_first_chunk::<4>().ok_or(HeaderError::Truncated)?;
        *rest = tail;
        Ok(u32::from_be_bytes(*word) as usize)
    }
    fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, HeaderError> {
        let len = word(rest)?;
        let (text, tail) = rest.split_at_checked(len).ok_or(HeaderError::Truncated)?;
        *rest = tail;
        str::from_utf8(text).map_err(|_| HeaderError::NotText)
    }
    let mut rest = plain;
    let count = word(&mut rest)?;
    if count > MAX_HEADERS {
        return Err(HeaderError::TooLarge);
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut rest)?.to_ascii_lowercase();
        headers.insert(name, text(&mut rest)?.to_owned());
    }
    Ok(headers)
}

fn encode(headers: &Headers) -> Result<Vec<u8>, HeaderError> {
    let word = |n: usize| {
        u32::try_from(n)
            .map(u32::to_be_bytes)
            .map_err(|_| HeaderError::TooLarge)
    };
    let mut plain = Vec::new();
    plain.extend(word(headers.len())?);
    for (name, value) in headers {
        for text in [name, value] {
            plain.extend(word(text.len())?);
            plain.extend(text.as_bytes());
        }
    }
    if plain.len() > MAX_BLOCK_BYTES || headers.len() > MAX_HEADERS {
        return Err(HeaderError::TooLarge);
    }
    Ok(plain)
}

/// Words of the dictionary that carry their length before them.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
keep-alive origin";

/// The dictionary's plain tail.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary of SPDY/3 (section 2.6.10.1): a fact of the interface, checked by its checksum.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let len = u32::try_from(word.len()).unwrap_or(0);
        bytes.extend(len.to_be_bytes());
        bytes.extend(word.replace('_', " ").as_bytes());
    }
    bytes.extend(TAIL.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (a + b) % 65521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_one_that_everybody_has() {
        assert_eq!(dictionary().len(), 1423);
        assert_eq!(adler32(&dictionary()), DICTIONARY_ADLER);
    }

    #[test]
    fn a_block_names_the_dictionary() {
        let block = Deflater::new().block(&Headers::new()).unwrap();
        assert_eq!(block[2..6], DICTIONARY_ADLER.to_be_bytes());
    }

    #[test]
    fn blocks_build_on_each_other() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let mut sizes = Vec::new();
        for stream in 0..100 {
            let headers = Headers::from([
                ("streamtype".to_owned(), "stdout".to_owned()),
                ("requestid".to_owned(), stream.to_string()),
            ]);
            let block = deflater.block(&headers).unwrap();
            sizes.push(block.len());
            assert_eq!(inflater.block(&block).unwrap(), headers);
        }
        assert!(sizes[50] < sizes[0], "{sizes:?}");
    }

    #[test]
    fn large_blocks_pass_and_larger_ones_are_refused() {
        let with = |len: usize| Headers::from([("x".to_owned(), "y".repeat(len))]);
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let large = with(60_000);
        assert_eq!(inflater.block(&deflater.block(&large).unwrap()).unwrap(), large);
        assert_eq!(
            deflater.block(&with(MAX_BLOCK_BYTES)).unwrap_err(),
            HeaderError::TooLarge
        );

        // A bomb: many zeros in few bytes.
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&dictionary()).unwrap();
        let mut bomb = Vec::with_capacity(64 << 10);
        zlib.compress_vec(&vec![0; 10 << 20], &mut bomb, FlushCompress::Sync)
            .unwrap();
        assert_eq!(inflater_error(&bomb), HeaderError::TooLarge);
    }

    fn inflater_error(block: &[u8]) -> HeaderError {
        Inflater::new().block(block).unwrap_err()
    }

    #[test]
    fn broken_blocks_are_refused() {
        assert_eq!(inflater_error(b"not zlib"), HeaderError::Compression);
        let mut without_dictionary = Vec::with_capacity(100);
        Compress::new(Compression::fast(), true)
            .compress_vec(&[0, 0, 0, 9], &mut without_dictionary, FlushCompress::Sync)
            .unwrap();
        assert_eq!(inflater_error(&without_dictionary), HeaderError::Truncated);
        assert_eq!(
            parse(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]),
            Err(HeaderError::NotText)
        );
        assert_eq!(parse(&[0xff; 4]), Err(HeaderError::TooLarge));
    }
}
