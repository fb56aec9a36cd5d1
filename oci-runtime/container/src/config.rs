//! Reading `config.json` and process descriptions.
//!
//! The types are oci-spec's; what it is too strict about is taken out of the JSON first: a capability that this build
//! has never heard of is a warning (as with runc: a spec may come from a newer world), not an error.

use std::path::Path;

use oci_runtime_sys::open;
use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ConfigError;
use crate::plan::capability_number;

/// A larger configuration is a mistake.
const MAX_BYTES: u64 = 16 << 20;

/// Something read, and what was left out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T> {
    /// What was read.
    pub value: T,
    /// What was ignored, for people.
    pub warnings: Vec<String>,
}

/// Parses a `config.json`.
///
/// # Errors
/// Where it isn't JSON, or a field has the wrong type.
pub fn parse_spec(bytes: &[u8]) -> Result<Parsed<Spec>, serde_json::Error> {
    parse(bytes, |json| json.get_mut("process"))
}

/// Parses a process description, as `exec --process` takes it.
///
/// # Errors
/// Where it isn't JSON, or a field has the wrong type.
pub fn parse_process(bytes: &[u8]) -> Result<Parsed<Process>, serde_json::Error> {
    parse(bytes, |json| Some(json))
}

/// Reads and parses `config.json` in a bundle.
///
/// # Errors
/// When it can't be read or is not valid.
pub fn load_spec(bundle: &Path) -> Result<Parsed<Spec>, ConfigError> {
    let path = bundle.join("config.json");
    parse_spec(&read(&path)?).map_err(|source| ConfigError::Parse { path, source })
}

/// Reads and parses a process description.
///
/// # Errors
/// When it can't be read or is not valid.
pub fn load_process(path: &Path) -> Result<Parsed<Process>, ConfigError> {
    parse_process(&read(path)?).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    // A configuration with the usual seccomp profile is 10 to 20 KiB.
    let bytes = open::read(path, 32 << 10, MAX_BYTES + 1).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ConfigError::invalid(
            path.display().to_string(),
            format!("is larger than {MAX_BYTES} bytes"),
        ));
    }
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    process: impl FnOnce(&mut Value) -> Option<&mut Value>,
) -> Result<Parsed<T>, serde_json::Error> {
    let first = match serde_json::from_slice(bytes) {
        Ok(value) => {
            return Ok(Parsed {
                value,
                warnings: Vec::new(),
            });
        }
        Err(error) => error,
    };
    let Ok(mut json) = serde_json::from_slice::<Value>(bytes) else {
        return Err(first);
    };
    let Some(process) = process(&mut json) else {
        return Err(first);
    };
    let warnings = drop_unknown_capabilities(process);
    let user_added = add_user(process);
    if warnings.is_empty() && !user_added {
        return Err(first);
    }
    Ok(Parsed {
        value: serde_json::from_value(json)?,
        warnings,
    })
}

/// Without a user it's root, as callers that leave it out expect. Whether it was left out.
fn add_user(process: &mut Value) -> bool {
    match process {
        Value::Object(fields) if !fields.contains_key("user") => {
            fields.insert("user".to_owned(), serde_json::json!({ "uid": 0, "gid": 0 }));
            true
        }
        _ => false,
    }
}

fn drop_unknown_capabilities(process: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let Some(Value::Object(sets)) = process.get_mut("capabilities") else {
        return unknown;
    };
    for (_, set) in sets {
        let Value::Array(names) = set else { continue };
        names.retain(|name| match name {
            Value::String(name) if capability_number(name).is_none() => {
                unknown.push(name.clone());
                false
            }
            _ => true,
        });
    }
    unknown.sort_unstable();
    unknown.dedup();
    unknown
        .into_iter()
        .map(|name| format!("process.capabilities: ignoring unknown capability `{name}`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_capabilities_are_warnings_and_known_ones_stay() {
        let json = br#"{"cwd":"/","user":{"uid":0,"gid":0},"args":["a"],
            "capabilities":{"bounding":["CAP_CHOWN","CAP_FLY"],"effective":["CAP_FLY"]}}"#;
        let parsed = parse_process(json).unwrap();
        assert_eq!(
            parsed.warnings,
            ["process.capabilities: ignoring unknown capability `CAP_FLY`"]
        );
        let caps = parsed.value.capabilities().clone().unwrap();
        assert_eq!(caps.bounding().as_ref().map(|set| set.len()), Some(1));
        assert_eq!(caps.effective().as_ref().map(|set| set.len()), Some(0));
    }

    #[test]
    fn a_process_without_a_user_is_roots() {
        let parsed = parse_process(br#"{"cwd":"/","args":["a"]}"#).unwrap();
        assert_eq!((parsed.value.user().uid(), parsed.value.user().gid()), (0, 0));
        assert!(parsed.warnings.is_empty());
        assert!(parse_process(b"[]").is_err());
    }

    #[test]
    fn a_truncated_file_says_where() {
        let error = parse_spec(b"{\"ociVersion\": \"1.0.2\", \"proc").unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
