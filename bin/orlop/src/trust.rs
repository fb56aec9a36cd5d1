//! Which servers are trusted: one whose certificate is in the given file itself (as a kubelet's own is), whatever name it
//! is reached by, or one whose certificate is signed by one in there.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::access::Access;
use crate::failure::Failure;

#[derive(Debug)]
struct Pinned {
    known: Vec<CertificateDer<'static>>,
    signed: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.known.iter().any(|known| known == own) {
            return Ok(ServerCertVerified::assertion());
        }
        self.signed.verify_server_cert(own, between, name, stapled, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let failed = |why: String| {
        Failure::new(format!(
            "failed to read certificates in {}: {why}",
            path.display()
        ))
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| failed(error.to_string()))?
        .collect();
    let found = found.map_err(|error| failed(error.to_string()))?;
    if found.is_empty() {
        return Err(failed("there are none".into()));
    }
    Ok(found)
}

/// What a client needs for its handshakes.
pub(crate) fn configuration(access: &Access) -> Result<rustls::ClientConfig, Failure> {
    let Some(ca) = &access.ca else {
        return Err(Failure::helped(
            "no certificate to know the kubelet by",
            "--ca FILE with the kubelet's certificate: that of one of our kubelets is pki/kubelet.crt below its root folder",
        ));
    };
    let known = certificates(ca)?;
    let wrong = |error: String| {
        Failure::new(format!(
            "failed to use the certificates in {}: {error}",
            ca.display()
        ))
    };
    let mut roots = RootCertStore::empty();
    for certificate in &known {
        roots
            .add(certificate.clone())
            .map_err(|error| wrong(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned {
            known,
            signed,
            provider,
        }));
    let mut config = match &access.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let failed = |error: String| Failure::new(format!("failed to use {}: {error}", key.display()));
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(error.to_string()))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, private)
                .map_err(|error| failed(error.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
