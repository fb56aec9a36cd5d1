//! The command line, read without a library: there is one caller.

use std::ffi::OsString;
use std::path::PathBuf;

use cri_shim_protocol::Runtime;

use crate::stage::Handle;

/// What to be.
#[derive(Debug)]
pub(crate) enum Mode {
    Shim(Options),
    PodInit,
    Destroy(Handle),
}

/// How to be a shim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) state_dir: PathBuf,
    pub(crate) sandbox: String,
    /// The cgroup to join.
    pub(crate) cgroup: Option<String>,
}

/// Why the command line makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("option `{0}` is not known")]
    Unknown(String),
    #[error("option `{0}` needs a value")]
    NoValue(String),
    #[error("option `{0}` is missing")]
    Missing(&'static str),
    #[error("`{0}` is not valid text")]
    NotText(String),
}

#[derive(Default)]
struct Given {
    state_dir: Option<PathBuf>,
    sandbox: Option<String>,
    cgroup: Option<String>,
    root: Option<PathBuf>,
    id: Option<String>,
    runtime: Option<PathBuf>,
    systemd_cgroup: bool,
}

pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Mode, ArgumentError> {
    let mut arguments = arguments.into_iter().peekable();
    let mode = arguments.next_if(|first| first == "pod-init" || first == "destroy");
    let mut given = Given::default();
    while let Some(option) = arguments.next() {
        let option = option.to_string_lossy().into_owned();
        if option == "--systemd-cgroup" {
            given.systemd_cgroup = true;
            continue;
        }
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| ArgumentError::NoValue(option.clone()))
        };
        match option.as_str() {
            "--state-dir" => given.state_dir = Some(value()?.into()),
            "--sandbox" => given.sandbox = Some(text(value()?)?),
            "--cgroup" => given.cgroup = Some(text(value()?)?),
            "--root" => given.root = Some(value()?.into()),
            "--id" => given.id = Some(text(value()?)?),
            "--runtime" => given.runtime = Some(value()?.into()),
            _ => return Err(ArgumentError::Unknown(option)),
        }
    }
    match mode {
        None => Ok(Mode::Shim(Options {
            state_dir: given.state_dir.ok_or(ArgumentError::Missing("--state-dir"))?,
            sandbox: given.sandbox.ok_or(ArgumentError::Missing("--sandbox"))?,
            cgroup: given.cgroup,
        })),
        Some(mode) if mode == "pod-init" => Ok(Mode::PodInit),
        Some(_) => {
            let systemd_cgroup = given.systemd_cgroup;
            Ok(Mode::Destroy(Handle {
                id: given.id.ok_or(ArgumentError::Missing("--id"))?,
                root: given.root.ok_or(ArgumentError::Missing("--root"))?,
                runtime: match given.runtime {
                    Some(path) => Runtime::Command { path, systemd_cgroup },
                    None => Runtime::Builtin { systemd_cgroup },
                },
                state_dir: std::env::temp_dir(),
            }))
        }
    }
}

fn text(value: OsString) -> Result<String, ArgumentError> {
    value
        .into_string()
        .map_err(|value| ArgumentError::NotText(value.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Mode, ArgumentError> {
        parse(words.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_shim_needs_its_folder_and_its_sandbox() {
        let mode = parse_words("--sandbox s --state-dir /d");
        let expected = Options {
            state_dir: "/d".into(),
            sandbox: "s".into(),
            cgroup: None,
        };
        assert!(matches!(mode, Ok(Mode::Shim(options)) if options == expected));
        let error = |words| parse_words(words).unwrap_err();
        assert_eq!(error("--sandbox s"), ArgumentError::Missing("--state-dir"));
        assert_eq!(error("--sandbox"), ArgumentError::NoValue("--sandbox".to_owned()));
        assert_eq!(error("--nope x"), ArgumentError::Unknown("--nope".to_owned()));
    }

    #[test]
    fn the_other_uses_come_first() {
        assert!(matches!(parse_words("pod-init"), Ok(Mode::PodInit)));
        let Ok(Mode::Destroy(handle)) = parse_words("destroy --root /r --id c --runtime /usr/bin/runc")
        else {
            panic!("not destroy");
        };
        assert_eq!(handle.id, "c");
        assert!(matches!(handle.runtime, Runtime::Command { .. }));
    }
}
