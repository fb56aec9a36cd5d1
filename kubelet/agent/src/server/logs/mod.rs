//! Container logs: what is asked for ([`options`]), CRI's lines ([`line`]), the file through its rotations ([`file`]), and
//! the stream to the client ([`stream`]).
//!
//! Memory is bounded whatever the log holds: a block of the file, one unfinished line, and a few blocks under way to the
//! client.

pub(super) mod file;
pub(super) mod line;
pub(super) mod options;
pub(super) mod stream;

#[cfg(test)]
mod tests;
