//! HTTP requests of probes and hooks: one per connection, without proxies, certificates unverified.
//!
//! Redirects are followed to the same host, ten at most; one to another host ends the probe well, with a warning. At most
//! 10 KiB of the answer are read.

use std::time::Duration;

use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::dial::{self, connect, forget, join};
use super::{Outcome, tls};

pub(crate) use super::tls::PLAIN_ANSWER;

const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

/// The newest release that this kubelet behaves like.
const VERSION: &str = "1.37";

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A probe.
    Probe,
    /// A lifecycle hook.
    Hook,
}

impl Asker {
    fn user_agent(self) -> String {
        match self {
            Asker::Probe => format!("kube-probe/{VERSION}"),
            Asker::Hook => format!("kube-lifecycle/{VERSION}"),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpTarget {
    /// Whether with TLS.
    pub tls: bool,
    /// Name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Path and query, with the slash.
    pub path: PathAndQuery,
    /// All headers that are sent but for `Connection`.
    pub headers: HeaderMap,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Where it points, if it redirects.
    pub location: Option<String>,
    /// Its first 10 KiB.
    pub body: Vec<u8>,
}

impl HttpTarget {
    /// A target with upstream's headers: those given, `User-Agent` and `Accept` unless given, none of these two where
    /// they are given and empty.
    pub fn new(
        tls: bool,
        host: &str,
        port: u16,
        path: &str,
        given: &[(String, String)],
        asker: Asker,
    ) -> Result<HttpTarget, String> {
        let slash = if path.starts_with('/') { "" } else { "/" };
        let whole = format!("{slash}{}", escape(path.split('#').next().unwrap_or_default()));
        let path =
            PathAndQuery::try_from(whole).map_err(|error| format!("invalid path {path:?}: {error}"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            let name = HeaderName::try_from(name)
                .map_err(|_| format!("net/http: invalid header field name {name:?}"))?;
            let value = HeaderValue::try_from(value)
                .map_err(|_| format!("net/http: invalid header field value for {:?}", name.as_str()))?;
            headers.append(name, value);
        }
        let agent = asker.user_agent();
        for (name, default) in [(header::USER_AGENT, agent.as_str()), (header::ACCEPT, "*/*")] {
            match headers.get(&name) {
                None => {
                    let value = HeaderValue::from_str(default).map_err(|error| error.to_string())?;
                    headers.insert(name, value);
                }
                Some(value) if value.is_empty() => {
                    headers.remove(name);
                }
                Some(_) => {}
            }
        }
        if headers.get(header::HOST).is_none_or(HeaderValue::is_empty) {
            let default_port = if tls { 443 } else { 80 };
            let own = join(host, port);
            let own = if port == default_port {
                own.trim_end_matches(&format!(":{port}"))
            } else {
                &own
            };
            headers.insert(
                header::HOST,
                HeaderValue::from_str(own).map_err(|error| error.to_string())?,
            );
        }
        Ok(HttpTarget {
            tls,
            host: host.to_owned(),
            port,
            path,
            headers,
        })
    }

    /// As messages show it.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", join(&self.host, self.port), self.path)
    }

    /// Where a redirect leads: another target on the same host, or none where it leads elsewhere.
    fn redirected(&self, location: &str) -> Result<Option<HttpTarget>, String> {
        let unclear = |reason: String| format!("failed to parse Location header {location:?}: {reason}");
        let location = escape(location.split('#').next().unwrap_or_default());
        let mut next = self.clone();
        let whole = match location.strip_prefix("//") {
            Some(rest) => Some(format!("{}://{rest}", if self.tls { "https" } else { "http" })),
            None => location
                .split('/')
                .next()
                .is_some_and(|first| first.contains(':'))
                .then(|| location.clone()),
        };
        let path = if let Some(whole) = whole {
            let uri: Uri = whole.parse().map_err(|error| unclear(format!("{error}")))?;
            next.tls = match uri.scheme_str() {
                Some("https") => true,
                Some("http") => false,
                other => {
                    return Err(format!(
                        "unsupported protocol scheme {:?}",
                        other.unwrap_or_default()
                    ));
                }
            };
            let plain = |host: &str| host.trim_matches(['[', ']']).to_ascii_lowercase();
            if uri.host().map(plain) != Some(plain(&self.host)) {
                return Ok(None);
            }
            next.port = uri.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
            let host =
                HeaderValue::from_str(&join(&next.host, next.port)).map_err(|error| error.to_string())?;
            next.headers.insert(header::HOST, host);
            uri.path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string)
        } else if location.starts_with('/') {
            location
        } else if location.starts_with('?') {
            format!("{}{location}", self.path.path())
        } else {
            let folder = self.path.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{location}")
        };
        next.path = PathAndQuery::try_from(path).map_err(|error| unclear(format!("{error}")))?;
        Ok(Some(next))
    }
}

/// Escapes what may not stand in a path as it is.
fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'!'..=b'~' if !b"\"<>\\^`{|}".contains(&byte) => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Probes once, following redirects.
pub async fn probe(target: &HttpTarget, patience: Duration) -> Outcome {
    let url = target.url();
    let failed = |reason: &str| Outcome::Failure(format!("Get {url:?}: {reason}"));
    let run = async {
        let mut now = target.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = get(&now).await?;
            let next = match answer.location.as_deref() {
                Some(location) if (300..400).contains(&answer.status) => now.redirected(location)?,
                _ => return Ok(answer),
            };
            match next {
                Some(next) => now = next,
                None => return Ok(answer),
            }
        }
        Err(format!("stopped after {MAX_REDIRECTS} redirects"))
    };
    let answer = match timeout(patience, Box::pin(run)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(reason)) => return failed(&reason),
        Err(_) => {
            return failed("context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
        }
    };
    let body = || String::from_utf8_lossy(&answer.body).into_owned();
    match answer.status {
        200..300 => Outcome::Success(body()),
        300..400 => Outcome::Warning(format!("Probe terminated redirects, Response body: {}", body())),
        status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
    }
}

/// Asks once, without following.
pub async fn get(target: &HttpTarget) -> Result<Answer, String> {
    let stream = connect(&target.host, target.port)
        .await
        .map_err(|error| error.to_string())?;
    // Two small writes at most: waiting for more would only cost time.
    let _ = stream.set_nodelay(true);
    if target.tls {
        let stream = tls::wrap(stream, &target.host, false).await?;
        let (answer, parts) = exchange(TokioIo::new(stream), target).await?;
        if let Some(stream) = parts {
            dial::forget(stream.into_inner().get_ref().0);
        }
        Ok(answer)
    } else {
        let (answer, parts) = exchange(TokioIo::new(stream), target).await?;
        if let Some(stream) = parts {
            forget(&stream.into_inner());
        }
        Ok(answer)
    }
}

/// One request and its answer. The connection is handed back once the answer was read whole.
async fn exchange<S>(io: S, target: &HttpTarget) -> Result<(Answer, Option<S>), String>
where
    S: Read + Write + Unpin + Send,
{
    let (mut sender, mut connection) = http1::handshake::<_, Empty<Bytes>>(io)
        .await
        .map_err(|error| words(&error))?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from(target.path.clone());
    *request.headers_mut() = target.headers.clone();
    request
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    let asked = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| words(&error))?;
        let status = response.status().as_u16();
        let location = response.headers().get(header::LOCATION);
        let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (body, whole) = read(response.into_body()).await?;
        Ok::<_, String>((
            Answer {
                status,
                location,
                body,
            },
            whole,
        ))
    };
    tokio::pin!(asked);
    let mut open = true;
    let (answer, whole) = loop {
        tokio::select! {
            biased;
            answer = &mut asked => break answer?,
            _ = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)), if open => open = false,
        }
    };
    let stream = whole.then(|| connection.into_parts().io);
    Ok((answer, stream))
}

/// The first of a body, and whether that was all.
async fn read(mut body: Incoming) -> Result<(Vec<u8>, bool), String> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| words(&error))?;
        if let Some(data) = frame.data_ref() {
            let room = MAX_BODY - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
            if bytes.len() == MAX_BODY {
                return Ok((bytes, false));
            }
        }
    }
    Ok((bytes, true))
}

fn words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        return "EOF".to_owned();
    }
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}
