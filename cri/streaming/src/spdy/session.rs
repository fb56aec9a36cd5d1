//! One SPDY connection: streams in, streams out.
//!
//! Two tasks share the connection. The reader takes frames apart: a new stream is answered and handed out, data goes
//! into its stream's pipe, pings are answered. The writer sends what comes through one bounded queue, so that header
//! blocks are compressed in the order of sending. Each stream has a pipe towards its user and a small pump that turns
//! what the user writes into frames.
//!
//! When a user doesn't read, its pipe fills and the reader waits: then the whole connection waits, and the client's
//! TCP with it, which is the bound. When the connection ends, every pipe ends: readers see the end of file, writers a
//! broken pipe.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::flow::Flow;
use super::frame::{self, Control, FrameError, Head};
use super::headers::{Deflater, Headers, Inflater};

/// What a user may leave unread on one stream, and what may wait to be framed, in bytes.
const PIPE_BYTES: usize = 64 << 10;
/// Frames that may wait to be sent.
const QUEUE_FRAMES: usize = 32;
/// New streams that may wait to be taken.
const QUEUE_STREAMS: usize = 16;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The other side opens streams, with odd numbers.
    Server,
    /// We do.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the tests' client; later the API server's")
    )]
    Client,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the client broke the protocol")]
    Frame(#[from] FrameError),
}

/// A frame on its way out.
enum Out {
    Control(Control),
    Data { stream: u32, fin: bool, bytes: Vec<u8> },
}

/// One stream.
pub(crate) struct Stream {
    /// Its number.
    pub(crate) id: u32,
    /// What it is for.
    pub(crate) headers: Headers,
    /// Its bytes, both ways. Shutting it down sends the end; dropping it too, and throws away what still comes.
    pub(crate) pipe: DuplexStream,
}

/// What reader, writer and pumps share.
struct Shared {
    out: mpsc::Sender<Out>,
    flow: Flow,
    /// The open streams.
    inward: Mutex<BTreeMap<u32, Inward>>,
    max_streams: usize,
}

/// A stream as the reader sees it; it leaves the table when both directions have ended.
struct Inward {
    /// Where its data goes; `None` while the reader writes to it, and when nobody wants more.
    pipe: Option<WriteHalf<DuplexStream>>,
    /// What sends its user's data; `None` when somebody else waits for it.
    pump: Option<JoinHandle<()>>,
    /// The other side has sent its end, or we don't care any more.
    heard: bool,
    /// We have sent our end.
    said: bool,
}

/// A running connection.
pub(crate) struct Session {
    incoming: mpsc::Receiver<Stream>,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    ended: watch::Receiver<bool>,
    #[cfg(test)]
    next: u32,
}

impl Session {
    /// Runs the protocol over `io`, with at most `max_streams` open at once.
    pub(crate) fn start<T>(io: T, side: Side, max_streams: usize) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (out, queue) = mpsc::channel(QUEUE_FRAMES);
        let (accept, incoming) = mpsc::channel(QUEUE_STREAMS);
        let (ending, ended) = watch::channel(false);
        let shared = Arc::new(Shared {
            out,
            flow: Flow::new(),
            inward: Mutex::default(),
            max_streams,
        });
        let writer = tokio::spawn(send_frames(write, queue));
        let reading = read_frames(read, side, shared.clone(), accept);
        let reader = tokio::spawn({
            let shared = shared.clone();
            async move {
                if let Err(error) = reading.await {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a SPDY connection ended"
                    );
                }
                shared.close_all();
                let _ = ending.send(true);
            }
        });
        Self {
            incoming,
            shared,
            reader,
            writer,
            ended,
            #[cfg(test)]
            next: 1,
        }
    }

    /// The next stream that the other side opens; `None` when the connection is over.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Becomes true when the connection is over.
    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.clone()
    }

    /// Refuses a stream that was handed out.
    pub(crate) async fn reset(&self, stream: u32, status: u32) {
        self.shared.reset(stream, status).await;
    }

    /// No matter whether the other side ever ends this stream: it doesn't count any more once our end is sent.
    pub(crate) fn forget(&self, stream: u32) {
        self.shared.heard(stream);
    }

    /// Opens a stream.
    #[cfg(test)]
    pub(crate) async fn open(&mut self, headers: Headers) -> Stream {
        let id = self.next;
        self.next += 2;
        let stream = self.shared.add(id, headers.clone());
        let _ = self
            .shared
            .out
            .send(Out::Control(Control::SynStream {
                stream: id,
                fin: false,
                headers,
            }))
            .await;
        stream
    }

    /// Sends any frame.
    #[cfg(test)]
    pub(crate) async fn send(&self, frame: Control) {
        let _ = self.shared.out.send(Out::Control(frame)).await;
    }

    /// Sends all that is queued, then waits, at most `linger`, for the other side to hang up. Whoever closes first with
    /// unread bytes in its buffers cuts off what it has just sent, and Go's clients throw away frames that they have
    /// read but not handed out when they see the end of the connection.
    pub(crate) async fn finish(self, linger: std::time::Duration) {
        let all = async {
            self.shared.drain_pumps().await;
            let mut ended = self.ended.clone();
            let _ = ended.wait_for(|e| *e).await;
        };
        // Late or not, the drop below ends both tasks.
        let _ = tokio::time::timeout(linger, all).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
        self.shared.close_all();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Inward>> {
        self.inward
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A new stream: its pipe, and the pump behind it.
    fn add(self: &Arc<Self>, id: u32, headers: Headers) -> Stream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (read, write) = tokio::io::split(ours);
        self.flow.open(id);
        let mut inward = self.lock();
        let pump = tokio::spawn(pump(id, read, self.clone()));
        inward.insert(
            id,
            Inward {
                pipe: Some(write),
                pump: Some(pump),
                heard: false,
                said: false,
            },
        );
        Stream {
            id,
            headers,
            pipe: theirs,
        }
    }

    /// The other side has sent its end.
    fn heard(&self, id: u32) {
        self.note(id, |inward| inward.heard = true);
    }

    /// We have sent our end.
    fn said(&self, id: u32) {
        self.note(id, |inward| inward.said = true);
    }

    fn note(&self, id: u32, note: impl FnOnce(&mut Inward)) {
        let mut all = self.lock();
        let Some(inward) = all.get_mut(&id) else { return };
        note(inward);
        if inward.heard && inward.said {
            all.remove(&id);
            drop(all);
            self.flow.close(id);
        }
    }

    /// Ends a stream's pipe inwards: its user reads to the end.
    async fn end_pipe(&self, id: u32) {
        let pipe = self.lock().get_mut(&id).and_then(|inward| inward.pipe.take());
        if let Some(mut pipe) = pipe {
            let _ = pipe.shutdown().await;
        }
        self.heard(id);
    }

    fn close_all(&self) {
        let all = std::mem::take(&mut *self.lock());
        for (id, inward) in all {
            self.flow.close(id);
            inward.abort();
        }
    }

    fn close(&self, id: u32) {
        self.flow.close(id);
        if let Some(inward) = self.lock().remove(&id) {
            inward.abort();
        }
    }

    async fn reset(&self, id: u32, status: u32) {
        self.close(id);
        let _ = self
            .out
            .send(Out::Control(Control::Reset { stream: id, status }))
            .await;
    }

    /// Waits until all that users have written is queued; their pipes must be shut down or dropped.
    async fn drain_pumps(&self) {
        let pumps: Vec<_> = {
            let mut inward = self.lock();
            inward.values_mut().filter_map(|i| i.pump.take()).collect()
        };
        for pump in pumps {
            let _ = pump.await;
        }
    }
}

impl Inward {
    fn abort(self) {
        if let Some(pump) = self.pump {
            pump.abort();
        }
    }
}

/// Turns what a user writes into data frames, and its end into the stream's end.
async fn pump(id: u32, mut read: ReadHalf<DuplexStream>, shared: Arc<Shared>) {
    let mut buffer = vec![0; frame::MAX_DATA_BYTES];
    loop {
        let Ok(count) = read.read(&mut buffer).await else {
            return;
        };
        let mut rest = &buffer[..count];
        let fin = rest.is_empty();
        while !rest.is_empty() {
            let Some(allowed) = shared.flow.take(id, rest.len()).await else {
                return;
            };
            let (now, later) = rest.split_at(allowed.min(rest.len()));
            let data = Out::Data {
                stream: id,
                fin: false,
                bytes: now.to_vec(),
            };
            if shared.out.send(data).await.is_err() {
                return;
            }
            rest = later;
        }
        if fin {
            let _ = shared
                .out
                .send(Out::Data {
                    stream: id,
                    fin: true,
                    bytes: Vec::new(),
                })
                .await;
            shared.said(id);
            return;
        }
    }
}

/// Sends frames until the queue is closed.
async fn send_frames(mut write: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Out>) {
    let mut deflater = Deflater::new();
    let mut bytes = Vec::new();
    while let Some(mut next) = queue.recv().await {
        bytes.clear();
        // What is queued already goes out with one write, as far as it is not much.
        loop {
            match next {
                Out::Control(frame) => {
                    if let Err(error) = frame::encode_control(&frame, &mut deflater, &mut bytes) {
                        tracing::debug!(error = &error as &dyn std::error::Error, "a frame was not sent");
                    }
                }
                Out::Data {
                    stream,
                    fin,
                    bytes: data,
                } => frame::encode_data(stream, fin, &data, &mut bytes),
            }
            if bytes.len() >= frame::MAX_DATA_BYTES {
                break;
            }
            match queue.try_recv() {
                Ok(more) => next = more,
                Err(_) => break,
            }
        }
        if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

/// Reads frames until the other side hangs up or breaks the protocol.
async fn read_frames(
    mut read: impl AsyncRead + Unpin,
    side: Side,
    shared: Arc<Shared>,
    accept: mpsc::Sender<Stream>,
) -> Result<(), SessionError> {
    let mut inflater = Inflater::new();
    let mut buffer = vec![0; frame::MAX_DATA_BYTES];
    let mut last = 0;
    loop {
        let mut head = [0; frame::HEAD_BYTES];
        match read.read_exact(&mut head).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        match frame::parse_head(head)? {
            Head::Data { stream, fin, len } => {
                data(&mut read, &mut buffer, stream, fin, len, &shared).await?
            }
            Head::Control { kind, flags, len } => {
                let mut body = vec![0; len];
                read.read_exact(&mut body).await?;
                let frame = frame::parse_control(kind, flags, &body, &mut inflater)?;
                control(frame, side, &mut last, &shared, &accept).await;
            }
        }
    }
}

/// Passes a data frame's payload on, in pieces.
async fn data(
    read: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    stream: u32,
    fin: bool,
    len: usize,
    shared: &Shared,
) -> Result<(), SessionError> {
    // The pipe is taken out while it is written to, so that no lock is held over the wait.
    let mut pipe = shared
        .lock()
        .get_mut(&stream)
        .and_then(|inward| inward.pipe.take());
    let known = pipe.is_some();
    let mut left = len;
    while left > 0 {
        let piece = left.min(buffer.len());
        let bytes = &mut buffer[..piece];
        read.read_exact(bytes).await?;
        left -= piece;
        if let Some(open) = &mut pipe
            && open.write_all(bytes).await.is_err()
        {
            // Its user is gone. What comes now is thrown away, so that other streams go on.
            pipe = None;
        }
        let delta = u32::try_from(piece).unwrap_or(0);
        let windows = if known && !fin { &[stream, 0][..] } else { &[0] };
        for window in windows {
            let update = Control::WindowUpdate {
                stream: *window,
                delta,
            };
            let _ = shared.out.send(Out::Control(update)).await;
        }
    }
    if fin {
        if let Some(mut pipe) = pipe {
            let _ = pipe.shutdown().await;
        }
        shared.heard(stream);
    } else if let Some(inward) = shared.lock().get_mut(&stream) {
        inward.pipe = pipe;
    }
    Ok(())
}

/// Does what a control frame says.
async fn control(
    frame: Control,
    side: Side,
    last: &mut u32,
    shared: &Arc<Shared>,
    accept: &mpsc::Sender<Stream>,
) {
    match frame {
        Control::SynStream { stream, fin, headers } => {
            let theirs = stream % 2 == u32::from(side == Side::Server);
            let full = shared.lock().len() >= shared.max_streams;
            if !theirs || stream <= *last || full {
                shared.reset_unknown(stream).await;
                return;
            }
            *last = stream;
            let reply = Control::SynReply {
                stream,
                fin: false,
                headers: Headers::new(),
            };
            let _ = shared.out.send(Out::Control(reply)).await;
            let new = shared.add(stream, headers);
            if fin {
                shared.end_pipe(stream).await;
            }
            // Full queue: the connection waits until somebody takes a stream.
            let _ = accept.send(new).await;
        }
        Control::Reset { stream, .. } => shared.close(stream),
        Control::SynReply {
            stream, fin: true, ..
        }
        | Control::Headers {
            stream, fin: true, ..
        } => {
            shared.end_pipe(stream).await;
        }
        Control::Settings(settings) => {
            for (id, value) in settings {
                if id == frame::INITIAL_WINDOW_SIZE {
                    shared.flow.set_initial(value);
                }
            }
        }
        Control::Ping(id) if id % 2 == u32::from(side == Side::Server) => {
            let _ = shared.out.send(Out::Control(Control::Ping(id))).await;
        }
        Control::WindowUpdate { stream, delta } => shared.flow.grow(stream, delta),
        // An answer to our own ping, a goodbye that the end of the connection will follow, or news to us.
        Control::Ping(_)
        | Control::GoAway { .. }
        | Control::SynReply { .. }
        | Control::Headers { .. }
        | Control::Unknown(_) => {}
    }
}

impl Shared {
    /// Refuses a stream that was never opened here.
    async fn reset_unknown(&self, stream: u32) {
        let refusal = Control::Reset {
            stream,
            status: frame::REFUSED_STREAM,
        };
        let _ = self.out.send(Out::Control(refusal)).await;
    }
}
