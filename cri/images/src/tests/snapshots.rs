//! Snapshots of pulled images, mounted.

use std::fs;

use crate::testing::{Compression, FakeRegistry, open_at, tar_of};
use crate::{SnapshotError, SnapshotOptions};

const GZIP: Compression = Compression::Gzip;

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_made_found_measured_and_removed() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let (a, b) = (tar_of(&[("a", "1"), ("both", "a")]), tar_of(&[("both", "b")]));
    // The lowest layer comes a second time: overlayfs takes each directory once.
    registry.push("x", "1", &[a.clone(), b, a], GZIP);
    let image = images.pull(&registry.name("x"), None).await;
    assert!(image.is_err(), "there is no tag `latest`");
    let image = images.pull(&registry.name("x:1"), None).await.unwrap();
    let made = images
        .prepare("key", &image.id, SnapshotOptions::default())
        .await
        .unwrap();
    assert_eq!(made.lower.len(), 2);
    assert_eq!(fs::read_to_string(made.lower[0].join("both")).unwrap(), "a");
    assert_eq!(images.snapshot("key").as_ref(), Some(&made));
    assert_eq!(images.snapshots(), ["key"]);
    fs::write(made.upper.join("big"), vec![1; 100_000]).unwrap();
    let usage = images.snapshot_usage("key").await.unwrap();
    assert!(usage.bytes >= 100_000 && usage.inodes == 2, "{usage:?}");
    assert!(matches!(
        images.prepare("key", &image.id, SnapshotOptions::default()).await,
        Err(SnapshotError::Exists(_))
    ));
    assert!(matches!(
        images
            .prepare("../x", &image.id, SnapshotOptions::default())
            .await,
        Err(SnapshotError::InvalidKey(_))
    ));
    assert!(matches!(
        images
            .prepare("other", "absent", SnapshotOptions::default())
            .await,
        Err(SnapshotError::NoImage(_))
    ));
    images.remove_snapshot("key").await.unwrap();
    images.remove_snapshot("key").await.unwrap();
    assert!(images.snapshots().is_empty() && !made.upper.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_stay_as_long_as_a_snapshot_has_them() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    registry.push("x", "1", &[tar_of(&[("a", "1")])], GZIP);
    let image = images.pull(&registry.name("x:1"), None).await.unwrap();
    let made = images
        .prepare("key", &image.id, SnapshotOptions::default())
        .await
        .unwrap();
    assert!(images.remove(&image.id).await.unwrap().is_some());
    assert!(made.lower[0].join("a").exists() && images.list().is_empty());
    // Over a restart as well.
    drop(images);
    let images = open_at(dir.path()).await;
    assert!(made.lower[0].join("a").exists());
    assert_eq!(images.snapshot("key").unwrap(), made);
    images.remove_snapshot("key").await.unwrap();
    assert!(!made.lower[0].exists());
    let usage = images.fs_usage().await;
    assert_eq!((usage.used_bytes, usage.inodes), (0, 0));
}
