//! What there is in a node, to be compared with what there was.
//!
//! Everything that a container engine could forget is listed as lines of text, so that a difference names the thing:
//! mounts, links and their addresses, rules, pinned namespaces, cgroups, processes, files. Things that come with the
//! first pod and stay on purpose (the bridge, the base chains, the images) are no leak: take the first snapshot after a
//! pod has come and gone.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::boot::{Residents, pids};

/// All that could leak, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    kinds: BTreeMap<&'static str, Vec<String>>,
}

/// Files below these are listed.
const FOLDERS: &[&str] = &[
    "/run/orlop",
    "/var/lib/orlop/cri",
    "/var/lib/cni",
    "/run/netns",
    "/run/cni",
];

/// What may come and go without being a leak: the socket, the last address that was given out, compiled filters.
const NO_LEAK: &[&str] = &["last_reserved_ip", ".sock", "/orlop-cri.pid", "/seccomp/"];

/// The store of images, whose content stays on purpose.
const IMAGES: &str = "/var/lib/orlop/cri/images";

/// But these folders of it must lose what containers and pulls put there. Their entries are listed, not what is below.
const IMAGES_PASSING: &[&str] = &["snapshots", "trash", "ingest"];

/// What the daemon deletes in the background: it may take longer than the call that put it there.
pub(crate) fn is_on_its_way_out(leak: &str) -> bool {
    ["trash", "ingest"]
        .iter()
        .any(|dir| leak.starts_with(&format!("file: {IMAGES}/{dir}/")))
}

impl Snapshot {
    /// Looks around; to be called inside the node. `cgroups` is what is below the node's own, and processes with one
    /// of `expected` in their command line are no leak.
    pub(crate) fn take(cgroups: Vec<String>, residents: &Residents, expected: &[&str]) -> Result<Self> {
        let table = format!("/proc/{}/mountinfo", residents.keeper());
        let mut kinds = BTreeMap::from([
            // The thread that looks has no entry in this `/proc`, but the namespace's init has.
            ("mount", mounts(&table)?),
            ("link", links()?),
            ("rule", rules()?),
            ("cgroup", cgroups),
            ("process", processes(residents, expected)),
            (
                "file",
                FOLDERS
                    .iter()
                    .flat_map(|dir| files(Path::new(dir)))
                    .chain(passing(Path::new(IMAGES)))
                    .collect(),
            ),
        ]);
        for lines in kinds.values_mut() {
            lines.sort();
        }
        Ok(Self { kinds })
    }

    /// Looks around on a machine that is the node, as a virtual machine may be; `cgroup` is above the pods' cgroups.
    /// Processes aren't listed: such a machine has others.
    ///
    /// # Errors
    /// Something can't be listed.
    pub fn of_machine(cgroup: &str) -> Result<Self> {
        let top = Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/'));
        let mut found = Self::take(directories(&top), &Residents::All, &[])?;
        found.kinds.remove("process");
        Ok(found)
    }

    /// All of it, a line each, with its kind.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let of_kind = |(kind, lines): (&&str, &Vec<String>)| -> Vec<String> {
            lines.iter().map(|line| format!("{kind}: {line}")).collect()
        };
        self.kinds.iter().flat_map(of_kind).collect()
    }

    /// What is in `later` but not here.
    #[must_use]
    pub fn leaks(&self, later: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (kind, lines) in &later.kinds {
            let mut before = self.kinds.get(kind).cloned().unwrap_or_default();
            for line in lines {
                match before.iter().position(|known| known == line) {
                    // Each is allowed as often as it was there.
                    Some(at) => drop(before.swap_remove(at)),
                    None => found.push(format!("{kind}: {line}")),
                }
            }
        }
        found
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, lines) in &self.kinds {
            for line in lines {
                writeln!(f, "{kind}: {line}")?;
            }
        }
        Ok(())
    }
}

fn mounts(table: &str) -> Result<Vec<String>> {
    let table = fs::read_to_string(table).with_context(|| format!("failed to read `{table}`"))?;
    Ok(table.lines().filter_map(mount_line).collect())
}

/// Mount point and file system of a line of mountinfo.
fn mount_line(line: &str) -> Option<String> {
    let (left, right) = line.split_once(" - ")?;
    let point = left.split(' ').nth(4)?;
    let kind = right.split(' ').next()?;
    Some(format!("{point} ({kind})"))
}

fn links() -> Result<Vec<String>> {
    let out = output(&["ip", "-json", "address"])?;
    let list: serde_json::Value = serde_json::from_str(if out.is_empty() { "[]" } else { &out })?;
    let mut found = Vec::new();
    for link in list.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().unwrap_or("?");
        found.push(name.to_owned());
        for address in link["addr_info"].as_array().into_iter().flatten() {
            // Link-local ones come and go with the carrier.
            if address["scope"] != "link" {
                found.push(format!(
                    "{name} has {}/{}",
                    address["local"].as_str().unwrap_or("?"),
                    address["prefixlen"]
                ));
            }
        }
    }
    Ok(found)
}

fn rules() -> Result<Vec<String>> {
    let mut table = String::new();
    let mut found = Vec::new();
    let mut inner = String::new();
    for line in output(&["nft", "list", "ruleset"])?.lines() {
        let text = line.trim();
        if line.starts_with("table") {
            table = text.trim_end_matches(" {").to_owned();
        } else if line.starts_with("\t}") || line.starts_with('}') {
            inner.clear();
        } else if line.starts_with('\t') && !line.starts_with("\t\t") && text.ends_with('{') {
            inner = text.trim_end_matches(" {").to_owned();
        }
        found.push(format!("{table}: {inner}: {text}"));
    }
    Ok(found)
}

fn processes(residents: &Residents, expected: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for pid in pids().filter(|pid| residents.has(*pid)) {
        let folder = Path::new("/proc").join(pid.to_string());
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        let mut line = String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .trim()
            .to_owned();
        if line.is_empty() {
            let comm = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            line = format!("[{}], a zombie", comm.trim());
        }
        if !expected.iter().any(|known| line.contains(known)) {
            found.push(line);
        }
    }
    found
}

fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.display().to_string();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let is_lock = !is_dir && entry.file_name() == "lock";
        if is_lock || name == IMAGES || NO_LEAK.iter().any(|part| name.contains(part)) {
            continue;
        }
        if is_dir {
            found.extend(files(&path));
        }
        found.push(name);
    }
    found
}

fn directories(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path().display().to_string());
            found.extend(directories(&entry.path()));
        }
    }
    found
}

/// What of the store of images may not stay.
fn passing(images: &Path) -> Vec<String> {
    let dirs = IMAGES_PASSING.iter().map(|dir| images.join(dir));
    dirs.flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
        .map(|entry| entry.path().display().to_string())
        .collect()
}

/// What a program prints. Without threads: a thread that entered a PID namespace can't start others.
fn output(command: &[&str]) -> Result<String> {
    let output = Command::new("timeout")
        .arg("20")
        .args(command)
        .output()
        .context("failed to run `timeout`")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} failed: {}: {stderr}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a node could leave on the machine: links and addresses of the machine's own network, mounts and folders that
/// carry its name.
pub(crate) fn machine(name: &str) -> Result<Snapshot> {
    let mut kinds = BTreeMap::new();
    kinds.insert("link of the machine", links()?);
    let mounts = mounts("/proc/self/mountinfo")?
        .into_iter()
        .filter(|mount| mount.contains(name))
        .collect();
    kinds.insert("mount of the machine", mounts);
    let folders = [
        "/run/orlop",
        "/var/lib/orlop/cri",
        "/var/lib/cni/networks/orlop",
        "/run/netns",
    ];
    let there = folders
        .iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    kinds.insert(
        "file of the machine",
        there.map(|entry| entry.path().display().to_string()).collect(),
    );
    Ok(Snapshot { kinds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_is_what_is_there_more_often_than_before() {
        let with = |lines: &[&str]| Snapshot {
            kinds: BTreeMap::from([("process", lines.iter().map(|&l| l.to_owned()).collect())]),
        };
        assert_eq!(
            with(&["a", "b"]).leaks(&with(&["b", "c", "b"])),
            ["process: c", "process: b"]
        );
        assert!(with(&["a", "b"]).leaks(&with(&["a"])).is_empty());
    }

    #[test]
    fn snapshots_are_listed_and_images_are_not() {
        let images = std::env::temp_dir().join(format!("audit-images-{}", std::process::id()));
        for dir in ["snapshots/c1/upper", "layers/l1", "trash/t1", "ingest"] {
            fs::create_dir_all(images.join(dir)).unwrap();
        }
        let mut found = passing(&images);
        found.sort();
        fs::remove_dir_all(&images).unwrap();
        let at = |entry: &str| images.join(entry).display().to_string();
        assert_eq!(found, [at("snapshots/c1"), at("trash/t1")]);
        assert!(is_on_its_way_out("file: /var/lib/orlop/cri/images/trash/x"));
        assert!(!is_on_its_way_out("file: /var/lib/orlop/cri/images/snapshots/x"));
    }

    #[test]
    fn a_mount_is_its_point_and_kind() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount_line(line).unwrap(), "/mnt2 (ext3)");
    }
}
