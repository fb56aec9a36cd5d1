//! The container's mounts: the usual ones, the pod's files, and what the CRI asks for.
//!
//! Layers, each winning over the one before at the same place: the defaults, the image's volumes, the CRI's mounts. A
//! default below a place that was taken over goes too: who mounts the host's `/dev` gets the host's `/dev/pts`. At
//! last all are sorted so that parents come before children, because the runtime mounts them in the listed order.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use cri_api::v1::{self, MountPropagation, NamespaceMode};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount, MountBuilder};

use super::{MountSource, Peering, SpecError, SpecInput, pid_mode};

/// Options that a caller may add to a mount: flags of the mount alone, none that reach the file system behind it.
const FREE_OPTIONS: [&str; 14] = [
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "strictatime",
];

/// The group that owns terminals.
const TTY_GROUP: u32 = 5;

/// The container's mounts, parents first.
pub(super) fn mounts(input: &SpecInput<'_>) -> Result<Vec<Mount>, SpecError> {
    if input.mount_sources.len() != input.container.mounts.len() {
        return Err(SpecError::Inconsistent(
            "as many mount sources as mounts are needed",
        ));
    }
    let mut asked = BTreeMap::new();
    for (mount, source) in input.container.mounts.iter().zip(&input.mount_sources) {
        let place = destination(&mount.container_path)?;
        let oci = cri_mount(input, mount, source, &place)?;
        if asked.insert(place.clone(), oci).is_some() {
            return Err(SpecError::DuplicateMount { path: place });
        }
    }
    let mut all: Vec<Mount> = defaults(input)?;
    all.retain(|m| !asked.keys().any(|place| m.destination().starts_with(place)));
    for volume in &input.image_volumes {
        let place = destination(&volume.container_path.display().to_string())?;
        if !asked.contains_key(&place) {
            let source = volume.host_path.clone();
            all.push(bind(place, source, &["rbind", "rprivate", "rw"])?);
        }
    }
    all.extend(asked.into_values());
    // Stable, so that what lies equally deep keeps its order.
    all.sort_by_key(|m| m.destination().components().count());
    Ok(all)
}

/// `linux.rootfsPropagation`: what the container's root needs, so that mounts can travel at all.
pub(super) fn rootfs_propagation(container: &v1::ContainerConfig) -> Option<&'static str> {
    let asks = |p: MountPropagation| container.mounts.iter().any(|m| m.propagation == p as i32);
    if asks(MountPropagation::PropagationBidirectional) {
        Some("rshared")
    } else {
        asks(MountPropagation::PropagationHostToContainer).then_some("rslave")
    }
}

/// An absolute path without `.`, `..` and doubled slashes; `..` is resolved on the text, as the root is its own parent.
pub(crate) fn destination(path: &str) -> Result<PathBuf, SpecError> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(SpecError::MountDestination {
            path: path.replace('\0', "\\0"),
        });
    }
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    if clean == Path::new("/") {
        return Err(SpecError::Mount {
            path: path.to_owned(),
            why: "the root itself can't be mounted over".into(),
        });
    }
    Ok(clean)
}

fn mount(place: &str, kind: &str, source: &str, options: &[&str]) -> Result<Mount, SpecError> {
    Ok(MountBuilder::default()
        .destination(place)
        .typ(kind)
        .source(source)
        .options(texts(options))
        .build()?)
}

fn bind(place: PathBuf, source: PathBuf, options: &[&str]) -> Result<Mount, SpecError> {
    Ok(MountBuilder::default()
        .destination(place)
        .typ("bind")
        .source(source)
        .options(texts(options))
        .build()?)
}

fn texts(options: &[&str]) -> Vec<String> {
    options.iter().map(|&o| o.to_owned()).collect()
}

/// The mounts of every container.
fn defaults(input: &SpecInput<'_>) -> Result<Vec<Mount>, SpecError> {
    let mut all = kernel_mounts(input)?;
    let files = &input.files;
    let etc = [
        "rbind",
        "rprivate",
        if input.readonly_rootfs() { "ro" } else { "rw" },
    ];
    all.push(bind(
        "/dev/shm".into(),
        files.shm.clone(),
        &["rbind", "rprivate", "nosuid", "noexec", "nodev"],
    )?);
    all.push(bind("/etc/hostname".into(), files.hostname.clone(), &etc)?);
    all.push(bind("/etc/resolv.conf".into(), files.resolv_conf.clone(), &etc)?);
    if let Some(hosts) = &files.hosts {
        all.push(bind("/etc/hosts".into(), hosts.clone(), &etc)?);
    }
    Ok(all)
}

/// The kernel's file systems.
///
/// In a user namespace, `/proc` and `/sys` can be mounted anew only by who owns the PID or network namespace that they
/// show; of the host's, the host's own mount is bound instead.
fn kernel_mounts(input: &SpecInput<'_>) -> Result<Vec<Mount>, SpecError> {
    let mapped = input.namespaces.user.is_some();
    let plain = ["nosuid", "noexec", "nodev"];
    let writable = if input.privileged() { "rw" } else { "ro" };

    let host_pid = pid_mode(input.sandbox, input.container)? == NamespaceMode::Node;
    let proc = if mapped && host_pid {
        bind(
            "/proc".into(),
            "/proc".into(),
            &["rbind", "nosuid", "noexec", "nodev"],
        )?
    } else {
        mount("/proc", "proc", "proc", &plain)?
    };
    let host_network = input.namespaces.network.is_none();
    let sysfs = if mapped && host_network {
        bind(
            "/sys".into(),
            "/sys".into(),
            &["rbind", "rslave", "nosuid", "noexec", "nodev", writable],
        )?
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", writable])?
    };
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let tty_group = format!("gid={TTY_GROUP}");
    if tty_group_exists(input) {
        pts.push(&tty_group);
    }
    Ok(vec![
        proc,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        mount("/dev/pts", "devpts", "devpts", &pts)?,
        mount("/dev/mqueue", "mqueue", "mqueue", &plain)?,
        sysfs,
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", writable],
        )?,
    ])
}

/// A file system can't be mounted with an owner that the user namespace doesn't know.
fn tty_group_exists(input: &SpecInput<'_>) -> bool {
    let Some(options) = input.user_namespace() else {
        return true;
    };
    let covers = |m: &v1::IdMapping| {
        m.container_id <= TTY_GROUP && u64::from(TTY_GROUP) < u64::from(m.container_id) + u64::from(m.length)
    };
    options.gids.iter().any(covers)
}

/// One mount that the CRI asks for.
fn cri_mount(
    input: &SpecInput<'_>,
    asked: &v1::Mount,
    source: &MountSource,
    place: &Path,
) -> Result<Mount, SpecError> {
    let refuse = |why: String| SpecError::Mount {
        path: asked.container_path.clone(),
        why,
    };
    let image = asked.image.as_ref().is_some_and(|i| !i.image.is_empty());
    match (image, asked.host_path.is_empty()) {
        (false, true) => return Err(refuse("neither a host path nor an image is named".to_owned())),
        (true, false) => return Err(refuse("both a host path and an image are named".to_owned())),
        (false, false) if !asked.image_sub_path.is_empty() => {
            return Err(refuse(
                "`image_sub_path` makes no sense without an image".to_owned(),
            ));
        }
        _ => {}
    }
    if asked.selinux_relabel && input.host.selinux {
        return Err(SpecError::SelinuxRelabel {
            path: asked.container_path.clone(),
        });
    }
    let propagation = propagation(asked, source).map_err(refuse)?;
    let access = access(input, asked, image).map_err(refuse)?;
    let mut options = texts(&["rbind", propagation, access]);
    for option in &asked.mount_options {
        if !FREE_OPTIONS.contains(&option.as_str()) {
            return Err(refuse(format!(
                "mount option `{option}` is not one of {}",
                FREE_OPTIONS.join(", ")
            )));
        }
        if option == "rw" && access != "rw" {
            return Err(refuse(
                "mount option `rw` contradicts a read-only mount".to_owned(),
            ));
        }
        if !options.contains(option) {
            options.push(option.clone());
        }
    }
    let mut oci = MountBuilder::default()
        .destination(place)
        .typ("bind")
        .source(source.path.clone())
        .build()?;
    if !asked.uid_mappings.is_empty() || !asked.gid_mappings.is_empty() {
        if asked.uid_mappings.is_empty() || asked.gid_mappings.is_empty() {
            return Err(refuse(
                "`uid_mappings` and `gid_mappings` are only possible together".to_owned(),
            ));
        }
        if !input.host.idmapped_mounts {
            return Err(refuse("this kernel can't map the owners of a mount".to_owned()));
        }
        options.push("ridmap".to_owned());
        oci.set_uid_mappings(Some(mappings(&asked.uid_mappings)?));
        oci.set_gid_mappings(Some(mappings(&asked.gid_mappings)?));
    }
    oci.set_options(Some(options));
    Ok(oci)
}

fn propagation(asked: &v1::Mount, source: &MountSource) -> Result<&'static str, String> {
    let path = source.path.display();
    match (MountPropagation::try_from(asked.propagation), source.peering) {
        (Ok(MountPropagation::PropagationPrivate), _) => Ok("rprivate"),
        (Ok(MountPropagation::PropagationHostToContainer), Peering::Private) => Err(format!(
            "propagation HOST_TO_CONTAINER is impossible because the host's mount of `{path}` is private: make it shared"
        )),
        (Ok(MountPropagation::PropagationHostToContainer), _) => Ok("rslave"),
        (Ok(MountPropagation::PropagationBidirectional), Peering::Shared) => Ok("rshared"),
        (Ok(MountPropagation::PropagationBidirectional), _) => Err(format!(
            "propagation BIDIRECTIONAL is impossible because the host's mount of `{path}` is not shared: make it shared"
        )),
        (Err(_), _) => Err(format!("propagation has the unknown value {}", asked.propagation)),
    }
}

/// `ro`, `rro` or `rw`. An image is always read-only, as its layers are everybody's: the kubelet says so each time, and
/// who wants something else isn't given less than that silently.
fn access(input: &SpecInput<'_>, asked: &v1::Mount, image: bool) -> Result<&'static str, String> {
    if image && !asked.readonly {
        return Err("an image can only be mounted read-only: set `readonly`".to_owned());
    }
    if !asked.recursive_read_only {
        return Ok(if asked.readonly { "ro" } else { "rw" });
    }
    if !asked.readonly {
        return Err("`recursive_read_only` needs `readonly`".to_owned());
    }
    if asked.propagation != MountPropagation::PropagationPrivate as i32 {
        return Err("`recursive_read_only` needs propagation PRIVATE".to_owned());
    }
    if !input.host.recursive_read_only {
        return Err("this kernel can't make mounts read-only recursively".to_owned());
    }
    Ok("rro")
}

fn mappings(asked: &[v1::IdMapping]) -> Result<Vec<LinuxIdMapping>, SpecError> {
    let one = |m: &v1::IdMapping| {
        let built = LinuxIdMappingBuilder::default()
            .container_id(m.container_id)
            .host_id(m.host_id)
            .size(m.length)
            .build();
        Ok(built?)
    };
    asked.iter().map(one).collect()
}
