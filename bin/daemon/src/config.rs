//! Configuration files: one TOML file and its drop-ins.
//!
//! For `/etc/orlop/x.toml` the drop-ins are `/etc/orlop/x.toml.d/*.toml`, in the order of their names. A table of a
//! later file is merged into the earlier one's key by key; any other value replaces it. Every file is also read alone
//! first, so that a mistake is reported with the file and the line in which it is.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::de::DeserializeOwned;
use toml::Table;
use toml::Value;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or its folder can't be read.
    #[error("failed to read configuration `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file isn't what it should be.
    #[error("failed to parse configuration `{path}` at line {line}, column {column}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong, with the key's name.
        message: String,
    },
    /// Each file is fine, what they make together is not.
    #[error("failed to merge the drop-ins of configuration `{path}`: {message}")]
    Merge {
        /// The main file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// Reads `path` and its drop-ins. When `path` doesn't exist it counts as empty, unless `required`.
///
/// `T` must take an empty table and deny unknown fields.
///
/// # Errors
/// The first mistake in the order of the files.
pub fn load<T: DeserializeOwned>(path: &Path, required: bool) -> Result<T, ConfigError> {
    let mut merged = Table::new();
    for file in files(path, required)? {
        let text = fs::read_to_string(&file).map_err(|source| ConfigError::Read {
            path: file.clone(),
            source,
        })?;
        let wrong = |error: toml::de::Error| mistake(&file, &text, &error);
        // Typed, for the mistakes; as a table, for merging.
        toml::from_str::<T>(&text).map_err(wrong)?;
        merge(&mut merged, toml::from_str(&text).map_err(wrong)?);
    }
    Value::Table(merged)
        .try_into()
        .map_err(|error: toml::de::Error| ConfigError::Merge {
            path: path.to_owned(),
            message: error.message().to_owned(),
        })
}

fn files(path: &Path, required: bool) -> Result<Vec<PathBuf>, ConfigError> {
    let mut files = Vec::new();
    if required || path.exists() {
        files.push(path.to_owned());
    }
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let unreadable = |source| ConfigError::Read {
        path: folder.clone(),
        source,
    };
    let mut dropins = Vec::new();
    match fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                let file = entry.map_err(unreadable)?.path();
                if file.extension().is_some_and(|e| e == "toml") {
                    dropins.push(file);
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(error)),
    }
    dropins.sort();
    files.extend(dropins);
    Ok(files)
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn mistake(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or_default();
    ConfigError::Parse {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.chars().rev().take_while(|c| *c != '\n').count() + 1,
        message: error.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        name: String,
        inner: Inner,
        handlers: BTreeMap<String, Inner>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        a: u32,
        b: u32,
    }

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("x.toml.d")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn drop_ins_are_merged_key_by_key_in_the_order_of_names() {
        let dir = dir(&[
            ("x.toml", "name = 'main'\n[inner]\na = 1\nb = 1\n"),
            ("x.toml.d/20.toml", "[inner]\na = 3\n[handlers.y]\na = 1"),
            (
                "x.toml.d/10.toml",
                "name = 'ten'\ninner.a = 2\n[handlers.x]\nb = 2",
            ),
            ("x.toml.d/30.conf", "not toml"),
        ]);
        let config: Config = load(&dir.path().join("x.toml"), true).unwrap();
        assert_eq!(config.name, "ten");
        assert_eq!(config.inner, Inner { a: 3, b: 1 });
        assert_eq!(config.handlers.len(), 2);
    }

    #[test]
    fn an_absent_file_is_empty_unless_it_is_required() {
        let dir = dir(&[]);
        let path = dir.path().join("x.toml");
        assert_eq!(load::<Config>(&path, false).unwrap(), Config::default());
        assert!(matches!(
            load::<Config>(&path, true),
            Err(ConfigError::Read { .. })
        ));
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_line() {
        let dir = dir(&[
            ("x.toml", "name = 'x'\n"),
            ("x.toml.d/1.toml", "# fine\n[inner]\n  c = 3\n"),
        ]);
        let error = load::<Config>(&dir.path().join("x.toml"), true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("x.toml.d/1.toml"), "{error}");
        assert!(error.contains("line 3, column 3"), "{error}");
        assert!(error.contains('c'), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let dir = dir(&[("x.toml", &text)]);
            let _ = load::<Config>(&dir.path().join("x.toml"), true);
        }
    }
}
