//! One probing: what a probe's spec asks for, made ready once per container, and done.

use std::net::IpAddr;
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use controlplane_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kubelet_pods::cri::env::static_variables;
use kubelet_pods::cri::expansion::expand_all;
use tokio::time::timeout;

use super::exec::{self, Exec};
use super::http::{self, Asker, HttpTarget};
use super::{Outcome, connect, grpc};
use crate::probing::dial::join;

/// What probing a container means, ready to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A command in the container.
    Exec(Vec<String>),
    /// A request.
    Http(Box<HttpTarget>),
    /// A connection.
    Tcp {
        /// Name or address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// The health protocol.
    Grpc {
        /// The pod's address.
        host: String,
        /// Its port.
        port: u16,
        /// The service that is asked for.
        service: String,
        /// Whether with TLS.
        tls: bool,
    },
    /// Nothing that can be done, and why.
    Impossible(String),
}

/// A port by its number, by a number as text, or by the name that the container gives it.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let named = |port: &&controlplane_api::k8s_openapi::api::core::v1::ContainerPort| {
                    port.name.as_deref() == Some(name.as_str())
                };
                let found = container.ports.iter().flatten().find(named);
                found
                    .map(|port| port.container_port)
                    .ok_or_else(|| format!("couldn't find port: {name}"))?
            }
        },
    };
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// Makes a probe of a container ready; `ip` is the pod's address.
pub fn compile(probe: &Probe, container: &Container, ip: Option<IpAddr>) -> Action {
    compiled(probe, container, ip).unwrap_or_else(Action::Impossible)
}

fn compiled(probe: &Probe, container: &Container, ip: Option<IpAddr>) -> Result<Action, String> {
    let own = || {
        ip.map(|ip| ip.to_string())
            .ok_or_else(|| "the pod has no address".to_owned())
    };
    let host = |given: &Option<String>| match given.as_deref() {
        Some(host) if !host.is_empty() => Ok(host.to_owned()),
        _ => own(),
    };
    if let Some(exec) = &probe.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        return Ok(Action::Exec(expand_all(command, &static_variables(container))));
    }
    if let Some(get) = &probe.http_get {
        if let Some(protocol) = get
            .protocol
            .as_deref()
            .filter(|name| !matches!(*name, "" | "HTTP1" | "HTTP/1.1"))
        {
            return Err(format!("unsupported protocol {protocol:?}"));
        }
        return http_target(get, container, &host(&get.host)?, Asker::Probe)
            .map(|t| Action::Http(Box::new(t)));
    }
    if let Some(tcp) = &probe.tcp_socket {
        return Ok(Action::Tcp {
            host: host(&tcp.host)?,
            port: resolve_port(&tcp.port, container)?,
        });
    }
    if let Some(grpc) = &probe.grpc {
        let port = resolve_port(&IntOrString::Int(grpc.port), container)?;
        let service = grpc.service.clone().unwrap_or_default();
        return Ok(Action::Grpc {
            host: own()?,
            port,
            service,
            tls: grpc.mode.as_deref() == Some("TLS"),
        });
    }
    Err(format!("missing probe handler for container {}", container.name))
}

/// What an `httpGet` asks for.
pub(crate) fn http_target(
    get: &HTTPGetAction,
    container: &Container,
    host: &str,
    asker: Asker,
) -> Result<HttpTarget, String> {
    let port = resolve_port(&get.port, container)?;
    let headers: Vec<(String, String)> = get
        .http_headers
        .iter()
        .flatten()
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect();
    let tls = get
        .scheme
        .as_deref()
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    HttpTarget::new(
        tls,
        host,
        port,
        get.path.as_deref().unwrap_or_default(),
        &headers,
        asker,
    )
}

impl Action {
    /// Probes once, for as long as `patience` at most.
    pub async fn run(&self, exec: &dyn Exec, container_id: &str, patience: Duration) -> Outcome {
        match self {
            Action::Exec(command) => exec::probe(exec, container_id, command, patience).await,
            Action::Http(target) => http::probe(target, patience).await,
            Action::Tcp { host, port } => tcp(host, *port, patience).await,
            Action::Grpc {
                host,
                port,
                service,
                tls,
            } => Box::pin(grpc::probe(host, *port, service, *tls, patience)).await,
            Action::Impossible(reason) => Outcome::Unknown(reason.clone()),
        }
    }
}

/// Connects, and that is all.
async fn tcp(host: &str, port: u16, patience: Duration) -> Outcome {
    match timeout(patience, connect(host, port)).await {
        Ok(Ok(_)) => Outcome::Success(String::new()),
        Ok(Err(error)) => Outcome::Failure(error.to_string()),
        Err(_) => Outcome::Failure(format!("dial tcp {}: i/o timeout", join(host, port))),
    }
}
