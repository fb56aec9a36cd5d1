//! Certificates and tokens from files, read again when a file changes.
//!
//! Without certificate files the server makes a certificate of its own, once, and keeps it. Clients are asked for
//! certificates when there is a CA for them, but any certificate passes the handshake (its signature aside): whether it is
//! trusted is found out afterwards, so that a wrong one gets a 401 like a wrong token, and not a broken connection.
//!
//! A change is noticed at the next connection or request, at most once a second. Files that can't be used leave what was
//! there before in force, but a token file that was removed takes its tokens along. Requests are judged by what is in force
//! when they come, also on connections that were made before.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use super::config::{CertificateFiles, ServerConfig};
use super::identity::{TokenFileError, Tokens};
use crate::config::TlsVersion;

/// How often files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why there are no credentials to serve with.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file can't be read or written.
    #[error("failed to {what} `{path}`")]
    File {
        /// Read or write.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no usable PEM.
    #[error("failed to find a {what} in `{path}`")]
    Pem {
        /// Certificate or private key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate doesn't fit its key.
    #[error("failed to use the certificate in `{path}`")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The clients' CA can't be used.
    #[error("failed to use the client CA in `{path}`")]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// The token file can't be used.
    #[error("failed to load tokens")]
    Tokens(#[from] TokenFileError),
    /// The system gives no random bytes.
    #[error("failed to make a token: the system gives no random bytes")]
    Random,
    /// No certificate could be made.
    #[error("failed to make a certificate for {names:?}")]
    Generate {
        /// The names that it should have had.
        names: Vec<String>,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// What is in force.
#[derive(Debug)]
pub(super) struct Credentials {
    /// For handshakes.
    pub(super) tls: Arc<rustls::ServerConfig>,
    /// Who judges clients' certificates.
    pub(super) clients: Option<Arc<dyn ClientCertVerifier>>,
    /// Static tokens.
    pub(super) tokens: Tokens,
}

/// Credentials that follow their files.
pub(super) struct Reloading {
    sources: Sources,
    state: Mutex<State>,
}

struct Sources {
    certificate: CertificateFiles,
    client_ca: Option<PathBuf>,
    tokens: Option<PathBuf>,
    tls: TlsVersion,
    /// The token of `orlop` on this node.
    local: Option<String>,
}

struct State {
    current: Arc<Credentials>,
    stamps: Vec<Option<Stamp>>,
    looked: Instant,
}

/// What changes when a file does: device, inode, size, and the time of the last change.
type Stamp = (u64, u64, u64, i64, i64);

impl Reloading {
    /// Loads all, after making a certificate where one is needed.
    pub(super) fn open(config: &ServerConfig) -> Result<Self, CredentialsError> {
        let certificate = match &config.certificate {
            Some(files) => files.clone(),
            None => own_certificate(&config.cert_dir, &config.names)?,
        };
        let sources = Sources {
            certificate,
            client_ca: config.client_ca.clone(),
            tokens: config.tokens.clone(),
            tls: config.tls,
            local: config.local_client.as_ref().map(|_| random_token()).transpose()?,
        };
        let stamps = sources.stamps();
        let current = Arc::new(sources.load()?);
        Ok(Self {
            sources,
            state: Mutex::new(State {
                current,
                stamps,
                looked: Instant::now(),
            }),
        })
    }

    /// Leaves in `folder` what `orlop` needs to ask the server at `address`.
    pub(super) fn leave_client(&self, folder: &Path, address: SocketAddr) -> Result<(), CredentialsError> {
        let Some(token) = &self.sources.local else {
            return Ok(());
        };
        let reachable = match address.ip() {
            ip if !ip.is_unspecified() => address,
            IpAddr::V4(_) => (Ipv4Addr::LOCALHOST, address.port()).into(),
            IpAddr::V6(_) => (Ipv6Addr::LOCALHOST, address.port()).into(),
        };
        let certificate = &self.sources.certificate.certificate;
        let certificate = std::path::absolute(certificate).unwrap_or_else(|_| certificate.clone());
        // A JSON string is a YAML string.
        let certificate = serde_json::Value::from(certificate.display().to_string());
        let description =
            format!("kubelet: https://{reachable}\nca: {certificate}\ntokenFile: node-client.token\n");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CredentialsError::File {
                what: "write",
                path,
                source,
            }
        };
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
        for (name, text) in [("node-client.token", token), ("node-client.yaml", &description)] {
            let path = folder.join(name);
            write_whole(&path, text, 0o600).map_err(failed(&path))?;
        }
        Ok(())
    }

    /// What is in force now.
    pub(super) fn current(&self) -> Arc<Credentials> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let stamps = self.sources.stamps();
            if stamps != state.stamps {
                state.stamps = stamps;
                match self.sources.load() {
                    Ok(fresh) => {
                        tracing::info!("certificates and tokens were read again");
                        state.current = Arc::new(fresh);
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "certificates or tokens changed, but can't be used");
                    }
                }
            }
        }
        state.current.clone()
    }
}

impl Sources {
    fn stamps(&self) -> Vec<Option<Stamp>> {
        [&self.certificate.certificate, &self.certificate.key]
            .into_iter()
            .chain(&self.client_ca)
            .chain(&self.tokens)
            .map(|path| {
                let data = std::fs::metadata(path).ok()?;
                Some((
                    data.dev(),
                    data.ino(),
                    data.size(),
                    data.mtime(),
                    data.mtime_nsec(),
                ))
            })
            .collect()
    }

    fn load(&self) -> Result<Credentials, CredentialsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = self
            .client_ca
            .as_deref()
            .map(|path| client_verifier(path, &provider))
            .transpose()?;
        let chain = certificates(&self.certificate.certificate)?;
        let key_file = &self.certificate.key;
        let key = PrivateKeyDer::from_pem_file(key_file).map_err(|source| CredentialsError::Pem {
            what: "private key",
            path: key_file.clone(),
            source,
        })?;
        let unusable = |source| CredentialsError::Certificate {
            path: self.certificate.certificate.clone(),
            source,
        };
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions(self.tls))
            .map_err(unusable)?;
        let builder = match &clients {
            Some(verifier) => builder.with_client_cert_verifier(Arc::new(AskOnly {
                provider,
                subjects: verifier.root_hint_subjects().to_vec(),
            })),
            None => builder.with_no_client_auth(),
        };
        let mut tls = builder.with_single_cert(chain, key).map_err(unusable)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut tokens = self
            .tokens
            .as_deref()
            .map(tokens_in)
            .transpose()?
            .unwrap_or_default();
        if let Some(token) = &self.local {
            tokens.add_master(token, "orlop");
        }
        Ok(Credentials {
            tls: Arc::new(tls),
            clients,
            tokens,
        })
    }
}

/// The versions of TLS from one on.
fn versions(oldest: TlsVersion) -> &'static [&'static rustls::SupportedProtocolVersion] {
    static NEW: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
    match oldest {
        TlsVersion::V12 => rustls::DEFAULT_VERSIONS,
        TlsVersion::V13 => NEW,
    }
}

/// The tokens in a file; none where there is no file.
fn tokens_in(path: &Path) -> Result<Tokens, TokenFileError> {
    match Tokens::load(path) {
        Err(TokenFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Tokens::default())
        }
        loaded => loaded,
    }
}

/// 256 random bits.
fn random_token() -> Result<String, CredentialsError> {
    let mut bytes = [0; 32];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| CredentialsError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let failed = |source| CredentialsError::Pem {
        what: "certificate",
        path: path.to_owned(),
        source,
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    if found.is_empty() {
        return Err(failed(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn client_verifier(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| CredentialsError::Certificate {
                path: path.to_owned(),
                source,
            })?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|source| CredentialsError::ClientCa {
            path: path.to_owned(),
            source,
        })
}

/// Takes any certificate whose key the client proves to have.
#[derive(Debug)]
struct AskOnly {
    provider: Arc<CryptoProvider>,
    subjects: Vec<DistinguishedName>,
}

impl ClientCertVerifier for AskOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
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

/// The certificate in `folder`, made when it isn't there.
fn own_certificate(folder: &Path, names: &[String]) -> Result<CertificateFiles, CredentialsError> {
    let files = CertificateFiles {
        certificate: folder.join("kubelet.crt"),
        key: folder.join("kubelet.key"),
    };
    if files.certificate.exists() && files.key.exists() {
        return Ok(files);
    }
    let mut all: Vec<String> = names.to_vec();
    for name in ["localhost", "127.0.0.1", "::1"] {
        if !all.iter().any(|known| known == name) {
            all.push(name.to_owned());
        }
    }
    let made = generate(&all).map_err(|source| CredentialsError::Generate { names: all, source })?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CredentialsError::File {
            what: "write",
            path,
            source,
        }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    // The key first: a certificate without its key would be found and not be replaced.
    for (path, text, mode) in [(&files.key, made.1, 0o600), (&files.certificate, made.0, 0o644)] {
        write_whole(path, &text, mode).map_err(failed(path))?;
    }
    Ok(files)
}

/// Certificate and key as PEM.
fn generate(names: &[String]) -> Result<(String, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let mut parameters = rcgen::CertificateParams::new(names.to_vec())?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    let name = names.first().map_or("kubelet", String::as_str);
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    parameters.key_usages = vec![
        rcgen::KeyUsagePurpose::DigitalSignature,
        rcgen::KeyUsagePurpose::KeyEncipherment,
    ];
    parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Writes a file that is there whole or not at all.
fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}
