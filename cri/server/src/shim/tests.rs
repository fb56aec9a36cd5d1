//! Real shims from the daemon's side, and the fake ones.

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri_api::PodSandboxId;
use cri_shim_protocol::attach::Stream;
use cri_shim_protocol::{Create, ErrorKind, Event, Exec, Exit, Runtime, Status};
use oci_runtime_cgroups::{Cgroup, CgroupDriver};
use serde_json::json;
use tokio::sync::mpsc;

use super::fake::{ExecScript, FakeShims};
use super::image::ImageKind;
use super::{AttachTo, OciRuntime, Shim, ShimCallError, ShimEvent, ShimImage, Shims, ShimsConfig};

const PATIENCE: Duration = Duration::from_secs(60);

type Events = mpsc::Receiver<(PodSandboxId, ShimEvent)>;

/// A folder, a cgroup, and what is needed to start shims in them; removed at the end.
struct Place {
    folder: PathBuf,
    cgroup: String,
    sandbox: PodSandboxId,
}

fn sandbox(n: u8) -> PodSandboxId {
    PodSandboxId::from_bytes([n; 32])
}

fn shim_binary() -> PathBuf {
    let folder = std::env::var_os("ORLOP_BIN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/orlop"),
        PathBuf::from,
    );
    let path = folder.join("orlop-shim");
    assert!(
        path.exists(),
        "`{}` is missing: run hack/build orlop-shim",
        path.display()
    );
    path
}

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("orlop-test-{}-server-{name}", std::process::id());
        // Deep enough that the socket's path is too long for a socket address.
        let folder = Path::new("/tmp").join(&name).join("d".repeat(80));
        fs::create_dir_all(folder.join("rootfs/bin")).unwrap();
        for sub in ["proc", "dev", "tmp"] {
            fs::create_dir_all(folder.join("rootfs").join(sub)).unwrap();
        }
        fs::copy("/bin/busybox", folder.join("rootfs/bin/busybox"))
            .expect("/bin/busybox is missing: apt-get install busybox-static");
        for applet in ["sh", "sleep", "echo"] {
            std::os::unix::fs::symlink("busybox", folder.join("rootfs/bin").join(applet)).unwrap();
        }
        Self {
            folder,
            cgroup: format!("/{name}"),
            sandbox: sandbox(7),
        }
    }

    fn shims(&self) -> (Shims, Events) {
        let (sender, events) = mpsc::channel(100);
        let config = ShimsConfig {
            shim: shim_binary(),
            state_dir: self.folder.join("pods"),
            cgroup: Some(format!("{}/shims", self.cgroup)),
        };
        (Shims::new(config, sender), events)
    }

    fn runtime_root(&self) -> PathBuf {
        self.folder.join("oci")
    }

    fn create(&self, container: &str, script: &str) -> Create {
        let bundle = self.folder.join(container);
        fs::create_dir_all(&bundle).unwrap();
        let namespaces: Vec<_> = ["pid", "mount", "ipc", "uts", "network"]
            .iter()
            .map(|kind| json!({ "type": kind }))
            .collect();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": { "uid": 0, "gid": 0 }, "cwd": "/",
                "args": ["sh", "-c", script], "env": ["PATH=/bin"],
            },
            "root": { "path": self.folder.join("rootfs"), "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            ],
            "linux": {
                "cgroupsPath": format!("{}/{container}", self.cgroup),
                "namespaces": namespaces,
            },
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        Create {
            container: container.to_owned(),
            bundle,
            runtime_root: self.runtime_root(),
            runtime: Runtime::Builtin {
                systemd_cgroup: false,
            },
            terminal: false,
            stdin: true,
            stdin_once: true,
            log_path: None,
            max_log_line: 16384,
            kill_all_at_exit: false,
        }
    }

    async fn run(&self, shim: &Arc<dyn Shim>, container: &str, script: &str) {
        shim.create(self.create(container, script)).await.unwrap();
        shim.start(container).await.unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let cgroup = Cgroup::new(&self.cgroup, CgroupDriver::Cgroupfs).unwrap();
        let _ = cgroup.kill_all();
        let removed = cgroup.remove();
        let _ = fs::remove_dir_all(self.folder.parent().unwrap());
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

fn exec(container: &str, script: &str) -> Exec {
    let process = json!({
        "terminal": false, "user": { "uid": 0, "gid": 0 }, "cwd": "/",
        "args": ["sh", "-c", script], "env": ["PATH=/bin"],
    });
    Exec {
        container: container.to_owned(),
        exec: "e1".to_owned(),
        process: process.to_string(),
        stdin: false,
        stdout: true,
        stderr: false,
        size: None,
    }
}

async fn next(events: &mut Events) -> ShimEvent {
    tokio::time::timeout(PATIENCE, events.recv())
        .await
        .unwrap()
        .unwrap()
        .1
}

fn exited(event: ShimEvent) -> (String, Exit) {
    match event {
        ShimEvent::Event(Event::ContainerExited { container, exit }) => (container, exit),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pod_runs_and_everything_is_removed() {
    let place = Place::new("runs");
    let (shims, mut events) = place.shims();
    let shim = shims.start_shim(&place.sandbox).await.unwrap();
    let again = shims.start_shim(&place.sandbox).await.err().unwrap();
    assert!(matches!(again, ShimCallError::AlreadyRunning(_)), "{again}");
    place.run(&shim, "c1", "read x; echo $x; exit 4").await;
    let to = AttachTo {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let (mut reader, mut writer) = shim.attach("c1", to).await.unwrap().split();

    let (mut ours, theirs) = std::io::pipe().unwrap();
    let handle = shim
        .exec(exec("c1", "echo exec; exit 3"), vec![OwnedFd::from(theirs)])
        .await
        .unwrap();
    assert_eq!(handle.exit.await.unwrap().code, 3);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(text, "exec\n");

    writer.write_stdin(b"hello\n").await.unwrap();
    let chunk = reader.next().await.unwrap().unwrap();
    assert_eq!((chunk.0, &chunk.1[..]), (Stream::Stdout, &b"hello\n"[..]));
    assert!(reader.next().await.unwrap().is_none());
    let (container, exit) = exited(next(&mut events).await);
    assert_eq!((container.as_str(), exit.code), ("c1", 4));
    let recorded = shims.recorded_exits(&place.sandbox).await.unwrap();
    assert!(matches!(recorded[0].status, Status::Exited { exit, .. } if exit.code == 4));

    let unknown = shim.start("c9").await.unwrap_err();
    assert_eq!(unknown.kind(), Some(ErrorKind::NotFound));
    shim.delete("c1", false).await.unwrap();
    shim.shutdown(false).await.unwrap();
    assert!(matches!(shim.state().await, Err(ShimCallError::Died)));
    shim.shutdown(true).await.unwrap();
    assert!(shims.find_shim(&place.sandbox).await.unwrap().is_none());
    shims.remove_traces(&place.sandbox).await.unwrap();
    shims.remove_traces(&place.sandbox).await.unwrap();
    let left = fs::read_dir(place.folder.join("pods").join(place.sandbox.as_str())).unwrap();
    assert_eq!(left.count(), 0);
    // An expected end is no event.
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn a_restarted_daemon_finds_the_shim_and_hears_what_it_missed() {
    let place = Place::new("restart");
    let (shims, _) = place.shims();
    let pid = {
        let shim = shims.start_shim(&place.sandbox).await.unwrap();
        place.run(&shim, "c1", "exit 6").await;
        place.run(&shim, "c2", "sleep 1000").await;
        shim.pid()
    };
    let (shims, mut events) = place.shims();
    let shim = shims.find_shim(&place.sandbox).await.unwrap().unwrap();
    assert_eq!(shim.pid(), pid);
    let (container, exit) = exited(next(&mut events).await);
    assert_eq!((container.as_str(), exit.code), ("c1", 6));
    let state = shim.state().await.unwrap();
    assert_eq!(state.containers.len(), 2);
    let busy = shim.shutdown(false).await.unwrap_err();
    assert_eq!(busy.kind(), Some(ErrorKind::Busy));
    // A refused shutdown leaves the shim's death a surprise.
    oci_runtime_sys::stage::kill(pid, 9).unwrap();
    loop {
        match next(&mut events).await {
            ShimEvent::Died => break,
            // Told again, as after any new connection.
            event => assert_eq!(exited(event).0, "c1"),
        }
    }
}

#[tokio::test]
async fn a_killed_shim_fails_calls_and_is_told_and_its_containers_can_be_destroyed() {
    let place = Place::new("killed");
    let (shims, mut events) = place.shims();
    let shim = shims.start_shim(&place.sandbox).await.unwrap();
    place.run(&shim, "c1", "sleep 1000").await;
    let (_ours, theirs) = std::io::pipe().unwrap();
    let running = shim
        .exec(exec("c1", "sleep 1000"), vec![OwnedFd::from(theirs)])
        .await
        .unwrap();
    oci_runtime_sys::stage::kill(shim.pid(), 9).unwrap();
    assert_eq!(next(&mut events).await, ShimEvent::Died);
    assert!(running.exit.await.is_err());
    let error = shim.kill("c1", 15, false).await.unwrap_err();
    assert!(matches!(error, ShimCallError::Died), "{error}");
    assert!(shims.find_shim(&place.sandbox).await.unwrap().is_none());
    let state = place.runtime_root().join("c1");
    assert!(state.exists());
    let runtime = Runtime::Builtin {
        systemd_cgroup: false,
    };
    for _ in 0..2 {
        let destroyed = shims.destroy("c1", &place.runtime_root(), &runtime).await;
        destroyed.unwrap();
    }
    assert!(!state.exists());
    let cgroup = Cgroup::new(&format!("{}/c1", place.cgroup), CgroupDriver::Cgroupfs).unwrap();
    assert!(!cgroup.exists());
    // A new shim may follow where the old one has left its socket.
    let shim = shims.start_shim(&place.sandbox).await.unwrap();
    shim.shutdown(true).await.unwrap();
}

#[tokio::test]
async fn a_shim_that_hangs_is_killed_and_then_counts_as_dead() {
    let place = Place::new("hangs");
    let (shims, mut events) = place.shims();
    let shim = shims.start_shim(&place.sandbox).await.unwrap();
    place.run(&shim, "c1", "sleep 1000").await;
    oci_runtime_sys::stage::kill(shim.pid(), nix::libc::SIGSTOP).unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(200), shim.state()).await;
    assert!(asked.is_err(), "it doesn't answer");
    shims.kill_shim(&place.sandbox).await.unwrap();
    assert!(shims.find_shim(&place.sandbox).await.unwrap().is_none());
    assert_eq!(next(&mut events).await, ShimEvent::Died);
    shims.kill_shim(&place.sandbox).await.unwrap();
    shims.kill_shim(&sandbox(8)).await.unwrap();
}

#[tokio::test]
async fn the_executable_cannot_be_written_through_a_running_shim() {
    let place = Place::new("image");
    let (shims, _events) = place.shims();
    let shim = shims.start_shim(&place.sandbox).await.unwrap();
    assert_eq!(shims.image().unwrap().kind(), ImageKind::Overlay);
    shim.state().await.unwrap();
    let exe = format!("/proc/{}/exe", shim.pid());
    let error = fs::File::options().write(true).open(exe).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
    shim.shutdown(true).await.unwrap();
}

#[test]
fn where_no_overlay_can_be_made_a_sealed_copy_is_executed() {
    let image = ShimImage::sealed(fs::File::open("/bin/busybox").unwrap()).unwrap();
    assert_eq!(image.kind(), ImageKind::Sealed);
    let mut command = std::process::Command::new(image.path());
    let output = std::os::unix::process::CommandExt::arg0(&mut command, "echo")
        .arg("hi")
        .output();
    assert_eq!(output.unwrap().stdout, b"hi\n");
    let error = fs::write(image.path(), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM));
}

#[tokio::test]
async fn a_missing_shim_is_named() {
    let place = Place::new("missing");
    let (sender, _events) = mpsc::channel(1);
    let config = ShimsConfig {
        shim: "/no/such/orlop-shim".into(),
        state_dir: place.folder.join("pods"),
        cgroup: None,
    };
    let error = Shims::new(config, sender)
        .start_shim(&place.sandbox)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, ShimCallError::Image(_)), "{error}");
}

#[tokio::test]
async fn fakes_play_lives_failures_and_restarts() {
    let (sender, mut events) = mpsc::channel(10);
    let fakes = FakeShims::new(sender);
    let id = sandbox(1);
    let shim = fakes.start_shim(&id).await.unwrap();
    let place = Place::new("fake");
    let fake = fakes.shim(&id).unwrap();
    fake.fail_next("start", ErrorKind::CommandNotFound, "no such command");
    shim.create(place.create("c1", "true")).await.unwrap();
    let error = shim.start("c1").await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::CommandNotFound));
    shim.start("c1").await.unwrap();
    fake.script_exec(ExecScript {
        stdout: b"out".to_vec(),
        code: Some(2),
        ..ExecScript::default()
    });
    let (mut ours, theirs) = std::io::pipe().unwrap();
    let handle = shim.exec(exec("c1", ""), vec![theirs.into()]).await.unwrap();
    assert_eq!(handle.exit.await.unwrap().code, 2);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(text, "out");
    shim.kill("c1", 15, false).await.unwrap();
    assert_eq!(exited(next(&mut events).await).1.code, 143);
    let late = shim.kill("c1", 15, false).await.unwrap_err();
    assert_eq!(late.kind(), Some(ErrorKind::WrongState));
    assert!(fakes.find_shim(&id).await.unwrap().is_some());
    fakes.die(&id).await;
    assert_eq!(next(&mut events).await, ShimEvent::Died);
    assert!(matches!(shim.state().await, Err(ShimCallError::Died)));
    assert_eq!(fakes.recorded_exits(&id).await.unwrap().len(), 1);
    assert_eq!(fakes.left(), std::slice::from_ref(&id));
    fakes.remove_traces(&id).await.unwrap();
    assert!(fakes.left().is_empty());
}
