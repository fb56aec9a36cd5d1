//! The built-in CNI plugins: bridge, host-local, loopback, portmap, firewall, bandwidth and tuning.
//!
//! The story: [`Builtin`] takes one [`Invocation`], the same whether it came from the environment and standard input
//! of the `orlop-cni` executable or straight from the daemon, and gives it to the plugin of that name. A plugin looks at
//! its configuration, decides, and acts through `cni-net`. It runs in the host's network namespace; what must happen in
//! the container's namespace happens on a thread that enters it.
//!
//! Every plugin may be killed between any two steps. So each step can be repeated over its own leftovers, names are
//! derived from the container rather than drawn by lot, and whatever outlives a namespace (addresses in files, elements
//! of nftables maps) carries its owner's name, by which GC finds it.

mod bandwidth;
mod bridge;
mod call;
mod error;
mod firewall;
mod host_local;
mod loopback;
mod owner;
mod portmap;
mod ruleset;
mod tuning;

use cni_types::{Command, ExecError, Invocation, PluginExec, Version};
use serde_json::{Value, json};

use call::{Call, Plugin};
use error::PluginError;

/// The names under which the plugins are called.
pub const NAMES: [&str; 7] = [
    "bandwidth",
    "bridge",
    "firewall",
    "host-local",
    "loopback",
    "portmap",
    "tuning",
];

/// Our plugins, run in this process.
#[derive(Debug, Default, Clone, Copy)]
pub struct Builtin;

impl Builtin {
    /// All of them.
    pub fn new() -> Self {
        Builtin
    }
}

fn plugin(name: &str) -> Option<&'static dyn Plugin> {
    Some(match name {
        "bandwidth" => &bandwidth::Bandwidth,
        "bridge" => &bridge::Bridge,
        "firewall" => &firewall::Firewall,
        "host-local" => &host_local::HostLocal,
        "loopback" => &loopback::Loopback,
        "portmap" => &portmap::Portmap,
        "tuning" => &tuning::Tuning,
        _ => return None,
    })
}

impl PluginExec for Builtin {
    fn provides(&self, name: &str) -> bool {
        plugin(name).is_some()
    }

    fn is_builtin(&self, name: &str) -> bool {
        self.provides(name)
    }

    fn exec(
        &self,
        name: &str,
        invocation: &Invocation,
        delegate: &dyn PluginExec,
    ) -> Result<Option<Value>, ExecError> {
        let Some(plugin) = plugin(name) else {
            return Err(ExecError::NotFound {
                plugin: name.to_owned(),
                dirs: "this executable".into(),
            });
        };
        run(plugin, invocation, delegate).map_err(|error| ExecError::Plugin {
            plugin: name.to_owned(),
            command: invocation.command,
            source: error.into_cni(),
        })
    }
}

fn run(
    plugin: &dyn Plugin,
    invocation: &Invocation,
    delegate: &dyn PluginExec,
) -> Result<Option<Value>, PluginError> {
    if invocation.command == Command::Version {
        // What was stated comes back, as the specification has it, spoken here or not.
        let stated = match &invocation.config["cniVersion"] {
            Value::String(stated) if !stated.is_empty() => stated,
            _ => Version::LATEST.as_str(),
        };
        return Ok(Some(
            json!({ "cniVersion": stated, "supportedVersions": Version::ALL }),
        ));
    }
    let call = Call::new(invocation, delegate)?;
    match invocation.command {
        Command::Add => plugin.add(&call).map(|result| Some(result.to_json(call.version))),
        Command::Del => plugin.del(&call).map(|()| None),
        Command::Check => plugin.check(&call).map(|()| None),
        Command::Gc => plugin.gc(&call).map(|()| None),
        Command::Status => plugin.status(&call).map(|()| None),
        Command::Version => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_answers_in_the_version_that_was_stated() {
        let answer = |config: Value| {
            let invocation = Invocation {
                command: Command::Version,
                container_id: String::new(),
                netns: None,
                ifname: String::new(),
                args: Vec::new(),
                path: Vec::new(),
                config,
            };
            Builtin.exec("bridge", &invocation, &Builtin).unwrap().unwrap()
        };
        for stated in ["0.4.0", "9.9.9"] {
            let answer = answer(json!({ "cniVersion": stated }));
            assert_eq!(answer["cniVersion"], stated);
            assert_eq!(
                answer["supportedVersions"],
                json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
            );
        }
        assert_eq!(answer(json!({}))["cniVersion"], "1.1.0");
    }
}
