//! Speaks to registries: the pull half of the OCI distribution specification.
//!
//! A [`Session`] is one pull: a reference, the servers that stand for its registry in the order to ask them, and the
//! credentials. Each server is tried until it answers for good or bad; what it doesn't have, or fails to give, the
//! next one is asked for. A server's hiccup (a 5xx, a reset, a silence longer than the progress time-out) is tried again
//! with growing pauses, and a download goes on where it stopped.

pub mod auth;
mod error;
mod transport;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode};

use crate::content::{Ingest, IngestError};
use crate::digest::Digest;
use crate::disk::Disk;
use crate::hosts::Endpoint;
use crate::manifest::{self, Descriptor};
use crate::reference::{Reference, Version};
use crate::{Credentials, PullErrorKind};
pub use error::RegistryError;
use error::{Failures, Tries};

use auth::{Identity, TokenAnswer, Tokens, challenges, encode};

/// How much must arrive for the tries to count anew.
const PROGRESS: u64 = 1 << 20;
/// The longest error message and token answer that is read.
const MAX_ANSWER: u64 = 64 << 10;
/// The longest that a server's Retry-After is obeyed.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// A manifest or index as it came.
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
}

/// Connections and tokens, shared by all pulls.
pub(crate) struct Registry {
    progress_timeout: Duration,
    clients: Mutex<BTreeMap<transport::Settings, reqwest::Client>>,
    tokens: Mutex<Tokens>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}

/// One pull's view of a registry.
pub(crate) struct Session<'a> {
    registry: &'a Registry,
    reference: &'a Reference,
    endpoints: Vec<Endpoint>,
    credentials: Option<Credentials>,
}

/// A request to one server, without its authentication.
struct Request<'a> {
    method: Method,
    /// Below the repository: `manifests/latest`.
    path: &'a str,
    accept: Option<&'static str>,
    range_from: u64,
}

impl Registry {
    pub(crate) fn new(progress_timeout: Duration) -> Self {
        // Fails when the process has a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            progress_timeout,
            clients: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    pub(crate) fn session<'a>(
        &'a self,
        reference: &'a Reference,
        endpoints: Vec<Endpoint>,
        credentials: Option<Credentials>,
    ) -> Session<'a> {
        Session {
            registry: self,
            reference,
            endpoints,
            credentials,
        }
    }

    fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let settings = transport::Settings::of(endpoint, self.progress_timeout);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&settings) {
            return Ok(client.clone());
        }
        let client = settings.client().map_err(|reason| RegistryError::Setup {
            server: endpoint.base.clone(),
            reason,
        })?;
        // Settings change when certificates or resolv.conf do: old clients are of no more use then.
        if clients.len() >= 32 {
            clients.clear();
        }
        clients.insert(settings, client.clone());
        Ok(client)
    }
}

impl Session<'_> {
    /// The digest that a tag has now, if a server says so without sending the manifest.
    pub(crate) async fn head(&self, tag: &str) -> Option<Digest> {
        let path = format!("manifests/{tag}");
        for endpoint in self.endpoints.iter().filter(|e| e.resolve) {
            let request = Request {
                method: Method::HEAD,
                path: &path,
                accept: Some(manifest::ACCEPT),
                range_from: 0,
            };
            if let Ok(response) = self.send(endpoint, &request).await {
                return response
                    .headers()
                    .get("docker-content-digest")?
                    .to_str()
                    .ok()?
                    .parse()
                    .ok();
            }
        }
        None
    }

    /// Fetches a manifest or index by tag or digest; verified where a digest was asked for.
    pub(crate) async fn manifest(&self, version: &Version) -> Result<Fetched, RegistryError> {
        let (path, verb) = match version {
            Version::Tag(tag) => (format!("manifests/{tag}"), "resolve"),
            Version::Digest(digest) => (format!("manifests/{digest}"), "pull"),
        };
        let may = |endpoint: &&Endpoint| {
            if verb == "resolve" {
                endpoint.resolve
            } else {
                endpoint.pull
            }
        };
        let mut failures = Failures::default();
        for endpoint in self.endpoints.iter().filter(may) {
            match self.manifest_from(endpoint, &path, version).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => failures.push(error),
            }
        }
        Err(failures.into_error(verb))
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        path: &str,
        version: &Version,
    ) -> Result<Fetched, RegistryError> {
        let request = Request {
            method: Method::GET,
            path,
            accept: Some(manifest::ACCEPT),
            range_from: 0,
        };
        let mut tries = Tries::default();
        loop {
            match self.manifest_once(endpoint, &request).await {
                Ok(fetched) => {
                    if let Version::Digest(wanted) = version
                        && fetched.digest != *wanted
                    {
                        let source = IngestError::Digest {
                            wanted: *wanted,
                            got: fetched.digest,
                        };
                        return Err(self.content_error(endpoint, path, source));
                    }
                    return Ok(fetched);
                }
                Err(error) => tries.pause_or(error).await?,
            }
        }
    }

    async fn manifest_once(
        &self,
        endpoint: &Endpoint,
        request: &Request<'_>,
    ) -> Result<Fetched, RegistryError> {
        let response = self.send(endpoint, request).await?;
        let text = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned)
        };
        let content_type = text(CONTENT_TYPE.as_str());
        let announced = text("docker-content-digest").and_then(|v| v.parse::<Digest>().ok());
        let bytes = read_bounded(response, manifest::MAX_MANIFEST)
            .await
            .map_err(|source| self.unreachable(endpoint, request.path, source))?
            .ok_or_else(|| RegistryError::TooLarge {
                server: endpoint.base.clone(),
            })?;
        let digest = Digest::of(&bytes);
        match announced {
            Some(wanted) if wanted != digest => Err(self.content_error(
                endpoint,
                request.path,
                IngestError::Digest { wanted, got: digest },
            )),
            _ => Ok(Fetched {
                digest,
                bytes,
                content_type,
            }),
        }
    }

    /// Downloads a blob into the store; verified by digest and size.
    pub(crate) async fn blob(&self, disk: &Arc<Disk>, blob: &Descriptor) -> Result<(), RegistryError> {
        let mut failures = Failures::default();
        for endpoint in self.endpoints.iter().filter(|e| e.pull) {
            match self.blob_from(endpoint, disk, blob).await {
                Ok(()) => return Ok(()),
                // Our own disk won't be better for another server.
                Err(error) if matches!(error.kind(), PullErrorKind::NoSpace | PullErrorKind::Internal) => {
                    return Err(error);
                }
                Err(error) => failures.push(error),
            }
        }
        Err(failures.into_error("pull"))
    }

    async fn blob_from(
        &self,
        endpoint: &Endpoint,
        disk: &Arc<Disk>,
        blob: &Descriptor,
    ) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", blob.digest);
        let mut ingest = Ingest::begin(disk.clone(), blob.digest, blob.size);
        let mut tries = Tries::default();
        while !ingest.is_complete() {
            let before = ingest.received();
            let outcome = self.blob_part(endpoint, &path, &mut ingest).await;
            if ingest.received() >= before + PROGRESS {
                tries = Tries::default();
            }
            if let Err(error) = outcome {
                tries.pause_or(error).await?;
            }
        }
        ingest
            .finish()
            .await
            .map_err(|source| self.content_error(endpoint, &path, source))
    }

    /// Reads one answer, from where the download stands, as far as it goes.
    async fn blob_part(
        &self,
        endpoint: &Endpoint,
        path: &str,
        ingest: &mut Ingest,
    ) -> Result<(), RegistryError> {
        let request = Request {
            method: Method::GET,
            path,
            accept: None,
            range_from: ingest.received(),
        };
        let response = self.send(endpoint, &request).await?;
        let content_error = |source| self.content_error(endpoint, path, source);
        let range = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|v| v.to_str().ok());
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
            && range.is_some_and(|range| range.starts_with(&format!("bytes {}-", ingest.received())));
        if ingest.received() > 0 && !goes_on {
            ingest.restart().await.map_err(content_error)?;
        }
        let mut response = response;
        loop {
            match response.chunk().await {
                Ok(Some(bytes)) => ingest.push(bytes).await.map_err(content_error)?,
                Ok(None) if ingest.is_complete() => return Ok(()),
                // An answer that ends early without an error: the length was wrong or missing.
                Ok(None) => {
                    let source = IngestError::Size {
                        wanted: ingest.size(),
                        got: ingest.received(),
                    };
                    return Err(content_error(source));
                }
                Err(source) => return Err(self.unreachable(endpoint, path, source)),
            }
        }
    }

    /// Sends a request, authenticates when asked to, and returns an answer that is a success.
    async fn send(&self, endpoint: &Endpoint, request: &Request<'_>) -> Result<Response, RegistryError> {
        let client = self.registry.client(endpoint)?;
        let identity = Identity::for_host(self.credentials.as_ref(), &endpoint.host, endpoint.is_server);
        let mut header = self.known_header(endpoint, &identity);
        let mut response = self
            .send_once(&client, endpoint, request, header.as_deref())
            .await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            header = self.authorize(&client, endpoint, &identity, &response).await?;
            if header.is_some() {
                response = self
                    .send_once(&client, endpoint, request, header.as_deref())
                    .await?;
            }
        }
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let pause = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|v| v.to_str().ok()?.parse().ok());
        let message = error_message(response).await;
        if status == StatusCode::TOO_MANY_REQUESTS
            && let Some(seconds) = pause
        {
            tokio::time::sleep(Duration::from_secs(seconds).min(MAX_PAUSE)).await;
        }
        Err(RegistryError::Status {
            what: self.what(request.path),
            server: endpoint.base.clone(),
            status,
            message,
        })
    }

    async fn send_once(
        &self,
        client: &reqwest::Client,
        endpoint: &Endpoint,
        request: &Request<'_>,
        authorization: Option<&str>,
    ) -> Result<Response, RegistryError> {
        let mut url = format!(
            "{}/{}/{}",
            endpoint.base,
            self.reference.repository(),
            request.path
        );
        if !endpoint.is_server {
            // A mirror of several registries is told which one is meant.
            url.push_str(&format!("?{}", encode(&[("ns", self.reference.host())])));
        }
        let mut builder = client.request(request.method.clone(), url);
        for (name, value) in &endpoint.headers {
            builder = builder.header(name, value);
        }
        if let Some(accept) = request.accept {
            builder = builder.header(ACCEPT, accept);
        }
        if request.range_from > 0 {
            builder = builder.header(RANGE, format!("bytes={}-", request.range_from));
        }
        if let Some(value) = authorization {
            builder = builder.header(reqwest::header::AUTHORIZATION, value);
        }
        builder
            .send()
            .await
            .map_err(|source| self.unreachable(endpoint, request.path, source))
    }

    fn known_header(&self, endpoint: &Endpoint, identity: &Identity) -> Option<String> {
        if let Identity::Token(token) = identity {
            return Some(format!("Bearer {token}"));
        }
        let tokens = self
            .registry
            .tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        tokens.find(
            &endpoint.base,
            self.reference.repository(),
            identity,
            Instant::now(),
        )
    }

    /// Does what the challenge of a 401 asks for; `None` when nothing can be done.
    async fn authorize(
        &self,
        client: &reqwest::Client,
        endpoint: &Endpoint,
        identity: &Identity,
        response: &Response,
    ) -> Result<Option<String>, RegistryError> {
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let offered: Vec<_> = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenges)
            .collect();
        let (header, life) = if matches!(identity, Identity::Token(_)) {
            return Ok(None);
        } else if let Some(bearer) = offered.iter().find(|challenge| challenge.scheme == "bearer") {
            let (token, life) = self.token(client, endpoint, identity, &bearer.parameters).await?;
            (format!("Bearer {token}"), life)
        } else if offered.iter().any(|challenge| challenge.scheme == "basic") {
            match identity.basic() {
                Some(header) => (header, Duration::from_secs(300)),
                None => return Ok(None),
            }
        } else {
            return Ok(None);
        };
        let mut tokens = self
            .registry
            .tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let repository = self.reference.repository();
        tokens.keep(
            &endpoint.base,
            repository,
            identity,
            header.clone(),
            life,
            Instant::now(),
        );
        Ok(Some(header))
    }

    async fn token(
        &self,
        client: &reqwest::Client,
        endpoint: &Endpoint,
        identity: &Identity,
        challenge: &BTreeMap<String, String>,
    ) -> Result<(String, Duration), RegistryError> {
        let realm = challenge.get("realm").cloned().unwrap_or_default();
        let failed = |reason: String, is_refused| {
            let (server, realm) = (endpoint.base.clone(), realm.clone());
            RegistryError::Token {
                server,
                realm,
                reason,
                is_refused,
            }
        };
        let is_safe = realm.starts_with("https://") || (endpoint.plain_http && realm.starts_with("http://"));
        if !is_safe {
            return Err(failed("its address is not an https:// URL".to_owned(), true));
        }
        let default_scope = format!("repository:{}:pull", self.reference.repository());
        let service = challenge.get("service").map_or("", String::as_str);
        let scope = challenge.get("scope").unwrap_or(&default_scope);
        let mut pairs = vec![("service", service), ("scope", scope.as_str())];
        pairs.retain(|(_, value)| !value.is_empty());
        let request = match identity {
            Identity::Refresh(refresh) => {
                pairs.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "orlop"),
                    ("refresh_token", refresh.as_str()),
                ]);
                let form = "application/x-www-form-urlencoded";
                client
                    .post(&realm)
                    .header(CONTENT_TYPE, form)
                    .body(encode(&pairs))
            }
            _ => {
                let separator = if realm.contains('?') { '&' } else { '?' };
                let request = client.get(format!("{realm}{separator}{}", encode(&pairs)));
                match identity.basic() {
                    Some(header) => request.header(reqwest::header::AUTHORIZATION, header),
                    None => request,
                }
            }
        };
        let response = request
            .send()
            .await
            .map_err(|error| failed(transport::reason(&error), false))?;
        let status = response.status();
        if !status.is_success() {
            let message = error_message(response).await;
            return Err(failed(
                format!("it answered {status}{message}"),
                status.is_client_error(),
            ));
        }
        let bytes = read_bounded(response, MAX_ANSWER)
            .await
            .map_err(|error| failed(transport::reason(&error), false))?
            .ok_or_else(|| failed("its answer is too long".to_owned(), true))?;
        let answer = serde_json::from_slice::<TokenAnswer>(&bytes)
            .ok()
            .and_then(TokenAnswer::token);
        answer.ok_or_else(|| failed("its answer has no token".to_owned(), true))
    }

    fn what(&self, path: &str) -> String {
        format!("`{}/{path}`", self.reference.repository())
    }

    fn unreachable(&self, endpoint: &Endpoint, path: &str, source: reqwest::Error) -> RegistryError {
        // The URL of a redirect may carry a signature.
        let source = source.without_url();
        RegistryError::Unreachable {
            what: self.what(path),
            server: endpoint.base.clone(),
            source,
        }
    }

    fn content_error(&self, endpoint: &Endpoint, path: &str, source: IngestError) -> RegistryError {
        RegistryError::Content {
            what: self.what(path),
            server: endpoint.base.clone(),
            source,
        }
    }
}

/// Reads a body of at most `max` bytes; `None` when it is longer.
async fn read_bounded(mut response: Response, max: u64) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if (bytes.len() + chunk.len()) as u64 > max {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// What a registry's error body says, after a colon: the first of its `errors`, or a short text.
async fn error_message(response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<OneError>,
    }
    #[derive(serde::Deserialize)]
    struct OneError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Some(bytes)) = read_bounded(response, MAX_ANSWER).await else {
        return String::new();
    };
    let Ok(Errors { errors }) = serde_json::from_slice(&bytes) else {
        return String::new();
    };
    let Some(OneError { code, message }) = errors.into_iter().next() else {
        return String::new();
    };
    let text: String = format!("{code} {message}")
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    format!(": {}", text.trim())
}

/// Files that a connection depends on, with their time of change.
type Stamp = (PathBuf, Option<std::time::SystemTime>);

#[cfg(test)]
mod tests;
