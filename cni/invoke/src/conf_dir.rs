//! The configuration directory: the first file, in the order of names, that is a valid network wins, as containerd
//! and CRI-O have it. Files that aren't valid are passed over and named in the error when nothing is left.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cni_types::{ConfigError, NetworkList};

/// Why there is no network configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory can't be read.
    #[error("failed to read the CNI configuration directory `{}`", path.display())]
    Dir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No file in it is usable.
    #[error("no CNI configuration in `{}`: {}", path.display(), why(.refused))]
    Nothing {
        /// The directory.
        path: PathBuf,
        /// The files that were looked at, each with what is wrong.
        refused: Vec<(String, String)>,
    },
}

fn why(refused: &[(String, String)]) -> String {
    if refused.is_empty() {
        return "put a .conflist file there, or let a network add-on do it".into();
    }
    refused
        .iter()
        .map(|(name, error)| format!("{name}: {error}"))
        .collect::<Vec<_>>()
        .join("; ")
}

/// A network configuration is some kilobytes; a megabyte is a mistake.
const MAX_FILE: u64 = 1 << 20;
/// More files than anyone has.
const MAX_FILES: usize = 1024;

/// Reads the first valid network of `dir`.
pub fn load_network(dir: &Path) -> Result<NetworkList, LoadError> {
    let dir_error = |source| LoadError::Dir {
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(LoadError::Nothing {
                path: dir.to_owned(),
                refused: Vec::new(),
            });
        }
        Err(error) => return Err(dir_error(error)),
    };
    let mut names = Vec::new();
    for entry in entries.take(MAX_FILES) {
        let entry = entry.map_err(dir_error)?;
        if let Ok(name) = entry.file_name().into_string()
            && [".conflist", ".conf", ".json"]
                .iter()
                .any(|end| name.ends_with(end))
        {
            names.push(name);
        }
    }
    names.sort();
    let mut refused = Vec::new();
    for name in names {
        match load_file(&dir.join(&name)) {
            Ok(list) => return Ok(list),
            Err(error) => refused.push((name, error)),
        }
    }
    Err(LoadError::Nothing {
        path: dir.to_owned(),
        refused,
    })
}

fn load_file(path: &Path) -> Result<NetworkList, String> {
    let meta = fs::metadata(path).map_err(|error| error.to_string())?;
    // Opening a pipe would wait for somebody to write.
    if !meta.is_file() {
        return Err("it is no file".into());
    }
    let size = meta.len();
    if size > MAX_FILE {
        return Err(format!("it has {size} bytes, more than {MAX_FILE}"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let parsed = match path.extension().is_some_and(|end| end == "conflist") {
        true => NetworkList::parse_list(&text),
        false => NetworkList::parse_single(&text),
    };
    parsed.map_err(|error| explain(&error))
}

fn explain(error: &ConfigError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_valid_file_wins() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(
            load_network(dir.path()).unwrap_err().to_string(),
            format!(
                "no CNI configuration in `{}`: put a .conflist file there, or let a network add-on do it",
                dir.path().display()
            )
        );
        write("00-broken.conflist", "{");
        nix::unistd::mkfifo(&dir.path().join("00-pipe.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(dir.path().join("00-folder.conflist")).unwrap();
        write(
            "05-list.conf",
            r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#,
        );
        let error = load_network(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("00-broken.conflist: failed to parse it as JSON: EOF while parsing")
                && error.contains("05-list.conf: type is missing")
                && error.contains("00-pipe.conf: it is no file")
                && error.contains("00-folder.conflist: it is no file"),
            "{error}"
        );
        write(
            "20-b.conflist",
            r#"{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"bridge"}]}"#,
        );
        write(
            "10-a.conf",
            r#"{"cniVersion":"1.0.0","name":"a","type":"bridge"}"#,
        );
        write("01-c.txt", r#"{"cniVersion":"1.0.0","name":"c","type":"bridge"}"#);
        assert_eq!(load_network(dir.path()).unwrap().name, "a");
        assert!(load_network(&dir.path().join("absent")).is_err());
    }
}
