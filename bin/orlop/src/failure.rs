//! What went wrong, and what helps.

use std::process::ExitCode;

/// A failure, for people.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Failure {
    what: String,
    remedy: Option<String>,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: None,
        }
    }

    /// With what helps against it.
    pub(crate) fn helped(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// Prints it.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("orlop: {}", self.what);
        if let Some(remedy) = &self.remedy {
            eprintln!("  try: {remedy}");
        }
        ExitCode::FAILURE
    }
}

/// Writing to standard output failed; nobody reads it any more when the pipe is broken, which is no failure.
pub(crate) fn written(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("failed to write: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}
