//! A container's CRI log: `2016-10-06T00:17:09.669794202Z stdout F the line`, one record a line.
//!
//! Output is cut by a [`Splitter`] per stream and written by one [`LogFile`] per container. Writes gather in a
//! buffer that all containers share and go to the file before the loop turns to anything else, so between two events
//! the file ends with a whole record. That is what makes rotation lossless: the kubelet renames the file, the shim
//! opens the path anew, and the next record is the first of the new file.
//!
//! A disk that takes no more must not stop the container: what can't be written is dropped and counted, a torn
//! record is cut off again, and once a write works, a record says how many were lost.

mod split;
mod stamp;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

pub(crate) use split::{Record, Splitter};
pub(crate) use stamp::{now, stamp};

/// How much is gathered before a write.
const GATHER_BYTES: usize = 16 << 10;

/// The buffer in which records gather; one for all containers, empty between events.
#[derive(Debug)]
pub(crate) struct Gather {
    bytes: Vec<u8>,
}

impl Gather {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(GATHER_BYTES),
        }
    }
}

/// Which of the container's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout,
    Stderr,
}

impl Source {
    fn tag(self) -> &'static [u8] {
        match self {
            Self::Stdout => b" stdout ",
            Self::Stderr => b" stderr ",
        }
    }
}

/// One container's log file.
#[derive(Debug)]
pub(crate) struct LogFile<F = File> {
    path: PathBuf,
    file: F,
    /// Records dropped since a write last worked.
    lost: u64,
    /// Records whose bytes are, at least partly, in the buffer.
    gathered: u64,
    /// Bytes that were written since a record last ended in the file.
    torn: u64,
    last_error: Option<io::Error>,
}

/// A file that can take back its last bytes.
pub(crate) trait Rewind: Write {
    /// Cuts off the last `bytes`.
    fn cut(&mut self, bytes: u64) -> io::Result<()>;
}

impl Rewind for File {
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        let len = self.metadata()?.len();
        self.set_len(len.saturating_sub(bytes))
    }
}

fn open(path: &Path) -> io::Result<File> {
    // The kubelet's log folder can hold nothing but regular files; a pipe left there must not block the shim.
    let flags = nix::libc::O_CLOEXEC | nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).custom_flags(flags);
    options.open(path)
}

impl LogFile {
    /// Opens the log, keeping what it holds.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(Self::over(path, file))
    }

    /// Opens the path anew; keeps the old file when that fails.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.torn = 0;
        Ok(())
    }
}

impl<F: Rewind> LogFile<F> {
    fn over(path: PathBuf, file: F) -> Self {
        Self {
            path,
            file,
            lost: 0,
            gathered: 0,
            torn: 0,
            last_error: None,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a record.
    pub(crate) fn add(&mut self, gather: &mut Gather, source: Source, record: Record<'_>) {
        if self.lost > 0 && self.gathered == 0 {
            // Whether this gets through decides whether the count starts anew; see `flush`.
            let reason = self
                .last_error
                .as_ref()
                .map_or(String::new(), |e| format!(": {e}"));
            let notice = format!("[{} records of this log were lost{reason}]", self.lost);
            self.put(gather, Source::Stderr, &[notice.as_bytes()], true);
        }
        self.put(gather, source, &record.parts, record.whole);
    }

    fn put(&mut self, gather: &mut Gather, source: Source, parts: &[&[u8]], whole: bool) {
        let len: usize = parts.iter().map(|p| p.len()).sum::<usize>() + stamp::STAMP_BYTES + 12;
        if !gather.bytes.is_empty() && gather.bytes.len() + len > GATHER_BYTES {
            self.flush(gather);
        }
        self.gathered += 1;
        gather.bytes.extend_from_slice(&stamp(now()));
        gather.bytes.extend_from_slice(source.tag());
        gather.bytes.extend_from_slice(if whole { b"F " } else { b"P " });
        for part in parts {
            gather.bytes.extend_from_slice(part);
        }
        gather.bytes.push(b'\n');
    }

    /// Writes what has gathered. Says whether the log went from working to not, or back.
    pub(crate) fn flush(&mut self, gather: &mut Gather) -> Option<LogChange> {
        let records = std::mem::take(&mut self.gathered);
        if records == 0 {
            return None;
        }
        let was_lost = self.lost;
        let (ended, result) = self.write(&gather.bytes);
        gather.bytes.clear();
        gather.bytes.shrink_to(GATHER_BYTES);
        match result {
            Ok(()) => {
                self.lost = 0;
                self.last_error = None;
                (was_lost > 0).then_some(LogChange::Works { lost: was_lost })
            }
            Err(error) => {
                self.lost = match (was_lost, ended) {
                    (0, _) | (_, 1..) => records - ended,
                    // The notice, the first of these, isn't a record of the container.
                    (lost, 0) => lost + records - 1,
                };
                let change = (was_lost == 0).then(|| LogChange::Fails(error.to_string()));
                self.last_error = Some(error);
                change
            }
        }
    }

    /// Writes; says how many records got through whole.
    fn write(&mut self, mut bytes: &[u8]) -> (u64, io::Result<()>) {
        let mut ended = 0;
        if self.torn > 0 {
            if let Err(error) = self.file.cut(self.torn) {
                return (ended, Err(error));
            }
            self.torn = 0;
        }
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return (ended, Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    let (done, rest) = bytes.split_at(written);
                    let since_end = done.iter().rev().position(|b| *b == b'\n');
                    self.torn = since_end.map_or(self.torn + written as u64, |n| n as u64);
                    ended += done.iter().filter(|b| **b == b'\n').count() as u64;
                    bytes = rest;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if self.torn > 0 && self.file.cut(self.torn).is_ok() {
                        self.torn = 0;
                    }
                    return (ended, Err(error));
                }
            }
        }
        (ended, Ok(()))
    }
}

/// A log that began or ceased to fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LogChange {
    /// Records are being dropped now.
    Fails(String),
    /// Records are written again.
    Works {
        /// How many were dropped meanwhile.
        lost: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room - self.bytes.len());
            if n == 0 {
                return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
            }
            self.bytes.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Rewind for Disk {
        fn cut(&mut self, bytes: u64) -> io::Result<()> {
            let len = self.bytes.len() - usize::try_from(bytes).unwrap();
            self.bytes.truncate(len);
            Ok(())
        }
    }

    fn log(room: usize) -> LogFile<Disk> {
        let bytes = Vec::new();
        LogFile::over("x".into(), Disk { bytes, room })
    }

    fn add(log: &mut LogFile<Disk>, gather: &mut Gather, line: &str) -> Option<LogChange> {
        let record = Record {
            parts: [line.as_bytes(), b""],
            whole: true,
        };
        log.add(gather, Source::Stdout, record);
        log.flush(gather)
    }

    fn lines(log: &LogFile<Disk>) -> Vec<&str> {
        let text = std::str::from_utf8(&log.file.bytes).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?} is torn");
        text.lines().map(|l| &l[31..]).collect()
    }

    #[test]
    fn records_have_the_cri_format() {
        let (mut log, mut gather) = (log(1000), Gather::new());
        add(&mut log, &mut gather, "hello");
        log.add(
            &mut gather,
            Source::Stderr,
            Record {
                parts: [b"a", b"b"],
                whole: false,
            },
        );
        log.flush(&mut gather);
        assert_eq!(lines(&log), ["stdout F hello", "stderr P ab"]);
    }

    #[test]
    fn a_full_disk_drops_whole_records_and_says_so_once_it_works() {
        // Two records of 31 + 14 + 1 bytes and half a third.
        let (mut log, mut gather) = (log(46 * 2 + 23), Gather::new());
        assert_eq!(add(&mut log, &mut gather, "line1"), None);
        assert_eq!(add(&mut log, &mut gather, "line2"), None);
        assert!(matches!(
            add(&mut log, &mut gather, "line3"),
            Some(LogChange::Fails(_))
        ));
        assert_eq!(add(&mut log, &mut gather, "line4"), None);
        assert_eq!(lines(&log), ["stdout F line1", "stdout F line2"]);
        log.file.room = 10_000;
        let works = add(&mut log, &mut gather, "line5");
        assert_eq!(works, Some(LogChange::Works { lost: 2 }));
        assert_eq!(add(&mut log, &mut gather, "line6"), None);
        let expected = [
            "stdout F line1",
            "stdout F line2",
            "stderr F [2 records of this log were lost: No space left on device (os error 28)]",
            "stdout F line5",
            "stdout F line6",
        ];
        assert_eq!(lines(&log), expected);
    }

    #[test]
    fn a_record_longer_than_the_buffer_is_written_whole_and_the_buffer_shrinks_again() {
        let (mut log, mut gather) = (log(1 << 20), Gather::new());
        let long = "y".repeat(GATHER_BYTES * 3);
        add(&mut log, &mut gather, &long);
        assert_eq!(lines(&log), [format!("stdout F {long}")]);
        assert!(gather.bytes.capacity() <= GATHER_BYTES);
    }
}
