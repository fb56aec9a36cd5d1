//! The cache below `target/testbed`: a folder for each thing that was built, named by the content it was built from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The cache's folder.
#[derive(Debug, Clone)]
pub struct Testbed {
    workspace: PathBuf,
    root: PathBuf,
}

impl Testbed {
    /// The cache of this workspace, below `CARGO_TARGET_DIR` or `target`.
    pub fn open() -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let workspace = here
            .ancestors()
            .nth(2)
            .context("the crate isn't two folders deep")?
            .to_owned();
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        let root = workspace.join(target).join("testbed");
        fs::create_dir_all(&root).with_context(|| format!("failed to create `{}`", root.display()))?;
        Ok(Self { workspace, root })
    }

    /// The repository's folder.
    #[must_use]
    pub fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// The cache's folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder `name`, made by `build` if it isn't there. `build` fills a folder that becomes visible under its
    /// name only when it is complete; others who want the same wait for the first.
    pub fn ensure(&self, name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let done = self.root.join(name);
        if done.exists() {
            return Ok(done);
        }
        let lock_path = self.root.join(format!(".{name}.lock"));
        let lock = File::create(&lock_path)
            .with_context(|| format!("failed to create `{}`", lock_path.display()))?;
        lock.lock()
            .with_context(|| format!("failed to lock `{}`", lock_path.display()))?;
        if done.exists() {
            return Ok(done);
        }
        let half = self.root.join(format!(".{name}.half"));
        if half.exists() {
            fs::remove_dir_all(&half).with_context(|| format!("failed to remove `{}`", half.display()))?;
        }
        fs::create_dir(&half).with_context(|| format!("failed to create `{}`", half.display()))?;
        build(&half)
            .with_context(|| format!("failed to build `{name}` (half of it is in `{}`)", half.display()))?;
        fs::rename(&half, &done).with_context(|| format!("failed to rename `{}`", half.display()))?;
        Ok(done)
    }
}

/// A short name for some bytes and the files of some folders (or single files), names included.
pub fn content_key(bytes: &[&[u8]], paths: &[&Path]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    };
    for part in bytes {
        add(part);
    }
    for path in paths {
        for file in files_below(path)? {
            add(file
                .strip_prefix(path)
                .unwrap_or(&file)
                .as_os_str()
                .as_encoded_bytes());
            add(&fs::read(&file).with_context(|| format!("failed to read `{}`", file.display()))?);
        }
    }
    Ok(hex(&hash.finalize())[..16].to_owned())
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn files_below(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("failed to list `{}`", path.display()))? {
        found.extend(files_below(&entry?.path())?);
    }
    found.sort();
    Ok(found)
}
