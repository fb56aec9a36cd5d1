//! A directory tree in one number: everything that a container could see of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

/// The most entries of one tree.
const MAX_ENTRIES: usize = 100_000;
/// The most bytes of an extended attribute's value or of a list of names.
const MAX_XATTR: usize = 64 << 10;

/// The digest of a tree: names, kinds, modes, owners, times, links, devices, attributes and contents.
pub(crate) fn digest(root: &Path) -> Result<String> {
    let mut paths = Vec::new();
    list(root, &mut paths)?;
    paths.sort();
    let mut sum = Sha256::new();
    let mut read = Contents::new();
    for path in &paths {
        entry(root, path, &mut sum, &mut read)
            .with_context(|| format!("failed to read `{}`", path.display()))?;
    }
    Ok(hex(&sum.finalize()))
}

/// The digest of a file's content.
pub(crate) fn file_digest(path: &Path) -> Result<String> {
    let content = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    Ok(hex(&Sha256::digest(content)))
}

/// Digests of contents by inode: hundreds of a shell's commands are links to one file.
type Contents = BTreeMap<u64, String>;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn list(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    ensure!(paths.len() < MAX_ENTRIES, "more than {MAX_ENTRIES} files");
    paths.push(dir.to_owned());
    for entry in fs::read_dir(dir).with_context(|| format!("failed to list `{}`", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), paths)?;
        } else {
            paths.push(entry.path());
        }
    }
    Ok(())
}

fn entry(root: &Path, path: &Path, sum: &mut Sha256, read: &mut Contents) -> Result<()> {
    let of = fs::symlink_metadata(path)?;
    // No container sees the root's own time, nor a whiteout, which is as old as its unpacking.
    let is_whiteout = of.file_type().is_char_device() && of.rdev() == 0;
    let time = if path == root || is_whiteout {
        0
    } else {
        of.mtime()
    };
    let name = path.strip_prefix(root)?;
    sum.update(format!(
        "{name:?} {:o} {}:{} {} {time}\n",
        of.mode(),
        of.uid(),
        of.gid(),
        of.rdev()
    ));
    if of.is_symlink() {
        sum.update(format!("-> {:?}\n", fs::read_link(path)?));
    } else if of.is_file() {
        let content = match read.entry(of.ino()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(file_digest(path)?),
        };
        sum.update(format!("{} bytes {content}\n", of.len()));
    }
    for (name, value) in attributes(path)? {
        sum.update(format!("{name}={}\n", hex(&value)));
    }
    Ok(())
}

fn attributes(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; MAX_XATTR];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    names.truncate(length);
    let mut found = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MAX_XATTR];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        found.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn every_difference_is_seen() {
        let make = |change: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            fs::create_dir(root.join("sub")).unwrap();
            fs::write(root.join("sub/file"), "content").unwrap();
            std::os::unix::fs::symlink("file", root.join("sub/link")).unwrap();
            change(root);
            for name in ["sub/file", "sub"] {
                let file = fs::File::open(root.join(name)).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }
            // A symbolic link's own time can't be set through it.
            let link = rustix::fs::Timestamps {
                last_access: rustix::fs::Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                last_modification: rustix::fs::Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
            };
            let link_path = root.join("sub/link");
            rustix::fs::utimensat(
                rustix::fs::CWD,
                &link_path,
                &link,
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )
            .unwrap();
            digest(root).unwrap()
        };
        let plain = make(&|_| ());
        assert_eq!(plain, make(&|_| ()));
        let changes: [&dyn Fn(&Path); 5] = [
            &|root| fs::write(root.join("sub/file"), "").unwrap(),
            &|root| fs::set_permissions(root.join("sub/file"), fs::Permissions::from_mode(0o600)).unwrap(),
            &|root| {
                fs::rename(root.join("sub/file"), root.join("sub/other"))
                    .map(|()| fs::write(root.join("sub/file"), "content").unwrap())
                    .unwrap()
            },
            &|root| fs::create_dir(root.join("sub/more")).unwrap(),
            &|root| {
                fs::remove_file(root.join("sub/link")).unwrap();
                std::os::unix::fs::symlink("fil", root.join("sub/link")).unwrap();
            },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert_ne!(plain, make(change), "change {number}");
        }
    }
}
