//! What a process and all that it started have on the machine, to be looked for after their end, from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The traces of a process, of those below it and of a name that its mounts, cgroups and files carry.
#[derive(Debug, Clone)]
pub struct Footprint {
    name: String,
    folders: Vec<PathBuf>,
    /// By pid: when it started, so that another process with the pid isn't taken for it.
    processes: BTreeMap<u32, u64>,
    /// As `/proc/PID/ns` says them: `net:[4026531840]`. The kernel uses these numbers again; so only processes that are
    /// older than this look count as holders.
    namespaces: BTreeSet<String>,
    /// When this look was taken, in the unit of processes' starts.
    taken: u64,
}

const NAMESPACES: [&str; 6] = ["mnt", "net", "pid", "uts", "ipc", "user"];

impl Footprint {
    /// Looks at `root` and the processes below it. `name` is what their mounts, cgroups and files have in their names,
    /// and `folders` are where those files are.
    #[must_use]
    pub fn of(root: u32, name: &str, folders: &[&Path]) -> Self {
        let ours: BTreeSet<String> = namespaces(std::process::id()).into_iter().collect();
        let mut processes = BTreeMap::new();
        let mut found = BTreeSet::new();
        let parents = parents();
        let mut next = vec![root];
        while let Some(pid) = next.pop() {
            if let Some(started) = started(pid)
                && processes.insert(pid, started).is_none()
            {
                found.extend(namespaces(pid));
                next.extend(
                    parents
                        .iter()
                        .filter(|(_, parent)| **parent == pid)
                        .map(|(pid, _)| *pid),
                );
            }
        }
        Self {
            name: name.to_owned(),
            folders: folders.iter().map(|f| (*f).to_owned()).collect(),
            processes,
            namespaces: found.difference(&ours).cloned().collect(),
            taken: pids().into_iter().filter_map(started).max().unwrap_or(0),
        }
    }

    /// How many processes there were.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// What is still there, for people.
    ///
    /// # Errors
    /// The machine can't be looked at.
    pub fn left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for pid in pids() {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // A zombie has given back everything; who reaps it is the machine's affair.
            let (Some(start), false) = (started(pid), line.is_empty()) else {
                continue;
            };
            if self.processes.get(&pid) == Some(&start) {
                left.push(format!("process {pid}: {line}"));
            }
            let older = start <= self.taken && pid != std::process::id();
            let held = namespaces(pid)
                .into_iter()
                .filter(|n| older && self.namespaces.contains(n));
            for namespace in held {
                left.push(format!("namespace {namespace} of process {pid}: {line}"));
            }
            for file in fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let target = fs::read_link(file.path()).unwrap_or_default();
                let target = target.to_string_lossy();
                if older && self.namespaces.contains(target.as_ref()) {
                    left.push(format!("namespace {target}, held open by process {pid}: {line}"));
                }
            }
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            if cgroups.contains(&self.name) {
                left.push(format!("process {pid} in a cgroup: {line}"));
            }
        }
        let table = fs::read_to_string("/proc/self/mountinfo").context("failed to read mountinfo")?;
        let pinned =
            |line: &str| line.contains(" nsfs ") && self.namespaces.iter().any(|n| line.contains(n.as_str()));
        left.extend(
            table
                .lines()
                .filter(|line| line.contains(&self.name) || pinned(line))
                .map(|line| format!("mount: {line}")),
        );
        let tops = fs::read_dir("/sys/fs/cgroup").context("failed to list the cgroups")?;
        let tops = tops.flatten().map(|entry| entry.path());
        for folder in tops
            .chain(["/sys/fs/cgroup".into()])
            .chain(self.folders.iter().cloned())
        {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().contains(&self.name) {
                    left.push(format!("file: {}", entry.path().display()));
                }
            }
        }
        Ok(left)
    }
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The fields of `/proc/PID/stat` after the command, which may hold blanks and brackets itself.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

fn parents() -> BTreeMap<u32, u32> {
    let parent = |pid: u32| Some((pid, stat(pid)?.get(1)?.parse().ok()?));
    pids().into_iter().filter_map(parent).collect()
}

/// In clock ticks since boot.
fn started(pid: u32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

fn namespaces(pid: u32) -> Vec<String> {
    let links = NAMESPACES.iter().map(|kind| format!("/proc/{pid}/ns/{kind}"));
    links
        .filter_map(|link| Some(fs::read_link(link).ok()?.to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_below_is_found_until_it_is_gone() {
        let mut child = Command::new("unshare")
            .args(["--net", "sleep", "1000"])
            .spawn()
            .unwrap();
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let other = || {
            let theirs = fs::read_link(format!("/proc/{}/ns/net", child.id()));
            Ok(theirs.is_ok_and(|theirs| theirs != own))
        };
        crate::wait_until("a namespace", std::time::Duration::from_secs(10), other).unwrap();
        // Whose input is the namespace.
        let open = fs::File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
        let mut holder = Command::new("sleep").arg("1000").stdin(open).spawn().unwrap();
        let footprint = Footprint::of(child.id(), "no-such-name", &[]);
        assert_eq!(footprint.processes(), 1);
        let left = footprint.left().unwrap();
        assert!(left.iter().any(|l| l.starts_with("process ")), "{left:?}");
        assert!(left.iter().any(|l| l.starts_with("namespace net:[")), "{left:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        let left = footprint.left().unwrap();
        assert!(left.len() == 1 && left[0].contains("held open"), "{left:?}");
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(footprint.left().unwrap(), Vec::<String>::new());
    }
}
