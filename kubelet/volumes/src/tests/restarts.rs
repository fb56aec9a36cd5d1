//! What a new kubelet finds, and what crashes leave.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use controlplane_api::k8s_openapi::api::core::v1::Pod;

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

/// What the victim of the next test does all the time.
const VICTIM: &str = "ORLOP_VOLUMES_VICTIM";

fn busy_pod() -> Pod {
    let pod = pod(
        r#"[{"name": "v", "emptyDir": {"medium": "Memory"}}, {"name": "d", "emptyDir": {}},
            {"name": "m", "configMap": {"name": "m"}}, {"name": "s", "secret": {"secretName": "m"}}]"#,
        r#"[{"name": "v", "mountPath": "/v", "subPath": "part"}, {"name": "d", "mountPath": "/d", "subPath": "a/b"},
            {"name": "m", "mountPath": "/m"}, {"name": "s", "mountPath": "/s"}]"#,
    );
    with_group(pod, 9)
}

fn work_until_killed(root: &Path) {
    oci_runtime_sys::process::set_parent_death_signal(9).unwrap();
    let objects = Arc::new(Objects::default());
    let volumes = volumes_with(root, &objects);
    for round in 0..100_000 {
        for step in 0..4 {
            let text = format!("{round} {step}");
            objects.put_map("m", &[("a", &text), ("b/c", &text)]);
            objects.put_secret("m", &[("a", &text)]);
            assert_eq!(failures(&volumes, &busy_pod()), Vec::<String>::new());
            volumes.mounts(&busy_pod(), "c", &no_env).unwrap();
            let dir = dir_of(root, "kubernetes.io~empty-dir").with_file_name("d");
            std::fs::create_dir_all(dir.join("x/y/z")).unwrap();
        }
        volumes.tear_down("u-1").unwrap();
    }
}

#[test]
fn a_kill_at_any_time_leaves_nothing_that_the_next_kubelet_cant_use_or_remove() {
    const SELF: &str =
        "tests::restarts::a_kill_at_any_time_leaves_nothing_that_the_next_kubelet_cant_use_or_remove";
    if let Some(root) = std::env::var_os(VICTIM) {
        return work_until_killed(Path::new(&root));
    }
    in_namespace(|root| {
        let objects = Arc::new(Objects::default());
        let wanted = [("a", "last"), ("b", "last")];
        objects.put_map("m", &wanted);
        objects.put_secret("m", &wanted);
        let mut found_something = 0;
        for kill in 0..40_u64 {
            let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", SELF, "--nocapture"])
                .env(VICTIM, root)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            // Once it has begun, at another time in each round.
            while !root.join("pods").exists() {
                assert!(victim.try_wait().unwrap().is_none());
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_micros(kill * 1777 % 9000));
            victim.kill().unwrap();
            let status = victim.wait().unwrap();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
            let volumes = volumes_with(root, &objects);
            found_something += u32::from(!volumes.present().unwrap().is_empty());
            if kill % 2 == 0 {
                assert_eq!(failures(&volumes, &busy_pod()), Vec::<String>::new());
                volumes.mounts(&busy_pod(), "c", &no_env).unwrap();
                let dirs = root.join("pods/u-1/volumes");
                let file = |path: &str| std::fs::read_to_string(dirs.join(path)).unwrap();
                assert_eq!(file("kubernetes.io~configmap/m/b"), "last");
                assert_eq!(file("kubernetes.io~secret/s/a"), "last");
                assert_eq!(mode(&dirs.join("kubernetes.io~empty-dir/d")), 0o2777);
                // Two file systems in memory, two parts.
                assert_eq!(beneath(root).unwrap().len(), 4);
                volumes.tear_down("u-1").unwrap();
            } else {
                assert!(volumes.remove_orphans(&[].into()).unwrap().is_empty());
            }
            assert_eq!(volumes.present().unwrap(), Vec::<String>::new());
            assert_eq!(beneath(root).unwrap(), Vec::<PathBuf>::new());
            std::fs::remove_dir(root.join("pods")).unwrap();
        }
        assert!(found_something > 0);
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
