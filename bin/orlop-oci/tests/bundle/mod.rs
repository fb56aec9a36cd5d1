//! A bundle made from busybox, with a runtime root and a cgroup of its own; dropped, it proves that nothing is left.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "a module of several test programs, none of which uses all of it"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const APPLETS: &[&str] = &[
    "sh", "true", "false", "ls", "cat", "id", "mount", "ps", "sleep", "echo", "env", "pwd", "stat",
    "hostname", "readlink", "head", "grep", "touch", "mkdir", "rm", "kill", "tty", "stty", "wc", "umask",
    "chmod", "dd", "tr", "test", "ln", "sort", "cut", "uname", "date", "sysctl", "mknod", "ionice",
];

/// The program under test: the static one, or what `ORLOP_BIN_DIR` names.
pub fn program() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = std::env::var_os("ORLOP_BIN_DIR").map_or_else(|| here.join("target/orlop"), PathBuf::from);
    let path = folder.join("orlop-oci");
    assert!(
        path.exists(),
        "`{}` is missing: run hack/build orlop-oci",
        path.display()
    );
    path
}

pub struct Bundle {
    pub folder: PathBuf,
    pub id: String,
    pub config: Value,
    pub cgroup: String,
}

impl Bundle {
    pub fn new(script: &str) -> Self {
        assert!(nix_is_root(), "these tests need root");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "t{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = std::env::temp_dir().join(format!("orlop-oci-test-{id}"));
        for dir in [
            "rootfs/bin",
            "rootfs/etc",
            "rootfs/proc",
            "rootfs/sys",
            "rootfs/dev",
            "rootfs/tmp",
        ] {
            fs::create_dir_all(folder.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", folder.join("rootfs/bin/busybox")).expect("install busybox-static");
        for applet in APPLETS {
            symlink("busybox", folder.join("rootfs/bin").join(applet)).unwrap();
        }
        fs::write(
            folder.join("rootfs/etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\n",
        )
        .unwrap();
        let written = Command::new(program())
            .args(["spec", "--bundle"])
            .arg(&folder)
            .status()
            .unwrap();
        assert!(written.success());
        let text = fs::read(folder.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        let cgroup = format!("/orlop-test-{id}");
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        config["linux"]["cgroupsPath"] = json!(format!("{cgroup}/c"));
        Self {
            folder,
            id,
            config,
            cgroup,
        }
    }

    pub fn rootfs(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    pub fn namespace(&mut self, kind: &str, path: Option<&str>) {
        let list = self.config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|n| n["type"] != kind);
        list.push(match path {
            Some(path) => json!({ "type": kind, "path": path }),
            None => json!({ "type": kind }),
        });
    }

    pub fn mount(&mut self, mount: Value) {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        // Only when it changed: another command may be reading it.
        let (path, text) = (self.folder.join("config.json"), self.config.to_string());
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::write(&path, text).unwrap();
        }
        let mut command = Command::new(program());
        command.arg("--root").arg(self.folder.join("root"));
        command.args(["--log", self.log().to_str().unwrap(), "--log-format", "json"]);
        command.args(arguments).current_dir(&self.folder);
        command.stdin(Stdio::null());
        command
    }

    /// The same in a mount namespace of its own, which a shell prepares: `$@` is the call.
    pub fn command_in(&self, script: &str, arguments: &[&str]) -> Command {
        let inner = self.command(arguments);
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "/bin/sh",
            "-ec",
            script,
            "sh",
        ]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log.json")
    }

    /// The messages of the log.
    pub fn messages(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .map(|line| line["msg"].as_str().unwrap().to_owned())
            .collect()
    }

    pub fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it; its output, after checking that it ended with 0.
    pub fn run(&self) -> String {
        let output = self.call(&["run", &self.id]);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{:?}\n{out}\n{err}", output.status);
        out
    }

    /// Calls; its output, after checking that it ended with 0.
    pub fn good(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let (out, err) = texts(&output);
        assert!(
            output.status.success(),
            "{arguments:?}: {:?}\n{out}\n{err}",
            output.status
        );
        out
    }

    /// Calls; its error, after checking that it failed.
    pub fn bad(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        let (out, err) = texts(&output);
        assert!(
            !output.status.success(),
            "{arguments:?} should fail\n{out}\n{err}"
        );
        err
    }

    /// Creates with output to a file, not to a pipe that would be held open.
    pub fn create(&self) {
        let out = fs::File::create(self.folder.join("out")).unwrap();
        let mut command = self.command(&["create", "--bundle", self.folder.to_str().unwrap(), &self.id]);
        let status = command
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .status()
            .unwrap();
        assert!(status.success(), "create: {}", self.output());
    }

    pub fn output(&self) -> String {
        fs::read_to_string(self.folder.join("out")).unwrap_or_default()
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.good(&["state", &self.id])).unwrap()
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub fn wait_for(&self, status: &str) {
        wait_until(&format!("status {status}"), || self.status() == status);
    }

    pub fn cgroups_left(&self) -> Vec<PathBuf> {
        let all = self.cgroup_parents().map(|parent| parent.join("c"));
        all.filter(|path| path.is_dir()).collect()
    }

    /// What the container's cgroup is made in, with v2 alone and with a hierarchy per folder.
    fn cgroup_parents(&self) -> impl Iterator<Item = PathBuf> {
        let top = PathBuf::from("/sys/fs/cgroup");
        let below: Vec<_> = fs::read_dir(&top).unwrap().flatten().collect();
        let all = std::iter::once(top).chain(below.into_iter().map(|entry| entry.path()));
        all.map(|hierarchy| hierarchy.join(&self.cgroup[1..]))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        let _ = self.call(&["delete", "--force", &self.id]);
        let left = self.cgroups_left();
        for parent in self.cgroup_parents() {
            let _ = fs::remove_dir(parent);
        }
        let names: Vec<_> = fs::read_dir(self.folder.join("root"))
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        let names: Vec<_> = names
            .iter()
            .map(|e| e.file_name())
            .filter(|name| name != ".seccomp")
            .collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounted = mounts.contains(self.folder.to_str().unwrap());
        let _ = fs::remove_dir_all(&self.folder);
        if !failing {
            assert!(left.is_empty(), "cgroups left: {left:?}");
            assert!(names.is_empty(), "state left: {names:?}");
            assert!(!mounted, "mounts left");
        }
    }
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn texts(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn nix_is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}
