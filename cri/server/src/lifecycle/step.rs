//! Every step that creates or removes something, as one enum, and the kill points that tests hang on it.
//!
//! Before a step runs, its name is written beside the record of the sandbox or container; once an operation is
//! over, the name is wiped. So a daemon that is killed finds, in each record, which operation was under way, and
//! [`Operation`] says what recovery does about it. How far the operation got doesn't matter: undoing is
//! written so that each part may be repeated and may find nothing to do.
//!
//! The kill test goes through [`Step::ALL`]: a daemon started with `ORLOP_CRI_KILL_AT=<step>[:before|:after]` kills
//! itself there.

use std::fmt;
use std::str::FromStr;

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident => $operation:ident,)*) => {
        /// One step. The names are part of the format on disk.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Step {
            $($(#[$doc])* $name,)*
        }

        impl Step {
            /// Every step, in the order of a pod's life.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The step's name, as in records and in `ORLOP_CRI_KILL_AT`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The operation that the step is a part of.
            pub const fn operation(self) -> Operation {
                match self {
                    $(Self::$name => Operation::$operation,)*
                }
            }
        }
    };
}

steps! {
    /// RunPodSandbox: the name is taken and the record exists.
    SandboxRecord => Create,
    /// RunPodSandbox: folders, hostname, resolv.conf, files to pin namespaces on.
    SandboxFiles => Create,
    /// RunPodSandbox: the tmpfs for `/dev/shm`.
    SandboxShm => Create,
    /// RunPodSandbox: the pod's cgroup.
    SandboxCgroup => Create,
    /// RunPodSandbox: the shim.
    SandboxShim => Create,
    /// RunPodSandbox: namespaces made and pinned.
    SandboxNamespaces => Create,
    /// RunPodSandbox: CNI ADD.
    SandboxNetwork => Create,
    /// RunPodSandbox: the sandbox becomes ready.
    SandboxReady => Create,

    /// CreateContainer: the name is taken and the record exists.
    ContainerRecord => Create,
    /// CreateContainer: the writable snapshot over the image.
    ContainerSnapshot => Create,
    /// CreateContainer: the root file system is mounted.
    ContainerRootfs => Create,
    /// CreateContainer: images that are mounted as volumes.
    ContainerImageMounts => Create,
    /// CreateContainer: the OCI configuration.
    ContainerBundle => Create,
    /// CreateContainer: the shim creates it; init waits.
    ContainerInit => Create,
    /// CreateContainer: the container becomes visible as created.
    ContainerCreated => Create,

    /// StartContainer: the shim lets init go.
    ContainerStart => Start,
    /// StartContainer: the container is recorded as running.
    ContainerRunning => Start,

    /// StopContainer: the stop signal.
    ContainerSignal => Signal,
    /// StopContainer: SIGKILL.
    ContainerKill => Signal,

    /// RemoveContainer: from here on there is no way back; what runs is killed.
    ContainerRemove => Remove,
    /// RemoveContainer: the shim forgets it; runtime state goes.
    ContainerDelete => Remove,
    /// RemoveContainer: what is left of its cgroup goes, root file system and image volumes are unmounted.
    ContainerUnmount => Remove,
    /// RemoveContainer: the snapshots go.
    ContainerDropSnapshot => Remove,
    /// RemoveContainer: the bundle goes.
    ContainerDropBundle => Remove,
    /// RemoveContainer: the record goes and the name is free.
    ContainerForget => Remove,

    /// StopPodSandbox: its containers are killed.
    SandboxStopContainers => Stop,
    /// StopPodSandbox: the shim ends, and the pod's own init with it.
    SandboxEndShim => Stop,
    /// StopPodSandbox: the tmpfs for `/dev/shm` goes.
    SandboxDropShm => Stop,
    /// StopPodSandbox: CNI DEL.
    SandboxReleaseNetwork => Stop,
    /// StopPodSandbox: the namespaces are let go.
    SandboxUnpin => Stop,
    /// StopPodSandbox: the sandbox is recorded as not ready.
    SandboxStopped => Stop,

    /// RemovePodSandbox: from here on there is no way back; it is stopped and its containers are removed.
    SandboxRemove => Remove,
    /// RemovePodSandbox: what the stop left: the shim's traces and the folder of run time.
    SandboxDropFiles => Remove,
    /// RemovePodSandbox: the pod's cgroup, where it is ours.
    SandboxDropCgroup => Remove,
    /// RemovePodSandbox: the record goes and the name is free.
    SandboxForget => Remove,
}

/// What was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Making it: nobody knows the ID yet, so recovery undoes it.
    Create,
    /// Starting a container: recovery looks what the shim says.
    Start,
    /// Signalling a container: recovery looks what the shim says; the caller will ask again.
    Signal,
    /// Stopping a sandbox: recovery finishes it.
    Stop,
    /// Removing: recovery finishes it.
    Remove,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No step has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a step; `orlop-cri --list-kill-points` prints them")]
pub struct UnknownStep(String);

impl FromStr for Step {
    type Err = UnknownStep;

    fn from_str(text: &str) -> Result<Self, UnknownStep> {
        let named = |step: &&Self| step.name() == text;
        Self::ALL
            .iter()
            .find(named)
            .copied()
            .ok_or_else(|| UnknownStep(text.to_owned()))
    }
}

/// On which side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its name is written, nothing is done.
    Before,
    /// It is done, the next one isn't written.
    After,
}

/// Where the daemon kills itself, for tests of recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KillPoint(Option<(Step, Side)>);

impl KillPoint {
    /// Never.
    pub const NONE: Self = Self(None);

    /// The places where a daemon can kill itself, as [`FromStr`] takes them.
    pub fn names() -> impl Iterator<Item = String> {
        let sides = |step: &Step| [format!("{step}:before"), format!("{step}:after")];
        Step::ALL.iter().flat_map(sides)
    }

    /// Dies here, if this is the place.
    pub fn reach(self, step: Step, side: Side) {
        if self.0 == Some((step, side)) {
            // SIGKILL, not exit: nothing may run after it, as when the machine's administrator does it.
            let this = nix::unistd::Pid::this();
            if nix::sys::signal::kill(this, nix::sys::signal::Signal::SIGKILL).is_err() {
                std::process::abort();
            }
        }
    }
}

impl FromStr for KillPoint {
    type Err = UnknownStep;

    fn from_str(text: &str) -> Result<Self, UnknownStep> {
        let (name, side) = match text.split_once(':') {
            None | Some((_, "before")) => (text.split(':').next().unwrap_or_default(), Side::Before),
            Some((name, "after")) => (name, Side::After),
            Some(_) => return Err(UnknownStep(text.to_owned())),
        };
        Ok(Self(Some((name.parse()?, side))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_fit_the_step_file() {
        for step in Step::ALL {
            assert_eq!(step.name().parse::<Step>(), Ok(*step));
            assert!(step.name().len() < crate::store::STEP_BYTES);
        }
        assert!("Nothing".parse::<Step>().is_err());
    }

    #[test]
    fn kill_points_name_a_step_and_a_side() {
        let before = KillPoint(Some((Step::SandboxShm, Side::Before)));
        assert_eq!("SandboxShm".parse(), Ok(before));
        assert_eq!("SandboxShm:before".parse(), Ok(before));
        assert_eq!(
            "SandboxShm:after".parse(),
            Ok(KillPoint(Some((Step::SandboxShm, Side::After))))
        );
        assert!("SandboxShm:during".parse::<KillPoint>().is_err());
        assert_eq!(KillPoint::names().count(), Step::ALL.len() * 2);
        KillPoint::NONE.reach(Step::SandboxShm, Side::Before);
    }
}
