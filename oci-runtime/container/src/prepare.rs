//! What the runtime opens for init with the host's rights and in the host's view.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::libc;
use oci_runtime_cgroups::Cgroup;
use oci_runtime_cgroups::hierarchy::{Hierarchies, Version};
use oci_runtime_sys::clone::{self, Forked};
use oci_runtime_sys::mount::{self, Attributes};
use oci_runtime_sys::{open, process, socket};

use crate::context::Context as _;
use crate::init::{CgroupTree, Prepared, finish_mount, open_namespace};
use crate::plan::{Idmap, InitPlan, Mappings, MountPlan, Source};
use crate::{ErrorKind, StepError};

/// Opens everything; all of it is detached and goes away with the descriptors.
pub(crate) fn open_all(plan: &InitPlan, cgroup: &Cgroup) -> Result<Prepared, StepError> {
    if !plan.namespaces.is_new(libc::CLONE_NEWNS) {
        return Ok(Prepared::default());
    }
    let mut user_namespaces = Vec::new();
    let mut prepared = Prepared {
        root: Some(open_root(plan)?),
        ..Prepared::default()
    };
    for entry in &plan.mounts {
        prepared.binds.push(match &entry.source {
            Source::Bind { path, recursive } => {
                Some(open_bind(plan, entry, path, *recursive, &mut user_namespaces)?)
            }
            _ => None,
        });
    }
    if plan.mounts.iter().any(|entry| entry.source == Source::Cgroup) {
        prepared.cgroups = open_cgroups(cgroup)?;
    }
    if plan.namespaces.all() & libc::CLONE_NEWUSER != 0 {
        for device in &plan.devices {
            let what = || format!("open the host's `{}`", device.path.display());
            let host = open::place(&device.path).to(what)?;
            prepared
                .devices
                .push(Some(mount::clone_tree(host.as_fd(), false).to(what)?));
        }
    }
    Ok(prepared)
}

fn open_root(plan: &InitPlan) -> Result<OwnedFd, StepError> {
    let what = || format!("open the rootfs `{}`", plan.rootfs.display());
    let place = open::place(&plan.rootfs).to(what)?;
    if !open::facts(place.as_fd()).to(what)?.is_dir() {
        return Err(StepError::new(
            ErrorKind::Invalid,
            format!("root.path: `{}` is not a folder", plan.rootfs.display()),
        ));
    }
    let root = mount::clone_tree(place.as_fd(), true).to(what)?;
    let private = Attributes {
        propagation: libc::MS_PRIVATE,
        ..Attributes::default()
    };
    // With a shared root, mounts below it may go on propagating; the root itself never does.
    let shared = plan.root_propagation.is_some_and(|p| p.flag == libc::MS_SHARED);
    mount::set_attributes(root.as_fd(), private, !shared).to(what)?;
    Ok(root)
}

fn open_bind(
    plan: &InitPlan,
    entry: &MountPlan,
    path: &Path,
    recursive: bool,
    user_namespaces: &mut Vec<(Mappings, OwnedFd)>,
) -> Result<OwnedFd, StepError> {
    let what = || format!("bind `{}` to `{}`", path.display(), entry.destination.display());
    let place = open::place(path).to(what)?;
    let tree = mount::clone_tree(place.as_fd(), recursive).to(what)?;
    if let Some(idmap) = &entry.idmap {
        map_ids(plan, &tree, idmap, user_namespaces)
            .map_err(|e| StepError::new(e.kind, format!("failed to {}: {}", what(), e.message)))?;
    }
    let shared = plan.root_propagation.is_some_and(|p| p.flag == libc::MS_SHARED);
    if entry.propagation.is_empty() && !shared {
        // This copy is the host's peer; the container's gets what the host mounts, and the host nothing back.
        let slave = Attributes {
            propagation: libc::MS_SLAVE,
            ..Attributes::default()
        };
        mount::set_attributes(tree.as_fd(), slave, true).to(what)?;
    }
    finish_mount(tree.as_fd(), entry, what)?;
    Ok(tree)
}

fn map_ids(
    plan: &InitPlan,
    tree: &OwnedFd,
    idmap: &Idmap,
    known: &mut Vec<(Mappings, OwnedFd)>,
) -> Result<(), StepError> {
    let namespace = match &idmap.mappings {
        Some(mappings) => {
            let index = match known.iter().position(|(m, _)| m == mappings) {
                Some(index) => index,
                None => {
                    known.push((mappings.clone(), user_namespace(mappings)?));
                    known.len() - 1
                }
            };
            known[index].1.try_clone().to(|| "copy a descriptor")?
        }
        None => match plan.namespaces.joined(libc::CLONE_NEWUSER) {
            Some(path) => open_namespace(path)?,
            None => {
                return Err(StepError::new(
                    ErrorKind::Invalid,
                    "ids can't be mapped without mappings and without a user namespace",
                ));
            }
        },
    };
    mount::map_ids(tree.as_fd(), namespace.as_fd(), idmap.recursive)
        .to(|| "map the ids of the mount; can the file system do that?")
}

/// A user namespace that exists only for its mappings: a child makes it, and ends as soon as it is held open here.
fn user_namespace(mappings: &Mappings) -> Result<OwnedFd, StepError> {
    let (ours, theirs) = socket::packet_pair().to(|| "make a socket pair")?;
    let flags = libc::CLONE_NEWUSER as u64;
    let pid = match clone::fork(flags, None).to(|| "make a user namespace for mapping ids")? {
        Forked::Child => {
            drop(ours);
            let _ = socket::receive(theirs.as_fd(), &mut [0]);
            clone::exit_now(0)
        }
        Forked::Parent(pid) => pid,
    };
    drop(theirs);
    let result = write_mappings(pid, mappings)
        .and_then(|()| open_namespace(Path::new(&format!("/proc/{pid}/ns/user"))));
    drop(ours);
    let _ = process::wait(pid, true);
    result
}

/// Writes a process's `uid_map` and `gid_map`, after making sure that it's procfs.
pub(crate) fn write_mappings(pid: i32, mappings: &Mappings) -> Result<(), StepError> {
    let proc = open::procfs().to(|| "open /proc")?;
    for (name, text) in [("uid_map", &mappings.uid), ("gid_map", &mappings.gid)] {
        let what = || {
            format!(
                "write {name} of the user namespace ({})",
                text.trim().replace('\n', ", ")
            )
        };
        let path = format!("{pid}/{name}");
        let file = open::procfs_file(proc.as_fd(), Path::new(&path), libc::O_WRONLY).to(what)?;
        File::from(file).write_all(text.as_bytes()).to(what)?;
    }
    Ok(())
}

/// Who shall own the container's cgroup: the root of its new user namespace, if it also gets a cgroup namespace and
/// sees its cgroups in a writable mount (as with runc).
pub(crate) fn cgroup_owner(plan: &InitPlan) -> Option<u32> {
    let writable = |entry: &MountPlan| {
        entry.source == Source::Cgroup && entry.attributes.set & libc::MOUNT_ATTR_RDONLY == 0
    };
    let owns = plan.namespaces.is_new(libc::CLONE_NEWUSER)
        && plan.namespaces.is_new(libc::CLONE_NEWCGROUP)
        && plan.mounts.iter().any(writable);
    plan.mappings
        .as_ref()
        .filter(|_| owns)
        .and_then(|mappings| host_root(&mappings.uid))
}

/// What user 0 is on the host, by the lines of a `uid_map`.
fn host_root(map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace();
        (numbers.next() == Some("0")).then(|| numbers.next()?.parse().ok())?
    })
}

/// The container's own cgroup in each hierarchy.
fn open_cgroups(cgroup: &Cgroup) -> Result<Vec<CgroupTree>, StepError> {
    let hierarchies = Hierarchies::of_this_process().map_err(|e| StepError::chain(ErrorKind::Other, &e))?;
    let unified = hierarchies.is_unified();
    let mut trees = Vec::new();
    for hierarchy in &hierarchies.all {
        let path = hierarchy.mount.join(cgroup.path().trim_start_matches('/'));
        let what = || format!("open the cgroup `{}`", path.display());
        let place = open::place(&path).to(what)?;
        let tree = mount::clone_tree(place.as_fd(), false).to(what)?;
        let private = Attributes {
            propagation: libc::MS_PRIVATE,
            ..Attributes::default()
        };
        mount::set_attributes(tree.as_fd(), private, false).to(what)?;
        let name = hierarchy
            .mount
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let links = hierarchy
            .controllers
            .iter()
            .filter(|controller| {
                hierarchy.version == Version::V1 && **controller != name && !controller.contains('=')
            })
            .cloned()
            .collect();
        trees.push(CgroupTree {
            name: if unified { String::new() } else { name },
            links,
            tree,
        });
    }
    Ok(trees)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_user_namespace_is_found_on_the_host() {
        assert_eq!(host_root("0 100000 65536\n"), Some(100_000));
        assert_eq!(host_root("1 5 1\n0 7 1\n"), Some(7));
        assert_eq!(host_root("1 5 1\n"), None);
    }
}
