//! Running programs, with errors that say which.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Goes to the workspace's root, from wherever cargo started us.
pub(crate) fn enter_workspace() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("the workspace is two folders above this package")?;
    std::env::set_current_dir(root).with_context(|| format!("failed to enter `{}`", root.display()))
}

/// Runs a program with our own stdio; anything but success is an error.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).status().with_context(|| {
        format!("failed to run `{program}`: is it installed? (`hack/deps` installs what is missing)")
    })?;
    ensure!(
        status.success(),
        "`{program} {}` failed: {status}",
        args.join(" ")
    );
    Ok(())
}

/// A program's standard output.
pub(crate) fn output(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program).args(args).output().with_context(|| {
        format!("failed to run `{program}`: is it installed? (`hack/deps` installs what is missing)")
    })?;
    if !out.status.success() {
        bail!(
            "`{program} {}` failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    String::from_utf8(out.stdout).with_context(|| format!("`{program}` printed something that isn't UTF-8"))
}

/// A version from `hack/versions.env`.
pub(crate) fn pinned_version(name: &str) -> Result<String> {
    const FILE: &str = "hack/versions.env";
    let text = fs::read_to_string(FILE).with_context(|| format!("failed to read `{FILE}`"))?;
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim().to_owned())
        .with_context(|| format!("`{FILE}` has no `{name}`"))
}
