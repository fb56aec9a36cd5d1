//! Layers whose content depends on the layers below, pulled, mounted, repaired and removed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::digest::Digest;
use crate::testing::archive::Builder;
use crate::testing::{Compression, FakeRegistry, Pushed, config_at, in_mount_namespace, open_at};
use crate::{Images, ImagesConfig, SnapshotOptions, mount_overlay, unmount};

const GZIP: Compression = Compression::Gzip;

/// Debian's form: short names that are links, and directories with modes of their own.
fn base() -> Vec<u8> {
    Builder::new()
        .dir_of("./", 0o750, 3)
        .dir("usr")
        .dir_of("usr/bin", 0o555, 0)
        .file("usr/bin/sh", "shell")
        .symlink("bin", "usr/bin")
        .dir_of("run", 0o711, 5)
        .dir("var")
        .symlink("var/run", "/run")
        .pax(&[("SCHILY.xattr.user.note", b"kept")])
        .dir_of("tmp", 0o1777, 0)
        .bytes
}

/// What tools write that list files only.
fn files() -> Vec<u8> {
    Builder::new()
        .file("bin/tool", "tool")
        .hard_link("usr/bin/same", "bin/tool")
        .file("var/run/pid", "1")
        .file("tmp/x", "x")
        .file("new/dir/y", "y")
        .bytes
}

fn layer_names(root: &Path) -> Vec<String> {
    crate::disk::names(&root.join("layers")).unwrap()
}

fn hex(digests: &[Digest]) -> Vec<String> {
    let mut names: Vec<_> = digests.iter().map(Digest::hex).collect();
    names.sort();
    names
}

/// Mounts a snapshot of the image and looks at it, from a mount namespace of its own.
fn look(images: &Images, id: &str, options: SnapshotOptions, look: impl FnOnce(&Path) + Send) {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let snapshot = runtime.block_on(images.prepare("look", id, options)).unwrap();
        in_mount_namespace(|place| {
            mount_overlay(&snapshot, place, false).unwrap();
            look(place);
            unmount(place).unwrap();
        });
        runtime.block_on(images.remove_snapshot("look")).unwrap();
    });
}

fn check_whole(root: &Path) {
    let text = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let of = |name: &str| {
        let meta = fs::symlink_metadata(root.join(name)).unwrap();
        (meta.mode() & 0o7777, meta.uid())
    };
    assert_eq!(fs::read_link(root.join("bin")).unwrap().to_str(), Some("usr/bin"));
    assert_eq!(
        (text("bin/sh"), text("usr/bin/tool")),
        ("shell".into(), "tool".into())
    );
    assert_eq!(
        (text("usr/bin/same"), text("run/pid")),
        ("tool".into(), "1".into())
    );
    assert_eq!(
        fs::read_link(root.join("var/run")).unwrap().to_str(),
        Some("/run")
    );
    assert_eq!(
        (of("usr/bin"), of("run"), of("tmp")),
        ((0o555, 0), (0o711, 5), (0o1777, 0))
    );
    assert_eq!(
        (of("new"), of("new/dir"), of("")),
        ((0o755, 0), (0o755, 0), (0o750, 3))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_go_where_the_layers_below_lead() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    // Layers that say nothing of the root, and nothing that depends on others, are on top.
    let last = Builder::new().dir("opt").file("opt/z", "z").bytes;
    let pushed = registry.push("x", "1", &[base(), files(), last], GZIP);
    let image = images.pull(&registry.name("x:1"), None).await.unwrap();
    look(&images, &image.id, SnapshotOptions::default(), check_whole);
    let read_only = SnapshotOptions {
        read_only: true,
        ..Default::default()
    };
    look(&images, &image.id, read_only, check_whole);
    let mapping = |host_id| crate::IdMapping {
        container_id: 0,
        host_id,
        length: 65536,
    };
    let mapped = SnapshotOptions {
        uid_map: vec![mapping(100_000)],
        gid_map: vec![mapping(200_000)],
        read_only: true,
    };
    look(&images, &image.id, mapped, |root| {
        assert_eq!(fs::metadata(root).unwrap().uid(), 100_003);
        assert_eq!(fs::metadata(root.join("run/pid")).unwrap().uid(), 100_000);
    });
    // Only the layer that depends on the one below has the name of the chain.
    let chain = crate::layers::chain_ids(&pushed.diff_ids);
    let expected = [pushed.diff_ids[0], chain[1], pushed.diff_ids[2]];
    assert_eq!(layer_names(dir.path()), hex(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_layer_on_two_bases_is_two_directories() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let top = Builder::new().file("lib/so", "so").bytes;
    let bases = [
        (
            "link",
            Builder::new().dir("usr/lib").symlink("lib", "usr/lib").bytes,
        ),
        ("mode", Builder::new().dir_of("lib", 0o700, 9).bytes),
        ("plain", Builder::new().dir_of("lib", 0o755, 0).bytes),
        ("none", Builder::new().dir("etc").bytes),
    ];
    let mut pushed = Vec::new();
    for (name, base) in &bases {
        pushed.push(registry.push(name, "1", &[base.clone(), top.clone()], GZIP));
    }
    // At once: the blob is fetched and unpacked by itself once, and on top of each base that needs it.
    let names: Vec<_> = bases
        .iter()
        .map(|(name, _)| registry.name(&format!("{name}:1")))
        .collect();
    let pulls = names.iter().map(|name| images.pull(name, None));
    let pulled = futures_util::future::try_join_all(pulls).await.unwrap();
    for ((name, _), image) in bases.iter().zip(&pulled) {
        look(&images, &image.id, SnapshotOptions::default(), |root| {
            let lib = fs::symlink_metadata(root.join("lib")).unwrap();
            assert_eq!(fs::read_to_string(root.join("lib/so")).unwrap(), "so", "{name}");
            assert_eq!(lib.is_symlink(), *name == "link");
            if *name != "link" {
                let expected = if *name == "mode" { (0o700, 9) } else { (0o755, 0) };
                assert_eq!((lib.mode() & 0o7777, lib.uid()), expected, "{name}");
            }
        });
    }
    let chain = |pushed: &Pushed| crate::layers::chain_ids(&pushed.diff_ids)[1];
    let mut expected: Vec<Digest> = pushed.iter().map(|pushed| pushed.diff_ids[0]).collect();
    expected.extend([chain(&pushed[0]), chain(&pushed[1]), pushed[2].diff_ids[1]]);
    assert_eq!(layer_names(dir.path()), hex(&expected));
    let log = registry.take_log();
    let fetched = log
        .iter()
        .filter(|line| line.contains(&pushed[0].layers[1].to_string()));
    assert_eq!(fetched.count(), 1, "{log:?}");

    // Each goes with its image, and nothing stays in the end.
    for image in &pulled {
        assert!(images.remove(&image.id).await.unwrap().is_some());
    }
    assert!(layer_names(dir.path()).is_empty());
    assert_eq!(images.fs_usage().await.used_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_below_a_hundred_layers_is_followed() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let mut layers = vec![base()];
    layers.extend((0..100).map(|n| Builder::new().dir("opt").file(&format!("opt/{n}"), "").bytes));
    layers.push(files());
    registry.push("x", "1", &layers, GZIP);
    let image = images.pull(&registry.name("x:1"), None).await.unwrap();
    look(&images, &image.id, SnapshotOptions::default(), |root| {
        check_whole(root);
        assert_eq!(fs::read_dir(root.join("opt")).unwrap().count(), 100);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_can_not_be_on_its_base_is_refused_by_name() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let base = Builder::new().file("etc", "a file").symlink("loop", "loop").bytes;
    for (name, entry) in [("file", "etc/x"), ("loop", "loop/x")] {
        let top = Builder::new().file(entry, "x").bytes;
        let pushed = registry.push(name, "1", &[base.clone(), top], GZIP);
        let error = images
            .pull(&registry.name(&format!("{name}:1")), None)
            .await
            .unwrap_err();
        let text = crate::disk::Chain(&error).to_string();
        assert_eq!(error.kind(), crate::PullErrorKind::Corrupt, "{text}");
        assert!(
            text.contains(entry) && text.contains(&pushed.layers[1].to_string()),
            "{text}"
        );
    }
    // A hard link that leads nowhere, whatever is below.
    let top = Builder::new().hard_link("x", "loop/etc").bytes;
    registry.push("link", "1", &[base, top], GZIP);
    let error = images.pull(&registry.name("link:1"), None).await.unwrap_err();
    assert!(crate::disk::Chain(&error).to_string().contains("loop/etc"));
    assert!(images.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opaque_root_hides_all_layers_below() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let images = open_at(dir.path()).await;
    let fresh = Builder::new().file(".wh..wh..opq", "").file("tmp/new", "n").bytes;
    let last = Builder::new().file("last", "l").bytes;
    registry.push("x", "1", &[base(), fresh, last], GZIP);
    let image = images.pull(&registry.name("x:1"), None).await.unwrap();
    look(&images, &image.id, SnapshotOptions::default(), |root| {
        let names = crate::disk::names(root).unwrap();
        assert_eq!(names, ["last", "tmp"]);
        assert_eq!(fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o755);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_it_and_to_what_is_below_is_repaired_from_disk() {
    let registry = FakeRegistry::start();
    let pushed = registry.push("x", "1", &[base(), files()], GZIP);
    let chain = crate::layers::chain_ids(&pushed.diff_ids)[1];
    for damaged in [&[chain][..], &[pushed.diff_ids[0], chain]] {
        for by_verify in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let images = open_at(dir.path()).await;
            images.pull(&registry.name("x:1"), None).await.unwrap();
            drop(images);
            for layer in damaged {
                fs::remove_dir_all(dir.path().join("layers").join(layer.hex()).join("fs/usr")).unwrap();
            }
            registry.take_log();
            let images = open_at(dir.path()).await;
            if by_verify {
                let report = images.verify().await.unwrap();
                assert_eq!((report.repaired.len(), report.lost.len()), (damaged.len(), 0));
            }
            look(&images, &pushed.id, SnapshotOptions::default(), check_whole);
            assert!(registry.take_log().is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_or_damaged_is_fetched_for_another_base() {
    let registry = FakeRegistry::start();
    let dir = tempfile::tempdir().unwrap();
    let config = ImagesConfig {
        discard_blobs: true,
        ..config_at(dir.path())
    };
    let images = Images::open(config).await.unwrap();
    // Unpacked by itself, and its blob is gone.
    let first = registry.push(
        "x",
        "1",
        &[Builder::new().dir("etc").bytes, files_without_links()],
        GZIP,
    );
    images.pull(&registry.name("x:1"), None).await.unwrap();
    // Without its list it is taken for one that depends on everything.
    let list = dir
        .path()
        .join("layers")
        .join(first.diff_ids[1].hex())
        .join("implied");
    fs::write(&list, "tmp").unwrap();
    registry.push("x", "2", &[base(), files_without_links()], GZIP);
    let image = images.pull(&registry.name("x:2"), None).await.unwrap();
    look(&images, &image.id, SnapshotOptions::default(), |root| {
        assert_eq!(fs::read_to_string(root.join("run/pid")).unwrap(), "1");
        assert_eq!(fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    });
}

fn files_without_links() -> Vec<u8> {
    Builder::new().file("var/run/pid", "1").file("tmp/x", "x").bytes
}
