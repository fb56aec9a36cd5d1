//! Whether a container's end was the OOM killer's doing.
//!
//! The container's own cgroup counts the kills in it. systemd removes a scope as soon as its last process has ended,
//! often before anybody can look; then the pod's cgroup tells, which counts those below it and stays: a kill more than
//! was known of, and a container that ended by SIGKILL.

use nix::sys::signal::Signal;
use oci_runtime_cgroups::Cgroup;

/// What the cgroups say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kills {
    /// In the container's cgroup; `None` when it's gone.
    own: Option<u64>,
    /// In the one above, with all below it; 0 where it can't be read.
    above: u64,
}

impl Kills {
    /// Reads both.
    pub(crate) fn read(cgroup: &str) -> Self {
        let Ok(cgroup) = Cgroup::named(cgroup) else {
            return Self::default();
        };
        let above = match cgroup.needs_process() {
            true => cgroup.parent().and_then(|above| above.oom_kills().ok()),
            // One that Orlop makes stays until it's removed.
            false => None,
        };
        Self {
            own: cgroup.oom_kills().ok(),
            above: above.unwrap_or(0),
        }
    }

    /// Whether a container that ended by that signal was killed for memory, if so many kills were known of.
    pub(crate) fn explain(self, signal: Option<i32>, known: Kills) -> bool {
        match self.own {
            Some(kills) => kills > 0,
            None => signal == Some(Signal::SIGKILL as i32) && self.above > known.above,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_s_own_count_decides_and_the_pod_s_where_it_is_gone() {
        let kill = Some(Signal::SIGKILL as i32);
        let known = Kills {
            own: Some(0),
            above: 3,
        };
        let now = |own, above| Kills { own, above };
        assert!(
            now(Some(1), 4).explain(None, known),
            "a child was killed, and init ended by itself"
        );
        assert!(!now(Some(0), 4).explain(kill, known), "somebody else's kill");
        assert!(now(None, 4).explain(kill, known));
        assert!(!now(None, 4).explain(None, known));
        assert!(!now(None, 3).explain(kill, known), "killed by a person");
    }
}
