//! Exec, attach and port-forward: the client's upgrade is handed on to the runtime's streaming server, and what follows
//! is copied byte for byte, whatever protocol it is.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::answers::{Answer, full, text};
use super::listener::Peer;

/// For the runtime's streaming server to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest refusal that is handed on.
const MAX_REFUSAL: usize = 64 << 10;
/// How much is copied at once, each way.
const BUFFER: usize = 16 << 10;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
enum TunnelError {
    #[error("the runtime's streaming URL {url:?} is no http URL with a host")]
    Url { url: String },
    #[error("failed to connect to the runtime's streaming server at {address}: {source}")]
    Connect { address: String, source: std::io::Error },
    #[error("failed to talk to the runtime's streaming server: {0}")]
    Http(#[from] hyper::Error),
    #[error("the runtime's streaming server doesn't answer")]
    Slow,
}

/// Whether a request wants to go on as something else.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    let asks = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    asks && headers.contains_key(header::UPGRADE)
}

/// Hands the request on to `url`; the tunnel lives on in a task of its own after the answer.
pub(super) async fn open(request: Request<Incoming>, url: &str, peer: &Peer) -> Answer {
    if !is_upgrade(request.headers()) {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "Upgrade request required\n");
    }
    let opened = tokio::time::timeout(PATIENCE, connect(request, url, peer)).await;
    match opened.unwrap_or(Err(TunnelError::Slow)) {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "failed to open a stream"
            );
            text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
        }
    }
}

async fn connect(mut request: Request<Incoming>, url: &str, peer: &Peer) -> Result<Answer, TunnelError> {
    let unusable = || TunnelError::Url { url: url.to_owned() };
    let target: Uri = url.parse().map_err(|_| unusable())?;
    let authority = target
        .authority()
        .filter(|_| target.scheme_str() == Some("http"))
        .ok_or_else(unusable)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80)))
        .await
        .map_err(|source| TunnelError::Connect {
            address: authority.to_string(),
            source,
        })?;
    // Terminals send single keys.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // Its end is seen by who reads.
        let _ = connection.with_upgrades().await;
    });
    let mut onward = Request::new(Empty::<Bytes>::new());
    *onward.method_mut() = request.method().clone();
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    *onward.uri_mut() = path.parse().map_err(|_| unusable())?;
    *onward.headers_mut() = onward_headers(request.headers());
    if let Ok(host) = authority.as_str().parse() {
        onward.headers_mut().insert(header::HOST, host);
    }
    let mut answer = sender.send_request(onward).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_REFUSAL)
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let mut refusal = Answer::new(full(body));
        *refusal.status_mut() = head.status;
        for (name, value) in &head.headers {
            if !is_of_connection(name) {
                refusal.headers_mut().append(name.clone(), value.clone());
            }
        }
        return Ok(refusal);
    }
    let far = hyper::upgrade::on(&mut answer);
    let near = hyper::upgrade::on(&mut request);
    let mut agreed = Answer::new(full(Bytes::new()));
    *agreed.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *agreed.headers_mut() = answer.headers().clone();
    tokio::spawn(copy(near, far, peer.clone()));
    Ok(agreed)
}

/// All headers but those that are for this server alone.
fn onward_headers(headers: &HeaderMap) -> HeaderMap {
    let mut onward = headers.clone();
    for name in [
        header::AUTHORIZATION,
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
    ] {
        onward.remove(name);
    }
    onward
}

fn is_of_connection(name: &header::HeaderName) -> bool {
    [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ]
    .contains(name)
}

async fn copy(near: hyper::upgrade::OnUpgrade, far: hyper::upgrade::OnUpgrade, peer: Peer) {
    let (Ok(near), Ok(far)) = tokio::join!(near, far) else {
        return;
    };
    peer.tunnelled();
    let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
    tokio::select! {
        ended = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER) => {
            if let Err(error) = ended {
                tracing::debug!(error = &error as &dyn std::error::Error, "a stream broke");
            }
        }
        () = peer.closed() => {}
    }
}
