//! Hooks: programs of the operator's, run at points of a container's life with its state on standard input.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use oci_runtime_sys::process;
use oci_spec::runtime::{Hook, Spec};
use serde::{Deserialize, Serialize};

use crate::context::Context as _;
use crate::{ConfigError, StepError};

/// So much of a failed hook's standard error is told.
const MAX_STDERR: u64 = 1024;

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HookCommand {
    path: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// Seconds; none: as long as it takes.
    timeout: Option<u32>,
}

impl HookCommand {
    /// One that says nothing of its environment gets this, of `NAME=value` entries.
    pub(crate) fn inherit<'a>(&mut self, environment: impl Iterator<Item = &'a str>) {
        if self.env.is_empty() {
            let entries = environment.filter_map(|entry| entry.split_once('='));
            self.env = entries
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
        }
    }
}

/// All of a container's hooks, by when they run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HookPlan {
    /// There are some for the runtime to run.
    pub(crate) runtime: bool,
    pub(crate) prestart: Vec<HookCommand>,
    pub(crate) create_runtime: Vec<HookCommand>,
    pub(crate) create_container: Vec<HookCommand>,
    pub(crate) start_container: Vec<HookCommand>,
    pub(crate) poststart: Vec<HookCommand>,
    pub(crate) poststop: Vec<HookCommand>,
}

impl HookPlan {
    pub(crate) fn new(spec: &Spec) -> Result<Self, ConfigError> {
        let Some(hooks) = spec.hooks() else {
            return Ok(Self::default());
        };
        #[allow(deprecated, reason = "many configurations still have it")]
        let prestart = plan("prestart", hooks.prestart().as_deref())?;
        let create_runtime = plan("createRuntime", hooks.create_runtime().as_deref())?;
        Ok(Self {
            runtime: !prestart.is_empty() || !create_runtime.is_empty(),
            prestart,
            create_runtime,
            create_container: plan("createContainer", hooks.create_container().as_deref())?,
            start_container: plan("startContainer", hooks.start_container().as_deref())?,
            poststart: plan("poststart", hooks.poststart().as_deref())?,
            poststop: plan("poststop", hooks.poststop().as_deref())?,
        })
    }
}

fn plan(name: &str, hooks: Option<&[Hook]>) -> Result<Vec<HookCommand>, ConfigError> {
    let one = |(index, hook): (usize, &Hook)| {
        let field = |part: &str| format!("hooks.{name}[{index}].{part}");
        if !hook.path().is_absolute() {
            return Err(ConfigError::invalid(
                field("path"),
                format!("`{}` is not absolute", hook.path().display()),
            ));
        }
        let timeout = match hook.timeout() {
            None => None,
            Some(seconds) => match u32::try_from(seconds) {
                Ok(seconds) if seconds > 0 => Some(seconds),
                _ => {
                    return Err(ConfigError::invalid(
                        field("timeout"),
                        format!("{seconds} is not a number of seconds greater than 0"),
                    ));
                }
            },
        };
        let env = hook.env().iter().flatten();
        Ok(HookCommand {
            path: hook.path().clone(),
            args: hook.args().clone().unwrap_or_default(),
            env: env
                .filter_map(|entry| entry.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            timeout,
        })
    };
    hooks.unwrap_or_default().iter().enumerate().map(one).collect()
}

/// Runs hooks one after the other; the first that fails ends it.
pub(crate) fn run(name: &str, hooks: &[HookCommand], state: &str) -> Result<(), StepError> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| {
        run_one(hook, state).map_err(|error| {
            StepError::new(
                error.kind,
                // Callers look for the first words.
                format!(
                    "error running {name} hook #{index}: `{}`: {}",
                    hook.path.display(),
                    error.message
                ),
            )
        })
    })
}

fn run_one(hook: &HookCommand, state: &str) -> Result<(), StepError> {
    let mut command = Command::new(&hook.path);
    if let Some((first, rest)) = hook.args.split_first() {
        command.arg0(first).args(rest);
    }
    command
        .env_clear()
        .envs(hook.env.iter().map(|(key, value)| (key, value)));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().to(|| "start it")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its state; the pipe takes 64 KiB without a reader.
        let bytes = state.as_bytes();
        let _ = stdin.write_all(&bytes[..bytes.len().min(60 << 10)]);
    }
    wait(&mut child, hook.timeout)
}

fn wait(child: &mut Child, timeout: Option<u32>) -> Result<(), StepError> {
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    if let Some(seconds) = timeout {
        let pidfd = process::pidfd_open(pid).to(|| "watch it")?;
        let millis = seconds.saturating_mul(1000);
        if !process::wait_readable(pidfd.as_fd(), Some(millis)).to(|| "wait for it")? {
            let _ = child.kill();
            let _ = child.wait();
            return Err(StepError::other(format!("did not end within {seconds} s")));
        }
    }
    let status = child.wait().to(|| "wait for it")?;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What it has left behind may hold the pipe open: only what is there already is read.
        let ready = process::wait_readable(stderr.as_fd(), Some(0)).unwrap_or(false);
        if ready {
            let mut part = [0; MAX_STDERR as usize];
            let mut stderr = stderr;
            let length = stderr.read(&mut part).unwrap_or(0);
            said.extend_from_slice(&part[..length]);
        }
    }
    let said = String::from_utf8_lossy(&said);
    Err(StepError::other(format!(
        "ended with {status}, saying: {}",
        said.trim()
    )))
}
