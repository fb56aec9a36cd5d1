//! SIGKILL between any two effects on the disk: whatever step it hits, the store opens again whole.
//!
//! A child process runs [`scenario`], which goes through every step that there is, and kills itself when it reaches a
//! step for the n-th time, for all n. Then this process opens what is left.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::step::{Step, Steps};
use crate::testing::archive::Builder;
use crate::testing::{Compression, FakeRegistry, config_at, open_at, tar_of};
use crate::{Images, SnapshotOptions};

const GZIP: Compression = Compression::Gzip;
const ROOT: &str = "ORLOP_TEST_IMAGES_ROOT";
const CUT: &str = "ORLOP_TEST_IMAGES_CUT";

/// Everything that changes a store.
async fn scenario(root: &Path, steps: Steps) {
    let registry = FakeRegistry::start();
    let common = tar_of(&[("common", "c")]);
    let open = |discard_blobs| {
        let config = crate::ImagesConfig {
            discard_blobs,
            max_parallel_layers: 1,
            ..config_at(root)
        };
        Images::open_with(config, steps.clone())
    };
    let images = open(false).await.unwrap();
    let old = registry.push("x", "1", &[common.clone(), tar_of(&[("old", "o")])], GZIP);
    images.pull(&registry.name("x:1"), None).await.unwrap();
    images
        .prepare("key", &old.id, SnapshotOptions::default())
        .await
        .unwrap();
    let new = registry.push("x", "1", &[common, tar_of(&[("new", "n")])], GZIP);
    images.pull(&registry.name("x:1"), None).await.unwrap();
    images.remove(&old.id).await.unwrap().unwrap();
    images.remove_snapshot("key").await.unwrap();
    drop(images);
    // A start of the machine that found a file of zero bytes.
    fs::write(root.join("boot"), "another").unwrap();
    let file = root.join("layers").join(new.diff_ids[1].hex()).join("fs/new");
    fs::File::options()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(0)
        .unwrap();
    let images = open(false).await.unwrap();
    assert_eq!(images.verify().await.unwrap().repaired, [new.diff_ids[1]]);
    drop(images);
    let images = open(true).await.unwrap();
    // A layer that has to be unpacked on top of the one below.
    let link = Builder::new().dir("usr").symlink("lib", "usr").bytes;
    registry.push("y", "1", &[link, tar_of(&[("lib/y", "y")])], GZIP);
    images.pull(&registry.name("y:1"), None).await.unwrap();
    assert_eq!(images.list().len(), 2);
}

/// The child: does nothing unless it is told where.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(root), Ok(cut)) = (std::env::var(ROOT), std::env::var(CUT)) else {
        return;
    };
    let (cut, reached): (usize, _) = (cut.parse().unwrap(), AtomicUsize::new(0));
    let steps = Steps::hooked(move |_| {
        if reached.fetch_add(1, Ordering::SeqCst) == cut {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    });
    scenario(root.as_ref(), steps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_leaves_a_whole_store() {
    let whole = tempfile::tempdir().unwrap();
    let reached: &'static Mutex<Vec<Step>> = Box::leak(Box::default());
    scenario(
        whole.path(),
        Steps::hooked(move |step| reached.lock().unwrap().push(step)),
    )
    .await;
    let reached = reached.lock().unwrap().clone();
    let missing: Vec<_> = Step::ALL.iter().filter(|step| !reached.contains(step)).collect();
    assert!(missing.is_empty(), "the scenario doesn't reach {missing:?}");
    for (cut, step) in reached.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::crash::child", "--quiet"])
            .env(ROOT, dir.path())
            .env(CUT, cut.to_string())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(9), "cut {cut} at {step:?}");
        audit(dir.path(), &format!("cut {cut} at {step:?}")).await;
        // An emptied store is like any other, so it's enough to try that now and then.
        if cut % 8 == 0 {
            scenario(dir.path(), Steps::default()).await;
        }
    }
}

/// The store opens, all it has is whole, nothing is left over, and all of it can be removed.
async fn audit(root: &Path, when: &str) {
    // What was true of the layers may have been cut off by the scenario itself, so they are looked at.
    let _ = fs::remove_file(root.join("boot"));
    let images = open_at(root).await;
    assert!(images.verify().await.unwrap().lost.is_empty(), "{when}");
    let list = images.list();
    let tags: Vec<_> = list.iter().flat_map(|image| image.repo_tags.clone()).collect();
    let distinct: BTreeSet<_> = tags.iter().collect();
    assert_eq!(distinct.len(), tags.len(), "{when}: a tag at two images");
    for (n, image) in list.iter().enumerate() {
        let key = format!("audit-{n}");
        let snapshot = images
            .prepare(&key, &image.id, SnapshotOptions::default())
            .await
            .unwrap();
        for lower in &snapshot.lower {
            assert!(crate::layers::check(lower.parent().unwrap()), "{when}");
        }
    }
    for key in images.snapshots() {
        images.remove_snapshot(&key).await.unwrap();
    }
    for image in list {
        images.remove(&image.id).await.unwrap().unwrap();
    }
    let usage = images.fs_usage().await;
    assert_eq!((usage.used_bytes, usage.inodes), (0, 0), "{when}");
    drop(images);
    drop(open_at(root).await);
    for dir in ["blobs/sha256", "ingest", "layers", "images", "snapshots"] {
        let names = crate::disk::names(&root.join(dir)).unwrap();
        assert!(names.is_empty(), "{when}: {dir} has {names:?}");
    }
}
