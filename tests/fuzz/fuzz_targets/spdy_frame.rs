//! SPDY frames as a session reads them: heads, bodies, and header blocks that go on from frame to frame. What was
//! understood, written by us and read again, is the same.
#![no_main]

use cri_streaming::spdy::frame::{Control, HEAD_BYTES, Head, encode_control, parse_control, parse_head};
use cri_streaming::spdy::headers::{Deflater, Inflater};
use libfuzzer_sys::fuzz_target;

/// Bytes of a body that stand before its header block.
fn before_block(kind: u16) -> Option<usize> {
    match kind {
        1 => Some(10),
        2 | 8 => Some(4),
        _ => None,
    }
}

/// The bytes as zlib that isn't compressed, so that a header block need not be guessed bit by bit.
fn stored(plain: &[u8], first: bool) -> Vec<u8> {
    let mut zlib = if first { vec![0x78, 0x01] } else { Vec::new() };
    let len = u16::try_from(plain.len()).unwrap_or(u16::MAX);
    zlib.push(0);
    zlib.extend(len.to_le_bytes());
    zlib.extend((!len).to_le_bytes());
    zlib.extend(&plain[..usize::from(len)]);
    zlib
}

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, mut rest)) = bytes.split_first() else { return };
    let mut session = Inflater::new();
    // Only for who needs them: they are large.
    let mut mirror = None;
    let mut first = true;
    while let Some((head, tail)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let Ok(head) = parse_head(*head) else { return };
        let (Head::Data { len, .. } | Head::Control { len, .. }) = head;
        let (body, tail) = tail.split_at(len.min(tail.len()));
        rest = tail;
        let Head::Control { kind, flags, .. } = head else { continue };
        let body = match before_block(kind).filter(|_| mode & 1 == 1) {
            Some(at) if at <= body.len() => {
                let block = stored(&body[at..], std::mem::take(&mut first));
                [&body[..at], &block].concat()
            }
            _ => body.to_vec(),
        };
        let Ok(frame) = parse_control(kind, flags, &body, &mut session) else { return };
        if matches!(frame, Control::Unknown(_)) {
            continue;
        }
        let (ours, theirs) = mirror.get_or_insert_with(|| (Deflater::new(), Inflater::new()));
        let mut written = Vec::new();
        if encode_control(&frame, ours, &mut written).is_err() {
            // What came in below the bound for one block may be above it in our spelling.
            return;
        }
        let (head, body) = written.split_first_chunk().expect("a frame has a head");
        let Ok(Head::Control { kind, flags, len }) = parse_head(*head) else {
            panic!("our own frame isn't one: {frame:?}")
        };
        assert_eq!(len, body.len());
        let again = parse_control(kind, flags, body, theirs).expect("our own frame is a frame");
        assert_eq!(again, frame);
    }
});
