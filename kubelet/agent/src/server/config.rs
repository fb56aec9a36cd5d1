//! What the server is told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::authz::Authorizer;
use crate::config::TlsVersion;

/// What the server is told; the names in brackets are KubeletConfiguration's.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where HTTPS is served (`address`, `port`); port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Where plain HTTP without any authentication is served, if at all (`readOnlyPort`).
    pub read_only: Option<SocketAddr>,
    /// Where health alone is served, if at all (`healthzBindAddress`, `healthzPort`).
    pub healthz: Option<SocketAddr>,
    /// The server's certificate and key (`tlsCertFile`, `tlsPrivateKeyFile`); without them it makes its own.
    pub certificate: Option<CertificateFiles>,
    /// Where a certificate of its own is kept as `kubelet.crt` and `kubelet.key` (`--cert-dir`).
    pub cert_dir: PathBuf,
    /// Names and addresses for a certificate of its own: the node's name and addresses.
    pub names: Vec<String>,
    /// Certificates that sign clients' ones (`authentication.x509.clientCAFile`).
    pub client_ca: Option<PathBuf>,
    /// The oldest version of TLS that is served (`tlsMinVersion`).
    pub tls: TlsVersion,
    /// Static tokens: lines of `token,user,uid,"group1,group2"`; none while there is no such file.
    pub tokens: Option<PathBuf>,
    /// A folder where `node-client.yaml` is left for `orlop` on this node, if anywhere: with the server's address, its
    /// certificate, and a token that is made anew at every start and may do everything. Only the folder's owner reads it.
    pub local_client: Option<PathBuf>,
    /// Whether requests without any credentials are somebody's (`authentication.anonymous.enabled`).
    pub anonymous: bool,
    /// Who may do what.
    pub authorizer: Arc<dyn Authorizer>,
    /// Whether exec, attach, port-forward, run and logs are there (`enableDebuggingHandlers`).
    pub debugging: bool,
    /// Whether `/logs/` is there (`enableSystemLogHandler`).
    pub system_logs: bool,
    /// What `/logs/` shows.
    pub log_dir: PathBuf,
    /// Where checkpoints go; made for root alone.
    pub checkpoint_dir: PathBuf,
    /// Bounds.
    pub limits: Limits,
}

/// A certificate's files, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and those between it and its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once, tunnels included, of each listener.
    pub connections: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For a request's head, and between two requests of a connection.
    pub head: Duration,
    /// For a request's body.
    pub body: Duration,
    /// Size of a request's body.
    pub body_bytes: usize,
    /// For a client to take more of an answer.
    pub stall: Duration,
    /// For connections to end once the server is told to.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1000,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            body: Duration::from_secs(10),
            body_bytes: 64 << 10,
            stall: Duration::from_secs(300),
            drain: Duration::from_secs(10),
        }
    }
}

impl ServerConfig {
    /// Upstream's defaults, below `root` (`/var/lib/kubelet`): HTTPS everywhere on port 10250, health on the loopback's
    /// port 10248, nobody but who `authorizer` knows.
    pub fn new(root: PathBuf, authorizer: Arc<dyn Authorizer>) -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10250),
            read_only: None,
            healthz: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10248)),
            certificate: None,
            cert_dir: root.join("pki"),
            names: Vec::new(),
            client_ca: None,
            tls: TlsVersion::default(),
            tokens: None,
            local_client: None,
            anonymous: false,
            authorizer,
            debugging: true,
            system_logs: true,
            log_dir: PathBuf::from("/var/log"),
            checkpoint_dir: root.join("checkpoints"),
            limits: Limits::default(),
        }
    }
}
