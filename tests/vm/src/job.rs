//! The job's disk: the workspace with what was built, for the same paths in the guest as here.
//!
//! Always on it: the sources (tests read data beside them), `orlop` and `testbed` of cargo's target folder. More by
//! name: test executables, without their debugging information, which is nine tenths of them. A folder of hard links is
//! put together and `mke2fs -d` writes the disk; both only if something changed, by size, time and inode.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::store::{Entry, Store, key, target, workspace};

/// The size of the disk, the same for every job, so that a saved guest can be given another; the file is sparse.
const DISK_MIB: u64 = 4096;
/// Executables above that size lose their debugging information.
const STRIPPED_ABOVE: u64 = 1 << 20;
/// More would be a mistake, such as a whole target folder.
const MOST_BYTES: u64 = 3 << 30;

/// The job's disk with the workspace and `more`, made if it isn't there; whether it was.
pub(crate) fn ensure(store: &Store, more: &[PathBuf]) -> Result<(Entry, PathBuf, bool)> {
    let files = files(more)?;
    let mut stamp = String::new();
    let mut bytes = 0;
    for (path, meta) in &files {
        let (size, ino, mode) = (meta.size(), meta.ino(), meta.mode());
        stamp.push_str(&format!(
            "{}\0{size} {}.{} {ino} {mode}\n",
            path.display(),
            meta.mtime(),
            meta.mtime_nsec()
        ));
        bytes += size;
    }
    ensure!(
        bytes <= MOST_BYTES,
        "the job has {} MiB; at most {} fit",
        bytes >> 20,
        MOST_BYTES >> 20
    );
    let key = key(&[stamp.as_bytes(), &DISK_MIB.to_be_bytes()]);
    let (entry, known) = store.ensure("jobs", &key, |half| {
        store.needs_mib((bytes >> 20) + 256, "making the job's disk")?;
        make(store, half, &files)
    })?;
    let disk = entry.path.join("job.img");
    Ok((entry, disk, known))
}

/// The executables of a cargo profile's folder, without those below it.
pub(crate) fn programs(profile: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(profile)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .metadata()
                .is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
        })
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_none())
        .collect();
    found.sort();
    found
}

type Files = BTreeMap<PathBuf, fs::Metadata>;

fn files(more: &[PathBuf]) -> Result<Files> {
    let mut found = Files::new();
    let (root, target) = (workspace(), target());
    add(&mut found, &root, &|path| {
        path == target || path.file_name().is_some_and(|n| n == ".git" || n == "target")
    })?;
    for name in ["orlop", "testbed"] {
        let folder = target.join(name);
        // What is being built there has a name with a dot.
        let hidden = |path: &Path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with('.'))
        };
        if folder.is_dir() {
            add(&mut found, &folder, &hidden)?;
        }
    }
    for path in more {
        let path = path
            .canonicalize()
            .with_context(|| format!("failed to find `{}`", path.display()))?;
        ensure!(
            path.starts_with(&root) || path.starts_with(&target),
            "`{}` lies outside the workspace, and so can't be at the same path in the guest",
            path.display()
        );
        add(&mut found, &path, &|_| false)?;
    }
    Ok(found)
}

fn add(found: &mut Files, path: &Path, skip: &dyn Fn(&Path) -> bool) -> Result<()> {
    let meta = match fs::symlink_metadata(path) {
        // Gone since its folder was read.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        meta => meta.with_context(|| format!("failed to look at `{}`", path.display()))?,
    };
    if meta.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("failed to list `{}`", path.display()))? {
            let path = entry?.path();
            if !skip(&path) {
                add(found, &path, skip)?;
            }
        }
    } else if meta.is_file() || meta.is_symlink() {
        found.insert(path.to_owned(), meta);
    }
    Ok(())
}

fn make(store: &Store, half: &Path, files: &Files) -> Result<()> {
    let staging = half.join("staging");
    let root = workspace();
    fs::create_dir_all(&staging)?;
    // Kept until the disk is written.
    let mut stripped = Vec::new();
    for (path, meta) in files {
        let place = staging.join(path.strip_prefix(&root).with_context(|| {
            format!(
                "cargo's target folder `{}` lies outside the workspace",
                target().display()
            )
        })?);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        if meta.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(path)?, &place)?;
            continue;
        }
        let entry = strip(store, path, meta)?;
        let from = entry.as_ref().map_or(path.clone(), |e| e.path.join("it"));
        stripped.extend(entry);
        if fs::hard_link(&from, &place).is_err() {
            // On another disk, or not ours: then a copy must do.
            match fs::copy(&from, &place) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                copied => {
                    copied.with_context(|| format!("failed to copy `{}`", path.display()))?;
                }
            }
        }
    }
    let output = Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-L",
            "job",
            "-m",
            "0",
            "-O",
            "^has_journal",
            "-E",
            "root_owner=0:0",
            "-d",
        ])
        .arg(&staging)
        .arg(half.join("job.img"))
        .arg(format!("{DISK_MIB}M"))
        .env("PATH", crate::qemu::PATH)
        .output()
        .context("failed to run `mke2fs`")?;
    ensure!(
        output.status.success(),
        "`mke2fs` failed to write the job's disk: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::remove_dir_all(&staging).context("failed to remove the staging folder")
}

/// A large executable of cargo's without its debugging information.
fn strip(store: &Store, path: &Path, meta: &fs::Metadata) -> Result<Option<Entry>> {
    let built = ["debug", "release"]
        .iter()
        .any(|profile| path.starts_with(target().join(profile)));
    if !built || meta.size() < STRIPPED_ABOVE || meta.mode() & 0o111 == 0 {
        return Ok(None);
    }
    let stamp = format!(
        "{} {} {}.{}",
        meta.size(),
        meta.ino(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    let key = key(&[path.as_os_str().as_encoded_bytes(), stamp.as_bytes()]);
    let (entry, _) = store.ensure("stripped", &key, |half| {
        let output = Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(half.join("it"))
            .arg(path)
            .output()
            .context("failed to run `strip` (binutils)")?;
        ensure!(
            output.status.success(),
            "failed to strip `{}`: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    })?;
    Ok(Some(entry))
}

/// The disk of a guest that is being saved, before it has a job: of the right size, and empty.
pub(crate) fn blank(file: &Path) -> Result<()> {
    let made = fs::File::create(file).with_context(|| format!("failed to create `{}`", file.display()))?;
    made.set_len(DISK_MIB << 20)
        .context("failed to size the empty disk")
}
