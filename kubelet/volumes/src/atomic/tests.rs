//! Against a model, with a cut at every step, and with readers beside it.

use std::cell::Cell;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

type Files = BTreeMap<String, (String, u32)>;

fn payload(files: &Files) -> Payload {
    let content = |(bytes, mode): &(String, u32)| Content {
        bytes: bytes.clone().into_bytes(),
        mode: *mode,
        user: None,
    };
    files
        .iter()
        .map(|(path, file)| (path.clone(), content(file)))
        .collect()
}

/// Writes, and ends with an error before step `cut`; tells whether it got to its end.
fn write(dir: &Path, files: &Files, cut: usize) -> bool {
    let opened = std::fs::File::open(dir).unwrap();
    let steps = Cell::new(0);
    let writer = Writer {
        dir: opened.as_fd(),
        shown: dir,
        now: "2026-11-21T18:04:47.123456789Z".parse().unwrap(),
        group: None,
        step: &|| {
            steps.set(steps.get() + 1);
            if steps.get() > cut {
                return Err(io::Error::other("cut"));
            }
            Ok(())
        },
    };
    match writer.write(&payload(files)) {
        Ok(_) => true,
        Err(_) if steps.get() > cut => false,
        Err(error) => panic!("{}", error.told()),
    }
}

fn list(dir: &Path, start: &str, found: &mut Files) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{start}{}", entry.file_name().to_str().unwrap());
        let found_at = entry.path().metadata().unwrap();
        if found_at.is_dir() {
            list(&entry.path(), &format!("{name}/"), found);
        } else {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            found.insert(name, (text, found_at.mode() & 0o7777));
        }
    }
}

/// What lies behind `..data`; nothing before the first write.
fn behind_data(dir: &Path) -> Option<Files> {
    let data = dir.join(DATA);
    data.exists().then(|| {
        let mut found = Files::new();
        list(&data, "", &mut found);
        found
    })
}

/// What users find under the links that they see, and that nothing else is there.
fn visible(dir: &Path) -> Files {
    let mut found = Files::new();
    let mut hidden = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("..") {
            hidden += 1;
            continue;
        }
        assert_eq!(
            std::fs::read_link(entry.path()).unwrap(),
            Path::new(DATA).join(&name)
        );
        if entry.path().is_dir() {
            list(&entry.path(), &format!("{name}/"), &mut found);
        } else {
            let mode = entry.path().metadata().unwrap().mode() & 0o7777;
            found.insert(name, (std::fs::read_to_string(entry.path()).unwrap(), mode));
        }
    }
    assert_eq!(hidden, 2, "only ..data and the directory that it leads to");
    found
}

fn files(pairs: &[(&str, &str)]) -> Files {
    let file = |(path, text): &(&str, &str)| ((*path).to_owned(), ((*text).to_owned(), 0o644));
    pairs.iter().map(file).collect()
}

#[test]
fn a_cut_before_any_step_leaves_the_old_or_the_new_and_the_next_write_finishes() {
    let old = files(&[("a", "1"), ("d/x", "old"), ("d/deep/y", "old"), ("gone", "x")]);
    let new = files(&[("a", "2"), ("d/x", "new"), ("e/z", "new"), ("more", "y")]);
    for first in [None, Some(&old)] {
        let mut cuts = 0;
        for cut in 0.. {
            let dir = tempfile::tempdir().unwrap();
            if let Some(first) = first {
                assert!(write(dir.path(), first, usize::MAX));
            }
            let ended = write(dir.path(), &new, cut);
            let found = behind_data(dir.path());
            assert!(
                found.as_ref() == first || found.as_ref() == Some(&new),
                "{cut}: {found:?}"
            );
            // The same again, or back to what was before.
            let next = if cut % 2 == 0 { &new } else { first.unwrap_or(&new) };
            assert!(write(dir.path(), next, usize::MAX));
            assert_eq!(&visible(dir.path()), next, "{cut}");
            if ended {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 15, "{cuts}");
    }
}

#[test]
fn what_is_right_already_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = files(&[("a", "1"), ("d/x", "2")]);
    assert!(write(dir.path(), &wanted, usize::MAX));
    assert!(write(dir.path(), &wanted, 0));
    // Whoever changes a file behind our back is found out.
    let spoil: [&dyn Fn(&Path); 5] = [
        &|data| std::fs::write(data.join("a"), "9").unwrap(),
        &|data| std::fs::remove_file(data.join("d/x")).unwrap(),
        &|data| std::fs::write(data.join("d/more"), "9").unwrap(),
        &|data| std::fs::create_dir(data.join("empty")).unwrap(),
        &|data| set_mode(std::fs::File::open(data.join("a")).unwrap().as_fd(), 0o600).unwrap(),
    ];
    for spoil in spoil {
        spoil(&dir.path().join(DATA));
        assert!(!write(dir.path(), &wanted, 0));
        assert!(write(dir.path(), &wanted, usize::MAX));
        assert_eq!(visible(dir.path()), wanted);
    }
}

#[test]
fn links_that_lead_elsewhere_are_never_followed() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(outside.path().join("precious"), "x").unwrap();
    let link = |name: &str| std::os::unix::fs::symlink(outside.path(), dir.path().join(name)).unwrap();
    link("..leftover");
    link("foreign");
    std::os::unix::fs::symlink("../../x", dir.path().join(DATA)).unwrap();
    let opened = std::fs::File::open(dir.path()).unwrap();
    let writer = Writer {
        dir: opened.as_fd(),
        shown: dir.path(),
        now: Timestamp::UNIX_EPOCH,
        group: None,
        step: &|| Ok(()),
    };
    assert!(writer.write(&payload(&files(&[("a", "1")]))).is_err());
    std::fs::remove_file(dir.path().join(DATA)).unwrap();
    assert!(!writer.write(&payload(&files(&[("a", "1")]))).unwrap());
    assert!(dir.path().join("..leftover").symlink_metadata().is_err());
    // Not ours, so it stays.
    assert!(dir.path().join("foreign").exists());
    assert_eq!(std::fs::read(outside.path().join("precious")).unwrap(), b"x");
}

#[test]
fn paths_that_exclude_each_other_are_refused() {
    for wrong in [
        files(&[("a", "1"), ("a/b", "2")]),
        files(&[("a/../b", "1")]),
        files(&[("..a", "1")]),
        files(&[("/a", "1")]),
        files(&[(".", "1")]),
        files(&[("", "1")]),
        files(&[(&"n".repeat(256), "1")]),
        files(&[(&"n/".repeat(2100), "1")]),
    ] {
        assert!(checked(&payload(&wrong)).is_err(), "{wrong:?}");
    }
    let odd = payload(&files(&[("a//./b/", "1"), ("c/..d", "2")]));
    let clean: Vec<_> = checked(&odd).unwrap().into_keys().collect();
    assert_eq!(clean, [PathBuf::from("a/b"), PathBuf::from("c/..d")]);
}

#[test]
fn readers_see_all_of_one_version_or_all_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let version = |number: u32| {
        let text = number.to_string();
        files(&[("a", &text), ("b", &text), ("d/c", &text)])
    };
    assert!(write(dir.path(), &version(0), usize::MAX));
    let (stop, whole) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // As programs do that want all files of one version: by way of one directory. It goes when the
                        // next version is there, even between looking up the link and opening it.
                        let Ok(data) = std::fs::File::open(dir.path().join(DATA)) else {
                            continue;
                        };
                        let read = |name: &str| {
                            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                            let file = rustix::fs::openat(&data, name, flags, Mode::empty()).ok()?;
                            let mut text = String::new();
                            std::fs::File::from(file).read_to_string(&mut text).ok()?;
                            Some(text)
                        };
                        // A version that is gone meanwhile is read again.
                        let (Some(a), Some(b), Some(c)) = (read("a"), read("b"), read("d/c")) else {
                            continue;
                        };
                        assert!(a == b && b == c, "{a} {b} {c}");
                        let number: u32 = a.parse().unwrap();
                        assert!(number >= last);
                        last = number;
                        whole.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        // As long as it takes until the readers have had their turn.
        for number in 1..100_000 {
            if number >= 300 && whole.load(Ordering::Relaxed) >= 20 {
                break;
            }
            assert!(write(dir.path(), &version(number), usize::MAX));
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(whole.load(Ordering::Relaxed) >= 20);
    });
}

fn some_files() -> impl Strategy<Value = Files> {
    let path = prop::sample::select(vec!["a", "b", "c/x", "c/y/z", "d/e/f", "d/e/g", "h"]);
    let mode = prop::sample::select(vec![0o644, 0o600, 0o400]);
    let file = (path, ("[a-c]{0,3}", mode));
    prop::collection::vec(file, 0..6).prop_map(|files| {
        let own = |(path, file): (&str, _)| (path.to_owned(), file);
        files.into_iter().map(own).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The model: what lies behind `..data` is the last version that got there whole; a write that comes to its end
    /// makes that the wanted one.
    #[test]
    fn any_writes_with_any_cuts_act_like_the_model(
        writes in prop::collection::vec((some_files(), 0_usize..40), 1..8),
        last in some_files(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut model: Option<Files> = None;
        for (wanted, cut) in writes {
            let ended = write(dir.path(), &wanted, cut);
            let found = behind_data(dir.path());
            if ended {
                prop_assert_eq!(&visible(dir.path()), &wanted);
                prop_assert_eq!(found.as_ref(), Some(&wanted));
            } else {
                prop_assert!(found == model || found.as_ref() == Some(&wanted), "{:?}", found);
            }
            model = found;
        }
        prop_assert!(write(dir.path(), &last, usize::MAX));
        prop_assert_eq!(visible(dir.path()), last);
    }
}
