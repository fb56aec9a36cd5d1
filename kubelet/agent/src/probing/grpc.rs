//! gRPC's health protocol, `grpc.health.v1`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::Uri;
use ::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;
use tower::Service;

use super::dial::{connect, join};
use super::exec::go_duration;
use super::{Outcome, tls};

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub(crate) status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl ServingStatus {
    fn name(self) -> &'static str {
        match self {
            ServingStatus::Unknown => "UNKNOWN",
            ServingStatus::Serving => "SERVING",
            ServingStatus::NotServing => "NOT_SERVING",
            ServingStatus::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to the host whatever the channel asks for.
#[derive(Clone)]
struct Connector {
    host: String,
    port: u16,
    tls: bool,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Connector { host, port, tls } = self.clone();
        Box::pin(async move {
            let plain = connect(&host, port).await.map_err(std::io::Error::other)?;
            let stream: Box<dyn Stream> = match tls {
                true => Box::new(
                    tls::wrap(plain, &host, true)
                        .await
                        .map_err(std::io::Error::other)?,
                ),
                false => Box::new(plain),
            };
            Ok(TokioIo::new(stream))
        })
    }
}

/// Probes once.
pub(crate) async fn probe(host: &str, port: u16, service: &str, tls: bool, patience: Duration) -> Outcome {
    let address = join(host, port);
    let waited = go_duration(patience);
    let deadline = tokio::time::Instant::now() + patience;
    let channel = match timeout(patience, channel(host, port, tls)).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(reason)) => {
            return Outcome::Failure(format!(
                "error: failed to connect service at {address:?}: {reason}"
            ));
        }
        Err(_) => {
            return Outcome::Failure(format!(
                "timeout: failed to connect service {address:?} within {waited}: context deadline exceeded"
            ));
        }
    };
    let late = || Outcome::Failure(format!("timeout: health rpc did not complete within {waited}"));
    match tokio::time::timeout_at(deadline, check(channel, service)).await {
        Err(_) => late(),
        Ok(Ok(response)) => {
            match ServingStatus::try_from(response.status).unwrap_or(ServingStatus::Unknown) {
                ServingStatus::Serving => Outcome::Success("service healthy".to_owned()),
                other => Outcome::Failure(format!("service unhealthy (responded with {:?})", other.name())),
            }
        }
        Ok(Err(status)) => match status.code() {
            Code::DeadlineExceeded => late(),
            Code::Unimplemented => Outcome::Failure(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            )),
            code => Outcome::Failure(format!(
                "error: health rpc probe failed: rpc error: code = {code:?} desc = {}",
                status.message()
            )),
        },
    }
}

async fn channel(host: &str, port: u16, tls: bool) -> Result<Channel, String> {
    let scheme = if tls { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", join(host, port)))
        .and_then(|endpoint| endpoint.user_agent("kube-probe/1.37"))
        .map_err(|error| chain(&error))?;
    let connector = Connector {
        host: host.to_owned(),
        port,
        tls,
    };
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| chain(&error))
}

async fn check(channel: Channel, service: &str) -> Result<HealthCheckResponse, tonic::Status> {
    let mut client = Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| tonic::Status::unavailable(chain(&error)))?;
    let request = Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    client
        .unary(request, path, codec)
        .await
        .map(tonic::Response::into_inner)
}

/// The innermost cause: what really went wrong.
fn chain(error: &dyn std::error::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
