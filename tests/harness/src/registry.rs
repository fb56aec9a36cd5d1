//! The registry inside a node: Debian's docker-registry over the prepared images, on the node's loopback interface.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::enter::Namespaces;
use crate::run::wait_until;
use crate::tools;

/// Where it listens, in every node.
pub(crate) const ADDRESS: &str = "127.0.0.1:5000";

/// Starts it; returns when it takes connections.
pub(crate) fn start(namespaces: &Namespaces, logs: &Path) -> Result<Child> {
    let root = tests_images::ensure_registry(&mut |what| eprintln!("{what}"))?;
    let config = logs.join("registry.yml");
    fs::write(&config, tests_images::registry::config(&root, ADDRESS))
        .with_context(|| format!("failed to write `{}`", config.display()))?;
    let log = fs::File::create(logs.join("registry.log"))?;
    let child = namespaces.spawn(
        Command::new(tools::installed("docker-registry")?)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log),
    )?;
    wait_until("the registry", Duration::from_secs(20), || {
        namespaces.inside(|| Ok(TcpStream::connect(ADDRESS).is_ok()))
    })?;
    Ok(child)
}

/// A `hosts.toml` that sends every pull here.
pub(crate) fn hosts_toml() -> String {
    format!(
        "server = \"http://{ADDRESS}\"\n\n[host.\"http://{ADDRESS}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    )
}
