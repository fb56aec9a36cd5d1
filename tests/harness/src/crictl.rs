//! crictl in a node, and the files that it takes.

use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::node::Node;
use crate::run::{Finished, piped};
use crate::tools;

/// A pod to be.
#[derive(Debug, Clone)]
pub struct PodSpec(Value);

/// A container to be.
#[derive(Debug, Clone)]
pub struct ContainerSpec(Value);

impl PodSpec {
    /// A pod of that name in namespace `default`. Its uid is made from the name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(json!({
            "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 0 },
            "hostname": name,
            "log_directory": format!("/var/log/pods/{name}"),
            "linux": {},
        }))
    }

    /// Changes the member at a JSON pointer (`/linux/sysctls`); members on the way are made.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        set(&mut self.0, pointer, value);
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }
}

impl ContainerSpec {
    /// A container that runs a command line.
    #[must_use]
    pub fn new(name: &str, image: &str, command: &[&str]) -> Self {
        Self(json!({
            "metadata": { "name": name, "attempt": 0 },
            "image": { "image": image },
            "command": command,
            "log_path": format!("{name}.log"),
            "linux": {},
        }))
    }

    /// One that runs a shell script in busybox.
    #[must_use]
    pub fn sh(name: &str, script: &str) -> Self {
        Self::new(name, BUSYBOX, &["sh", "-c", script])
    }

    /// Changes the member at a JSON pointer; members on the way are made.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        set(&mut self.0, pointer, value);
        self
    }
}

/// The image of [`ContainerSpec::sh`].
pub(crate) const BUSYBOX: &str = "orlop.test/busybox:1";

fn set(root: &mut Value, pointer: &str, value: Value) {
    let mut at = root;
    for key in pointer.trim_start_matches('/').split('/') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = at
            .as_object_mut()
            .expect("made one above")
            .entry(key)
            .or_insert(Value::Null);
    }
    *at = value;
}

/// crictl, with the node's `/etc/crictl.yaml`.
#[derive(Debug)]
pub struct Crictl<'n> {
    node: &'n Node,
    path: String,
}

impl<'n> Crictl<'n> {
    pub(crate) fn new(node: &'n Node) -> Result<Self> {
        let path = tools::cri_tools()?.join("crictl").display().to_string();
        Ok(Self { node, path })
    }

    /// A command line, not started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(args);
        command
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    /// It doesn't end within two minutes.
    pub fn run(&self, args: &[&str]) -> Result<Finished> {
        self.node
            .run_within(Duration::from_secs(120), &mut self.command(args))
    }

    /// Runs it; it must end well. What it printed, without blanks at the ends.
    ///
    /// # Errors
    /// It ended otherwise.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        Ok(self.run(args)?.ok()?.text().to_owned())
    }

    /// Runs it; it must end well and print JSON.
    ///
    /// # Errors
    /// It ended or printed otherwise.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        self.run(args)?.ok()?.json()
    }

    /// Starts it with piped output, for what goes on until it is ended.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn(&self, args: &[&str]) -> Result<Child> {
        self.node.spawn(piped(&mut self.command(args)))
    }

    /// `crictl runp`; the sandbox's ID.
    ///
    /// # Errors
    /// It failed.
    pub fn run_pod(&self, pod: &PodSpec) -> Result<String> {
        self.try_run_pod(pod, &[])?.ok().map(|f| f.text().to_owned())
    }

    /// `crictl runp`, whatever comes of it.
    ///
    /// # Errors
    /// It doesn't end.
    pub fn try_run_pod(&self, pod: &PodSpec, flags: &[&str]) -> Result<Finished> {
        let file = self.file(&pod.0)?;
        self.run(&[&["runp"], flags, &[file.as_str()]].concat())
    }

    /// `crictl create`; the container's ID.
    ///
    /// # Errors
    /// It failed.
    pub fn create(&self, sandbox: &str, pod: &PodSpec, container: &ContainerSpec) -> Result<String> {
        self.try_create(sandbox, pod, container)?
            .ok()
            .map(|f| f.text().to_owned())
    }

    /// `crictl create`, whatever comes of it.
    ///
    /// # Errors
    /// It doesn't end.
    pub fn try_create(&self, sandbox: &str, pod: &PodSpec, container: &ContainerSpec) -> Result<Finished> {
        let (pod, container) = (self.file(&pod.0)?, self.file(&container.0)?);
        self.run(&["create", sandbox, &container, &pod])
    }

    /// A pod with one running container; the IDs of both. The image is pulled when it isn't there.
    ///
    /// # Errors
    /// One of the steps failed.
    pub fn start_pod(&self, pod: &PodSpec, container: &ContainerSpec) -> Result<(String, String)> {
        let image = container.0["image"]["image"]
            .as_str()
            .context("the container has an image")?;
        if self.run(&["inspecti", "-q", image])?.code != 0 {
            self.ok(&["pull", image])?;
        }
        let sandbox = self.run_pod(pod)?;
        let id = self.create(&sandbox, pod, container)?;
        self.ok(&["start", &id])?;
        Ok((sandbox, id))
    }

    /// Stops and removes a pod.
    ///
    /// # Errors
    /// It failed.
    pub fn remove_pod(&self, sandbox: &str) -> Result<()> {
        self.ok(&["rmp", "-f", sandbox]).map(drop)
    }

    /// The status of a container.
    ///
    /// # Errors
    /// It failed.
    pub fn inspect(&self, container: &str) -> Result<Value> {
        self.json(&["inspect", container])
    }

    /// The state of a container, `CONTAINER_RUNNING` and so on.
    ///
    /// # Errors
    /// It failed.
    pub fn state(&self, container: &str) -> Result<String> {
        let status = self.inspect(container)?;
        Ok(status["status"]["state"].as_str().unwrap_or_default().to_owned())
    }

    /// A pod's first address.
    ///
    /// # Errors
    /// It failed, or it has none.
    pub fn pod_ip(&self, sandbox: &str) -> Result<String> {
        let status = self.json(&["inspectp", sandbox])?;
        status["status"]["network"]["ip"]
            .as_str()
            .filter(|ip| !ip.is_empty())
            .map(str::to_owned)
            .context("no pod IP")
    }

    /// Writes a specification into the node; its path.
    fn file(&self, spec: &Value) -> Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/run/specs/{}-{n}.json", std::process::id());
        self.node.write(&path, &serde_json::to_string_pretty(spec)?)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_on_the_way_are_made() {
        let pod = PodSpec::new("p").with("/linux/security_context/namespace_options/network", json!(2));
        assert_eq!(
            pod.0["linux"]["security_context"]["namespace_options"]["network"],
            2
        );
        assert_eq!(pod.name(), "p");
    }
}
