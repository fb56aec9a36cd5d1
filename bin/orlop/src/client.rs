//! HTTPS to the kubelet: one connection a request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;

use crate::access::{Access, NODE_FILE, NODE_VARIABLE};
use crate::failure::Failure;
use crate::trust;

/// For a connection, and for an answer to begin.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most that is read of an answer that is kept whole.
const MAX_ANSWER: usize = 256 << 20;
/// Sub-protocols of exec, best first.
const EXEC_PROTOCOLS: &str = "v5.channel.k8s.io, v4.channel.k8s.io";

/// Asks one kubelet.
pub(crate) struct Client {
    access: Access,
    connector: TlsConnector,
    host: String,
    port: u16,
}

impl Client {
    pub(crate) fn new(access: Access) -> Result<Self, Failure> {
        let wrong = || {
            let what = format!("{:?} is no address of a kubelet", access.kubelet);
            Failure::helped(what, "--kubelet https://HOST:10250")
        };
        let uri: Uri = access.kubelet.parse().map_err(|_| wrong())?;
        let authority = uri
            .authority()
            .filter(|_| uri.scheme_str() == Some("https"))
            .ok_or_else(wrong)?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = authority.port_u16().unwrap_or(10250);
        let connector = TlsConnector::from(Arc::new(trust::configuration(&access)?));
        Ok(Self {
            access,
            connector,
            host,
            port,
        })
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, Failure> {
        let place = &self.access.kubelet;
        let unreachable = |why: String| {
            Failure::helped(
                format!("failed to reach the kubelet at {place}: {why}"),
                format!(
                    "is it running (systemctl status orlop-kubelet)? It may listen elsewhere: --kubelet URL, or the file \
                     that {NODE_VARIABLE} names ({NODE_FILE} otherwise)"
                ),
            )
        };
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        let stream = match tokio::time::timeout(PATIENCE, connect).await {
            Err(_) => return Err(unreachable("it doesn't answer".into())),
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Ok(Ok(stream)) => stream,
        };
        // Terminals send single keys.
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(self.host.clone()).map_err(|error| unreachable(error.to_string()))?;
        match tokio::time::timeout(PATIENCE, self.connector.connect(name, stream)).await {
            Err(_) => Err(unreachable("it doesn't shake hands".into())),
            Ok(Err(error)) => Err(self.distrusted(&error)),
            Ok(Ok(stream)) => Ok(stream),
        }
    }

    fn distrusted(&self, error: &std::io::Error) -> Failure {
        let ca = self
            .access
            .ca
            .as_deref()
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        Failure::helped(
            format!(
                "failed to make a safe connection to {}: {error}",
                self.access.kubelet
            ),
            format!(
                "{ca} doesn't hold its certificate, nor one that signed it: name the right one with --ca FILE"
            ),
        )
    }

    fn builder(&self, path: &str) -> http::request::Builder {
        let mut builder = Request::builder().uri(path);
        if let Some(token) = &self.access.token {
            builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        builder
    }

    /// GETs a path; an answer that isn't a success is a failure.
    pub(crate) async fn get(&self, path: &str) -> Result<Response<Incoming>, Failure> {
        let failed = |why: String| Failure::new(format!("failed to ask the kubelet for {path}: {why}"));
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(|error| failed(error.to_string()))?;
        tokio::spawn(connection);
        let request = self
            .builder(path)
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .body(Empty::<Bytes>::new())
            .map_err(|error| failed(error.to_string()))?;
        let answer = match tokio::time::timeout(PATIENCE, sender.send_request(request)).await {
            Err(_) => return Err(failed("it doesn't answer".into())),
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Ok(Ok(answer)) => answer,
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body = Limited::new(answer.into_body(), 64 << 10).collect().await;
        let text = body
            .map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned())
            .unwrap_or_default();
        Err(self.refused(status, &text))
    }

    fn refused(&self, status: StatusCode, text: &str) -> Failure {
        let text = text.trim();
        let who = "--token-file FILE, or --client-certificate FILE and --client-key FILE";
        match status {
            StatusCode::UNAUTHORIZED if self.access.token.is_none() && self.access.client.is_none() => {
                Failure::helped(
                    "the kubelet wants to know who asks",
                    format!("{who}; as root on the node, {NODE_VARIABLE}=FILE with what the node left"),
                )
            }
            StatusCode::UNAUTHORIZED => {
                Failure::helped("the kubelet doesn't know this token or certificate", who)
            }
            StatusCode::FORBIDDEN => Failure::helped(
                format!("not allowed: {text}"),
                format!("{who} of somebody in the group system:masters"),
            ),
            StatusCode::METHOD_NOT_ALLOWED => Failure::helped(
                format!("the kubelet doesn't offer this: {text}"),
                "enableDebuggingHandlers: true in its configuration",
            ),
            _ => Failure::new(format!("the kubelet says: {text} ({status})")),
        }
    }

    /// GETs an object.
    pub(crate) async fn object<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let failed =
            |why: String| Failure::new(format!("failed to read the kubelet's answer to {path}: {why}"));
        let body = Limited::new(self.get(path).await?.into_body(), MAX_ANSWER).collect();
        let bytes = body.await.map_err(|error| failed(error.to_string()))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
    }

    /// Opens a WebSocket for exec; the second part is the sub-protocol that was agreed on.
    pub(crate) async fn exec(
        &self,
        path: &str,
    ) -> Result<(WebSocketStream<TlsStream<TcpStream>>, String), Failure> {
        let failed = |why: String| Failure::new(format!("failed to open a stream to the kubelet: {why}"));
        let request = self
            .builder(&format!("wss://kubelet{path}"))
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(
                header::SEC_WEBSOCKET_KEY,
                tungstenite::handshake::client::generate_key(),
            )
            .header(header::SEC_WEBSOCKET_PROTOCOL, EXEC_PROTOCOLS)
            .body(())
            .map_err(|error| failed(error.to_string()))?;
        let stream = self.connect().await?;
        let open = tokio_tungstenite::client_async(request, stream);
        match tokio::time::timeout(PATIENCE, open).await {
            Err(_) => Err(failed("it doesn't answer".into())),
            Ok(Err(tungstenite::Error::Http(answer))) => {
                let text = answer
                    .body()
                    .as_deref()
                    .map(String::from_utf8_lossy)
                    .unwrap_or_default();
                Err(self.refused(answer.status(), &text))
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Ok(Ok((socket, answer))) => {
                let agreed = answer.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
                let agreed = agreed.and_then(|value| value.to_str().ok()).unwrap_or_default();
                Ok((socket, agreed.to_owned()))
            }
        }
    }
}

/// A part of a path or query, escaped.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            other => escaped += &format!("%{other:02X}"),
        }
    }
    escaped
}
