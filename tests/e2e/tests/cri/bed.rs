//! What the tests share: a node around a body, and small waits.

use std::time::Duration;

use anyhow::{Context, Result};
use tests_harness::{ContainerSpec, Crictl, Node, NodeBuilder, PodSpec, Snapshot, wait_until};

/// Long enough for a machine that compiles beside the tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test in a node, and then the node's own proof that nothing is left.
pub(crate) fn in_node(wish: NodeBuilder, body: impl FnOnce(&mut Node) -> Result<()>) {
    let mut node = wish.start().expect("root may make a node");
    if let Err(e) = body(&mut node) {
        panic!("{e:#}");
    }
    node.finish().expect("the node leaves nothing");
}

/// What there is once a pod has come and gone: the measure for leaks.
pub(crate) fn settled(node: &Node) -> Result<Snapshot> {
    let crictl = node.crictl()?;
    let pod = PodSpec::new("first");
    let (sandbox, _) = crictl
        .start_pod(&pod, &sleeper("main"))
        .context("the first pod failed")?;
    crictl.remove_pod(&sandbox)?;
    node.snapshot()
}

/// A container that stays, and ends well when it is asked to. It waits without children: they would come and go between
/// two looks at the processes.
pub(crate) fn sleeper(name: &str) -> ContainerSpec {
    ContainerSpec::sh(
        name,
        "trap 'exit 0' TERM; mkfifo /tmp/never; read -r _ <>/tmp/never",
    )
}

/// The cgroups and mounts whose names have the container's ID in them, a line each.
pub(crate) fn held(node: &Node, container: &str) -> Result<String> {
    let find = format!(
        "find /sys/fs/cgroup -type d -name '*{container}*'; grep -F {container} /proc/self/mountinfo; true"
    );
    Ok(node.run("sh", &["-c", &find])?.stdout)
}

/// Waits until a container holds no cgroup and no mount.
pub(crate) fn until_freed(node: &Node, container: &str) -> Result<()> {
    wait_until("its cgroup and mounts to go", PATIENCE, || {
        Ok(held(node, container)?.is_empty())
    })?;
    Ok(())
}

/// Waits for a container's state.
pub(crate) fn until_state(crictl: &Crictl<'_>, container: &str, state: &str) -> Result<()> {
    wait_until(&format!("{container} to be {state}"), PATIENCE, || {
        Ok(crictl.state(container)? == state)
    })?;
    Ok(())
}

/// Waits until a container's log holds a text.
pub(crate) fn until_logged(crictl: &Crictl<'_>, container: &str, text: &str) -> Result<()> {
    wait_until(&format!("{text} in the log"), PATIENCE, || {
        Ok(crictl.ok(&["logs", container])?.contains(text))
    })?;
    Ok(())
}
