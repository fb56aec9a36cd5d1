//! Disks that survive their guests.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::store::Store;

/// What a disk is formatted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    /// Its name for `mount`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A raw file that is a guest's disk. What the guest's kernel wrote to it stays, whatever becomes of the guest; what
/// was only in the guest's page cache when QEMU was killed is gone, as with a power cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    pub(crate) system: FileSystem,
    pub(crate) place: String,
    pub(crate) options: String,
}

impl Disk {
    /// The disk in that file, which is made and formatted if it isn't there. `name` (at most 20 letters) is its serial
    /// number in the guest, where it is mounted on `/disks/NAME` unless [`Disk::at`] says otherwise.
    ///
    /// # Errors
    /// It can't be made; nothing of it is left then.
    pub fn open(name: &str, file: &Path, system: FileSystem, mib: u64) -> Result<Self> {
        ensure!(
            !name.is_empty()
                && name.len() <= 20
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)),
            "`{name}` is no name for a disk: letters, digits, - and _, at most 20"
        );
        ensure!(
            !["root", "job"].contains(&name),
            "the guest has a disk `{name}` already"
        );
        if !file.exists() {
            let half = file.with_extension("half");
            let made = format(&half, system, mib).and_then(|()| {
                std::fs::rename(&half, file).with_context(|| format!("failed to create `{}`", file.display()))
            });
            if made.is_err() {
                // The error that led here is the one to be told.
                let _ = std::fs::remove_file(&half);
            }
            made?;
        }
        Ok(Self {
            name: name.to_owned(),
            file: file
                .canonicalize()
                .with_context(|| format!("failed to find `{}`", file.display()))?,
            system,
            place: format!("/disks/{name}"),
            options: String::new(),
        })
    }

    /// Where the guest mounts it.
    #[must_use]
    pub fn at(mut self, place: &str) -> Self {
        place.clone_into(&mut self.place);
        self
    }

    /// With which options, as `mount -o` takes them for this file system.
    #[must_use]
    pub fn options(mut self, options: &str) -> Self {
        options.clone_into(&mut self.options);
        self
    }

    /// From a command line: `persistent`, or `FILE[:ext4|xfs][:SIZE]` with a size as 512M or 4G.
    pub(crate) fn parse(text: &str, store: &Store) -> Result<Self> {
        let mut parts = text.split(':');
        let path = parts.next().unwrap_or_default();
        let (mut system, mut mib) = (FileSystem::Ext4, 2048);
        for part in parts {
            match part {
                "ext4" => system = FileSystem::Ext4,
                "xfs" => system = FileSystem::Xfs,
                size => mib = mebibytes(size)?,
            }
        }
        if path == "persistent" {
            let folder = store.root().join("disks");
            std::fs::create_dir_all(&folder)?;
            let file = folder.join(format!("persistent-{}.img", system.name()));
            return Self::open("persistent", &file, system, mib);
        }
        let file = Path::new(path);
        let name = file
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Self::open(&name, file, system, mib)
    }
}

fn mebibytes(text: &str) -> Result<u64> {
    let (number, factor) = match (text.strip_suffix('G'), text.strip_suffix('M')) {
        (Some(number), _) => (number, 1024),
        (_, Some(number)) => (number, 1),
        _ => bail!("`{text}` is neither ext4, xfs nor a size as 512M or 4G"),
    };
    let number: u64 = number
        .parse()
        .with_context(|| format!("`{text}` is no size as 512M or 4G"))?;
    Ok(number * factor)
}

fn format(file: &Path, system: FileSystem, mib: u64) -> Result<()> {
    let made = File::create(file).with_context(|| format!("failed to create `{}`", file.display()))?;
    made.set_len(mib * 1024 * 1024)?;
    let mut command = match system {
        FileSystem::Ext4 => {
            let mut command = Command::new("mke2fs");
            command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0"]);
            command
        }
        FileSystem::Xfs => {
            let mut command = Command::new("mkfs.xfs");
            command.args(["-q", "-f"]);
            command
        }
    };
    let output = command
        .arg(file)
        .env("PATH", crate::qemu::PATH)
        .output()
        .with_context(|| format!("failed to format a disk with {}", system.name()))?;
    ensure!(
        output.status.success(),
        "formatting `{}` with {} failed: {}",
        file.display(),
        system.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(mebibytes("4G").unwrap(), 4096);
        assert_eq!(mebibytes("512M").unwrap(), 512);
        assert!(mebibytes("12").is_err());
        assert!(mebibytes("btrfs").is_err());
    }

    #[test]
    fn a_disk_is_made_once_and_keeps_its_name_to_the_rules() {
        let dir = std::env::temp_dir().join(format!("orlop-disk-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let file = dir.join("data.img");
        Disk::open("data", &file, FileSystem::Ext4, 16).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        Disk::open("data", &file, FileSystem::Ext4, 16).unwrap();
        assert_eq!(file.metadata().unwrap().modified().unwrap(), before);
        assert!(Disk::open("root", &file, FileSystem::Ext4, 16).is_err());
        assert!(Disk::open("a b", &file, FileSystem::Ext4, 16).is_err());
        let tiny = dir.join("tiny.img");
        assert!(Disk::open("tiny", &tiny, FileSystem::Xfs, 1).is_err());
        assert!(!tiny.exists() && !tiny.with_extension("half").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
