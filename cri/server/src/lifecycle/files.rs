//! A pod's folder of run time: its files, its tmpfs, its pins; and taking such folders down.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::plan::{self, SandboxPlan};
use crate::errors::CallError;
use crate::paths::Paths;
use crate::store::Sandbox;

/// The size of a pod's `/dev/shm`.
const SHM_BYTES: u64 = 64 << 20;

/// Makes the pod's folder and all files in it.
pub(super) fn make(paths: &Paths, sandbox: &Sandbox, plan: &SandboxPlan) -> Result<(), CallError> {
    let id = sandbox.id.as_str();
    let record = sandbox.record();
    for folder in [paths.pod(id), paths.namespaces(id)] {
        fs::create_dir_all(&folder).map_err(CallError::file("make the folder", &folder))?;
    }
    for kind in plan.kinds() {
        write(&paths.namespace(id, kind), b"")?;
    }
    let resolv_conf = plan::resolv_conf(record.config.dns_config.as_ref())
        .map_err(|e| CallError::Invalid(e.to_string()))?
        .map_or_else(|| read_host("/etc/resolv.conf"), |text| Ok(text.into_bytes()))?;
    write(&paths.resolv_conf(id), &resolv_conf)?;
    let mut hostname = hostname(plan)?;
    write_hosts(paths, sandbox, &hostname)?;
    hostname.push('\n');
    write(&paths.hostname(id), hostname.as_bytes())
}

/// The pod's name: its own, or the node's.
pub(super) fn hostname(plan: &SandboxPlan) -> Result<String, CallError> {
    match &plan.hostname {
        Some(name) => Ok(name.clone()),
        None => {
            let path = Path::new("/proc/sys/kernel/hostname");
            let name = fs::read_to_string(path).map_err(CallError::file("read", path))?;
            Ok(name.trim().to_owned())
        }
    }
}

/// Writes `/etc/hosts`: the node's own for a pod on the node's network.
pub(super) fn write_hosts(paths: &Paths, sandbox: &Sandbox, hostname: &str) -> Result<(), CallError> {
    let record = sandbox.record();
    let path = paths.hosts(sandbox.id.as_str());
    if record.namespaces.network {
        write(&path, plan::hosts(hostname, &record.ips).as_bytes())
    } else {
        write(&path, &read_host("/etc/hosts")?)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CallError> {
    fs::write(path, bytes)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
        .map_err(CallError::file("write", path))
}

/// A file of the node; absent is empty.
fn read_host(path: &str) -> Result<Vec<u8>, CallError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(CallError::file("read", Path::new(path))),
    }
}

/// Mounts the pod's `/dev/shm`.
pub(super) fn mount_shm(paths: &Paths, sandbox: &Sandbox) -> Result<(), CallError> {
    let path = paths.shm(sandbox.id.as_str());
    fs::create_dir_all(&path).map_err(CallError::file("make the folder", &path))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=1777,size={SHM_BYTES}");
    mount(Some("shm"), &path, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(CallError::file("mount a tmpfs on", &path))
}

/// Unmounts whatever is mounted on a path, however many times; nothing and nowhere are fine.
pub(crate) fn unmount(path: &Path) -> Result<(), CallError> {
    // Bounded: nobody stacks more than a few.
    for _ in 0..64 {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(CallError::file("unmount", path)(errno)),
        }
    }
    Ok(())
}

/// Unmounts a folder's children.
pub(crate) fn unmount_tree(folder: &Path) -> Result<(), CallError> {
    for child in children(folder)? {
        unmount(&child)?;
    }
    Ok(())
}

fn children(folder: &Path) -> Result<Vec<PathBuf>, CallError> {
    let failed = |error| CallError::file("list", folder)(error);
    let mut paths = Vec::new();
    match fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                paths.push(entry.map_err(failed)?.path());
            }
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) => {}
        Err(error) => return Err(failed(error)),
    }
    paths.sort();
    Ok(paths)
}

/// Removes a folder in which nothing is mounted any more: the caller has unmounted it all, or failed. Absent is fine.
pub(crate) fn remove_tree(folder: &Path) -> Result<(), CallError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CallError::file("remove", folder)(error))
        }
        _ => Ok(()),
    }
}
