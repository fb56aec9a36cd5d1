//! The CRI daemon: pods and images of one node, for a kubelet or `crictl`, on a Unix socket.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use bin_daemon::config::load;
use bin_daemon::exit::{BadSetting, report};
use bin_daemon::logging::{self, Format, Level, LogConfig, Logging};
use bin_daemon::signals::{Signals, Wish};
use bin_daemon::supervisor::Supervisor;
use clap::Parser;
use cri_server::config::{Config, LogFormat, LogLevel, LogSettings};
use cri_server::lifecycle::KillPoint;
use cri_server::own_cgroup;
use cri_server::server::{Environment, serve};
use tokio::sync::{mpsc, oneshot};

/// Runs pods for a kubelet: the Container Runtime Interface on a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "orlop-cri", version)]
struct Args {
    /// The configuration; its drop-ins are in `<file>.d/`.
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Listens here instead of where the configuration says.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Keeps images and records here instead of where the configuration says.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Keeps what a reboot may lose here instead of where the configuration says.
    #[arg(long)]
    state: Option<PathBuf>,
    /// Checks the configuration and ends.
    #[arg(long)]
    validate: bool,
    /// Prints the places where `ORLOP_CRI_KILL_AT` kills the daemon, for tests of recovery, and ends.
    #[arg(long, hide = true)]
    list_kill_points: bool,
}

const DEFAULT_CONFIG: &str = "/etc/orlop/orlop-cri.toml";
/// Few: a daemon that mostly waits needs no thread per core.
const MAX_WORKERS: usize = 4;
/// What may block at once: files, mounts, plugins.
const MAX_BLOCKING: usize = 128;

fn main() -> ExitCode {
    report("orlop-cri", run(Args::parse()))
}

fn run(args: Args) -> Result<()> {
    if args.list_kill_points {
        KillPoint::names().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let config = read(&args)?;
    if args.validate {
        println!("the configuration is valid");
        return Ok(());
    }
    let kill = kill_point()?;
    let logging = logging::init(log_config(config.log));
    let workers = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, MAX_WORKERS);
    cri_server::memory::begin();
    let supervisor = Supervisor::of_this_process().context("failed to reach the service manager")?;
    let unit = own_cgroup::settle().context("failed to move into a cgroup of the daemon's own")?;
    if let Some(unit) = &unit {
        let checked = config.check_unit(unit.path());
        checked.map_err(|error| BadSetting(error.to_string()))?;
    }
    let shims_cgroup = unit.map(|unit| unit.shims());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(MAX_BLOCKING)
        .enable_all()
        .build()
        .context("failed to start threads")?;
    let result = runtime.block_on(daemon(args, config, kill, logging, (supervisor, shims_cgroup)));
    // What still blocks (a plugin that hangs) must not keep the process.
    runtime.shutdown_background();
    result
}

fn read(args: &Args) -> Result<Config> {
    let required = args.config != Path::new(DEFAULT_CONFIG);
    let mut config: Config = load(&args.config, required)?;
    for (to, from) in [
        (&mut config.socket, &args.socket),
        (&mut config.root, &args.root),
        (&mut config.state, &args.state),
    ] {
        if let Some(path) = from {
            to.clone_from(path);
        }
    }
    config.check().map_err(|error| BadSetting(error.to_string()))?;
    Ok(config)
}

fn log_config(settings: LogSettings) -> LogConfig {
    LogConfig {
        level: match settings.level {
            LogLevel::Error => Level::Error,
            LogLevel::Warn => Level::Warn,
            LogLevel::Info => Level::Info,
            LogLevel::Debug => Level::Debug,
            LogLevel::Trace => Level::Trace,
        },
        format: match settings.format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        },
    }
}

fn kill_point() -> Result<KillPoint> {
    match std::env::var("ORLOP_CRI_KILL_AT") {
        Err(_) => Ok(KillPoint::NONE),
        Ok(text) => text
            .parse()
            .map_err(|error| BadSetting(format!("ORLOP_CRI_KILL_AT: {error}")).into()),
    }
}

async fn daemon(
    args: Args,
    config: Config,
    kill: KillPoint,
    logging: Logging,
    (supervisor, shims_cgroup): (Supervisor, Option<String>),
) -> Result<()> {
    let supervisor = Arc::new(supervisor);
    let mut signals = Signals::listen().context("failed to watch signals")?;
    let (reload, reloads) = mpsc::channel(1);
    let (stop, stopped) = oneshot::channel();
    let told = supervisor.clone();
    tokio::spawn(async move {
        loop {
            match signals.next().await {
                Wish::Stop => break,
                Wish::Reload => {
                    told.reloading();
                    match read(&args) {
                        Ok(config) => {
                            logging.set_level(log_config(config.log).level);
                            // Not waited for: a stop must be heard while the last one is still being taken up.
                            match reload.try_send(config) {
                                Ok(()) => {}
                                Err(mpsc::error::TrySendError::Closed(_)) => break,
                                Err(mpsc::error::TrySendError::Full(_)) => tracing::warn!(
                                    "the new configuration is not used, as an earlier one is still waiting; reload again"
                                ),
                            }
                        }
                        Err(error) => tracing::error!("the new configuration is not used: {error:#}"),
                    }
                    told.reloaded();
                }
            }
        }
        told.stopping();
        // Nobody waits for it only when the daemon is ending anyway.
        let _ = stop.send(());
    });
    let environment = Environment {
        plugins: Some(Arc::new(cni_plugins::Builtin::new())),
        kill,
        reloads,
        shims_cgroup,
        ready: {
            let supervisor = supervisor.clone();
            Box::new(move || supervisor.ready())
        },
    };
    tokio::spawn(async move { supervisor.keep_alive().await });
    let shutdown = async {
        let _ = stopped.await;
    };
    Ok(Box::pin(serve(config, environment, shutdown)).await?)
}
