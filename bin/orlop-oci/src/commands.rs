//! The commands, each a thin layer over the library.

mod control;
mod process;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use oci_runtime_container::{CreateOptions, Runtime, State, Stdio, load_spec};

use crate::args::{Arguments, Usage};
use crate::log::{Level, Log};
use crate::relay::{Relay, Terminal};
use crate::{features, protect, spec};

/// Runs a command; its exit code.
pub(crate) fn dispatch(arguments: &Arguments, runtime: &Runtime, log: &Log) -> anyhow::Result<u8> {
    match arguments.command.as_str() {
        "create" => create(arguments, runtime, log),
        "run" => run(arguments, runtime, log),
        "start" => warn(log, runtime.start(arguments.id()?)?),
        "exec" => process::exec(arguments, runtime, log),
        "state" => print_json(&runtime.state(arguments.id()?)?),
        "list" => list(arguments, runtime),
        "kill" => control::kill(arguments, runtime),
        "delete" => warn(log, runtime.delete(arguments.id()?, arguments.is_set("force"))?),
        "pause" => Ok(runtime.pause(arguments.id()?).map(|()| 0)?),
        "resume" => Ok(runtime.resume(arguments.id()?).map(|()| 0)?),
        "ps" => control::ps(arguments, runtime),
        "update" => control::update(arguments, runtime),
        "events" => control::events(arguments, runtime),
        "spec" => write_spec(arguments),
        "features" => print_json(&features::document()),
        other => Err(Usage(format!(
            "`{other}` is not supported: orlop does not checkpoint containers"
        ))
        .into()),
    }
}

/// runc's codes: 1, but of `exec` 255, as 1 could be the process's own.
pub(crate) fn exit_code(arguments: &Arguments) -> u8 {
    if arguments.command == "exec" { 255 } else { 1 }
}

fn warn(log: &Log, warnings: Vec<String>) -> anyhow::Result<u8> {
    for warning in &warnings {
        log.write(Level::Warning, warning);
    }
    Ok(0)
}

pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<u8> {
    use std::io::Write as _;
    let text = serde_json::to_string_pretty(value)?;
    std::io::stdout().write_all(format!("{text}\n").as_bytes())?;
    Ok(0)
}

fn create_options(arguments: &Arguments) -> anyhow::Result<CreateOptions> {
    if arguments.value("pidfd-socket").is_some() {
        return Err(Usage("--pidfd-socket is not supported".to_owned()).into());
    }
    let bundle = match arguments.value("bundle") {
        Some(bundle) => PathBuf::from(bundle),
        None => std::env::current_dir().context("failed to find the current folder")?,
    };
    let mut options = CreateOptions::new(arguments.id()?, bundle);
    if let Some(socket) = arguments.value("console-socket") {
        options.stdio = Stdio::ConsoleSocket(socket.into());
    }
    options.pid_file = arguments.value("pid-file").map(Into::into);
    options.no_pivot = arguments.is_set("no-pivot");
    options.no_new_keyring = arguments.is_set("no-new-keyring");
    options.preserve_fds = preserved(arguments)?;
    Ok(options)
}

/// What the caller asks for, and what systemd's socket activation hands over.
pub(crate) fn preserved(arguments: &Arguments) -> anyhow::Result<u32> {
    let asked: u32 = arguments.number("preserve-fds")?.unwrap_or(0);
    let listening = std::env::var("LISTEN_FDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0u32);
    Ok(asked.saturating_add(listening.min(1024)))
}

fn create(arguments: &Arguments, runtime: &Runtime, log: &Log) -> anyhow::Result<u8> {
    protect::ensure().context("failed to execute a protected copy of orlop-oci")?;
    let created = runtime.create(create_options(arguments)?)?;
    warn(log, created.warnings)
}

fn run(arguments: &Arguments, runtime: &Runtime, log: &Log) -> anyhow::Result<u8> {
    protect::ensure().context("failed to execute a protected copy of orlop-oci")?;
    let mut options = create_options(arguments)?;
    let detach = arguments.is_set("detach");
    let parsed = load_spec(&options.bundle)?;
    let terminal = process::wants_terminal(&parsed.value);
    options.config = Some(parsed);
    if terminal && !detach && matches!(options.stdio, Stdio::Inherit) {
        options.stdio = Stdio::ConsoleFd;
    }
    let id = options.id.clone();
    let relay = if detach { None } else { Some(Relay::new()?) };
    let created = runtime.create(options)?;
    warn(log, created.warnings)?;
    let terminal = created.console.map(Terminal::new).transpose();
    let started = terminal
        .map_err(anyhow::Error::from)
        .and_then(|terminal| Ok((warn(log, runtime.start(&id)?)?, terminal)));
    let (_, terminal) = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = runtime.delete(&id, true);
            return Err(error);
        }
    };
    let Some(relay) = relay else { return Ok(0) };
    let exit = relay.wait(created.pid, terminal);
    if !arguments.is_set("keep") {
        warn(log, runtime.delete(&id, true)?)?;
    }
    Ok(u8::try_from(exit?.shell_code()).unwrap_or(255))
}

fn list(arguments: &Arguments, runtime: &Runtime) -> anyhow::Result<u8> {
    // A mistyped folder is not an empty one; the usual one need not be there before the first container.
    if arguments.value("root").is_some() {
        std::fs::metadata(runtime.root())
            .with_context(|| format!("failed to list `{}`", runtime.root().display()))?;
    }
    let states = runtime.list()?;
    if arguments.is_set("quiet") {
        states.iter().for_each(|state| println!("{}", state.id));
        return Ok(0);
    }
    match arguments.value("format") {
        Some("json") => {
            println!("{}", serde_json::to_string(&states)?);
            Ok(0)
        }
        None | Some("table") => {
            print_table(&states);
            Ok(0)
        }
        Some(other) => Err(Usage(format!("--format is `table` or `json`, not `{other}`")).into()),
    }
}

fn print_table(states: &[State]) {
    let width = states
        .iter()
        .map(|state| state.id.len())
        .max()
        .unwrap_or(0)
        .max(2);
    let bundles = states.iter().map(|state| state.bundle.as_os_str().len()).max();
    let bundles = bundles.unwrap_or(0).max(6);
    println!(
        "{:width$}  {:8}  {:8}  {:bundles$}  {:30}  OWNER",
        "ID", "PID", "STATUS", "BUNDLE", "CREATED"
    );
    for state in states {
        let State {
            id,
            pid,
            created,
            owner,
            ..
        } = state;
        println!(
            "{id:width$}  {pid:<8}  {:8}  {:bundles$}  {created:30}  {owner}",
            state.status.to_string(),
            state.bundle.display().to_string()
        );
    }
}

fn write_spec(arguments: &Arguments) -> anyhow::Result<u8> {
    if arguments.is_set("rootless") {
        return Err(Usage("spec --rootless is not supported".to_owned()).into());
    }
    let path = Path::new(arguments.value("bundle").unwrap_or(".")).join("config.json");
    let text = serde_json::to_string_pretty(&spec::document())?;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).open(&path);
    use std::io::Write as _;
    file.and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()))
        .with_context(|| format!("failed to write `{}`", path.display()))?;
    Ok(0)
}

/// A file's text; `-` is standard input.
pub(crate) fn read_input(path: &str) -> anyhow::Result<Vec<u8>> {
    const MAX_BYTES: u64 = 16 << 20;
    let mut bytes = Vec::new();
    if path == "-" {
        std::io::stdin().lock().take(MAX_BYTES).read_to_end(&mut bytes)?;
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("failed to read `{path}`"))?;
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
