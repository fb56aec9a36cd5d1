//! HTTP clients: one for each set of certificates and proxy rules, kept while the files they came from don't change.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Identity};

use super::Stamp;
use crate::disk::Chain;
use crate::hosts::{Endpoint, is_loopback};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that nobody uses are closed soon: pulls are rare, memory is dear.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_REDIRECTS: usize = 10;
const MAX_PEM: u64 = 4 << 20;

/// What makes one client different from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Settings {
    skip_verify: bool,
    plain_http: bool,
    /// This machine is reached without a proxy.
    is_loopback: bool,
    ca: Vec<Stamp>,
    client: Vec<(Stamp, Option<Stamp>)>,
    /// Where the system's certificates may be; they are read once per client.
    system: Vec<Stamp>,
    /// The resolver reads it once per client.
    resolv_conf: Stamp,
    read_timeout: Duration,
}

impl Settings {
    pub(super) fn of(endpoint: &Endpoint, read_timeout: Duration) -> Self {
        let client = endpoint.client.iter();
        Self {
            skip_verify: endpoint.skip_verify,
            plain_http: endpoint.plain_http,
            is_loopback: is_loopback(&endpoint.host),
            ca: endpoint.ca.iter().map(|path| stamp(path)).collect(),
            client: client
                .map(|(cert, key)| (stamp(cert), key.as_deref().map(stamp)))
                .collect(),
            system: system_stores().iter().map(|path| stamp(path)).collect(),
            resolv_conf: stamp(Path::new("/etc/resolv.conf")),
            read_timeout,
        }
    }

    /// Makes the client. Proxies come from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case.
    pub(super) fn client(&self) -> Result<Client, String> {
        let error = match self.builder()?.build() {
            Ok(client) => return Ok(client),
            Err(error) => Chain(&error).to_string(),
        };
        if !self.ca.is_empty() || self.skip_verify {
            return Err(error);
        }
        // A machine without certificates of authorities: no obstacle to plain HTTP.
        if self.plain_http
            && let Ok(client) = self.builder()?.tls_certs_only([]).build()
        {
            return Ok(client);
        }
        Err(format!(
            "{error}; it takes the package ca-certificates, or the key `ca` in hosts.toml"
        ))
    }

    fn builder(&self) -> Result<ClientBuilder, String> {
        let mut builder = Client::builder()
            .user_agent(concat!("orlop/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(self.read_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(redirects());
        if self.is_loopback {
            builder = builder.no_proxy();
        }
        if self.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let mut roots = Vec::new();
        for (path, _) in &self.ca {
            let certificates = Certificate::from_pem_bundle(&read(path)?);
            roots.extend(
                certificates.map_err(|error| format!("failed to parse `{}`: {error}", path.display()))?,
            );
        }
        if !roots.is_empty() {
            builder = builder.tls_certs_merge(roots);
        }
        for ((cert, _), key) in &self.client {
            let mut pem = read(cert)?;
            if let Some((key, _)) = key {
                pem.extend_from_slice(b"\n");
                pem.extend_from_slice(&read(key)?);
            }
            let identity = Identity::from_pem(&pem);
            builder = builder.identity(
                identity.map_err(|error| format!("failed to parse `{}`: {error}", cert.display()))?,
            );
        }
        Ok(builder)
    }
}

/// Where distributions keep the certificates of the authorities that they believe, or what the environment says instead.
fn system_stores() -> Vec<PathBuf> {
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        .into_iter()
        .filter_map(std::env::var_os);
    let named: Vec<PathBuf> = named.map(PathBuf::from).collect();
    if !named.is_empty() {
        return named;
    }
    [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/ssl/certs",
        "/etc/ssl/cert.pem",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
    ]
    .map(PathBuf::from)
    .to_vec()
}

fn stamp(path: &Path) -> (PathBuf, Option<std::time::SystemTime>) {
    (
        path.to_owned(),
        std::fs::metadata(path).and_then(|m| m.modified()).ok(),
    )
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    crate::disk::read_bounded(path, MAX_PEM).map_err(|error| Chain(&error).to_string())
}

/// Redirects are usual (registries send clients to object stores), but not out of TLS.
fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let leaves_tls =
            attempt.url().scheme() == "http" && attempt.previous().iter().any(|url| url.scheme() == "https");
        if leaves_tls {
            attempt.error("refused to follow a redirect from https to plain http")
        } else if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else {
            attempt.follow()
        }
    })
}

/// Whether trying again is of no use: the request itself is wrong, or the server's certificate.
pub(super) fn is_final(error: &reqwest::Error) -> bool {
    if error.is_builder() || error.is_redirect() {
        return true;
    }
    let mut source = error.source();
    while let Some(error) = source {
        if is_bad_certificate(error) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Whether this says so of the server's certificate; it comes wrapped in I/O errors, which hide it from `source`.
fn is_bad_certificate(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.is_some_and(|inner| is_bad_certificate(inner))
}

/// An error in one line, without the URL, which may carry a signature.
pub(super) fn reason(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(error) = source {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        source = error.source();
    }
    if text.is_empty() {
        "the request failed".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_certificate_is_found_in_its_wrapping() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        assert!(is_bad_certificate(&wrapped));
        assert!(!is_bad_certificate(&io::Error::from(
            io::ErrorKind::ConnectionReset
        )));
    }
}
