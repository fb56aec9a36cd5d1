//! Who makes the cgroups of a node's pods.
//!
//! With systemd, that is the machine's: a node shares its PID namespace, by whose numbers systemd is told of processes,
//! and its sockets, and all of its cgroups are in a slice with the node's name.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The environment variable by which whole suites are run with one driver or the other.
pub(crate) const VARIABLE: &str = "ORLOP_TEST_CGROUP_DRIVER";

/// Who makes the cgroups of a node's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Orlop itself.
    Cgroupfs,
    /// systemd, which the machine must have, with cgroup v2 alone.
    Systemd,
}

impl Driver {
    /// What the variable says; nothing: [`Driver::Cgroupfs`].
    ///
    /// # Errors
    /// It says something else than `cgroupfs` and `systemd`.
    pub fn of_environment() -> Result<Self> {
        Self::named(std::env::var(VARIABLE).ok().as_deref())
    }

    fn named(name: Option<&str>) -> Result<Self> {
        match name {
            None | Some("" | "cgroupfs") => Ok(Self::Cgroupfs),
            Some("systemd") => Ok(Self::Systemd),
            Some(other) => bail!("{VARIABLE} is `{other}`, and not `cgroupfs` or `systemd`"),
        }
    }

    /// The slice of a node's own.
    pub(crate) fn slice(node: &str) -> String {
        // A dash would make a level of each part.
        format!("{}.slice", node.replace('-', "_"))
    }

    /// The `[cgroup]` part of the daemon's configuration.
    pub(crate) fn configuration(self, node: &str) -> String {
        match self {
            Self::Cgroupfs => format!("[cgroup]\nroot = \"/{node}\"\nshims = \"/{node}/shims\"\n"),
            Self::Systemd => {
                let slice = Self::slice(node);
                let prefix = slice.trim_end_matches(".slice");
                format!(
                    "[cgroup]\ndriver = \"systemd\"\nroot = \"{slice}\"\nshims = \"{slice}:{prefix}:shims\"\n"
                )
            }
        }
    }

    /// Checks that this machine has what the driver needs.
    pub(crate) fn check(self) -> Result<()> {
        let there = ["/run/systemd/private", "/sys/fs/cgroup/cgroup.controllers"];
        ensure!(
            self == Self::Cgroupfs || there.iter().all(|path| Path::new(path).exists()),
            "{VARIABLE} is `systemd`, but this machine has no systemd, or not cgroup v2 alone"
        );
        Ok(())
    }
}

/// Stops a slice and all that is in it.
pub(crate) fn stop_slice(name: &str) -> Result<()> {
    let output = Command::new("systemctl")
        .args(["stop", name])
        .output()
        .context("failed to run `systemctl`")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "failed to stop the slice `{name}`: {stderr}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_cgroupfs_unless_told_otherwise() {
        assert_eq!(Driver::named(None).unwrap(), Driver::Cgroupfs);
        assert_eq!(Driver::named(Some("systemd")).unwrap(), Driver::Systemd);
        assert!(Driver::named(Some("upstart")).is_err());
        let text = Driver::Systemd.configuration("orlop-test-7-0");
        assert!(text.contains("root = \"orlop_test_7_0.slice\""), "{text}");
    }
}
