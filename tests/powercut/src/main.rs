//! What a power cut does to a node: virtual machines lose power while images and pods come and go.
//!
//! The story of a campaign ([`campaign`]). A virtual machine gets two disks that outlive it: one for what the node keeps
//! across reboots, one for the workload's [`journal`]. It formats the first and says how things are where the power
//! stays on ([`audit::reference`]). Then, as often as asked: it boots, the [`audit`] looks for what the last cut broke,
//! the [`work`]load pulls, removes, runs and stops, and at a moment that the seed chose the emulator is killed. What its
//! host had in memory is kept, what the guest's kernel had in memory is gone; and that kernel is told to keep everything
//! there as long as it can, with a file system that doesn't help those who forget to flush.
//!
//! A test that can't fail proves nothing: with `--lose PART`, flushes of files whose path contains PART do nothing, and
//! the campaign must find something.

mod audit;
mod bed;
mod campaign;
mod cri;
mod guest;
mod journal;
mod random;
mod tree;
mod work;

use anyhow::Result;
use clap::Parser;

/// Cuts a node's power, again and again, and looks whether anything is lost or left over.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask powercut")]
struct Args {
    #[command(flatten)]
    campaign: campaign::Wish,
    #[command(subcommand)]
    inside: Option<Inside>,
}

#[derive(Debug, clap::Subcommand)]
enum Inside {
    /// What runs inside the virtual machine
    #[command(subcommand, hide = true)]
    Guest(guest::Task),
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.inside {
        Some(Inside::Guest(task)) => guest::run(task),
        None => campaign::run(&args.campaign),
    }
}
