//! What a container leaves behind at its end: the file at its `terminationMessagePath`, or the end of its log.
//!
//! The file lies in the pod's own folder on the node and is mounted into the container, which may have put anything in
//! its place: it is opened without following links and without waiting, and only a regular file is read.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cri_api::v1;
use nix::libc;

use crate::runtime::observe::{LastWords, labels};

/// The longest message; `k8s.io/kubernetes/pkg/kubelet/container`.
const MAX_MESSAGE: usize = 4 * 1024;
/// With `FallbackToLogsOnError`: as many bytes and lines of the log.
const MAX_LOG: usize = 2_048;
const MAX_LOG_LINES: usize = 80;
/// As much of the log's end is looked at.
const LOG_TAIL: u64 = 16 * 1024;

/// Annotations that the kubelet leaves with containers.
const PATH: &str = "io.kubernetes.container.terminationMessagePath";
const POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// Reads last words from the node's disk.
#[derive(Debug, Clone)]
pub struct OnDisk {
    root: PathBuf,
}

impl OnDisk {
    /// Below the kubelet's root directory.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }
}

/// The file on the node that is mounted at a container's `terminationMessagePath`.
pub fn file(root: &Path, pod_uid: &str, container: &str, attempt: u32) -> PathBuf {
    root.join("pods")
        .join(pod_uid)
        .join("containers")
        .join(container)
        .join(format!("{attempt:08x}"))
}

impl LastWords for OnDisk {
    fn of(&self, status: &v1::ContainerStatus) -> Option<String> {
        let path = status.annotations.get(PATH).filter(|path| !path.is_empty())?;
        let of = |key: &str| status.labels.get(key).map(String::as_str).unwrap_or_default();
        let mounted = status.mounts.iter().find(|mount| mount.container_path == *path);
        let file = match mounted {
            // Only a file of the pod's own folder: the runtime names what was asked of it.
            Some(mount) if Path::new(&mount.host_path).starts_with(&self.root) => {
                PathBuf::from(&mount.host_path)
            }
            _ => {
                let attempt = status.annotations.get(labels::RESTART_COUNT)?.parse().ok()?;
                file(
                    &self.root,
                    of(labels::POD_UID),
                    of(labels::CONTAINER_NAME),
                    attempt,
                )
            }
        };
        let message = open(&file).and_then(|file| head(file, MAX_MESSAGE));
        if let Some(message) = message.filter(|message| !message.is_empty()) {
            return Some(message);
        }
        let fall_back = status
            .annotations
            .get(POLICY)
            .is_some_and(|policy| policy == "FallbackToLogsOnError");
        if fall_back && status.exit_code != 0 {
            return log_tail(Path::new(&status.log_path)).filter(|text| !text.is_empty());
        }
        None
    }
}

fn open(path: &Path) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

fn head(file: File, most: usize) -> Option<String> {
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a CRI log, without times and streams.
fn log_tail(path: &Path) -> Option<String> {
    let mut file = open(path)?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LOG_TAIL))).ok()?;
    let text = head(file, usize::try_from(LOG_TAIL).unwrap_or(usize::MAX))?;
    let whole = if size > LOG_TAIL {
        text.split_once('\n').map_or("", |(_, rest)| rest)
    } else {
        &text
    };
    // TIME STREAM TAG TEXT; the tag P means that the line goes on.
    let mut said = String::new();
    for line in whole.lines() {
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(tag)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        said.push_str(parts.next().unwrap_or_default());
        if !tag.starts_with('P') {
            said.push('\n');
        }
    }
    let lines: Vec<_> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(MAX_LOG_LINES)..].join("\n");
    let mut from = last.len().saturating_sub(MAX_LOG);
    while !last.is_char_boundary(from) {
        from += 1;
    }
    let end = if said.ends_with('\n') && !last.is_empty() {
        "\n"
    } else {
        ""
    };
    Some(format!("{}{end}", &last[from..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(log: &Path, exit_code: i32) -> v1::ContainerStatus {
        v1::ContainerStatus {
            exit_code,
            log_path: log.display().to_string(),
            labels: [
                (labels::POD_UID.to_owned(), "u".to_owned()),
                (labels::CONTAINER_NAME.to_owned(), "web".to_owned()),
            ]
            .into(),
            annotations: [
                (PATH.to_owned(), "/dev/termination-log".to_owned()),
                (POLICY.to_owned(), "FallbackToLogsOnError".to_owned()),
                (labels::RESTART_COUNT.to_owned(), "2".to_owned()),
            ]
            .into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_file_comes_first_then_the_log_of_what_failed() {
        let root = tempfile::tempdir().expect("a folder");
        let log = root.path().join("2.log");
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr P tw\n2026-01-01T00:00:00Z stderr F o\n").expect("written");
        let words = OnDisk::new(root.path());
        assert_eq!(words.of(&status(&log, 0)), None);
        assert_eq!(words.of(&status(&log, 1)).as_deref(), Some("one\ntwo\n"));
        let file = file(root.path(), "u", "web", 2);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        std::fs::write(&file, "x".repeat(5_000)).expect("written");
        assert_eq!(
            words.of(&status(&log, 1)).map(|text| text.len()),
            Some(MAX_MESSAGE)
        );
    }

    #[test]
    fn links_pipes_and_files_elsewhere_are_not_read() {
        let root = tempfile::tempdir().expect("a folder");
        let secret = root.path().join("secret");
        std::fs::write(&secret, "secret").expect("written");
        let file = file(root.path(), "u", "web", 2);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        std::os::unix::fs::symlink(&secret, &file).expect("linked");
        let words = OnDisk::new(root.path());
        let nowhere = root.path().join("no.log");
        assert_eq!(words.of(&status(&nowhere, 1)), None);
        std::fs::remove_file(&file).expect("removed");
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert_eq!(words.of(&status(&nowhere, 1)), None);
        let mut moved = status(&nowhere, 1);
        moved.mounts.push(v1::Mount {
            container_path: "/dev/termination-log".to_owned(),
            host_path: "/etc/hostname".to_owned(),
            ..Default::default()
        });
        assert_eq!(words.of(&moved), None);
    }

    #[test]
    fn of_a_long_log_only_the_end_is_told() {
        let root = tempfile::tempdir().expect("a folder");
        let log = root.path().join("log");
        let line = |n: usize| format!("2026-01-01T00:00:00Z stdout F line {n}\n");
        std::fs::write(&log, (0..2_000).map(line).collect::<String>()).expect("written");
        let said = OnDisk::new(root.path()).of(&status(&log, 1)).expect("a message");
        assert!(
            said.len() <= MAX_LOG + 1 && said.ends_with("line 1999\n"),
            "{}",
            said.len()
        );
        assert!(said.lines().count() <= MAX_LOG_LINES);
    }
}
