use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;

fn change(group: GroupOwnership, dir: &Path) -> Result<(), PluginError> {
    let opened = std::fs::File::open(dir).unwrap();
    group.apply(opened.as_fd(), &AtomicBool::new(false), dir)
}

fn found(path: &Path) -> (u32, u32) {
    let found = path.symlink_metadata().unwrap();
    (found.mode() & 0o7777, found.gid())
}

fn set(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

const GROUP: GroupOwnership = GroupOwnership {
    group: 4242,
    read_only: false,
    on_root_mismatch: true,
};

#[test]
fn everything_gets_the_group_and_what_it_needs_but_nothing_behind_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(outside.path().join("file"), "").unwrap();
    set(&outside.path().join("file"), 0o600);
    set(dir.path(), 0o700);
    std::fs::create_dir_all(path("a/b")).unwrap();
    std::fs::write(path("a/b/file"), "").unwrap();
    std::fs::write(path("a/script"), "").unwrap();
    for (name, mode) in [
        ("a", 0o700),
        ("a/b", 0o755),
        ("a/b/file", 0o600),
        ("a/script", 0o4755),
    ] {
        set(&path(name), mode);
    }
    symlink(outside.path().join("file"), path("link")).unwrap();
    symlink(outside.path(), path("a/folder")).unwrap();
    change(GROUP, dir.path()).unwrap();
    assert_eq!(found(dir.path()), (0o2770, 4242));
    assert_eq!(found(&path("a")), (0o2770, 4242));
    assert_eq!(found(&path("a/b")), (0o2775, 4242));
    assert_eq!(found(&path("a/b/file")), (0o660, 4242));
    assert_eq!(found(&path("a/script")), (0o4775, 4242));
    assert_eq!(found(&path("link")).1, 4242);
    assert_ne!(found(&outside.path().join("file")).1, 4242);
    assert_eq!(found(&outside.path().join("file")).0, 0o600);
    assert_ne!(found(outside.path()).1, 4242);
}

#[test]
fn on_root_mismatch_looks_at_the_root_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    change(GROUP, dir.path()).unwrap();
    set(&file, 0o600);
    change(GROUP, dir.path()).unwrap();
    assert_eq!(found(&file).0, 0o600);
    let always = GroupOwnership {
        on_root_mismatch: false,
        ..GROUP
    };
    change(always, dir.path()).unwrap();
    assert_eq!(found(&file).0, 0o660);
    // A root that lacks a bit, or has another group, makes it do everything.
    for spoil in [0o770, 0o2750, 0o2707] {
        set(&file, 0o600);
        set(dir.path(), spoil);
        change(GROUP, dir.path()).unwrap();
        assert_eq!(found(&file).0, 0o660, "{spoil:o}");
    }
    let other = GroupOwnership { group: 7, ..GROUP };
    change(other, dir.path()).unwrap();
    assert_eq!(found(&file).1, 7);
    let read_only = GroupOwnership {
        read_only: true,
        on_root_mismatch: false,
        ..GROUP
    };
    set(&file, 0o600);
    change(read_only, dir.path()).unwrap();
    assert_eq!(found(&file).0, 0o640);
}

#[test]
fn it_ends_early_when_told_and_leaves_the_root_for_the_next_time() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    set(dir.path(), 0o700);
    let opened = std::fs::File::open(dir.path()).unwrap();
    let outcome = GROUP.apply(opened.as_fd(), &AtomicBool::new(true), dir.path());
    assert!(matches!(outcome, Err(PluginError::Unfinished(_))));
    assert_eq!(found(dir.path()).0, 0o700);
}
