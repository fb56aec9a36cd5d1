//! TLS without verification: probes ask whether something answers, not who it is.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn client(protocols: &[&[u8]]) -> Option<Arc<ClientConfig>> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let any = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(any)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Some(Arc::new(config))
}

/// What is said where plain HTTP answers a TLS handshake.
pub(crate) const PLAIN_ANSWER: &str = "http: server gave HTTP response to HTTPS client";

static HTTP: LazyLock<Option<Arc<ClientConfig>>> = LazyLock::new(|| client(&[]));
static GRPC: LazyLock<Option<Arc<ClientConfig>>> = LazyLock::new(|| client(&[b"h2"]));

/// Makes a connection a TLS one; `grpc` says that HTTP/2 is asked for.
pub(crate) async fn wrap(stream: TcpStream, host: &str, grpc: bool) -> Result<TlsStream<TcpStream>, String> {
    let config = if grpc { &*GRPC } else { &*HTTP };
    let config = config
        .clone()
        .ok_or_else(|| "tls: no protocol versions".to_owned())?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name =
        ServerName::try_from(bare.to_owned()).map_err(|_| format!("tls: invalid server name {host:?}"))?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(
            |error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
                Some(Error::InvalidMessage(_)) => PLAIN_ANSWER.to_owned(),
                _ => format!("tls: {error}"),
            },
        )
}
