//! Tags, digests and what a removal takes.

use std::sync::Arc;
use std::time::Duration;

use crate::digest::Digest;
use crate::step::{Step, Steps};
use crate::testing::{Compression, FakeRegistry, config_at, open_at, tar_of};
use crate::{Images, RemoveError};

const GZIP: Compression = Compression::Gzip;

fn layer(text: &str) -> Vec<u8> {
    tar_of(&[("a", text)])
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tags_of_one_image_are_one_image() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let pushed = registry.push("x", "1", &[layer("x")], GZIP);
    registry.push("x", "2", &[layer("x")], GZIP);
    registry.push("y", "1", &[layer("x")], GZIP);
    for name in ["x:1", "x:2", "y:1"] {
        assert_eq!(
            images.pull(&registry.name(name), None).await.unwrap().id,
            pushed.id
        );
    }
    let all = images.list();
    assert_eq!(all.len(), 1);
    assert_eq!(
        all[0].repo_tags,
        ["x:1", "x:2", "y:1"].map(|name| registry.name(name))
    );
    let digests = ["x", "y"].map(|name| registry.name(&format!("{name}@{}", pushed.digest)));
    assert_eq!(all[0].repo_digests, digests);
    // By any name all of it goes, as the CRI says of RemoveImage.
    let removed = images.remove(&registry.name("x:1")).await.unwrap().unwrap();
    let names = ["x:1", "x:2", "y:1"].map(|name| registry.name(name));
    assert_eq!(removed.names, [&names[..], &digests].concat());
    assert_eq!(removed.id, pushed.id);
    for name in names.iter().chain(&digests).chain([&pushed.id]) {
        assert!(images.find(name).is_none(), "{name}");
        assert_eq!(images.remove(name).await.unwrap(), None, "{name}");
    }
    assert!(images.list().is_empty());
    assert_eq!(images.fs_usage().await.used_bytes, 0);
    assert_eq!(images.remove("never:heard").await.unwrap(), None);
    assert!(matches!(
        images.remove("A//b").await,
        Err(RemoveError::Reference(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpacking_that_outlives_its_pull_is_waited_for_and_keeps_what_it_needs() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let (at, reached) = std::sync::mpsc::channel();
    let gate = Arc::new(tokio::sync::Mutex::new(()));
    let closed = gate.clone().lock_owned().await;
    let theirs = gate;
    let steps = Steps::hooked(move |step| {
        if step == Step::LayerUnpacked {
            // The test may be over.
            let _ = at.send(());
            drop(theirs.blocking_lock());
        }
    });
    let images = Images::open_with(config_at(dir.path()), steps).await.unwrap();
    let pushed = registry.push("x", "1", &[layer("x")], GZIP);
    let pull = |images: &Images| {
        let (images, name) = (images.clone(), registry.name("x:1"));
        tokio::spawn(async move { images.pull(&name, None).await })
    };
    let given_up = pull(&images);
    reached.recv_timeout(Duration::from_secs(30)).unwrap();
    given_up.abort();
    given_up.await.unwrap_err();
    let again = pull(&images);
    // A removal meanwhile collects nothing that the unpacking needs.
    images.remove(&registry.name("x:1")).await.unwrap();
    let blob = images.store().shared.with(|state| state.blobs.len());
    assert!(blob > 0, "the lease is held");
    let second = reached.recv_timeout(Duration::from_millis(300));
    assert!(second.is_err(), "the layer is unpacked twice at once");
    drop(closed);
    assert_eq!(again.await.unwrap().unwrap().id, pushed.id);
    assert!(reached.try_recv().is_err(), "it was unpacked once");
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_are_not_kept_go_with_the_last_pull_that_needs_them() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config_at(dir.path());
    config.discard_blobs = true;
    let images = Images::open(config).await.unwrap();
    let pushed = registry.push("x", "1", &[layer("x")], GZIP);
    let blob = pushed.layers[0];
    // Another pull that needs the blob, and fails in the end.
    let lease = crate::state::Lease::new(images.store());
    lease.extend([blob]);
    images.pull(&registry.name("x:1"), None).await.unwrap();
    assert!(
        images
            .store()
            .shared
            .with(|state| state.blobs.contains_key(&blob))
    );
    drop(lease);
    images.pull(&registry.name("no:such"), None).await.unwrap_err();
    assert!(
        !images
            .store()
            .shared
            .with(|state| state.blobs.contains_key(&blob))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn all_spellings_find_an_image() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config_at(dir.path());
    config.pinned = vec![registry.name("x")];
    let images = Images::open(config).await.unwrap();
    let pushed = registry.push("x", "latest", &[layer("x")], GZIP);
    let image = images.pull(&registry.name("x"), None).await.unwrap();
    assert!(image.pinned && image.size > 0);
    let bare = image.id.strip_prefix("sha256:").unwrap();
    let by_digest = registry.name(&format!("x@{}", pushed.digest));
    let by_both = registry.name(&format!("x:whatever@{}", pushed.digest));
    for spec in [
        &image.id,
        bare,
        &bare[..12],
        &format!("sha256:{}", &bare[..6]),
        &by_digest,
        &by_both,
        &registry.name("x"),
    ] {
        assert_eq!(
            images.find(spec).map(|found| found.id),
            Some(image.id.clone()),
            "{spec}"
        );
    }
    let other = Digest::of(b"other").to_string();
    for spec in [
        "",
        "sha256:",
        &bare[..2],
        &other,
        "x",
        &registry.name("x:2"),
        "\u{0}",
    ] {
        assert!(images.find(spec).is_none(), "{spec}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_digest_gives_a_digest_and_asks_nobody_twice() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let pushed = registry.push("x", "1", &[layer("x")], GZIP);
    let name = registry.name(&format!("x:1@{}", pushed.digest));
    let image = images.pull(&name, None).await.unwrap();
    assert!(image.repo_tags.is_empty());
    assert_eq!(
        image.repo_digests,
        [registry.name(&format!("x@{}", pushed.digest))]
    );
    registry.take_log();
    images.pull(&name, None).await.unwrap();
    assert!(registry.take_log().is_empty());
    // A tag costs one question.
    images.pull(&registry.name("x:1"), None).await.unwrap();
    registry.take_log();
    images.pull(&registry.name("x:1"), None).await.unwrap();
    assert_eq!(registry.take_log(), ["HEAD /v2/x/manifests/1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_leaves_the_old_image_by_digest() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let name = registry.name("x:1");
    let old = registry.push("x", "1", &[layer("old")], GZIP);
    images.pull(&name, None).await.unwrap();
    let new = registry.push("x", "1", &[layer("new")], GZIP);
    assert_eq!(images.pull(&name, None).await.unwrap().id, new.id);
    let check = |images: &Images| {
        assert_eq!(images.find(&name).unwrap().id, new.id);
        let left = images.find(&old.id).unwrap();
        assert!(left.repo_tags.is_empty());
        assert_eq!(left.repo_digests, [registry.name(&format!("x@{}", old.digest))]);
    };
    check(&images);
    drop(images);
    check(&open_at(dir.path()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_store_has_one_opener() {
    let dir = tempfile::tempdir().unwrap();
    let first = open_at(dir.path()).await;
    let error = Images::open(config_at(dir.path())).await.unwrap_err();
    assert!(error.to_string().contains("in use"));
    drop(first);
    open_at(dir.path()).await;
}
