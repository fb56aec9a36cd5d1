//! What host and guest say to each other over the virtio-serial port: frames of a kind, a command's number and bytes.
//!
//! A frame is `kind: u8, id: u32, length: u32` (little-endian) and that many bytes, at most [`MOST`]. Either side reads
//! frames to the end of the stream; a stream that ends inside a frame starts anew with the next frame, so that a guest
//! that was saved while nobody was connected goes on with the next host.

use std::io::{self, Read, Write};

/// The most bytes of one frame; longer output comes in several.
pub const MOST: usize = 64 * 1024;

/// The name of the port that the agent opens, below `/dev/virtio-ports` where udev makes that, and in
/// `/sys/class/virtio-ports/*/name` always.
pub const PORT: &str = "orlop.agent";

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From the host: are you there? The agent returns it with the same bytes.
    Hello,
    /// From the host: run this ([`Words`]: the folder, the variables, an empty word, the arguments).
    Run,
    /// From the host: bytes for the command's standard input; none ends it.
    Stdin,
    /// From the host: kill the command's process group.
    Kill,
    /// From the host: the time, nanoseconds since 1970 (u64).
    Clock,
    /// From the host: write everything to the disks (the agent answers with [`Kind::Exit`]).
    Sync,
    /// From the agent: bytes of standard output.
    Stdout,
    /// From the agent: bytes of standard error.
    Stderr,
    /// From the agent: the exit code (i32), or 128 and the signal.
    Exit,
    /// From the agent: why the command couldn't be started.
    Failed,
}

const KINDS: [Kind; 10] = [
    Kind::Hello,
    Kind::Run,
    Kind::Stdin,
    Kind::Kill,
    Kind::Clock,
    Kind::Sync,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Exit,
    Kind::Failed,
];

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The command that it is about; 0 where there is none.
    pub id: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Reads one. `None` where the stream ended, in a frame or between two.
    ///
    /// # Errors
    /// Reading failed, or what came is no frame.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; 9];
        match from.read_exact(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let [kind, id0, id1, id2, id3, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        let known = KINDS.iter().find(|k| **k as u8 == kind);
        let Some(kind) = known.copied().filter(|_| length <= MOST) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no frame"));
        };
        let mut bytes = vec![0; length];
        match from.read_exact(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let id = u32::from_le_bytes([id0, id1, id2, id3]);
        Ok(Some(Self { kind, id, bytes }))
    }

    /// Writes bytes as one frame, or as several if they are many.
    ///
    /// # Errors
    /// Writing failed.
    pub fn write(to: &mut impl Write, kind: Kind, id: u32, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        loop {
            let (part, after) = rest.split_at(rest.len().min(MOST));
            let mut frame = Vec::with_capacity(9 + part.len());
            frame.push(kind as u8);
            frame.extend(id.to_le_bytes());
            // At most MOST, which fits.
            frame.extend((part.len() as u32).to_le_bytes());
            frame.extend(part);
            to.write_all(&frame)?;
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }
}

/// A command, as it travels: words that end with a zero byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// The folder in which it runs.
    pub folder: String,
    /// Its variables, beside the usual PATH and HOME.
    pub variables: Vec<(String, String)>,
    /// The program and its arguments.
    pub arguments: Vec<String>,
}

impl Words {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut add = |word: &str| {
            bytes.extend(word.as_bytes());
            bytes.push(0);
        };
        add(&self.folder);
        for (key, value) in &self.variables {
            add(&format!("{key}={value}"));
        }
        add("");
        for argument in &self.arguments {
            add(argument);
        }
        bytes
    }

    /// From bytes. `None` where they aren't those of a command.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut words = text.strip_suffix('\0')?.split('\0');
        let folder = words.next()?.to_owned();
        let mut variables = Vec::new();
        for word in words.by_ref().take_while(|word| !word.is_empty()) {
            let (key, value) = word.split_once('=')?;
            variables.push((key.to_owned(), value.to_owned()));
        }
        let arguments: Vec<String> = words.map(str::to_owned).collect();
        (!arguments.is_empty()).then_some(Self {
            folder,
            variables,
            arguments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went_and_long_ones_in_parts() {
        let mut stream = Vec::new();
        let long = vec![7; MOST + 1];
        Frame::write(&mut stream, Kind::Stdout, 3, &long).unwrap();
        Frame::write(&mut stream, Kind::Stdin, 4, b"").unwrap();
        let mut from = stream.as_slice();
        let parts: Vec<Frame> = std::iter::from_fn(|| Frame::read(&mut from).unwrap()).collect();
        assert_eq!(
            parts
                .iter()
                .map(|f| (f.kind, f.id, f.bytes.len()))
                .collect::<Vec<_>>(),
            [(Kind::Stdout, 3, MOST), (Kind::Stdout, 3, 1), (Kind::Stdin, 4, 0)]
        );
    }

    #[test]
    fn what_is_no_frame_is_refused_and_half_a_frame_is_an_end() {
        assert!(Frame::read(&mut [200; 9].as_slice()).is_err());
        let huge = [0, 0, 0, 0, 0, 255, 255, 255, 255];
        assert!(Frame::read(&mut huge.as_slice()).is_err());
        assert_eq!(Frame::read(&mut [0, 0, 0].as_slice()).unwrap(), None);
        assert_eq!(
            Frame::read(&mut [0, 0, 0, 0, 0, 2, 0, 0, 0, 1].as_slice()).unwrap(),
            None
        );
    }

    #[test]
    fn commands_come_back_as_they_went() {
        let words = Words {
            folder: "/work dir".to_owned(),
            variables: vec![("A".to_owned(), "b=c\nd".to_owned())],
            arguments: vec!["sh".to_owned(), "-c".to_owned(), String::new()],
        };
        assert_eq!(Words::decode(&words.encode()), Some(words.clone()));
        let none = Words {
            arguments: Vec::new(),
            ..words
        };
        assert_eq!(Words::decode(&none.encode()), None);
        assert_eq!(Words::decode(b"no end"), None);
    }
}
