//! emptyDir, and tearing down.

use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use oci_runtime_sys::mount::FsContext;
use rustix::fs::statvfs;

use super::*;
use crate::backing::remove_all;
use crate::mount::{beneath, detach_all, is_mounted};
use crate::remove::remove_tree;
use crate::{MountSource, PluginError, VolumeError, exceeded};

const PLUGIN: &str = "kubernetes.io~empty-dir";

#[test]
fn an_empty_dir_is_made_once_and_goes_with_its_pod() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    let pod = pod(
        r#"[{"name": "v", "emptyDir": {}}, {"name": "idle", "emptyDir": {}}]"#,
        r#"[{"name": "v", "mountPath": "v", "readOnly": true}]"#,
    );
    assert!(volumes.set_up(&pod).unwrap().is_ready());
    let dir = dir_of(root.path(), PLUGIN);
    assert_eq!(mode(&dir), 0o777);
    assert_eq!(mode(&root.path().join("pods/u-1")), 0o750);
    // What no container mounts isn't made.
    assert!(!dir.with_file_name("idle").exists());
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(dir.join("kept"), "x").unwrap();
    assert!(volumes.set_up(&pod).unwrap().is_ready());
    assert!(!volumes.refresh(&pod).unwrap().changed);
    assert_eq!(std::fs::read(dir.join("kept")).unwrap(), b"x");
    assert_eq!(mode(&dir), 0o700);
    let mounts = volumes.mounts(&pod, "c", &no_env).unwrap();
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].source, MountSource::Path(dir.canonicalize().unwrap()));
    assert_eq!(mounts[0].container_path, "/v");
    assert!(mounts[0].read_only && mounts[0].selinux_relabel && !mounts[0].recursive_read_only);
    assert_eq!(volumes.present().unwrap(), ["u-1"]);
    volumes.tear_down("u-1").unwrap();
    volumes.tear_down("u-1").unwrap();
    assert_eq!(volumes.present().unwrap(), Vec::<String>::new());
}

#[test]
fn names_that_are_no_component_of_a_path_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    for uid in ["", ".", "..", "a/b", "../x"] {
        assert!(
            matches!(volumes.tear_down(uid), Err(VolumeError::Name(_))),
            "{uid}"
        );
        let mut pod = pod_of(r#""emptyDir": {}"#);
        pod.metadata.uid = Some(uid.to_owned());
        assert!(matches!(volumes.set_up(&pod), Err(VolumeError::Name(_))), "{uid}");
    }
    let pod = pod(
        r#"[{"name": "../../x", "emptyDir": {}}]"#,
        r#"[{"name": "../../x", "mountPath": "/v"}]"#,
    );
    assert_eq!(
        failures(&volumes, &pod),
        ["MountVolume.SetUp failed for volume \"../../x\" : `../../x` can't be the name of a directory"]
    );
    assert!(matches!(
        volumes.mounts(&pod, "c", &no_env),
        Err(VolumeError::Name(_))
    ));
}

#[test]
fn an_empty_dir_has_the_mode_that_is_asked_for_and_a_group_comes_on_top() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    volumes.set_up(&pod_of(r#""emptyDir": {"mode": 1005}"#)).unwrap();
    let dir = dir_of(root.path(), PLUGIN);
    assert_eq!(mode(&dir), 0o1755);
    volumes.tear_down("u-1").unwrap();
    let pod = with_group(pod_of(r#""emptyDir": {"mode": 448}"#), 4321);
    assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
    assert_eq!(mode(&dir), 0o2770);
    assert_eq!(dir.metadata().unwrap().gid(), 4321);
}

#[test]
fn memory_is_a_file_system_of_its_own_that_is_no_larger_than_asked_for() {
    in_namespace(|root| {
        let volumes = volumes(root);
        let pod = with_group(
            pod_of(r#""emptyDir": {"medium": "Memory", "sizeLimit": "3Mi"}"#),
            77,
        );
        assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
        let dir = dir_of(root, PLUGIN);
        assert!(is_mounted(&dir).unwrap());
        let system = statvfs(&dir).unwrap();
        assert_eq!(system.f_blocks * system.f_frsize, 3 << 20);
        assert_eq!((mode(&dir), dir.metadata().unwrap().gid()), (0o3777, 77));
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains("~empty-dir/v")).unwrap();
        let noswap = FsContext::open("tmpfs").unwrap().flag("noswap").is_ok();
        assert!(
            line.contains(" tmpfs tmpfs ") && line.contains("noswap") == noswap,
            "{line}"
        );
        std::fs::write(dir.join("kept"), vec![0; 100_000]).unwrap();
        assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
        assert_eq!(beneath(&dir).unwrap().len(), 1);
        let usage = volumes.usage("u-1").unwrap();
        assert!(usage["v"].used_bytes >= 100_000 && usage["v"].capacity_bytes == 3 << 20);
        // After a reboot the note is there and the file system isn't.
        detach_all(&dir).unwrap();
        assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
        assert!(is_mounted(&dir).unwrap() && !dir.join("kept").exists());
        // A mount on top of it, too, goes.
        mount_tmpfs(&dir);
        volumes.tear_down("u-1").unwrap();
        assert_eq!(beneath(root).unwrap(), Vec::<std::path::PathBuf>::new());
        assert!(!root.join("pods/u-1").exists());
    });
}

#[test]
fn huge_pages_have_the_size_that_the_pod_requests() {
    in_namespace(|root| {
        let volumes = volumes(root);
        let mut pod = pod_of(r#""emptyDir": {"medium": "HugePages"}"#);
        assert_eq!(
            failures(&volumes, &pod),
            [
                "MountVolume.SetUp failed for volume \"v\" : medium HugePages: hugePages storage requested, but there is no \
              resource request for huge pages"
            ]
        );
        let resources = serde_json::from_str(r#"{"requests": {"hugepages-2Mi": "4Mi"}}"#).unwrap();
        pod.spec.as_mut().unwrap().containers[0].resources = Some(resources);
        assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains("~empty-dir/v")).unwrap();
        assert!(
            line.contains("hugetlbfs") && line.contains("pagesize=2M"),
            "{line}"
        );
        volumes.tear_down("u-1").unwrap();
    });
}

#[test]
fn unknown_media_and_kinds_are_told_in_upstreams_words() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    assert_eq!(
        failures(&volumes, &pod_of(r#""emptyDir": {"medium": "Tape"}"#)),
        ["MountVolume.SetUp failed for volume \"v\" : unknown storage medium \"Tape\""]
    );
    let pod = pod_of(r#""persistentVolumeClaim": {"claimName": "x"}"#);
    let outcome = volumes.set_up(&pod).unwrap();
    let message = "failed to get Plugin from volumeSpec for volume \"v\" err=no volume plugin matched";
    assert_eq!(outcome.failed[0].message, message);
    assert_eq!(
        outcome.summary().unwrap(),
        format!(
            "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process \
             volumes=[v]: {message}"
        )
    );
    let error = volumes.mounts(&pod, "c", &no_env).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot find volume \"v\" to mount into container \"c\""
    );
}

#[test]
fn tearing_down_follows_no_link_and_enters_no_mount() {
    in_namespace(|root| {
        let outside = root.join("outside");
        std::fs::create_dir_all(outside.join("host/below")).unwrap();
        std::fs::write(outside.join("host/precious"), "x").unwrap();
        let volumes = volumes(root);
        let pod = pod_of(r#""emptyDir": {}"#);
        volumes.set_up(&pod).unwrap();
        let dir = dir_of(root, PLUGIN);
        symlink(outside.join("host"), dir.join("link")).unwrap();
        symlink("/", dir.join("slash")).unwrap();
        std::fs::create_dir_all(dir.join("a/mounted")).unwrap();
        // What a privileged container leaves: the node's directory, mounted in the volume, with a mount below it.
        let place = |path: &Path| oci_runtime_sys::open::place(path).unwrap();
        let source = place(&outside.join("host"));
        crate::mount::bind(source.as_fd(), place(&dir.join("a/mounted")).as_fd()).unwrap();
        mount_tmpfs(&dir.join("a/mounted/below"));
        std::fs::write(dir.join("a/mounted/below/x"), "x").unwrap();
        volumes.tear_down("u-1").unwrap();
        assert!(!root.join("pods/u-1").exists());
        assert_eq!(std::fs::read(outside.join("host/precious")).unwrap(), b"x");
        assert!(outside.join("host/below").exists());
        assert_eq!(beneath(root).unwrap(), Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn removing_ends_at_a_mount_wherever_it_is() {
    in_namespace(|root| {
        let parent = std::fs::File::open(root).unwrap();
        for mounted in ["top", "top/a", "top/a/b/c"] {
            std::fs::create_dir_all(root.join("top/a/b/c")).unwrap();
            mount_tmpfs(&root.join(mounted));
            let precious = root.join(mounted).join("precious");
            std::fs::write(&precious, "x").unwrap();
            let outcome = remove_tree(parent.as_fd(), "top".as_ref(), &root.join("top"));
            assert!(matches!(outcome, Err(PluginError::Mounted(path)) if path == root.join(mounted)));
            assert!(precious.exists());
            remove_all(&root.join("top")).unwrap();
            assert!(!root.join("top").exists());
        }
    });
}

#[test]
fn trees_deeper_than_any_path_are_removed() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    volumes.set_up(&pod_of(r#""emptyDir": {}"#)).unwrap();
    let dir = dir_of(root.path(), PLUGIN);
    let mut at = std::os::fd::OwnedFd::from(std::fs::File::open(&dir).unwrap());
    let name = "n".repeat(200);
    for _ in 0..300 {
        rustix::fs::mkdirat(&at, "sibling", 0o700.into()).unwrap();
        at = crate::folder::make_dir(at.as_fd(), Path::new(&name), 0o700)
            .unwrap()
            .0;
    }
    drop(at);
    assert!(volumes.usage("u-1").unwrap()["v"].partial);
    volumes.tear_down("u-1").unwrap();
    assert!(!root.path().join("pods/u-1").exists());
}

#[test]
fn usage_counts_a_file_with_two_names_once_and_tells_what_exceeds_its_limit() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    let pod = pod_of(r#""emptyDir": {"sizeLimit": "64Ki"}"#);
    volumes.set_up(&pod).unwrap();
    let dir = dir_of(root.path(), PLUGIN);
    std::fs::write(dir.join("one"), vec![1; 40_960]).unwrap();
    std::fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    let usage = volumes.usage("u-1").unwrap();
    assert_eq!(usage["v"].used_inodes, 2);
    assert!((40_960..65_536).contains(&usage["v"].used_bytes), "{usage:?}");
    assert!(usage["v"].capacity_bytes > usage["v"].used_bytes && !usage["v"].partial);
    assert_eq!(exceeded(&pod, &usage), []);
    std::fs::write(dir.join("three"), vec![1; 40_960]).unwrap();
    let over = exceeded(&pod, &volumes.usage("u-1").unwrap());
    assert_eq!(
        over[0].message,
        "Usage of EmptyDir volume \"v\" exceeds the limit \"64Ki\". "
    );
    assert_eq!(over[0].limit_bytes, 65_536);
}
