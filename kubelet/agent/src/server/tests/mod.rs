//! The whole server over real sockets, with a fake kubelet behind.

mod access;
mod endpoints;
mod fake;
mod streams;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;
use crate::server::authz::{Rule, Rules};
pub(super) use fake::Fake;

pub(super) const ADMIN: &str = "Bearer admin-token";

/// A server that runs, and what its clients need.
pub(super) struct Bed {
    pub(super) folder: tempfile::TempDir,
    pub(super) fake: Arc<Fake>,
    pub(super) address: SocketAddr,
    pub(super) read_only: SocketAddr,
    pub(super) health: SocketAddr,
    pub(super) metrics: KubeletMetrics,
    stop: Option<oneshot::Sender<()>>,
    running: Option<tokio::task::JoinHandle<()>>,
}

impl Bed {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens.csv");
        let lines =
            "admin-token,admin,1,\"system:masters,ops\"\nprom-token,prometheus,2\nnobody-token,nobody,3,\n";
        std::fs::write(&tokens, lines).unwrap();
        let rules = Rules {
            allowed: vec![Rule {
                subject: "prometheus".into(),
                verbs: vec!["get".into()],
                subresources: vec!["metrics".into(), "stats".into()],
            }],
        };
        let anywhere = Some("127.0.0.1:0".parse().unwrap());
        let mut config = ServerConfig::new(folder.path().to_owned(), Arc::new(rules));
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.read_only = anywhere;
        config.healthz = anywhere;
        config.tokens = Some(tokens);
        config.names = vec!["node-1".into()];
        config.log_dir = folder.path().join("log");
        config.limits.drain = Duration::from_millis(300);
        change(&mut config);
        let fake = Arc::new(Fake::new(folder.path()));
        let metrics = KubeletMetrics::new();
        let server = Server::bind(config, fake.clone(), metrics.clone()).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let (address, read_only, health) = (
            server.secure_address().unwrap(),
            server.read_only_address().unwrap(),
            server.health_address().unwrap(),
        );
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            folder,
            fake,
            address,
            read_only,
            health,
            metrics,
            stop: Some(stop),
            running: Some(running),
        }
    }

    pub(super) async fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.running.take().unwrap().await.unwrap();
    }

    pub(super) fn own_certificate(&self) -> PathBuf {
        self.folder.path().join("pki/kubelet.crt")
    }

    /// A connection that trusts the server's certificate, as `identity`, over HTTP/1.1.
    pub(super) async fn connect(
        &self,
        identity: Option<&Identity>,
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        tls(self.address, &self.own_certificate(), identity, b"http/1.1")
            .await
            .unwrap()
    }

    /// Sends a request with an `Authorization` header over TLS.
    pub(super) async fn send(&self, method: &str, path: &str, authorization: &str) -> Response<Incoming> {
        let stream = self.connect(None).await;
        exchange(stream, request(method, path, authorization, "")).await
    }

    /// GETs with the administrator's token.
    pub(super) async fn get(&self, path: &str) -> (StatusCode, String) {
        read(self.send("GET", path, ADMIN).await).await
    }
}

/// A client's certificate and key.
pub(super) struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

pub(super) async fn tls(
    address: SocketAddr,
    trusted: &Path,
    identity: Option<&Identity>,
    protocol: &[u8],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(trusted).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .unwrap(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("node-1").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

pub(super) fn request(method: &str, path: &str, authorization: &str, body: &str) -> Request<Full<Bytes>> {
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "node-1");
    if !authorization.is_empty() {
        builder = builder.header("authorization", authorization);
    }
    builder.body(Full::from(body.to_owned())).unwrap()
}

pub(super) async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Response<Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.unwrap()
}

pub(super) async fn plain(address: SocketAddr, path: &str) -> (StatusCode, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    read(exchange(stream, request("GET", path, "", "")).await).await
}

pub(super) async fn read(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}
