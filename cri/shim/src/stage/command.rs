//! A foreign runtime, driven through runc's command line.
//!
//! Its pid file and log lie in the shim's folder under the stage child's process ID while it runs; a console socket
//! does too, reached through the stage child's own descriptor of the folder so that its path stays short. What a
//! killed stage child leaves there goes with the folder.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};

use cri_shim_protocol::{ErrorKind, Runtime, ShimError};
use serde::Deserialize;

use super::work::{CreateWork, Handle};
use super::{failed, refuse};
use crate::stdio::Given;
use crate::wire;

/// The most that is read of a runtime's log.
const MAX_LOG_BYTES: u64 = 64 << 10;

type Made = (i32, Option<OwnedFd>);

pub(super) struct Command<'a> {
    handle: &'a Handle,
    path: &'a Path,
    /// Removed when this is dropped.
    scratch: PathBuf,
}

impl Drop for Command<'_> {
    fn drop(&mut self) {
        // What stays is removed with the shim's folder.
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

impl<'a> Command<'a> {
    pub(super) fn new(handle: &'a Handle, path: &'a Path) -> Self {
        let scratch = handle.state_dir.join(format!("stage-{}", process::id()));
        Self {
            handle,
            path,
            scratch,
        }
    }

    fn log(&self) -> PathBuf {
        self.scratch.join("log.json")
    }

    fn pid_file(&self) -> PathBuf {
        self.scratch.join("pid")
    }

    /// The command line up to the operation.
    fn begin(&self, operation: &str) -> Result<process::Command, ShimError> {
        fs::create_dir_all(&self.scratch)
            .map_err(|error| failed(format_args!("create `{}`", self.scratch.display()), error))?;
        let mut command = process::Command::new(self.path);
        command.arg("--root").arg(&self.handle.root);
        command
            .arg("--log")
            .arg(self.log())
            .args(["--log-format", "json"]);
        if let Runtime::Command {
            systemd_cgroup: true, ..
        } = self.handle.runtime
        {
            command.arg("--systemd-cgroup");
        }
        command.arg(operation);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }

    fn run(&self, mut command: process::Command) -> Result<(), ShimError> {
        let status = command.status().map_err(|error| {
            let message = format_args!("failed to execute the runtime `{}`: {error}", self.path.display());
            refuse(ErrorKind::Failed, message)
        })?;
        if status.success() {
            return Ok(());
        }
        let mut log = Vec::new();
        if let Ok(file) = File::open(self.log()) {
            // Without the log, the status has to do.
            let _ = file.take(MAX_LOG_BYTES).read_to_end(&mut log);
        }
        let message = last_error(&log).unwrap_or_else(|| format!("`{}`: {status}", self.path.display()));
        Err(ShimError {
            kind: classify(&message),
            message,
        })
    }

    pub(super) fn create(&self, work: CreateWork) -> Result<Made, ShimError> {
        let mut command = self.begin("create")?;
        command.arg("--bundle").arg(&work.bundle);
        let stdio = match work.given {
            Given::Pipes(fds) => Some(fds),
            Given::Terminal => None,
        };
        self.run_process(command, stdio)
    }

    pub(super) fn exec(&self, process: &str, stdio: Option<[OwnedFd; 3]>) -> Result<Made, ShimError> {
        let mut command = self.begin("exec")?;
        let spec = self.scratch.join("process.json");
        fs::write(&spec, process)
            .map_err(|error| failed(format_args!("write `{}`", spec.display()), error))?;
        command.arg("--process").arg(spec).arg("--detach");
        self.run_process(command, stdio)
    }

    /// Runs what makes a process: with these streams or a terminal.
    fn run_process(
        &self,
        mut command: process::Command,
        stdio: Option<[OwnedFd; 3]>,
    ) -> Result<Made, ShimError> {
        command.arg("--pid-file").arg(self.pid_file());
        let console = match stdio {
            Some([stdin, stdout, stderr]) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
                None
            }
            None => {
                let console = ConsoleSocket::bind(&self.scratch)
                    .map_err(|error| failed(format_args!("make a console socket"), error))?;
                command.arg("--console-socket").arg(&console.path);
                Some(console)
            }
        };
        command.arg(&self.handle.id);
        self.run(command)?;
        let console = console.map(|socket| socket.receive()).transpose();
        let console = console.map_err(|error| failed(format_args!("receive the terminal"), error))?;
        let path = self.pid_file();
        let text = fs::read_to_string(&path)
            .map_err(|error| failed(format_args!("read `{}`", path.display()), error))?;
        let pid = text
            .trim()
            .parse()
            .map_err(|error| failed(format_args!("read `{}`", path.display()), error))?;
        Ok((pid, console))
    }

    pub(super) fn start(&self) -> Result<(), ShimError> {
        let mut command = self.begin("start")?;
        command.arg(&self.handle.id);
        self.run(command)
    }

    pub(super) fn update(&self, resources: &str) -> Result<(), ShimError> {
        let mut command = self.begin("update")?;
        let path = self.scratch.join("resources.json");
        fs::write(&path, resources)
            .map_err(|error| failed(format_args!("write `{}`", path.display()), error))?;
        command.arg("--resources").arg(path).arg(&self.handle.id);
        self.run(command)
    }

    pub(super) fn delete(&self) -> Result<(), ShimError> {
        let mut command = self.begin("delete")?;
        command.arg("--force").arg(&self.handle.id);
        match self.run(command) {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

struct ConsoleSocket {
    listener: UnixListener,
    /// Keeps the path alive.
    _folder: File,
    path: PathBuf,
}

impl ConsoleSocket {
    fn bind(folder: &Path) -> io::Result<Self> {
        use std::os::fd::AsRawFd as _;
        let folder = File::open(folder)?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}/tty", process::id(), folder.as_raw_fd()));
        Ok(Self {
            listener: UnixListener::bind(&path)?,
            _folder: folder,
            path,
        })
    }

    /// The terminal that the runtime, which has ended, sent.
    fn receive(self) -> io::Result<OwnedFd> {
        self.listener.set_nonblocking(true)?;
        let (stream, _) = self.listener.accept()?;
        let mut fds = Vec::new();
        wire::receive(&stream, &mut [0; 256], &mut fds);
        fds.pop()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no terminal came"))
    }
}

/// The message of the last error in a runtime's log.
fn last_error(log: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let lines = log.split(|b| *b == b'\n').rev();
    let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    let mut lines = lines.filter(|line| matches!(line.level.as_str(), "error" | "fatal"));
    lines.next().map(|line| line.msg)
}

/// What kind of failure a runtime's words mean.
fn classify(message: &str) -> ErrorKind {
    let has = |words: &[&str]| words.iter().any(|w| message.contains(w));
    if has(&[
        "executable file not found",
        "exec: no such file",
        "executable file `",
        "unable to start container process: exec:",
    ]) {
        ErrorKind::CommandNotFound
    } else if has(&["already exists", "already in use", "id is in use"]) {
        ErrorKind::AlreadyExists
    } else if has(&["does not exist", "error opening file `"]) {
        ErrorKind::NotFound
    } else if has(&[
        "not running",
        "is not in created state",
        "process already finished",
        "stopped container",
        "cannot start a container that has",
    ]) {
        ErrorKind::WrongState
    } else {
        ErrorKind::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_the_message() {
        let log = concat!(
            r#"{"level":"warning","msg":"w","time":"t"}"#,
            "\nnot json\n",
            r#"{"level":"error","msg":"first","time":"t"}"#,
            "\n",
            r#"{"level":"error","msg":"last","time":"t"}"#,
            "\n",
            r#"{"level":"info","msg":"bye","time":"t"}"#,
        );
        assert_eq!(last_error(log.as_bytes()).as_deref(), Some("last"));
        assert_eq!(last_error(b""), None);
    }

    #[test]
    fn words_of_runc_and_crun_become_kinds() {
        let cases = [
            (
                "exec failed: unable to start container process: exec: \"nope\": executable file not found in $PATH",
                ErrorKind::CommandNotFound,
            ),
            (
                "executable file `nope` not found in $PATH: No such file or directory",
                ErrorKind::CommandNotFound,
            ),
            ("container \"x\" does not exist", ErrorKind::NotFound),
            (
                "error opening file `/run/crun/x/status`: No such file or directory",
                ErrorKind::NotFound,
            ),
            (
                "container with id exists: x already exists",
                ErrorKind::AlreadyExists,
            ),
            ("cannot exec in a stopped container", ErrorKind::WrongState),
            ("container not running", ErrorKind::WrongState),
            ("permission denied", ErrorKind::Failed),
        ];
        for (message, kind) in cases {
            assert_eq!(classify(message), kind, "{message}");
        }
    }
}
