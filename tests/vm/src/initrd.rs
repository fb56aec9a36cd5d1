//! The initial RAM disk: the agent as `/init`, the modules without which there is no disk, and the list of the others.
//!
//! Written in the kernel's `newc` form of cpio, uncompressed: under emulation, reading 3 MB is quicker than unpacking.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::modules::{self, EARLY, LATE};
use crate::store::{Entry, Store, key};

/// The initial RAM disk for an image and an agent.
pub(crate) fn ensure(store: &Store, image: &Path, agent: &Path) -> Result<(Entry, PathBuf)> {
    let agent = fs::read(agent).with_context(|| {
        format!(
            "failed to read the agent `{}`: run `hack/vm build`",
            agent.display()
        )
    })?;
    let dependencies = read(&image.join("modules.dep"))?;
    let builtin = read(&image.join("modules.builtin"))?;
    let early = modules::in_order(EARLY, &dependencies, &builtin)?;
    let late = modules::in_order(LATE, &dependencies, &builtin)?;
    let release = read(&image.join("release"))?;
    let folder = format!("lib/modules/{}", release.trim());
    let lines = |paths: &[String]| {
        paths
            .iter()
            .map(|p| format!("/{folder}/{p}\n"))
            .collect::<String>()
    };
    let (early_list, late_list) = (lines(&early), lines(&late));
    let name = image.file_name().unwrap_or_default().as_encoded_bytes();
    let key = key(&[name, &agent, early_list.as_bytes(), late_list.as_bytes()]);
    let (entry, _) = store.ensure("initrds", &key, |half| {
        let mut archive = Archive::default();
        archive.file("init", 0o100_755, &agent);
        archive.file("early", 0o100_644, early_list.as_bytes());
        archive.file("late", 0o100_644, late_list.as_bytes());
        for path in &early {
            let file = image.join("modules").join(path);
            let bytes = fs::read(&file).with_context(|| format!("failed to read `{}`", file.display()))?;
            archive.file(&format!("{folder}/{path}"), 0o100_644, &bytes);
        }
        fs::write(half.join("initrd"), archive.finish()).context("failed to write the initial RAM disk")
    })?;
    let path = entry.path.join("initrd");
    Ok((entry, path))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))
}

/// An archive under construction; folders come by themselves.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
    count: u32,
}

impl Archive {
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        for (at, _) in path.match_indices('/') {
            let folder = &path[..at];
            if !self.folders.iter().any(|known| known == folder) {
                self.folders.push(folder.to_owned());
                self.entry(folder, 0o040_755, &[]);
            }
        }
        self.entry(path, mode, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.count += 1;
        let (size, name_size) = (content.len(), path.len() + 1);
        let links = 1;
        self.bytes.extend(b"070701");
        for field in [
            self.count as usize,
            mode as usize,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ] {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busybox_reads_the_archive() {
        let dir = std::env::temp_dir().join(format!("orlop-cpio-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let mut archive = Archive::default();
        archive.file("init", 0o100_755, b"odd");
        archive.file("a/b/c", 0o100_644, b"");
        fs::write(dir.join("it"), archive.finish()).unwrap();
        let listed = std::process::Command::new("busybox")
            .args(["cpio", "-tv", "-F", "it"])
            .current_dir(&dir)
            .output()
            .unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        let names: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().last()).collect();
        assert_eq!(names, ["init", "a", "a/b", "a/b/c"]);
        assert!(text.starts_with("-rwxr-xr-x"), "{text}");
    }
}
