//! What a new kubelet finds, and what crashes leave.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::VolumeOnDisk;
use crate::mount::{beneath, is_mounted};

#[test]
fn a_new_kubelet_finds_volumes_as_they_were() {
    in_namespace(|root| {
        let objects = Arc::new(Objects::default());
        objects.put_secret("s", &[("k", "x")]);
        let pod = pod(
            r#"[{"name": "v", "emptyDir": {"medium": "Memory"}}, {"name": "s", "secret": {"secretName": "s"}},
                {"name": "d", "emptyDir": {}}]"#,
            r#"[{"name": "v", "mountPath": "/v", "subPath": "part"}, {"name": "s", "mountPath": "/s"},
                {"name": "d", "mountPath": "/d"}]"#,
        );
        let before = volumes_with(root, &objects);
        assert_eq!(failures(&before, &pod), Vec::<String>::new());
        let mounts = before.mounts(&pod, "c", &no_env).unwrap();
        let dir = dir_of(root, "kubernetes.io~empty-dir");
        std::fs::write(dir.join("part/kept"), "x").unwrap();
        let table = beneath(root).unwrap();
        drop(before);
        let after = volumes_with(root, &objects);
        assert_eq!(after.present().unwrap(), ["u-1"]);
        let on_disk = |plugin: &str, name: &str, mounted| VolumeOnDisk {
            plugin: plugin.to_owned(),
            known: true,
            name: name.to_owned(),
            mounted,
        };
        assert_eq!(
            after.on_disk("u-1").unwrap(),
            [
                on_disk("kubernetes.io~empty-dir", "d", false),
                on_disk("kubernetes.io~empty-dir", "v", true),
                on_disk("kubernetes.io~secret", "s", true),
            ]
        );
        assert_eq!(failures(&after, &pod), Vec::<String>::new());
        assert_eq!(after.mounts(&pod, "c", &no_env).unwrap(), mounts);
        assert_eq!(beneath(root).unwrap(), table);
        assert!(dir.join("part/kept").exists());
        assert!(
            after
                .remove_orphans(&["u-1".to_owned()].into())
                .unwrap()
                .is_empty()
        );
        assert_eq!(beneath(root).unwrap(), table);
        assert!(
            after
                .remove_orphans(&["u-2".to_owned()].into())
                .unwrap()
                .is_empty()
        );
        assert_eq!(after.present().unwrap(), Vec::<String>::new());
        after.tear_down("u-1").unwrap();
        assert_eq!(beneath(root).unwrap(), Vec::<PathBuf>::new());
    });
}

#[test]
fn what_a_crash_leaves_is_finished_or_taken_away() {
    in_namespace(|root| {
        let volumes = volumes(root);
        let pod = with_group(pod_of(r#""emptyDir": {"medium": "Memory"}"#), 9);
        let dir = dir_of(root, "kubernetes.io~empty-dir");
        let notes = root.join("pods/u-1/plugins/kubernetes.io~empty-dir/v");
        // Each state that setting up passes through, and tearing down.
        let none: fn(&Path, &Path) = |_, _| {};
        let bare: fn(&Path, &Path) = |dir, _| std::fs::create_dir_all(dir).unwrap();
        let mounted: fn(&Path, &Path) = |dir, _| {
            std::fs::create_dir_all(dir).unwrap();
            mount_tmpfs(dir);
        };
        let noted: fn(&Path, &Path) = |dir, notes| {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::create_dir_all(notes).unwrap();
        };
        let ready_and_gone: fn(&Path, &Path) = |_, notes| {
            std::fs::create_dir_all(notes).unwrap();
            std::fs::write(notes.join("ready"), "").unwrap();
        };
        for state in [none, bare, mounted, noted, ready_and_gone] {
            state(&dir, &notes);
            assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
            assert!(is_mounted(&dir).unwrap());
            assert_eq!(beneath(&dir).unwrap().len(), 1);
            volumes.tear_down("u-1").unwrap();
            assert!(!root.join("pods/u-1").exists());
            state(&dir, &notes);
            volumes.tear_down("u-1").unwrap();
            assert!(!root.join("pods/u-1").exists());
            assert_eq!(beneath(root).unwrap(), Vec::<PathBuf>::new());
        }
    });
}

#[test]
fn what_a_plugin_that_is_gone_has_left_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    let data = root.path().join("pods/u-1/volumes/kubernetes.io~csi/v/mount");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::create_dir_all(root.path().join("pods/u-1/volumes/kubernetes.io~empty-dir/w")).unwrap();
    let error = volumes.tear_down("u-1").unwrap_err();
    assert_eq!(
        error.told(),
        "failed to tear down volume \"v\" of pod u-1: no volume plugin matched name: kubernetes.io/csi"
    );
    assert!(data.exists());
    assert!(
        !root
            .path()
            .join("pods/u-1/volumes/kubernetes.io~empty-dir/w")
            .exists()
    );
    assert!(!volumes.on_disk("u-1").unwrap()[0].known);
    std::fs::remove_dir(&data).unwrap();
    volumes.tear_down("u-1").unwrap();
    assert!(!root.path().join("pods/u-1").exists());
}

#[test]
fn many_threads_may_work_with_one_pod() {
    let root = tempfile::tempdir().unwrap();
    let objects = Arc::new(Objects::default());
    objects.put_map("m", &[("k", "x")]);
    let volumes = volumes_with(root.path(), &objects);
    let pod = pod_of(r#""configMap": {"name": "m"}"#);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (volumes, pod, objects) = (&volumes, &pod, &objects);
            scope.spawn(move || {
                for round in 0..50 {
                    objects.put_map("m", &[("k", &format!("{number} {round}"))]);
                    assert_eq!(failures(volumes, pod), Vec::<String>::new());
                    volumes.refresh(pod).unwrap();
                    volumes.usage("u-1").unwrap();
                    if number == 3 {
                        volumes.tear_down("u-1").unwrap();
                    }
                }
            });
        }
    });
    volumes.tear_down("u-1").unwrap();
    assert_eq!(volumes.present().unwrap(), Vec::<String>::new());
}
