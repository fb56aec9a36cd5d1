//! orlop-oci: the runtime library as a command line that is compatible with runc's.
//!
//! containerd's and CRI-O's shims, conmon and people call it. Errors go to standard error and, in the format that
//! containerd reads, to the file given with `--log`.

#![cfg_attr(not(test), no_main)]

mod args;
mod commands;
mod features;
mod log;
mod protect;
mod relay;
mod spec;

use args::{Arguments, Usage};
use log::{Level, Log};
use oci_runtime_cgroups::CgroupDriver;
use oci_runtime_container::Runtime;

/// Where containers are kept when the caller doesn't say.
const DEFAULT_ROOT: &str = "/run/orlop/oci";

#[cfg(not(test))]
oci_runtime_sys::entry!(main);

fn main() -> u8 {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            Log::default().write(Level::Error, &error.to_string());
            return 1;
        }
    };
    let log = Log {
        file: arguments.value("log").map(Into::into),
        json: arguments.value("log-format") == Some("json"),
    };
    match run(&arguments, &log) {
        Ok(code) => code,
        Err(error) => {
            log.write(Level::Error, &chain(&error));
            commands::exit_code(&arguments)
        }
    }
}

/// The error with its sources, in one line.
fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

fn run(arguments: &Arguments, log: &Log) -> anyhow::Result<u8> {
    if arguments.is_set("version") {
        println!("orlop-oci version {}", env!("CARGO_PKG_VERSION"));
        println!("spec: {}", oci_runtime_container::OCI_VERSION);
        return Ok(0);
    }
    if arguments.is_set("help") || arguments.command.is_empty() {
        print!("{HELP}");
        return Ok(0);
    }
    match arguments.value("log-format") {
        None | Some("json" | "text") => {}
        Some(other) => return Err(Usage(format!("--log-format is `text` or `json`, not `{other}`")).into()),
    }
    let driver = if arguments.is_set("systemd-cgroup") {
        CgroupDriver::Systemd
    } else {
        CgroupDriver::Cgroupfs
    };
    let runtime = Runtime::new(arguments.value("root").unwrap_or(DEFAULT_ROOT), driver);
    commands::dispatch(arguments, &runtime, log)
}

const HELP: &str = "\
orlop-oci: runs containers by the OCI runtime specification

usage: orlop-oci [GLOBAL OPTIONS] COMMAND [OPTIONS] [ID] [...]

commands:
  create ID             create a container from --bundle; its process waits for start
  start ID              execute the command of a created container
  run ID                create, start, wait (unless --detach) and delete
  exec ID CMD...        run a command (or --process FILE) in a container
  state ID              the container's state, JSON
  list                  all containers (--format table|json, --quiet)
  ps ID                 the container's processes (--format table|json)
  kill ID [SIGNAL]      signal the container's process; --all: every one
  delete ID             remove a stopped container; --force: kill it first
  pause ID, resume ID   freeze, and go on
  update ID             change limits (--resources FILE or -)
  events --stats ID     what the container uses, JSON
  spec                  write a default config.json
  features              what this runtime can do, JSON

global options:
  --root DIR            where containers' state is kept (default /run/orlop/oci)
  --log FILE            append errors and warnings there
  --log-format FORMAT   text or json
  --systemd-cgroup      have systemd make cgroups
  --debug, --rootless   accepted, without effect
  --version, --help
";
