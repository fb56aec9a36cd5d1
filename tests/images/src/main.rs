//! `tests-images build [--out DIR]`, `tests-images registry [--config IP:PORT]` and `tests-images push --registry HOST:PORT [--layout DIR]`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;

#[derive(Parser)]
#[command(name = "tests-images", about = "The images that the tests run")]
enum Command {
    /// Build the layout and print where it is
    Build {
        /// Also put it here
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Make the storage folder of a registry that has every image, and print where it is
    Registry {
        /// Print a configuration for docker-registry instead, that listens there (IP:PORT)
        #[arg(long)]
        config: Option<String>,
    },
    /// Send a layout to a registry that speaks plain HTTP
    Push {
        /// Where it listens, as HOST:PORT
        #[arg(long)]
        registry: String,
        /// The layout; the built one when not given
        #[arg(long)]
        layout: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    let mut progress = |what: &str| eprintln!("tests-images: {what}");
    match Command::parse() {
        Command::Build { out } => {
            let layout = tests_images::ensure_layout(&mut progress)?;
            match out {
                None => println!("{}", layout.display()),
                Some(out) => {
                    copy(&layout, &out)?;
                    println!("{}", out.display());
                }
            }
        }
        Command::Registry { config } => {
            let root = tests_images::ensure_registry(&mut progress)?;
            match config {
                Some(address) => print!("{}", tests_images::registry::config(&root, &address)),
                None => println!("{}", root.display()),
            }
        }
        Command::Push { registry, layout } => {
            let layout = match layout {
                Some(layout) => layout,
                None => tests_images::ensure_layout(&mut progress)?,
            };
            println!("pushed {} images", tests_images::push::push(&registry, &layout)?);
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("failed to create `{}`", to.display()))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)
                .with_context(|| format!("failed to write `{}`", target.display()))?;
        }
    }
    Ok(())
}
