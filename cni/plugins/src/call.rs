//! One call of a plugin, with what all plugins need already looked at.

use std::path::Path;

use cni_types::{
    AddResult, Command, ErrorCode, Invocation, PluginExec, RuntimeConfig, ValidAttachment, Version,
    check_container_id, check_ifname, check_network_name,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{error::PluginError, owner::Owner};

/// What a plugin does.
pub(crate) trait Plugin: Sync {
    fn add(&self, call: &Call<'_>) -> Result<AddResult, PluginError>;
    fn del(&self, call: &Call<'_>) -> Result<(), PluginError>;
    fn check(&self, call: &Call<'_>) -> Result<(), PluginError>;
    /// Removes what belongs to no valid attachment.
    fn gc(&self, call: &Call<'_>) -> Result<(), PluginError>;
    /// Whether ADD could be served now.
    fn status(&self, call: &Call<'_>) -> Result<(), PluginError>;
}

pub(crate) struct Call<'a> {
    pub(crate) invocation: &'a Invocation,
    delegate: &'a dyn PluginExec,
    /// The network.
    pub(crate) network: String,
    pub(crate) version: Version,
    pub(crate) previous: Option<AddResult>,
    pub(crate) runtime: RuntimeConfig,
}

/// The keys that every network configuration has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Common {
    cni_version: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    runtime_config: Option<RuntimeConfig>,
    #[serde(default)]
    prev_result: Option<Value>,
}

#[derive(Deserialize)]
struct Valid {
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<ValidAttachment>>,
    /// As an early text of the specification called it.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<ValidAttachment>>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(invocation: &'a Invocation, delegate: &'a dyn PluginExec) -> Result<Self, PluginError> {
        let common: Common = decode(&invocation.config)?;
        let text = common.cni_version.unwrap_or_default();
        let version: Version = text.parse().map_err(|error: cni_types::UnknownVersion| {
            PluginError::new(ErrorCode::INCOMPATIBLE_VERSION, error.to_string())
        })?;
        check_network_name(&common.name).map_err(|error| PluginError::config(error.to_string()))?;
        if matches!(invocation.command, Command::Add | Command::Del | Command::Check) {
            let wrong = |error: cni_types::InvalidId| {
                PluginError::new(ErrorCode::INVALID_ENVIRONMENT, error.to_string())
            };
            check_container_id(&invocation.container_id).map_err(wrong)?;
            check_ifname(&invocation.ifname).map_err(wrong)?;
        }
        let previous = match common.prev_result {
            None | Some(Value::Null) => None,
            Some(value) => match AddResult::from_json(&value) {
                Ok(result) => Some(result),
                // What can't be read must not keep a container from being removed; marks tell what is its.
                Err(_) if invocation.command == Command::Del => None,
                Err(error) => {
                    return Err(PluginError::Cni(
                        cni_types::CniError::new(ErrorCode::DECODING_FAILURE, "failed to decode prevResult")
                            .because(&error),
                    ));
                }
            },
        };
        let runtime = common.runtime_config.unwrap_or_default();
        Ok(Call {
            invocation,
            delegate,
            network: common.name,
            version,
            previous,
            runtime,
        })
    }

    /// The plugin's own configuration.
    pub(crate) fn config<T: DeserializeOwned>(&self) -> Result<T, PluginError> {
        decode(&self.invocation.config)
    }

    /// The container's network namespace, without which ADD and CHECK can't work. The host's own isn't one.
    pub(crate) fn netns(&self) -> Result<&'a Path, PluginError> {
        let Some(path) = self.invocation.netns.as_deref() else {
            return Err(PluginError::new(
                ErrorCode::INVALID_ENVIRONMENT,
                "CNI_NETNS is missing; name the network namespace",
            ));
        };
        let fail = |what: &str| {
            let message = format!("CNI_NETNS `{}` {what}", path.display());
            Err(PluginError::new(ErrorCode::INVALID_NETNS, message))
        };
        if !cni_net::is_netns(path) {
            return fail("is no network namespace");
        }
        if cni_net::is_own_netns(path) {
            return fail("is the host's own network namespace; name the container's");
        }
        Ok(path)
    }

    /// The same, if it is still there.
    pub(crate) fn netns_if_any(&self) -> Option<&'a Path> {
        self.invocation
            .netns
            .as_deref()
            .filter(|path| cni_net::is_netns(path) && !cni_net::is_own_netns(path))
    }

    pub(crate) fn ifname(&self) -> &'a str {
        &self.invocation.ifname
    }

    /// Whose interface this is about.
    pub(crate) fn owner(&self) -> Owner {
        Owner::new(&self.invocation.container_id, &self.invocation.ifname)
    }

    /// The result of the plugin before, which a plugin in the middle of a chain can't do without.
    pub(crate) fn previous(&self) -> Result<&AddResult, PluginError> {
        self.previous.as_ref().ok_or_else(|| {
            PluginError::config("prevResult is missing; put this plugin behind one that makes an interface")
        })
    }

    /// The owner's mark on elements of nftables sets.
    pub(crate) fn mark(&self) -> String {
        self.owner().mark(&self.network)
    }

    /// The value of a key of CNI_ARGS.
    pub(crate) fn arg(&self, key: &str) -> Option<&'a str> {
        self.invocation
            .args
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The owners that GC keeps.
    pub(crate) fn valid(&self) -> Result<Vec<Owner>, PluginError> {
        let valid: Valid = self.config()?;
        let list = valid.valid.or(valid.attachments).ok_or_else(|| {
            PluginError::config("cni.dev/valid-attachments is missing; without it GC would remove everything")
        })?;
        Ok(list
            .iter()
            .map(|v| Owner::new(&v.container_id, &v.ifname))
            .collect())
    }

    /// Whether a plugin that this one calls is code of this process.
    pub(crate) fn is_builtin(&self, plugin: &str) -> bool {
        self.delegate.is_builtin(plugin)
    }

    /// Hands the same call to the IPAM plugin.
    pub(crate) fn ipam(&self, plugin: &str, command: Command) -> Result<Option<AddResult>, PluginError> {
        let mut invocation = self.invocation.clone();
        invocation.command = command;
        let answer = self.delegate.exec(plugin, &invocation, self.delegate)?;
        answer
            .map(|value| AddResult::from_json(&value))
            .transpose()
            .map_err(|error| {
                let what = format!("IPAM plugin {plugin} answered something that is not a result");
                PluginError::Cni(cni_types::CniError::new(ErrorCode::DECODING_FAILURE, what).because(&error))
            })
    }
}

fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, PluginError> {
    T::deserialize(value).map_err(|error| {
        let message = format!("failed to decode the network configuration: {error}");
        PluginError::new(ErrorCode::DECODING_FAILURE, message)
    })
}
