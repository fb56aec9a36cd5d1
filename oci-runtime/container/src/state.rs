//! What is known of a container: the state that callers see, and the record on disk that it's derived from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::hooks::HookCommand;

/// The version of the runtime specification that is implemented.
pub const OCI_VERSION: &str = "1.2.1";

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made, or left half made by a crash.
    Creating,
    /// Its init waits for start.
    Created,
    /// Its init has executed the command.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its init has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A container's state, with the fields of the OCI runtime specification and runc's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The specification's version.
    pub oci_version: String,
    /// The container's name.
    pub id: String,
    /// Its init's pid; 0 when it has none.
    pub pid: i32,
    /// Where it is in its life.
    pub status: Status,
    /// The bundle's folder, absolute.
    pub bundle: PathBuf,
    /// The root file system's folder, absolute.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The configuration's annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The user that created it.
    pub owner: String,
}

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) created: String,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) cgroup: String,
    pub(crate) phase: Phase,
    /// `CLONE_*` of the namespaces that aren't the runtime's own.
    pub(crate) namespaces: i32,
    /// Whether the PID namespace ends with init.
    pub(crate) own_pid_namespace: bool,
    pub(crate) has_seccomp: bool,
    #[serde(default)]
    pub(crate) personality: Option<u64>,
    pub(crate) poststart: Vec<HookCommand>,
    pub(crate) poststop: Vec<HookCommand>,
    /// What a bare `exec` takes its environment, user and rights from.
    pub(crate) process: Process,
}

/// How far creation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Intended; there may be a cgroup, and a process in it that is about to end by itself.
    Creating,
    /// Init exists.
    Made {
        pid: i32,
        /// In clock ticks after boot: tells it from a later process with the same pid.
        started: u64,
    },
}

impl Record {
    pub(crate) fn init(&self) -> Option<(i32, u64)> {
        match self.phase {
            Phase::Creating => None,
            Phase::Made { pid, started } => Some((pid, started)),
        }
    }

    pub(crate) fn state(&self, status: Status) -> State {
        let pid = match status {
            Status::Stopped | Status::Creating => 0,
            _ => self.init().map_or(0, |(pid, _)| pid),
        };
        State {
            oci_version: OCI_VERSION.to_owned(),
            id: self.id.clone(),
            pid,
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: String::new(),
        }
    }

    /// The state as hooks get it.
    pub(crate) fn hook_state(&self, status: Status, pid: i32) -> String {
        let mut state = self.state(status);
        state.pid = pid;
        serde_json::to_string(&state).unwrap_or_default()
    }
}

/// Now, RFC 3339, in UTC with nanoseconds.
#[must_use]
pub fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    rfc3339(since.as_secs(), since.subsec_nanos())
}

fn rfc3339(seconds: u64, nanos: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, counted in 400-year eras that begin on the first of March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        assert_eq!(rfc3339(0, 5), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(rfc3339(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(rfc3339(4_107_542_399, 0), "2100-02-28T23:59:59.000000000Z");
        assert_eq!(rfc3339(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }
}
