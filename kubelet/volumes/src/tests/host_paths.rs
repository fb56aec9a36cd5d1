//! hostPath and image volumes.

use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;

use super::*;
use crate::{MountSource, Propagation, Volumes};

fn outcome(volumes: &Volumes, path: &str, kind: &str) -> Option<String> {
    let pod = pod_of(&format!(r#""hostPath": {{"path": "{path}", "type": "{kind}"}}"#));
    let told = failures(volumes, &pod).pop()?;
    let start = "MountVolume.SetUp failed for volume \"v\" : ";
    Some(told.strip_prefix(start).unwrap().to_owned())
}

#[test]
fn every_type_is_checked_in_upstreams_words() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (file, dir, socket, none) = (path("file"), path("dir"), path("socket"), path("none"));
    std::fs::write(&file, "").unwrap();
    std::fs::create_dir(&dir).unwrap();
    let _listening = UnixListener::bind(&socket).unwrap();
    for (path, kind) in [
        (&none, ""),
        (&dir, "Directory"),
        (&dir, "DirectoryOrCreate"),
        (&file, "File"),
        (&file, "FileOrCreate"),
        (&socket, "Socket"),
        (&"/dev/null".to_owned(), "CharDevice"),
    ] {
        assert_eq!(outcome(&volumes, path, kind), None, "{path} {kind}");
    }
    for (path, kind, message) in [
        (
            &file,
            "Directory",
            format!("hostPath type check failed: {file} is not a directory, it's a File"),
        ),
        (
            &file,
            "DirectoryOrCreate",
            format!("hostPath type check failed: {file} is not a directory, it's a File"),
        ),
        (
            &dir,
            "FileOrCreate",
            format!("hostPath type check failed: {dir} is not a file, it's a Directory"),
        ),
        (
            &dir,
            "Socket",
            format!("hostPath type check failed: {dir} is not a socket file, it's a Directory"),
        ),
        (
            &socket,
            "CharDevice",
            format!("hostPath type check failed: {socket} is not a character device, it's a Socket"),
        ),
        (
            &file,
            "BlockDevice",
            format!("hostPath type check failed: {file} is not a block device, it's a File"),
        ),
        (&none, "Directory", format!("hostPath {none} doesn't exist")),
        (&dir, "Folder", "Folder is an invalid volume type".to_owned()),
    ] {
        assert_eq!(outcome(&volumes, path, kind), Some(message), "{path} {kind}");
    }
    let up = format!("{dir}/../x");
    let message = format!("invalid HostPath `{up}`: must not contain '..'");
    assert_eq!(outcome(&volumes, &up, ""), Some(message));
}

#[test]
fn what_is_missing_is_made_where_the_type_says_so_and_stays() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    let (dir, file) = (root.path().join("a/b"), root.path().join("a/b/file"));
    assert_eq!(
        outcome(&volumes, dir.to_str().unwrap(), "DirectoryOrCreate"),
        None
    );
    assert_eq!(outcome(&volumes, file.to_str().unwrap(), "FileOrCreate"), None);
    assert_eq!((mode(&dir), mode(&file)), (0o755, 0o644));
    assert!(file.metadata().unwrap().file_type().is_file());
    let none = root.path().join("x/file");
    let told = outcome(&volumes, none.to_str().unwrap(), "FileOrCreate").unwrap();
    assert!(told.ends_with("No such file or directory (os error 2)"), "{told}");
    volumes.tear_down("u-1").unwrap();
    assert!(file.exists());
}

#[test]
fn a_block_device_is_told_from_others() {
    in_namespace(|root| {
        mount_tmpfs(root);
        let node = root.join("node");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let device = rustix::fs::makedev(7, 200);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &node,
            rustix::fs::FileType::BlockDevice,
            mode,
            device,
        )
        .unwrap();
        assert!(node.metadata().unwrap().file_type().is_block_device());
        let volumes = volumes(&root.join("kubelet"));
        assert_eq!(outcome(&volumes, node.to_str().unwrap(), "BlockDevice"), None);
    });
}

#[test]
fn mounts_carry_propagation_read_only_and_images() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    let pod = pod(
        r#"[{"name": "h", "hostPath": {"path": "/opt"}}, {"name": "i", "image": {"reference": "r/x:1"}}]"#,
        r#"[{"name": "h", "mountPath": "/a", "mountPropagation": "Bidirectional"},
            {"name": "h", "mountPath": "/b", "mountPropagation": "HostToContainer"},
            {"name": "h", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "Enabled"},
            {"name": "i", "mountPath": "/i", "subPathExpr": "$(WHERE)/x"}]"#,
    );
    assert!(volumes.set_up(&pod).unwrap().is_ready());
    let env = |name: &str| (name == "WHERE").then(|| "lib".to_owned());
    let mounts = volumes.mounts(&pod, "c", &env).unwrap();
    assert_eq!(mounts[0].source, MountSource::Path("/opt".into()));
    assert_eq!(mounts[0].propagation, Propagation::Bidirectional);
    assert!(!mounts[0].read_only && !mounts[0].selinux_relabel);
    assert_eq!(mounts[1].propagation, Propagation::HostToContainer);
    assert!(mounts[2].read_only && mounts[2].recursive_read_only);
    let image = MountSource::Image {
        reference: "r/x:1".to_owned(),
        sub_path: "lib/x".to_owned(),
    };
    assert_eq!(mounts[3].source, image);
    assert!(mounts[3].read_only);
    assert_eq!(
        volumes.mounts(&pod, "c", &no_env).unwrap_err().to_string(),
        "missing value for \"WHERE\""
    );
    assert!(volumes.mounts(&pod, "d", &no_env).is_err());
}
