//! The daemon's end of an attach stream: chunks in, chunks out.

use std::io;

use bytes::Bytes;
use cri_shim_protocol::attach::{self, HEADER_BYTES, MAX_CHUNK_BYTES, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A container's stdio, joined.
#[derive(Debug)]
pub struct AttachStream {
    socket: UnixStream,
}

impl AttachStream {
    /// The stream over this socket, whose other end the shim has.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Both directions, to be used from two tasks. Dropping either leaves the other; the shim sees the client go
    /// when both are dropped.
    pub fn split(self) -> (AttachReader, AttachWriter) {
        let (read, write) = self.socket.into_split();
        (AttachReader { socket: read }, AttachWriter { socket: write })
    }
}

/// What comes from the container.
#[derive(Debug)]
pub struct AttachReader {
    socket: OwnedReadHalf,
}

impl AttachReader {
    /// The next chunk: output, or [`Stream::Reason`] and why the shim hangs up. `None` at the end of all output.
    /// Not safe to cancel between two chunks' bytes: read from one task of its own.
    ///
    /// # Errors
    /// When the shim sends something else or the connection breaks inside a chunk.
    pub async fn next(&mut self) -> io::Result<Option<(Stream, Bytes)>> {
        let mut header = [0; HEADER_BYTES];
        match self.socket.read(&mut header[..1]).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
        self.socket.read_exact(&mut header[1..]).await?;
        let (stream, len) = attach::parse_header(header).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "attach stream has a malformed chunk")
        })?;
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes).await?;
        Ok(Some((stream, bytes.into())))
    }
}

/// What goes to the container.
#[derive(Debug)]
pub struct AttachWriter {
    socket: OwnedWriteHalf,
}

impl AttachWriter {
    /// Sends stdin; waits while the container doesn't read.
    ///
    /// # Errors
    /// When the container has ended or takes no stdin.
    pub async fn write_stdin(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(MAX_CHUNK_BYTES) {
            self.send(part).await?;
        }
        Ok(())
    }

    /// Closes the container's stdin.
    ///
    /// # Errors
    /// As [`AttachWriter::write_stdin`].
    pub async fn close_stdin(&mut self) -> io::Result<()> {
        self.send(&[]).await
    }

    async fn send(&mut self, part: &[u8]) -> io::Result<()> {
        // At most MAX_CHUNK_BYTES, so it fits.
        let mut chunk = Vec::with_capacity(HEADER_BYTES + part.len());
        chunk.extend_from_slice(&attach::header(Stream::Stdin, part.len() as u32));
        chunk.extend_from_slice(part);
        self.socket.write_all(&chunk).await
    }
}
