//! Parts of volumes, and who tries to get out of them.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use rustix::fs::{RenameFlags, renameat_with};

use super::*;
use crate::mount::{beneath, is_mounted};
use crate::{MountSource, VolumeError, Volumes};

fn pod_with_part(source: &str, path: &str) -> Pod {
    pod(
        &format!(r#"[{{"name": "v", {source}}}]"#),
        &format!(r#"[{{"name": "v", "mountPath": "/v", "subPath": "{path}"}}]"#),
    )
}

fn part(volumes: &Volumes, pod: &Pod) -> Result<PathBuf, VolumeError> {
    match volumes.mounts(pod, "c", &no_env)?.remove(0).source {
        MountSource::Path(path) => Ok(path),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_part_is_made_and_mounted_by_itself_and_cleaned_away() {
    in_namespace(|root| {
        let volumes = volumes(root);
        let pod = with_group(pod_with_part(r#""emptyDir": {}"#, "a/b/c"), 55);
        volumes.set_up(&pod).unwrap();
        let dir = dir_of(root, "kubernetes.io~empty-dir");
        let path = part(&volumes, &pod).unwrap();
        assert_eq!(path, root.join("pods/u-1/volume-subpaths/v/c/0"));
        assert_eq!(mode(path.parent().unwrap()), 0o750);
        // Like the volume's root, so that who may write there may write here.
        assert_eq!(
            (
                mode(&dir.join("a/b/c")),
                dir.join("a/b/c").metadata().unwrap().gid()
            ),
            (0o2777, 55)
        );
        std::fs::write(path.join("x"), "through the part").unwrap();
        assert_eq!(std::fs::read(dir.join("a/b/c/x")).unwrap(), b"through the part");
        assert_eq!(part(&volumes, &pod).unwrap(), path);
        assert_eq!(beneath(root).unwrap(), std::slice::from_ref(&path));
        // A part that was replaced is mounted anew.
        std::fs::rename(dir.join("a/b/c"), dir.join("old")).unwrap();
        std::fs::write(dir.join("a/b/c"), "a file").unwrap();
        assert_eq!(part(&volumes, &pod).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
        volumes.clean_sub_paths("u-1", "other").unwrap();
        assert!(is_mounted(&path).unwrap());
        volumes.clean_sub_paths("u-1", "c").unwrap();
        assert!(!root.join("pods/u-1/volume-subpaths").exists());
        assert_eq!(beneath(root).unwrap(), Vec::<PathBuf>::new());
        part(&volumes, &pod).unwrap();
        volumes.tear_down("u-1").unwrap();
        assert!(!root.join("pods/u-1").exists());
    });
}

#[test]
fn a_key_of_a_config_map_can_be_mounted_by_itself() {
    in_namespace(|root| {
        let objects = Arc::new(Objects::default());
        objects.put_map("m", &[("k", "first")]);
        let volumes = volumes_with(root, &objects);
        let pod = pod_with_part(r#""configMap": {"name": "m"}"#, "k");
        volumes.set_up(&pod).unwrap();
        let path = part(&volumes, &pod).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        objects.put_map("m", &[("k", "second")]);
        assert!(volumes.refresh(&pod).unwrap().changed);
        // A part doesn't follow; the next container of that name has the new one.
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(part(&volumes, &pod).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
    });
}

#[test]
fn links_are_followed_within_a_volume_and_refused_out_of_it() {
    in_namespace(|root| {
        let host = root.join("host");
        std::fs::create_dir_all(host.join("releases/1")).unwrap();
        std::fs::create_dir_all(root.join("outside")).unwrap();
        symlink("releases/1", host.join("current")).unwrap();
        symlink(root.join("outside"), host.join("absolute")).unwrap();
        symlink("../outside", host.join("upwards")).unwrap();
        symlink("nowhere", host.join("dangling")).unwrap();
        symlink("/proc/self/root", host.join("magic")).unwrap();
        // The volume itself may be a link of the node.
        symlink(&host, root.join("link")).unwrap();
        let volumes = volumes(&root.join("kubelet"));
        let source = format!(r#""hostPath": {{"path": "{}"}}"#, root.join("link").display());
        let path = part(&volumes, &pod_with_part(&source, "current/made")).unwrap();
        let same = |a: &Path, b: &Path| a.metadata().unwrap().ino() == b.metadata().unwrap().ino();
        assert!(same(&path, &host.join("releases/1/made")));
        for path in [
            "absolute",
            "upwards",
            "absolute/x",
            "upwards/x",
            "dangling",
            "dangling/x",
            "magic/tmp",
        ] {
            let error = part(&volumes, &pod_with_part(&source, path)).unwrap_err();
            assert_eq!(
                error.to_string(),
                "failed to create subPath directory for volumeMount \"v\" of container \"c\"",
                "{path}"
            );
            // The kernel's reason would tell of the node's files.
            assert!(std::error::Error::source(&error).is_none());
        }
        let error = part(&volumes, &pod_with_part(&source, "/etc")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "error SubPath `/etc` must not be an absolute path"
        );
        let error = part(&volumes, &pod_with_part(&source, "a/../b")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to provision SubPath `a/../b`: must not contain '..'"
        );
        assert_eq!(std::fs::read_dir(root.join("outside")).unwrap().count(), 0);
        assert!(!host.join("nowhere").exists());
    });
}

/// Exchanges two names in one directory as fast as it can until the test is over. By descriptor, or it would itself
/// follow the links that it swaps.
fn exchange(
    dir: &Path,
    (a, b): (&'static str, &'static str),
    stop: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<u64> {
    let stop = Arc::clone(stop);
    let dir = std::fs::File::open(dir).unwrap();
    std::thread::spawn(move || {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            renameat_with(&dir, a, &dir, b, RenameFlags::EXCHANGE).unwrap();
            count += 1;
            // Longer as it was, or hardly anything would come through.
            let pause = if count % 2 == 0 { 20_000 } else { count % 2_000 };
            (0..pause).for_each(|_| std::hint::spin_loop());
        }
        count
    })
}

#[test]
fn a_part_never_leads_out_of_its_volume_while_somebody_swaps_links() {
    in_namespace(|root| {
        let outside = root.join("outside");
        std::fs::create_dir_all(outside.join("sub/made")).unwrap();
        std::fs::write(outside.join("sub/secret"), "x").unwrap();
        let volumes = volumes(root);
        let pod = pod(
            r#"[{"name": "v", "emptyDir": {}}]"#,
            r#"[{"name": "v", "mountPath": "/v", "subPath": "dir/sub"},
                {"name": "v", "mountPath": "/w", "subPath": "dir/sub/made/new"}]"#,
        );
        volumes.set_up(&pod).unwrap();
        let dir = dir_of(root, "kubernetes.io~empty-dir");
        std::fs::create_dir_all(dir.join("dir/sub")).unwrap();
        std::fs::write(dir.join("dir/sub/inside"), "x").unwrap();
        symlink(&outside, dir.join("evil")).unwrap();
        symlink(outside.join("sub"), dir.join("dir/evil")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        // The namespace is this thread's, and so its children's.
        let swappers = [
            exchange(&dir.join("dir"), ("sub", "evil"), &stop),
            exchange(&dir, ("dir", "evil"), &stop),
        ];
        let (mut mounted, mut refused) = (0, 0);
        for round in 0..200_000 {
            if round >= 2000 && mounted >= 20 && refused >= 20 {
                break;
            }
            match volumes.mounts(&pod, "c", &no_env) {
                Ok(mounts) => {
                    let MountSource::Path(path) = &mounts[0].source else {
                        panic!()
                    };
                    assert!(!path.join("secret").exists());
                    mounted += 1;
                }
                Err(VolumeError::MakeSubPath { .. } | VolumeError::PrepareSubPath { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            volumes.clean_sub_paths("u-1", "c").unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        for swapper in swappers {
            assert!(swapper.join().unwrap() > 0);
        }
        assert!(mounted >= 20 && refused >= 20, "{mounted} {refused}");
        let left: Vec<_> = std::fs::read_dir(outside.join("sub/made")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(beneath(root).unwrap(), Vec::<PathBuf>::new());
    });
}

#[test]
fn nothing_is_made_out_of_a_volume_while_somebody_puts_links_in_its_place() {
    let root = tempfile::tempdir().unwrap();
    let (volume, outside) = (root.path().join("volume"), root.path().join("outside"));
    std::fs::create_dir(&volume).unwrap();
    std::fs::create_dir(&outside).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let new = volume.join("new");
            while !stop.load(Ordering::Relaxed) {
                // Whatever was made goes, a link takes its place, and goes again.
                let _gone = std::fs::remove_dir_all(&new);
                let _put = symlink(&outside, &new);
                let _gone = std::fs::remove_file(&new);
            }
        });
        let mut made = 0;
        for round in 0..2_000_000 {
            if round >= 20_000 && made > 0 {
                break;
            }
            made += u32::from(crate::sub_path::open(&volume, "new/part").is_ok());
        }
        stop.store(true, Ordering::Relaxed);
        assert!(made > 0);
    });
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn taking_a_part_away_leaves_the_nodes_own_mounts() {
    in_namespace(|root| {
        assert!(Volumes::share_root(root).unwrap());
        assert!(!Volumes::share_root(root).unwrap());
        let host = root.join("host");
        std::fs::create_dir_all(host.join("a/b")).unwrap();
        let volumes = volumes(root);
        let pod = pod_with_part(&format!(r#""hostPath": {{"path": "{}"}}"#, host.display()), "a");
        let path = part(&volumes, &pod).unwrap();
        // A mount of the node's that is made later is seen through the part.
        mount_tmpfs(&host.join("a/b"));
        assert!(is_mounted(&path.join("b")).unwrap());
        volumes.tear_down("u-1").unwrap();
        assert!(is_mounted(&host.join("a/b")).unwrap());
        assert!(!path.exists());
    });
}
