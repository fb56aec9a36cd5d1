//! A process's part of the plan: what is run, as whom, and within which limits.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use nix::libc;
use oci_spec::runtime::{
    Capabilities, IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimitType, Process,
};

use crate::ConfigError;

/// What a process is told.
#[derive(Debug, Clone)]
pub(crate) struct ProcessPlan {
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: PathBuf,
    pub(crate) terminal: Option<(u16, u16)>,
    pub(crate) credentials: Credentials,
    pub(crate) no_new_privileges: bool,
    pub(crate) has_seccomp: bool,
    pub(crate) rlimits: Vec<RlimitPlan>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) apparmor: Option<String>,
    pub(crate) scheduler: Option<SchedulerPlan>,
    pub(crate) io_priority: Option<(u16, u16)>,
}

/// As whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: Option<u32>,
    pub(crate) capabilities: CapabilityPlan,
}

/// Bit masks; no capabilities given means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CapabilityPlan {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RlimitPlan {
    pub(crate) name: String,
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// A scheduling policy with its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SchedulerPlan(pub(crate) oci_runtime_sys::sched::SchedAttr);

impl ProcessPlan {
    pub(crate) fn new(
        process: &Process,
        has_seccomp: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Self, ConfigError> {
        let args = process.args().as_deref().unwrap_or_default();
        if args.is_empty() {
            return Err(ConfigError::invalid(
                "process.args",
                "is empty, so there is nothing to run",
            ));
        }
        if !process.cwd().is_absolute() {
            return Err(ConfigError::invalid(
                "process.cwd",
                format!("`{}` is not an absolute path", process.cwd().display()),
            ));
        }
        if process
            .selinux_label()
            .as_deref()
            .is_some_and(|label| !label.is_empty())
        {
            return Err(ConfigError::unsupported(
                "process.selinuxLabel",
                "is set, but SELinux is not supported",
            ));
        }
        if process.exec_cpu_affinity().is_some() {
            return Err(ConfigError::unsupported(
                "process.execCPUAffinity",
                "is not supported",
            ));
        }
        let terminal = process.terminal().unwrap_or(false).then(|| {
            let size = process.console_size();
            let side = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
            size.map_or((0, 0), |s| (side(s.width()), side(s.height())))
        });
        Ok(Self {
            args: c_strings("process.args", args)?,
            env: c_strings("process.env", process.env().as_deref().unwrap_or_default())?,
            cwd: process.cwd().clone(),
            terminal,
            credentials: credentials(process, warnings),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            has_seccomp,
            rlimits: rlimits(process)?,
            oom_score_adj: oom_score(process)?,
            apparmor: process.apparmor_profile().clone().filter(|p| !p.is_empty()),
            scheduler: scheduler(process)?,
            io_priority: io_priority(process)?,
        })
    }

    /// A variable's value in the process's environment: the last, if there are several.
    pub(crate) fn variable(&self, name: &str) -> Option<&[u8]> {
        let value = |entry: &'_ CString| -> Option<usize> {
            let bytes = entry.as_bytes();
            (bytes.starts_with(name.as_bytes()) && bytes.get(name.len()) == Some(&b'='))
                .then_some(name.len() + 1)
        };
        self.env
            .iter()
            .rev()
            .find_map(|entry| value(entry).map(|at| &entry.as_bytes()[at..]))
    }

    pub(crate) fn program(&self) -> &Path {
        use std::os::unix::ffi::OsStrExt as _;
        Path::new(std::ffi::OsStr::from_bytes(self.args[0].as_bytes()))
    }
}

fn c_strings(field: &str, list: &[String]) -> Result<Vec<CString>, ConfigError> {
    list.iter()
        .map(|text| {
            CString::new(text.as_str()).map_err(|_| ConfigError::invalid(field, "has a NUL byte in it"))
        })
        .collect()
}

fn credentials(process: &Process, warnings: &mut Vec<String>) -> Credentials {
    let user = process.user();
    let sets = process.capabilities().as_ref();
    let mask = |set: Option<&Capabilities>| {
        let mut names: Vec<String> = set.into_iter().flatten().map(ToString::to_string).collect();
        names.sort_unstable();
        names
            .iter()
            .filter_map(|name| capability_number(name))
            .fold(0, |mask, n| mask | 1 << n)
    };
    let mut plan = CapabilityPlan {
        bounding: mask(sets.and_then(|s| s.bounding().as_ref())),
        effective: mask(sets.and_then(|s| s.effective().as_ref())),
        permitted: mask(sets.and_then(|s| s.permitted().as_ref())),
        inheritable: mask(sets.and_then(|s| s.inheritable().as_ref())),
        ambient: mask(sets.and_then(|s| s.ambient().as_ref())),
    };
    // The kernel knows two rules; breaking them is a mistake of the configuration that others live with, too.
    let lost = plan.effective & !plan.permitted;
    if lost != 0 {
        plan.effective &= plan.permitted;
        warnings.push(format!(
            "process.capabilities: {} are effective but not permitted, and left out",
            capability_names(lost)
        ));
    }
    let lost = plan.ambient & !(plan.permitted & plan.inheritable);
    if lost != 0 {
        plan.ambient &= plan.permitted & plan.inheritable;
        warnings.push(format!(
            "process.capabilities: {} are ambient but not both permitted and inheritable, and left out",
            capability_names(lost)
        ));
    }
    Credentials {
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        capabilities: plan,
    }
}

fn oom_score(process: &Process) -> Result<Option<i32>, ConfigError> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => Err(ConfigError::invalid(
            "process.oomScoreAdj",
            format!("{score} is not between -1000 and 1000"),
        )),
        score => Ok(score),
    }
}

fn rlimits(process: &Process) -> Result<Vec<RlimitPlan>, ConfigError> {
    let mut list: Vec<RlimitPlan> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        if limit.soft() > limit.hard() {
            return Err(ConfigError::invalid(
                "process.rlimits",
                format!("{name}: soft {} is above hard {}", limit.soft(), limit.hard()),
            ));
        }
        let resource = resource_number(limit.typ());
        if list.iter().any(|known| known.resource == resource) {
            return Err(ConfigError::invalid(
                "process.rlimits",
                format!("{name} is given twice"),
            ));
        }
        list.push(RlimitPlan {
            name,
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
    Ok(list)
}

fn resource_number(kind: PosixRlimitType) -> u32 {
    use PosixRlimitType as T;
    match kind {
        T::RlimitCpu => libc::RLIMIT_CPU,
        T::RlimitFsize => libc::RLIMIT_FSIZE,
        T::RlimitData => libc::RLIMIT_DATA,
        T::RlimitStack => libc::RLIMIT_STACK,
        T::RlimitCore => libc::RLIMIT_CORE,
        T::RlimitRss => libc::RLIMIT_RSS,
        T::RlimitNproc => libc::RLIMIT_NPROC,
        T::RlimitNofile => libc::RLIMIT_NOFILE,
        T::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        T::RlimitAs => libc::RLIMIT_AS,
        T::RlimitLocks => libc::RLIMIT_LOCKS,
        T::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        T::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        T::RlimitNice => libc::RLIMIT_NICE,
        T::RlimitRtprio => libc::RLIMIT_RTPRIO,
        T::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

fn scheduler(process: &Process) -> Result<Option<SchedulerPlan>, ConfigError> {
    let Some(scheduler) = process.scheduler() else {
        return Ok(None);
    };
    use LinuxSchedulerPolicy as P;
    let mut attr = oci_runtime_sys::sched::SchedAttr {
        policy: match scheduler.policy() {
            P::SchedOther => 0,
            P::SchedFifo => 1,
            P::SchedRr => 2,
            P::SchedBatch => 3,
            P::SchedIso => 4,
            P::SchedIdle => 5,
            P::SchedDeadline => 6,
        },
        nice: scheduler.nice().unwrap_or(0),
        priority: u32::try_from(scheduler.priority().unwrap_or(0))
            .map_err(|_| ConfigError::invalid("process.scheduler.priority", "is negative"))?,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..Default::default()
    };
    for flag in scheduler.flags().iter().flatten() {
        use LinuxSchedulerFlag as F;
        attr.flags |= match flag {
            F::SchedResetOnFork => 1,
            F::SchedFlagReclaim => 2,
            F::SchedFlagDLOverrun => 4,
            F::SchedFlagKeepPolicy => 8,
            F::SchedFlagKeepParams => 16,
            F::SchedFlagUtilClampMin => 32,
            F::SchedFlagUtilClampMax => 64,
        };
    }
    Ok(Some(SchedulerPlan(attr)))
}

fn io_priority(process: &Process) -> Result<Option<(u16, u16)>, ConfigError> {
    let Some(priority) = process.io_priority() else {
        return Ok(None);
    };
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u16::try_from(priority.priority()) {
        Ok(level) if level <= 7 => Ok(Some((class, level))),
        _ => Err(ConfigError::invalid(
            "process.ioPriority.priority",
            format!("{} is not between 0 and 7", priority.priority()),
        )),
    }
}

/// The kernel's capabilities, each at its number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A capability's number, by its name with or without `CAP_`.
#[must_use]
pub fn capability_number(name: &str) -> Option<u32> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    CAPABILITIES
        .iter()
        .position(|known| *known == name)
        .map(|n| n as u32)
}

/// The name of every capability that is known.
#[must_use]
pub fn capability_names_known() -> Vec<String> {
    CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect()
}

/// Names for people, of a mask.
pub(crate) fn capability_names(mask: u64) -> String {
    let names = (0..64)
        .filter(|n| mask & (1 << n) != 0)
        .map(|n| match CAPABILITIES.get(n) {
            Some(name) => format!("CAP_{name}"),
            None => format!("capability {n}"),
        });
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(extra: &str) -> (Result<ProcessPlan, ConfigError>, Vec<String>) {
        let json = format!(r#"{{"cwd":"/","user":{{"uid":1,"gid":2}},"args":["a"]{extra}}}"#);
        let mut warnings = Vec::new();
        let process = serde_json::from_str(&json).unwrap();
        (ProcessPlan::new(&process, false, &mut warnings), warnings)
    }

    #[test]
    fn capability_numbers_are_the_kernels() {
        for (name, number) in [
            ("CAP_CHOWN", 0),
            ("SYS_ADMIN", 21),
            ("CAP_MKNOD", 27),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(capability_number(name), Some(number));
        }
        assert_eq!(capability_number("CAP_FLY"), None);
    }

    #[test]
    fn capabilities_that_break_the_kernels_rules_are_left_out_with_a_warning() {
        let (plan, warnings) = plan(
            r#","capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL","CAP_CHOWN"],
                "permitted":["CAP_KILL"],"ambient":["CAP_KILL"]}"#,
        );
        let caps = plan.unwrap().credentials.capabilities;
        assert_eq!((caps.effective, caps.ambient), (1 << 5, 0));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn limits_that_cannot_be_right_are_refused() {
        for bad in [
            r#","rlimits":[{"type":"RLIMIT_NOFILE","soft":2,"hard":1}]"#,
            r#","rlimits":[{"type":"RLIMIT_CPU","soft":1,"hard":1},{"type":"RLIMIT_CPU","soft":1,"hard":1}]"#,
            r#","oomScoreAdj":1001"#,
            r#","ioPriority":{"class":"IOPRIO_CLASS_RT","priority":8}"#,
            r#","selinuxLabel":"x""#,
        ] {
            assert!(plan(bad).0.is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_are_found_by_their_whole_name() {
        let plan = plan(r#","env":["PATHX=1","PATH=/bin","PATH=/late"]"#).0.unwrap();
        assert_eq!(plan.variable("PATH"), Some(b"/late".as_slice()));
        assert_eq!(plan.variable("PAT"), None);
    }
}
