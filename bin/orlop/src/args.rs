//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Looks at a node without an API server, through its kubelet.
#[derive(Debug, Parser)]
#[command(name = "orlop", version)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) access: AccessArguments,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How the kubelet is reached; what isn't given comes from the file in $ORLOP_NODE, or /etc/orlop/node-client.yaml.
#[derive(Debug, Default, Args)]
pub(crate) struct AccessArguments {
    /// The kubelet's address [default: https://127.0.0.1:10250]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) kubelet: Option<String>,
    /// A file that holds a token
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// A client certificate, as PEM
    #[arg(long, global = true, value_name = "FILE", requires = "client_key")]
    pub(crate) client_certificate: Option<PathBuf>,
    /// Its key, as PEM
    #[arg(long, global = true, value_name = "FILE", requires = "client_certificate")]
    pub(crate) client_key: Option<PathBuf>,
    /// The kubelet's certificate, or one that signed it, as PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the node's pods
    Pods(PodsArguments),
    /// Prints a container's log
    Logs(LogsArguments),
    /// Runs a command in a container
    Exec(ExecArguments),
    /// Tells all about a pod
    Describe(PodArguments),
    /// Shows where the time of a pod's start went
    Timeline(TimelineArguments),
}

/// Which pod.
#[derive(Debug, Clone, Args)]
pub(crate) struct PodArguments {
    /// The pod: NAME or NAMESPACE/NAME; a static pod's name may lack the node's
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// Its namespace
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PodsArguments {
    /// Only this namespace
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Print whole objects
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Json,
    Yaml,
    Wide,
    Name,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    #[command(flatten)]
    pub(crate) pod: PodArguments,
    /// The container
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Go on as long as the container runs
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Of the container before the current one
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// Only the last lines; -1 is all
    #[arg(long, value_name = "LINES", allow_hyphen_values = true)]
    pub(crate) tail: Option<i64>,
    /// Only what is newer than this: 5s, 2m, 3h
    #[arg(long, value_name = "DURATION")]
    pub(crate) since: Option<String>,
    /// Only what is newer than this time (RFC 3339)
    #[arg(long, value_name = "TIME", conflicts_with = "since")]
    pub(crate) since_time: Option<String>,
    /// At most so many bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) limit_bytes: Option<u64>,
    /// With the time of every line
    #[arg(long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArguments {
    #[command(flatten)]
    pub(crate) pod: PodArguments,
    /// The container
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// With a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TimelineArguments {
    #[command(flatten)]
    pub(crate) pod: PodArguments,
    /// Write it as a trace for Chrome (chrome://tracing, ui.perfetto.dev) as well
    #[arg(long, value_name = "FILE")]
    pub(crate) chrome: Option<PathBuf>,
}
