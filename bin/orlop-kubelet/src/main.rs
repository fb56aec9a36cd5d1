//! The kubelet: pods of this node, on any CRI daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use bin_daemon::exit::{BadSetting, report};
use bin_daemon::logging::{self, Format, Level, LogConfig};
use bin_daemon::signals::{Signals, Wish};
use bin_daemon::supervisor::Supervisor;
use kubelet_agent::agent::{Agent, AgentError, Options};
use kubelet_agent::config::{ConfigError, Flags, KubeletConfiguration, load};

/// Few: a daemon that mostly waits needs no thread per core.
const WORKERS: usize = 2;
/// What may block at once: volumes, cgroups, files.
const MAX_BLOCKING: usize = 64;
/// Where the kubelet keeps what is its own, unless `--root-dir` says otherwise.
const ROOT: &str = "/var/lib/kubelet";
/// Where the node's own `orlop` finds its access.
const LOCAL_CLIENT: &str = "/etc/orlop";
/// Static tokens of the server's clients, in the folder of certificates.
const TOKENS: &str = "tokens.csv";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--version" | "-version" | "version") => {
            println!("orlop-kubelet {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("--help" | "-h" | "help") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => report("orlop-kubelet", run(arguments)),
    }
}

const HELP: &str = "\
Runs the pods of this node, as a folder of manifests or a URL names them, on any CRI daemon.

Usage: orlop-kubelet [--config FILE] [--config-dir FOLDER] [FLAGS]

  --config FILE                        a KubeletConfiguration (kubelet.config.k8s.io/v1beta1)
  --config-dir FOLDER                  drop-ins, *.conf, in the order of their names
  --container-runtime-endpoint SOCKET  the CRI daemon, such as unix:///run/orlop/cri.sock
  --pod-manifest-path PATH             a folder of manifests, or one manifest
  --root-dir FOLDER                    where the kubelet keeps what is its own, /var/lib/kubelet
  --cert-dir FOLDER                    where it keeps its certificates, /var/lib/kubelet/pki
  --hostname-override NAME             the node's name instead of the machine's
  --node-ip ADDRESS                    the node's address instead of the one of its default route
  --node-labels KEY=VALUE,...          labels of the node
  -v LEVEL                             how much is logged; 4 and above is for debugging

The other flags of upstream's kubelet that its configuration file can express are understood as well.
";

fn run(arguments: Vec<String>) -> Result<()> {
    let flags = Flags::parse(arguments).map_err(|error| BadSetting(error.to_string()))?;
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let resolved = load(&flags, unified).map_err(|error| match error {
        ConfigError::Invalid(_) => anyhow::Error::from(BadSetting(error.to_string())),
        ConfigError::Read { .. } => {
            let text = bin_daemon::exit::chain(&error);
            anyhow::Error::from(BadSetting(text))
        }
    })?;
    logging::init(log_config(&resolved.config));
    for warning in &resolved.warnings {
        tracing::warn!("{warning}");
    }
    kubelet_agent::memory::begin();
    let supervisor = Supervisor::of_this_process().context("failed to reach the service manager")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(MAX_BLOCKING)
        .enable_all()
        .build()
        .context("failed to start threads")?;
    let result = runtime.block_on(kubelet(options(&flags, resolved.config), supervisor));
    // What still blocks (a volume that hangs) must not keep the process.
    runtime.shutdown_background();
    result
}

fn options(flags: &Flags, config: KubeletConfiguration) -> Options {
    let root = PathBuf::from(flags.root_dir.clone().unwrap_or_else(|| ROOT.to_owned()));
    let cert_dir = flags
        .cert_dir
        .clone()
        .map_or_else(|| root.join("pki"), PathBuf::from);
    // It may come later.
    let tokens = cert_dir.join(TOKENS);
    Options {
        config,
        tokens: Some(tokens),
        local_client: Some(PathBuf::from(LOCAL_CLIENT)),
        root,
        cert_dir,
        node_name: flags.hostname_override.clone(),
        node_ip: flags.node_ip.clone(),
        labels: flags.node_labels.clone(),
    }
}

fn log_config(config: &KubeletConfiguration) -> LogConfig {
    LogConfig {
        level: if config.logging.verbosity >= 4 {
            Level::Debug
        } else {
            Level::Info
        },
        format: if config.logging.format == "json" {
            Format::Json
        } else {
            Format::Text
        },
    }
}

async fn kubelet(options: Options, supervisor: Supervisor) -> Result<()> {
    let mut signals = Signals::listen().context("failed to watch signals")?;
    let agent = tokio::select! {
        prepared = Agent::prepare(options) => prepared.map_err(|error| match error {
            AgentError::Setting(text) => anyhow::Error::from(BadSetting(text)),
            other => other.into(),
        })?,
        () = stop(&mut signals) => return Ok(()),
    };
    supervisor.ready();
    if let Some(address) = agent.secure_address() {
        tracing::info!(%address, "the kubelet is ready");
    }
    let supervisor = Arc::new(supervisor);
    let alive = supervisor.clone();
    tokio::spawn(async move { alive.keep_alive().await });
    let ended = agent.run(stop(&mut signals)).await;
    supervisor.stopping();
    Ok(ended?)
}

/// Waits for a signal that ends the kubelet. What SIGHUP would read again is read at every start.
async fn stop(signals: &mut Signals) {
    while signals.next().await == Wish::Reload {
        tracing::warn!(
            "the configuration is only read at the start: restart the kubelet, its pods go on running"
        );
    }
}
