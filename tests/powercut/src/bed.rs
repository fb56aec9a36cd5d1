//! The node inside the virtual machine: its disks, its configuration, its daemon, and a registry.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests_harness::{usual_network, wait_until};

use crate::cri::Cri;

const CONFIG: &str = "/etc/orlop/orlop-cri.toml";
const SOCKET: &str = "/run/orlop/cri.sock";
const REGISTRY: &str = "127.0.0.1:5000";
const LOGS: &str = "/run/powercut";
/// Below it the pods' cgroups.
pub(crate) const CGROUP: &str = "/orlop";
/// Where a node keeps what survives a reboot.
pub(crate) const STATE: [&str; 2] = ["/var/lib/orlop", "/var/lib/cni"];
/// How long things may take to start in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Runs a program to its end.
fn run(command: &[&str]) -> Result<()> {
    let output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .with_context(|| format!("failed to run `{}`", command[0]))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {stderr}",
        output.status
    );
    Ok(())
}

/// Puts the node's state on a disk that is mounted there, or where nothing survives; and tells the kernel to write
/// nothing by itself.
pub(crate) fn mount_state(disk: Option<&Path>) -> Result<()> {
    let lazy = [
        ("vm/dirty_writeback_centisecs", "0"),
        ("vm/dirty_expire_centisecs", "360000"),
        ("vm/dirty_background_ratio", "80"),
        ("vm/dirty_ratio", "90"),
        ("fs/xfs/xfssyncd_centisecs", "720000"),
    ];
    for (name, value) in lazy {
        let path = Path::new("/proc/sys").join(name);
        if path.exists() {
            fs::write(&path, value).with_context(|| format!("failed to write `{}`", path.display()))?;
        }
    }
    let top = disk.unwrap_or(Path::new("/run/powercut/disk"));
    fs::create_dir_all(top)?;
    if disk.is_none() {
        run(&["mount", "-t", "tmpfs", "tmpfs", &top.to_string_lossy()])?;
    }
    for to in STATE {
        let from = top.join(Path::new(to).file_name().unwrap_or_default());
        fs::create_dir_all(&from)?;
        fs::create_dir_all(to)?;
        run(&["mount", "--bind", &from.to_string_lossy(), to])?;
    }
    Ok(())
}

/// Writes the configuration of a node whose every image comes from the registry beside it.
pub(crate) fn configure(shim: &Path) -> Result<()> {
    let daemon = format!(
        "shim = \"{}\"\n\n[cgroup]\nroot = \"{CGROUP}\"\nshims = \"{CGROUP}/shims\"\n",
        shim.display()
    );
    let hosts = format!(
        "server = \"http://{REGISTRY}\"\n\n[host.\"http://{REGISTRY}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    let files = [
        (CONFIG, daemon),
        ("/etc/orlop/registries.d/_default/hosts.toml", hosts),
        ("/etc/cni/net.d/10-orlop.conflist", usual_network()),
    ];
    for (path, content) in files {
        let path = Path::new(path);
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, content).with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    run(&["ip", "link", "set", "lo", "up"])
}

fn log(name: &str) -> Result<(File, PathBuf)> {
    fs::create_dir_all(LOGS)?;
    let path = Path::new(LOGS).join(name);
    let file = File::create(&path).with_context(|| format!("failed to create `{}`", path.display()))?;
    Ok((file, path))
}

/// Starts the registry on a storage folder, read-only.
pub(crate) fn start_registry(storage: &Path) -> Result<Child> {
    let (out, path) = log("registry.log")?;
    let config = path.with_extension("yml");
    fs::write(&config, tests_images::registry::config(storage, REGISTRY))?;
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .context("failed to run `docker-registry`")?;
    wait_until("the registry", PATIENCE, || {
        Ok(TcpStream::connect(REGISTRY).is_ok())
    })?;
    Ok(child)
}

/// What is taken from the daemon: flushes of files whose path contains a text.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Lost {
    /// The library that takes them.
    #[arg(long)]
    pub(crate) preload: Option<PathBuf>,
    /// Part of the paths.
    #[arg(long)]
    pub(crate) lose: Option<String>,
}

/// Starts the daemon, and connects.
pub(crate) fn start_daemon(
    runtime: &tokio::runtime::Runtime,
    program: &Path,
    lost: &Lost,
) -> Result<(Child, Cri)> {
    let (out, path) = log("orlop-cri.log")?;
    let mut command = Command::new(program);
    if let (Some(preload), Some(lose)) = (&lost.preload, &lost.lose) {
        command.env("LD_PRELOAD", preload).env("POWERCUT_LOSE", lose);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("failed to run `{}`", program.display()))?;
    let ready = wait_until("orlop-cri", PATIENCE, || {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("orlop-cri ended: {status}");
        }
        Ok(UnixStream::connect(SOCKET).is_ok())
    });
    ready.with_context(|| fs::read_to_string(&path).unwrap_or_default())?;
    let cri = runtime.block_on(async {
        let mut cri = Cri::connect(Path::new(SOCKET)).await?;
        cri.version().await?;
        Ok::<_, anyhow::Error>(cri)
    })?;
    Ok((child, cri))
}

/// The end of the daemon's log, for whoever has to find out.
pub(crate) fn daemon_log() -> String {
    let text = fs::read_to_string(Path::new(LOGS).join("orlop-cri.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
