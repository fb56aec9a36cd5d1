//! Messages with a channel number in front. Pure.
//!
//! Binary protocols: one byte with the number, then the bytes. Base64 protocols: the number as a digit, then the bytes
//! in base64; the message is text. Version 5 adds channel 255, whose one byte names a channel that its sender closes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio_tungstenite::tungstenite::{Bytes, Message};

/// Standard input.
pub const STDIN: u8 = 0;
/// Standard output.
pub const STDOUT: u8 = 1;
/// Standard error.
pub const STDERR: u8 = 2;
/// The outcome.
pub const ERROR: u8 = 3;
/// Terminal sizes.
pub const RESIZE: u8 = 4;
/// Version 5: the sender closes a channel.
pub const CLOSE: u8 = 255;

/// How channels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// As they are.
    Binary,
    /// As text.
    Base64,
}

/// A message of a channel.
pub fn encode(coding: Coding, channel: u8, bytes: &[u8]) -> Message {
    match coding {
        Coding::Binary => {
            let mut message = Vec::with_capacity(bytes.len() + 1);
            message.push(channel);
            message.extend_from_slice(bytes);
            Message::Binary(Bytes::from(message))
        }
        Coding::Base64 => {
            let mut message = String::with_capacity(bytes.len() * 4 / 3 + 5);
            message.push(char::from(b'0'.saturating_add(channel)));
            STANDARD.encode_string(bytes, &mut message);
            Message::Text(message.into())
        }
    }
}

/// A message's channel and bytes; `None` for one that is empty, or not what the coding says.
pub fn decode(coding: Coding, message: &Message) -> Option<(u8, Bytes)> {
    let bytes = match message {
        Message::Binary(bytes) => bytes.clone(),
        Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
        _ => return None,
    };
    let channel = *bytes.first()?;
    match coding {
        Coding::Binary => Some((channel, bytes.slice(1..))),
        Coding::Base64 => {
            let channel = channel.checked_sub(b'0')?;
            STANDARD
                .decode(&bytes[1..])
                .ok()
                .map(|plain| (channel, Bytes::from(plain)))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn channels_look_as_clients_expect() {
        assert_eq!(
            encode(Coding::Binary, STDOUT, b"hi"),
            Message::Binary(Bytes::from_static(b"\x01hi"))
        );
        assert_eq!(
            encode(Coding::Base64, STDOUT, b"hi"),
            Message::Text("1aGk=".into())
        );
        assert_eq!(
            decode(Coding::Base64, &Message::Text("0aGk=".into())),
            Some((0, Bytes::from_static(b"hi")))
        );
        assert_eq!(decode(Coding::Base64, &Message::Text("0?".into())), None);
        assert_eq!(decode(Coding::Binary, &Message::Binary(Bytes::new())), None);
        assert_eq!(
            decode(Coding::Binary, &Message::Binary(Bytes::from_static(&[255, 0])))
                .unwrap()
                .0,
            CLOSE
        );
    }

    proptest! {
        #[test]
        fn every_message_survives(channel in 0u8..10, bytes: Vec<u8>, base64: bool) {
            let coding = if base64 { Coding::Base64 } else { Coding::Binary };
            let (back, plain) = decode(coding, &encode(coding, channel, &bytes)).unwrap();
            prop_assert_eq!((back, plain.as_ref()), (channel, bytes.as_slice()));
        }

        #[test]
        fn no_message_panics(bytes: Vec<u8>, text: String) {
            for coding in [Coding::Binary, Coding::Base64] {
                let _ = decode(coding, &Message::Binary(bytes.clone().into()));
                let _ = decode(coding, &Message::Text(text.clone().into()));
            }
        }
    }
}
