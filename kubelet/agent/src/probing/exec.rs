//! Commands in containers, for probes and hooks.

use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

use super::Outcome;

/// The most of a command's output that is kept.
const MAX_OUTPUT: usize = 10 * 1024;

/// Runs commands in containers and waits for their end: CRI's `ExecSync`.
#[async_trait]
pub trait Exec: Send + Sync + 'static {
    /// Runs a command; a timeout of zero is none.
    async fn exec_sync(
        &self,
        container_id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, ExecError>;
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOutput {
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: Vec<u8>,
    /// Its exit code.
    pub exit_code: i32,
}

/// Why a command's end isn't known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExecError {
    /// It took too long, and was killed.
    #[error("deadline exceeded")]
    Timeout,
    /// The runtime couldn't run it.
    #[error("{0}")]
    Failed(String),
}

impl ExecOutput {
    /// Both outputs together, at most 10 KiB of them.
    pub fn combined(&self) -> String {
        let room = MAX_OUTPUT.saturating_sub(self.stdout.len());
        let stdout = &self.stdout[..self.stdout.len().min(MAX_OUTPUT)];
        let stderr = &self.stderr[..self.stderr.len().min(room)];
        String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()
    }
}

pub(crate) fn timed_out(command: &[String], timeout: Duration) -> String {
    format!(
        "command timed out: {:?} timed out after {}",
        command.join(" "),
        go_duration(timeout)
    )
}

/// A duration as Go prints it: `1s`, `1m30s`, `500ms`.
pub(crate) fn go_duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{}ms", duration.as_millis());
    }
    let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
    let seconds = duration.as_secs() % 60;
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Probes with a command: exit code 0 is success, any other failure.
pub(crate) async fn probe(
    exec: &dyn Exec,
    container_id: &str,
    command: &[String],
    timeout: Duration,
) -> Outcome {
    // The runtime has the deadline too; this one is for a runtime that hangs.
    let patience = timeout.saturating_add(Duration::from_secs(5));
    let run = exec.exec_sync(container_id, command, timeout);
    match tokio::time::timeout(patience, run)
        .await
        .unwrap_or(Err(ExecError::Timeout))
    {
        Ok(output) if output.exit_code == 0 => Outcome::Success(output.combined()),
        Ok(output) => Outcome::Failure(output.combined()),
        Err(ExecError::Timeout) => Outcome::Failure(timed_out(command, timeout)),
        Err(ExecError::Failed(reason)) => Outcome::Unknown(reason),
    }
}
