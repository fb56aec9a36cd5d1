//! The developers' commands: `cargo xtask help` lists them, `cargo xtask ci` is all that CI runs.

mod ci;
mod deps;
mod features;
mod guests;
mod sh;
mod soak;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Orlop's developers' commands")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that CI runs, or the steps named
    Ci {
        /// Steps to run (all when none is named)
        steps: Vec<String>,
        /// Print the steps and stop
        #[arg(long)]
        list: bool,
    },
    /// Check who imports whom against the rules of the design
    CheckDeps,
    /// Check docs/features.md: every named test exists and, with a log, ran and passed
    CheckFeatures {
        /// The output of `cargo test` in which the tests must have passed
        #[arg(long)]
        ran: Option<std::path::PathBuf>,
        /// Write the README's table instead of checking it
        #[arg(long)]
        write: bool,
    },
    /// Make the generated files anew
    Gen,
    /// Compare with the generated files' sources without writing
    CheckGen,
    /// Run fuzzers, kills and suites for hours, until something fails
    Soak(soak::Wish),
    /// Run test suites in Debian guests with systemd and unified cgroup v2
    Vm(guests::Wish),
    /// Cut the power of guests while images and pods come and go, and look what is lost: `-n N`, `--seed S`, `--help`
    Powercut {
        /// How often and how
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure Orlop beside its peers: `bench oci` or `bench cri`, then `--help` for the options; with `--vm` in a guest
    Bench {
        /// What to measure and how
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> Result<()> {
    sh::enter_workspace()?;
    match Args::parse().command {
        Command::Ci { list: true, .. } => {
            ci::list();
            Ok(())
        }
        Command::Ci { steps, .. } => ci::run(&steps),
        Command::CheckDeps => deps::check(),
        Command::CheckFeatures { write: true, .. } => features::write_readme(),
        Command::CheckFeatures { ran, .. } => features::check(ran.as_deref()),
        Command::Gen => generated(""),
        Command::CheckGen => generated("check-"),
        Command::Soak(wish) => soak::run(wish),
        Command::Vm(wish) => guests::run(&wish),
        Command::Powercut { args } => {
            sh::run("hack/vm", &["build"])?;
            let mut command = vec!["run", "--quiet", "--release", "--package", "tests-powercut", "--"];
            command.extend(args.iter().map(String::as_str));
            sh::run("cargo", &command)
        }
        Command::Bench { args } if args.iter().any(|arg| arg == "--vm") => guests::bench(&args),
        Command::Bench { args } => {
            let mut command = vec!["run", "--quiet", "--release", "--package", "hack-bench", "--"];
            command.extend(args.iter().map(String::as_str));
            sh::run("cargo", &command)
        }
    }
}

/// The interfaces that others define: what `hack-gen` calls each, the Go module, its version's name in
/// `hack/versions.env`, and the file.
const INTERFACES: [[&str; 4]; 2] = [
    [
        "cri",
        "k8s.io/cri-api",
        "CRI_API_VERSION",
        "pkg/apis/runtime/v1/api.proto",
    ],
    [
        "nri",
        "github.com/containerd/nri",
        "NRI_VERSION",
        "pkg/api/api.proto",
    ],
];

/// Runs `hack-gen` on every interface's definition, from the Go module that `hack/versions.env` names.
fn generated(prefix: &str) -> Result<()> {
    for [name, module, version, file] in INTERFACES {
        let version = sh::pinned_version(version)?;
        let json = sh::output(
            "go",
            &["mod", "download", "-json", &format!("{module}@{version}")],
        )?;
        let module: serde_json::Value = serde_json::from_str(&json)?;
        let dir = module["Dir"].as_str().unwrap_or_default();
        let (verb, proto) = (format!("{prefix}{name}"), format!("{dir}/{file}"));
        sh::run(
            "cargo",
            &["run", "--quiet", "--package", "hack-gen", "--", &verb, &proto],
        )?;
    }
    Ok(())
}
