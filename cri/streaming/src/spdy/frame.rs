//! Frames: eight bytes of head, and for control frames a body. Pure, and it never panics on any bytes.
//!
//! A data frame's payload is not buffered as a whole: [`Head`] says how long it is, and the session passes it on in
//! pieces. A control frame's body is read whole, because it is small: longer than [`MAX_CONTROL_BYTES`] is refused.

use super::headers::{Deflater, HeaderError, Headers, Inflater};

/// The longest control frame that is taken, in bytes.
pub const MAX_CONTROL_BYTES: usize = 64 << 10;
/// The longest data frame that we send, in bytes.
pub const MAX_DATA_BYTES: usize = 16 << 10;
/// A frame's head, in bytes.
pub const HEAD_BYTES: usize = 8;

const VERSION: u16 = 3;
const FIN: u8 = 1;

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A data frame: `len` bytes of payload follow.
    Data {
        /// Whose data.
        stream: u32,
        /// The sender's last.
        fin: bool,
        /// Bytes that follow.
        len: usize,
    },
    /// A control frame: `len` bytes of body follow.
    Control {
        /// Its type's number.
        kind: u16,
        /// Its flags.
        flags: u8,
        /// Bytes that follow.
        len: usize,
    },
}

/// A control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Opens a stream.
    SynStream {
        /// Its ID: odd from clients, even from servers.
        stream: u32,
        /// The opener sends no data.
        fin: bool,
        /// What it is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// Its ID.
        stream: u32,
        /// The accepter sends no data.
        fin: bool,
        /// Its headers.
        headers: Headers,
    },
    /// Ends a stream at once.
    Reset {
        /// Its ID.
        stream: u32,
        /// Why.
        status: u32,
    },
    /// Pairs of setting and value.
    Settings(Vec<(u32, u32)>),
    /// To be sent back as it is, by who didn't choose the number.
    Ping(u32),
    /// No new streams.
    GoAway {
        /// The last stream that was accepted.
        last: u32,
        /// Why.
        status: u32,
    },
    /// More headers of a stream.
    Headers {
        /// Its ID.
        stream: u32,
        /// The sender's last.
        fin: bool,
        /// Which.
        headers: Headers,
    },
    /// More may be sent.
    WindowUpdate {
        /// On which stream; 0 for the connection.
        stream: u32,
        /// How many bytes.
        delta: u32,
    },
    /// A type that we don't know, which is to be ignored.
    Unknown(u16),
}

/// Reset status: the stream is not open.
pub const INVALID_STREAM: u32 = 2;
/// Reset status: the stream was not accepted.
pub const REFUSED_STREAM: u32 = 3;
/// Reset status: the sender has no more use for the stream.
pub const CANCEL: u32 = 5;
/// Setting: the initial window of each stream.
pub const INITIAL_WINDOW_SIZE: u32 = 7;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why bytes are not a frame; the connection can't go on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Another protocol.
    #[error("SPDY version {0} instead of 3")]
    Version(u16),
    /// Too long.
    #[error("a control frame of {0} bytes, more than {MAX_CONTROL_BYTES}")]
    TooLong(usize),
    /// Too short for its type.
    #[error("a control frame of type {0} that is too short")]
    TooShort(u16),
    /// Stream 0.
    #[error("a frame of type {0} for stream 0")]
    StreamZero(u16),
    /// A header block that can't be read.
    #[error("failed to read a header block")]
    Headers(#[from] HeaderError),
}

/// Reads a head.
///
/// # Errors
/// When the version is not 3 or a control frame is too long.
pub fn parse_head(bytes: [u8; HEAD_BYTES]) -> Result<Head, FrameError> {
    let word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let flags = bytes[4];
    let len = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
    if word >> 31 == 0 {
        return Ok(Head::Data {
            stream: word,
            fin: flags & FIN != 0,
            len,
        });
    }
    let version = (word >> 16) as u16 & 0x7fff;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if len > MAX_CONTROL_BYTES {
        return Err(FrameError::TooLong(len));
    }
    Ok(Head::Control {
        kind: (word & 0xffff) as u16,
        flags,
        len,
    })
}

/// A cursor over a body.
struct Body<'a> {
    kind: u16,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn word(&mut self) -> Result<u32, FrameError> {
        let (word, rest) = self
            .rest
            .split_first_chunk::<4>()
            .ok_or(FrameError::TooShort(self.kind))?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*word))
    }

    /// 31 bits; stream 0 is nobody's.
    fn stream(&mut self) -> Result<u32, FrameError> {
        match self.word()? & 0x7fff_ffff {
            0 => Err(FrameError::StreamZero(self.kind)),
            stream => Ok(stream),
        }
    }

    fn skip(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        self.rest = self.rest.get(count..).ok_or(FrameError::TooShort(self.kind))?;
        Ok(self.rest)
    }
}

/// Reads a control frame's body. Every header block must pass through the connection's one `inflater`, also those of
/// streams that are refused, because the compression goes on from block to block.
///
/// # Errors
/// When the body is too short for its type, or its header block is broken.
pub fn parse_control(
    kind: u16,
    flags: u8,
    body: &[u8],
    inflater: &mut Inflater,
) -> Result<Control, FrameError> {
    let fin = flags & FIN != 0;
    let mut body = Body { kind, rest: body };
    Ok(match kind {
        SYN_STREAM => {
            let stream = body.stream()?;
            // The associated stream, the priority and the slot mean nothing here.
            let block = body.skip(6)?;
            Control::SynStream {
                stream,
                fin,
                headers: inflater.block(block)?,
            }
        }
        SYN_REPLY => {
            let stream = body.stream()?;
            Control::SynReply {
                stream,
                fin,
                headers: inflater.block(body.rest)?,
            }
        }
        HEADERS => {
            let stream = body.stream()?;
            Control::Headers {
                stream,
                fin,
                headers: inflater.block(body.rest)?,
            }
        }
        RST_STREAM => Control::Reset {
            stream: body.stream()?,
            status: body.word()?,
        },
        SETTINGS => {
            let count = body.word()? as usize;
            let mut settings = Vec::new();
            // The body's length bounds this, whatever the count says.
            for _ in 0..count {
                settings.push((body.word()? & 0x00ff_ffff, body.word()?));
            }
            Control::Settings(settings)
        }
        PING => Control::Ping(body.word()?),
        GOAWAY => Control::GoAway {
            last: body.word()? & 0x7fff_ffff,
            status: body.word()?,
        },
        WINDOW_UPDATE => Control::WindowUpdate {
            stream: body.word()? & 0x7fff_ffff,
            delta: body.word()? & 0x7fff_ffff,
        },
        kind => Control::Unknown(kind),
    })
}

/// Appends a data frame; `data` is at most [`MAX_DATA_BYTES`] long.
pub fn encode_data(stream: u32, fin: bool, data: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX) & 0x00ff_ffff;
    out.extend((stream & 0x7fff_ffff).to_be_bytes());
    out.extend(((u32::from(fin) << 24) | len).to_be_bytes());
    out.extend(data);
}

/// Appends a control frame. Every header block of a connection must pass through its one `deflater`, in the order in
/// which the frames are sent.
///
/// # Errors
/// When the headers are too large to be sent.
pub fn encode_control(frame: &Control, deflater: &mut Deflater, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let mut words = |kind: u16, flags: u8, words: &[u32], block: &[u8]| {
        let len = u32::try_from(words.len() * 4 + block.len()).unwrap_or(u32::MAX) & 0x00ff_ffff;
        out.extend((1 << 31 | u32::from(VERSION) << 16 | u32::from(kind)).to_be_bytes());
        out.extend(((u32::from(flags) << 24) | len).to_be_bytes());
        for word in words {
            out.extend(word.to_be_bytes());
        }
        out.extend(block);
    };
    match frame {
        Control::SynStream { stream, fin, headers } => {
            let block = deflater.block(headers)?;
            // Ten bytes of body before the block: two IDs, and half a word of priority and slot.
            let mut padded = vec![0, 0];
            padded.extend(block);
            words(SYN_STREAM, u8::from(*fin), &[*stream, 0], &padded);
        }
        Control::SynReply { stream, fin, headers } => {
            let block = deflater.block(headers)?;
            words(SYN_REPLY, u8::from(*fin), &[*stream], &block);
        }
        Control::Headers { stream, fin, headers } => {
            let block = deflater.block(headers)?;
            words(HEADERS, u8::from(*fin), &[*stream], &block);
        }
        Control::Reset { stream, status } => words(RST_STREAM, 0, &[*stream, *status], &[]),
        Control::Settings(settings) => {
            let mut all = vec![u32::try_from(settings.len()).unwrap_or(0)];
            all.extend(settings.iter().flat_map(|(id, value)| [*id, *value]));
            words(SETTINGS, 0, &all, &[]);
        }
        Control::Ping(id) => words(PING, 0, &[*id], &[]),
        Control::GoAway { last, status } => words(GOAWAY, 0, &[*last, *status], &[]),
        Control::WindowUpdate { stream, delta } => words(WINDOW_UPDATE, 0, &[*stream, *delta], &[]),
        Control::Unknown(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(frame: &Control, deflater: &mut Deflater, inflater: &mut Inflater) -> Control {
        let mut bytes = Vec::new();
        encode_control(frame, deflater, &mut bytes).unwrap();
        let Head::Control { kind, flags, len } = parse_head(*bytes.first_chunk().unwrap()).unwrap() else {
            panic!("not a control frame")
        };
        assert_eq!(len, bytes.len() - HEAD_BYTES);
        parse_control(kind, flags, &bytes[HEAD_BYTES..], inflater).unwrap()
    }

    fn headers(list: &[(&str, &str)]) -> Headers {
        list.iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn every_frame_survives_the_wire() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let frames = [
            Control::SynStream {
                stream: 1,
                fin: false,
                headers: headers(&[("streamtype", "error")]),
            },
            Control::SynReply {
                stream: 1,
                fin: true,
                headers: headers(&[]),
            },
            Control::SynStream {
                stream: 3,
                fin: true,
                headers: headers(&[("streamtype", "data"), ("port", "80")]),
            },
            Control::Headers {
                stream: 3,
                fin: false,
                headers: headers(&[("x", "")]),
            },
            Control::Reset {
                stream: 3,
                status: CANCEL,
            },
            Control::Settings(vec![(INITIAL_WINDOW_SIZE, 65536), (4, 100)]),
            Control::Ping(7),
            Control::GoAway { last: 3, status: 0 },
            Control::WindowUpdate {
                stream: 0,
                delta: 1000,
            },
        ];
        for frame in frames {
            assert_eq!(round_trip(&frame, &mut deflater, &mut inflater), frame);
        }
    }

    #[test]
    fn data_has_its_head() {
        let mut bytes = Vec::new();
        encode_data(5, true, b"abc", &mut bytes);
        assert_eq!(bytes, [0, 0, 0, 5, 1, 0, 0, 3, b'a', b'b', b'c']);
        let head = parse_head(*bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(
            head,
            Head::Data {
                stream: 5,
                fin: true,
                len: 3
            }
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(
            parse_head([0x80, 2, 0, 1, 0, 0, 0, 0]),
            Err(FrameError::Version(2))
        );
        assert_eq!(
            parse_head([0x80, 3, 0, 1, 0, 2, 0, 0]),
            Err(FrameError::TooLong(2 << 16))
        );
        let parse = |kind, body: &[u8]| parse_control(kind, 0, body, &mut Inflater::new());
        assert_eq!(
            parse(SYN_STREAM, &[0, 0, 0, 1]),
            Err(FrameError::TooShort(SYN_STREAM))
        );
        assert_eq!(
            parse(RST_STREAM, &[0; 8]),
            Err(FrameError::StreamZero(RST_STREAM))
        );
        assert_eq!(parse(SETTINGS, &[0xff; 12]), Err(FrameError::TooShort(SETTINGS)));
        assert_eq!(parse(99, &[]), Ok(Control::Unknown(99)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(head in any::<[u8; 8]>(), kind in 0u16..12, flags in any::<u8>(), body in any::<Vec<u8>>()) {
            let _ = parse_head(head);
            let mut inflater = Inflater::new();
            let _ = parse_control(kind, flags, &body, &mut inflater);
            let _ = parse_control(kind, flags, &body, &mut inflater);
        }
    }
}
