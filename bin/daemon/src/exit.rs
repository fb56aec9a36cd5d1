//! Exit codes, and the one place where a chain of errors is printed.

use std::process::ExitCode;

use crate::config::ConfigError;

/// The configuration is wrong: EX_CONFIG of sysexits.h.
pub const CONFIG: u8 = 78;
/// Anything else went wrong.
pub const FAILURE: u8 = 1;

/// Says what is wrong with the configuration where no file is to blame: also [`CONFIG`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadSetting(pub String);

/// An error and all its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Prints how `program` ended and returns its exit code.
pub fn report(program: &str, result: Result<(), anyhow::Error>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{program}: {error:#}");
    ExitCode::from(code(&error))
}

fn code(error: &anyhow::Error) -> u8 {
    let config = |e: &(dyn std::error::Error + 'static)| e.is::<ConfigError>() || e.is::<BadSetting>();
    if error.chain().any(config) {
        CONFIG
    } else {
        FAILURE
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_bad_configuration_exits_78_even_under_context() {
        let bad: Result<(), _> = Err(BadSetting("no".into()));
        assert_eq!(code(&bad.context("outer").unwrap_err()), CONFIG);
        assert_eq!(code(&anyhow::anyhow!("other")), FAILURE);
    }
}
