//! A runner that is killed leaves nothing: neither one with pods, nor one that is killed while it makes its node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tests_harness::{Footprint, Node, run, tools, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// A runner with a folder of its own for all that it makes.
struct Runner {
    child: Child,
    folder: PathBuf,
}

impl Runner {
    fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let log = fs::File::create(folder.join("runner.log"))?;
        let child = Command::new(env!("CARGO_BIN_EXE_test-node"))
            .arg("hold")
            .arg(folder.join("facts"))
            .env("TMPDIR", folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self {
            child,
            folder: folder.to_owned(),
        })
    }

    /// A fact about its node.
    fn fact(&self, name: &str) -> Result<String> {
        let facts = fs::read_to_string(self.folder.join("facts"))?;
        let mut lines = facts.lines();
        let fact = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        fact.map(str::to_owned)
            .with_context(|| format!("there is no {name}"))
    }

    /// SIGKILL, and what is there once everybody has had the time to go.
    fn kill_and_look(&mut self) -> Result<(usize, Vec<String>)> {
        let name = format!("orlop-test-{}-", self.child.id());
        let footprint = Footprint::of(self.child.id(), &name, &[&self.folder]);
        self.child.kill()?;
        self.child.wait()?;
        // The outcome is judged by who called.
        let _ = wait_until("nothing to be left", PATIENCE, || {
            Ok(footprint.left()?.is_empty())
        });
        Ok((footprint.processes(), footprint.left()?))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Both are done already, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("orlop-killed-{}-{name}", std::process::id()))
}

#[test]
fn a_killed_runner_with_pods_leaves_nothing() {
    let mut runner = Runner::start(&folder("pods")).unwrap();
    wait_until("the node", PATIENCE, || {
        assert!(runner.child.try_wait()?.is_none(), "the runner ended");
        Ok(runner.folder.join("facts").exists())
    })
    .unwrap();
    let crictl = tools::cri_tools().unwrap().join("crictl");
    let keeper = runner.fact("node_keeper").unwrap();
    let inside = |args: &[&str]| {
        let child = run::piped(
            Command::new("nsenter")
                .args(["-t", &keeper, "--mount", "--net", "--uts", "--ipc"])
                .arg(format!("--pid=/proc/{keeper}/ns/pid_for_children"))
                .arg("--")
                .arg(&crictl)
                .args(args),
        )
        .spawn()
        .unwrap();
        run::finish("crictl", child, PATIENCE)
            .unwrap()
            .ok()
            .unwrap()
            .text()
            .to_owned()
    };
    inside(&["pull", "orlop.test/busybox:1"]);
    for n in 0..3 {
        let pod = format!(
            r#"{{"metadata":{{"name":"p{n}","namespace":"default","uid":"u{n}"}},"log_directory":"/var/log/pods/p{n}","linux":{{}}}}"#
        );
        let container = r#"{"metadata":{"name":"c"},"image":{"image":"orlop.test/busybox:1"},
            "command":["sleep","1000"],"log_path":"c.log","linux":{}}"#;
        // The repository and the temporary folder are the same inside.
        let (pod_file, container_file) = (
            runner.folder.join("pod.json"),
            runner.folder.join("container.json"),
        );
        fs::write(&pod_file, pod).unwrap();
        fs::write(&container_file, container).unwrap();
        let (pod, container) = (pod_file.to_str().unwrap(), container_file.to_str().unwrap());
        let sandbox = inside(&["runp", pod]);
        let id = inside(&["create", &sandbox, container, pod]);
        inside(&["start", &id]);
    }
    assert_eq!(inside(&["ps", "-q"]).lines().count(), 3);
    let (processes, left) = runner.kill_and_look().unwrap();
    // The runner, the janitor, the keeper and its init, the registry, the daemon; three pods.
    assert!(processes >= 6 + 3 * 2, "only {processes} processes were seen");
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_runner_killed_while_it_makes_its_node_leaves_nothing() {
    // How long that takes here, so that the moments are spread over it on any machine.
    let begun = std::time::Instant::now();
    Node::start().unwrap().finish().unwrap();
    let whole = begun.elapsed();
    for n in 1..=8 {
        let mut runner = Runner::start(&folder(&format!("half{n}"))).unwrap();
        std::thread::sleep(whole * n / 8);
        let (_, left) = runner.kill_and_look().unwrap();
        assert!(left.is_empty(), "killed after {n}/8 of {whole:?}: {left:#?}");
    }
}
