//! ttrpc: requests and answers with a head of ten bytes, as a remote procedure call without HTTP.
//!
//! A message is its length (4 bytes, big endian), the number of its stream (4), its kind and its flags (1 each), and
//! then a protobuf message. Who calls numbers streams oddly, 1, 3, 5. Only single requests with single answers are
//! understood here; NRI knows no others.

use prost::Message;

/// Bytes before a message.
pub const HEAD_BYTES: usize = 10;
/// The longest message.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Nothing follows this request.
pub const REMOTE_CLOSED: u8 = 1;

/// gRPC's code for a method that isn't there.
pub const UNIMPLEMENTED: i32 = 12;
/// gRPC's code for too much at once.
pub const RESOURCE_EXHAUSTED: i32 = 8;
/// gRPC's code for what makes no sense.
pub const INVALID_ARGUMENT: i32 = 3;
/// gRPC's code for what it isn't the time for.
pub const FAILED_PRECONDITION: i32 = 9;

/// A call.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Package and service, with a dot between.
    #[prost(string, tag = "1")]
    pub service: String,
    /// The method.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The method's own message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the caller waits, in nanoseconds.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
}

/// What a call comes to.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// Absent: it went well.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The method's own answer.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// Why a call failed.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// gRPC's code; 0: it didn't.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A [`Request`].
    Request,
    /// A [`Response`].
    Response,
    /// Something that NRI has no use for.
    Other(u8),
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte {
            1 => Self::Request,
            2 => Self::Response,
            other => Self::Other(other),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Other(other) => other,
        }
    }
}

/// A message with what its head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which call it belongs to.
    pub stream: u32,
    /// What the body is.
    pub kind: Kind,
    /// As sent.
    pub flags: u8,
    /// The message.
    pub body: Vec<u8>,
}

impl Frame {
    /// Head and body as they are sent.
    ///
    /// # Errors
    /// The body is longer than [`MAX_MESSAGE`].
    pub fn encode(&self) -> Result<Vec<u8>, TooLong> {
        let length = u32::try_from(self.body.len())
            .ok()
            .filter(|_| self.body.len() <= MAX_MESSAGE)
            .ok_or(TooLong(self.body.len()))?;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.body.len());
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend([self.kind.byte(), self.flags]);
        bytes.extend(&self.body);
        Ok(bytes)
    }
}

/// A message that must not be that long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
pub struct TooLong(pub usize);

/// Bytes as they come, cut into messages.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// What of `bytes` was taken already.
    at: usize,
}

impl Frames {
    /// Takes what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend(bytes);
    }

    /// The next message, once all of it has come. To be called until it says `None`, so that no more than one
    /// message and one push are held.
    ///
    /// # Errors
    /// A message claims to be longer than [`MAX_MESSAGE`]; nothing after it makes sense.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, TooLong> {
        let rest = &self.bytes[self.at..];
        let Some((head, rest)) = rest.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *head;
        let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(TooLong(length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Frame {
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: Kind::of(kind),
            flags,
            body: body.to_vec(),
        };
        self.at += HEAD_BYTES + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(stream: u32, body: Vec<u8>) -> Frame {
        Frame {
            stream,
            kind: Kind::Request,
            flags: REMOTE_CLOSED,
            body,
        }
    }

    #[test]
    fn a_head_is_ten_bytes() {
        let bytes = frame(3, vec![7]).encode().unwrap();
        assert_eq!(bytes, [0, 0, 0, 1, 0, 0, 0, 3, 1, 1, 7]);
    }

    #[test]
    fn what_is_too_long_is_neither_sent_nor_taken() {
        assert_eq!(
            frame(1, vec![0; MAX_MESSAGE + 1]).encode(),
            Err(TooLong(MAX_MESSAGE + 1))
        );
        let mut frames = Frames::default();
        frames.push(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0]);
        assert!(frames.next_frame().is_err());
    }

    proptest! {
        #[test]
        fn messages_arrive_however_they_are_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8),
            cuts in prop::collection::vec(1..40usize, 1..40),
        ) {
            let sent: Vec<Frame> = (1u32..).step_by(2).zip(bodies).map(|(n, body)| frame(n, body)).collect();
            let mut bytes = Vec::new();
            for frame in &sent {
                bytes.extend(frame.encode().unwrap());
            }
            let (mut frames, mut got) = (Frames::default(), Vec::new());
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                rest = later;
                frames.push(now);
                while let Some(frame) = frames.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, sent);
        }
    }
}
