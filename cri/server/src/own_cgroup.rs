//! The daemon's own cgroup, under systemd.
//!
//! A unit with `Delegate=yes` owns what is below its cgroup, but a cgroup with processes and controllers for its
//! children at once is against the kernel's rules, and systemd (before 254, which has `DelegateSubgroup=`) starts the
//! daemon right in it. So the daemon moves into a leaf, `daemon`, and its shims may have another, `shims`. Neither needs
//! controllers, and none are enabled: with some, systemd could not start the daemon there again.

use std::path::Path;

use oci_runtime_cgroups::{Cgroup, CgroupError};

/// The daemon's leaf.
const DAEMON: &str = "daemon";
/// Where shims go if nothing else is said.
const SHIMS: &str = "shims";

/// The cgroup that systemd delegated to the daemon, where it has settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnUnit {
    path: String,
}

impl OwnUnit {
    /// Its path, below which there must be no pods.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where shims may go.
    #[must_use]
    pub fn shims(&self) -> String {
        format!("{}/{SHIMS}", self.path)
    }
}

/// Moves this process into a leaf of the cgroup that systemd delegated to it; `None` if nothing was delegated.
///
/// # Errors
/// When the leaf can't be made or joined.
pub fn settle() -> Result<Option<OwnUnit>, CgroupError> {
    let Some(own) = Cgroup::of_process(std::process::id()) else {
        return Ok(None);
    };
    let unit = match own.path().strip_suffix(&format!("/{DAEMON}")) {
        // Started by a daemon's child, or settled before.
        Some(above) => above.to_owned(),
        None => own.path().to_owned(),
    };
    let unit = match Cgroup::named(&unit) {
        Ok(unit) if unit.v2_directory().is_some_and(|dir| is_delegated(&dir)) => unit,
        _ => return Ok(None),
    };
    let leaf = unit.below(DAEMON)?;
    leaf.create_leaf()?;
    leaf.add_self()?;
    let path = unit.path().to_owned();
    Ok(Some(OwnUnit { path }))
}

/// systemd marks what it hands over; only root sees this mark.
fn is_delegated(directory: &Path) -> bool {
    let mut value = [0; 8];
    let read = rustix::fs::getxattr(directory, "trusted.delegate", &mut value[..]);
    read.is_ok_and(|length| value.get(..length) == Some(b"1"))
}
