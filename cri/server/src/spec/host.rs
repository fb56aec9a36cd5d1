//! What this machine can do, as far as specifications depend on it.

use std::fs;
use std::path::Path;

use oci_spec::runtime::Capability;

use super::ALL_CAPABILITIES;

/// What this machine can do. Read once at the daemon's start, except in tests, which invent their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The daemon's capability bounding set: more it can't give.
    pub bounding: Vec<Capability>,
    /// The whole cgroup tree is version 2.
    pub cgroup_v2: bool,
    /// Memory and swap can be limited together.
    pub swap_accounting: bool,
    /// Sizes of huge pages that a cgroup can limit, such as `2MB`.
    pub hugepage_sizes: Vec<String>,
    /// AppArmor is enabled, and its profiles can be seen.
    pub apparmor: bool,
    /// SELinux is enabled.
    pub selinux: bool,
    /// The kernel can make a whole mount tree read-only (Linux 5.12).
    pub recursive_read_only: bool,
    /// The kernel can map owners per mount (Linux 5.12, and the file system must know it).
    pub idmapped_mounts: bool,
    /// Without CAP_SYS_RESOURCE, the lowest `oom_score_adj` that may be set.
    pub oom_score_floor: Option<i32>,
}

/// Why the machine's facts can't be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file of /proc.
    #[error("failed to read `{path}`")]
    Read {
        /// The path.
        path: &'static str,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file of /proc with something unexpected in it.
    #[error("`{path}` holds no {what}")]
    Parse {
        /// The path.
        path: &'static str,
        /// What was looked for.
        what: &'static str,
    },
}

impl HostFacts {
    /// Asks the kernel. Blocking, a few small reads.
    ///
    /// # Errors
    /// When `/proc` isn't what it should be; an absent feature is a fact, not an error.
    pub fn read() -> Result<Self, HostError> {
        let bounding = bounding()?;
        let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let can_lower = bounding.contains(&Capability::SysResource);
        let at_least_5_12 = kernel_version()? >= (5, 12);
        Ok(Self {
            cgroup_v2,
            swap_accounting: swap_accounting(cgroup_v2),
            hugepage_sizes: hugepage_sizes(cgroup_v2),
            apparmor: crate::apparmor::is_enabled(),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            recursive_read_only: at_least_5_12,
            idmapped_mounts: at_least_5_12,
            oom_score_floor: if can_lower { None } else { Some(own_oom_score()?) },
            bounding,
        })
    }
}

fn read(path: &'static str) -> Result<String, HostError> {
    fs::read_to_string(path).map_err(|source| HostError::Read { path, source })
}

fn read_trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn bounding() -> Result<Vec<Capability>, HostError> {
    const PATH: &str = "/proc/self/status";
    let text = read(PATH)?;
    let bits = text
        .lines()
        .find_map(|l| u64::from_str_radix(l.strip_prefix("CapBnd:")?.trim(), 16).ok());
    let bits = bits.ok_or(HostError::Parse {
        path: PATH,
        what: "CapBnd",
    })?;
    // ALL_CAPABILITIES is in the order of the kernel's numbers.
    let held = ALL_CAPABILITIES
        .into_iter()
        .enumerate()
        .filter(|(number, _)| bits >> number & 1 == 1);
    Ok(held.map(|(_, capability)| capability).collect())
}

fn own_oom_score() -> Result<i32, HostError> {
    const PATH: &str = "/proc/self/oom_score_adj";
    read(PATH)?.trim().parse().map_err(|_| HostError::Parse {
        path: PATH,
        what: "number",
    })
}

fn kernel_version() -> Result<(u32, u32), HostError> {
    const PATH: &str = "/proc/sys/kernel/osrelease";
    let text = read(PATH)?;
    let mut numbers = text.trim().split(['.', '-']).map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => Err(HostError::Parse {
            path: PATH,
            what: "kernel version",
        }),
    }
}

fn swap_accounting(cgroup_v2: bool) -> bool {
    if !cgroup_v2 {
        return Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
    }
    // Without /proc, as in the root, where the kernel's default (on) is assumed.
    let own = read_trimmed("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|l| l.strip_prefix("0::"));
    swap_is_counted(Path::new("/sys/fs/cgroup"), own.unwrap_or("/"))
}

/// The root has no `memory.swap.max`; below, those have it that the memory controller reaches, if accounting is on. The
/// daemon's own leaf has no controllers, so all above it are asked, too. In the root nobody can be asked, and the
/// kernel's default (on) is assumed.
fn swap_is_counted(mount: &Path, own: &str) -> bool {
    let mut levels = Path::new(own.trim_start_matches('/'))
        .ancestors()
        .filter(|level| !level.as_os_str().is_empty())
        .peekable();
    levels.peek().is_none() || levels.any(|level| mount.join(level).join("memory.swap.max").exists())
}

/// The sizes as cgroup file names say them: `hugetlb.2MB.limit_in_bytes`, or on version 2 `hugepages-2048kB`.
fn hugepage_sizes(cgroup_v2: bool) -> Vec<String> {
    let usable = if cgroup_v2 {
        read_trimmed("/sys/fs/cgroup/cgroup.controllers")
            .is_some_and(|c| c.split(' ').any(|n| n == "hugetlb"))
    } else {
        Path::new("/sys/fs/cgroup/hugetlb/cgroup.procs").exists()
    };
    if !usable {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let kib = |name: &str| {
        name.strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse::<u64>()
            .ok()
    };
    let mut sizes: Vec<u64> = entries
        .flatten()
        .filter_map(|e| kib(e.file_name().to_str().unwrap_or_default()))
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(size_name).collect()
}

fn size_name(kib: u64) -> String {
    const GIB: u64 = 1 << 20;
    const MIB: u64 = 1 << 10;
    match kib {
        kib if kib >= GIB && kib % GIB == 0 => format!("{}GB", kib / GIB),
        kib if kib >= MIB && kib % MIB == 0 => format!("{}MB", kib / MIB),
        kib => format!("{kib}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let facts = HostFacts::read().unwrap();
        assert!(facts.bounding.contains(&Capability::Chown), "{facts:?}");
        assert!(facts.recursive_read_only, "the floor is Linux 6.1");
    }

    #[test]
    fn swap_is_counted_if_any_cgroup_above_the_own_says_so() {
        let mount = tempfile::tempdir().unwrap();
        let unit = mount.path().join("system.slice/orlop-cri.service");
        fs::create_dir_all(unit.join("daemon")).unwrap();
        let counted = |own| swap_is_counted(mount.path(), own);
        let own = "/system.slice/orlop-cri.service/daemon";
        assert!(!counted(own));
        // The mount's root says nothing, whatever is in it.
        fs::write(mount.path().join("memory.swap.max"), "").unwrap();
        assert!(!counted(own));
        fs::write(unit.join("memory.swap.max"), "max\n").unwrap();
        assert!(counted(own), "the leaf without controllers isn't the one to ask");
        assert!(!counted("/system.slice"));
        assert!(counted("/"));
    }

    #[test]
    fn sizes_are_named_as_the_kernel_names_them() {
        assert_eq!(size_name(2048), "2MB");
        assert_eq!(size_name(1 << 20), "1GB");
        assert_eq!(size_name(64), "64KB");
    }
}
