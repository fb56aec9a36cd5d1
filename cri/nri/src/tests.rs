//! A whole conversation: plugins made of the crate's own frames, on real sockets. The real Go plugins are in
//! tests/e2e.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::connection::{Connection, Incoming};
use crate::mux;
use crate::ttrpc::{Frame, Frames, Kind, REMOTE_CLOSED, Request, Response, Status};
use crate::v1alpha1::*;
use crate::{ConnectionError, Nri, NriConfig, NriError, Runtime, StartError, State};

const LIMIT: Duration = Duration::from_secs(20);

#[derive(Default)]
struct TestRuntime {
    pods: usize,
    updated: Mutex<Vec<(String, ContainerUpdate)>>,
    evicted: Mutex<Vec<ContainerEviction>>,
    /// To see whether anything could still be noted while the list is made.
    nri: OnceLock<Weak<Nri>>,
}

#[async_trait::async_trait]
impl Runtime for TestRuntime {
    async fn state(&self) -> State {
        if let Some(nri) = self.nri.get().and_then(Weak::upgrade) {
            assert!(!nri.is_alone(|| ()));
        }
        let pod = |n| PodSandbox {
            id: format!("pod{n}"),
            // Long, so that the list must go in parts.
            annotations: [("long".to_owned(), "x".repeat(3 << 20))].into(),
            ..PodSandbox::default()
        };
        State {
            pods: (0..self.pods).map(pod).collect(),
            containers: vec![Container {
                id: "old".into(),
                ..Container::default()
            }],
        }
    }

    async fn update(&self, plugin: &str, updates: Vec<ContainerUpdate>) -> Vec<ContainerUpdate> {
        let (good, bad): (Vec<_>, Vec<_>) = updates.into_iter().partition(|u| u.container_id == "old");
        let mut updated = self.updated.lock().unwrap();
        updated.extend(good.into_iter().map(|update| (plugin.to_owned(), update)));
        bad
    }

    async fn evict(&self, _: &str, evictions: Vec<ContainerEviction>) {
        self.evicted.lock().unwrap().extend(evictions);
    }
}

struct Bed {
    dir: tempfile::TempDir,
    runtime: Arc<TestRuntime>,
    nri: Arc<Nri>,
}

fn config(dir: &Path, request: Duration) -> NriConfig {
    NriConfig {
        name: "test".into(),
        version: "v1".into(),
        socket: dir.join("nri/nri.sock"),
        plugin_dir: dir.join("plugins"),
        config_dir: dir.join("conf.d"),
        registration_timeout: request,
        request_timeout: request,
    }
}

async fn bed(pods: usize, request: Duration) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Arc::new(TestRuntime {
        pods,
        ..TestRuntime::default()
    });
    let nri = Nri::new(config(dir.path(), request), runtime.clone());
    nri.start().await.unwrap();
    Bed { dir, runtime, nri }
}

impl Bed {
    async fn join(&self, plugin: TestPlugin) {
        let before = self.nri.plugins.lock().await.len();
        tokio::spawn(plugin.run(self.nri.config.socket.clone()));
        let joined = async {
            while self.nri.plugins.lock().await.len() == before {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(LIMIT, joined)
            .await
            .expect("the plugin joins");
    }

    async fn until_left(&self, count: usize) {
        let left = async {
            while self.nri.plugins.lock().await.len() != count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(LIMIT, left).await.expect("plugins leave");
    }

    async fn create(&self) -> Result<crate::Adjusted, NriError> {
        let container = Container {
            id: "new".into(),
            ..Container::default()
        };
        let turn = self.nri.turn().await;
        turn.create_container(PodSandbox::default(), container).await
    }
}

type Handler = Box<dyn FnMut(&str, &[u8]) -> Reply + Send>;

enum Reply {
    Answer(Vec<u8>),
    Refuse(i32, &'static str),
    /// No answer at all.
    Silence,
    /// The plugin dies.
    Die,
}

fn answer(message: &impl Message) -> Reply {
    Reply::Answer(message.encode_to_vec())
}

struct TestPlugin {
    index: &'static str,
    name: &'static str,
    events: i32,
    policy: Option<FailurePolicy>,
    /// Takes a list in parts.
    parts: bool,
    handler: Handler,
    heard: Arc<Mutex<Vec<String>>>,
    /// Asks for updates as soon as it takes part.
    asks: bool,
    /// How long it takes for each part of the list.
    delay: Duration,
}

impl TestPlugin {
    fn new(
        index: &'static str,
        name: &'static str,
        handler: impl FnMut(&str, &[u8]) -> Reply + Send + 'static,
    ) -> Self {
        Self {
            index,
            name,
            events: 0x1fff,
            policy: None,
            parts: true,
            handler: Box::new(handler),
            heard: Arc::default(),
            asks: false,
            delay: Duration::ZERO,
        }
    }

    async fn run(mut self, socket: std::path::PathBuf) {
        let mut socket = UnixStream::connect(socket).await.unwrap();
        let register = RegisterPluginRequest {
            plugin_name: self.name.into(),
            plugin_idx: self.index.into(),
            nri_version: String::new(),
        };
        ask(&mut socket, 1, "RegisterPlugin", &register).await;
        let mut frames = Frames::default();
        loop {
            let Some((connection, piece)) = piece(&mut socket).await else {
                return;
            };
            if connection == mux::RUNTIME {
                self.heard
                    .lock()
                    .unwrap()
                    .push(format!("answer of {} bytes", piece.len()));
                continue;
            }
            frames.push(&piece);
            while let Some(frame) = frames.next_frame().unwrap() {
                let request = Request::decode(frame.body.as_slice()).unwrap();
                self.heard.lock().unwrap().push(request.method.clone());
                if request.method == "Synchronize" {
                    tokio::time::sleep(self.delay).await;
                }
                let response = match self.handle(&request) {
                    Reply::Answer(payload) => Response {
                        status: None,
                        payload,
                    },
                    Reply::Refuse(code, message) => Response {
                        status: Some(Status {
                            code,
                            message: message.into(),
                        }),
                        payload: Vec::new(),
                    },
                    Reply::Silence => continue,
                    Reply::Die => return,
                };
                let frame = Frame {
                    stream: frame.stream,
                    kind: Kind::Response,
                    flags: 0,
                    body: response.encode_to_vec(),
                };
                let bytes = mux::encode(mux::PLUGIN, &frame.encode().unwrap());
                if socket.write_all(&bytes).await.is_err() {
                    return;
                }
                if request.method == "Synchronize" && self.asks {
                    let update = |id: &str| ContainerUpdate {
                        container_id: id.into(),
                        ..ContainerUpdate::default()
                    };
                    let request = UpdateContainersRequest {
                        update: vec![update("old"), update("unknown")],
                        evict: vec![ContainerEviction {
                            container_id: "old".into(),
                            reason: "why not".into(),
                        }],
                    };
                    ask(&mut socket, 3, "UpdateContainers", &request).await;
                }
            }
        }
    }

    fn handle(&mut self, request: &Request) -> Reply {
        match request.method.as_str() {
            "Configure" => answer(&ConfigureResponse {
                events: self.events,
                failure_policy: self.policy,
            }),
            "Synchronize" => {
                let request = SynchronizeRequest::decode(request.payload.as_slice()).unwrap();
                answer(&SynchronizeResponse {
                    update: Vec::new(),
                    more: request.more && self.parts,
                })
            }
            method => (self.handler)(method, &request.payload),
        }
    }
}

async fn ask(socket: &mut UnixStream, stream: u32, method: &str, message: &impl Message) {
    let request = Request {
        service: "nri.pkg.api.v1alpha1.Runtime".into(),
        method: method.into(),
        payload: message.encode_to_vec(),
        timeout_nano: 0,
    };
    let frame = Frame {
        stream,
        kind: Kind::Request,
        flags: REMOTE_CLOSED,
        body: request.encode_to_vec(),
    };
    let bytes = mux::encode(mux::RUNTIME, &frame.encode().unwrap());
    socket.write_all(&bytes).await.unwrap();
}

async fn piece(socket: &mut UnixStream) -> Option<(u32, Vec<u8>)> {
    let mut head = [0; mux::HEAD_BYTES];
    socket.read_exact(&mut head).await.ok()?;
    let (connection, length) = mux::parse_head(head).unwrap();
    let mut piece = vec![0; length];
    socket.read_exact(&mut piece).await.ok()?;
    Some((connection, piece))
}

fn agrees(_: &str, _: &[u8]) -> Reply {
    answer(&Empty {})
}

/// Adds its own name to the environment, and another variable.
fn adds(key: &'static str) -> impl FnMut(&str, &[u8]) -> Reply + Send + 'static {
    move |method, payload| {
        if method != "CreateContainer" {
            return answer(&Empty {});
        }
        let request = CreateContainerRequest::decode(payload).unwrap();
        let seen = request.container.unwrap().env.join(" ");
        answer(&CreateContainerResponse {
            adjust: Some(ContainerAdjustment {
                env: vec![KeyValue {
                    key: key.into(),
                    value: seen,
                }],
                ..ContainerAdjustment::default()
            }),
            ..CreateContainerResponse::default()
        })
    }
}

#[tokio::test]
async fn plugins_are_asked_in_the_order_of_their_indices() {
    let bed = bed(1, LIMIT).await;
    bed.join(TestPlugin::new("20", "second", adds("B"))).await;
    bed.join(TestPlugin::new("10", "first", adds("A"))).await;
    let adjusted = bed.create().await.unwrap();
    let env: Vec<_> = adjusted
        .adjust
        .env
        .iter()
        .map(|e| format!("{}={}", e.key, e.value))
        .collect();
    assert_eq!(env, ["A=", "B=A="]);
    bed.join(TestPlugin::new("30", "third", adds("A"))).await;
    let text = bed.create().await.unwrap_err().to_string();
    assert_eq!(
        text,
        "NRI plugins `30-third` and `10-first` both tried to set Env `A`"
    );
}

#[tokio::test]
async fn a_long_list_comes_in_parts() {
    let bed = bed(4, LIMIT).await;
    let plugin = TestPlugin::new("00", "parts", agrees);
    let heard = plugin.heard.clone();
    bed.join(plugin).await;
    let parts = |heard: &[String]| heard.iter().filter(|method| *method == "Synchronize").count();
    assert_eq!(parts(&heard.lock().unwrap()), 4);
    let refuses = TestPlugin {
        parts: false,
        ..TestPlugin::new("01", "whole", agrees)
    };
    let socket = bed.nri.config.socket.clone();
    // It is disconnected, which ends it.
    tokio::time::timeout(LIMIT, refuses.run(socket)).await.unwrap();
    assert_eq!(bed.nri.plugins.lock().await.len(), 1);
}

#[tokio::test]
async fn all_parts_of_a_list_have_one_limit() {
    let bed = bed(4, Duration::from_secs(1)).await;
    let mut slow = TestPlugin::new("00", "slow", agrees);
    slow.delay = Duration::from_millis(500);
    let heard = slow.heard.clone();
    let socket = bed.nri.config.socket.clone();
    // It is disconnected, which ends it.
    tokio::time::timeout(LIMIT, slow.run(socket)).await.unwrap();
    assert!(bed.nri.turn().await.is_empty());
    let parts = heard
        .lock()
        .unwrap()
        .iter()
        .filter(|m| *m == "Synchronize")
        .count();
    assert!((1..4).contains(&parts), "{parts}");
}

/// Both ends of a connection, the plugin's as it is.
fn connection() -> (Connection, mpsc::Receiver<Incoming>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (connection, incoming) = Connection::open(ours);
    (connection, incoming, theirs)
}

fn framed(connection: u32, stream: u32, kind: Kind, body: Vec<u8>) -> Vec<u8> {
    let frame = Frame {
        stream,
        kind,
        flags: 0,
        body,
    };
    mux::encode(connection, &frame.encode().unwrap())
}

#[tokio::test]
async fn an_answer_counts_although_the_end_follows_it() {
    for _ in 0..50 {
        let (connection, _incoming, mut theirs) = connection();
        let plugin = async {
            piece(&mut theirs).await.unwrap();
            let answer = framed(
                mux::PLUGIN,
                1,
                Kind::Response,
                Response::default().encode_to_vec(),
            );
            theirs.write_all(&answer).await.unwrap();
            drop(theirs);
        };
        let call = async {
            let call = connection.call::<Empty>("Configure", &Empty {}, LIMIT);
            let mut call = Box::pin(call);
            // Not looked at again before both are there.
            assert!(asked_once(&mut call).is_none());
            plugin.await;
            connection.closed().await;
            call.await
        };
        call.await.unwrap();
    }
}

/// What a future says when it is asked once.
fn asked_once<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> Option<T> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn what_does_not_decode_ends_the_connection() {
    let (connection, _incoming, mut theirs) = connection();
    let plugin = async {
        piece(&mut theirs).await.unwrap();
        let garbage = framed(mux::PLUGIN, 1, Kind::Response, vec![0xff; 9]);
        theirs.write_all(&garbage).await.unwrap();
    };
    let call = connection.call::<Empty>("Configure", &Empty {}, LIMIT);
    let (answer, ()) = tokio::join!(call, plugin);
    let error = answer.unwrap_err();
    assert!(matches!(error, ConnectionError::Decode(_)), "{error}");
    tokio::time::timeout(LIMIT, connection.closed()).await.unwrap();

    let (connection, mut incoming, mut theirs) = self::connection();
    let garbage = framed(mux::RUNTIME, 1, Kind::Request, vec![0xff; 9]);
    theirs.write_all(&garbage).await.unwrap();
    tokio::time::timeout(LIMIT, connection.closed()).await.unwrap();
    assert!(incoming.recv().await.is_none());
}

#[tokio::test]
async fn who_refuses_stays_and_who_hangs_or_dies_is_disconnected() {
    let bed = bed(0, Duration::from_millis(300)).await;
    let refuses = |method: &str, _: &[u8]| match method {
        "CreateContainer" => Reply::Refuse(2, "not today"),
        _ => answer(&Empty {}),
    };
    bed.join(TestPlugin::new("00", "no", refuses)).await;
    let text = bed.create().await.unwrap_err().to_string();
    assert_eq!(text, "NRI plugin `00-no` refused CreateContainer: not today");
    assert_eq!(bed.nri.plugins.lock().await.len(), 1);
    let turn = bed.nri.turn().await;
    turn.pod(Event::RunPodSandbox, PodSandbox::default())
        .await
        .unwrap();

    let bed = self::bed(0, Duration::from_millis(300)).await;
    bed.join(TestPlugin::new("10", "hangs", |_, _| Reply::Silence))
        .await;
    bed.join(TestPlugin::new("20", "dies", |_, _| Reply::Die)).await;
    bed.join(TestPlugin::new("30", "stays", adds("A"))).await;
    assert_eq!(bed.create().await.unwrap().adjust.env.len(), 1);
    bed.until_left(1).await;
}

#[tokio::test]
async fn a_policy_makes_silence_an_error_and_keeps_who_is_late() {
    let bed = bed(0, Duration::from_millis(200)).await;
    let late = TestPlugin {
        policy: Some(FailurePolicy {
            fail_request: true,
            keep_connected: true,
        }),
        ..TestPlugin::new("00", "late", |_, _| Reply::Silence)
    };
    bed.join(late).await;
    let error = bed.create().await.unwrap_err();
    assert!(matches!(error, NriError::Failed { .. }), "{error}");
    assert_eq!(bed.nri.plugins.lock().await.len(), 1);
}

#[tokio::test]
async fn plugins_of_old_are_told_by_state_changes() {
    let bed = bed(0, LIMIT).await;
    let old = |method: &str, _: &[u8]| match method {
        "StateChange" => answer(&Empty {}),
        _ => Reply::Refuse(12, "unknown method"),
    };
    let plugin = TestPlugin::new("00", "old", old);
    let heard = plugin.heard.clone();
    bed.join(plugin).await;
    for _ in 0..2 {
        let turn = bed.nri.turn().await;
        turn.pod(Event::StopPodSandbox, PodSandbox::default())
            .await
            .unwrap();
    }
    let heard = heard.lock().unwrap().split_off(3);
    assert_eq!(heard, ["StopPodSandbox", "StateChange", "StateChange"]);
}

#[tokio::test]
async fn a_validator_has_the_last_word_even_by_its_silence() {
    let bed = bed(0, Duration::from_millis(300)).await;
    let mut answers = vec![
        Reply::Die,
        answer(&ValidateContainerAdjustmentResponse {
            reject: true,
            reason: "bad env".into(),
        }),
        answer(&ValidateContainerAdjustmentResponse::default()),
    ];
    let validator = TestPlugin {
        events: 1 << 13,
        ..TestPlugin::new("90", "judge", move |_, payload| {
            let request = ValidateContainerAdjustmentRequest::decode(payload).unwrap();
            assert_eq!(request.plugins.len(), 2);
            assert_eq!(
                request.owners.unwrap().owners["new"].compound[&(Field::Env as i32)].owners["A"],
                "00-adds"
            );
            answers.pop().unwrap()
        })
    };
    bed.join(TestPlugin::new("00", "adds", adds("A"))).await;
    bed.join(validator).await;
    bed.create().await.unwrap();
    let text = bed.create().await.unwrap_err().to_string();
    assert!(text.ends_with("bad env"), "{text}");
    let error = bed.create().await.unwrap_err();
    assert!(matches!(error, NriError::Validator { .. }), "{error}");
    bed.until_left(1).await;
}

#[tokio::test]
async fn a_plugin_may_ask_for_updates_at_any_time() {
    let bed = bed(0, LIMIT).await;
    let plugin = TestPlugin {
        asks: true,
        ..TestPlugin::new("00", "asks", agrees)
    };
    let heard = plugin.heard.clone();
    bed.join(plugin).await;
    let answered = async {
        while heard
            .lock()
            .unwrap()
            .iter()
            .filter(|h| h.starts_with("answer"))
            .count()
            < 2
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, answered).await.unwrap();
    let updated = bed.runtime.updated.lock().unwrap();
    assert_eq!(updated.len(), 1);
    assert_eq!(updated[0].0, "00-asks");
    assert_eq!(bed.runtime.evicted.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn who_does_not_register_in_time_or_properly_is_disconnected() {
    let bed = bed(0, Duration::from_millis(200)).await;
    let mut silent = UnixStream::connect(&bed.nri.config.socket).await.unwrap();
    assert!(piece(&mut silent).await.is_none());
    let wrong = TestPlugin::new("7", "bad", agrees);
    let socket = bed.nri.config.socket.clone();
    tokio::time::timeout(LIMIT, wrong.run(socket.clone()))
        .await
        .unwrap();
    let unknown = TestPlugin {
        events: 1 << 20,
        ..TestPlugin::new("07", "odd", agrees)
    };
    tokio::time::timeout(LIMIT, unknown.run(socket)).await.unwrap();
    let mut garbage = UnixStream::connect(&bed.nri.config.socket).await.unwrap();
    garbage.write_all(&[0xff; 64]).await.unwrap();
    assert!(piece(&mut garbage).await.is_none());
    assert!(bed.nri.turn().await.is_empty());
}

#[tokio::test]
async fn everybody_is_told_of_an_end_even_after_one_refuses() {
    let bed = bed(0, LIMIT).await;
    let refused = Arc::new(AtomicBool::new(false));
    let flag = refused.clone();
    let refuses = TestPlugin::new("00", "no", move |method, _| {
        if method == "StopContainer" {
            flag.store(true, Ordering::Relaxed);
            return Reply::Refuse(2, "no");
        }
        answer(&Empty {})
    });
    let told = TestPlugin::new("10", "yes", agrees);
    let heard = told.heard.clone();
    bed.join(refuses).await;
    bed.join(told).await;
    let turn = bed.nri.turn().await;
    let (updates, result) = turn
        .stop_container(PodSandbox::default(), Container::default())
        .await;
    assert!(updates.is_empty() && result.is_err() && refused.load(Ordering::Relaxed));
    assert!(heard.lock().unwrap().contains(&"StopContainer".to_owned()));
}

#[tokio::test]
async fn a_shutdown_is_told_and_ends_connections() {
    let bed = bed(0, LIMIT).await;
    let plugin = TestPlugin::new("00", "any", agrees);
    let heard = plugin.heard.clone();
    bed.join(plugin).await;
    bed.nri.shut_down().await;
    assert!(heard.lock().unwrap().contains(&"Shutdown".to_owned()));
    // What is still under way doesn't go on without them.
    assert!(!bed.nri.is_alone(|| ()));
    assert!(bed.nri.plugins.try_lock().is_err());
}

#[tokio::test]
async fn without_plugins_nothing_waits_for_the_word() {
    let bed = bed(0, LIMIT).await;
    let mut noted = false;
    {
        let _word = bed.nri.turn().await;
        assert!(bed.nri.is_alone(|| noted = true) && noted);
    }
    bed.runtime.nri.set(Arc::downgrade(&bed.nri)).unwrap();
    bed.join(TestPlugin::new("00", "any", agrees)).await;
    assert!(!bed.nri.is_alone(|| panic!("a plugin is there")));
    bed.nri.plugins.lock().await[0].connection.close();
    let gone = async {
        while !bed.nri.is_alone(|| ()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone)
        .await
        .expect("the plugin is gone");
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_a_stale_socket_replaced() {
    let bed = bed(0, LIMIT).await;
    let second = Nri::new(config(bed.dir.path(), LIMIT), Arc::new(TestRuntime::default()));
    assert!(matches!(second.start().await, Err(StartError::InUse(_))));
    let stale = tempfile::tempdir().unwrap();
    std::fs::create_dir(stale.path().join("nri")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(stale.path().join("nri/nri.sock")).unwrap());
    let third = Nri::new(config(stale.path(), LIMIT), Arc::new(TestRuntime::default()));
    third.start().await.unwrap();
}
