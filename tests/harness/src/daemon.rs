//! orlop-cri in a node: started, asked, killed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::enter::Namespaces;
use crate::run::wait_until;
use crate::tools;

/// The configuration's place inside a node.
pub(crate) const CONFIG: &str = "/etc/orlop/orlop-cri.toml";
/// The socket's place inside a node.
pub(crate) const SOCKET: &str = "/run/orlop/cri.sock";

/// A daemon that was started.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and returns at once.
    pub(crate) fn spawn(
        namespaces: &Namespaces,
        node: &Path,
        environment: &BTreeMap<String, String>,
        tmp: &Path,
    ) -> Result<Self> {
        let log = node.join("log/orlop-cri.log");
        let out = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(tools::ours("orlop-cri")?);
        command
            .args(["--config", CONFIG])
            .env("TMPDIR", tmp)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let child = namespaces.spawn(&mut command)?;
        Ok(Self { child, log })
    }

    /// Its pid, as this process sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// It can't be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("failed to wait for orlop-cri")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a pid is positive")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("failed to send {signal} to orlop-cri"))
    }

    /// Asks it to end.
    ///
    /// # Errors
    /// It has ended already.
    pub fn signal_term(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Asks it to read its configuration again.
    ///
    /// # Errors
    /// It has ended already.
    pub fn signal_hangup(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// SIGKILL, and waits until it is gone. Fine when it has ended already.
    ///
    /// # Errors
    /// It can't be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        // An error means that it is gone, which the wait will tell.
        let _ = self.child.kill();
        self.child.wait().context("failed to wait for orlop-cri")
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It doesn't, within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait_until("orlop-cri's end", limit, || Ok(self.child.try_wait()?.is_some()))?;
        self.child.wait().context("failed to wait for orlop-cri")
    }

    /// Waits until something listens at its socket.
    pub(crate) fn ready(&mut self, socket: &Path, limit: Duration) -> Result<Duration> {
        let waited = wait_until("orlop-cri's socket", limit, || {
            if let Some(status) = self.child.try_wait()? {
                // Not worth waiting longer.
                return Err(anyhow::anyhow!("orlop-cri ended: {status}")).or_else(|e| {
                    eprintln!("{e}");
                    Ok(true)
                });
            }
            Ok(std::os::unix::net::UnixStream::connect(socket).is_ok())
        });
        match (self.child.try_wait()?, waited) {
            (None, Ok(waited)) => Ok(waited),
            (Some(status), _) => bail!("orlop-cri ended: {status}; its log:\n{}", self.log_tail(40)),
            (None, Err(e)) => Err(e.context(format!("orlop-cri's log:\n{}", self.log_tail(40)))),
        }
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, count: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}
