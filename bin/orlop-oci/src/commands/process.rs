//! exec, and what it makes of its options.

use std::path::Path;

use anyhow::Context as _;
use oci_runtime_container::{ExecOptions, Runtime, Stdio, capability_number, load_process};
use oci_spec::runtime::{Capability, Process, Spec, User};

use super::preserved;
use crate::args::{Arguments, Usage};
use crate::log::{Level, Log};
use crate::protect;
use crate::relay::{Relay, Terminal};

/// Whether the configured process wants a terminal.
pub(super) fn wants_terminal(spec: &Spec) -> bool {
    let process = spec.process().as_ref();
    process.and_then(Process::terminal).unwrap_or(false)
}

pub(super) fn exec(arguments: &Arguments, runtime: &Runtime, log: &Log) -> anyhow::Result<u8> {
    protect::ensure().context("failed to execute a protected copy of orlop-oci")?;
    if arguments.value("pidfd-socket").is_some() {
        return Err(Usage("--pidfd-socket is not supported".to_owned()).into());
    }
    let id = arguments.id()?;
    let process = process(arguments, runtime, log)?;
    let detach = arguments.is_set("detach");
    let terminal = process.terminal().unwrap_or(false);
    let mut options = ExecOptions::new(id, process);
    options.stdio = match arguments.value("console-socket") {
        Some(socket) => Stdio::ConsoleSocket(socket.into()),
        None if terminal && !detach => Stdio::ConsoleFd,
        None => Stdio::Inherit,
    };
    options.pid_file = arguments.value("pid-file").map(Into::into);
    options.preserve_fds = preserved(arguments)?;
    options.sub_cgroup = arguments.value("cgroup").unwrap_or_default().to_owned();
    options.ignore_paused = arguments.is_set("ignore-paused");
    let relay = if detach { None } else { Some(Relay::new()?) };
    let execed = runtime.exec(options)?;
    for warning in &execed.warnings {
        log.write(Level::Warning, warning);
    }
    let Some(relay) = relay else { return Ok(0) };
    let terminal = execed.console.map(Terminal::new).transpose()?;
    let exit = relay.wait(execed.pid, terminal)?;
    Ok(u8::try_from(exit.shell_code()).unwrap_or(255))
}

/// The process as described in a file, or the container's own with another command.
fn process(arguments: &Arguments, runtime: &Runtime, log: &Log) -> anyhow::Result<Process> {
    if let Some(path) = arguments.value("process") {
        let parsed = load_process(Path::new(path))?;
        for warning in &parsed.warnings {
            log.write(Level::Warning, warning);
        }
        return Ok(parsed.value);
    }
    let command = arguments.words.get(1..).unwrap_or_default();
    if command.is_empty() {
        return Err(Usage("exec needs a command or --process".to_owned()).into());
    }
    let mut process = runtime.process(arguments.id()?)?;
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(arguments.is_set("tty")));
    if let Some(cwd) = arguments.value("cwd") {
        process.set_cwd(cwd.into());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(arguments.values("env").map(str::to_owned));
    process.set_env(Some(env));
    if let Some(user) = arguments.value("user") {
        process.set_user(user_of(user, process.user())?);
    }
    let mut groups = process.user().additional_gids().clone().unwrap_or_default();
    for group in arguments.values("additional-gids") {
        groups.push(number("additional-gids", group)?);
    }
    process.user_mut().set_additional_gids(Some(groups));
    if arguments.is_set("no-new-privs") {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(profile) = arguments.value("apparmor") {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    if let Some(label) = arguments.value("process-label") {
        process.set_selinux_label(Some(label.to_owned()));
    }
    add_capabilities(arguments, &mut process)?;
    Ok(process)
}

fn add_capabilities(arguments: &Arguments, process: &mut Process) -> anyhow::Result<()> {
    let mut sets = match process.capabilities() {
        Some(sets) => sets.clone(),
        None => return Ok(()),
    };
    for name in arguments.values("cap") {
        let short = name.strip_prefix("CAP_").unwrap_or(name);
        let known = capability_number(short).and_then(|_| short.parse::<Capability>().ok());
        let Some(capability) = known else {
            return Err(Usage(format!("--cap: there is no capability `{name}`")).into());
        };
        let with = |set: &Option<std::collections::HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        sets.set_bounding(with(sets.bounding()));
        sets.set_effective(with(sets.effective()));
        sets.set_permitted(with(sets.permitted()));
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

/// `UID` or `UID:GID`.
fn user_of(text: &str, before: &User) -> anyhow::Result<User> {
    let mut user = before.clone();
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    user.set_uid(number("user", uid)?);
    if let Some(gid) = gid {
        user.set_gid(number("user", gid)?);
    }
    Ok(user)
}

fn number(option: &str, text: &str) -> Result<u32, Usage> {
    text.parse()
        .map_err(|_| Usage(format!("--{option}: `{text}` is not a number")))
}
