//! Whatever a peer sends on the shim's socket is a call or an error, never a panic.
#![no_main]

use cri_shim_protocol::{Call, FrameReader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = FrameReader::new();
    for piece in bytes.chunks(7) {
        reader.push(piece);
        while let Ok(Some(_)) = reader.next_frame::<Call>() {}
    }
});
