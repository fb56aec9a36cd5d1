//! The fields of a header block.

use super::BLOCK;

/// The path in the header: with ustar's prefix when there is one.
pub(super) fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    // GNU's magic is "ustar  "; it uses the prefix field for other things.
    let prefix = if &header[257..263] == b"ustar\0" {
        until_nul(&header[345..500])
    } else {
        b""
    };
    if prefix.is_empty() {
        name.to_vec()
    } else {
        [prefix, b"/", name].concat()
    }
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|c| *c == 0).unwrap_or(bytes.len())]
}

/// A number field that can't be negative.
pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    signed(bytes).and_then(|n| u64::try_from(n).ok())
}

/// A number field: octal digits, or big-endian binary with the top bit of the first byte set.
pub(super) fn signed(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    if first & 0x80 != 0 {
        // Two's complement below the marker bit; the second highest bit is the sign.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        value = value << 6 | i128::from(first & 0x3f);
        for byte in &bytes[1..] {
            value = value << 8 | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    let text: Vec<u8> = bytes.iter().copied().take_while(|c| *c != 0).collect();
    let text = text.trim_ascii();
    text.iter().try_fold(0_i64, |value, c| match c {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(c - b'0')),
        _ => None,
    })
}
