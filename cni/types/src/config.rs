//! Network configuration: what an administrator (or a network add-on) drops into the configuration directory.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{UnknownVersion, Version, ids::check_network_name};

/// A file that is not a network configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("failed to parse it as JSON")]
    Json(#[source] serde_json::Error),
    /// A key is missing or has the wrong type.
    #[error("{key} {rule}")]
    Key {
        /// Which, with the index of the plugin.
        key: String,
        /// What it must be.
        rule: String,
    },
    /// The version isn't spoken here.
    #[error("cniVersion can't be used")]
    Version(#[source] UnknownVersion),
}

fn key_error(key: impl Into<String>, rule: impl Into<String>) -> ConfigError {
    ConfigError::Key {
        key: key.into(),
        rule: rule.into(),
    }
}

/// A chain of plugins that attaches a container to one network.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version in which its plugins are spoken to.
    pub version: Version,
    /// CHECK is never called.
    pub disable_check: bool,
    /// GC is never called.
    pub disable_gc: bool,
    /// The chain, in the order of ADD.
    pub plugins: Vec<PluginConfig>,
    /// The file's own text, kept for the cache: DEL must work when the file is gone.
    pub source: String,
}

/// One plugin of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// The plugin: the name of an executable.
    pub plugin: String,
    /// Capabilities that it declares.
    pub capabilities: BTreeSet<String>,
    /// Its whole configuration.
    pub config: Map<String, Value>,
}

impl NetworkList {
    /// Parses a `.conflist`.
    pub fn parse_list(text: &str) -> Result<Self, ConfigError> {
        let top = parse_object(text)?;
        // It only matters together with a directory of plugin files beside the list, which Orlop doesn't read: every
        // list behaves as if it were set, so only its type is looked at.
        bool_key(&top, "loadOnlyInlinedPlugins")?;
        let Some(plugins) = top.get("plugins") else {
            return Err(match top.contains_key("type") {
                true => key_error(
                    "plugins",
                    "is missing; a file with a single \"type\" must be called *.conf",
                ),
                false => key_error("plugins", "is missing"),
            });
        };
        let plugins = plugins
            .as_array()
            .ok_or_else(|| key_error("plugins", "must be a list"))?;
        if plugins.is_empty() {
            return Err(key_error("plugins", "must name at least one plugin"));
        }
        if plugins.len() > MAX_PLUGINS {
            return Err(key_error(
                "plugins",
                format!("must not have more than {MAX_PLUGINS} entries"),
            ));
        }
        let plugins = plugins
            .iter()
            .enumerate()
            .map(|(index, value)| match value {
                Value::Object(map) => PluginConfig::new(&format!("plugins[{index}]."), map.clone()),
                _ => Err(key_error(format!("plugins[{index}]"), "must be an object")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Self::new(&top, plugins, text)
    }

    /// Parses a `.conf` or `.json` file: a single plugin, which becomes a chain of one.
    pub fn parse_single(text: &str) -> Result<Self, ConfigError> {
        let top = parse_object(text)?;
        if !top.contains_key("type") && top.contains_key("plugins") {
            return Err(key_error(
                "type",
                "is missing; a file with \"plugins\" must be called *.conflist",
            ));
        }
        let plugin = PluginConfig::new("", top.clone())?;
        // As libcni does: the list that DEL will find in the cache has the same single entry.
        let mut list = Map::new();
        for key in ["name", "cniVersion"] {
            if let Some(value) = top.get(key) {
                list.insert(key.into(), value.clone());
            }
        }
        list.insert("plugins".into(), Value::Array(vec![Value::Object(top.clone())]));
        Self::new(&top, vec![plugin], &Value::Object(list).to_string())
    }

    fn new(top: &Map<String, Value>, plugins: Vec<PluginConfig>, source: &str) -> Result<Self, ConfigError> {
        let name = string_key(top, "", "name")?;
        check_network_name(&name).map_err(|error| key_error("name", format!("is wrong: {error}")))?;
        Ok(NetworkList {
            name,
            version: choose_version(top)?,
            disable_check: bool_key(top, "disableCheck")?,
            disable_gc: bool_key(top, "disableGC")?,
            plugins,
            source: source.to_owned(),
        })
    }
}

/// Longer chains are a mistake, not a network.
const MAX_PLUGINS: usize = 32;

impl PluginConfig {
    fn new(prefix: &str, config: Map<String, Value>) -> Result<Self, ConfigError> {
        let plugin = string_key(&config, prefix, "type")?;
        if plugin.contains(['/', '\0']) || plugin == "." || plugin == ".." || plugin.starts_with('-') {
            return Err(key_error(
                format!("{prefix}type"),
                "must be the name of an executable, without a path",
            ));
        }
        let mut capabilities = BTreeSet::new();
        match config.get("capabilities") {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => {
                for (name, value) in map {
                    match value {
                        Value::Bool(true) => drop(capabilities.insert(name.clone())),
                        Value::Bool(false) => {}
                        _ => {
                            return Err(key_error(
                                format!("{prefix}capabilities.{name}"),
                                "must be a boolean",
                            ));
                        }
                    }
                }
            }
            Some(_) => return Err(key_error(format!("{prefix}capabilities"), "must be an object")),
        }
        Ok(PluginConfig {
            plugin,
            capabilities,
            config,
        })
    }

    /// The configuration that goes to the plugin: the list's name and version, what of `runtime` it declares a
    /// capability for, and the result of the plugin before it.
    pub fn with_runtime(
        &self,
        list: &NetworkList,
        runtime: &Map<String, Value>,
        previous: Option<Value>,
    ) -> Value {
        let mut config = self.config.clone();
        config.remove("capabilities");
        config.insert("name".into(), Value::String(list.name.clone()));
        config.insert("cniVersion".into(), Value::String(list.version.as_str().into()));
        let wanted: Map<String, Value> = runtime
            .iter()
            .filter(|(name, _)| self.capabilities.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(wanted));
        }
        match previous {
            Some(result) => drop(config.insert("prevResult".into(), result)),
            None => drop(config.remove("prevResult")),
        }
        Value::Object(config)
    }
}

fn parse_object(text: &str) -> Result<Map<String, Value>, ConfigError> {
    serde_json::from_str(text).map_err(ConfigError::Json)
}

fn string_key(map: &Map<String, Value>, prefix: &str, key: &str) -> Result<String, ConfigError> {
    match map.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        None => Err(key_error(format!("{prefix}{key}"), "is missing")),
        Some(_) => Err(key_error(
            format!("{prefix}{key}"),
            "must be a string that is not empty",
        )),
    }
}

fn bool_key(map: &Map<String, Value>, key: &str) -> Result<bool, ConfigError> {
    match map.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        // libcni takes these words too.
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(key_error(key, "must be true or false")),
    }
}

/// The newest of `cniVersions` (1.1) and `cniVersion` that is spoken here.
fn choose_version(top: &Map<String, Value>) -> Result<Version, ConfigError> {
    let mut offered = Vec::new();
    match top.get("cniVersion") {
        None => {}
        Some(Value::String(text)) => offered.push(text.clone()),
        Some(_) => return Err(key_error("cniVersion", "must be a string")),
    }
    if let Some(versions) = top.get("cniVersions") {
        let list = versions
            .as_array()
            .ok_or_else(|| key_error("cniVersions", "must be a list of strings"))?;
        for version in list {
            let text = version
                .as_str()
                .ok_or_else(|| key_error("cniVersions", "must be a list of strings"))?;
            offered.push(text.to_owned());
        }
    }
    match offered.iter().filter_map(|text| text.parse().ok()).max() {
        Some(version) => Ok(version),
        None if offered.is_empty() => Err(key_error(
            "cniVersion",
            "is missing (which means 0.1.0); use 0.3.0 to 1.1.0",
        )),
        None => Err(ConfigError::Version(UnknownVersion(offered.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chain_gets_what_it_declares() {
        let text = json!({
            "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.1.0", "7.0.0"], "name": "pods", "disableCheck": true,
            "plugins": [
                {"type": "bridge", "ipam": {"type": "host-local"}},
                {"type": "portmap", "capabilities": {"portMappings": true, "mac": false}}
            ]
        });
        let list = NetworkList::parse_list(&text.to_string()).unwrap();
        assert_eq!(
            (list.version, list.disable_check, list.disable_gc),
            (Version::V1_1_0, true, false)
        );
        let runtime = json!({"portMappings": [], "mac": "x"});
        let runtime = runtime.as_object().unwrap();
        assert_eq!(
            list.plugins[0].with_runtime(&list, runtime, None),
            json!({"type": "bridge", "ipam": {"type": "host-local"}, "name": "pods", "cniVersion": "1.1.0"})
        );
        assert_eq!(
            list.plugins[1].with_runtime(&list, runtime, Some(json!({"ips": []}))),
            json!({"type": "portmap", "name": "pods", "cniVersion": "1.1.0",
                   "runtimeConfig": {"portMappings": []}, "prevResult": {"ips": []}})
        );
    }

    #[test]
    fn a_single_plugin_becomes_a_chain_that_can_be_read_again() {
        let text = r#"{"cniVersion":"0.4.0","name":"n","type":"bridge","bridge":"b0"}"#;
        let list = NetworkList::parse_single(text).unwrap();
        let again = NetworkList::parse_list(&list.source).unwrap();
        assert_eq!(again, list);
    }

    #[test]
    fn errors_name_the_key_and_the_remedy() {
        let cases = [
            (r#"{"name":"n","cniVersion":"1.0.0"}"#, "plugins is missing"),
            (
                r#"{"name":"n","cniVersion":"1.0.0","plugins":[]}"#,
                "plugins must name at least one plugin",
            ),
            (
                r#"{"name":"n","cniVersion":"1.0.0","plugins":[{}]}"#,
                "plugins[0].type is missing",
            ),
            (
                r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"../x"}]}"#,
                "plugins[0].type must be the name of an executable, without a path",
            ),
            (
                r#"{"name":"n","plugins":[{"type":"x"}]}"#,
                "cniVersion is missing (which means 0.1.0); use 0.3.0 to 1.1.0",
            ),
            (
                r#"{"name":"n","cniVersion":"0.2.0","plugins":[{"type":"x"}]}"#,
                "cniVersion can't be used",
            ),
            (
                r#"{"name":"a/b","cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#,
                "name is wrong: network name \"a/b\" is not valid: it must begin with a letter or digit, followed by letters, digits, '_', '.' or '-'",
            ),
            ("{", "failed to parse it as JSON"),
            (
                r#"{"name":"n","cniVersion":"1.0.0","type":"x"}"#,
                "plugins is missing; a file with a single \"type\" must be called *.conf",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(
                NetworkList::parse_list(text).unwrap_err().to_string(),
                expected,
                "{text}"
            );
        }
        let list = r#"{"name":"n","cniVersion":"1.0.0","plugins":[]}"#;
        assert_eq!(
            NetworkList::parse_single(list).unwrap_err().to_string(),
            "type is missing; a file with \"plugins\" must be called *.conflist"
        );
    }
}
