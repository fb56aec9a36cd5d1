//! Layers as archives in memory, unpacked as root into a directory of the test's own.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::testing::archive::{Attributes, Builder, PLAIN};

/// A layer's directory, and beside it a file that no layer may reach.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn unpack(&self, builder: &Builder) -> Result<u64, UnpackError> {
        let root = self.dir.path().join("root");
        let result = unpack(
            &builder.bytes[..],
            &root,
            &[],
            OverlayXattrs::Trusted,
            &Limits::default(),
        );
        let result = result.map(|unpacked| unpacked.entries);
        assert_eq!(
            fs::read_to_string(self.dir.path().join("outside")).unwrap(),
            "untouched"
        );
        assert_eq!(
            fs::read_dir(self.dir.path()).unwrap().count(),
            2,
            "something was made beside the root"
        );
        result
    }

    fn refused(&self, builder: &Builder, name: &str) -> EntryError {
        match self.unpack(builder).unwrap_err() {
            UnpackError::Entry { path, source } => {
                assert_eq!(path, name);
                source
            }
            other => panic!("{other:?}"),
        }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap()
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let meta = fs::symlink_metadata(self.at(name)).unwrap();
        meta.file_type().is_char_device() && meta.rdev() == 0
    }

    fn xattr(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        let mut value = [0; 256];
        let size = rustix::fs::lgetxattr(self.at(name), key, &mut value).ok()?;
        Some(value[..size].to_vec())
    }

    fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

#[test]
fn attributes_arrive() {
    let place = Place::new();
    let setuid = Attributes {
        mode: 0o4711,
        uid: 1234,
        gid: 70_000,
        ..PLAIN
    };
    let sticky = Attributes {
        mode: 0o1777,
        uid: 5,
        gid: 6,
        mtime: 1_000_000_000,
        device: (0, 0),
    };
    // What `setcap cap_net_raw+ep` writes.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let builder = Builder::new()
        .entry(
            b'5',
            "./",
            "",
            b"",
            &Attributes {
                mode: 0o750,
                uid: 3,
                gid: 4,
                ..PLAIN
            },
        )
        .entry(b'5', "tmp/", "", b"", &sticky)
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.x", b"y"),
        ])
        .entry(b'0', "tmp/ping", "", b"binary", &setuid)
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .dir("plain")
        .entry(
            b'3',
            "null",
            "",
            b"",
            &Attributes {
                mode: 0o666,
                device: (1, 3),
                uid: 9,
                ..PLAIN
            },
        )
        .entry(
            b'4',
            "disk",
            "",
            b"",
            &Attributes {
                mode: 0o660,
                device: (8, 1),
                ..PLAIN
            },
        )
        .entry(b'6', "fifo", "", b"", &PLAIN)
        .symlink("link", "/etc/passwd")
        .file("zero", "");
    assert_eq!(place.unpack(&builder).unwrap(), 9);
    let meta = |name: &str| fs::symlink_metadata(place.at(name)).unwrap();
    let ping = meta("tmp/ping");
    assert_eq!(
        (ping.mode() & 0o7777, ping.uid(), ping.gid(), ping.mtime()),
        (0o4711, 1234, 70_000, 1_500_000_000)
    );
    assert_eq!(
        place.xattr("tmp/ping", "security.capability").unwrap(),
        capability
    );
    assert_eq!(place.xattr("tmp/ping", "user.x").unwrap(), b"y");
    assert_eq!(
        (
            meta("tmp").mode() & 0o7777,
            meta("tmp").uid(),
            meta("tmp").mtime()
        ),
        (0o1777, 5, 1_000_000_000)
    );
    assert_eq!(
        (meta("").mode() & 0o7777, meta("").uid(), meta("").gid()),
        (0o750, 3, 4)
    );
    assert!(place.xattr("plain", "trusted.overlay.redirect").is_none());
    assert!(place.xattr("plain", "user.overlay.opaque").is_none());
    assert_eq!(
        (
            meta("null").rdev(),
            meta("null").mode() & 0o7777,
            meta("null").uid()
        ),
        (0x103, 0o666, 9)
    );
    assert!(meta("disk").file_type().is_block_device() && meta("fifo").file_type().is_fifo());
    assert_eq!(
        fs::read_link(place.at("link")).unwrap().to_str(),
        Some("/etc/passwd")
    );
    assert_eq!(meta("link").mtime(), 1_500_000_000);
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let place = Place::new();
    let builder = Builder::new()
        .file(".wh.gone", "")
        .file("a/.wh..wh..opq", "")
        .file("a/new", "1")
        .file("b/kept", "1")
        .file("b/.wh.kept", "")
        .file(".wh.c", "")
        .dir("c")
        .file("c/new", "1")
        .dir("d")
        .file("d/x", "1")
        .file(".wh.d", "")
        .file(".wh.e", "")
        .file("e/implicit", "1")
        .file(".wh.f", "")
        .file("f", "again")
        .file(".wh..wh.plnk/1.2", "aufs")
        .file(".wh..wh.aufs", "aufs");
    place.unpack(&builder).unwrap();
    assert!(place.is_whiteout("gone"));
    assert!(place.is_opaque("a") && place.text("a/new") == "1");
    assert!(place.text("b/kept") == "1" && !place.is_opaque("b"));
    for (dir, file) in [("c", "c/new"), ("d", "d/x"), ("e", "e/implicit")] {
        assert!(place.is_opaque(dir) && place.text(file) == "1", "{dir}");
    }
    assert_eq!(place.text("f"), "again");
    assert_eq!(fs::read_dir(place.at("")).unwrap().count(), 7);
    for bad in [".wh.", ".wh..", ".wh...", "a/.wh.x/y"] {
        assert!(
            matches!(
                Place::new().refused(&Builder::new().file(bad, ""), bad),
                EntryError::Whiteout
            ),
            "{bad}"
        );
    }
}

#[test]
fn names_that_climb_are_refused() {
    for bad in [
        "../outside",
        "a/../../outside",
        "..",
        "/../outside",
        "./../outside",
    ] {
        for builder in [
            Builder::new().file(bad, "x"),
            Builder::new().dir(bad),
            Builder::new().symlink(bad, "x"),
            Builder::new().hard_link(bad, "x"),
        ] {
            assert!(
                matches!(Place::new().refused(&builder, bad), EntryError::Climbs),
                "{bad}"
            );
        }
    }
    let place = Place::new();
    place.unpack(&Builder::new().file("a/../b", "x")).unwrap();
    assert!(place.text("b") == "x" && !place.at("a").exists());
    let root = Builder::new().file("a/..", "x");
    assert!(matches!(place.refused(&root, "a/.."), EntryError::Root));
    assert!(matches!(
        place.refused(&Builder::new().file("", "x"), ""),
        EntryError::Name
    ));
    let deep = "a/".repeat(45) + "f";
    place
        .unpack(
            &Builder::new()
                .file(&deep, "x")
                .file("/absolute", "x")
                .file("./dot/./x", "x"),
        )
        .unwrap();
    assert!(place.at("absolute").exists() && place.at("dot/x").exists());
}

#[test]
fn symlinks_as_directories_lead_nowhere_outside() {
    // Absolute, climbing, and through the directory above the root: all from the root of the image.
    for (target, at) in [
        ("/", "new"),
        ("/tmp", "tmp/new"),
        ("..", "new"),
        ("../..", "new"),
        ("../../../../../../..", "new"),
        ("../outside", "outside/new"),
        ("nowhere", "nowhere/new"),
        ("/var/../../run/x", "run/x/new"),
    ] {
        let place = Place::new();
        let builder = Builder::new()
            .dir("tmp")
            .symlink("link", target)
            .file("link/new", "x")
            .file("link/another", "y");
        place.unpack(&builder).unwrap();
        assert_eq!(place.text(at), "x", "{target}");
        assert_eq!(fs::read_link(place.at("link")).unwrap().to_str(), Some(target));
    }
    let place = Place::new();
    place
        .unpack(
            &Builder::new()
                .dir("usr/lib")
                .symlink("lib", "/usr/lib")
                .file("lib/so", "x"),
        )
        .unwrap();
    assert_eq!(place.text("usr/lib/so"), "x");
    let looped = Builder::new().symlink("l", "l").file("l/x", "");
    assert!(matches!(Place::new().refused(&looped, "l/x"), EntryError::Parent));
    let mut links = Builder::new();
    for n in 0..41 {
        links = links.symlink(&format!("l{n}"), &format!("l{}", n + 1));
    }
    let links = links.file("l0/x", "");
    assert!(matches!(Place::new().refused(&links, "l0/x"), EntryError::Parent));
    let long = Builder::new()
        .symlink("l", &"a/../".repeat(15))
        .file(&"l/".repeat(20), "");
    assert!(Place::new().unpack(&long).is_ok());
    let file = Builder::new().file("f", "").file("f/x", "");
    assert!(matches!(Place::new().refused(&file, "f/x"), EntryError::Parent));
    let magic = Builder::new()
        .symlink("proc", "/proc/self/root")
        .file("proc/x", "");
    assert!(matches!(
        Place::new().refused(&magic, "proc/x"),
        EntryError::Parent
    ));
}

#[test]
fn what_has_the_name_is_replaced_and_not_written_through() {
    let place = Place::new();
    symlink("../outside", place.at("before")).unwrap();
    let builder = Builder::new()
        .file("before", "file")
        .symlink("link", "../outside")
        .file("link", "file")
        .dir("dir/deep/deeper")
        .file("dir/deep/deeper/x", "")
        .symlink("dir", "../outside")
        .file("file", "")
        .dir("file")
        .file("file/x", "1")
        .dir("file")
        .hard_link("self", "file/x")
        .hard_link("self", "self");
    place.unpack(&builder).unwrap();
    assert_eq!(
        (place.text("before"), place.text("link")),
        ("file".into(), "file".into())
    );
    assert!(
        fs::symlink_metadata(place.at("dir"))
            .unwrap()
            .file_type()
            .is_symlink()
    );
    assert_eq!(
        (place.text("file/x"), place.text("self")),
        ("1".into(), "1".into())
    );
}

#[test]
fn hard_links_stay_in_the_layer() {
    let place = Place::new();
    let builder = Builder::new()
        .file("bin/busybox", "elf")
        .hard_link("bin/ls", "bin/busybox")
        .hard_link("usr/bin/cat", "/bin/busybox")
        .symlink("abs", "/etc")
        .hard_link("also", "abs");
    place.unpack(&builder).unwrap();
    assert_eq!(fs::metadata(place.at("usr/bin/cat")).unwrap().nlink(), 3);
    assert!(
        fs::symlink_metadata(place.at("also"))
            .unwrap()
            .file_type()
            .is_symlink()
    );
    let climbing = Builder::new().hard_link("x", "../outside");
    assert!(matches!(Place::new().refused(&climbing, "x"), EntryError::Climbs));
    let through = Builder::new().symlink("up", "..").hard_link("x", "up/outside");
    assert!(matches!(
        Place::new().refused(&through, "x"),
        EntryError::LinkTarget(_)
    ));
    let absolute = Builder::new().symlink("etc", "/etc").hard_link("x", "etc/passwd");
    assert!(matches!(
        Place::new().refused(&absolute, "x"),
        EntryError::LinkTarget(_)
    ));
    let host = Builder::new().hard_link("x", "/etc/passwd");
    assert!(matches!(
        Place::new().refused(&host, "x"),
        EntryError::LinkTarget(_)
    ));
}

#[test]
fn sparse_files_keep_their_holes() {
    let source = tempfile::tempdir().unwrap();
    let file = fs::File::create(source.path().join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"begin", 0).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"end", 50 << 20).unwrap();
    let output = std::process::Command::new("tar")
        .arg("-cSC")
        .arg(source.path())
        .arg("holes")
        .output()
        .unwrap();
    let place = Place::new();
    place.unpack(&Builder { bytes: output.stdout }).unwrap();
    let meta = fs::metadata(place.at("holes")).unwrap();
    assert!(meta.len() == (50 << 20) + 3 && meta.blocks() < 1000);
    assert!(fs::read(place.at("holes")).unwrap() == fs::read(source.path().join("holes")).unwrap());
}

#[test]
fn bounds_and_unknown_types_end_the_unpacking() {
    let place = Place::new();
    let limits = Limits {
        layer_entries: 2,
        ..Limits::default()
    };
    let three = Builder::new().file("a", "").file("b", "").file("c", "");
    let error = unpack(
        &three.bytes[..],
        &place.at(""),
        &[],
        OverlayXattrs::Trusted,
        &limits,
    )
    .unwrap_err();
    assert!(matches!(error, UnpackError::TooManyEntries(2)));
    let odd = Builder::new().entry(b'V', "volume", "", b"", &PLAIN);
    assert!(matches!(
        place.refused(&odd, "volume"),
        EntryError::Unsupported('V')
    ));
    let root = Builder::new().file("./", "x");
    assert!(
        place.unpack(&root).is_ok(),
        "a file with a slash at the end is a directory of old"
    );
    assert!(matches!(
        place.refused(&Builder::new().symlink(".", "x"), "."),
        EntryError::Root
    ));
    // Directories without entries count as well.
    let place = Place::new();
    let deep = Builder::new().file("a/b/c/d", "");
    let error = unpack(
        &deep.bytes[..],
        &place.at("deep"),
        &[],
        OverlayXattrs::Trusted,
        &limits,
    );
    assert!(matches!(error, Err(UnpackError::Root(_))));
    let error = unpack(
        &deep.bytes[..],
        &place.at(""),
        &[],
        OverlayXattrs::Trusted,
        &limits,
    );
    assert!(matches!(error, Err(UnpackError::TooManyEntries(2))));
    fs::remove_dir_all(place.at("a")).unwrap();
    let mut cut = Builder::new().file("a", &"x".repeat(2000));
    cut.bytes.truncate(1000);
    assert!(matches!(place.refused(&cut, "a"), EntryError::Read(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_comes_stays_below_the_root(
        entries in proptest::collection::vec(
            (
                prop_oneof![Just(b'0'), Just(b'1'), Just(b'2'), Just(b'5'), Just(b'3'), Just(b'6')],
                "(\\./|/|\\.\\./)?[ab]?(/([abc]|\\.\\.|\\.wh\\.[ab]|\\.wh\\.\\.wh\\.\\.opq|\\.)){0,3}",
                "(/|\\.\\./){0,3}[abc]?(/([abc]|\\.\\.)){0,3}",
            ),
            0..12,
        )
    ) {
        let place = Place::new();
        let mut builder = Builder::new();
        for (kind, name, link) in &entries {
            let content: &[u8] = if *kind == b'0' { b"content" } else { b"" };
            builder = builder.entry(*kind, name, link, content, &PLAIN);
        }
        let _ = place.unpack(&builder);
    }
}
