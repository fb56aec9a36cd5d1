//! Writing images as an OCI image layout: `oci-layout`, `index.json`, `blobs/sha256`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::set::{Form, Image, LayerBytes, architecture};
use crate::testbed::hex;

/// The annotation that holds an image's reference.
pub const REFERENCE: &str = "org.opencontainers.image.ref.name";

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Writes all images into `dir`, which exists. Blobs that several images share are written once.
pub fn write(dir: &Path, images: &[Image]) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("failed to create `{}`", blobs.display()))?;
    let mut manifests = Vec::new();
    for image in images {
        let top =
            write_image(&blobs, image).with_context(|| format!("failed to write {:?}", image.references))?;
        for reference in &image.references {
            let mut entry = top.clone();
            entry["annotations"] = json!({ REFERENCE: reference });
            manifests.push(entry);
        }
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    fs::write(dir.join("index.json"), serde_json::to_vec_pretty(&index)?)?;
    fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// The digest of some bytes, with its algorithm.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Writes an image's blobs; the descriptor of its manifest or index.
fn write_image(blobs: &Path, image: &Image) -> Result<Value> {
    let (manifest_type, config_type) = match image.form {
        Form::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG),
        Form::Oci | Form::Index => (OCI_MANIFEST, OCI_CONFIG),
    };
    let layers = image
        .layers
        .iter()
        .map(|layer| {
            let kind = match image.form {
                Form::Docker => DOCKER_LAYER.to_owned(),
                Form::Oci | Form::Index => {
                    format!("application/vnd.oci.image.layer.v1.tar+{}", layer.compression)
                }
            };
            blob(blobs, &kind, &layer.blob)
        })
        .collect::<Result<Vec<_>>>()?;
    let config = match &image.broken_config {
        Some(bytes) => bytes.clone(),
        None => serde_json::to_vec(&config(&image.config, &image.layers, architecture()))?,
    };
    let config = blob(blobs, config_type, &config)?;
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers });
    let manifest = blob(blobs, manifest_type, &serde_json::to_vec(&manifest)?)?;
    if image.form != Form::Index {
        return Ok(manifest);
    }

    // A client that takes the first manifest of an index gets a foreign one.
    let foreign = blob(blobs, OCI_CONFIG, &serde_json::to_vec(&config_for_nobody(image))?)?;
    let foreign =
        json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": foreign, "layers": layers });
    let mut foreign = blob(blobs, OCI_MANIFEST, &serde_json::to_vec(&foreign)?)?;
    foreign["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    let mut native = manifest;
    native["platform"] = json!({ "os": "linux", "architecture": architecture() });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [foreign, native] });
    blob(blobs, OCI_INDEX, &serde_json::to_vec(&index)?)
}

fn config_for_nobody(image: &Image) -> Value {
    config(&image.config, &image.layers, "s390x")
}

fn config(config: &Value, layers: &[LayerBytes], architecture: &str) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(&layer.plain)).collect();
    let history: Vec<Value> = layers
        .iter()
        .map(|_| json!({ "created_by": "tests-images" }))
        .collect();
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    })
}

fn blob(blobs: &Path, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let digest = digest(bytes);
    let path = blobs.join(digest.trim_start_matches("sha256:"));
    if !path.exists() {
        fs::write(&path, bytes).with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{self, Programs};

    fn programs() -> Programs {
        Programs {
            busybox: b"busybox".to_vec(),
            applets: ["busybox", "sh", "ls"].map(str::to_owned).to_vec(),
            test_host: b"test host".to_vec(),
        }
    }

    #[test]
    fn two_layouts_of_the_same_programs_are_the_same() {
        let written: Vec<_> = (0..2)
            .map(|_| {
                let dir = tempfile::tempdir().unwrap();
                write(dir.path(), &set::all(&programs()).unwrap()).unwrap();
                let mut blobs: Vec<_> = fs::read_dir(dir.path().join("blobs/sha256"))
                    .unwrap()
                    .map(|e| e.unwrap().file_name())
                    .collect();
                blobs.sort();
                (blobs, fs::read(dir.path().join("index.json")).unwrap())
            })
            .collect();
        assert!(written[0].0.len() > 50);
        assert!(written[0] == written[1]);
    }

    #[test]
    fn every_reference_is_there_once_and_every_image_id_is_its_own() {
        let images = set::all(&programs()).unwrap();
        let mut references: Vec<_> = images.iter().flat_map(|i| &i.references).collect();
        references.sort();
        let count = references.len();
        references.dedup();
        assert_eq!(references.len(), count);
        let mut ids: Vec<_> = images
            .iter()
            .map(|i| digest(&serde_json::to_vec(&config(&i.config, &i.layers, "amd64")).unwrap()))
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), images.len());
    }
}
