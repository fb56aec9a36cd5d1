//! `$(VAR)` in commands, arguments, values of variables and `subPathExpr`.
//!
//! `$$` is one `$`, so `$$(VAR)` stays `$(VAR)`; a reference to what isn't known, one that isn't closed, and any other
//! `$` stay as they are.

use std::collections::BTreeMap;

use super::errors::ConfigError;

/// Expands a text, asking for each name; what is answered with none stays a reference.
pub fn expand(text: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|tail| tail.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Expands every text with the same variables.
pub fn expand_all(texts: &[String], variables: &BTreeMap<String, String>) -> Vec<String> {
    texts
        .iter()
        .map(|text| expand(text, |name| variables.get(name).cloned()))
        .collect()
}

/// Expands a `subPathExpr`, in which every reference must be known.
pub fn expand_sub_path(text: &str, variables: &BTreeMap<String, String>) -> Result<String, ConfigError> {
    let mut missing = None;
    let path = expand(text, |name| {
        let value = variables.get(name).cloned();
        if value.is_none() {
            missing = Some(name.to_owned());
        }
        value
    });
    match missing {
        Some(name) => Err(ConfigError::SubPathExpr(name)),
        None => Ok(path),
    }
}
