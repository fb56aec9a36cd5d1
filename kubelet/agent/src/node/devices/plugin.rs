//! Calls to a plugin: its socket lies beside the kubelet's.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::proto::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerPreferredAllocationRequest,
    DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse,
};

/// How long connecting and the quick calls may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a plugin may prepare devices for a container: upstream's.
const PRE_START: Duration = Duration::from_secs(30);
/// Largest answer.
const LARGEST: usize = 16 << 20;

/// A connected plugin.
#[derive(Debug, Clone)]
pub struct Plugin {
    channel: Channel,
}

/// The path of a plugin's socket; `None` for a name that leads out of the folder.
#[must_use]
pub fn socket_of(folder: &Path, endpoint: &str) -> Option<PathBuf> {
    let mut parts = Path::new(endpoint).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Some(folder.join(name)),
        _ => None,
    }
}

impl Plugin {
    /// Connects to a plugin's socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(socket: PathBuf) -> Result<Self, Status> {
        // The address is never used: the connector knows the socket.
        let endpoint = Endpoint::from_static("http://plugin").connect_timeout(PATIENCE);
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = endpoint.connect_with_connector(connector).await;
        channel
            .map(|channel| Self { channel })
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn unary<Q, A>(&self, method: &'static str, message: Q, patience: Duration) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        let call = async {
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            let path = PathAndQuery::from_static(method);
            grpc.unary(Request::new(message), path, codec).await
        };
        let answer = tokio::time::timeout(patience, call).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("the device plugin doesn't answer"))?;
        Ok(answer?.into_inner())
    }

    /// What it wants to be asked.
    ///
    /// # Errors
    /// What it says, or that it doesn't answer.
    pub async fn options(&self) -> Result<DevicePluginOptions, Status> {
        self.unary("/v1beta1.DevicePlugin/GetDevicePluginOptions", Empty {}, PATIENCE)
            .await
    }

    /// Its devices, again whenever they change, until it goes away.
    ///
    /// # Errors
    /// What it says, or that it doesn't answer.
    pub async fn list_and_watch(&self) -> Result<Streaming<ListAndWatchResponse>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Empty, ListAndWatchResponse>::default();
        let path = PathAndQuery::from_static("/v1beta1.DevicePlugin/ListAndWatch");
        let stream = grpc.server_streaming(Request::new(Empty {}), path, codec).await?;
        Ok(stream.into_inner())
    }

    /// Which of the available devices would be best.
    ///
    /// # Errors
    /// What it says, or that it doesn't answer.
    pub async fn preferred(
        &self,
        available: Vec<String>,
        must_include: Vec<String>,
        size: usize,
    ) -> Result<Vec<String>, Status> {
        let one = ContainerPreferredAllocationRequest {
            available_device_ids: available,
            must_include_device_ids: must_include,
            allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest {
            container_requests: vec![one],
        };
        let method = "/v1beta1.DevicePlugin/GetPreferredAllocation";
        let answer: PreferredAllocationResponse = self.unary(method, request, PATIENCE).await?;
        Ok(answer
            .container_responses
            .into_iter()
            .next()
            .unwrap_or_default()
            .device_ids)
    }

    /// What a container needs for devices, as it is to be kept.
    ///
    /// # Errors
    /// What it says, that it doesn't answer, or that it answers for another number of containers.
    pub async fn allocate(&self, ids: Vec<String>) -> Result<Vec<u8>, Status> {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest { devices_ids: ids }],
        };
        let answer: AllocateResponse = self
            .unary("/v1beta1.DevicePlugin/Allocate", request, PATIENCE)
            .await?;
        match answer.container_responses.as_slice() {
            [one] => Ok(one.encode_to_vec()),
            _ => Err(Status::internal("no containers return in allocation response")),
        }
    }

    /// Tells it that a container with these devices is about to start.
    ///
    /// # Errors
    /// What it says, or that it doesn't answer.
    pub async fn pre_start(&self, ids: Vec<String>) -> Result<(), Status> {
        let request = PreStartContainerRequest { devices_ids: ids };
        let method = "/v1beta1.DevicePlugin/PreStartContainer";
        let _: PreStartContainerResponse = self.unary(method, request, PRE_START).await?;
        Ok(())
    }
}
