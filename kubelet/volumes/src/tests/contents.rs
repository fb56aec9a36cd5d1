//! configMap, secret, downwardAPI and projected.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::mount::is_mounted;

/// What a program finds in a volume: files and their content, links followed.
fn seen(dir: &Path) -> BTreeMap<String, String> {
    fn add(dir: &Path, start: &str, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{start}{}", entry.file_name().to_str().unwrap());
            if name.starts_with("..") {
                continue;
            }
            if entry.path().is_dir() {
                add(&entry.path(), &format!("{name}/"), found);
            } else {
                found.insert(name, std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    add(dir, "", &mut found);
    found
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
}

#[test]
fn a_config_map_lies_on_disk_in_upstreams_layout_and_follows_its_object() {
    let root = tempfile::tempdir().unwrap();
    let objects = Arc::new(Objects::default());
    let volumes = volumes_with(root.path(), &objects);
    let pod = pod_of(r#""configMap": {"name": "m"}"#);
    assert_eq!(
        failures(&volumes, &pod),
        ["MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found"]
    );
    let dir = dir_of(root.path(), "kubernetes.io~configmap");
    assert!(!dir.exists());
    objects.put_map("m", &[("a", "1"), ("b", "2")]);
    assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
    assert_eq!(seen(&dir), map(&[("a", "1"), ("b", "2")]));
    assert_eq!(std::fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
    let data = std::fs::read_link(dir.join("..data")).unwrap();
    assert!(data.to_str().unwrap().starts_with("..20"), "{data:?}");
    assert_eq!(
        (mode(&dir), mode(&dir.join(&data)), mode(&dir.join("..data/a"))),
        (0o777, 0o755, 0o644)
    );
    let changed_last = dir.metadata().unwrap().ctime_nsec();
    assert!(!volumes.refresh(&pod).unwrap().changed);
    assert_eq!(std::fs::read_link(dir.join("..data")).unwrap(), data);
    assert_eq!(dir.metadata().unwrap().ctime_nsec(), changed_last);
    objects.put_map("m", &[("b", "3"), ("c", "4")]);
    assert!(volumes.refresh(&pod).unwrap().changed);
    assert_eq!(seen(&dir), map(&[("b", "3"), ("c", "4")]));
    assert!(!dir.join(&data).exists() && dir.join("a").symlink_metadata().is_err());
    // An object that is gone leaves what there is.
    objects.maps.lock().unwrap().clear();
    let refreshed = volumes.refresh(&pod).unwrap();
    assert_eq!(refreshed.failed.len(), 1);
    assert_eq!(seen(&dir), map(&[("b", "3"), ("c", "4")]));
    volumes.tear_down("u-1").unwrap();
    // Too late: nothing comes back.
    objects.put_map("m", &[("b", "3")]);
    assert!(!volumes.refresh(&pod).unwrap().changed);
    assert_eq!(volumes.present().unwrap(), Vec::<String>::new());
}

#[test]
fn a_secret_lies_in_memory_and_is_there_in_one_step() {
    in_namespace(|root| {
        let objects = Arc::new(Objects::default());
        let volumes = volumes_with(root, &objects);
        objects.put_secret("s", &[("key", "hidden"), ("other", "x")]);
        let items = r#"[{"key": "key", "path": "deep/er", "mode": 256}]"#;
        let pod = pod_of(&format!(
            r#""secret": {{"secretName": "s", "defaultMode": 292, "items": {items}}}"#
        ));
        let pod = with_group(pod, 99);
        assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
        let dir = dir_of(root, "kubernetes.io~secret");
        assert!(is_mounted(&dir).unwrap());
        assert_eq!(seen(&dir), map(&[("deep/er", "hidden")]));
        let file = dir.join("deep/er").metadata().unwrap();
        assert_eq!((file.mode() & 0o7777, file.gid()), (0o440, 99));
        assert_eq!(mode(&dir.join("..data/deep")), 0o2755);
        assert_eq!(mode(&dir), 0o3777);
        objects.put_secret("s", &[("other", "x")]);
        let failed = volumes.refresh(&pod).unwrap().failed;
        assert_eq!(
            failed[0].message,
            "MountVolume.SetUp failed for volume \"v\" : references non-existent secret key: key"
        );
        assert_eq!(volumes.mounts(&pod, "c", &no_env).unwrap().len(), 1);
        assert!(volumes.usage("u-1").unwrap()["v"].used_bytes > 0);
        volumes.tear_down("u-1").unwrap();
        assert!(!root.join("pods/u-1").exists());
    });
}

#[test]
fn fields_of_the_pod_are_files_with_sorted_lines() {
    in_namespace(|root| {
        let volumes = volumes(root);
        let pod = pod_of(
            r#""downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}, "mode": 384},
                {"path": "cpu", "resourceFieldRef": {"resource": "limits.cpu", "containerName": "c"}}]}"#,
        );
        assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
        let dir = dir_of(root, "kubernetes.io~downward-api");
        assert_eq!(
            seen(&dir),
            map(&[("labels", "a=\"1\"\nb=\"2\""), ("cpu", "limits.cpu")])
        );
        assert_eq!(mode(&dir.join("..data/labels")), 0o600);
        let mut changed = pod.clone();
        changed.metadata.labels = Some([("a".to_owned(), "3".to_owned())].into());
        assert!(volumes.refresh(&changed).unwrap().changed);
        assert_eq!(seen(&dir)["labels"], "a=\"3\"");
        let wrong = pod_of(
            r#""downwardAPI": {"items": [
                {"path": "x", "fieldRef": {"fieldPath": "nonsense"}},
                {"path": "y", "fieldRef": {"fieldPath": "nonsense"}}]}"#,
        );
        let told = failures(&volumes, &wrong);
        assert!(
            told[0].ends_with(": [unsupported fieldPath: nonsense, unsupported fieldPath: nonsense]"),
            "{told:?}"
        );
    });
}

#[test]
fn a_projected_volume_has_all_sources_and_later_ones_win() {
    in_namespace(|root| {
        let objects = Arc::new(Objects::default());
        objects.put_map("m", &[("a", "map"), ("b", "map")]);
        objects.put_secret("s", &[("b", "secret")]);
        let volumes = volumes_with(root, &objects);
        let pod = pod_of(
            r#""projected": {"defaultMode": 416, "sources": [
                {"configMap": {"name": "m"}},
                {"configMap": {"name": "none", "optional": true}},
                {"secret": {"name": "s"}},
                {"secret": {"name": "none", "optional": true}},
                {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                {"serviceAccountToken": {"path": "token", "audience": "me"}},
                {"clusterTrustBundle": {"name": "roots", "path": "ca/roots.pem"}},
                {"clusterTrustBundle": {"name": "none", "path": "ca/none.pem", "optional": true}},
                {"podCertificate": {"signerName": "x/y", "keyType": "ED25519", "keyPath": "tls/key",
                    "credentialBundlePath": "tls/both"}}]}"#,
        );
        assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
        let dir = dir_of(root, "kubernetes.io~projected");
        let expected = map(&[
            ("a", "map"),
            ("b", "secret"),
            ("ca/none.pem", ""),
            ("ca/roots.pem", "PEM"),
            ("name", "metadata.name"),
            ("tls/both", "key of v 8\nchain\n"),
            ("tls/key", "key of v 8\n"),
            ("token", "token for me"),
        ]);
        assert_eq!(seen(&dir), expected);
        assert_eq!(mode(&dir.join("..data/token")), 0o640);
        // Once it is known who reads a credential, nobody else may.
        let mut mine = pod.clone();
        let context = mine
            .spec
            .as_mut()
            .unwrap()
            .security_context
            .get_or_insert_default();
        context.run_as_user = Some(1234);
        assert!(volumes.refresh(&mine).unwrap().changed);
        let token = dir.join("token").metadata().unwrap();
        assert_eq!((token.mode() & 0o7777, token.uid()), (0o600, 1234));
        assert_eq!(dir.join("a").metadata().unwrap().uid(), 0);
        let wrong = pod_of(
            r#""projected": {"sources": [
                {"configMap": {"name": "none"}},
                {"clusterTrustBundle": {"name": "none", "path": "x"}},
                {"serviceAccountToken": {"path": "token", "audience": "nobody"}}]}"#,
        );
        let told = failures(&volumes, &wrong);
        assert_eq!(
            told,
            [
                "MountVolume.SetUp failed for volume \"v\" : [configmap \"none\" not found, clustertrustbundle \"none\" not \
              found, no token: refused]"
            ]
        );
        assert_eq!(seen(&dir), expected);
    });
}

#[test]
fn paths_that_lead_out_of_a_volume_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let objects = Arc::new(Objects::default());
    objects.put_map("m", &[("k", "x")]);
    let volumes = volumes_with(root.path(), &objects);
    for (path, why) in [
        ("../x", "must not contain '..': ../x"),
        ("a/../../x", "must not contain '..': a/../../x"),
        ("..x", "must not start with '..': ..x"),
        ("./..data/x", "must not start with '..': ./..data/x"),
        ("/etc/passwd", "must be relative path: /etc/passwd"),
        ("", "must not be empty: \\\"\\\""),
    ] {
        let pod = pod_of(&format!(
            r#""configMap": {{"name": "m", "items": [{{"key": "k", "path": "{path}"}}]}}"#
        ));
        let told = failures(&volumes, &pod);
        assert_eq!(
            told,
            [format!(
                "MountVolume.SetUp failed for volume \"v\" : invalid path: {}",
                why.replace('\\', "")
            )]
        );
    }
    assert!(
        !root
            .path()
            .join("pods/u-1/volumes/kubernetes.io~configmap/x")
            .exists()
    );
}

#[test]
fn volumes_that_are_mounted_in_a_read_only_one_find_their_place() {
    let root = tempfile::tempdir().unwrap();
    let objects = Arc::new(Objects::default());
    objects.put_map("m", &[("k", "x")]);
    let volumes = volumes_with(root.path(), &objects);
    let pod = pod(
        r#"[{"name": "v", "configMap": {"name": "m"}}, {"name": "w", "emptyDir": {}}]"#,
        r#"[{"name": "v", "mountPath": "/etc/v"}, {"name": "w", "mountPath": "/etc/v/in/side"},
            {"name": "w", "mountPath": "/etc/vnot"}]"#,
    );
    assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
    let dir = dir_of(root.path(), "kubernetes.io~configmap");
    assert!(dir.join("in/side").is_dir());
    objects.put_map("m", &[("l", "y")]);
    assert!(volumes.refresh(&pod).unwrap().changed);
    assert!(dir.join("in/side").is_dir());
    assert_eq!(seen(&dir), map(&[("l", "y")]));
}
