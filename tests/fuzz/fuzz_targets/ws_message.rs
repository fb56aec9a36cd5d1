//! Messages of a WebSocket: a channel and its bytes, or refused; what was understood and is written again is the same.
#![no_main]

use cri_streaming::ws::channel::{Coding, decode, encode};
use libfuzzer_sys::fuzz_target;
use tokio_tungstenite::tungstenite::Message;

fuzz_target!(|bytes: &[u8]| {
    let mut messages = vec![Message::Binary(bytes.to_vec().into())];
    if let Ok(text) = std::str::from_utf8(bytes) {
        messages.push(Message::Text(text.into()));
    }
    for message in messages {
        for coding in [Coding::Binary, Coding::Base64] {
            let Some((channel, plain)) = decode(coding, &message) else { continue };
            // Base64 writes the number as one character: there are channels that can't be written so.
            if coding == Coding::Binary || channel < 10 {
                let again = decode(coding, &encode(coding, channel, &plain));
                assert_eq!(again, Some((channel, plain)));
            }
        }
    }
});
