//! What must hold after a power cut, when the daemon has started again.
//!
//! Promised images are there. Every image that is listed gives a container that runs, and each of its layers and blobs
//! is, to the last attribute, what it was in a machine whose power stayed on. Once the pods of the earlier boot are
//! removed, nothing of them is left, and new ones run. The registry is down meanwhile: what is damaged must be repaired
//! from what is there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tests_harness::Snapshot;

use crate::bed;
use crate::cri::Cri;
use crate::journal::{Deed, Journal, Promises, When};
use crate::tree;

const STORE: &str = "/var/lib/orlop/cri/images";
/// How long what is deleted in the background may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How things are where the power stays on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    /// Digests of the layers' trees, by the layers' names.
    layers: BTreeMap<String, String>,
    /// What stays of a node whose pods are gone.
    residue: Vec<String>,
}

/// Pulls all images, runs a pod and removes it: what there is then is right.
pub(crate) async fn reference(cri: &mut Cri, images: &[&str]) -> Result<Reference> {
    for image in images {
        cri.pull(image).await?;
    }
    runs(cri, images[0]).await?;
    Ok(Reference {
        layers: layers()?,
        residue: residue()?,
    })
}

/// Looks for everything that is wrong; with `empty`, removes all images and looks whether that leaves nothing.
pub(crate) async fn audit(
    cri: &mut Cri,
    journal: &mut Journal,
    promises: &Promises,
    right: &Reference,
    empty: bool,
) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let names = cri.image_names().await?;
    for image in promises.images() {
        if !names.iter().any(|name| name == image) {
            findings.push(format!("{image} was pulled and never removed, and is not there"));
        }
    }
    if let Err(error) = cri.remove_all_pods().await {
        findings.push(format!("pods of the earlier boot can't be removed: {error:#}"));
    }
    for image in &names {
        if let Err(error) = runs(cri, image).await {
            findings.push(format!("{image} is listed but can't be used: {error:#}"));
        }
    }
    findings.extend(damaged(right)?);
    findings.extend(leftovers(right)?);
    if empty {
        for image in &names {
            journal.write(When::Begun, Deed::Remove, image)?;
            if let Err(error) = cri.remove_image(image).await {
                findings.push(format!("{image} can't be removed: {error:#}"));
            }
        }
        findings.extend(not_empty()?);
    }
    Ok(findings)
}

/// A pod comes, its container runs, and both go.
async fn runs(cri: &mut Cri, image: &str) -> Result<()> {
    let name = "audit";
    let pod = cri.run_pod(name, 0).await?;
    let outcome = async {
        let container = cri.create((&pod, name), "c", image, "exit 0").await?;
        cri.start(&container).await?;
        let code = cri.ended(&container).await?;
        anyhow::ensure!(code == 0, "its shell ended with {code}");
        cri.remove_container(&container).await
    };
    let outcome = outcome.await;
    outcome.and(cri.remove_pod(&pod).await)
}

fn names(dir: &str) -> Result<Vec<String>> {
    let dir = Path::new(STORE).join(dir);
    let entries = fs::read_dir(&dir).with_context(|| format!("failed to list `{}`", dir.display()))?;
    let mut found = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    found.sort();
    Ok(found)
}

fn layers() -> Result<BTreeMap<String, String>> {
    let digest = |name: String| {
        let root = Path::new(STORE).join("layers").join(&name).join("fs");
        Ok((name, tree::digest(&root)?))
    };
    names("layers")?.into_iter().map(digest).collect()
}

/// Layers and blobs that aren't what their names say.
fn damaged(right: &Reference) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (name, digest) in layers()? {
        match right.layers.get(&name) {
            Some(known) if *known == digest => {}
            Some(_) => findings.push(format!("layer {name} is not what it should be")),
            None => findings.push(format!("layer {name} belongs to no image")),
        }
    }
    for name in names("blobs/sha256")? {
        if tree::file_digest(&Path::new(STORE).join("blobs/sha256").join(&name))? != name {
            findings.push(format!("blob {name} has another digest"));
        }
    }
    Ok(findings)
}

fn residue() -> Result<Vec<String>> {
    let mut lines = Snapshot::of_machine(bed::CGROUP)?.lines();
    // Their file system differs from round to round, and they are the bed's.
    let of_the_bed = |line: &String| {
        bed::STATE
            .iter()
            .any(|dir| line.starts_with(&format!("mount: {dir} (")))
    };
    lines.retain(|line| !of_the_bed(line));
    Ok(lines)
}

/// What is there more often than it should be, once what is on its way out had time to go.
fn leftovers(right: &Reference) -> Result<Vec<String>> {
    let begun = Instant::now();
    loop {
        let left = surplus(&right.residue, residue()?);
        if left.is_empty() || begun.elapsed() > PATIENCE {
            return Ok(left
                .into_iter()
                .map(|line| format!("left over: {line}"))
                .collect());
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn surplus(right: &[String], there: Vec<String>) -> Vec<String> {
    let mut known = right.to_vec();
    there
        .into_iter()
        .filter(|line| match known.iter().position(|known| known == line) {
            Some(at) => {
                known.swap_remove(at);
                false
            }
            None => true,
        })
        .collect()
}

fn not_empty() -> Result<Vec<String>> {
    let begun = Instant::now();
    loop {
        let mut left = Vec::new();
        for dir in ["blobs/sha256", "layers", "images", "snapshots", "trash", "ingest"] {
            left.extend(
                names(dir)?
                    .into_iter()
                    .map(|name| format!("left over: {dir}/{name}")),
            );
        }
        if left.is_empty() || begun.elapsed() > PATIENCE {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_more_often_there_is_left_over() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(surplus(&lines("a b"), lines("b a")), Vec::<String>::new());
        assert_eq!(surplus(&lines("a b"), lines("b c b")), lines("c b"));
    }
}
