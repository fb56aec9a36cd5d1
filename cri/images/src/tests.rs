//! The store as a whole: names, removal, snapshots, repair, and what a kill leaves.

use crate::testing::{Compression, FakeRegistry, open_at, tar_of};
use crate::{Images, SnapshotOptions};

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_all_compressions_are_unpacked() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    for (name, compression) in [
        ("plain", Compression::Plain),
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
    ] {
        let pushed = registry.push(name, "1", &[tar_of(&[("etc/name", name)])], compression);
        let image = images
            .pull(&registry.name(&format!("{name}:1")), None)
            .await
            .unwrap();
        assert_eq!(image.id, pushed.id);
        let snapshot = images
            .prepare(name, &image.id, SnapshotOptions::default())
            .await
            .unwrap();
        assert_eq!(
            std::fs::read_to_string(snapshot.lower[0].join("etc/name")).unwrap(),
            name
        );
    }
}

fn _is_shareable(images: &Images) -> &(dyn Send + Sync) {
    images
}

mod contract;
mod crash;
mod full_disk;
mod names;
mod repair;
mod snapshots;
mod stacked;
mod tls;
