//! Lives of sandboxes and containers over scripted shims and a scripted network: what fails is undone, what a restart
//! finds is put right. Namespaces and mounts that need a kernel of their own are left to the end-to-end tests: the
//! pods here use the node's IPC namespace and name a cgroup parent.

mod plugins;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cri_api::PodSandboxId;
use cri_api::v1::{self, ContainerEventType, NamespaceMode};
use cri_images::{Images, ImagesConfig};
use cri_shim_protocol::{Create, ErrorKind, Exit, Runtime};
use tokio::sync::mpsc;

use crate::apparmor::AppArmor;
use crate::clock::Clock;
use crate::config::Config;
use crate::errors::CallError;
use crate::lifecycle::KillPoint;
use crate::network::{PodAttachment, PodNetwork, PodNetworkError, Valid};
use crate::node::{Node, Parts};
use crate::shim::fake::FakeShims;
use crate::spec::HostFacts;
use crate::store::{Cause, Container, ContainerPhase, Sandbox, SandboxPhase, Store, testing};

#[derive(Default)]
struct TestClock {
    time: AtomicI64,
    drawn: AtomicU64,
}

impl Clock for TestClock {
    fn now(&self) -> i64 {
        self.time.fetch_add(1, Ordering::Relaxed) + 1000
    }

    fn draw(&self) -> std::io::Result<[u8; 32]> {
        let n = self.drawn.fetch_add(1, Ordering::Relaxed) + 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        Ok(bytes)
    }
}

#[derive(Default)]
struct TestNetwork {
    attached: Mutex<Vec<PodSandboxId>>,
    fails: AtomicBool,
    detach_fails: AtomicBool,
}

fn refused() -> PodNetworkError {
    PodNetworkError::NoAddress
}

#[async_trait]
impl PodNetwork for TestNetwork {
    async fn attach(&self, pod: PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(refused());
        }
        self.attached.lock().unwrap().push(pod.sandbox);
        Ok(vec!["10.0.0.9".parse().unwrap()])
    }

    async fn detach(&self, sandbox: &PodSandboxId, _netns: PathBuf) -> Result<(), PodNetworkError> {
        if self.detach_fails.load(Ordering::Relaxed) {
            return Err(refused());
        }
        self.attached.lock().unwrap().retain(|s| s != sandbox);
        Ok(())
    }

    async fn status(&self) -> Result<(), PodNetworkError> {
        Ok(())
    }

    async fn reclaim(&self, valid: Valid) -> Result<(), PodNetworkError> {
        let valid = valid();
        self.attached.lock().unwrap().retain(|s| valid.contains(s));
        Ok(())
    }
}

/// A node, and what outlives it.
struct World {
    dir: tempfile::TempDir,
    shims: Arc<FakeShims>,
    network: Arc<TestNetwork>,
    clock: Arc<TestClock>,
    node: Arc<Node>,
}

async fn boot(
    dir: &Path,
    shims: &Arc<FakeShims>,
    network: &Arc<TestNetwork>,
    clock: &Arc<TestClock>,
    heard: mpsc::Receiver<(PodSandboxId, crate::shim::ShimEvent)>,
) -> Arc<Node> {
    let config = Config {
        root: dir.join("root"),
        state: dir.join("state"),
        ..Config::default()
    };
    for name in ["pods", "bundles", "oci"] {
        std::fs::create_dir_all(config.state.join(name)).unwrap();
    }
    let (store, torn) = Store::open(&config.root).unwrap();
    let images = Images::open(ImagesConfig::new(config.root.join("images")))
        .await
        .unwrap();
    let node = Node::new(Parts {
        config,
        store,
        images: Arc::new(images),
        runtime: Arc::new(shims.clone()),
        network: network.clone(),
        clock: clock.clone(),
        host: HostFacts::default(),
        apparmor: AppArmor::of_this_machine(),
        boot_id: "boot".into(),
        kill: KillPoint::NONE,
    });
    tokio::spawn(node.clone().hear(heard));
    node.recover(torn).await;
    node
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (events, heard) = mpsc::channel(64);
        let shims = FakeShims::new(events);
        let (network, clock) = (Arc::default(), Arc::default());
        let node = boot(dir.path(), &shims, &network, &clock, heard).await;
        Self {
            dir,
            shims,
            network,
            clock,
            node,
        }
    }

    /// The daemon is killed and comes back. What it had in memory is gone.
    async fn restart(self) -> Self {
        let Self {
            dir,
            shims,
            network,
            clock,
            node,
        } = self;
        shims.unsubscribe();
        drop(node);
        // The image store is locked until the old node's last task is gone.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (events, heard) = mpsc::channel(64);
        shims.subscribe(events);
        let node = boot(dir.path(), &shims, &network, &clock, heard).await;
        Self {
            dir,
            shims,
            network,
            clock,
            node,
        }
    }

    async fn pod(&self) -> Arc<Sandbox> {
        self.node
            .clone()
            .run_sandbox(pod_config(), String::new())
            .await
            .unwrap()
    }

    /// A container as CreateContainer leaves it.
    async fn container(&self, n: u8, sandbox: &Sandbox) -> Arc<Container> {
        let mut record = testing::container(n, 0);
        record.sandbox = sandbox.id.clone();
        record.cgroup = format!("/orlop-test-no-such/{n}");
        let container = self.node.store.create_container(record).unwrap();
        container.entry.settle(super::Operation::Create).unwrap();
        let request = Create {
            container: container.id.to_string(),
            bundle: self.node.paths.bundle(container.id.as_str()),
            runtime_root: self.node.paths.oci(),
            runtime: Runtime::Builtin {
                systemd_cgroup: false,
            },
            terminal: false,
            stdin: false,
            stdin_once: false,
            log_path: None,
            max_log_line: 16384,
            kill_all_at_exit: false,
        };
        sandbox.shim().unwrap().create(request).await.unwrap();
        container
    }

    async fn running(&self, n: u8, sandbox: &Sandbox) -> Arc<Container> {
        let container = self.container(n, sandbox).await;
        self.node.start_container(&container).await.unwrap();
        container
    }

    /// Nothing is left of anything, but images.
    fn assert_clean(&self) {
        let list = |path: PathBuf| crate::store::record::folders(&path).unwrap();
        assert!(self.node.store.sandboxes().is_empty());
        assert!(self.node.store.containers().is_empty());
        assert_eq!(list(self.dir.path().join("root/sandboxes")), [""; 0]);
        assert_eq!(list(self.dir.path().join("root/containers")), [""; 0]);
        assert_eq!(list(self.node.paths.pods()), [""; 0]);
        assert_eq!(list(self.node.paths.bundles()), [""; 0]);
        assert!(self.shims.left().is_empty());
        assert!(self.network.attached.lock().unwrap().is_empty());
    }
}

fn pod_config() -> v1::PodSandboxConfig {
    let mut config = (*testing::sandbox(1).config).clone();
    config.linux = Some(v1::LinuxPodSandboxConfig {
        cgroup_parent: "/orlop-test-no-such".into(),
        security_context: Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(v1::NamespaceOption {
                ipc: NamespaceMode::Node as i32,
                pid: NamespaceMode::Container as i32,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    });
    config
}

async fn eventually(what: impl Fn() -> bool) {
    for _ in 0..1000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to be");
}

fn exit(code: i32) -> Exit {
    Exit {
        code,
        oom_killed: false,
        at: 77,
    }
}

fn ended(container: &Container) -> crate::store::Ended {
    match &container.record().phase {
        ContainerPhase::Exited(ended) => ended.clone(),
        other => panic!("not exited: {other:?}"),
    }
}

#[tokio::test]
async fn a_pod_lives_and_leaves_nothing() {
    let world = World::new().await;
    let mut events = world.node.events.subscribe();
    let pod = world.pod().await;
    assert_eq!(pod.record().phase, SandboxPhase::Ready);
    assert_eq!(pod.record().ips.len(), 1);
    let hosts = std::fs::read_to_string(world.node.paths.hosts(pod.id.as_str())).unwrap();
    assert!(hosts.contains("10.0.0.9"), "{hosts}");
    let container = world.running(9, &pod).await;
    world.node.stop_container(&container, 10).await.unwrap();
    assert_eq!(ended(&container).code, 128 + 15, "the stop signal was enough");
    world.node.remove_container(&container).await.unwrap();
    world.node.stop_sandbox(&pod).await.unwrap();
    world.node.stop_sandbox(&pod).await.unwrap();
    assert!(world.network.attached.lock().unwrap().is_empty());
    world.node.remove_sandbox(&pod).await.unwrap();
    world.node.remove_sandbox(&pod).await.unwrap();
    world.assert_clean();
    use ContainerEventType as E;
    for expected in [
        E::ContainerCreatedEvent,
        E::ContainerStartedEvent,
        E::ContainerStartedEvent,
        E::ContainerStoppedEvent,
        E::ContainerDeletedEvent,
        E::ContainerStoppedEvent,
        E::ContainerDeletedEvent,
    ] {
        let event = events.try_recv().unwrap();
        assert_eq!(event.container_event_type(), expected);
        assert!(event.pod_sandbox_status.is_some());
    }
}

#[tokio::test]
async fn the_name_is_unique_and_free_again_after_any_failure() {
    let world = World::new().await;
    let first = world.pod().await;
    let again = world.node.clone().run_sandbox(pod_config(), String::new()).await;
    assert_eq!(again.err().unwrap().code(), tonic::Code::AlreadyExists);
    world.node.remove_sandbox(&first).await.unwrap();
    world.network.fails.store(true, Ordering::Relaxed);
    let failed = world.node.clone().run_sandbox(pod_config(), String::new()).await;
    assert_eq!(failed.err().unwrap().code(), tonic::Code::Unavailable);
    world.assert_clean();
    world.network.fails.store(false, Ordering::Relaxed);
    world.pod().await;
}

#[tokio::test]
async fn an_undo_that_fails_frees_the_name_and_is_tried_again_after_a_restart() {
    let world = World::new().await;
    world.network.fails.store(true, Ordering::Relaxed);
    world.network.detach_fails.store(true, Ordering::Relaxed);
    let failed = world.node.clone().run_sandbox(pod_config(), String::new()).await;
    assert!(failed.is_err());
    assert_eq!(
        world.node.store.sandboxes().len(),
        1,
        "something is left to clean up"
    );
    world.network.fails.store(false, Ordering::Relaxed);
    let pod = world.pod().await;
    world.network.detach_fails.store(false, Ordering::Relaxed);
    // In place of a restart, whose store the retrying task still holds: the next try.
    for left in world.node.store.sandboxes() {
        if left.id != pod.id {
            world.node.take_down(&left).await.unwrap();
        }
    }
    world.node.remove_sandbox(&pod).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn bad_configurations_leave_nothing() {
    let world = World::new().await;
    let mut config = pod_config();
    config.metadata = None;
    let refused = world.node.clone().run_sandbox(config, String::new()).await;
    assert_eq!(refused.err().unwrap().code(), tonic::Code::InvalidArgument);
    let unknown = world.node.clone().run_sandbox(pod_config(), "kata".into()).await;
    let error = unknown.err().unwrap();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.to_string().contains("kata"), "{error}");
    world.assert_clean();
}

#[tokio::test]
async fn a_container_that_ignores_its_stop_signal_is_killed_and_many_may_wait() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.running(9, &pod).await;
    world.shims.shim(&pod.id).unwrap().ignore_signals();
    let (one, two) = tokio::join!(
        world.node.stop_container(&container, 1),
        world.node.stop_container(&container, 0)
    );
    one.unwrap();
    two.unwrap();
    assert_eq!(ended(&container).code, 137);
    world.node.stop_container(&container, 5).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_is_an_end_with_a_reason() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.container(9, &pod).await;
    let shim = world.shims.shim(&pod.id).unwrap();
    shim.fail_next("start", ErrorKind::CommandNotFound, "no such file: /nope");
    let error = world.node.start_container(&container).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    let ended = ended(&container);
    assert_eq!(ended.code, 128);
    assert!(matches!(ended.cause, Cause::StartError(text) if text.contains("/nope")));
    let again = world.node.start_container(&container).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test]
async fn when_a_shim_dies_its_containers_are_lost_but_what_it_wrote_down_counts() {
    let world = World::new().await;
    let pod = world.pod().await;
    let ended_before = world.running(8, &pod).await;
    let running = world.running(9, &pod).await;
    world.shims.exit(&pod.id, ended_before.id.as_str(), exit(3)).await;
    world.shims.die(&pod.id).await;
    tokio::time::timeout(Duration::from_secs(5), running.exited())
        .await
        .unwrap();
    assert_eq!(ended(&ended_before).code, 3);
    let lost = ended(&running);
    assert_eq!(lost.code, 137);
    assert_eq!(lost.cause, Cause::Lost("shim died".into()));
    eventually(|| pod.record().phase == SandboxPhase::Lost).await;
    world.node.remove_sandbox(&pod).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn a_shim_that_cannot_be_reached_at_a_restart_is_not_taken_for_dead() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.running(9, &pod).await.id.to_string();
    let id = pod.id.clone();
    drop(pod);
    let shim = world.shims.shim(&id).unwrap();
    shim.hang(true);
    let world = world.restart().await;
    let container = world.node.store.find_container(&container).unwrap();
    let pod = world.node.store.find_sandbox(id.as_str()).unwrap();
    assert_eq!(pod.record().phase, SandboxPhase::Ready);
    assert!(matches!(container.record().phase, ContainerPhase::Running { .. }));
    let refused = world.node.stop_container(&container, 0).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(matches!(container.record().phase, ContainerPhase::Running { .. }));
    shim.hang(false);
    eventually(|| pod.shim().is_some()).await;
    assert!(world.shims.killed().is_empty());
    world.node.stop_container(&container, 5).await.unwrap();
    assert_eq!(ended(&container).code, 128 + 15);
    world.node.remove_sandbox(&pod).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn a_shim_that_died_while_it_could_not_be_reached_is_buried() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.running(9, &pod).await.id.to_string();
    let id = pod.id.clone();
    drop(pod);
    world.shims.shim(&id).unwrap().hang(true);
    let world = world.restart().await;
    world.shims.unsubscribe();
    world.shims.die(&id).await;
    let container = world.node.store.find_container(&container).unwrap();
    tokio::time::timeout(Duration::from_secs(5), container.exited())
        .await
        .unwrap();
    assert_eq!(ended(&container).cause, Cause::Lost("shim died".into()));
    let pod = world.node.store.find_sandbox(id.as_str()).unwrap();
    eventually(|| pod.record().phase == SandboxPhase::Lost).await;
    world.node.remove_sandbox(&pod).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn a_shim_that_hangs_does_not_keep_its_pod_from_being_stopped() {
    for reached in [true, false] {
        let mut world = World::new().await;
        let pod = world.pod().await;
        let container = world.running(9, &pod).await.id.to_string();
        let id = pod.id.clone();
        drop(pod);
        world.shims.shim(&id).unwrap().hang(true);
        if !reached {
            world = world.restart().await;
        }
        let pod = world.node.store.find_sandbox(id.as_str()).unwrap();
        world.node.stop_sandbox(&pod).await.unwrap();
        assert_eq!(world.shims.killed(), std::slice::from_ref(&id));
        let container = world.node.store.find_container(&container).unwrap();
        assert_eq!(ended(&container).code, 137);
        assert_eq!(pod.record().phase, SandboxPhase::Stopped);
        world.node.remove_sandbox(&pod).await.unwrap();
        world.assert_clean();
    }
}

#[tokio::test]
async fn an_end_that_comes_before_the_creation_is_recorded_is_kept() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.container(9, &pod).await;
    container.entry.note(|r| r.phase = ContainerPhase::Creating);
    let creating = container.starting.clone();
    let creating = creating.lock().await;
    world.shims.exit(&pod.id, container.id.as_str(), exit(5)).await;
    // The end is heard, and waits.
    eventually(|| Arc::strong_count(&container.starting) > 2).await;
    container
        .entry
        .note(|r| r.phase = ContainerPhase::Created { pid: 1 });
    drop(creating);
    tokio::time::timeout(Duration::from_secs(5), container.exited())
        .await
        .unwrap();
    assert_eq!(ended(&container).code, 5);
}

#[tokio::test]
async fn an_end_that_nobody_heard_of_is_asked_for() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.running(9, &pod).await;
    let shim = world.shims.shim(&pod.id).unwrap();
    shim.mute(true);
    world.shims.exit(&pod.id, container.id.as_str(), exit(6)).await;
    let stopped = world.node.stop_container(&container, 0);
    tokio::time::timeout(Duration::from_secs(5), stopped)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended(&container).code, 6);
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_is_a_start() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.container(9, &pod).await;
    let shim = world.shims.shim(&pod.id).unwrap();
    shim.lose_start();
    world.node.start_container(&container).await.unwrap();
    assert!(matches!(container.record().phase, ContainerPhase::Running { .. }));
    assert!(container.entry.step().is_none());
}

#[tokio::test]
async fn a_start_whose_outcome_is_not_known_is_not_an_end() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.container(9, &pod).await;
    let shim = world.shims.shim(&pod.id).unwrap();
    shim.hang(true);
    let error = world.node.start_container(&container).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
    assert!(matches!(container.record().phase, ContainerPhase::Created { .. }));
    shim.hang(false);
    world.node.start_container(&container).await.unwrap();
    assert!(matches!(container.record().phase, ContainerPhase::Running { .. }));
}

#[tokio::test]
async fn a_pod_that_cannot_be_stopped_wholly_is_not_ready_and_has_no_shim() {
    let world = World::new().await;
    let pod = world.pod().await;
    let container = world.running(9, &pod).await;
    world.network.detach_fails.store(true, Ordering::Relaxed);
    let error = world.node.stop_sandbox(&pod).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert_eq!(pod.record().phase, SandboxPhase::Lost);
    assert!(matches!(container.record().phase, ContainerPhase::Exited(_)));
    assert!(world.shims.shim(&pod.id).is_none());
    world.network.detach_fails.store(false, Ordering::Relaxed);
    world.node.stop_sandbox(&pod).await.unwrap();
    assert_eq!(pod.record().phase, SandboxPhase::Stopped);
    world.node.remove_sandbox(&pod).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn what_is_made_while_the_sweep_runs_is_left_alone() {
    let world = World::new().await;
    let pod = world.pod().await;
    let node = world.node.clone();
    let sweeping = tokio::spawn(async move {
        for _ in 0..200 {
            node.sweep().await.unwrap();
        }
    });
    for n in 1..=100 {
        let container = world.container(n, &pod).await;
        let bundle = world.node.paths.bundle(container.id.as_str());
        std::fs::create_dir_all(&bundle).unwrap();
        tokio::task::yield_now().await;
        assert!(bundle.exists());
    }
    sweeping.await.unwrap();
    let bundles = crate::store::record::folders(&world.node.paths.bundles()).unwrap();
    assert_eq!(bundles.len(), 100);
    assert!(world.shims.shim(&pod.id).is_some());
}

#[tokio::test]
async fn a_restart_finds_running_containers_and_learns_of_ends() {
    let world = World::new().await;
    let pod = world.pod().await;
    let (id, stays) = (pod.id.clone(), world.running(8, &pod).await.id.to_string());
    let ends = world.running(9, &pod).await.id.to_string();
    drop(pod);
    world.shims.unsubscribe();
    world.shims.exit(&id, &ends, exit(42)).await;
    let world = world.restart().await;
    let stays = world.node.store.find_container(&stays).unwrap();
    assert!(matches!(stays.record().phase, ContainerPhase::Running { .. }));
    let ends = world.node.store.find_container(&ends).unwrap();
    assert_eq!(ended(&ends).code, 42);
    let pod = world.node.store.find_sandbox(id.as_str()).unwrap();
    world.node.stop_container(&stays, 5).await.unwrap();
    world.node.remove_sandbox(&pod).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn a_restart_undoes_what_was_half_made_and_finishes_what_was_half_removed() {
    let world = World::new().await;
    let pod = world.pod().await;
    let half_made = world.container(8, &pod).await;
    half_made.entry.begin(super::Step::ContainerInit).unwrap();
    let half_removed = world.running(9, &pod).await;
    half_removed.entry.begin(super::Step::ContainerRemove).unwrap();
    let id = pod.id.clone();
    drop((pod, half_made, half_removed));
    let world = world.restart().await;
    assert!(world.node.store.containers().is_empty());
    let pod = world.node.store.find_sandbox(id.as_str()).unwrap();
    assert_eq!(pod.record().phase, SandboxPhase::Ready);
    pod.entry.begin(super::Step::SandboxReady).unwrap();
    drop(pod);
    // Nobody was told its ID.
    let world = world.restart().await;
    world.assert_clean();
}

#[tokio::test]
async fn a_restart_finishes_a_stop_and_sweeps_strangers() {
    let world = World::new().await;
    let pod = world.pod().await;
    pod.entry.begin(super::Step::SandboxReleaseNetwork).unwrap();
    let id = pod.id.clone();
    drop(pod);
    let stranger = PodSandboxId::from_bytes([0xee; 32]);
    crate::shim::OciRuntime::start_shim(&world.shims, &stranger)
        .await
        .unwrap();
    world.network.attached.lock().unwrap().push(stranger.clone());
    std::fs::create_dir_all(world.node.paths.namespaces(stranger.as_str())).unwrap();
    std::fs::create_dir_all(world.node.paths.rootfs("stranger")).unwrap();
    let world = world.restart().await;
    let pod = world.node.store.find_sandbox(id.as_str()).unwrap();
    assert_eq!(pod.record().phase, SandboxPhase::Stopped);
    assert!(world.shims.shim(&stranger).is_none());
    world.node.remove_sandbox(&pod).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn a_sandbox_that_is_not_ready_takes_no_containers() {
    let world = World::new().await;
    let pod = world.pod().await;
    world.node.stop_sandbox(&pod).await.unwrap();
    let config = v1::ContainerConfig::default();
    let refused = world
        .node
        .clone()
        .create_container(pod.id.to_string(), config)
        .await;
    assert_eq!(refused.err().unwrap().code(), tonic::Code::FailedPrecondition);
    let absent = world
        .node
        .clone()
        .create_container("ff".into(), v1::ContainerConfig::default())
        .await;
    assert!(matches!(absent.err().unwrap(), CallError::Store(_)));
}
