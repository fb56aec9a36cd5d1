//! Runs a plugin as a process: CNI_ variables, configuration on standard input, answer on standard output. The process
//! gets a group of its own, a time limit, and bounded buffers; when it hangs, the whole group is killed.

use std::{
    env,
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command as Process, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use cni_types::{CniError, Command, ErrorCode, ExecError, Invocation};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;
use std::os::fd::AsRawFd;

/// A result is some kilobytes.
const MAX_STDOUT: usize = 1 << 20;
/// Of what a plugin says on standard error, this much is kept.
const MAX_STDERR: usize = 16 << 10;
/// One read.
const PIECE: usize = 8192;
/// As much as an unprivileged program can make two pipes hold.
const MAX_PIPES: usize = 2 << 20;
/// How long a killed process may take to vanish before it is left to the reaper.
const REAP: Duration = Duration::from_secs(2);
/// How often the process is looked at while it holds its pipes open without using them.
const TICK: Duration = Duration::from_millis(20);

/// Runs executables.
#[derive(Debug, Clone)]
pub struct ProcessExec {
    timeout: Duration,
}

impl ProcessExec {
    /// Gives each call at most `timeout`.
    pub fn new(timeout: Duration) -> Self {
        ProcessExec { timeout }
    }

    /// Runs the executable at `path` as plugin `plugin`.
    pub fn run(
        &self,
        plugin: &str,
        path: &Path,
        invocation: &Invocation,
    ) -> Result<Option<Value>, ExecError> {
        let started = Instant::now();
        let run_error = |what| {
            move |source| ExecError::Run {
                plugin: path.display().to_string(),
                what,
                source,
            }
        };
        let mut child = spawn(path, invocation).map_err(run_error("start"))?;
        let input = invocation.config.to_string();
        let ended = Talk::new(&mut child, input.as_bytes())
            .and_then(|mut talk| {
                let end = talk.run(&mut child, started + self.timeout)?;
                Ok((end, talk.stdout, talk.stderr))
            })
            .inspect_err(|_| kill(&mut child))
            .map_err(run_error("talk to"))?;
        match ended {
            (End::Exited(status), stdout, stderr) => {
                answer(plugin, invocation.command, status, &stdout, &stderr)
            }
            (End::Late, ..) => {
                kill(&mut child);
                let seconds = started.elapsed().as_secs_f64();
                Err(ExecError::Hung {
                    plugin: plugin.into(),
                    command: invocation.command,
                    seconds,
                })
            }
            (End::TooMuch, ..) => {
                kill(&mut child);
                Err(too_much(plugin, invocation.command))
            }
        }
    }
}

fn spawn(path: &Path, invocation: &Invocation) -> io::Result<Child> {
    let mut process = Process::new(path);
    process
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CNI_") {
            process.env_remove(name);
        }
    }
    process
        .env("CNI_COMMAND", invocation.command.as_str())
        .env("CNI_PATH", joined(&invocation.path));
    if matches!(invocation.command, Command::Add | Command::Del | Command::Check) {
        let args: Vec<String> = invocation
            .args
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        process
            .env("CNI_CONTAINERID", &invocation.container_id)
            .env("CNI_IFNAME", &invocation.ifname)
            .env("CNI_ARGS", args.join(";"))
            .env("CNI_NETNS", invocation.netns.clone().unwrap_or_default());
    }
    // An executable that is just being replaced is busy for a moment.
    for _ in 0..20 {
        match process.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(TICK),
            other => return other,
        }
    }
    process.spawn()
}

fn joined(dirs: &[PathBuf]) -> OsString {
    env::join_paths(dirs).unwrap_or_default()
}

enum End {
    Exited(ExitStatus),
    Late,
    TooMuch,
}

/// The conversation with a running plugin.
struct Talk<'a> {
    stdin: Option<std::process::ChildStdin>,
    input: &'a [u8],
    out: Option<std::process::ChildStdout>,
    err: Option<std::process::ChildStderr>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl<'a> Talk<'a> {
    fn new(child: &mut Child, input: &'a [u8]) -> io::Result<Self> {
        let talk = Talk {
            stdin: child.stdin.take(),
            input,
            out: child.stdout.take(),
            err: child.stderr.take(),
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        for fd in talk.fds() {
            let flags = OFlag::from_bits_retain(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
            fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(talk)
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let all = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.out.as_ref().map(AsFd::as_fd),
            self.err.as_ref().map(AsFd::as_fd),
        ];
        all.into_iter().flatten().collect()
    }

    /// Feeds and reads until the process ends. A daemon that the plugin left behind may hold the pipes open for ever,
    /// so it is the process that is waited for, not the end of its output.
    fn run(&mut self, child: &mut Child, deadline: Instant) -> io::Result<End> {
        loop {
            self.write_some()?;
            let silent = !self.read_some()?;
            if self.stdout.len() > MAX_STDOUT {
                return Ok(End::TooMuch);
            }
            if let Some(status) = child.try_wait()? {
                // What it wrote before it ended is in the pipes now, and they hold no more than this. A child that it left
                // behind may go on writing for ever.
                for _ in 0..MAX_PIPES / PIECE {
                    if !self.read_some()? || self.stdout.len() > MAX_STDOUT {
                        break;
                    }
                }
                return Ok(End::Exited(status));
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(End::Late);
            }
            if silent {
                self.wait((deadline - now).min(TICK))?;
            }
        }
    }

    fn wait(&self, limit: Duration) -> io::Result<()> {
        if self.out.is_none() && self.err.is_none() {
            // Both ends closed: it is about to end.
            thread::sleep(limit.min(Duration::from_millis(1)));
            return Ok(());
        }
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(3);
        if let Some(stdin) = &self.stdin {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        fds.extend(
            self.out
                .iter()
                .map(|out| PollFd::new(out.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(
            self.err
                .iter()
                .map(|err| PollFd::new(err.as_fd(), PollFlags::POLLIN)),
        );
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::from(20u16));
        match poll(&mut fds, limit) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_some(&mut self) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(());
        };
        match stdin.write(self.input) {
            Ok(count) => self.input = &self.input[count..],
            Err(error) if is_transient(&error) => return Ok(()),
            // It doesn't want to read its configuration: its answer says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.input = &[],
            Err(error) => return Err(error),
        }
        if self.input.is_empty() {
            self.stdin = None;
        }
        Ok(())
    }

    /// Whether anything came.
    fn read_some(&mut self) -> io::Result<bool> {
        let out = read_into(&mut self.out, &mut self.stdout, usize::MAX)?;
        let err = read_into(&mut self.err, &mut self.stderr, MAX_STDERR)?;
        Ok(out || err)
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Reads one piece; keeps at most `keep` bytes in all; closes the pipe at its end.
fn read_into<R: Read>(pipe: &mut Option<R>, buffer: &mut Vec<u8>, keep: usize) -> io::Result<bool> {
    let Some(reader) = pipe else { return Ok(false) };
    let mut piece = [0; PIECE];
    match reader.read(&mut piece) {
        Ok(0) => {
            *pipe = None;
            Ok(false)
        }
        Ok(count) => {
            let room = keep.saturating_sub(buffer.len()).min(count);
            buffer.extend_from_slice(&piece[..room]);
            Ok(true)
        }
        Err(error) if is_transient(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Kills the whole group and collects the process.
fn kill(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // The process isn't collected yet, so its group's number can't be anyone else's. Gone already is fine.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let deadline = Instant::now() + REAP;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => thread::sleep(Duration::from_millis(2)),
            _ => return,
        }
    }
    tracing::warn!(
        pid = child.id(),
        "a killed CNI plugin does not end; it is stuck in the kernel"
    );
}

fn too_much(plugin: &str, command: Command) -> ExecError {
    ExecError::Answer {
        plugin: plugin.to_owned(),
        command,
        what: format!("more than {MAX_STDOUT} bytes"),
    }
}

fn answer(
    plugin: &str,
    command: Command,
    status: ExitStatus,
    stdout: &[u8],
    stderr: &[u8],
) -> Result<Option<Value>, ExecError> {
    if stdout.len() > MAX_STDOUT {
        return Err(too_much(plugin, command));
    }
    let said = String::from_utf8_lossy(stderr);
    let said = said.trim();
    let wrong = |what: String| ExecError::Answer {
        plugin: plugin.to_owned(),
        command,
        what,
    };
    if status.success() {
        if stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        return serde_json::from_slice(stdout)
            .map(Some)
            .map_err(|error| wrong(format!("{:?}, which is not JSON: {error}", beginning(stdout))));
    }
    if let Ok(mut source) = serde_json::from_slice::<CniError>(stdout) {
        if source.details.is_empty() {
            source.details = said.to_owned();
        }
        return Err(ExecError::Plugin {
            plugin: plugin.to_owned(),
            command,
            source,
        });
    }
    let how = match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit code {}", status.code().unwrap_or(-1)),
    };
    let mut source = CniError::new(ErrorCode::INTERNAL, format!("{how} without an error message"));
    source.details = match said {
        "" => beginning(stdout),
        said => said.to_owned(),
    };
    Err(ExecError::Plugin {
        plugin: plugin.to_owned(),
        command,
        source,
    })
}

fn beginning(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use serde_json::json;

    use super::*;

    fn script(body: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    fn invocation() -> Invocation {
        Invocation {
            command: Command::Add,
            container_id: "c1".into(),
            netns: Some("/run/netns/a".into()),
            ifname: "eth0".into(),
            args: vec![("A".into(), "1".into()), ("B".into(), "2".into())],
            path: vec!["/opt/cni/bin".into(), "/x".into()],
            config: json!({"name": "n"}),
        }
    }

    fn run(body: &str, timeout: Duration) -> Result<Option<Value>, ExecError> {
        let (_dir, path) = script(body);
        ProcessExec::new(timeout).run("plugin", &path, &invocation())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn environment_and_input_are_those_of_the_specification() {
        let body = r#"config=$(cat); echo "{\"e\":\"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS $CNI_PATH\",\"c\":$config}""#;
        assert_eq!(
            run(body, LONG).unwrap().unwrap(),
            json!({"e": "ADD c1 /run/netns/a eth0 A=1;B=2 /opt/cni/bin:/x", "c": {"name": "n"}})
        );
    }

    #[test]
    fn errors_are_passed_on() {
        let error = run(r#"echo '{"code":11,"msg":"later"}'; echo why >&2; exit 1"#, LONG).unwrap_err();
        let ExecError::Plugin { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(source.to_string(), "later: why (code 11)");
        let error = run("echo oops >&2; exit 3", LONG).unwrap_err();
        let ExecError::Plugin { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(
            source.to_string(),
            "exit code 3 without an error message: oops (code 999)"
        );
        let error = run("kill -9 $$", LONG).unwrap_err();
        let ExecError::Plugin { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(source.to_string().starts_with("killed by signal 9"));
        assert!(
            run("echo nonsense", LONG)
                .unwrap_err()
                .to_string()
                .contains("which is not JSON")
        );
        assert!(run("true", LONG).unwrap().is_none());
    }

    #[test]
    fn a_hung_plugin_is_killed_with_its_children() {
        let marker = tempfile::NamedTempFile::new().unwrap();
        let body = format!("sleep 1000 & echo $! > {}; wait", marker.path().display());
        let error = run(&body, Duration::from_millis(300)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("plugin plugin hung: ADD was killed after 0."),
            "{error}"
        );
        let child = fs::read_to_string(marker.path()).unwrap();
        let status = format!("/proc/{}/stat", child.trim());
        let gone = || match fs::read_to_string(&status) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !gone() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(gone());
    }

    #[test]
    fn too_much_output_is_refused_and_a_left_daemon_not_waited_for() {
        let error = run("cat /dev/zero", LONG).unwrap_err();
        assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
        // Waiting for it would end with the time limit.
        let left = Left::default();
        let body = format!("sleep 1000 & {}; echo 1", left.note());
        assert_eq!(run(&body, LONG).unwrap().unwrap(), json!(1));
    }

    #[test]
    fn a_child_that_is_left_behind_and_writes_for_ever_is_not_listened_to() {
        let left = Left::default();
        let error = run(&format!("yes & {}; exit 0", left.note()), LONG).unwrap_err();
        assert!(
            error.to_string().starts_with("plugin plugin answered ADD with "),
            "{error}"
        );
        let left = Left::default();
        let error = run(&format!("yes >&2 & {}; exit 3", left.note()), LONG).unwrap_err();
        assert!(
            error.to_string().starts_with("ADD of plugin plugin failed"),
            "{error}"
        );
    }

    /// A process that a script leaves behind; it ends with the test.
    struct Left(tempfile::NamedTempFile);

    impl Default for Left {
        fn default() -> Self {
            Left(tempfile::NamedTempFile::new().unwrap())
        }
    }

    impl Left {
        fn note(&self) -> String {
            format!("echo $! > {}", self.0.path().display())
        }
    }

    impl Drop for Left {
        fn drop(&mut self) {
            let pid = fs::read_to_string(self.0.path()).unwrap();
            nix::sys::signal::kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
        }
    }
}
