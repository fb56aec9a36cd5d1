//! From an HTTP request to a served connection.
//!
//! A request is checked in full before its token is used up: the verb, the transport that it wants to upgrade to, the
//! sub-protocol. A refusal says what is offered. Then the token is taken, `101 Switching Protocols` goes out, and the
//! rest happens in a task of its own on the upgraded connection.

use std::sync::Arc;
use std::time::Instant;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::Bytes;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::activity::Activity;
use crate::remote::Command;
use crate::server::{Permit, Shared};
use crate::spdy::session::{Session, Side};
use crate::tokens::Pending;
use crate::{spdy, ws};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// The answer to a request, which may go on as another protocol.
type Answer = Response<Full<Bytes>>;

/// What the client wants to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    WebSocket,
    Spdy,
}

/// A refusal.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    code: StatusCode,
    message: String,
    offered: Option<String>,
}

fn refuse(code: StatusCode, message: impl Into<String>) -> Refusal {
    Refusal {
        code,
        message: message.into(),
        offered: None,
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let mut answer = Response::new(Full::from(refusal.message + "\n"));
        *answer.status_mut() = refusal.code;
        let headers = answer.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some(offered) = refusal.offered.and_then(|o| HeaderValue::from_str(&o).ok()) {
            headers.insert(ACCEPTED_PROTOCOLS, offered);
        }
        if refusal.code == StatusCode::UPGRADE_REQUIRED {
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        answer
    }
}

/// Answers one request.
pub(crate) fn answer(mut request: Request<Incoming>, shared: &Arc<Shared>, permit: &Permit) -> Answer {
    match accept(&mut request, shared, permit) {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::debug!(path = request.uri().path(), code = %refusal.code, why = refusal.message, "refused");
            refusal.into()
        }
    }
}

fn accept(request: &mut Request<Incoming>, shared: &Arc<Shared>, permit: &Permit) -> Result<Answer, Refusal> {
    let path = request.uri().path().trim_start_matches('/');
    let (verb, token) = path.split_once('/').unwrap_or((path, ""));
    let transport = transport(request.method(), request.headers())?;
    let offered = offered(verb, transport).ok_or_else(|| {
        refuse(
            StatusCode::NOT_FOUND,
            format!("no such path: `{}`", request.uri().path()),
        )
    })?;
    let protocol = negotiate(request.headers(), transport, &offered)?;
    let pending = shared.tokens.take(verb, token, Instant::now()).ok_or_else(|| {
        refuse(
            StatusCode::NOT_FOUND,
            "this URL is unknown, was used already, or is too old; ask for a new one",
        )
    })?;
    let spoken = protocol.unwrap_or(default_protocol(verb, transport));
    let pending = with_ports(pending, request.uri().query(), transport, spoken)?;

    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    match transport {
        Transport::WebSocket => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            let key = request
                .headers()
                .get(header::SEC_WEBSOCKET_KEY)
                .map_or(&b""[..], HeaderValue::as_bytes);
            let accept = HeaderValue::from_str(&derive_accept_key(key)).expect("base64 is a header's text");
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            if let Some(protocol) = protocol {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        Transport::Spdy => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            if let Some(protocol) = protocol {
                headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
    }
    tokio::spawn(go_on(
        hyper::upgrade::on(request),
        transport,
        spoken,
        pending,
        shared.clone(),
        permit.clone(),
    ));
    Ok(answer)
}

/// What the client asks to upgrade to.
fn transport(method: &Method, headers: &HeaderMap) -> Result<Transport, Refusal> {
    let lists = |name: HeaderName, wanted: &str| {
        values(headers, &name)
            .iter()
            .any(|v| v.eq_ignore_ascii_case(wanted))
    };
    if !lists(header::CONNECTION, "upgrade") {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "this URL needs an upgrade to WebSocket or SPDY/3.1",
        ));
    }
    if lists(header::UPGRADE, "websocket") {
        if method != Method::GET {
            return Err(refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "WebSocket needs the method GET",
            ));
        }
        if !lists(header::SEC_WEBSOCKET_VERSION, "13") {
            return Err(refuse(
                StatusCode::UPGRADE_REQUIRED,
                "only WebSocket version 13 is spoken here",
            ));
        }
        if !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                "the header Sec-WebSocket-Key is missing",
            ));
        }
        return Ok(Transport::WebSocket);
    }
    if lists(header::UPGRADE, "SPDY/3.1") {
        if method != Method::GET && method != Method::POST {
            return Err(refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "SPDY needs the method GET or POST",
            ));
        }
        return Ok(Transport::Spdy);
    }
    let asked = values(headers, &header::UPGRADE).join(", ");
    let message = format!("can't upgrade to `{asked}`: only WebSocket and SPDY/3.1 are spoken here");
    Err(refuse(StatusCode::BAD_REQUEST, message))
}

/// The values of a header that is a list, over one or more lines.
fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    let all = lines.flat_map(|l| l.split(',')).map(|v| v.trim().to_owned());
    all.filter(|v| !v.is_empty()).collect()
}

/// The sub-protocols for a path; `None` for a path that doesn't exist.
fn offered(verb: &str, transport: Transport) -> Option<Vec<&'static str>> {
    Some(match (verb, transport) {
        ("exec" | "attach", Transport::WebSocket) => ws::remote::PROTOCOLS.to_vec(),
        ("exec" | "attach", Transport::Spdy) => spdy::remote::PROTOCOLS.to_vec(),
        ("portforward", Transport::WebSocket) => {
            let mut all = vec![ws::tunnel::PORT_FORWARD];
            all.extend(ws::forward::PROTOCOLS);
            all
        }
        ("portforward", Transport::Spdy) => spdy::forward::PROTOCOLS.to_vec(),
        _ => return None,
    })
}

/// What a client that names no sub-protocol means: the oldest.
fn default_protocol(verb: &str, transport: Transport) -> &'static str {
    match (verb, transport) {
        ("portforward", Transport::WebSocket) => ws::forward::PROTOCOLS[0],
        ("portforward", Transport::Spdy) => spdy::forward::PROTOCOLS[0],
        _ => "channel.k8s.io",
    }
}

/// The first of the client's sub-protocols that is offered; `None` if it names none.
fn negotiate(
    headers: &HeaderMap,
    transport: Transport,
    offered: &[&'static str],
) -> Result<Option<&'static str>, Refusal> {
    let (name, code) = match transport {
        Transport::WebSocket => (header::SEC_WEBSOCKET_PROTOCOL, StatusCode::BAD_REQUEST),
        Transport::Spdy => (STREAM_PROTOCOL, StatusCode::FORBIDDEN),
    };
    let asked = values(headers, &name);
    if asked.is_empty() {
        return Ok(None);
    }
    let known = asked.iter().find_map(|a| offered.iter().find(|o| *o == a));
    known.copied().map(Some).ok_or_else(|| {
        let offered = offered.join(", ");
        let message = format!(
            "unable to upgrade: none of the protocols `{}` is offered: {offered}",
            asked.join(", ")
        );
        Refusal {
            code,
            message,
            offered: Some(offered),
        }
    })
}

/// A plain WebSocket port-forward names its ports in the query, unless they were named when the URL was asked for.
fn with_ports(
    pending: Pending,
    query: Option<&str>,
    transport: Transport,
    protocol: &str,
) -> Result<Pending, Refusal> {
    let Pending::PortForward(mut request) = pending else {
        return Ok(pending);
    };
    let plain = transport == Transport::WebSocket && protocol != ws::tunnel::PORT_FORWARD;
    if plain && request.ports.is_empty() {
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.strip_prefix("port="));
        for text in pairs.flat_map(|v| v.split(',')) {
            let port = text.parse::<u16>().ok().filter(|p| *p > 0);
            let bad = || refuse(StatusCode::BAD_REQUEST, format!("`{text}` is not a port"));
            request.ports.push(port.ok_or_else(bad)?);
        }
    }
    if plain && request.ports.is_empty() {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "no port is named: add `?port=<number>`",
        ));
    }
    if plain && request.ports.len() > ws::forward::MAX_PORTS {
        let message = format!(
            "at most {} ports can be forwarded over one WebSocket",
            ws::forward::MAX_PORTS
        );
        return Err(refuse(StatusCode::BAD_REQUEST, message));
    }
    Ok(Pending::PortForward(request))
}

/// The rest of a connection.
async fn go_on(
    upgrade: OnUpgrade,
    transport: Transport,
    protocol: &'static str,
    pending: Pending,
    shared: Arc<Shared>,
    permit: Permit,
) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "a client left during the upgrade"
            );
            return;
        }
    };
    let serving: futures_util::future::BoxFuture<'_, ()> = match transport {
        Transport::WebSocket => Box::pin(over_websocket(upgraded, protocol, pending, &shared)),
        Transport::Spdy => Box::pin(over_spdy(upgraded, protocol, pending, &shared)),
    };
    let mut closing = shared.closing.subscribe();
    tokio::select! {
        () = serving => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
    drop(permit);
}

async fn over_websocket(upgraded: Upgraded, protocol: &'static str, pending: Pending, shared: &Arc<Shared>) {
    let handler = shared.handler.clone();
    let limits = &shared.limits;
    let socket = ws::socket(upgraded).await;
    match pending {
        Pending::Exec(request) => {
            ws::remote::serve(socket, Command::Exec(request), protocol, handler, limits).await;
        }
        Pending::Attach(request) => {
            ws::remote::serve(socket, Command::Attach(request), protocol, handler, limits).await;
        }
        Pending::PortForward(request) if protocol == ws::tunnel::PORT_FORWARD => {
            let (bytes, carry) = ws::tunnel::open(socket, limits);
            let session = Session::start(bytes, Side::Server, limits.max_forwards.saturating_mul(2));
            tokio::join!(spdy::forward::serve(session, request, handler, limits), carry);
        }
        Pending::PortForward(request) => {
            ws::forward::serve(socket, request, protocol, handler, limits).await;
        }
    }
}

async fn over_spdy(upgraded: Upgraded, protocol: &'static str, pending: Pending, shared: &Arc<Shared>) {
    let handler = shared.handler.clone();
    let limits = &shared.limits;
    let (io, activity) = Activity::watch(TokioIo::new(upgraded));
    let start = |max| Session::start(io, Side::Server, max);
    let serving: futures_util::future::BoxFuture<'_, ()> = match pending {
        Pending::Exec(request) => {
            let session = start(spdy::remote::MAX_STREAMS);
            Box::pin(spdy::remote::serve(
                session,
                Command::Exec(request),
                protocol,
                handler,
                limits,
            ))
        }
        Pending::Attach(request) => {
            let session = start(spdy::remote::MAX_STREAMS);
            Box::pin(spdy::remote::serve(
                session,
                Command::Attach(request),
                protocol,
                handler,
                limits,
            ))
        }
        Pending::PortForward(request) => {
            let session = start(limits.max_forwards.saturating_mul(2));
            Box::pin(spdy::forward::serve(session, request, handler, limits))
        }
    };
    tokio::select! {
        () = serving => {}
        () = activity.ends(limits.idle) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut all = HeaderMap::new();
        for (name, value) in list {
            all.append(name, HeaderValue::from_static(value));
        }
        all
    }

    #[test]
    fn the_clients_order_decides() {
        let offered = offered("exec", Transport::Spdy).unwrap();
        let asked = [
            (STREAM_PROTOCOL, "v9.channel.k8s.io"),
            (STREAM_PROTOCOL, "v3.channel.k8s.io, v4.channel.k8s.io"),
        ];
        assert_eq!(
            negotiate(&headers(&asked), Transport::Spdy, &offered),
            Ok(Some("v3.channel.k8s.io"))
        );
        assert_eq!(negotiate(&HeaderMap::new(), Transport::Spdy, &offered), Ok(None));
    }

    #[test]
    fn an_unknown_protocol_is_told_what_is_offered() {
        let offered = offered("portforward", Transport::Spdy).unwrap();
        let asked = headers(&[(STREAM_PROTOCOL, "v4.channel.k8s.io")]);
        let refusal = negotiate(&asked, Transport::Spdy, &offered).unwrap_err();
        assert_eq!(refusal.code, StatusCode::FORBIDDEN);
        assert_eq!(refusal.offered.as_deref(), Some("portforward.k8s.io"));
        assert!(
            refusal.message.contains("`v4.channel.k8s.io`"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn the_transport_is_what_the_upgrade_says() {
        let of = |method, list: &[(HeaderName, &'static str)]| {
            transport(&method, &headers(list)).map_err(|r| r.code)
        };
        let connection = (header::CONNECTION, "keep-alive, Upgrade");
        let spdy = [connection.clone(), (header::UPGRADE, "SPDY/3.1")];
        assert_eq!(of(Method::POST, &spdy), Ok(Transport::Spdy));
        assert_eq!(of(Method::PUT, &spdy), Err(StatusCode::METHOD_NOT_ALLOWED));
        let mut ws = vec![
            connection.clone(),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
        ];
        assert_eq!(of(Method::GET, &ws), Err(StatusCode::BAD_REQUEST));
        ws.push((header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(of(Method::GET, &ws), Ok(Transport::WebSocket));
        assert_eq!(of(Method::POST, &ws), Err(StatusCode::METHOD_NOT_ALLOWED));
        ws[2].1 = "8";
        assert_eq!(of(Method::GET, &ws), Err(StatusCode::UPGRADE_REQUIRED));
        assert_eq!(
            of(Method::GET, &[connection, (header::UPGRADE, "h2c")]),
            Err(StatusCode::BAD_REQUEST)
        );
        assert_eq!(of(Method::GET, &[]), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn ports_come_from_the_query_when_nothing_else_names_them() {
        use crate::api::PortForwardRequest;
        let ask = |query| {
            let pending = Pending::PortForward(PortForwardRequest {
                target: "t".to_owned(),
                ports: vec![],
            });
            with_ports(pending, query, Transport::WebSocket, "v4.channel.k8s.io").map_err(|r| r.message)
        };
        let Ok(Pending::PortForward(request)) = ask(Some("x=1&port=80,81&port=82")) else {
            panic!()
        };
        assert_eq!(request.ports, [80, 81, 82]);
        assert_eq!(ask(Some("port=0")).unwrap_err(), "`0` is not a port");
        assert!(ask(None).unwrap_err().starts_with("no port is named"));
    }
}
