//! Plugins that are started from a folder: executables called `index-name`, with a connected socket.
//!
//! Each is started by a thread of its own, which lives as long as it: the kernel ends the process with the thread that
//! started it, and so with this daemon, however that ends.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use oci_runtime_sys::process::{pidfd_open, pidfd_send_signal, start_with_socket};
use std::os::fd::AsFd as _;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::error::JoinError;
use crate::plugin::check_name;

const SIGKILL: i32 = 9;
/// More configuration than this is a mistake.
const MAX_CONFIG: u64 = 1 << 20;

/// An executable in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) index: String,
    pub(crate) name: String,
}

/// The plugins in a folder, in the order of their indices; an absent folder has none. What isn't called like a plugin
/// is left out, with a line in the log.
pub(crate) fn discover(folder: &Path) -> Vec<Found> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(folder = %folder.display(), %error, "the folder of NRI plugins can't be read");
            }
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let executable = fs::metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
        if !executable {
            continue;
        }
        let text = entry.file_name().to_string_lossy().into_owned();
        let (index, name) = text.split_once('-').unwrap_or((&text, ""));
        if let Err(problem) = check_name(index, name) {
            tracing::warn!(path = %path.display(), problem, "not an NRI plugin; it should be called like `10-name`");
            continue;
        }
        found.push(Found {
            index: index.to_owned(),
            name: name.to_owned(),
            path,
        });
    }
    found.sort_by(|a, b| (&a.index, &a.name).cmp(&(&b.index, &b.name)));
    found
}

/// A plugin's configuration: from `index-name.conf`, or else `name.conf`.
pub(crate) fn configuration(folder: &Path, index: &str, name: &str) -> io::Result<String> {
    for file in [format!("{index}-{name}.conf"), format!("{name}.conf")] {
        let path = folder.join(file);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_CONFIG => {
                return Err(io::Error::other(format!("`{}` is too long", path.display())));
            }
            Ok(_) => return fs::read_to_string(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::new())
}

/// A process of ours; it is killed when this goes.
#[derive(Debug)]
pub(crate) struct Launched {
    process: OwnedFd,
}

impl Drop for Launched {
    fn drop(&mut self) {
        // An error means that it has ended; its thread has taken its status.
        let _ = pidfd_send_signal(self.process.as_fd(), SIGKILL);
    }
}

/// Starts a plugin.
pub(crate) async fn launch(found: &Found) -> Result<(Launched, UnixStream), JoinError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(JoinError::Launch)?;
    ours.set_nonblocking(true).map_err(JoinError::Launch)?;
    let theirs = OwnedFd::from(theirs);
    let mut command = Command::new(&found.path);
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("NRI_PLUGIN_NAME", &found.name)
        .env("NRI_PLUGIN_IDX", &found.index)
        .env("NRI_PLUGIN_SOCKET", theirs.as_raw_fd().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new()
        .name("nri-plugin".to_owned())
        .spawn(move || live_with(command, theirs, tell))
        .map_err(JoinError::Launch)?;
    let process = told.await.map_err(|_| JoinError::Closed)?;
    let launched = Launched {
        process: process.map_err(JoinError::Launch)?,
    };
    let socket = UnixStream::from_std(ours).map_err(JoinError::Launch)?;
    Ok((launched, socket))
}

/// Starts a process and waits for its end.
fn live_with(mut command: Command, socket: OwnedFd, tell: oneshot::Sender<io::Result<OwnedFd>>) {
    let started = start_with_socket(&mut command, &socket);
    drop(socket);
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            // Nobody listens when the daemon is ending.
            let _ = tell.send(Err(error));
            return;
        }
    };
    // Not waited for yet, so the number is its own.
    let process = i32::try_from(child.id())
        .map_err(io::Error::other)
        .and_then(pidfd_open);
    let failed = process.is_err();
    if tell.send(process).is_err() || failed {
        // Nobody could ever end it.
        let _ = child.kill();
    }
    match child.wait() {
        Ok(status) => tracing::info!(%status, "an NRI plugin has ended"),
        Err(error) => tracing::warn!(%error, "failed to wait for an NRI plugin"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_called_like_a_plugin_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        put("20-second", 0o755);
        put("10-first-one", 0o755);
        put("30-data", 0o644);
        put("readme", 0o755);
        put("1-short", 0o755);
        fs::create_dir(dir.path().join("40-folder")).unwrap();
        let found = discover(dir.path());
        let names: Vec<_> = found
            .iter()
            .map(|f| (f.index.as_str(), f.name.as_str()))
            .collect();
        assert_eq!(names, [("10", "first-one"), ("20", "second")]);
        assert!(discover(&dir.path().join("absent")).is_empty());
    }

    #[test]
    fn the_longer_name_of_a_configuration_wins() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(configuration(dir.path(), "10", "x").unwrap(), "");
        fs::write(dir.path().join("x.conf"), "any").unwrap();
        assert_eq!(configuration(dir.path(), "10", "x").unwrap(), "any");
        fs::write(dir.path().join("10-x.conf"), "ten").unwrap();
        assert_eq!(configuration(dir.path(), "10", "x").unwrap(), "ten");
        assert_eq!(configuration(dir.path(), "20", "x").unwrap(), "any");
    }
}
