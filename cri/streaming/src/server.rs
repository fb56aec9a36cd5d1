//! The HTTP server: tokens in, upgrades out.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::api::{AttachRequest, ExecRequest, PortForwardRequest, StreamHandler};
use crate::limits::Limits;
use crate::tokens::{Pending, TokenError, Tokens};
use crate::upgrade;

/// The longest request head that is taken, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// After a failed accept (no descriptors left, say), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The right to have a connection open, held by all that serves it.
pub(crate) type Permit = Arc<OwnedSemaphorePermit>;

/// Why the server can't listen.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen for streaming clients on `{addr}`")]
pub struct BindError {
    /// The address.
    pub addr: SocketAddr,
    /// The kernel's reason.
    #[source]
    pub source: std::io::Error,
}

/// The streaming server.
///
/// URLs can be given out as soon as it is bound; clients that come before [`StreamServer::run`] wait in the kernel.
pub struct StreamServer {
    listener: TcpListener,
    addr: SocketAddr,
    shared: Arc<Shared>,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) handler: Arc<dyn StreamHandler>,
    pub(crate) limits: Limits,
    pub(crate) tokens: Tokens,
    /// Becomes true when the server stops.
    pub(crate) closing: watch::Sender<bool>,
}

impl StreamServer {
    /// Listens on `addr`; port 0 lets the kernel choose one.
    pub async fn bind(
        addr: SocketAddr,
        handler: Arc<dyn StreamHandler>,
        limits: Limits,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let tokens = Tokens::new(limits.token_life, limits.max_tokens);
        let shared = Arc::new(Shared {
            handler,
            limits,
            tokens,
            closing: watch::Sender::new(false),
        });
        Ok(Self {
            listener,
            addr,
            shared,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// A URL that runs `request` for whoever opens it first, within a minute.
    pub fn exec_url(&self, request: ExecRequest) -> Result<String, TokenError> {
        self.url(Pending::Exec(request))
    }

    /// A URL that attaches whoever opens it first, within a minute.
    pub fn attach_url(&self, request: AttachRequest) -> Result<String, TokenError> {
        self.url(Pending::Attach(request))
    }

    /// A URL that forwards ports for whoever opens it first, within a minute.
    pub fn port_forward_url(&self, request: PortForwardRequest) -> Result<String, TokenError> {
        self.url(Pending::PortForward(request))
    }

    fn url(&self, pending: Pending) -> Result<String, TokenError> {
        let verb = pending.verb();
        let token = self.shared.tokens.insert(pending, Instant::now())?;
        Ok(format!("http://{}/{verb}/{token}", self.addr))
    }

    /// Serves until `shutdown` is ready; connections that are open then are closed.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) {
        let permits = Arc::new(Semaphore::new(self.shared.limits.max_connections));
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let next = async {
                let permit = permits
                    .clone()
                    .acquire_owned()
                    .await
                    .expect("this semaphore is never closed");
                (self.listener.accept().await, permit)
            };
            tokio::select! {
                (accepted, permit) = next => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(serve(stream, self.shared.clone(), Arc::new(permit)));
                    }
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "failed to accept a streaming client");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = &mut shutdown => break,
            }
        }
        self.shared.closing.send_replace(true);
    }
}

/// Serves one TCP connection as HTTP/1.1 until it is upgraded or ends.
async fn serve(stream: TcpStream, shared: Arc<Shared>, permit: Permit) {
    // Terminals send single keys.
    let _ = stream.set_nodelay(true);
    let mut closing = shared.closing.subscribe();
    let patience = shared.limits.stream_creation;
    let service = service_fn(|request| {
        let answer = upgrade::answer(request, &shared, &permit);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        result = connection => {
            if let Err(error) = result {
                tracing::debug!(error = &error as &dyn std::error::Error, "a streaming client failed");
            }
        }
        _ = closing.wait_for(|closing| *closing) => {}
    }
}
