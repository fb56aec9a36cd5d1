//! One plugin's connection: calls to it, and calls of it.
//!
//! Two tasks own the socket, one for each direction. A plugin that doesn't read fills the writer's queue, and then
//! calls wait for that, within their deadline. Whoever closes the connection ends both tasks and fails all calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::{DecodeError, Message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{ConnectionError, TrunkError};
use crate::mux;
use crate::ttrpc::{self, Frame, Frames, Kind, Request, Response, Status};

/// Messages that wait to be sent.
const OUTGOING: usize = 8;
/// Requests of a plugin that wait to be looked at.
const INCOMING: usize = 16;

/// A connection; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug)]
struct Shared {
    calls: Mutex<Calls>,
    closed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Calls {
    /// How many there were.
    made: u32,
    waiting: BTreeMap<u32, oneshot::Sender<Result<Response, DecodeError>>>,
}

/// A request that the plugin made.
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: u32,
    /// What it wants.
    pub(crate) request: Request,
}

impl Connection {
    /// Takes a socket; the plugin's own requests come out of the receiver.
    pub(crate) fn open(socket: UnixStream) -> (Self, mpsc::Receiver<Incoming>) {
        let (from, to) = socket.into_split();
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let (requests, incoming) = mpsc::channel(INCOMING);
        let shared = Arc::new(Shared {
            calls: Mutex::default(),
            closed: watch::Sender::new(false),
        });
        let this = Self { shared, outgoing };
        let (reader, mut closed) = (this.clone(), this.shared.closed.subscribe());
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = reader.read(from, requests) => ended,
                _ = closed.wait_for(|closed| *closed) => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an NRI plugin's connection is given up");
            }
            reader.close();
        });
        let (writer, mut closed) = (this.clone(), this.shared.closed.subscribe());
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = write(to, queue) => ended,
                _ = closed.wait_for(|closed| *closed) => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an NRI plugin's connection is given up");
            }
            writer.close();
        });
        (this, incoming)
    }

    /// Calls a method of the plugin.
    pub(crate) async fn call<A: Message + Default>(
        &self,
        method: &str,
        payload: &impl Message,
        limit: Duration,
    ) -> Result<A, ConnectionError> {
        let request = Request {
            service: "nri.pkg.api.v1alpha1.Plugin".to_owned(),
            method: method.to_owned(),
            payload: payload.encode_to_vec(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
        };
        let (answer, answered) = oneshot::channel();
        let stream = {
            let mut calls = self.calls();
            let stream = calls.made.wrapping_mul(2).wrapping_add(1);
            calls.made = calls.made.wrapping_add(1);
            calls.waiting.insert(stream, answer);
            stream
        };
        let sent = async {
            self.send(mux::PLUGIN, stream, Kind::Request, &request).await?;
            let mut closed = self.shared.closed.subscribe();
            tokio::select! {
                // An answer counts even if the end came right after it.
                biased;
                answer = answered => answer.map_err(|_| ConnectionError::Closed),
                _ = closed.wait_for(|closed| *closed) => Err(ConnectionError::Closed),
            }
        };
        let answer = tokio::time::timeout(limit, sent).await;
        self.calls().waiting.remove(&stream);
        let response = answer.unwrap_or(Err(ConnectionError::Timeout(limit.as_millis())))??;
        match response.status {
            Some(Status { code, message }) if code != 0 => Err(ConnectionError::Refused { code, message }),
            _ => Ok(A::decode(response.payload.as_slice())?),
        }
    }

    /// Answers a request of the plugin.
    pub(crate) async fn answer(&self, to: &Incoming, answer: Result<Vec<u8>, Status>) {
        let response = match answer {
            Ok(payload) => Response {
                status: None,
                payload,
            },
            Err(status) => Response {
                status: Some(status),
                payload: Vec::new(),
            },
        };
        // Who is gone needs no answer.
        let _ = self
            .send(mux::RUNTIME, to.stream, Kind::Response, &response)
            .await;
    }

    /// Ends it.
    pub(crate) fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    /// Whether it has ended.
    pub(crate) fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Waits for its end.
    pub(crate) async fn closed(&self) {
        let mut closed = self.shared.closed.subscribe();
        // An error is the same news.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    async fn send(
        &self,
        connection: u32,
        stream: u32,
        kind: Kind,
        message: &impl Message,
    ) -> Result<(), ConnectionError> {
        let frame = Frame {
            stream,
            kind,
            flags: if kind == Kind::Request {
                ttrpc::REMOTE_CLOSED
            } else {
                0
            },
            body: message.encode_to_vec(),
        };
        let bytes = mux::encode(connection, &frame.encode()?);
        let mut closed = self.shared.closed.subscribe();
        tokio::select! {
            sent = self.outgoing.send(bytes) => sent.map_err(|_| ConnectionError::Closed),
            _ = closed.wait_for(|closed| *closed) => Err(ConnectionError::Closed),
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(
        &self,
        mut from: OwnedReadHalf,
        requests: mpsc::Sender<Incoming>,
    ) -> Result<(), TrunkError> {
        let (mut answers, mut calls) = (Frames::default(), Frames::default());
        let mut piece = Vec::new();
        loop {
            let mut head = [0; mux::HEAD_BYTES];
            from.read_exact(&mut head).await?;
            let (connection, length) = mux::parse_head(head)?;
            piece.clear();
            // Grows as bytes come, whatever the head says.
            let read = (&mut from).take(length as u64).read_to_end(&mut piece).await?;
            if read < length {
                return Ok(());
            }
            match connection {
                mux::PLUGIN => {
                    answers.push(&piece);
                    while let Some(frame) = answers.next_frame()? {
                        self.hear_answer(frame)?;
                    }
                }
                mux::RUNTIME => {
                    calls.push(&piece);
                    while let Some(frame) = calls.next_frame()? {
                        self.hear_request(frame, &requests).await?;
                    }
                }
                _ => {}
            }
            // What was needed once isn't kept.
            piece.shrink_to(mux::MAX_PIECE.min(1 << 16));
        }
    }

    fn hear_answer(&self, frame: Frame) -> Result<(), DecodeError> {
        if frame.kind != Kind::Response {
            return Ok(());
        }
        let response = Response::decode(frame.body.as_slice());
        let ended = response.as_ref().map(drop).map_err(Clone::clone);
        if let Some(waiting) = self.calls().waiting.remove(&frame.stream) {
            // Who gave up waiting needs no answer.
            let _ = waiting.send(response);
        }
        ended
    }

    async fn hear_request(&self, frame: Frame, requests: &mpsc::Sender<Incoming>) -> Result<(), DecodeError> {
        if frame.kind != Kind::Request {
            return Ok(());
        }
        let request = Request::decode(frame.body.as_slice())?;
        let incoming = Incoming {
            stream: frame.stream,
            request,
        };
        if let Err(mpsc::error::TrySendError::Full(incoming)) = requests.try_send(incoming) {
            let status = Status {
                code: ttrpc::RESOURCE_EXHAUSTED,
                message: format!("more than {INCOMING} requests wait already"),
            };
            self.answer(&incoming, Err(status)).await;
        }
        Ok(())
    }
}

async fn write(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) -> Result<(), TrunkError> {
    while let Some(bytes) = queue.recv().await {
        to.write_all(&bytes).await?;
    }
    Ok(())
}
