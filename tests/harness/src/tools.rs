//! Where the executables are that nodes run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use tests_images::Testbed;

/// One of ours: in `$ORLOP_BIN_DIR`, or in `orlop` in cargo's target folder where `hack/build` puts them.
///
/// # Errors
/// It isn't there.
pub fn ours(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("ORLOP_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
            bed()?.workspace().join(target).join("orlop")
        }
    };
    let path = dir.join(name);
    ensure!(
        path.is_file(),
        "`{}` doesn't exist: run `hack/build`",
        path.display()
    );
    Ok(path)
}

/// A program of the machine, by its name.
///
/// # Errors
/// It isn't in PATH.
pub fn installed(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("`{name}` isn't installed: run `hack/deps`"))
}

/// The folder of crictl and critest, which are built once.
///
/// # Errors
/// They can't be built.
pub fn cri_tools() -> Result<&'static Path> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    DIR.get_or_init(|| built_cri_tools().map_err(|e| format!("{e:#}")))
        .as_deref()
        .map_err(|e| anyhow!("{e}"))
}

fn built_cri_tools() -> Result<PathBuf> {
    let script = bed()?.workspace().join("hack/cri-tools");
    let output = Command::new(&script)
        .output()
        .with_context(|| format!("failed to run `{}`", script.display()))?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        script.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// The repository.
///
/// # Errors
/// This isn't run in it.
pub fn workspace() -> Result<PathBuf> {
    Ok(bed()?.workspace().to_owned())
}

/// Folders that a node needs of the machine: the repository, what is built from it, and where temporary files go.
pub(crate) fn folders() -> Result<Vec<PathBuf>> {
    let workspace = bed()?.workspace().to_owned();
    let variables = ["CARGO_TARGET_DIR", "ORLOP_BIN_DIR"]
        .into_iter()
        .filter_map(std::env::var_os);
    let mut folders: Vec<PathBuf> = variables.map(|dir| workspace.join(dir)).collect();
    folders.extend([workspace, std::env::temp_dir()]);
    folders.retain(|dir| dir.is_dir());
    Ok(folders)
}

pub(crate) fn bed() -> Result<Testbed> {
    Testbed::open()
}
