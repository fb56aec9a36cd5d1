//! What init will do, worked out from the configuration before anything is made: pure, so a configuration that can't
//! work is refused while there is nothing to undo.

mod mounts;
mod process;

use std::path::{Component, Path, PathBuf};

use nix::libc;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, LinuxPersonalityDomain, Spec};

pub(crate) use mounts::{Idmap, MountAttributes, MountPlan, Propagation, Source, propagation_named};
pub(crate) use process::{Credentials, ProcessPlan, capability_names};
pub use process::{capability_names_known, capability_number};

use crate::ConfigError;

/// Everything that init is told.
#[derive(Debug, Clone)]
pub(crate) struct InitPlan {
    pub(crate) namespaces: Namespaces,
    pub(crate) mappings: Option<Mappings>,
    pub(crate) rootfs: PathBuf,
    pub(crate) readonly_root: bool,
    pub(crate) root_propagation: Option<Propagation>,
    pub(crate) mounts: Vec<MountPlan>,
    pub(crate) devices: Vec<DevicePlan>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) readonly: Vec<PathBuf>,
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) personality: Option<u64>,
    pub(crate) time_offsets: Vec<(String, i64, u32)>,
    pub(crate) process: ProcessPlan,
}

/// New namespaces as `CLONE_*` flags, and those to join, each with its flag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub(crate) new: i32,
    pub(crate) join: Vec<(i32, PathBuf)>,
}

impl Namespaces {
    pub(crate) fn is_new(&self, flag: i32) -> bool {
        self.new & flag != 0
    }

    pub(crate) fn joined(&self, flag: i32) -> Option<&Path> {
        self.join
            .iter()
            .find(|(f, _)| *f == flag)
            .map(|(_, path)| path.as_path())
    }

    /// Every kind that isn't simply the runtime's own.
    pub(crate) fn all(&self) -> i32 {
        self.join.iter().fold(self.new, |all, (flag, _)| all | flag)
    }
}

/// A user namespace's mappings, as lines of `uid_map` and `gid_map`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mappings {
    pub(crate) uid: String,
    pub(crate) gid: String,
}

/// A device to make below `/dev`, or to bind from the host's in a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicePlan {
    pub(crate) path: PathBuf,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub(crate) kind: u32,
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The kernel's `CLONE_NEWTIME`.
pub(crate) const CLONE_NEWTIME: i32 = 0x80;

impl InitPlan {
    /// Works out the plan. `bundle` is absolute; relative paths in the configuration are relative to it.
    pub(crate) fn new(spec: &Spec, bundle: &Path, warnings: &mut Vec<String>) -> Result<Self, ConfigError> {
        check_version(spec.version())?;
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| ConfigError::invalid("process", "is missing, so there is nothing to run"))?;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| ConfigError::invalid("linux", "is missing, and this is a Linux runtime"))?;
        let namespaces = namespaces(spec)?;
        let mappings = mappings(spec, &namespaces)?;
        let root = spec
            .root()
            .as_ref()
            .ok_or_else(|| ConfigError::invalid("root", "is missing"))?;
        refuse_unsupported(spec)?;
        let mounts = spec.mounts().iter().flatten().enumerate();
        let mounts = mounts
            .map(|(index, mount)| MountPlan::new(index, mount, bundle, mappings.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let needs_uts = |field: &str, value: &Option<String>| {
            let value = value.clone().filter(|v| !v.is_empty());
            if value.is_some() && namespaces.all() & libc::CLONE_NEWUTS == 0 {
                return Err(ConfigError::invalid(
                    field,
                    "needs a uts namespace in linux.namespaces",
                ));
            }
            Ok(value)
        };
        let root_propagation = match linux.rootfs_propagation().as_deref() {
            None | Some("") => None,
            Some(name) => Some(propagation_named(name).ok_or_else(|| {
                ConfigError::invalid(
                    "linux.rootfsPropagation",
                    format!("`{name}` is not a propagation"),
                )
            })?),
        };
        Ok(Self {
            hostname: needs_uts("hostname", spec.hostname())?,
            domainname: needs_uts("domainname", spec.domainname())?,
            rootfs: clean(&bundle.join(root.path())),
            readonly_root: root.readonly().unwrap_or(false),
            root_propagation,
            mounts,
            devices: devices(spec)?,
            masked: absolute("linux.maskedPaths", linux.masked_paths().as_deref())?,
            readonly: absolute("linux.readonlyPaths", linux.readonly_paths().as_deref())?,
            sysctls: sysctls(spec, &namespaces)?,
            personality: personality(spec)?,
            time_offsets: time_offsets(spec, &namespaces)?,
            process: ProcessPlan::new(process, linux.seccomp().is_some(), warnings)?,
            namespaces,
            mappings,
        })
    }
}

fn check_version(version: &str) -> Result<(), ConfigError> {
    let mut numbers = version.split('.');
    let valid = numbers.next() == Some("1") && numbers.clone().count() >= 2 && numbers.all(|n| !n.is_empty());
    if valid {
        Ok(())
    } else {
        Err(ConfigError::invalid(
            "ociVersion",
            format!("`{version}` is not supported; this runtime speaks 1.x.y"),
        ))
    }
}

fn refuse_unsupported(spec: &Spec) -> Result<(), ConfigError> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    if linux.intel_rdt().is_some() {
        return Err(ConfigError::unsupported("linux.intelRdt", "is not supported"));
    }
    if linux.memory_policy().is_some() {
        return Err(ConfigError::unsupported("linux.memoryPolicy", "is not supported"));
    }
    if linux
        .net_devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        return Err(ConfigError::unsupported("linux.netDevices", "is not supported"));
    }
    if linux
        .mount_label()
        .as_deref()
        .is_some_and(|label| !label.is_empty())
    {
        return Err(ConfigError::unsupported(
            "linux.mountLabel",
            "is set, but SELinux is not supported",
        ));
    }
    Ok(())
}

fn namespaces(spec: &Spec) -> Result<Namespaces, ConfigError> {
    let mut result = Namespaces::default();
    let list = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    for namespace in list.into_iter().flatten() {
        let flag = flag_of(namespace.typ());
        if result.all() & flag != 0 {
            return Err(ConfigError::invalid(
                "linux.namespaces",
                format!("type `{}` is listed twice", namespace.typ()),
            ));
        }
        match namespace.path() {
            None => result.new |= flag,
            Some(path) if path.as_os_str().is_empty() => result.new |= flag,
            Some(path) if path.is_absolute() => result.join.push((flag, path.clone())),
            Some(path) => {
                return Err(ConfigError::invalid(
                    "linux.namespaces",
                    format!("path `{}` is not absolute", path.display()),
                ));
            }
        }
    }
    if result.all() & libc::CLONE_NEWNS == 0 {
        return Err(ConfigError::invalid(
            "linux.namespaces",
            "has no mount namespace; a container needs one for its root file system",
        ));
    }
    Ok(result)
}

fn flag_of(kind: LinuxNamespaceType) -> i32 {
    match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::Time => CLONE_NEWTIME,
    }
}

fn mappings(spec: &Spec, namespaces: &Namespaces) -> Result<Option<Mappings>, ConfigError> {
    let linux = spec.linux().as_ref();
    let uid = linux
        .and_then(|l| l.uid_mappings().as_deref())
        .unwrap_or_default();
    let gid = linux
        .and_then(|l| l.gid_mappings().as_deref())
        .unwrap_or_default();
    if namespaces.all() & libc::CLONE_NEWUSER == 0 {
        if uid.is_empty() && gid.is_empty() {
            return Ok(None);
        }
        return Err(ConfigError::invalid(
            "linux.uidMappings",
            "are given without a user namespace in linux.namespaces",
        ));
    }
    if namespaces.is_new(libc::CLONE_NEWUSER) && (uid.is_empty() || gid.is_empty()) {
        return Err(ConfigError::invalid(
            "linux.uidMappings",
            "and linux.gidMappings must not be empty with a new user namespace",
        ));
    }
    if uid.is_empty() && gid.is_empty() {
        return Ok(None);
    }
    Ok(Some(Mappings::new(uid, gid)))
}

impl Mappings {
    pub(crate) fn new(uid: &[LinuxIdMapping], gid: &[LinuxIdMapping]) -> Self {
        let lines = |list: &[LinuxIdMapping]| {
            list.iter()
                .map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size()))
                .collect()
        };
        Self {
            uid: lines(uid),
            gid: lines(gid),
        }
    }
}

fn absolute(field: &str, paths: Option<&[String]>) -> Result<Vec<PathBuf>, ConfigError> {
    let paths = paths.unwrap_or_default().iter().map(|path| {
        if path.starts_with('/') {
            Ok(clean(Path::new(path)))
        } else {
            Err(ConfigError::invalid(field, format!("`{path}` is not absolute")))
        }
    });
    paths.collect()
}

/// The sysctls that belong to a namespace, and which one.
fn sysctls(spec: &Spec, namespaces: &Namespaces) -> Result<Vec<(String, String)>, ConfigError> {
    const IPC: [&str; 9] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
        "kernel/shm_next_id",
    ];
    let mut list = Vec::new();
    let given = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    for (name, value) in given.into_iter().flatten() {
        let path = sysctl_path(name);
        let refuse = |reason: &str| Err(ConfigError::invalid(format!("linux.sysctl: `{name}`"), reason));
        let flag = if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
            libc::CLONE_NEWIPC
        } else if path.starts_with("net/") {
            libc::CLONE_NEWNET
        } else if path == "kernel/domainname" {
            libc::CLONE_NEWUTS
        } else if path == "kernel/hostname" {
            return refuse("is set by `hostname`");
        } else if path.starts_with("user/") {
            libc::CLONE_NEWUSER
        } else {
            return refuse("is not in any namespace, so it would change the host");
        };
        if path
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..")
        {
            return refuse("is not a sysctl's name");
        }
        if namespaces.all() & flag == 0 {
            return refuse("belongs to a namespace that is the host's own here");
        }
        list.push((path, value.clone()));
    }
    list.sort_unstable();
    Ok(list)
}

/// `net.ipv4.conf.eth0/100.x` and `net/ipv4/...` both become a path; in the dotted form a slash stands for a dot.
pub(crate) fn sysctl_path(name: &str) -> String {
    let dotted = match (name.find('.'), name.find('/')) {
        (Some(dot), Some(slash)) => dot < slash,
        (Some(_), None) => true,
        _ => false,
    };
    if !dotted {
        return name.to_owned();
    }
    name.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect()
}

fn personality(spec: &Spec) -> Result<Option<u64>, ConfigError> {
    let Some(personality) = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.personality().as_ref())
    else {
        return Ok(None);
    };
    if personality
        .flags()
        .as_ref()
        .is_some_and(|flags| !flags.is_empty())
    {
        return Err(ConfigError::unsupported(
            "linux.personality.flags",
            "are not supported",
        ));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

fn time_offsets(spec: &Spec, namespaces: &Namespaces) -> Result<Vec<(String, i64, u32)>, ConfigError> {
    let given = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.time_offsets().as_ref());
    let mut list = Vec::new();
    for (clock, offset) in given.into_iter().flatten() {
        if !namespaces.is_new(CLONE_NEWTIME) {
            return Err(ConfigError::invalid(
                "linux.timeOffsets",
                "need a new time namespace in linux.namespaces",
            ));
        }
        if clock != "monotonic" && clock != "boottime" {
            return Err(ConfigError::invalid(
                "linux.timeOffsets",
                format!("`{clock}` is not a clock that can be shifted; use monotonic or boottime"),
            ));
        }
        list.push((
            clock.clone(),
            offset.secs().unwrap_or(0),
            offset.nanosecs().unwrap_or(0),
        ));
    }
    list.sort_unstable();
    Ok(list)
}

fn devices(spec: &Spec) -> Result<Vec<DevicePlan>, ConfigError> {
    let character = |path: &str, major, minor| DevicePlan {
        path: path.into(),
        kind: libc::S_IFCHR,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let mut list = vec![
        character("/dev/null", 1, 3),
        character("/dev/zero", 1, 5),
        character("/dev/full", 1, 7),
        character("/dev/random", 1, 8),
        character("/dev/urandom", 1, 9),
        character("/dev/tty", 5, 0),
    ];
    let given = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    for device in given.into_iter().flatten() {
        use oci_spec::runtime::LinuxDeviceType as Type;
        let kind = match device.typ() {
            Type::C | Type::U => libc::S_IFCHR,
            Type::B => libc::S_IFBLK,
            Type::P => libc::S_IFIFO,
            Type::A => {
                return Err(ConfigError::invalid(
                    "linux.devices",
                    "type `a` is not a device's type",
                ));
            }
        };
        let path = clean(device.path());
        if !path.is_absolute() || path == Path::new("/") {
            return Err(ConfigError::invalid(
                "linux.devices",
                format!("path `{}` is not that of a file", device.path().display()),
            ));
        }
        let number = |n: i64| {
            u64::try_from(n)
                .map_err(|_| ConfigError::invalid("linux.devices", format!("number {n} is negative")))
        };
        let plan = DevicePlan {
            kind,
            major: number(device.major())?,
            minor: number(device.minor())?,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            path,
        };
        match list.iter_mut().find(|known| known.path == plan.path) {
            Some(known) => *known = plan,
            None => list.push(plan),
        }
    }
    Ok(list)
}

/// The path without `.`, `..` and doubled slashes, by its text alone; `..` never leads above the root.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                result.pop();
            }
            Component::CurDir => {}
            other => result.push(other),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<InitPlan, ConfigError> {
        let spec = crate::config::parse_spec(json.as_bytes()).unwrap().value;
        InitPlan::new(&spec, Path::new("/bundle"), &mut Vec::new())
    }

    const PROCESS: &str =
        r#""process":{"cwd":"/","user":{"uid":0,"gid":0},"args":["true"]},"root":{"path":"rootfs"}"#;

    fn with_linux(linux: &str) -> Result<InitPlan, ConfigError> {
        plan(&format!(r#"{{"ociVersion":"1.0.2",{PROCESS},"linux":{linux}}}"#))
    }

    #[test]
    fn a_minimal_configuration_is_planned() {
        let plan =
            with_linux(r#"{"namespaces":[{"type":"mount"},{"type":"network","path":"/run/n"}]}"#).unwrap();
        assert_eq!(plan.rootfs, Path::new("/bundle/rootfs"));
        assert_eq!(plan.namespaces.new, libc::CLONE_NEWNS);
        assert_eq!(
            plan.namespaces.joined(libc::CLONE_NEWNET),
            Some(Path::new("/run/n"))
        );
        assert_eq!(plan.devices.len(), 6);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (linux, word) in [
            (r#"{"namespaces":[]}"#, "mount namespace"),
            (r#"{"namespaces":[{"type":"mount"},{"type":"mount"}]}"#, "twice"),
            (
                r#"{"namespaces":[{"type":"mount"},{"type":"ipc","path":"x"}]}"#,
                "not absolute",
            ),
            (
                r#"{"namespaces":[{"type":"mount"},{"type":"user"}]}"#,
                "uidMappings",
            ),
            (
                r#"{"namespaces":[{"type":"mount"}],"sysctl":{"net.ipv4.ip_forward":"1"}}"#,
                "net.ipv4.ip_forward",
            ),
            (
                r#"{"namespaces":[{"type":"mount"}],"sysctl":{"kernel.panic":"1"}}"#,
                "kernel.panic",
            ),
            (
                r#"{"namespaces":[{"type":"mount"}],"maskedPaths":["proc"]}"#,
                "maskedPaths",
            ),
            (
                r#"{"namespaces":[{"type":"mount"}],"rootfsPropagation":"up"}"#,
                "rootfsPropagation",
            ),
            (r#"{"namespaces":[{"type":"mount"}],"intelRdt":{}}"#, "intelRdt"),
        ] {
            let error = with_linux(linux).unwrap_err().to_string();
            assert!(error.contains(word), "{linux}: {error}");
        }
    }

    #[test]
    fn sysctls_with_dots_in_an_interface_name_are_understood() {
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/5.rp_filter"),
            "net/ipv4/conf/eth0.5/rp_filter"
        );
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.5/rp_filter"),
            "net/ipv4/conf/eth0.5/rp_filter"
        );
    }

    #[test]
    fn cleaning_never_leaves_the_root() {
        assert_eq!(clean(Path::new("/a/../../b/./c//d")), Path::new("/b/c/d"));
    }

    #[test]
    fn versions_other_than_one_are_refused() {
        for (version, good) in [
            ("1.0.2", true),
            ("1.2.0-dev", true),
            ("2.0.0", false),
            ("", false),
            ("1", false),
        ] {
            assert_eq!(check_version(version).is_ok(), good, "{version}");
        }
    }
}
