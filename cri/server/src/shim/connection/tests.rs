//! Connections to a shim that is played by the test.

use cri_shim_protocol::{ContainerState, Exec, ShimState, VERSION};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;

/// A shim that is played by the test.
struct Played {
    listener: UnixListener,
    connection: Arc<Connection>,
    _events: mpsc::Receiver<(PodSandboxId, ShimEvent)>,
    _folder: tempfile::TempDir,
}

/// Its side of one connection.
struct Side {
    stream: UnixStream,
    reader: FrameReader,
}

impl Played {
    async fn new() -> (Self, Side) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("shim.sock")).unwrap();
        let pod = Folder::open(folder.path().to_owned()).unwrap();
        let stream = UnixStream::connect(pod.socket()).await.unwrap();
        let (sender, events) = mpsc::channel(8);
        let id = PodSandboxId::from_bytes([1; 32]);
        let connection = Connection::serve(id, pod, stream, None, sender);
        let played = Self {
            listener,
            connection,
            _events: events,
            _folder: folder,
        };
        let side = played.accept().await;
        (played, side)
    }

    async fn accept(&self) -> Side {
        let (stream, _) = self.listener.accept().await.unwrap();
        let reader = FrameReader::new();
        Side { stream, reader }
    }

    /// Starts an exec; its answer, and its end.
    fn exec(
        &self,
        name: &str,
    ) -> (
        tokio::task::JoinHandle<Result<(), ShimCallError>>,
        oneshot::Receiver<Exit>,
    ) {
        let exit = self.connection.expect_exec("c1", name);
        let request = Request::Exec(Exec {
            container: "c1".into(),
            exec: name.into(),
            process: String::new(),
            stdin: false,
            stdout: false,
            stderr: false,
            size: None,
        });
        let connection = self.connection.clone();
        let patience = Duration::from_secs(60);
        let asked = async move { connection.call("exec", request, Vec::new(), None, patience).await };
        (tokio::spawn(async move { asked.await.map(drop) }), exit)
    }
}

impl Side {
    async fn call(&mut self) -> Call {
        loop {
            if let Some(call) = self.reader.next_frame().unwrap() {
                return call;
            }
            let mut bytes = [0; 4096];
            let n = self.stream.read(&mut bytes).await.unwrap();
            assert_ne!(n, 0, "the daemon hung up");
            self.reader.push(&bytes[..n]);
        }
    }

    async fn answer(&mut self, id: u64, reply: Reply) {
        let result = Ok(reply);
        let bytes = encode(&Frame::Answer { id, result }).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn start_exec(&mut self) {
        let call = self.call().await;
        assert!(matches!(call.request, Request::Exec(_)));
        let started = Reply::ExecStarted {
            pid: 5,
            console: false,
        };
        self.answer(call.id, started).await;
    }

    async fn subscribed(&mut self, execs: &[&str]) {
        let call = self.call().await;
        assert_eq!(call.request, Request::Subscribe);
        let state = ShimState {
            version: VERSION,
            pid: 1,
            init_pid: None,
            containers: vec![ContainerState {
                container: "c1".into(),
                status: Status::Running {
                    pid: 2,
                    started_at: 3,
                },
                execs: execs.iter().map(|e| (*e).to_owned()).collect(),
            }],
        };
        self.answer(call.id, Reply::State(state)).await;
    }
}

#[tokio::test]
async fn an_exec_that_ended_while_the_connection_was_broken_is_not_waited_for() {
    let (played, mut side) = Played::new().await;
    let (answer, ended) = played.exec("e1");
    side.start_exec().await;
    answer.await.unwrap().unwrap();
    let (answer, mut runs) = played.exec("e2");
    side.start_exec().await;
    answer.await.unwrap().unwrap();
    let (unanswered, _) = played.exec("e3");
    side.call().await;
    drop(side);
    let mut side = played.accept().await;
    side.subscribed(&["e2"]).await;
    ended.await.expect_err("how it ended is not known");
    let lost = unanswered.await.unwrap().unwrap_err();
    assert!(matches!(lost, ShimCallError::Disconnected { .. }), "{lost}");
    // The new connection works, and the exec that still runs is waited for.
    let (answer, _later) = played.exec("e4");
    side.start_exec().await;
    answer.await.unwrap().unwrap();
    assert!(
        runs.try_recv()
            .is_err_and(|e| e == oneshot::error::TryRecvError::Empty)
    );
    let exit = Exit {
        code: 3,
        oom_killed: false,
        at: 4,
    };
    let event = Event::ExecExited {
        container: "c1".into(),
        exec: "e2".into(),
        exit,
    };
    let bytes = encode(&Frame::Event(event)).unwrap();
    side.stream.write_all(&bytes).await.unwrap();
    assert_eq!(runs.await.unwrap(), exit);
}

#[tokio::test]
async fn a_handle_that_is_dropped_hangs_up() {
    let (played, mut side) = Played::new().await;
    drop(played.connection);
    let mut bytes = [0; 16];
    let read = tokio::time::timeout(Duration::from_secs(10), side.stream.read(&mut bytes));
    assert_eq!(read.await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_call_during_a_reconnect_waits_for_the_new_connection() {
    let (played, side) = Played::new().await;
    drop(side);
    while played.connection.outgoing.borrow().is_some() {
        tokio::task::yield_now().await;
    }
    let (answer, _exit) = played.exec("e1");
    let mut side = played.accept().await;
    let calls = [side.call().await, side.call().await];
    for call in calls {
        if matches!(call.request, Request::Exec(_)) {
            let started = Reply::ExecStarted {
                pid: 5,
                console: false,
            };
            side.answer(call.id, started).await;
        }
    }
    answer.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_turn_is_held_until_the_answer_even_without_a_caller() {
    let (played, mut side) = Played::new().await;
    let turns = Arc::new(tokio::sync::Semaphore::new(1));
    let turn = turns.clone().acquire_owned().await.unwrap();
    let request = Request::Start {
        container: "c1".into(),
    };
    let call = played
        .connection
        .call("start", request, Vec::new(), Some(turn), Duration::from_secs(60));
    let asked = tokio::select! {
        biased;
        _ = call => panic!("nobody has answered"),
        asked = side.call() => asked,
    };
    assert_eq!(turns.available_permits(), 0, "the shim still works on it");
    side.answer(asked.id, Reply::Done).await;
    let _turn = tokio::time::timeout(Duration::from_secs(10), turns.acquire())
        .await
        .unwrap();
}

#[tokio::test]
async fn only_a_refusal_is_a_death() {
    let (mut played, side) = Played::new().await;
    drop(side);
    drop(played.accept().await);
    assert!(!played.connection.is_dead());
    let side = played.accept().await;
    played.listener = {
        let other = tempfile::tempdir().unwrap();
        UnixListener::bind(other.path().join("x.sock")).unwrap()
    };
    drop(side);
    tokio::time::timeout(Duration::from_secs(10), played.connection.died())
        .await
        .unwrap();
}
