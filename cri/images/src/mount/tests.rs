//! Real mounts, in a mount namespace of the test's thread.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use super::*;
use crate::SnapshotOptions;
use crate::testing::in_mount_namespace;

/// A store's directories with `count` layers; layer n has the files `all` (its number) and `n`.
fn snapshot(root: &Path, count: usize, options: SnapshotOptions) -> Snapshot {
    let mut lower = Vec::new();
    for n in (0..count).rev() {
        let dir = root.join(format!("layers/{n:064}/fs"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("all"), n.to_string()).unwrap();
        fs::write(dir.join(n.to_string()), "x").unwrap();
        lower.push(dir);
    }
    let empty = root.join("empty");
    fs::create_dir_all(&empty).unwrap();
    if options.read_only || count == 0 {
        lower.push(empty);
    }
    let dir = root.join("snapshots/key");
    fs::create_dir_all(&dir).unwrap();
    if !options.read_only {
        fs::create_dir(dir.join("upper")).unwrap();
        fs::create_dir(dir.join("work")).unwrap();
    }
    fs::create_dir_all(root.join("target")).unwrap();
    Snapshot {
        key: "key".into(),
        image_id: "sha256:x".into(),
        lower,
        upper: dir.join("upper"),
        work: dir.join("work"),
        options,
        user_xattr: false,
    }
}

#[test]
fn hundreds_of_layers_are_mounted() {
    in_mount_namespace(|root| {
        let snapshot = snapshot(root, 300, SnapshotOptions::default());
        let target = root.join("target");
        mount_overlay(&snapshot, &target, false).unwrap();
        assert_eq!(fs::read_to_string(target.join("all")).unwrap(), "299");
        assert!((0..300).all(|n| target.join(n.to_string()).exists()));
        fs::write(target.join("new"), "y").unwrap();
        assert!(snapshot.upper.join("new").exists());
        unmount(&target).unwrap();
        unmount(&target).unwrap();
        assert!(!target.join("all").exists());
        unmount(&root.join("nowhere")).unwrap();
    });
}

#[test]
fn the_old_mount_call_stacks_as_many() {
    in_mount_namespace(|root| {
        let snapshot = snapshot(root, 300, SnapshotOptions::default());
        let target = root.join("target");
        let fd = rustix::fs::open(&target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let before = std::env::current_dir().unwrap();
        old_mount(&snapshot, &snapshot.lower, fd.as_fd(), false).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
        assert_eq!(fs::read_to_string(target.join("all")).unwrap(), "299");
        assert!((0..300).all(|n| target.join(n.to_string()).exists()));
        fs::write(target.join("new"), "y").unwrap();
        assert!(!root.join("snapshots/key/l").exists());
        unmount(&target).unwrap();
    });
}

#[test]
fn what_is_written_is_not_synced_by_either_call() {
    let options = |target: &Path| {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let at = format!(" {} ", target.display());
        let line = mounts.lines().find(|line| line.contains(&at)).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    for by_descriptors in [true, false] {
        in_mount_namespace(|root| {
            let snapshot = snapshot(root, 2, SnapshotOptions::default());
            let target = root.join("target");
            if by_descriptors {
                mount_overlay(&snapshot, &target, false).unwrap();
            } else {
                let fd = rustix::fs::open(&target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
                old_mount(&snapshot, &snapshot.lower, fd.as_fd(), false).unwrap();
            }
            let options = options(&target);
            // Newer kernels call it a mode of fsync.
            let volatile = |option: &str| ["volatile", "fsync=volatile"].contains(&option);
            assert!(options.split(',').any(volatile), "{options}");
            unmount(&target).unwrap();
        });
    }
}

#[test]
fn paths_longer_than_an_option_are_mounted() {
    in_mount_namespace(|root| {
        let root = root.join("d".repeat(200)).join("e".repeat(100));
        let snapshot = snapshot(&root, 3, SnapshotOptions::default());
        let target = root.join("target");
        mount_overlay(&snapshot, &target, false).unwrap();
        assert_eq!(fs::read_to_string(target.join("all")).unwrap(), "2");
        unmount(&target).unwrap();
    });
}

#[test]
fn read_only_snapshots_and_mounts_refuse_writes() {
    for count in [0, 1, 2] {
        in_mount_namespace(|root| {
            let options = SnapshotOptions {
                read_only: true,
                ..Default::default()
            };
            let mut snapshot = snapshot(root, count, options);
            if count == 0 {
                // As `describe` makes it: two, which overlayfs wants where nothing is writable.
                fs::create_dir(root.join("empty2")).unwrap();
                snapshot.lower.push(root.join("empty2"));
            }
            let target = root.join("target");
            mount_overlay(&snapshot, &target, false).unwrap();
            let error = fs::write(target.join("new"), "y").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            unmount(&target).unwrap();
        });
    }
    in_mount_namespace(|root| {
        let snapshot = snapshot(root, 1, SnapshotOptions::default());
        let target = root.join("target");
        mount_overlay(&snapshot, &target, true).unwrap();
        assert!(fs::write(target.join("new"), "y").is_err());
        unmount(&target).unwrap();
    });
}

fn shifted() -> SnapshotOptions {
    let map = |host_id| {
        vec![IdMapping {
            container_id: 0,
            host_id,
            length: 65536,
        }]
    };
    SnapshotOptions {
        uid_map: map(100_000),
        gid_map: map(200_000),
        read_only: false,
    }
}

#[test]
fn owners_are_mapped_for_a_user_namespace() {
    in_mount_namespace(|root| {
        let snapshot = snapshot(root, 3, shifted());
        std::os::unix::fs::chown(snapshot.lower[0].join("2"), Some(7), Some(8)).unwrap();
        let target = root.join("target");
        mount_overlay(&snapshot, &target, false).unwrap();
        let owner = |path: &Path| fs::metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!(owner(&target.join("all")), (100_000, 200_000));
        assert_eq!(owner(&target.join("2")), (100_007, 200_008));
        assert_eq!(owner(&snapshot.lower[0].join("2")), (7, 8));
        // What is copied up keeps the mapped owner.
        fs::write(target.join("2"), "changed").unwrap();
        assert_eq!(owner(&snapshot.upper.join("2")), (100_007, 200_008));
        unmount(&target).unwrap();
    });
}

#[test]
fn owners_are_mapped_where_overlayfs_takes_no_detached_mount() {
    in_mount_namespace(|root| {
        let snapshot = snapshot(root, 2, shifted());
        let mapped = Mapped::of(&snapshot).unwrap();
        {
            let _attached = mapped.attach(&snapshot).unwrap();
            let lower = mapped.lower(&snapshot, &attach_point(&snapshot));
            let target =
                rustix::fs::open(root.join("target"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            mount_layers(&snapshot, &lower, target.as_fd(), false).unwrap();
        }
        assert!(!attach_point(&snapshot).exists());
        assert_eq!(fs::metadata(root.join("target/all")).unwrap().uid(), 100_000);
        unmount(&root.join("target")).unwrap();
    });
}

#[test]
fn a_target_that_is_no_directory_is_refused_by_name() {
    in_mount_namespace(|root| {
        let snapshot = snapshot(root, 1, SnapshotOptions::default());
        symlink("nowhere", root.join("link")).unwrap();
        for bad in ["absent", "link", "layers/../layers/x"] {
            let error = mount_overlay(&snapshot, &root.join(bad), false).unwrap_err();
            assert!(crate::disk::Chain(&error).to_string().contains(bad));
        }
        fs::remove_dir_all(&snapshot.work).unwrap();
        let error = mount_overlay(&snapshot, &root.join("target"), false).unwrap_err();
        assert!(matches!(error, MountError::Overlay { .. }));
    });
}

#[test]
fn a_try_that_failed_late_keeps_nobody_from_mounting() {
    in_mount_namespace(|root| {
        let snapshot = snapshot(root, 1, SnapshotOptions::default());
        let target = root.join("target");
        mount_overlay(&snapshot, &target, false).unwrap();
        unmount(&target).unwrap();
        // The kernel's mark is there, as after a try that failed.
        assert!(snapshot.work.join("work/incompat/volatile").exists());
        mount_overlay(&snapshot, &target, false).unwrap();
        unmount(&target).unwrap();
    });
}
