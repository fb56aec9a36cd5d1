//! The kubelet's HTTP server: what the API server, Prometheus and `orlop` ask a node.
//!
//! [`Server::bind`] takes its sockets and certificates, [`Server::run`] serves until it is told to stop. HTTPS is for all
//! that upstream's port 10250 has: who asks is found out ([`identity`]), whether they may is asked of an
//! [`authz::Authorizer`], and the [`Kubelet`] behind knows the rest. Two plain listeners are for health on the loopback and,
//! where somebody wants it, for reading without credentials.
//!
//! Paths, parameters, codes and bodies are upstream's, with two of our own: `/timeline/{namespace}/{pod}` and
//! `/events/{namespace}/{pod}`.

mod answers;
pub mod authz;
pub mod config;
mod credentials;
mod endpoints;
mod files;
pub mod identity;
mod listener;
mod logs;
mod lookup;
mod route;
pub mod seam;
mod service;
pub mod stats;
mod subject;
mod tunnel;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use config::{CertificateFiles, Limits, ServerConfig};
pub use credentials::CredentialsError;
pub use seam::{Kubelet, KubeletError, KubeletErrorKind, RuntimeMetrics};

use crate::metrics::KubeletMetrics;
use credentials::Reloading;
use listener::{Door, Listener, Stage};
use service::Service;

/// Why the server can't serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address is taken, or isn't this node's.
    #[error("failed to listen on `{address}`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// There is no certificate to serve with, or what clients are known by can't be used.
    #[error("failed to prepare certificates and tokens")]
    Credentials(#[from] CredentialsError),
}

/// The server, bound and not yet serving; clients that come before [`Server::run`] wait in the kernel.
pub struct Server {
    service: Arc<Service>,
    listeners: Vec<Listener>,
}

impl Server {
    /// Takes sockets, and reads or makes certificates.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn bind(
        config: ServerConfig,
        kubelet: Arc<dyn Kubelet>,
        metrics: KubeletMetrics,
    ) -> Result<Self, ServerError> {
        let reloading = Arc::new(Reloading::open(&config)?);
        let wanted = [
            (Door::Secure, Some(config.listen)),
            (Door::ReadOnly, config.read_only),
            (Door::Health, config.healthz),
        ];
        let mut listeners = Vec::new();
        for (door, address) in wanted {
            let Some(address) = address else { continue };
            let failed = |source| ServerError::Listen { address, source };
            let socket = TcpListener::bind(address).await.map_err(failed)?;
            if let (Door::Secure, Some(folder), Ok(bound)) = (door, &config.local_client, socket.local_addr())
            {
                // The kubelet works without; a read-only /etc is no reason not to.
                if let Err(error) = reloading.leave_client(folder, bound) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "orlop on this node gets no access");
                }
            }
            listeners.push(Listener {
                socket,
                door,
                reloading: (door == Door::Secure).then(|| reloading.clone()),
                limits: config.limits,
            });
        }
        metrics.node_name.set(&[&kubelet.node_name()], 1.0);
        let now = Timestamp::now().as_millisecond() as f64 / 1e3;
        metrics.process_start_time_seconds.set(&[], now);
        let service = Arc::new(Service {
            config,
            kubelet,
            metrics,
            now: Arc::new(Timestamp::now),
        });
        Ok(Self { service, listeners })
    }

    fn address(&self, door: Door) -> Option<SocketAddr> {
        let listener = self.listeners.iter().find(|listener| listener.door == door)?;
        listener.socket.local_addr().ok()
    }

    /// Where HTTPS is served.
    pub fn secure_address(&self) -> Option<SocketAddr> {
        self.address(Door::Secure)
    }

    /// Where plain HTTP is served for reading.
    pub fn read_only_address(&self) -> Option<SocketAddr> {
        self.address(Door::ReadOnly)
    }

    /// Where health is served.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.address(Door::Health)
    }

    /// Serves until `shutdown` is ready, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let (stage, stages) = watch::channel(Stage::Serving);
        let drain = self.service.config.limits.drain;
        let mut running = tokio::task::JoinSet::new();
        for listener in self.listeners {
            running.spawn(listener.run(self.service.clone(), stages.clone()));
        }
        let end = async {
            shutdown.await;
            stage.send_replace(Stage::Draining);
            tokio::time::sleep(drain).await;
            stage.send_replace(Stage::Closed);
            std::future::pending::<()>().await;
        };
        let all = async { while running.join_next().await.is_some() {} };
        tokio::select! {
            () = end => {}
            () = all => {}
        }
        stage.send_replace(Stage::Closed);
    }
}
