//! Connections: accepted up to a bound, served as HTTP, drained at the end.
//!
//! Every wait for a client has an end: the handshake, a request's head, its body, and its taking more of an answer. Tunnels
//! alone may be silent for as long as they like; a connection without a request under way is closed after a while, with
//! HTTP/2 too, where pings alone would keep it. When the server is told to stop it stops listening, lets requests that run
//! finish, and cuts what is left when the time to drain is over.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;

use super::answers::{Answer, Body};
use super::config::Limits;
use super::credentials::Reloading;

/// The longest request head, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// Requests at once of one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;
/// After a failed accept (no descriptors left, say), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How far the server's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Serving,
    Draining,
    Closed,
}

/// Which listener a connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// HTTPS, with credentials.
    Secure,
    /// Plain, for reading.
    ReadOnly,
    /// Plain, for health alone.
    Health,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) door: Door,
    /// What is in force; only with TLS.
    pub(super) reloading: Option<Arc<Reloading>>,
    /// The client's certificates, not yet judged.
    pub(super) certificates: Arc<Vec<CertificateDer<'static>>>,
    /// The right to be connected: held by tunnels, too.
    _permit: Arc<OwnedSemaphorePermit>,
    patient: Arc<AtomicBool>,
    stage: watch::Receiver<Stage>,
}

impl Peer {
    /// From here on it may be silent for any time.
    pub(super) fn tunnelled(&self) {
        self.patient.store(true, Ordering::Relaxed);
    }

    /// Waits until everything has to end.
    pub(super) async fn closed(&self) {
        let mut stage = self.stage.clone();
        // An error means that the server is gone, which is the same news.
        let _ = stage.wait_for(|stage| *stage == Stage::Closed).await;
    }
}

/// Answers requests.
pub(super) trait Respond: Send + Sync + 'static {
    /// Answers one.
    fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Answer> + Send;
}

/// A bound listener.
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    pub(super) door: Door,
    pub(super) reloading: Option<Arc<Reloading>>,
    pub(super) limits: Limits,
}

impl Listener {
    /// Accepts and serves until the stage says otherwise, then waits for connections to end.
    pub(super) async fn run<R: Respond>(self, respond: Arc<R>, mut stage: watch::Receiver<Stage>) {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let serving = stage.clone();
        loop {
            let next = async {
                let permit = permits
                    .clone()
                    .acquire_owned()
                    .await
                    .expect("this semaphore is never closed");
                (self.socket.accept().await, permit)
            };
            let (accepted, permit) = tokio::select! {
                next = next => next,
                _ = stage.wait_for(|stage| *stage != Stage::Serving) => break,
            };
            match accepted {
                Ok((stream, from)) => {
                    let connection = Connection {
                        door: self.door,
                        reloading: self.reloading.clone(),
                        limits: self.limits,
                        permit: Arc::new(permit),
                        stage: serving.clone(),
                        from,
                    };
                    tokio::spawn(connection.serve(stream, respond.clone()));
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "failed to accept a connection"
                    );
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.socket);
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        tokio::select! {
            _ = permits.acquire_many(all) => {}
            _ = stage.wait_for(|stage| *stage == Stage::Closed) => {}
        }
    }
}

struct Connection {
    door: Door,
    reloading: Option<Arc<Reloading>>,
    limits: Limits,
    permit: Arc<OwnedSemaphorePermit>,
    stage: watch::Receiver<Stage>,
    from: SocketAddr,
}

impl Connection {
    async fn serve<R: Respond>(self, stream: TcpStream, respond: Arc<R>) {
        let from = self.from;
        // Terminals send single keys.
        let _ = stream.set_nodelay(true);
        let patient = Arc::new(AtomicBool::new(false));
        let stream = Impatient::new(stream, self.limits.stall, patient.clone());
        let ended = match self.reloading.as_ref().map(|reloading| reloading.current()) {
            None => {
                let peer = self.peer(Vec::new(), patient);
                self.http1(stream, respond, peer).await
            }
            Some(credentials) => {
                let handshake = TlsAcceptor::from(credentials.tls.clone()).accept(stream);
                match tokio::time::timeout(self.limits.handshake, handshake).await {
                    Err(_) => Err("the client is too slow in shaking hands".into()),
                    Ok(Err(error)) => Err(error.into()),
                    Ok(Ok(stream)) => {
                        let session = stream.get_ref().1;
                        let certificates = session
                            .peer_certificates()
                            .unwrap_or_default()
                            .iter()
                            .map(|certificate| certificate.clone().into_owned())
                            .collect();
                        let two = session.alpn_protocol() == Some(b"h2");
                        let peer = self.peer(certificates, patient);
                        if two {
                            self.http2(stream, respond, peer).await
                        } else {
                            self.http1(stream, respond, peer).await
                        }
                    }
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%from, %error, "a connection failed");
        }
    }

    fn peer(&self, certificates: Vec<CertificateDer<'static>>, patient: Arc<AtomicBool>) -> Peer {
        Peer {
            door: self.door,
            reloading: self.reloading.clone(),
            certificates: Arc::new(certificates),
            _permit: self.permit.clone(),
            patient,
            stage: self.stage.clone(),
        }
    }

    async fn http1<R: Respond>(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        respond: Arc<R>,
        peer: Peer,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let service = service_fn(move |request| {
            let answer = respond.clone().respond(request, peer.clone());
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            _ = self.stage.wait_for(|stage| *stage != Stage::Serving) => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => Ok(ended?),
            _ = self.stage.wait_for(|stage| *stage == Stage::Closed) => Ok(()),
        }
    }

    async fn http2<R: Respond>(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        respond: Arc<R>,
        peer: Peer,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (counting, mut streams) = watch::channel(0);
        let counting = Arc::new(counting);
        let service = service_fn(move |request| {
            let stream = Stream::begin(counting.clone());
            let answer = respond.clone().respond(request, peer.clone());
            async move {
                Ok::<_, Infallible>(answer.await.map(|body| Counted {
                    body,
                    _stream: stream,
                }))
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            .keep_alive_interval(self.limits.head)
            .keep_alive_timeout(self.limits.head)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            _ = self.stage.wait_for(|stage| *stage != Stage::Serving) => {}
            () = idle(&mut streams, self.limits.head) => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => Ok(ended?),
            _ = self.stage.wait_for(|stage| *stage == Stage::Closed) => Ok(()),
            // It was told that this is the end, and has had the time to take what it was still owed.
            () = idle(&mut streams, self.limits.stall) => Ok(()),
        }
    }
}

/// Ready once no stream has been under way for so long.
async fn idle(streams: &mut watch::Receiver<usize>, patience: Duration) {
    loop {
        if streams.wait_for(|count| *count == 0).await.is_err() {
            return;
        }
        tokio::select! {
            // One may have begun and ended already: the time begins anew all the same.
            changed = streams.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(patience) => return,
        }
    }
}

/// A stream of an HTTP/2 connection, from its request to the end of its answer.
struct Stream(Arc<watch::Sender<usize>>);

impl Stream {
    fn begin(counting: Arc<watch::Sender<usize>>) -> Self {
        counting.send_modify(|count| *count += 1);
        Self(counting)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// A body whose stream is under way until it ends.
struct Counted {
    body: Body,
    _stream: Stream,
}

impl hyper::body::Body for Counted {
    type Data = <Body as hyper::body::Body>::Data;
    type Error = <Body as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose writes fail when the other side takes nothing for too long.
struct Impatient {
    stream: TcpStream,
    stall: Duration,
    /// Set when it may take any time after all.
    patient: Arc<AtomicBool>,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: TcpStream, stall: Duration, patient: Arc<AtomicBool>) -> Self {
        Self {
            stream,
            stall,
            patient,
            waiting: None,
        }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() || self.patient.load(Ordering::Relaxed) {
            self.waiting = None;
            return result;
        }
        let stall = self.stall;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + stall)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
