//! The part that runs inside the virtual machine: once to see how things should be, then once after every boot.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

use crate::audit::{self, Reference};
use crate::bed::{self, Lost};
use crate::journal::{Journal, Promises};
use crate::work;

/// The exit code of a round whose audit found something; any other failure is one of the test itself.
pub(crate) const FOUND: i32 = 3;

/// Where things are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Places {
    /// The storage folder of the registry
    #[arg(long)]
    registry: PathBuf,
    /// The executables: orlop-cri and orlop-shim
    #[arg(long)]
    programs: PathBuf,
    /// Where the disk is mounted that is the node's
    #[arg(long)]
    data: PathBuf,
    /// The journal
    #[arg(long)]
    journal: PathBuf,
}

/// What to do.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Task {
    /// Prints how a node is whose power stays on
    Prepare(Places),
    /// Looks for what a power cut broke, then works until the next one; what `prepare` printed comes by standard input
    Round {
        #[command(flatten)]
        places: Places,
        /// Which operations, in which order
        #[arg(long)]
        seed: u64,
        /// Removes all images after the audit, and looks whether that leaves anything
        #[arg(long)]
        empty: bool,
        /// Ends after the audit
        #[arg(long)]
        last: bool,
        #[command(flatten)]
        lost: Lost,
    },
}

pub(crate) fn run(task: Task) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start")?;
    match task {
        Task::Prepare(places) => prepare(&runtime, &places),
        Task::Round {
            places,
            seed,
            empty,
            last,
            lost,
        } => {
            let right = serde_json::from_reader(std::io::stdin())
                .context("standard input isn't what `prepare` printed")?;
            let wish = Round {
                right,
                seed,
                empty,
                last,
                lost,
            };
            round(&runtime, &places, &wish)
        }
    }
}

fn prepare(runtime: &Runtime, places: &Places) -> Result<()> {
    bed::mount_state(None)?;
    bed::configure(&places.programs.join("orlop-shim"))?;
    let _registry = bed::start_registry(&places.registry)?;
    let none = Lost {
        preload: None,
        lose: None,
    };
    let (_daemon, mut cri) = bed::start_daemon(runtime, &places.programs.join("orlop-cri"), &none)?;
    let mut images = vec![work::POD_IMAGE];
    images.extend(work::IMAGES);
    let reference = runtime
        .block_on(audit::reference(&mut cri, &images))
        .with_context(bed::daemon_log)?;
    println!("{}", serde_json::to_string(&reference)?);
    Ok(())
}

struct Round {
    right: Reference,
    seed: u64,
    empty: bool,
    last: bool,
    lost: Lost,
}

fn round(runtime: &Runtime, places: &Places, wish: &Round) -> Result<()> {
    bed::mount_state(Some(&places.data))?;
    bed::configure(&places.programs.join("orlop-shim"))?;
    let (mut journal, lines) = Journal::open(&places.journal)?;
    let promises = Promises::of(&lines);
    let (_daemon, mut cri) = bed::start_daemon(runtime, &places.programs.join("orlop-cri"), &wish.lost)?;
    let audited = audit::audit(&mut cri, &mut journal, &promises, &wish.right, wish.empty);
    let findings = runtime.block_on(audited).with_context(bed::daemon_log)?;
    if !findings.is_empty() {
        println!(
            "{}\nthe daemon's log:\n{}",
            findings.join("\n"),
            bed::daemon_log()
        );
        // The guest goes next, and everything in it.
        std::process::exit(FOUND);
    }
    println!("whole: {} images promised", promises.images().count());
    if wish.last {
        return Ok(());
    }
    let _registry = bed::start_registry(&places.registry)?;
    work::work(runtime, &cri, journal, wish.seed).with_context(bed::daemon_log)
}
