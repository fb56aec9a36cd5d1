//! A container's log file, block by block, through its rotations.
//!
//! The kubelet rotates a log by renaming it and telling the runtime to open it again. So at the end of the file a reader
//! looks whether the path names another file by now; if so, it reads the old one to its end once more, since the runtime
//! may have written in between, and goes on with the new one.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::line::Formatter;
use super::options::LogOptions;

/// How much is read at once.
const BLOCK: usize = 64 << 10;
/// The longest line that is taken; of a longer one nothing is shown. Runtimes split at 16 KiB.
const MAX_LINE: usize = 1 << 20;

/// Where a reader is.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) enum Progress {
    /// There may be more at once.
    More,
    /// At the end of what is there.
    CaughtUp,
    /// As many bytes as were asked for are there.
    Full,
}

/// Reads a log.
#[derive(Debug)]
pub(in crate::server) struct LogFile {
    path: PathBuf,
    file: File,
    position: u64,
    /// The path names another file: this one is read for the last time.
    replaced: bool,
    /// A line without its end.
    unfinished: Vec<u8>,
    /// In the middle of a line that is too long.
    skipping: bool,
    formatter: Formatter,
}

impl LogFile {
    /// Opens a log at its beginning, or at the last lines that are asked for.
    pub(in crate::server) fn open(path: &Path, options: &LogOptions) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let position = match options.tail_lines {
            None => 0,
            Some(lines) => tail_start(&mut file, lines)?,
        };
        file.seek(SeekFrom::Start(position))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            position,
            replaced: false,
            unfinished: Vec::new(),
            skipping: false,
            formatter: Formatter::new(options),
        })
    }

    /// Reads one block and appends what the client gets of it.
    pub(in crate::server) fn read(&mut self, out: &mut Vec<u8>) -> io::Result<Progress> {
        if self.formatter.is_full() {
            return Ok(Progress::Full);
        }
        let mut block = vec![0; BLOCK];
        let count = self.file.read(&mut block)?;
        if count == 0 {
            return self.at_end(out);
        }
        self.position += count as u64;
        self.take(&block[..count], out);
        Ok(if self.formatter.is_full() {
            Progress::Full
        } else {
            Progress::More
        })
    }

    fn at_end(&mut self, out: &mut Vec<u8>) -> io::Result<Progress> {
        let own = self.file.metadata()?;
        if own.len() < self.position {
            // Truncated: begins anew.
            self.position = self.file.seek(SeekFrom::Start(0))?;
            self.unfinished.clear();
            return Ok(Progress::More);
        }
        if self.replaced {
            // A rotation may come between a rename and the file's return.
            let Ok(next) = File::open(&self.path) else {
                return Ok(Progress::CaughtUp);
            };
            self.finish(out);
            self.file = next;
            self.position = 0;
            self.replaced = false;
            return Ok(Progress::More);
        }
        match std::fs::metadata(&self.path) {
            Ok(named) if (named.dev(), named.ino()) != (own.dev(), own.ino()) => {
                self.replaced = true;
                Ok(Progress::More)
            }
            _ => Ok(Progress::CaughtUp),
        }
    }

    fn take(&mut self, block: &[u8], out: &mut Vec<u8>) {
        for piece in block.split_inclusive(|byte| *byte == b'\n') {
            let whole = piece.ends_with(b"\n");
            if self.skipping {
                self.skipping = !whole;
            } else if self.unfinished.len() + piece.len() > MAX_LINE {
                self.unfinished = Vec::new();
                self.skipping = !whole;
            } else if whole && self.unfinished.is_empty() {
                self.formatter.add(piece, out);
            } else {
                self.unfinished.extend_from_slice(piece);
                if whole {
                    self.formatter.add(&self.unfinished, out);
                    self.unfinished.clear();
                }
            }
            if self.formatter.is_full() {
                return;
            }
        }
    }

    /// Appends the last line, where it has no end: nothing will follow.
    pub(in crate::server) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.unfinished.is_empty() {
            self.formatter.add(&self.unfinished, out);
            self.unfinished.clear();
        }
    }
}

/// Where the last `lines` lines begin.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut block = vec![0; BLOCK];
    let mut seen = 0;
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let size = usize::try_from(end - start).unwrap_or(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block[..size])?;
        for (index, byte) in block[..size].iter().enumerate().rev() {
            if *byte == b'\n' {
                seen += 1;
                if seen > lines {
                    return Ok(start + index as u64 + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}
