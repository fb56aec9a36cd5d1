//! Damage on the disk is found and undone.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::testing::{Compression, FakeRegistry, Pushed, open_at, tar_of};
use crate::{Images, PullErrorKind, SnapshotError, SnapshotOptions};

const GZIP: Compression = Compression::Gzip;

struct Bench {
    dir: tempfile::TempDir,
    registry: FakeRegistry,
    pushed: Pushed,
}

/// A store with one image of two layers, closed, as it is after the machine was started again.
async fn bench() -> Bench {
    let registry = FakeRegistry::start();
    let pushed = registry.push(
        "x",
        "1",
        &[tar_of(&[("a/one", "1")]), tar_of(&[("a/two", "2")])],
        GZIP,
    );
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    images.pull(&registry.name("x:1"), None).await.unwrap();
    assert!(images.verify().await.unwrap().repaired.is_empty());
    drop(images);
    fs::write(dir.path().join("boot"), "another").unwrap();
    registry.take_log();
    Bench {
        dir,
        registry,
        pushed,
    }
}

impl Bench {
    fn layer(&self, n: usize) -> PathBuf {
        self.dir.path().join("layers").join(hex(&self.pushed.diff_ids[n]))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(hex(digest))
    }

    /// What a power cut does to file systems that write names before bytes.
    fn zero(path: &Path) {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(0)
            .unwrap();
    }

    async fn open(&self) -> Images {
        open_at(self.dir.path()).await
    }
}

fn hex(digest: &Digest) -> String {
    digest.hex()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_damaged_layer_is_made_again_and_from_disk() {
    let bench = bench().await;
    Bench::zero(&bench.layer(1).join("fs/a/two"));
    let untouched = fs::metadata(bench.layer(0)).unwrap().ino();
    let images = bench.open().await;
    let report = images.verify().await.unwrap();
    assert_eq!(
        (report.checked, report.repaired, report.lost),
        (2, vec![bench.pushed.diff_ids[1]], vec![])
    );
    assert_eq!(fs::read_to_string(bench.layer(1).join("fs/a/two")).unwrap(), "2");
    assert_eq!(fs::metadata(bench.layer(0)).unwrap().ino(), untouched);
    assert!(bench.registry.take_log().is_empty());
    // In this boot nobody looks again.
    drop(images);
    Bench::zero(&bench.layer(1).join("fs/a/two"));
    assert!(bench.open().await.verify().await.unwrap().repaired.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_damage_is_noticed_when_a_container_needs_the_layer() {
    let kinds: [fn(&Path); 6] = [
        |layer| Bench::zero(&layer.join("fs/a/two")),
        |layer| Bench::zero(&layer.join("complete")),
        |layer| fs::remove_file(layer.join("fs/a/two")).unwrap(),
        |layer| fs::remove_dir_all(layer.join("fs")).unwrap(),
        |layer| fs::remove_dir_all(layer).unwrap(),
        |layer| std::os::unix::fs::chown(layer.join("fs/a"), Some(9), None).unwrap(),
    ];
    for (n, damage) in kinds.iter().enumerate() {
        let bench = bench().await;
        damage(&bench.layer(1));
        let images = bench.open().await;
        assert_eq!(images.list().len(), 1);
        let snapshot = images
            .prepare("key", &bench.pushed.id, SnapshotOptions::default())
            .await
            .unwrap();
        assert_eq!(
            fs::read_to_string(snapshot.lower[0].join("a/two")).unwrap(),
            "2",
            "kind {n}"
        );
        assert_eq!(fs::metadata(snapshot.lower[0].join("a")).unwrap().uid(), 0);
        assert!(bench.registry.take_log().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_repaired_is_hidden_and_pulled_again() {
    let bench = bench().await;
    Bench::zero(&bench.layer(0).join("fs/a/one"));
    Bench::zero(&bench.blob(&bench.pushed.layers[0]));
    let images = bench.open().await;
    let lost = images
        .prepare("key", &bench.pushed.id, SnapshotOptions::default())
        .await;
    assert!(matches!(lost, Err(SnapshotError::Damaged { layer, .. }) if layer == bench.pushed.diff_ids[0]));
    assert!(images.list().is_empty() && images.find(&bench.pushed.id).is_none());
    assert!(images.snapshots().is_empty());
    drop(images);
    let images = bench.open().await;
    assert!(images.list().is_empty());
    images.pull(&bench.registry.name("x:1"), None).await.unwrap();
    let log = bench.registry.take_log();
    assert!(
        log.iter()
            .any(|line| line.contains(&bench.pushed.layers[0].to_string()))
    );
    assert!(
        !log.iter()
            .any(|line| line.contains(&bench.pushed.layers[1].to_string())),
        "{log:?}"
    );
    images
        .prepare("key", &bench.pushed.id, SnapshotOptions::default())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_config_or_record_takes_the_image_and_nothing_else() {
    for what in ["config", "record"] {
        let bench = bench().await;
        let id: Digest = bench.pushed.id.parse().unwrap();
        let record = bench.dir.path().join("images").join(format!("{}.json", id.hex()));
        Bench::zero(if what == "config" { bench.blob(&id) } else { record }.as_path());
        let images = bench.open().await;
        assert!(images.list().is_empty(), "{what}");
        images.pull(&bench.registry.name("x:1"), None).await.unwrap();
        assert_eq!(images.list().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_is_fetched_again_when_it_is_needed() {
    let bench = bench().await;
    // Another image with the same layer blob, after the first one's layer was lost with its record.
    fs::remove_dir_all(bench.layer(0)).unwrap();
    let blob = bench.blob(&bench.pushed.layers[0]);
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&blob, bytes).unwrap();
    let images = bench.open().await;
    images.pull(&bench.registry.name("x:1"), None).await.unwrap();
    assert_eq!(fs::read_to_string(bench.layer(0).join("fs/a/one")).unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_layers_of_a_registry_are_refused() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let tar = tar_of(&[("a", "1")]);
    let good = GZIP.compress(&tar);
    let mut flipped = good.clone();
    let middle = good.len() / 2;
    flipped[middle] ^= 0xff;
    let other = GZIP.compress(&tar_of(&[("a", "2")]));
    for (name, blob) in [
        ("flipped", flipped),
        ("truncated", good[..good.len() - 9].to_vec()),
        ("trailing", [&good[..], b"garbage"].concat()),
        ("other", other),
        (
            "text",
            b"this is no archive at all, however long one looks at it".to_vec(),
        ),
    ] {
        let (manifest, blobs, pushed) = crate::testing::image_of(std::slice::from_ref(&tar), GZIP, name);
        let manifest = String::from_utf8(manifest).unwrap();
        let manifest = manifest.replace(&pushed.layers[0].to_string(), &Digest::of(&blob).to_string());
        let manifest = manifest.replace(
            &format!("\"size\":{}}}]", good.len()),
            &format!("\"size\":{}}}]", blob.len()),
        );
        registry.put_blob(&blob);
        registry.put_blob(&blobs[1]);
        registry.put_manifest(
            "bad",
            name,
            "application/vnd.oci.image.manifest.v1+json",
            manifest.into_bytes(),
        );
        let error = images
            .pull(&registry.name(&format!("bad:{name}")), None)
            .await
            .unwrap_err();
        let text = crate::disk::Chain(&error).to_string();
        assert_eq!(error.kind(), PullErrorKind::Corrupt, "{name}: {text}");
        assert!(text.contains(&Digest::of(&blob).to_string()), "{text}");
    }
    assert!(images.list().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
}
