use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::proto::*;
use super::server::{PodResourcesLister, PodResourcesSource, Registration, Registry};
use super::*;

const GPU: &str = "example.com/gpu";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn owner(uid: &str, container: &str) -> Owner {
    Owner {
        uid: uid.to_owned(),
        container: container.to_owned(),
    }
}

fn device(id: &str, node: i64, healthy: bool) -> Device {
    let nodes = if node < 0 {
        Vec::new()
    } else {
        vec![NumaNode { id: node }]
    };
    Device {
        id: id.to_owned(),
        health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
        topology: Some(TopologyInfo { nodes }),
    }
}

fn with(devices: &[Device]) -> Devices {
    let mut all = Devices::default();
    all.registered(GPU, "gpu.sock", DevicePluginOptions::default());
    all.listed(GPU, "gpu.sock", devices);
    all
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(ToString::to_string).collect()
}

fn take(all: &mut Devices, owner: &Owner, count: usize, init: bool) -> Result<BTreeSet<String>, DeviceError> {
    match all.choose(owner, GPU, count, None)? {
        Choice::Kept => Ok(BTreeSet::new()),
        Choice::Take(ids) => {
            all.grant(owner, GPU, &ids, Vec::new(), init);
            Ok(ids)
        }
    }
}

#[test]
fn healthy_devices_are_given_once_and_the_near_ones_first() {
    let mut all = with(&[
        device("a", 0, true),
        device("b", 1, true),
        device("c", -1, true),
        device("d", 1, false),
    ]);
    assert_eq!(all.capacity(at(0))[GPU], (4, 3));
    let second: NodeMask = [1].into_iter().collect();
    assert_eq!(
        all.choose(&owner("p", "c"), GPU, 2, Some(second)),
        Ok(Choice::Take(set(&["b", "c"])))
    );
    assert_eq!(take(&mut all, &owner("p", "c"), 2, false), Ok(set(&["a", "b"])));
    assert_eq!(all.choose(&owner("p", "c"), GPU, 2, None), Ok(Choice::Kept));
    assert_eq!(
        take(&mut all, &owner("q", "c"), 2, false)
            .unwrap_err()
            .to_string(),
        "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1"
    );
    assert!(all.release_all_but(|uid| uid == "q"));
    assert_eq!(
        take(&mut all, &owner("q", "c"), 3, false),
        Ok(set(&["a", "b", "c"]))
    );
    assert!(matches!(
        all.choose(&owner("r", "c"), "x/y", 1, None),
        Err(DeviceError::Unregistered(_))
    ));
}

#[test]
fn init_containers_hand_their_devices_on() {
    let mut all = with(&[device("a", -1, true), device("b", -1, true)]);
    assert_eq!(take(&mut all, &owner("p", "init"), 2, true), Ok(set(&["a", "b"])));
    assert_eq!(take(&mut all, &owner("p", "one"), 1, false), Ok(set(&["a"])));
    assert_eq!(take(&mut all, &owner("p", "two"), 1, false), Ok(set(&["b"])));
    assert!(take(&mut all, &owner("p", "three"), 1, false).is_err());
}

#[test]
fn a_plugin_that_goes_away_leaves_nothing_allocatable_and_then_nothing() {
    let mut all = with(&[device("a", -1, true)]);
    take(&mut all, &owner("p", "c"), 1, false).unwrap();
    all.gone(GPU, "other.sock", at(0));
    assert_eq!(all.capacity(at(0))[GPU], (1, 1));
    all.gone(GPU, "gpu.sock", at(0));
    assert_eq!(all.capacity(at(299))[GPU], (1, 0));
    // Who has it keeps it while nobody says that it is sick.
    assert_eq!(all.choose(&owner("p", "c"), GPU, 1, None), Ok(Choice::Kept));
    all.registered(GPU, "new.sock", DevicePluginOptions::default());
    all.listed(GPU, "gpu.sock", &[device("old", -1, true)]);
    all.listed(GPU, "new.sock", &[device("a", -1, false)]);
    assert!(matches!(
        all.choose(&owner("p", "c"), GPU, 1, None),
        Err(DeviceError::Unhealthy(_))
    ));
    all.gone(GPU, "new.sock", at(400));
    assert!(all.capacity(at(700)).is_empty());
}

#[test]
fn hints_follow_the_devices_nodes() {
    let mut all = with(&[device("a", 0, true), device("b", 1, true), device("c", 1, true)]);
    let nodes = |hints: Vec<Hint>| -> Vec<(Vec<u32>, bool)> {
        hints
            .iter()
            .map(|hint| (hint.nodes.unwrap().nodes().collect(), hint.preferred))
            .collect()
    };
    let hints = nodes(all.hints(&owner("p", "c"), GPU, 2).unwrap());
    assert_eq!(hints, [(vec![1], true), (vec![0, 1], false)]);
    take(&mut all, &owner("p", "c"), 1, false).unwrap();
    assert_eq!(
        nodes(all.hints(&owner("p", "c"), GPU, 1).unwrap()),
        [(vec![0], true), (vec![0, 1], false)]
    );
    assert_eq!(
        with(&[device("a", -1, true)]).hints(&owner("p", "c"), GPU, 1),
        None
    );
}

#[test]
fn the_checkpoint_is_upstreams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(state::FILE);
    assert!(state::read(&path).unwrap().is_none());
    // Files that upstream wrote.
    let with_entry = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"bf52b2cd-b611-4e79-86b1-280b283185c3","ContainerName":"check","ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["tegra"]},"AllocResp":"Ch8KFk5WSURJQV9WSVNJQkxFX0RFVklDRVMSBXRlZ3Jh"}],"RegisteredDevices":{"nvidia.com/gpu":["tegra"]}},"Checksum":3660592824}"#;
    for text in [
        r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":3467439661}"#,
        r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{"nvidia.com/gpu":["GPU-0650a168-e770-3ea8-8ac3-8a1d419763e0"]}},"Checksum":3952659280}"#,
        with_entry,
    ] {
        std::fs::write(&path, text).unwrap();
        state::read(&path).unwrap().unwrap();
        std::fs::write(&path, text.replace("Checksum\":3", "Checksum\":2")).unwrap();
        assert!(
            state::read(&path)
                .unwrap_err()
                .to_string()
                .contains("checkpoint is corrupted")
        );
    }
    std::fs::write(&path, with_entry).unwrap();
    let (grants, registered) = state::read(&path).unwrap().unwrap();
    let mut all = Devices::restored(grants, registered, at(0));
    let check = owner("bf52b2cd-b611-4e79-86b1-280b283185c3", "check");
    assert_eq!(all.answers(&check)[0].envs["NVIDIA_VISIBLE_DEVICES"], "tegra");
    assert_eq!(all.choose(&check, "nvidia.com/gpu", 1, None), Ok(Choice::Kept));
    assert!(all.choose(&owner("x", "c"), "nvidia.com/gpu", 1, None).is_err());
    // Written again it's the same.
    all.registered("nvidia.com/gpu", "n.sock", DevicePluginOptions::default());
    all.listed("nvidia.com/gpu", "n.sock", &[device("tegra", -1, true)]);
    state::write(&path, &all).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), with_entry);
}

/// Remembers who registered.
#[derive(Default)]
struct Seen(Mutex<Vec<RegisterRequest>>);

impl Registry for Seen {
    fn register(&self, request: RegisterRequest) {
        self.0.lock().unwrap().push(request);
    }
}

struct OnePod;

impl PodResourcesSource for OnePod {
    fn list(&self) -> Vec<PodResources> {
        vec![PodResources {
            name: "web".to_owned(),
            namespace: "default".to_owned(),
            containers: Vec::new(),
        }]
    }

    fn allocatable(&self) -> AllocatableResourcesResponse {
        AllocatableResourcesResponse {
            cpu_ids: vec![1, 2],
            ..AllocatableResourcesResponse::default()
        }
    }
}

async fn call<Q, A>(socket: &std::path::Path, method: &'static str, message: Q) -> Result<A, tonic::Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            tokio::net::UnixStream::connect(socket)
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://kubelet");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let path = http::uri::PathAndQuery::from_static(method);
    Ok(grpc
        .unary(tonic::Request::new(message), path, codec)
        .await?
        .into_inner())
}

#[tokio::test]
async fn plugins_register_on_the_socket_and_nonsense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir
        .path()
        .join("device-plugins")
        .join(server::REGISTRATION_SOCKET);
    // One that a killed kubelet left.
    drop(server::listen(&socket).unwrap());
    let listener = server::listen(&socket).unwrap();
    let seen = Arc::new(Seen::default());
    let service = Registration(Arc::clone(&seen));
    let serving = tokio::spawn(server::serve(listener, service, std::future::pending()));
    let request = |version: &str, name: &str, endpoint: &str| RegisterRequest {
        version: version.to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: name.to_owned(),
        options: None,
    };
    let method = "/v1beta1.Registration/Register";
    for (bad, words) in [
        (
            request("v1", GPU, "g.sock"),
            "requested API version \"v1\" is not supported by kubelet",
        ),
        (
            request(VERSION, "cpu", "g.sock"),
            "the ResourceName \"cpu\" is invalid",
        ),
        (request(VERSION, GPU, "../g.sock"), "is not the name of a socket"),
    ] {
        let refused = call::<_, Empty>(&socket, method, bad).await.unwrap_err();
        assert!(refused.message().contains(words), "{refused}");
    }
    let _: Empty = call(&socket, method, request(VERSION, GPU, "g.sock"))
        .await
        .unwrap();
    assert_eq!(
        seen.0.lock().unwrap().as_slice(),
        [request(VERSION, GPU, "g.sock")]
    );
    let nothing = call::<_, Empty>(&socket, "/v1beta1.Registration/None", Empty {})
        .await
        .unwrap_err();
    assert_eq!(nothing.code(), tonic::Code::Unimplemented);
    serving.abort();
}

#[tokio::test]
async fn what_pods_have_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(server::POD_RESOURCES_SOCKET);
    let listener = server::listen(&socket).unwrap();
    let serving = tokio::spawn(server::serve(
        listener,
        PodResourcesLister(Arc::new(OnePod)),
        std::future::pending(),
    ));
    let list: ListPodResourcesResponse = call(&socket, "/v1.PodResourcesLister/List", Empty {})
        .await
        .unwrap();
    assert_eq!(list.pod_resources[0].name, "web");
    let all: AllocatableResourcesResponse = call(
        &socket,
        "/v1.PodResourcesLister/GetAllocatableResources",
        Empty {},
    )
    .await
    .unwrap();
    assert_eq!(all.cpu_ids, [1, 2]);
    let get = |name: &str| GetPodResourcesRequest {
        pod_name: name.to_owned(),
        pod_namespace: "default".to_owned(),
    };
    let one: GetPodResourcesResponse = call(&socket, "/v1.PodResourcesLister/Get", get("web"))
        .await
        .unwrap();
    assert_eq!(one.pod_resources.unwrap().namespace, "default");
    let none = call::<_, GetPodResourcesResponse>(&socket, "/v1.PodResourcesLister/Get", get("x"))
        .await
        .unwrap_err();
    assert_eq!(none.message(), "pod x in namespace default not found");
    serving.abort();
}

/// A plugin that gives what it is asked for.
#[derive(Clone)]
struct Plugin;

impl tonic::server::NamedService for Plugin {
    const NAME: &'static str = "v1beta1.DevicePlugin";
}

struct Allocate;

impl tonic::server::UnaryService<AllocateRequest> for Allocate {
    type Response = AllocateResponse;
    type Future = std::future::Ready<Result<tonic::Response<AllocateResponse>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<AllocateRequest>) -> Self::Future {
        let each = request
            .into_inner()
            .container_requests
            .into_iter()
            .map(|one| ContainerAllocateResponse {
                cdi_devices: one
                    .devices_ids
                    .into_iter()
                    .map(|id| CdiDevice {
                        name: format!("x/y={id}"),
                    })
                    .collect(),
                ..ContainerAllocateResponse::default()
            });
        let container_responses = each.collect();
        std::future::ready(Ok(tonic::Response::new(AllocateResponse { container_responses })))
    }
}

struct List;

impl tonic::server::ServerStreamingService<Empty> for List {
    type Response = ListAndWatchResponse;
    type ResponseStream = tokio_stream::Iter<std::vec::IntoIter<Result<ListAndWatchResponse, tonic::Status>>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, tonic::Status>>;

    fn call(&mut self, _: tonic::Request<Empty>) -> Self::Future {
        let one = |healthy| {
            Ok(ListAndWatchResponse {
                devices: vec![device("a", 0, healthy)],
            })
        };
        std::future::ready(Ok(tonic::Response::new(tokio_stream::iter(vec![
            one(true),
            one(false),
        ]))))
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Plugin {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/v1beta1.DevicePlugin/Allocate" => {
                    tonic::server::Grpc::new(tonic_prost::ProstCodec::default())
                        .unary(Allocate, request)
                        .await
                }
                "/v1beta1.DevicePlugin/ListAndWatch" => {
                    tonic::server::Grpc::new(tonic_prost::ProstCodec::default())
                        .server_streaming(List, request)
                        .await
                }
                _ => tonic::Status::unimplemented("").into_http(),
            })
        })
    }
}

#[tokio::test]
async fn a_plugin_is_listened_to_and_its_answer_kept() {
    let dir = tempfile::tempdir().unwrap();
    let socket = plugin::socket_of(dir.path(), "gpu.sock").unwrap();
    let serving = tokio::spawn(server::serve(
        server::listen(&socket).unwrap(),
        Plugin,
        std::future::pending(),
    ));
    let plugin = plugin::Plugin::connect(socket).await.unwrap();
    let mut stream = plugin.list_and_watch().await.unwrap();
    let mut all = with(&[]);
    let mut counts = Vec::new();
    while let Some(told) = stream.message().await.unwrap() {
        all.listed(GPU, "gpu.sock", &told.devices);
        counts.push(all.capacity(at(0))[GPU]);
    }
    assert_eq!(counts, [(1, 1), (1, 0)]);
    let answer = plugin.allocate(vec!["a".to_owned()]).await.unwrap();
    let pod = owner("p", "c");
    all.grant(&pod, GPU, &set(&["a"]), answer, false);
    assert_eq!(all.answers(&pod)[0].cdi_devices[0].name, "x/y=a");
    assert!(plugin.pre_start(Vec::new()).await.is_err());
    assert!(plugin.preferred(Vec::new(), Vec::new(), 1).await.is_err() && plugin.options().await.is_err());
    assert!(plugin::Plugin::connect(dir.path().join("none")).await.is_err());
    serving.abort();
}

proptest! {
    #[test]
    fn no_device_has_two_owners(steps in proptest::collection::vec((0..4_u8, 0..3_u8, 0..4_usize, any::<bool>()), 0..30)) {
        let told: Vec<Device> = (0..8).map(|id| device(&format!("d{id}"), id % 3 - 1, id != 7)).collect();
        let mut all = with(&told);
        for (pod, container, count, release) in steps {
            let uid = format!("p{pod}");
            if release {
                all.release_all_but(|other| other != uid);
            } else {
                let _ = take(&mut all, &owner(&uid, &format!("c{container}")), count, container == 0);
            }
            let mut owners: BTreeMap<&String, &String> = BTreeMap::new();
            for (owner, grants) in all.grants() {
                for id in grants.values().flat_map(Grant::ids) {
                    prop_assert!(owners.insert(id, &owner.uid).is_none_or(|other| *other == owner.uid));
                    prop_assert!(id != "d7", "it isn't healthy");
                }
            }
        }
    }
}
