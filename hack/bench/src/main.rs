//! Measures Orlop beside its peers, interleaved in one run, so that a noisy machine treats all alike.
//!
//! `oci` times the runtime's command line against whichever of runc and crun is installed; `cri` times a pod's whole
//! life through the CRI against a containerd started beside our daemon. Medians, 90th percentiles and ratios are
//! printed; nothing is asserted, because a time on a shared machine proves nothing by itself.

mod cgroup;
mod cri;
mod machine;
mod oci;
mod report;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

/// Set inside of the namespaces, to the name of the benchmark's own cgroup.
const INSIDE: &str = "ORLOP_BENCH_INSIDE";
/// Where the image layout is: building it needs the network that the namespaces don't have.
const LAYOUT: &str = "ORLOP_BENCH_LAYOUT";

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Measure Orlop beside its peers")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The OCI runtime's command line: orlop-oci, runc, crun
    Oci(oci::Options),
    /// The CRI daemon: orlop-cri, containerd
    Cri(cri::Options),
    /// Print a command's peak resident set, in KiB, on standard error's last line
    #[command(hide = true)]
    Rss {
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let What::Rss { command } = &args.what {
        return oci::print_rss(command);
    }
    if std::env::var_os(INSIDE).is_none() {
        return reexec_in_namespaces(matches!(args.what, What::Cri(_)));
    }
    machine::print();
    match args.what {
        What::Oci(options) => oci::run(&options),
        What::Cri(options) => cri::run(&options),
        What::Rss { .. } => Ok(()),
    }
}

/// Everything that is measured happens in namespaces that end with us.
fn reexec_in_namespaces(with_images: bool) -> Result<()> {
    let cgroup = format!("orlop-bench-{}", std::process::id());
    let mut command = std::process::Command::new("unshare");
    if with_images {
        command.env(
            LAYOUT,
            tests_images::ensure_layout(&mut |what: &str| eprintln!("{what}"))?,
        );
    }
    let status = command
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, &cgroup)
        .status()
        .context("failed to run `unshare` (util-linux)")?;
    // Every process in them ended with the namespaces.
    let removed = cgroup::remove(&cgroup);
    ensure!(status.success(), "the benchmark failed: {status}");
    removed
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn options_have_defaults_and_are_checked() {
        Args::command().debug_assert();
        let What::Cri(options) = Args::parse_from(["bench", "cri", "--rounds", "3"]).what else {
            panic!("it is `cri`")
        };
        assert_eq!((options.rounds, options.idle_ms, options.pods), (3, 50, 20));
        for wrong in [
            &["bench"][..],
            &["bench", "cri", "--rounds", "0"],
            &["bench", "cri", "--pods", "0"],
            &["bench", "cri", "--rounds", "many"],
        ] {
            assert!(Args::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
