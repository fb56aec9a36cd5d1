//! Several connections over one: each piece has a head with the connection's number and the piece's length.
//!
//! Each end has one connection to call over and one to be called over. What is cut into pieces has no meaning of its
//! own, but for one thing: the Go side reads a whole piece into whatever buffer its reader has just then, 4096 bytes
//! at the head of a message and exactly what is missing afterwards, and gives up where a piece doesn't fit. So a
//! message goes out as one piece of at most 4096 bytes and one with all the rest ([`encode`]).

use crate::ttrpc;

/// Bytes before a piece.
pub const HEAD_BYTES: usize = 8;
/// The longest piece: a ttrpc message with its head.
pub const MAX_PIECE: usize = ttrpc::HEAD_BYTES + ttrpc::MAX_MESSAGE;
/// The connection over which plugins are called.
pub const PLUGIN: u32 = 1;
/// The connection over which plugins call.
pub const RUNTIME: u32 = 2;

/// What the Go side can take at the head of a message.
const FIRST_PIECE: usize = 4096;

/// A piece that must not be that long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a piece of {0} bytes is longer than {MAX_PIECE}")]
pub struct PieceTooLong(pub u32);

/// A piece's connection and length.
///
/// # Errors
/// It claims to be longer than [`MAX_PIECE`]; nothing after it makes sense.
pub fn parse_head(head: [u8; HEAD_BYTES]) -> Result<(u32, usize), PieceTooLong> {
    let [c0, c1, c2, c3, l0, l1, l2, l3] = head;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    match usize::try_from(length) {
        Ok(bytes) if bytes <= MAX_PIECE => Ok((u32::from_be_bytes([c0, c1, c2, c3]), bytes)),
        _ => Err(PieceTooLong(length)),
    }
}

/// An encoded message, in pieces.
pub fn encode(connection: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.len() + 2 * HEAD_BYTES);
    let (first, rest) = message.split_at(message.len().min(FIRST_PIECE));
    for piece in [first, rest].into_iter().filter(|piece| !piece.is_empty()) {
        // No message is as long as 4 GiB.
        let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        bytes.extend(connection.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(piece);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_bounded() {
        assert_eq!(parse_head([0, 0, 0, 2, 0, 0, 1, 0]), Ok((2, 256)));
        let max = u32::try_from(MAX_PIECE).unwrap().to_be_bytes();
        assert_eq!(
            parse_head([0, 0, 0, 1, max[0], max[1], max[2], max[3]]),
            Ok((1, MAX_PIECE))
        );
        assert_eq!(
            parse_head([0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]),
            Err(PieceTooLong(u32::MAX))
        );
    }

    #[test]
    fn a_message_is_cut_where_the_go_side_can_take_it() {
        for (length, pieces) in [
            (10, vec![10]),
            (4096, vec![4096]),
            (4097, vec![4096, 1]),
            (100_000, vec![4096, 95_904]),
        ] {
            let message = vec![7; length];
            let bytes = encode(PLUGIN, &message);
            let (mut rest, mut found, mut whole) = (bytes.as_slice(), Vec::new(), Vec::<u8>::new());
            while let Some((head, tail)) = rest.split_first_chunk() {
                let (connection, length) = parse_head(*head).unwrap();
                assert_eq!(connection, PLUGIN);
                found.push(length);
                whole.extend(&tail[..length]);
                rest = &tail[length..];
            }
            assert_eq!(found, pieces);
            assert_eq!(whole, message);
        }
    }
}
