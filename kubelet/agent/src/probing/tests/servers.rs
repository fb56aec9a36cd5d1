//! Servers to be probed: one answer each, on ports of the system's choice.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::probing::grpc::{HealthCheckRequest, HealthCheckResponse};

/// What a server was asked, request by request.
pub(crate) type Asked = Arc<Mutex<Vec<String>>>;

/// Answers every connection by what `answer` makes of the request; none leaves it without an answer.
pub(crate) async fn http(
    answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static,
    tls: bool,
) -> (u16, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Asked::default();
    let (log, answer) = (asked.clone(), Arc::new(answer));
    let acceptor = tls.then(acceptor);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (log, answer, acceptor) = (log.clone(), answer.clone(), acceptor.clone());
            tokio::spawn(async move {
                match acceptor {
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(stream, &log, answer.as_ref()).await;
                        }
                    }
                    None => serve(stream, &log, answer.as_ref()).await,
                }
            });
        }
    });
    (port, asked)
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    log: &Asked,
    answer: &(dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync),
) {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(length) => request.extend_from_slice(&chunk[..length]),
        }
        if request.first().is_some_and(|byte| !byte.is_ascii_uppercase()) {
            break;
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let bytes = answer(&request);
    log.lock().unwrap().push(request);
    match bytes {
        Some(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        None => std::future::pending().await,
    }
}

fn acceptor() -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(vec!["probed.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// A response with a status line, headers and a body.
pub(crate) fn response(status: &str, headers: &str, body: &str) -> Option<Vec<u8>> {
    Some(
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

/// A port that nobody listens on.
pub(crate) async fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

type Answer = Arc<dyn Fn(&str) -> Result<i32, Status> + Send + Sync>;

/// The health service, which answers by the name of the service that is asked for.
#[derive(Clone)]
struct Health(Answer);

impl tonic::server::NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

struct Check(Answer);

impl tonic::server::UnaryService<HealthCheckRequest> for Check {
    type Response = HealthCheckResponse;
    type Future = Ready<Result<Response<HealthCheckResponse>, Status>>;

    fn call(&mut self, request: Request<HealthCheckRequest>) -> Self::Future {
        let status = (self.0)(&request.into_inner().service);
        ready(status.map(|status| Response::new(HealthCheckResponse { status })))
    }
}

impl Service<::http::Request<Body>> for Health {
    type Response = ::http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ::http::Request<Body>) -> Self::Future {
        let check = Check(self.0.clone());
        Box::pin(async move {
            let codec: ProstCodec<HealthCheckResponse, HealthCheckRequest> = ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec).unary(check, request).await)
        })
    }
}

/// Serves the health protocol.
pub(crate) async fn grpc(answer: impl Fn(&str) -> Result<i32, Status> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(Health(Arc::new(answer)));
    tokio::spawn(server.serve_with_incoming(incoming));
    port
}
