//! A pod to test with: a real shim in a mount namespace of its own, a root file system of busybox, and a blocking
//! client. Dropping it ends the shim and its containers, and proves that nothing is left.

use std::collections::VecDeque;
use std::fs;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cri_shim_protocol::{
    Call, ContainerState, Create, ErrorKind, Event, Exec, Exit, Frame, FrameReader, Reply, Request, Runtime,
    ShimError, ShimState, Status, encode,
};
use oci_runtime_cgroups::{Cgroup, CgroupDriver};
use serde_json::{Value, json};

/// Longer than anything here takes, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) fn runc() -> Runtime {
    Runtime::Command {
        path: "/usr/sbin/runc".into(),
        systemd_cgroup: false,
    }
}

pub(crate) fn crun() -> Runtime {
    Runtime::Command {
        path: "/usr/bin/crun".into(),
        systemd_cgroup: false,
    }
}

pub(crate) fn builtin() -> Runtime {
    Runtime::Builtin {
        systemd_cgroup: false,
    }
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
    path.canonicalize().unwrap()
}

pub(crate) struct Pod {
    pub(crate) folder: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) shim: Child,
    pub(crate) client: Client,
    cgroup: String,
    containers: Vec<String>,
}

/// How a container is made; changed by tests before `create`.
pub(crate) struct Wish {
    pub(crate) config: Value,
    pub(crate) create: Create,
}

impl Pod {
    pub(crate) fn new(runtime: Runtime) -> Self {
        let name = format!(
            "orlop-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = PathBuf::from("/tmp").join(&name);
        fs::create_dir_all(folder.join("shim")).unwrap();
        fs::create_dir_all(folder.join("rootfs/bin")).unwrap();
        for sub in ["proc", "dev", "tmp", "sys", "etc"] {
            fs::create_dir_all(folder.join("rootfs").join(sub)).unwrap();
        }
        fs::copy("/bin/busybox", folder.join("rootfs/bin/busybox"))
            .expect("/bin/busybox is missing: apt-get install busybox-static");
        for applet in [
            "sh", "cat", "sleep", "true", "false", "echo", "kill", "stty", "seq", "id", "head",
        ] {
            std::os::unix::fs::symlink("busybox", folder.join("rootfs/bin").join(applet)).unwrap();
        }
        let listener = UnixListener::bind(folder.join("shim.sock")).unwrap();
        // A mount namespace of the pod's own: what is mounted in it goes with it.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if runtime == crun() && Path::new("/sys/fs/cgroup/unified").exists() {
            // crun 1.8 refuses the v2 hierarchy beside v1 ones; in this namespace there is none.
            command.args(["sh", "-c", "umount /sys/fs/cgroup/unified && exec \"$@\"", "sh"]);
        }
        command.arg(shim_binary());
        command
            .arg("--state-dir")
            .arg(folder.join("shim"))
            .args(["--sandbox", &name]);
        command.arg("--cgroup").arg(format!("/{name}/shim"));
        let shim = command
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let client = Client::connect(&folder);
        Self {
            folder,
            runtime,
            shim,
            client,
            cgroup: format!("/{name}"),
            containers: Vec::new(),
        }
    }

    pub(crate) fn reconnect(&mut self) {
        self.client = Client::connect(&self.folder);
    }

    pub(crate) fn log_path(&self, container: &str) -> PathBuf {
        self.folder.join(format!("{container}.log"))
    }

    pub(crate) fn wish(&self, container: &str, script: &str) -> Wish {
        let cgroup = format!("{}/{container}", self.cgroup);
        let namespaces: Vec<Value> = ["pid", "mount", "ipc", "uts", "network"]
            .iter()
            .map(|kind| json!({ "type": kind }))
            .collect();
        let caps = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": ["sh", "-c", script],
                "env": ["PATH=/bin", "HOME=/"],
                "cwd": "/",
                "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
            },
            "root": { "path": self.folder.join("rootfs"), "readonly": true },
            "hostname": "pod",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            ],
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": namespaces,
                "resources": { "memory": { "limit": 64 << 20, "swap": 64 << 20 } },
            },
        });
        let create = Create {
            container: container.to_owned(),
            bundle: self.folder.join(format!("bundle-{container}")),
            runtime_root: self.folder.join("oci"),
            runtime: self.runtime.clone(),
            terminal: false,
            stdin: false,
            stdin_once: false,
            log_path: Some(self.log_path(container)),
            max_log_line: 16384,
            kill_all_at_exit: false,
        };
        Wish { config, create }
    }

    pub(crate) fn create_wish(&mut self, wish: Wish) -> Result<i32, ShimError> {
        fs::create_dir_all(&wish.create.bundle).unwrap();
        let text = serde_json::to_vec(&wish.config).unwrap();
        fs::write(wish.create.bundle.join("config.json"), text).unwrap();
        self.containers.push(wish.create.container.clone());
        match self.client.call(Request::Create(wish.create))? {
            Reply::Created { pid } => Ok(pid),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn create(&mut self, container: &str, script: &str) -> i32 {
        let wish = self.wish(container, script);
        self.create_wish(wish).unwrap()
    }

    pub(crate) fn start(&mut self, container: &str) {
        let container = container.to_owned();
        self.client.done(Request::Start { container });
    }

    pub(crate) fn run(&mut self, container: &str, script: &str) -> i32 {
        let pid = self.create(container, script);
        self.start(container);
        pid
    }

    /// Runs a script in a container and collects what it writes.
    pub(crate) fn exec_output(&mut self, container: &str, script: &str) -> (Exit, String) {
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let exec = self.exec_request(container, "output", script);
        let answer = self.client.call_with(Request::Exec(exec), vec![theirs.into()]);
        answer.0.unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        (self.client.exec_exit("output"), text)
    }

    /// An exec with stdout.
    pub(crate) fn exec_request(&self, container: &str, exec: &str, script: &str) -> Exec {
        let process = json!({
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        });
        Exec {
            container: container.to_owned(),
            exec: exec.to_owned(),
            process: process.to_string(),
            stdin: false,
            stdout: true,
            stderr: false,
            size: None,
        }
    }

    /// The records of a log: stream, tag, text.
    pub(crate) fn log(&self, container: &str) -> Vec<(String, String, String)> {
        records(&fs::read_to_string(self.log_path(container)).unwrap())
    }

    /// The lines of one stream, parts joined.
    pub(crate) fn lines(&self, container: &str, stream: &str) -> Vec<String> {
        joined(self.log(container), stream)
    }

    /// A field of the shim's memory, in KiB.
    pub(crate) fn memory_kib(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.shim.id())).unwrap();
        let line = text.lines().find(|l| l.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Kills the shim and what it started, as the daemon would after the shim's death.
    pub(crate) fn kill_shim(&mut self) {
        self.shim.kill().unwrap();
        self.shim.wait().unwrap();
    }

    pub(crate) fn container_cgroup(&self, container: &str) -> Cgroup {
        Cgroup::new(&format!("{}/{container}", self.cgroup), CgroupDriver::Cgroupfs).unwrap()
    }

    fn remove_cgroup(&self) {
        let cgroup = Cgroup::new(&self.cgroup, CgroupDriver::Cgroupfs).unwrap();
        let _ = cgroup.kill_all();
        cgroup.remove().unwrap();
        assert!(!cgroup.exists());
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let diary = fs::read_to_string(self.folder.join("shim/shim.log"));
            eprintln!("--- shim.log\n{}", diary.unwrap_or_default());
        }
        if matches!(self.shim.try_wait(), Ok(None)) {
            for container in std::mem::take(&mut self.containers) {
                let _ = self.client.try_call(Request::Delete {
                    container,
                    force: true,
                });
            }
            let _ = self.client.try_call(Request::Shutdown { force: true });
            let end = Instant::now() + Duration::from_secs(10);
            while matches!(self.shim.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            let late = matches!(self.shim.try_wait(), Ok(None));
            let _ = self.shim.kill();
            let _ = self.shim.wait();
            assert!(
                std::thread::panicking() || !late,
                "the shim did not end when asked"
            );
        }
        if !std::thread::panicking() {
            self.remove_cgroup();
        } else {
            let cgroup = Cgroup::new(&self.cgroup, CgroupDriver::Cgroupfs).unwrap();
            let _ = cgroup.kill_all();
            let _ = cgroup.remove();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn records(text: &str) -> Vec<(String, String, String)> {
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "the log is torn: {text:?}"
    );
    let record = |line: &str| {
        let mut parts = line.splitn(4, ' ');
        let stamp = parts.next().unwrap();
        assert!(stamp.len() == 30 && stamp.ends_with('Z'), "{line:?}");
        let mut next = || parts.next().unwrap_or_else(|| panic!("{line:?}")).to_owned();
        (next(), next(), next())
    };
    // Not `lines`, which would take a carriage return for a part of the line's end.
    text.split_terminator('\n').map(record).collect()
}

pub(crate) fn joined(records: Vec<(String, String, String)>, stream: &str) -> Vec<String> {
    let (mut lines, mut open) = (Vec::new(), false);
    for (_, tag, text) in records.into_iter().filter(|r| r.0 == stream) {
        if open {
            let last: &mut String = lines.last_mut().unwrap();
            last.push_str(&text);
        } else {
            lines.push(text);
        }
        open = tag == "P";
    }
    lines
}

pub(crate) struct Client {
    pub(crate) socket: UnixStream,
    reader: FrameReader,
    next: u64,
    pub(crate) events: VecDeque<Event>,
    answers: VecDeque<(u64, Result<Reply, ShimError>)>,
    fds: VecDeque<OwnedFd>,
}

impl Client {
    pub(crate) fn connect(folder: &Path) -> Self {
        let socket = UnixStream::connect(folder.join("shim.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            socket,
            reader: FrameReader::new(),
            next: 1,
            events: VecDeque::new(),
            answers: VecDeque::new(),
            fds: VecDeque::new(),
        };
        client.call(Request::Subscribe).unwrap();
        client
    }

    pub(crate) fn send(&mut self, request: Request, fds: Vec<OwnedFd>) -> std::io::Result<u64> {
        let id = self.next;
        self.next += 1;
        let bytes = encode(&Call { id, request }).unwrap();
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            control.push(rustix::net::SendAncillaryMessage::ScmRights(&borrowed));
        }
        let sent = rustix::net::sendmsg(
            &self.socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            rustix::net::SendFlags::NOSIGNAL,
        )?;
        self.socket.write_all(&bytes[sent..])?;
        Ok(id)
    }

    /// Reads until a frame has come; errs at the connection's end.
    fn step(&mut self) -> std::io::Result<()> {
        loop {
            match self.reader.next_frame::<Frame>().unwrap() {
                Some(Frame::Answer { id, result }) => {
                    self.answers.push_back((id, result));
                    return Ok(());
                }
                Some(Frame::Event(event)) => {
                    self.events.push_back(event);
                    return Ok(());
                }
                None => {}
            }
            let mut bytes = [0; 4096];
            let (n, fds) = oci_runtime_sys::socket::receive(self.socket.as_fd(), &mut bytes)?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.reader.push(&bytes[..n]);
            self.fds.extend(fds);
        }
    }

    pub(crate) fn try_call(&mut self, request: Request) -> std::io::Result<Result<Reply, ShimError>> {
        let id = self.send(request, Vec::new())?;
        self.wait(id)
    }

    pub(crate) fn wait(&mut self, id: u64) -> std::io::Result<Result<Reply, ShimError>> {
        loop {
            if let Some(place) = self.answers.iter().position(|(answered, _)| *answered == id) {
                return Ok(self.answers.remove(place).unwrap().1);
            }
            self.step()?;
        }
    }

    pub(crate) fn call(&mut self, request: Request) -> Result<Reply, ShimError> {
        self.try_call(request).expect("the shim hung up")
    }

    pub(crate) fn call_with(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> (Result<Reply, ShimError>, Vec<OwnedFd>) {
        let id = self.send(request, fds).unwrap();
        let reply = self.wait(id).expect("the shim hung up");
        (reply, self.fds.drain(..).collect())
    }

    pub(crate) fn done(&mut self, request: Request) {
        assert_eq!(self.call(request), Ok(Reply::Done));
    }

    pub(crate) fn refused(&mut self, request: Request, kind: ErrorKind) -> String {
        let error = self.call(request).expect_err("not refused");
        assert_eq!(error.kind, kind, "{}", error.message);
        error.message
    }

    pub(crate) fn event(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            if let Some(place) = self.events.iter().position(&wanted) {
                return self.events.remove(place).unwrap();
            }
            self.step().expect("the shim hung up");
        }
    }

    pub(crate) fn exit(&mut self, id: &str) -> Exit {
        let event = self.event(|e| matches!(e, Event::ContainerExited { container, .. } if container == id));
        let Event::ContainerExited { exit, .. } = event else {
            unreachable!()
        };
        exit
    }

    pub(crate) fn exec_exit(&mut self, name: &str) -> Exit {
        let event = self.event(|e| matches!(e, Event::ExecExited { exec, .. } if exec == name));
        let Event::ExecExited { exit, .. } = event else {
            unreachable!()
        };
        exit
    }

    pub(crate) fn state(&mut self) -> ShimState {
        match self.call(Request::State) {
            Ok(Reply::State(state)) => state,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn status(&mut self, id: &str) -> Option<Status> {
        let containers = self.state().containers;
        let mut found = containers
            .into_iter()
            .filter(|c: &ContainerState| c.container == id);
        found.next().map(|c| c.status)
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
