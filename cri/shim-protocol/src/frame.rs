//! Frames: a little-endian `u32` length, then JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest frame either side accepts.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// The most file descriptors one frame carries.
pub const MAX_FRAME_FDS: usize = 3;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is over [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// The bytes are not the message that was expected.
    #[error("failed to decode frame")]
    Json(#[source] serde_json::Error),
}

/// The bytes of a frame.
///
/// # Errors
/// When the message can't be written as JSON or is over [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(FrameError::Json)?;
    let len = bytes.len() - 4;
    let prefix = u32::try_from(len)
        .ok()
        .filter(|_| len <= MAX_FRAME_BYTES)
        .ok_or(FrameError::TooLong(len))?;
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    Ok(bytes)
}

/// Cuts a stream of bytes into frames, however it arrives.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    /// A reader with nothing read.
    pub const fn new() -> Self {
        Self { buffer: Vec::new() }
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has come.
    ///
    /// # Errors
    /// When the frame is too long or not a `T`; the stream can't be read further then.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let decode = |body: Vec<u8>| serde_json::from_slice(&body).map_err(FrameError::Json);
        self.next_body()?.map(decode).transpose()
    }

    /// The bytes of the next whole frame, for a receiver that wants to tell an unknown message from a broken one.
    ///
    /// # Errors
    /// When the frame is too long; the stream can't be read further then.
    pub fn next_body(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong(len));
        }
        let Some(body) = rest.get(..len) else {
            return Ok(None);
        };
        let body = body.to_vec();
        self.buffer.drain(..4 + len);
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        }
        Ok(Some(body))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Call, Request};

    fn call(id: u64) -> Call {
        Call {
            id,
            request: Request::Start {
                container: format!("c{id}"),
            },
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_fragmentation(cuts in proptest::collection::vec(1usize..40, 1..60)) {
            let sent: Vec<Call> = (1..8).map(call).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|c| encode(c).unwrap()).collect();
            let (mut reader, mut got, mut rest) = (FrameReader::new(), Vec::new(), &bytes[..]);
            for cut in cuts.into_iter().chain(std::iter::repeat(usize::MAX)) {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                reader.push(head);
                while let Some(c) = reader.next_frame::<Call>().unwrap() {
                    got.push(c);
                }
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = FrameReader::new();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next_frame::<Call>() {}
        }
    }

    #[test]
    fn an_overlong_frame_is_refused_before_it_is_read() {
        let mut reader = FrameReader::new();
        reader.push(&u32::MAX.to_le_bytes());
        assert!(matches!(reader.next_frame::<Call>(), Err(FrameError::TooLong(_))));
    }
}
