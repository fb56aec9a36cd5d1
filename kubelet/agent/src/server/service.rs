//! A request from its arrival to its answer: who asks, may they, what for, and how long it took.

use std::sync::Arc;
use std::time::Instant;

use http::header;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;

use super::answers::{Answer, not_found, text, wrong_method};
use super::authz::{Attributes, subresources, verb};
use super::config::ServerConfig;
use super::identity::{self, User};
use super::listener::{Door, Peer, Respond};
use super::route::{self, Route};
use super::seam::Kubelet;
use crate::metrics::KubeletMetrics;

/// Answers all requests.
pub(super) struct Service {
    pub(super) config: ServerConfig,
    pub(super) kubelet: Arc<dyn Kubelet>,
    pub(super) metrics: KubeletMetrics,
    pub(super) now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Respond for Service {
    async fn respond(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Answer {
        let path = route::decode(request.uri().path());
        let route = path.as_deref().and_then(route::route);
        let (bucket, long) = route.as_ref().map_or(("other", false), Route::bucket);
        let door = match peer.door {
            Door::Secure => "readwrite",
            Door::ReadOnly | Door::Health => "readonly",
        };
        let method = known_method(request.method());
        let labels = [method, bucket, door, if long { "true" } else { "false" }];
        self.metrics.http_requests_total.inc(&labels);
        let under_way = UnderWay::begin(&self.metrics, labels);
        let start = Instant::now();
        let answer = self.judge(request, peer, path.as_deref(), route).await;
        drop(under_way);
        self.metrics
            .http_requests_duration_seconds
            .observe_duration(&labels, start.elapsed());
        answer
    }
}

/// Counts a request as long as it isn't answered, or given up by its client.
struct UnderWay<'a> {
    metrics: &'a KubeletMetrics,
    labels: [&'static str; 4],
}

impl<'a> UnderWay<'a> {
    fn begin(metrics: &'a KubeletMetrics, labels: [&'static str; 4]) -> Self {
        metrics.http_inflight_requests.add(&labels, 1.0);
        Self { metrics, labels }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.metrics.http_inflight_requests.add(&self.labels, -1.0);
    }
}

impl Service {
    async fn judge(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        path: Option<&str>,
        route: Option<Route>,
    ) -> Answer {
        if peer.door == Door::Secure
            && let Err(refusal) = self.admit(&request, &peer, path.unwrap_or("/")).await
        {
            return refusal;
        }
        let Some(route) = route else { return not_found() };
        match peer.door {
            Door::Health if !matches!(route, Route::Healthz(_)) => return not_found(),
            Door::ReadOnly if !route.is_read_only() => return not_found(),
            _ => {}
        }
        if route.is_debugging() && !self.config.debugging {
            return text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
        }
        if let Some(allowed) = route.methods()
            && !allowed
                .split(", ")
                .any(|method| method == request.method().as_str())
        {
            return wrong_method(allowed);
        }
        self.answer(route, request, peer).await
    }

    /// Lets a request in, or says why not.
    async fn admit(&self, request: &Request<Incoming>, peer: &Peer, path: &str) -> Result<(), Answer> {
        let unauthorized = || text(StatusCode::UNAUTHORIZED, "Unauthorized");
        let user = self.identify(request, peer).ok_or_else(unauthorized)?;
        let node = self.kubelet.node_name();
        let verb = verb(request.method());
        let ways = subresources(path);
        for subresource in ways {
            let attributes = Attributes {
                user: &user,
                verb,
                subresource,
                node: &node,
            };
            match self.config.authorizer.authorize(attributes).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(user = user.name, verb, subresource, error, "failed to authorize");
                    let message = format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                        user.name
                    );
                    return Err(text(StatusCode::INTERNAL_SERVER_ERROR, message));
                }
            }
        }
        let message = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            ways.join(" ")
        );
        Err(text(StatusCode::FORBIDDEN, message))
    }

    /// Who asks. Somebody whose credentials are wrong is nobody, not even anonymous.
    fn identify(&self, request: &Request<Incoming>, peer: &Peer) -> Option<User> {
        let credentials = peer.reloading.as_ref()?.current();
        let mut wrong = false;
        if let Some(verifier) = &credentials.clients
            && !peer.certificates.is_empty()
        {
            match identity::of_certificate(verifier, &peer.certificates) {
                Ok(Some(user)) => return Some(user),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a client's certificate is wrong"
                    );
                    wrong = true;
                }
            }
        }
        let token = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().split_once(' '))
            .filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .filter(|token| !token.is_empty());
        if let Some(token) = token {
            match credentials.tokens.owner(token) {
                Some(user) => return Some(user.clone()),
                None => wrong = true,
            }
        }
        (self.config.anonymous && !wrong).then(User::anonymous)
    }
}

fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "CONNECT" => "CONNECT",
        _ => "other",
    }
}
