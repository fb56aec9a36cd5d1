//! orlop-cni: the CNI plugins as one executable, for any runtime that speaks CNI.
//!
//! It is the plugin that it is called as (a link named `bridge`, say), or that its first argument names. The call comes
//! in the environment and on standard input, the answer goes to standard output, as the CNI specification says.

use std::{
    env,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use cni_invoke::Runner;
use cni_plugins::{Builtin, NAMES};
use cni_types::{CniError, Command, ErrorCode, ExecError, Invocation, PluginExec, Version};
use serde_json::Value;

/// A configuration is some kilobytes.
const MAX_INPUT: u64 = 16 << 20;
/// How long a plugin that this one delegates to may take.
const DELEGATE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let Some(plugin) = chosen_plugin() else {
        eprintln!(
            "orlop-cni {}: call it through a link named like a plugin, or give the name: {}",
            env!("CARGO_PKG_VERSION"),
            NAMES.join(", ")
        );
        return ExitCode::from(64);
    };
    if env::var_os("CNI_COMMAND").is_none() {
        eprintln!(
            "CNI plugin {plugin} of orlop-cni {}; CNI versions {}. It is run by a container runtime, with CNI_COMMAND set.",
            env!("CARGO_PKG_VERSION"),
            Version::ALL.map(Version::as_str).join(", ")
        );
        return ExitCode::SUCCESS;
    }
    let mut version = Version::LATEST;
    match run(&plugin, &mut version) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => print(&answer),
        Err(error) => {
            print(&error.to_json(version));
            ExitCode::FAILURE
        }
    }
}

fn print(answer: &Value) -> ExitCode {
    match writeln!(io::stdout().lock(), "{answer}") {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody is there to hear about it.
        Err(_) => ExitCode::FAILURE,
    }
}

fn chosen_plugin() -> Option<String> {
    let mut args = env::args();
    let own = args.next().unwrap_or_default();
    let own = Path::new(&own).file_name()?.to_str()?.to_owned();
    let known = |name: &String| NAMES.contains(&name.as_str());
    Some(own).filter(known).or_else(|| args.next().filter(known))
}

/// `version` becomes the configuration's, for the answer.
fn run(plugin: &str, version: &mut Version) -> Result<Option<Value>, CniError> {
    let invocation = invocation()?;
    if let Some(stated) = invocation.config["cniVersion"]
        .as_str()
        .and_then(|text| text.parse().ok())
    {
        *version = stated;
    }
    let builtin = Arc::new(Builtin::new());
    let delegate = Runner::new(invocation.path.clone(), DELEGATE, Some(builtin.clone()));
    builtin
        .exec(plugin, &invocation, &delegate)
        .map_err(|error| match error {
            ExecError::Plugin { source, .. } => source,
            other => CniError::new(other.code(), other.to_string()),
        })
}

fn invocation() -> Result<Invocation, CniError> {
    let command: Command = variable("CNI_COMMAND")?.parse()?;
    let netns = variable("CNI_NETNS")?;
    Ok(Invocation {
        command,
        container_id: variable("CNI_CONTAINERID")?,
        netns: Some(netns).filter(|path| !path.is_empty()).map(PathBuf::from),
        ifname: variable("CNI_IFNAME")?,
        args: arguments(&variable("CNI_ARGS")?)?,
        path: env::split_paths(&variable("CNI_PATH")?).collect(),
        config: input()?,
    })
}

fn variable(name: &str) -> Result<String, CniError> {
    match env::var(name) {
        Ok(value) => Ok(value),
        Err(env::VarError::NotPresent) => Ok(String::new()),
        Err(env::VarError::NotUnicode(_)) => Err(CniError::new(
            ErrorCode::INVALID_ENVIRONMENT,
            format!("{name} is not UTF-8"),
        )),
    }
}

fn arguments(text: &str) -> Result<Vec<(String, String)>, CniError> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => {
                let message = format!("CNI_ARGS has {pair:?}, which is no KEY=VALUE");
                Err(CniError::new(ErrorCode::INVALID_ENVIRONMENT, message))
            }
        })
        .collect()
}

fn input() -> Result<Value, CniError> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(MAX_INPUT)
        .read_to_string(&mut text)
        .map_err(|error| {
            CniError::new(ErrorCode::IO_FAILURE, "failed to read standard input").because(&error)
        })?;
    serde_json::from_str(&text).map_err(|error| {
        CniError::new(
            ErrorCode::DECODING_FAILURE,
            "failed to decode the network configuration",
        )
        .because(&error)
    })
}
