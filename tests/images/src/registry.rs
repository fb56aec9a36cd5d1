//! A registry's storage folder, written straight from a layout.
//!
//! Pushing every image takes a second or more, and each test node has a registry of its own. So the folder that
//! docker-registry keeps (version 2 of its file system driver: `blobs` by digest, `link` files in each repository) is
//! made once and served read-only to all nodes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::layout::REFERENCE;
use crate::push::{read_json, split};

/// Writes the storage folder of all images of `layout` into `root`, which exists.
pub fn write(root: &Path, layout: &Path) -> Result<()> {
    let index: Value = read_json(&layout.join("index.json"))?;
    let storage = Storage {
        blobs: layout.join("blobs/sha256"),
        v2: root.join("docker/registry/v2"),
    };
    for entry in index["manifests"]
        .as_array()
        .context("index.json has no manifests")?
    {
        let reference = entry["annotations"][REFERENCE]
            .as_str()
            .context("a manifest has no reference")?;
        let (repository, tag) =
            split(reference).with_context(|| format!("`{reference}` isn't host/path:tag"))?;
        storage
            .manifest(repository, entry, Some(tag))
            .with_context(|| format!("failed to store `{reference}`"))?;
    }
    Ok(())
}

/// The configuration with which docker-registry serves such a folder, read-only, on `address` (`ip:port`).
#[must_use]
pub fn config(root: &Path, address: &str) -> String {
    format!(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\n  maintenance:\n    uploadpurging:\n      enabled: false\n    readonly:\n      \
         enabled: true\nhttp:\n  addr: {address}\n",
        root.display()
    )
}

struct Storage {
    blobs: std::path::PathBuf,
    v2: std::path::PathBuf,
}

impl Storage {
    fn manifest(&self, repository: &str, descriptor: &Value, tag: Option<&str>) -> Result<()> {
        let hex = self.blob(descriptor)?;
        let manifest: Value = read_json(&self.blobs.join(hex))?;
        for child in manifest["manifests"].as_array().into_iter().flatten() {
            self.manifest(repository, child, None)?;
        }
        let home = self.v2.join("repositories").join(repository);
        for blob in manifest["layers"]
            .as_array()
            .into_iter()
            .flatten()
            .chain(manifest.get("config"))
        {
            let hex = self.blob(blob)?;
            link(&home.join("_layers/sha256").join(hex), hex)?;
        }
        link(&home.join("_manifests/revisions/sha256").join(hex), hex)?;
        if let Some(tag) = tag {
            let tag = home.join("_manifests/tags").join(tag);
            link(&tag.join("current"), hex)?;
            link(&tag.join("index/sha256").join(hex), hex)?;
        }
        Ok(())
    }

    /// Stores a blob; its digest without the algorithm.
    fn blob<'d>(&self, descriptor: &'d Value) -> Result<&'d str> {
        let digest = descriptor["digest"]
            .as_str()
            .context("a descriptor has no digest")?;
        let hex = digest.strip_prefix("sha256:").context("a digest isn't SHA-256")?;
        let home = self
            .v2
            .join("blobs/sha256")
            .join(hex.get(..2).context("a digest is too short")?)
            .join(hex);
        let data = home.join("data");
        if !data.exists() {
            fs::create_dir_all(&home).with_context(|| format!("failed to create `{}`", home.display()))?;
            fs::hard_link(self.blobs.join(hex), &data)
                .or_else(|_| fs::copy(self.blobs.join(hex), &data).map(|_| ()))
                .with_context(|| format!("failed to store `{}`", data.display()))?;
        }
        Ok(hex)
    }
}

fn link(dir: &Path, hex: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("failed to create `{}`", dir.display()))?;
    let path = dir.join("link");
    fs::write(&path, format!("sha256:{hex}")).with_context(|| format!("failed to write `{}`", path.display()))
}
