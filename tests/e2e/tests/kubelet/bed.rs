//! A node with orlop-cri and orlop-kubelet, and what tests ask of them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests_harness::{Node, NodeBuilder, tools, wait_until};

/// Long enough for a machine that compiles beside the tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The image that tests run: a small web server and busybox.
pub(crate) const IMAGE: &str = "orlop.test/demo:latest";

const MANIFESTS: &str = "/etc/kubernetes/manifests";
const CONFIG: &str = "/etc/orlop/kubelet.yaml";
const READ_ONLY: u16 = 10255;

/// A node with a kubelet.
pub(crate) struct Bed {
    pub(crate) node: Node,
    kubelet: Option<Child>,
}

/// Runs a test in a node with a kubelet, and then the node's own proof that nothing is left.
pub(crate) fn with_kubelet(body: impl FnOnce(&mut Bed) -> Result<()>) {
    with_configured("", body);
}

/// The same, with more of the kubelet's configuration.
pub(crate) fn with_configured(more: &str, body: impl FnOnce(&mut Bed) -> Result<()>) {
    let mut bed = Bed::start(more).expect("root may make a node");
    if let Err(error) = body(&mut bed) {
        let log = bed.log();
        let tail: Vec<_> = log.lines().rev().take(60).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        panic!("{error:#}\nthe kubelet's log:\n{}", tail.join("\n"));
    }
    bed.finish().expect("the node leaves nothing");
}

impl Bed {
    fn start(more: &str) -> Result<Self> {
        let node = NodeBuilder::default().start()?;
        let config = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nstaticPodPath: {MANIFESTS}\n\
             containerRuntimeEndpoint: unix:///run/orlop/cri.sock\ncgroupRoot: {}\ncgroupDriver: cgroupfs\n\
             readOnlyPort: {READ_ONLY}\nfailCgroupV1: false\nfailSwapOn: false\n\
             imageGCHighThresholdPercent: 100\nevictionHard: {{memory.available: 100Mi}}\n{more}",
            node.cgroup_parent(),
        );
        node.write(CONFIG, &config)?;
        node.run("mkdir", &["-p", MANIFESTS])?.ok()?;
        let mut bed = Self { node, kubelet: None };
        bed.start_kubelet()?;
        Ok(bed)
    }

    /// Starts the kubelet and waits until it answers.
    pub(crate) fn start_kubelet(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = Command::new(tools::ours("orlop-kubelet")?);
        command
            .args(["--config", CONFIG, "-v", "2"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.kubelet = Some(self.node.spawn(&mut command)?);
        wait_until("the kubelet to answer", PATIENCE, || {
            Ok(self.ask("/pods").is_ok())
        })?;
        Ok(())
    }

    /// Kills the kubelet, so that it can't do anything any more.
    pub(crate) fn kill_kubelet(&mut self) -> Result<()> {
        let mut kubelet = self.kubelet.take().context("no kubelet runs")?;
        kubelet.kill()?;
        kubelet.wait()?;
        Ok(())
    }

    fn log_file(&self) -> std::path::PathBuf {
        self.node.tmp().join("kubelet.log")
    }

    /// All that the kubelet has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Ends all pods, then kubelet and node; says whether anything is left.
    fn finish(mut self) -> Result<()> {
        self.node
            .run("sh", &["-c", &format!("rm -f {MANIFESTS}/*")])?
            .ok()?;
        wait_until("all pods to go", PATIENCE, || Ok(self.pods()?.is_empty()))?;
        wait_until("the pods' folders to go", PATIENCE, || {
            let left = self.node.run(
                "sh",
                &["-c", "ls /var/lib/kubelet/pods /var/log/pods | grep -v : ; true"],
            )?;
            Ok(left.stdout.trim().is_empty())
        })?;
        let held = self.node.crictl()?.ok(&["ps", "-aq"])?;
        ensure!(held.trim().is_empty(), "containers are left: {held}");
        self.kill_kubelet()?;
        // The classes' cgroups stay for the next kubelet; the node's audit wants none.
        self.node.run("sh", &["-c", &format!(
            "for h in /sys/fs/cgroup /sys/fs/cgroup/*; do find $h{}/kubepods -depth -type d -exec rmdir {{}} \\; ; done 2>/dev/null; true",
            self.node.cgroup_parent()
        )])?;
        self.node.finish()
    }

    /// Writes a manifest.
    pub(crate) fn apply(&self, file: &str, manifest: &Value) -> Result<()> {
        self.apply_text(file, &manifest.to_string())
    }

    /// Writes a manifest as it is.
    pub(crate) fn apply_text(&self, file: &str, text: &str) -> Result<()> {
        // In one step, as an administrator's tools do.
        self.node.write(&format!("/etc/kubernetes/.{file}"), text)?;
        self.node
            .run(
                "mv",
                &[
                    &format!("/etc/kubernetes/.{file}"),
                    &format!("{MANIFESTS}/{file}"),
                ],
            )?
            .ok()?;
        Ok(())
    }

    /// Removes a manifest.
    pub(crate) fn delete(&self, file: &str) -> Result<()> {
        self.node.run("rm", &[&format!("{MANIFESTS}/{file}")])?.ok()?;
        Ok(())
    }

    /// An answer of the kubelet's read-only port.
    pub(crate) fn ask(&self, path: &str) -> Result<String> {
        self.get(READ_ONLY, path)
    }

    /// The body of an HTTP answer of the node's loopback.
    pub(crate) fn get(&self, port: u16, path: &str) -> Result<String> {
        let path = path.to_owned();
        self.node.inside(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let Some((head, body)) = answer.split_once("\r\n\r\n") else {
                bail!("no answer: {answer}")
            };
            ensure!(head.starts_with("HTTP/1.1 200"), "{answer}");
            if head.to_lowercase().contains("transfer-encoding: chunked") {
                return joined(body);
            }
            Ok(body.to_owned())
        })
    }

    /// All pods, with their statuses.
    pub(crate) fn pods(&self) -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&self.ask("/pods")?)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// The pod of a name, without the node's name in it.
    pub(crate) fn pod(&self, name: &str) -> Result<Option<Value>> {
        let full = format!("{name}-{}", self.node.name());
        Ok(self
            .pods()?
            .into_iter()
            .find(|pod| pod["metadata"]["name"] == full.as_str()))
    }

    /// Waits until a pod is as it should be; what it is then.
    pub(crate) fn until(&self, name: &str, what: &str, test: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let waited = wait_until(&format!("{name} to be {what}"), PATIENCE, || {
            last = self.pod(name)?.unwrap_or(Value::Null);
            Ok(test(&last))
        });
        waited.with_context(|| format!("it is {:#}", last["status"]))?;
        Ok(last)
    }

    /// Waits until a pod is ready.
    pub(crate) fn until_ready(&self, name: &str) -> Result<Value> {
        self.until(name, "ready", is_ready)
    }

    /// Runs a command in a container.
    pub(crate) fn exec(&self, pod: &Value, container: &str, command: &[&str]) -> Result<String> {
        let id = container_id(pod, container)?;
        let mut args = vec!["exec", &id];
        args.extend(command);
        self.node.crictl()?.ok(&args)
    }

    /// The log of a container, from the file that the kubelet had the runtime write.
    pub(crate) fn log_of(&self, pod: &Value, container: &str, attempt: u32) -> Result<String> {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
        let folder = format!(
            "/var/log/pods/{}_{}_{}",
            text("namespace"),
            text("name"),
            text("uid")
        );
        self.node.read(&format!("{folder}/{container}/{attempt}.log"))
    }
}

fn joined(body: &str) -> Result<String> {
    let mut rest = body;
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            break;
        }
        whole.push_str(after.get(..size).context("a short chunk")?);
        rest = after.get(size + 2..).context("a short chunk")?;
    }
    Ok(whole)
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == Some("True")
}

/// A condition of a pod.
pub(crate) fn condition<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == name)?["status"].as_str()
}

/// A container's status, of whatever kind.
pub(crate) fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    ["containerStatuses", "initContainerStatuses"]
        .iter()
        .filter_map(|list| pod["status"][list].as_array())
        .flatten()
        .find(|one| one["name"] == name)
        .unwrap_or(&Value::Null)
}

/// A container's ID without the runtime's name.
pub(crate) fn container_id(pod: &Value, name: &str) -> Result<String> {
    let id = container(pod, name)["containerID"].as_str().unwrap_or_default();
    let (_, id) = id
        .split_once("://")
        .with_context(|| format!("{name} has no ID: {pod:#}"))?;
    Ok(id.to_owned())
}

/// A pod of these containers.
pub(crate) fn manifest(name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "terminationGracePeriodSeconds": 3, "containers": containers },
    })
}

/// A container that runs a script.
pub(crate) fn sh(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script] })
}

/// A container that stays, and ends at once when it is asked to.
pub(crate) fn sleeper(name: &str) -> Value {
    sh(
        name,
        "trap 'exit 0' TERM; mkfifo /tmp/never; read -r _ <>/tmp/never",
    )
}
