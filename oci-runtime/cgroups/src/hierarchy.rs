//! Which cgroup hierarchies this process sees, and where.
//!
//! `/proc/self/mountinfo` is the only honest source: a node may run in a mount namespace of its own, where hierarchies
//! are bind-mounted at other places, and a host may be pure v2, hybrid (v1 controllers, and v2 beside them) or v1 only.
//! The list is read once per process: hierarchies don't come and go while a node runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use oci_runtime_sys::open;

use crate::{CgroupError, files};

/// A mount table is a few KiB, and on a node with thousands of containers a few MiB.
const ROOM: usize = 16 << 10;
const MOST: u64 = 256 << 20;

/// How the kernel speaks in a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One of several hierarchies, with the controllers named in its mount options.
    V1,
    /// The unified hierarchy.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// v1 or v2.
    pub version: Version,
    /// Controllers, by the kernel's names; `name=systemd` and the like for a named v1 hierarchy without controllers.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
}

impl Hierarchy {
    /// Whether the hierarchy carries the controller.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

/// Every mounted hierarchy, v2 last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// In the order of the mount table, v2 last.
    pub all: Vec<Hierarchy>,
}

impl Hierarchies {
    /// The hierarchies of this process's mount namespace, read at the first call.
    ///
    /// # Errors
    /// When the mount table can't be read or lists no cgroup file system.
    pub fn of_this_process() -> Result<Arc<Self>, CgroupError> {
        static FOUND: OnceLock<Arc<Hierarchies>> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(Arc::clone(found));
        }
        let path = Path::new("/proc/self/mountinfo");
        let table = open::read(path, ROOM, MOST).map_err(|e| CgroupError::read(path, e))?;
        let mut found = Self::parse(&String::from_utf8_lossy(&table));
        for hierarchy in &mut found.all {
            if hierarchy.version == Version::V2 {
                let file = hierarchy.mount.join("cgroup.controllers");
                let text = files::read(&file)?;
                hierarchy.controllers = text.split_whitespace().map(str::to_owned).collect();
            }
        }
        if found.all.is_empty() {
            return Err(CgroupError::NoHierarchy);
        }
        Ok(Arc::clone(FOUND.get_or_init(|| Arc::new(found))))
    }

    /// The hierarchies in a mount table in the format of proc(5). v2's controllers are not in it and stay empty.
    #[must_use]
    pub fn parse(table: &str) -> Self {
        let mut all: Vec<Hierarchy> = Vec::new();
        for found in table.lines().filter_map(parse_line) {
            let same = all
                .iter_mut()
                .find(|h| h.version == found.version && h.controllers == found.controllers);
            match same {
                // A later mount at the same place covers the earlier; the usual place wins over any other.
                Some(known)
                    if known.mount == found.mount || (!is_usual(&known.mount) && is_usual(&found.mount)) =>
                {
                    *known = found;
                }
                Some(_) => {}
                None => all.push(found),
            }
        }
        all.sort_by_key(|h| h.version == Version::V2);
        Self { all }
    }

    /// The hierarchy that carries a controller.
    #[must_use]
    pub fn of(&self, controller: &str) -> Option<&Hierarchy> {
        self.all.iter().find(|h| h.has(controller))
    }

    /// The v2 hierarchy, if mounted.
    #[must_use]
    pub fn v2(&self) -> Option<&Hierarchy> {
        self.all.iter().find(|h| h.version == Version::V2)
    }

    /// Whether v2 is all there is.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.all.iter().all(|h| h.version == Version::V2)
    }
}

fn is_usual(mount: &Path) -> bool {
    mount.starts_with("/sys/fs/cgroup")
}

/// `36 31 0:33 / /sys/fs/cgroup/devices rw,relatime shared:9 - cgroup cgroup rw,devices`
fn parse_line(line: &str) -> Option<Hierarchy> {
    let (before, after) = line.split_once(" - ")?;
    let mount = PathBuf::from(unescape(before.split(' ').nth(4)?));
    let mut after = after.split(' ');
    let version = match after.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let options = after.nth(1).unwrap_or_default();
    let controllers = match version {
        Version::V2 => Vec::new(),
        Version::V1 => options
            .split(',')
            .filter(|o| is_controller(o))
            .map(str::to_owned)
            .collect(),
    };
    Some(Hierarchy {
        version,
        controllers,
        mount,
    })
}

/// Whether an option of a v1 mount names a controller or the hierarchy, and not a behaviour (cgroup_show_options()).
fn is_controller(option: &str) -> bool {
    let behaviour = [
        "rw",
        "ro",
        "noprefix",
        "xattr",
        "clone_children",
        "cpuset_v2_mode",
        "favordynmods",
        "seclabel",
    ];
    !behaviour.contains(&option) && !option.starts_with("release_agent=")
}

/// Blank, tab, newline and backslash are octal escapes in the mount table.
fn unescape(field: &str) -> String {
    if !field.contains('\\') {
        return field.to_owned();
    }
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
";

    #[test]
    fn hybrid_mount_table_lists_v1_controllers_and_v2_last() {
        let found = Hierarchies::parse(HYBRID);
        assert_eq!(found.all.len(), 4);
        assert_eq!(
            found.of("cpuacct").unwrap().mount,
            Path::new("/sys/fs/cgroup/cpu,cpuacct")
        );
        assert_eq!(found.of("name=systemd").unwrap().controllers, ["name=systemd"]);
        assert_eq!(found.all[3].version, Version::V2);
        assert!(!found.is_unified());
        assert!(found.of("pids").is_none());
    }

    #[test]
    fn the_usual_place_wins_over_a_bind_mount_elsewhere() {
        let elsewhere = "9 8 0:32 /x /mnt/a\\040b rw - cgroup cgroup rw,memory\n";
        let only = Hierarchies::parse(elsewhere);
        assert_eq!(only.of("memory").unwrap().mount, Path::new("/mnt/a b"));
        let both = Hierarchies::parse(&format!("{elsewhere}{HYBRID}"));
        assert_eq!(
            both.of("memory").unwrap().mount,
            Path::new("/sys/fs/cgroup/memory")
        );
        let after = Hierarchies::parse(&format!("{HYBRID}{elsewhere}"));
        assert_eq!(
            after.of("memory").unwrap().mount,
            Path::new("/sys/fs/cgroup/memory")
        );
    }

    #[test]
    fn unified_host_is_recognised_and_garbage_lines_are_skipped() {
        let found = Hierarchies::parse("x\n1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n- \n");
        assert!(found.is_unified());
        assert_eq!(found.all.len(), 1);
    }
}
