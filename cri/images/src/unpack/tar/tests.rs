//! Archives of several writers, damaged ones, and any bytes at all.

use proptest::prelude::*;

use super::fields::signed;
use super::pax::timestamp;
use super::*;

fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut archive = Archive::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut data = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match archive.read_data(&mut buffer)? {
                0 => break,
                read => data.extend_from_slice(&buffer[..read]),
            }
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

#[test]
fn numbers_of_all_forms() {
    assert_eq!(signed(b"0000644\0"), Some(0o644));
    assert_eq!(signed(b" 644 \0"), Some(0o644));
    assert_eq!(signed(b"\0\0\0\0"), Some(0));
    assert_eq!(signed(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(2 << 32));
    assert_eq!(
        signed(&[
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
        ]),
        Some(-1)
    );
    assert_eq!(signed(b"9"), None);
    assert_eq!(timestamp(b"12.5"), Some((12, 500_000_000)));
    assert_eq!(timestamp(b"-12.25"), Some((-13, 750_000_000)));
    assert_eq!(timestamp(b"1.x"), None);
}

#[test]
fn names_longer_than_a_header_and_attributes() {
    let long = "d/".repeat(120) + "file";
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.user.a", &b"v=1\n"[..]),
            ("mtime", b"7.25"),
            ("uid", b"70000"),
        ])
        .unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o4755);
    builder.append_data(&mut header, "short", &b"hello"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", "x".repeat(300)).unwrap();
    let entries = entries(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(entries[0].0.xattrs, [(b"user.a".to_vec(), b"v=1\n".to_vec())]);
    assert_eq!(
        (entries[0].0.mtime, entries[0].0.uid, entries[0].0.mode),
        ((7, 250_000_000), 70000, 0o4755)
    );
    assert_eq!(entries[0].1, b"hello");
    assert_eq!(
        (&entries[1].0.path[..], &entries[1].1[..]),
        (long.as_bytes(), &b"abc"[..])
    );
    assert!(entries[1].0.xattrs.is_empty());
    assert_eq!((entries[2].0.kind, entries[2].0.link.len()), (Kind::Symlink, 300));
}

#[test]
fn a_huge_extension_is_refused_before_it_is_read() {
    for kind in [b'L', b'K', b'x', b'g'] {
        let mut header = tar::Header::new_gnu();
        header.set_size(MAX_EXTENSION + 1);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_cksum();
        assert!(matches!(
            entries(header.as_bytes()),
            Err(TarError::Extension { .. })
        ));
    }
}

#[test]
fn sizes_of_what_has_no_data_mean_nothing() {
    for kind in b'1'..=b'6' {
        let mut bytes = Vec::new();
        for kind in [kind, b'0'] {
            let mut header = tar::Header::new_ustar();
            header.set_path(format!("{}", char::from(kind))).unwrap();
            header.set_size(if kind == b'0' { 0 } else { 4096 });
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
        }
        let entries = entries(&bytes).unwrap();
        assert_eq!(entries.len(), 2, "{}", char::from(kind));
        assert_eq!((&entries[1].0.path[..], entries[0].0.size), (&b"0"[..], 0));
    }
}

#[test]
fn damage_and_truncation_are_errors() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(1000);
    builder.append_data(&mut header, "a", &[7; 1000][..]).unwrap();
    let whole = builder.into_inner().unwrap();
    assert_eq!(entries(&whole).unwrap().len(), 1);
    for cut in [1, 511, 513, 1024, 1535] {
        assert!(matches!(entries(&whole[..cut]), Err(TarError::Read(_))), "{cut}");
    }
    let mut damaged = whole;
    damaged[0] ^= 1;
    assert!(matches!(entries(&damaged), Err(TarError::Header(0))));
}

#[test]
fn sparse_files_of_gnu_tar_in_all_formats() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("holes")).unwrap();
    for n in 0..40_u64 {
        std::os::unix::fs::FileExt::write_at(&file, &[b'x'; 4096], n * 65536).unwrap();
    }
    file.set_len(40 * 65536 + 1).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--sparse-version=0.1", "--format=pax"],
        &["--sparse-version=1.0", "--format=pax"],
    ] {
        let output = std::process::Command::new("tar")
            .args(["-cS", "-f", "-"])
            .args(format)
            .arg("-C")
            .arg(dir.path())
            .arg("holes")
            .output()
            .unwrap();
        assert!(output.status.success());
        let entries = entries(&output.stdout).unwrap();
        let (entry, data) = &entries[0];
        assert_eq!(
            (&entry.path[..], entry.size),
            (&b"holes"[..], 40 * 65536 + 1),
            "{format:?}"
        );
        let regions = entry.regions.as_ref().unwrap();
        assert!(
            regions.iter().filter(|r| r.1 == 4096).count() >= 40,
            "{format:?}: {regions:?}"
        );
        assert!(data.len() >= 40 * 4096 && data.iter().filter(|b| **b == b'x').count() == 40 * 4096);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        flips in proptest::collection::vec((0_usize..512, any::<u8>()), 0..8),
    ) {
        let _ = entries(&bytes);
        // Close to a good archive, with a good checksum, more is reached.
        let mut header = tar::Header::new_gnu();
        for (at, value) in flips {
            header.as_mut_bytes()[at] = value;
        }
        header.set_cksum();
        let _ = entries(&[header.as_bytes(), &bytes[..]].concat());
    }
}
