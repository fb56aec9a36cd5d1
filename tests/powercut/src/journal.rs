//! What the workload began and what it was told is done, on a disk of its own that knows no cache.
//!
//! A line is a block of [`BLOCK`] bytes, written with O_SYNC before an operation begins and after its answer came; the
//! first block without a line is the end. So the journal never knows less than what had begun, and never more than what
//! was answered. It lies on a disk of its own because a flush brings other files of its file system to the disk, too, and
//! would hide the very mistakes that are looked for.
//!
//! From the lines [`Promises`] are made: an image whose pull was answered, and whose removal wasn't begun since, must be
//! there after any power cut. Everything else may be there or not; but what is there must be whole.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The size of a line on disk.
const BLOCK: usize = 512;
/// The most lines that are read: more is not a journal.
const MAX_LINES: usize = 1 << 20;

/// What happens to images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// An image is pulled.
    Pull,
    /// An image is removed.
    Remove,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// It may happen from now on.
    Begun,
    /// The daemon said that it has happened.
    Done,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) when: When,
    pub(crate) deed: Deed,
    pub(crate) image: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.when {
            When::Begun => "begun",
            When::Done => "done",
        };
        let deed = match self.deed {
            Deed::Pull => "pull",
            Deed::Remove => "remove",
        };
        write!(f, "{when} {deed} {}", self.image)
    }
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let when = match words.next()? {
            "begun" => When::Begun,
            "done" => When::Done,
            _ => return None,
        };
        let deed = match words.next()? {
            "pull" => Deed::Pull,
            "remove" => Deed::Remove,
            _ => return None,
        };
        let image = words.next().filter(|image| !image.is_empty())?.to_owned();
        words.next().is_none().then_some(Self { when, deed, image })
    }

    fn block(&self) -> Result<[u8; BLOCK]> {
        let text = self.to_string();
        ensure!(text.len() < BLOCK, "the line `{text}` doesn't fit into a block");
        let mut block = [b' '; BLOCK];
        block[..text.len()].copy_from_slice(text.as_bytes());
        block[BLOCK - 1] = b'\n';
        Ok(block)
    }
}

/// A journal that is open for more lines.
pub(crate) struct Journal {
    file: File,
}

impl Journal {
    /// Opens it, or makes it, and reads what is in it.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Line>)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(nix::libc::O_SYNC)
            .open(path)
            .with_context(|| format!("failed to open the journal `{}`", path.display()))?;
        let lines =
            read(&mut file).with_context(|| format!("failed to read the journal `{}`", path.display()))?;
        let journal = Self { file };
        journal.seek(lines.len())?;
        Ok((journal, lines))
    }

    fn seek(&self, lines: usize) -> Result<()> {
        use std::io::{Seek as _, SeekFrom};
        (&self.file).seek(SeekFrom::Start((lines * BLOCK) as u64))?;
        Ok(())
    }

    /// Adds a line; it is on the disk when this returns.
    pub(crate) fn write(&mut self, when: When, deed: Deed, image: &str) -> Result<()> {
        let line = Line {
            when,
            deed,
            image: image.to_owned(),
        };
        self.file
            .write_all(&line.block()?)
            .context("failed to write the journal")
    }
}

fn read(file: &mut File) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut block = [0; BLOCK];
    while lines.len() < MAX_LINES {
        match file.read_exact(&mut block) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            other => other?,
        }
        if block == [0; BLOCK] {
            break;
        }
        let text = std::str::from_utf8(&block).unwrap_or_default().trim_end();
        let line =
            Line::parse(text).with_context(|| format!("line {} can't be read: `{text}`", lines.len() + 1))?;
        lines.push(line);
    }
    Ok(lines)
}

/// Which images must be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Promises(BTreeMap<String, bool>);

impl Promises {
    /// From all lines so far.
    pub(crate) fn of(lines: &[Line]) -> Self {
        let mut images = BTreeMap::new();
        for line in lines {
            let is_promised = (line.when, line.deed) == (When::Done, Deed::Pull);
            images.insert(line.image.clone(), is_promised);
        }
        Self(images)
    }

    /// The promised ones.
    pub(crate) fn images(&self) -> impl Iterator<Item = &str> {
        let promised = self.0.iter().filter(|&(_, &is_promised)| is_promised);
        promised.map(|(image, _)| image.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line() -> impl Strategy<Value = Line> {
        let when = prop_oneof![Just(When::Begun), Just(When::Done)];
        let deed = prop_oneof![Just(Deed::Pull), Just(Deed::Remove)];
        (when, deed, "[a-c]\\.test/[a-b]:1").prop_map(|(when, deed, image)| Line { when, deed, image })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(lines in prop::collection::vec(line(), 0..12)) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let (first, second) = lines.split_at(lines.len() / 2);
            for part in [first, second] {
                let (mut journal, _) = Journal::open(file.path()).unwrap();
                for line in part {
                    journal.write(line.when, line.deed, &line.image).unwrap();
                }
            }
            prop_assert_eq!(Journal::open(file.path()).unwrap().1, lines);
        }

        #[test]
        fn only_the_last_word_on_an_image_counts(lines in prop::collection::vec(line(), 0..12)) {
            let promises = Promises::of(&lines);
            for image in ["a.test/a:1", "b.test/b:1"] {
                let last = lines.iter().rfind(|line| line.image == image);
                let is_promised = last.is_some_and(|line| line.when == When::Done && line.deed == Deed::Pull);
                prop_assert_eq!(promises.images().any(|promised| promised == image), is_promised);
            }
        }
    }

    #[test]
    fn a_damaged_journal_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [b'x'; BLOCK]).unwrap();
        let error = format!("{:#}", Journal::open(file.path()).err().unwrap());
        assert!(error.contains("line 1 can't be read"), "{error}");
    }
}
