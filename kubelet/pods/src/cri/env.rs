//! A container's environment: `envFrom`, then `env`, from objects that are handed in.
//!
//! The order is that of the spec; a name that is set twice keeps its first place and takes the last value. A value may
//! refer to what was set before it. Names that come from objects and are none are left out with a warning.

use std::collections::BTreeMap;
use std::net::IpAddr;

use controlplane_api::k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, EnvVarSource, Pod};

use super::downward::{self, PodIps};
use super::errors::ConfigError;
use super::expansion::expand;
use super::facts::NodeFacts;

/// The objects that a pod's environment may come from: what the pod's source has of them now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EnvObjects {
    /// Texts of ConfigMaps, by the object's name.
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
    /// Bytes of Secrets, by the object's name.
    pub secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Variables of files in volumes, by the volume's name and the path in it; a file that doesn't exist isn't here.
    pub files: BTreeMap<(String, String), BTreeMap<String, String>>,
    /// Variables of Services, where `enableServiceLinks` asks for them; what the container sets itself wins.
    pub services: BTreeMap<String, String>,
}

/// A container's environment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Environment {
    /// In order, each name once.
    pub variables: Vec<(String, String)>,
    /// Messages for events with the reason `InvalidEnvironmentVariableNames`.
    pub warnings: Vec<String>,
}

impl Environment {
    /// For expansions.
    pub fn map(&self) -> BTreeMap<String, String> {
        self.variables.iter().cloned().collect()
    }

    fn set(&mut self, name: &str, value: String) {
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }

    fn value(&self, name: &str) -> Option<String> {
        self.variables
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    }
}

/// The environment of a container. `before` are the variables of devices, which `env` may override and refer to.
pub fn environment(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts,
    objects: &EnvObjects,
    before: &[(String, String)],
    pod_ips: &[IpAddr],
) -> Result<Environment, ConfigError> {
    let mut result = Environment::default();
    for (name, value) in before {
        result.set(name, value.clone());
    }
    for source in container.env_from.iter().flatten() {
        from_object(pod, source, objects, &mut result)?;
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(pod, container, variable, facts, objects, pod_ips, &result)? {
            result.set(&variable.name, value);
        }
    }
    for (name, value) in &objects.services {
        if result.value(name).is_none() {
            result.variables.push((name.clone(), value.clone()));
        }
    }
    Ok(result)
}

/// The variables of a container that need nothing but its spec, for the commands of probes.
pub fn static_variables(container: &Container) -> BTreeMap<String, String> {
    let mut result = Environment::default();
    for variable in container
        .env
        .iter()
        .flatten()
        .filter(|variable| variable.value_from.is_none())
    {
        let value = expand(variable.value.as_deref().unwrap_or_default(), |name| {
            result.value(name)
        });
        result.set(&variable.name, value);
    }
    result.map()
}

fn from_object(
    pod: &Pod,
    source: &EnvFromSource,
    objects: &EnvObjects,
    result: &mut Environment,
) -> Result<(), ConfigError> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut invalid = Vec::new();
    let mut take = |key: &str, value: String, result: &mut Environment| {
        let name = format!("{prefix}{key}");
        match is_name(&name) {
            true => result.set(&name, value),
            false => invalid.push(key.to_owned()),
        }
    };
    let (kind, name) = if let Some(wanted) = &source.config_map_ref {
        match objects.config_maps.get(&wanted.name) {
            Some(data) => data
                .iter()
                .for_each(|(key, value)| take(key, value.clone(), result)),
            None if wanted.optional == Some(true) => {}
            None => {
                return Err(ConfigError::NoObject {
                    kind: "configmap",
                    name: wanted.name.clone(),
                });
            }
        }
        ("configMap", &wanted.name)
    } else if let Some(wanted) = &source.secret_ref {
        match objects.secrets.get(&wanted.name) {
            Some(data) => data
                .iter()
                .for_each(|(key, value)| take(key, text(value), result)),
            None if wanted.optional == Some(true) => {}
            None => {
                return Err(ConfigError::NoObject {
                    kind: "secret",
                    name: wanted.name.clone(),
                });
            }
        }
        ("secret", &wanted.name)
    } else {
        return Ok(());
    };
    if !invalid.is_empty() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        result.warnings.push(format!(
            "Keys [{}] from the EnvFrom {kind} {namespace}/{name} were skipped since they are considered invalid \
             environment variable names.",
            invalid.join(", ")
        ));
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Printable ASCII but `=`, and at least one character.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

fn value_of(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    facts: &NodeFacts,
    objects: &EnvObjects,
    pod_ips: &[IpAddr],
    known: &Environment,
) -> Result<Option<String>, ConfigError> {
    match (variable.value.as_deref(), &variable.value_from) {
        (Some(value), _) if !value.is_empty() => {
            let lookup = |name: &str| known.value(name).or_else(|| objects.services.get(name).cloned());
            Ok(Some(expand(value, lookup)))
        }
        (_, Some(source)) => from_source(pod, container, source, facts, objects, pod_ips),
        _ => Ok(Some(String::new())),
    }
}

fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    facts: &NodeFacts,
    objects: &EnvObjects,
    pod_ips: &[IpAddr],
) -> Result<Option<String>, ConfigError> {
    let namespace = || pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        let ips = PodIps {
            pod: pod_ips,
            host: &facts.host_ips,
        };
        return downward::field_value(pod, &field.field_path, ips).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return downward::resource_value(pod, &container.name, resource, facts).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let object = objects.config_maps.get(&key.name);
        let none = |kind| ConfigError::NoObject {
            kind,
            name: key.name.clone(),
        };
        let value = object.and_then(|data| data.get(&key.key)).cloned();
        return found(
            value,
            object.is_some(),
            key.optional,
            || none("configmap"),
            || ConfigError::NoKey {
                key: key.key.clone(),
                kind: "ConfigMap",
                namespace: namespace(),
                name: key.name.clone(),
            },
        );
    }
    if let Some(key) = &source.secret_key_ref {
        let object = objects.secrets.get(&key.name);
        let none = |kind| ConfigError::NoObject {
            kind,
            name: key.name.clone(),
        };
        let value = object
            .and_then(|data| data.get(&key.key))
            .map(|value| text(value));
        return found(
            value,
            object.is_some(),
            key.optional,
            || none("secret"),
            || ConfigError::NoKey {
                key: key.key.clone(),
                kind: "Secret",
                namespace: namespace(),
                name: key.name.clone(),
            },
        );
    }
    if let Some(key) = &source.file_key_ref {
        let file = objects.files.get(&(key.volume_name.clone(), key.path.clone()));
        let none = || ConfigError::NoFileKey {
            key: key.key.clone(),
            path: key.path.clone(),
            volume: key.volume_name.clone(),
        };
        let value = file.and_then(|data| data.get(&key.key)).cloned();
        return found(value, file.is_some(), key.optional, none, none);
    }
    Ok(Some(String::new()))
}

/// What an object has, nothing where that is optional, or which of the two is missing.
fn found(
    value: Option<String>,
    object: bool,
    optional: Option<bool>,
    no_object: impl FnOnce() -> ConfigError,
    no_key: impl FnOnce() -> ConfigError,
) -> Result<Option<String>, ConfigError> {
    match value {
        Some(value) => Ok(Some(value)),
        None if optional == Some(true) => Ok(None),
        None if object => Err(no_key()),
        None => Err(no_object()),
    }
}
