//! A mount's options, told apart: attributes of the mount, propagation, mapping of ids, and the rest, which goes to
//! the file system.

use std::path::{Path, PathBuf};

use nix::libc;
use oci_spec::runtime::Mount;

use super::{Mappings, clean};
use crate::ConfigError;

/// One entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPlan {
    pub(crate) destination: PathBuf,
    pub(crate) source: Source,
    pub(crate) attributes: MountAttributes,
    /// For the mount and everything below it (`rro` and the like).
    pub(crate) recursive_attributes: MountAttributes,
    pub(crate) propagation: Vec<Propagation>,
    pub(crate) idmap: Option<Idmap>,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file or folder of the host.
    Bind { path: PathBuf, recursive: bool },
    /// A new instance of a file system, with its options.
    Fresh {
        kind: String,
        source: String,
        options: Vec<(String, Option<String>)>,
    },
    /// The container's own cgroups, in whatever form the host has them.
    Cgroup,
}

/// `MOUNT_ATTR_*` to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountAttributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl MountAttributes {
    fn apply(&mut self, attribute: u64, on: bool) {
        let times = attribute & libc::MOUNT_ATTR__ATIME != 0 || attribute == 0;
        let (mask, value) = if times {
            (libc::MOUNT_ATTR__ATIME, attribute)
        } else {
            (attribute, attribute)
        };
        self.set &= !mask;
        if on {
            self.set |= value;
        }
        // The times' attributes are one field of several bits: to change it, all of it is cleared.
        if times || !on {
            self.clear |= mask;
        } else {
            self.clear &= !mask;
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// A propagation to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Propagation {
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`.
    pub(crate) flag: u64,
    pub(crate) recursive: bool,
}

/// The mapping of a bind mount's owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Idmap {
    /// `None`: the container's user namespace itself.
    pub(crate) mappings: Option<Mappings>,
    pub(crate) recursive: bool,
}

/// `private`, `rslave` and so on.
pub(crate) fn propagation_named(name: &str) -> Option<Propagation> {
    let (recursive, base) = match name.strip_prefix('r') {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    let flag = match base {
        "private" => libc::MS_PRIVATE,
        "slave" => libc::MS_SLAVE,
        "shared" => libc::MS_SHARED,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(Propagation { flag, recursive })
}

/// An attribute by its option's name, and whether the option sets it.
fn attribute_named(name: &str) -> Option<(u64, bool)> {
    Some(match name {
        "ro" => (libc::MOUNT_ATTR_RDONLY, true),
        "rw" => (libc::MOUNT_ATTR_RDONLY, false),
        "nosuid" => (libc::MOUNT_ATTR_NOSUID, true),
        "suid" => (libc::MOUNT_ATTR_NOSUID, false),
        "nodev" => (libc::MOUNT_ATTR_NODEV, true),
        "dev" => (libc::MOUNT_ATTR_NODEV, false),
        "noexec" => (libc::MOUNT_ATTR_NOEXEC, true),
        "exec" => (libc::MOUNT_ATTR_NOEXEC, false),
        "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, true),
        "diratime" => (libc::MOUNT_ATTR_NODIRATIME, false),
        "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, true),
        "symfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, false),
        "noatime" => (libc::MOUNT_ATTR_NOATIME, true),
        "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, true),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (libc::MOUNT_ATTR_RELATIME, true),
        _ => return None,
    })
}

impl MountPlan {
    pub(crate) fn new(
        index: usize,
        mount: &Mount,
        bundle: &Path,
        container: Option<&Mappings>,
    ) -> Result<Self, ConfigError> {
        let field = || format!("mounts[{index}] (`{}`)", mount.destination().display());
        // The specification wants absolute paths; runc takes relative ones as relative to the root.
        let destination = clean(&Path::new("/").join(mount.destination()));
        if destination == Path::new("/") {
            return Err(ConfigError::invalid(
                field(),
                "the destination is the root itself",
            ));
        }
        let mut options = Options::default();
        for option in mount.options().iter().flatten() {
            options
                .add(option)
                .map_err(|reason| ConfigError::unsupported(field(), reason))?;
        }
        let kind = mount.typ().as_deref().unwrap_or("none");
        let source_path = mount.source().as_deref();
        let source = if options.bind.is_some() || kind == "bind" {
            let path =
                source_path.ok_or_else(|| ConfigError::invalid(field(), "a bind mount needs a source"))?;
            Source::Bind {
                path: bundle.join(path),
                recursive: options.bind.unwrap_or(true),
            }
        } else if kind == "cgroup" || kind == "cgroup2" {
            Source::Cgroup
        } else if kind == "none" || kind.is_empty() {
            return Err(ConfigError::invalid(
                field(),
                "neither a type nor a bind option is given",
            ));
        } else {
            Source::Fresh {
                kind: kind.to_owned(),
                source: source_path.map_or_else(|| kind.to_owned(), |p| p.display().to_string()),
                options: std::mem::take(&mut options.data),
            }
        };
        let idmap =
            idmap(mount, &options, container).map_err(|reason| ConfigError::invalid(field(), reason))?;
        if idmap.is_some() && !matches!(source, Source::Bind { .. }) {
            return Err(ConfigError::unsupported(
                field(),
                "ids can be mapped on bind mounts only",
            ));
        }
        Ok(Self {
            destination,
            source,
            attributes: options.attributes,
            recursive_attributes: options.recursive,
            propagation: options.propagation,
            idmap,
        })
    }
}

fn idmap(
    mount: &Mount,
    options: &Options,
    container: Option<&Mappings>,
) -> Result<Option<Idmap>, &'static str> {
    let uid = mount.uid_mappings().as_deref().unwrap_or_default();
    let gid = mount.gid_mappings().as_deref().unwrap_or_default();
    if uid.is_empty() != gid.is_empty() {
        return Err("uidMappings and gidMappings must be given together");
    }
    let recursive = options.idmap.unwrap_or(false);
    if !uid.is_empty() {
        return Ok(Some(Idmap {
            mappings: Some(Mappings::new(uid, gid)),
            recursive,
        }));
    }
    if options.idmap.is_none() {
        return Ok(None);
    }
    // The container's own mapping; None when its user namespace is joined by path.
    Ok(Some(Idmap {
        mappings: container.cloned(),
        recursive,
    }))
}

#[derive(Default)]
struct Options {
    attributes: MountAttributes,
    recursive: MountAttributes,
    propagation: Vec<Propagation>,
    /// Whether recursive.
    bind: Option<bool>,
    /// Whether recursive.
    idmap: Option<bool>,
    data: Vec<(String, Option<String>)>,
}

impl Options {
    fn add(&mut self, option: &str) -> Result<(), String> {
        match option {
            "" | "defaults" | "silent" | "loud" | "remount" | "async" | "nomand" | "nolazytime"
            | "noiversion" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "tmpcopyup" => return Err("option `tmpcopyup` is not supported".to_owned()),
            _ => self.add_named(option),
        }
        Ok(())
    }

    fn add_named(&mut self, option: &str) {
        if let Some((attribute, on)) = attribute_named(option) {
            self.attributes.apply(attribute, on);
        } else if let Some(propagation) = propagation_named(option) {
            self.propagation.push(propagation);
        } else if let Some((attribute, on)) = option.strip_prefix('r').and_then(attribute_named) {
            self.recursive.apply(attribute, on);
        } else if let Some((key, value)) = option.split_once('=') {
            self.data.push((key.to_owned(), Some(value.to_owned())));
        } else {
            self.data.push((option.to_owned(), None));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<MountPlan, ConfigError> {
        MountPlan::new(0, &serde_json::from_str(json).unwrap(), Path::new("/b"), None)
    }

    #[test]
    fn options_go_where_they_belong() {
        let plan = plan(
            r#"{"destination":"/dev/shm/","type":"tmpfs","source":"shm",
                "options":["nosuid","noexec","ro","rw","strictatime","mode=1777","size=64k","rprivate","inode64"]}"#,
        )
        .unwrap();
        assert_eq!(plan.destination, Path::new("/dev/shm"));
        assert_eq!(
            plan.attributes.set,
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_STRICTATIME
        );
        assert_eq!(
            plan.attributes.clear,
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR__ATIME
        );
        let Source::Fresh { kind, options, .. } = plan.source else {
            panic!("not a fresh file system");
        };
        assert_eq!(kind, "tmpfs");
        assert_eq!(options.len(), 3);
        assert_eq!(
            plan.propagation,
            [Propagation {
                flag: libc::MS_PRIVATE,
                recursive: true
            }]
        );
    }

    #[test]
    fn binds_are_relative_to_the_bundle_and_recursive_attributes_are_apart() {
        let plan =
            plan(r#"{"destination":"/x","source":"data","options":["rbind","rro","rslave"]}"#).unwrap();
        assert_eq!(
            plan.source,
            Source::Bind {
                path: "/b/data".into(),
                recursive: true
            }
        );
        assert!(plan.attributes.is_empty());
        assert_eq!(plan.recursive_attributes.set, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn mounts_that_make_no_sense_are_refused() {
        for bad in [
            r#"{"destination":"/","type":"tmpfs"}"#,
            r#"{"destination":"/a/..","type":"tmpfs"}"#,
            r#"{"destination":"/a"}"#,
            r#"{"destination":"/a","options":["bind"]}"#,
            r#"{"destination":"/a","type":"tmpfs","options":["tmpcopyup"]}"#,
            r#"{"destination":"/a","type":"tmpfs","options":["idmap"]}"#,
        ] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }
}
