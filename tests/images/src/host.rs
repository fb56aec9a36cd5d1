//! Building the test host, statically, with the flags of `hack/build`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::testbed::{Testbed, content_key};

/// The executable, built if its sources changed.
pub fn ensure(bed: &Testbed, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let folder = bed.workspace().join("tests/host");
    let version = match Command::new("rustc").arg("-vV").output() {
        // A guest has no compiler, only what was built where it was booted.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return newest(bed),
        output => output.context("failed to run `rustc`")?.stdout,
    };
    let key = content_key(&[&version], &[&folder.join("Cargo.toml"), &folder.join("src")])?;
    let built = bed.ensure(&format!("test-host-{key}"), |dir| {
        progress("building the test host");
        let version = String::from_utf8_lossy(&version);
        let triple = version
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .context("`rustc -vV` names no host")?;
        let flags = format!(
            "CARGO_TARGET_{}_RUSTFLAGS",
            triple.to_uppercase().replace('-', "_")
        );
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(bed.workspace())
            .args([
                "build",
                "--quiet",
                "--profile",
                "static",
                "--target",
                triple,
                "-p",
                "tests-host",
            ])
            .args(["--message-format", "json-render-diagnostics"])
            .env(flags, "-C target-feature=+crt-static -C relocation-model=static")
            .output()
            .context("failed to run `cargo`")?;
        ensure!(
            output.status.success(),
            "cargo failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let executable = executable(&String::from_utf8_lossy(&output.stdout))?;
        std::fs::copy(&executable, dir.join("test-host"))
            .with_context(|| format!("failed to copy `{}`", executable.display()))?;
        Ok(())
    })?;
    Ok(built.join("test-host"))
}

/// The one that was built last.
fn newest(bed: &Testbed) -> Result<PathBuf> {
    let names = std::fs::read_dir(bed.root())
        .with_context(|| format!("failed to list `{}`", bed.root().display()))?;
    names
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("test-host-"))
        .map(|entry| entry.path().join("test-host"))
        .max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
        .context("there is neither `rustc` nor a test host that was built before")
}

/// Where cargo says that it put the executable.
fn executable(messages: &str) -> Result<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .next_back()
        .context("cargo named no executable")
}
