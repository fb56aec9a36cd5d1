//! The two small services: registration of plugins, and the pod resources API.
//!
//! Both are put behind a trait and answer on a Unix socket that only root can open; whoever starts them hands the
//! listener and the end in ([`serve`]).

use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::proto::{
    AllocatableResourcesResponse, Empty, GetPodResourcesRequest, GetPodResourcesResponse,
    ListPodResourcesResponse, PodResources, RegisterRequest,
};
use super::{VERSION, plugin};

/// The registration's socket in the folder of device plugins.
pub const REGISTRATION_SOCKET: &str = "kubelet.sock";
/// The socket of the pod resources API in its folder.
pub const POD_RESOURCES_SOCKET: &str = "kubelet.sock";
/// Requests at once on a connection.
const AT_ONCE: usize = 16;

type Future_<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Who is told of new plugins.
pub trait Registry: Send + Sync + 'static {
    /// A plugin wants to be called back.
    fn register(&self, request: RegisterRequest);
}

/// Who knows what pods have.
pub trait PodResourcesSource: Send + Sync + 'static {
    /// All pods with what each has.
    fn list(&self) -> Vec<PodResources>;
    /// What pods could have.
    fn allocatable(&self) -> AllocatableResourcesResponse;
}

/// Why a registration is refused; worded as upstream.
///
/// # Errors
/// What is wrong with it.
pub fn check(request: &RegisterRequest) -> Result<(), Status> {
    if request.version != VERSION {
        return Err(Status::unknown(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
            request.version
        )));
    }
    let name = &request.resource_name;
    let valid = name.split_once('/').is_some_and(|(domain, rest)| {
        let part = |text: &str| {
            !text.is_empty()
                && text.len() <= 253
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        part(domain) && part(rest) && !domain.ends_with("kubernetes.io")
    });
    if !valid {
        return Err(Status::unknown(format!("the ResourceName {name:?} is invalid")));
    }
    if plugin::socket_of(Path::new("/"), &request.endpoint).is_none() {
        return Err(Status::unknown(format!(
            "the endpoint {:?} is not the name of a socket",
            request.endpoint
        )));
    }
    Ok(())
}

/// `v1beta1.Registration`
#[derive(Debug)]
pub struct Registration<R>(pub Arc<R>);

/// `v1.PodResourcesLister`
#[derive(Debug)]
pub struct PodResourcesLister<S>(pub Arc<S>);

impl<R> Clone for Registration<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Clone for PodResourcesLister<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> NamedService for Registration<R> {
    const NAME: &'static str = "v1beta1.Registration";
}

impl<S> NamedService for PodResourcesLister<S> {
    const NAME: &'static str = "v1.PodResourcesLister";
}

/// One method: a function from the request's message to the answer's.
struct Method<F>(F);

impl<F, Q, A> UnaryService<Q> for Method<F>
where
    F: FnMut(Q) -> Result<A, Status>,
    A: Send + 'static,
{
    type Response = A;
    type Future = Future_<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = self.0(request.into_inner()).map(Response::new);
        Box::pin(std::future::ready(answer))
    }
}

type Answer = Future_<Result<http::Response<Body>, Infallible>>;

fn unary<Q, A>(
    request: http::Request<Body>,
    method: impl FnMut(Q) -> Result<A, Status> + Send + 'static,
) -> Answer
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + Default + 'static,
{
    Box::pin(async move {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<A, Q>::default());
        Ok(grpc.unary(Method(method), request).await)
    })
}

fn unknown() -> Answer {
    let status = Status::unimplemented("there is no such method");
    Box::pin(std::future::ready(Ok(status.into_http())))
}

impl<R: Registry> tower::Service<http::Request<Body>> for Registration<R> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let registry = Arc::clone(&self.0);
        match request.uri().path() {
            "/v1beta1.Registration/Register" => unary(request, move |message: RegisterRequest| {
                check(&message)?;
                registry.register(message);
                Ok(Empty {})
            }),
            _ => unknown(),
        }
    }
}

impl<S: PodResourcesSource> tower::Service<http::Request<Body>> for PodResourcesLister<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let source = Arc::clone(&self.0);
        match request.uri().path() {
            "/v1.PodResourcesLister/List" => unary(request, move |_: Empty| {
                Ok(ListPodResourcesResponse {
                    pod_resources: source.list(),
                })
            }),
            "/v1.PodResourcesLister/GetAllocatableResources" => {
                unary(request, move |_: Empty| Ok(source.allocatable()))
            }
            "/v1.PodResourcesLister/Get" => unary(request, move |message: GetPodResourcesRequest| {
                let (name, namespace) = (&message.pod_name, &message.pod_namespace);
                let found = source
                    .list()
                    .into_iter()
                    .find(|pod| pod.name == *name && pod.namespace == *namespace);
                match found {
                    Some(pod) => Ok(GetPodResourcesResponse {
                        pod_resources: Some(pod),
                    }),
                    None => Err(Status::unknown(format!(
                        "pod {name} in namespace {namespace} not found"
                    ))),
                }
            }),
            _ => unknown(),
        }
    }
}

/// Listens on a socket that only its owner can open; one that is left from before is replaced.
///
/// # Errors
/// When the folder can't be made or the socket not be bound.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until `end`.
///
/// # Errors
/// When the socket fails.
pub async fn serve<S>(
    listener: UnixListener,
    service: S,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let server = Server::builder()
        .concurrency_limit_per_connection(AT_ONCE)
        .add_service(service);
    server
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end)
        .await
}
