//! The container's root file system: its mounts, devices and covers, and the change into it.
//!
//! Bind mounts are opened by the runtime, detached and with ids mapped, before init is forked: with the host's rights,
//! in the host's view. Everything else is made here, in the container's namespaces. Nothing is ever mounted by the
//! name of its target.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd;
use oci_runtime_sys::mount::{self, Attributes, FsContext};
use oci_runtime_sys::open;

use super::{InitArguments, console, devices, leave_open, mask, run_hooks};
use crate::context::Context as _;
use crate::handshake::Child;
use crate::inside::Inside;
use crate::plan::{InitPlan, MountAttributes, MountPlan, Propagation, Source};
use crate::{ErrorKind, StepError};

/// What the runtime has opened for init, by the index in the plan's lists.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// The rootfs.
    pub(crate) root: Option<OwnedFd>,
    pub(crate) binds: Vec<Option<OwnedFd>>,
    pub(crate) devices: Vec<Option<OwnedFd>>,
    pub(crate) cgroups: Vec<CgroupTree>,
}

/// One hierarchy's cgroup of the container, for a mount of type `cgroup`.
#[derive(Debug)]
pub(crate) struct CgroupTree {
    /// Its folder below the mount; empty: it is the mount.
    pub(crate) name: String,
    /// Other names for it (one for each controller, where several share a hierarchy).
    pub(crate) links: Vec<String>,
    /// The cgroup, detached; taken by the first mount of that type.
    pub(crate) tree: OwnedFd,
}

impl Prepared {
    pub(super) fn device(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.devices.get(index)?.as_ref().map(OwnedFd::as_fd)
    }
}

/// Builds it and changes into it.
pub(super) fn build(arguments: &InitArguments, channel: &Child) -> Result<(), StepError> {
    let plan = &arguments.plan;
    let old_umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let root = attach_root(&arguments.prepared)?;
    let mut readonly = Vec::new();
    for (index, entry) in plan.mounts.iter().enumerate() {
        let bind = arguments.prepared.binds.get(index);
        readonly.extend(mount_one(root, entry, bind, &arguments.prepared)?);
    }
    if !plan.mounts.iter().any(binds_dev) {
        devices::make(root, &plan.devices, &arguments.prepared)?;
    }
    arguments.streams.install(&plan.process, Some(root), channel)?;
    if arguments.streams.is_terminal() {
        console::bind_console(root)?;
    }
    make_cwd(root, &plan.process.cwd)?;
    run_hooks(arguments, channel)?;
    for tree in readonly {
        set(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, "make a tmpfs read-only")?;
        leave_open(tree);
    }
    mask::make_readonly(root, &plan.readonly)?;
    mask::mask(root, &plan.masked)?;
    if plan.readonly_root {
        set(root, libc::MOUNT_ATTR_RDONLY, "make the root read-only")?;
    }
    nix::sys::stat::umask(old_umask);
    if arguments.no_pivot {
        move_into(root)?;
    } else {
        pivot_into(root)?;
    }
    propagate_root(plan)
}

fn binds_dev(entry: &MountPlan) -> bool {
    entry.destination == Path::new("/dev") && matches!(entry.source, Source::Bind { .. })
}

/// Cuts this mount namespace off from the host's, and puts the rootfs over `/` (where nobody sees it yet: this
/// process's root is still what is below).
///
/// The runtime has opened the rootfs with the host's rights, as the folders above it may be closed to a mapped root.
fn attach_root<'a>(prepared: &'a Prepared) -> Result<BorrowedFd<'a>, StepError> {
    let slash = open::place(Path::new("/")).to(|| "open /")?;
    let slave = Attributes {
        propagation: libc::MS_SLAVE,
        ..Attributes::default()
    };
    // What is to propagate to the host are bind mounts, which come from the runtime's namespace and are its peers.
    mount::set_attributes(slash.as_fd(), slave, true).to(|| "make mounts slaves of the host's")?;
    let root = prepared.root.as_ref().map(OwnedFd::as_fd);
    let root = root.ok_or_else(|| StepError::other("the rootfs was not opened"))?;
    mount::move_to(root, slash.as_fd()).to(|| "mount the rootfs")?;
    leave_open(slash);
    Ok(root)
}

/// The mode of the folder that a tmpfs without one covers, if it is there: users of the folder expect it.
fn covered_mode(
    root: BorrowedFd<'_>,
    entry: &MountPlan,
    kind: &str,
    options: &[(String, Option<String>)],
) -> Option<String> {
    if kind != "tmpfs" || options.iter().any(|(key, _)| key == "mode") {
        return None;
    }
    let covered = Inside(root).place(&entry.destination).ok()?;
    let facts = open::facts(covered.as_fd()).ok()?;
    facts.is_dir().then(|| format!("{:o}", facts.mode & 0o7777))
}

/// One entry; a mount that is to be made read-only when all are there is returned.
fn mount_one(
    root: BorrowedFd<'_>,
    entry: &MountPlan,
    bind: Option<&Option<OwnedFd>>,
    prepared: &Prepared,
) -> Result<Option<OwnedFd>, StepError> {
    match (&entry.source, bind) {
        (Source::Bind { .. }, Some(Some(tree))) => attach_bind(root, entry, tree.as_fd()).map(|()| None),
        (Source::Bind { path, .. }, _) => {
            Err(StepError::other(format!("`{}` was not opened", path.display())))
        }
        (Source::Cgroup, _) => mount_cgroups(root, entry, &prepared.cgroups).map(|()| None),
        (
            Source::Fresh {
                kind,
                source,
                options,
            },
            _,
        ) => {
            let what = || format!("mount {kind} at `{}`", entry.destination.display());
            let mode = covered_mode(root, entry, kind, options);
            let target = folder(root, &entry.destination, kind)?;
            // A tmpfs is made read-only when what belongs into it (devices, mount points) is there.
            let readonly = if kind == "tmpfs" {
                libc::MOUNT_ATTR_RDONLY
            } else {
                0
            };
            let attributes = entry.attributes.set & !readonly;
            let mode: Vec<_> = mode
                .map(|mode| ("mode".to_owned(), Some(mode)))
                .into_iter()
                .collect();
            let options = [&mode, options.as_slice()].concat();
            let tree = make_fresh(kind, source, &options, attributes).map_err(|e| match e {
                FreshError::Io(e) => StepError::io(what(), e),
                FreshError::Told(e, told) => StepError::io(what(), format!("{e} ({told})")),
            })?;
            finish_mount(tree.as_fd(), entry, what)?;
            mount::move_to(tree.as_fd(), target.as_fd()).to(what)?;
            leave_open(target);
            if entry.attributes.set & readonly != 0 {
                return Ok(Some(tree));
            }
            leave_open(tree);
            Ok(None)
        }
    }
}

fn attach_bind(root: BorrowedFd<'_>, entry: &MountPlan, tree: BorrowedFd<'_>) -> Result<(), StepError> {
    let what = || format!("bind to `{}`", entry.destination.display());
    let inside = Inside(root);
    let target = if open::facts(tree).to(what)?.is_dir() {
        inside.make_dir(&entry.destination)
    } else {
        inside.make_file(&entry.destination)
    };
    let target = target.to(|| format!("make the mount point `{}`", entry.destination.display()))?;
    mount::move_to(tree, target.as_fd()).to(what)?;
    leave_open(target);
    Ok(())
}

/// Where a file system goes. procfs and sysfs must be at real folders: a link would let the image choose another
/// place, and what is written to `/proc` later would go to files of the image.
fn folder(root: BorrowedFd<'_>, path: &Path, kind: &str) -> Result<OwnedFd, StepError> {
    let what = || format!("make the mount point `{}`", path.display());
    let inside = Inside(root);
    if kind != "proc" && kind != "sysfs" {
        return inside.make_dir(path).to(what);
    }
    match inside.make_real_dir(path) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => Err(StepError::new(
            ErrorKind::Invalid,
            format!(
                "{kind} must be mounted on ordinary directory, which `{}` in the rootfs is not",
                path.display()
            ),
        )),
        other => other.to(what),
    }
}

enum FreshError {
    Io(io::Error),
    Told(io::Error, String),
}

impl From<io::Error> for FreshError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn make_fresh(
    kind: &str,
    source: &str,
    options: &[(String, Option<String>)],
    attributes: u64,
) -> Result<OwnedFd, FreshError> {
    let context = FsContext::open(kind)?;
    let told = |context: &FsContext, error: io::Error| match context.messages() {
        text if text.is_empty() => FreshError::Io(error),
        text => FreshError::Told(error, text),
    };
    context.string("source", source)?;
    for (key, value) in options {
        let set = match value {
            Some(value) => context.string(key, value),
            None => context.flag(key),
        };
        set.map_err(|e| told(&context, io::Error::other(format!("option `{key}`: {e}"))))?;
    }
    context.create().map_err(|e| told(&context, e))?;
    let tree = context.mount(attributes)?;
    leave_open(context.into());
    Ok(tree)
}

/// Attributes and propagation, while the mount is still detached.
pub(crate) fn finish_mount<D: std::fmt::Display>(
    tree: BorrowedFd<'_>,
    entry: &MountPlan,
    what: impl Fn() -> D,
) -> Result<(), StepError> {
    // A fresh mount was made with its attributes; setting them again changes nothing.
    let fresh = matches!(entry.source, Source::Fresh { .. });
    if !fresh {
        apply(tree, entry.attributes, false).to(&what)?;
    }
    apply(tree, entry.recursive_attributes, true).to(&what)?;
    for Propagation { flag, recursive } in &entry.propagation {
        let change = Attributes {
            propagation: *flag,
            ..Attributes::default()
        };
        mount::set_attributes(tree, change, *recursive).to(&what)?;
    }
    Ok(())
}

fn apply(tree: BorrowedFd<'_>, attributes: MountAttributes, recursive: bool) -> io::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    let change = Attributes {
        set: attributes.set,
        clear: attributes.clear,
        propagation: 0,
    };
    mount::set_attributes(tree, change, recursive)
}

fn set(tree: BorrowedFd<'_>, attributes: u64, what: &str) -> Result<(), StepError> {
    let change = Attributes {
        set: attributes,
        ..Attributes::default()
    };
    mount::set_attributes(tree, change, false).to(|| what)
}

/// The container's own cgroups. Where the host has several hierarchies: a tmpfs with a folder for each.
fn mount_cgroups(root: BorrowedFd<'_>, entry: &MountPlan, trees: &[CgroupTree]) -> Result<(), StepError> {
    let what = || format!("mount cgroups at `{}`", entry.destination.display());
    let target = Inside(root).make_dir(&entry.destination).to(what)?;
    if let [only] = trees
        && only.name.is_empty()
    {
        apply(only.tree.as_fd(), entry.attributes, false).to(what)?;
        return mount::move_to(only.tree.as_fd(), target.as_fd()).to(what);
    }
    let tmpfs = FsContext::open("tmpfs").to(what)?;
    tmpfs.string("mode", "755").to(what)?;
    tmpfs.string("source", "tmpfs").to(what)?;
    tmpfs.create().to(what)?;
    let base = tmpfs
        .mount(entry.attributes.set & !libc::MOUNT_ATTR_RDONLY)
        .to(what)?;
    mount::move_to(base.as_fd(), target.as_fd()).to(what)?;
    for tree in trees {
        let place = Inside(base.as_fd())
            .make_dir(&PathBuf::from("/").join(&tree.name))
            .to(what)?;
        apply(tree.tree.as_fd(), entry.attributes, false).to(what)?;
        mount::move_to(tree.tree.as_fd(), place.as_fd()).to(what)?;
        for link in &tree.links {
            match unistd::symlinkat(tree.name.as_str(), Some(base.as_raw_fd()), link.as_str()) {
                Ok(()) | Err(nix::Error::EEXIST) => {}
                Err(e) => return Err(e).to(what),
            }
        }
    }
    apply(base.as_fd(), entry.attributes, false).to(what)
}

/// The folder that the process starts in, made while the root can still be written to.
fn make_cwd(root: BorrowedFd<'_>, cwd: &Path) -> Result<(), StepError> {
    if cwd == Path::new("/") {
        return Ok(());
    }
    match Inside(root).make_dir(&crate::plan::clean(cwd)) {
        Ok(_) => Ok(()),
        // A root that is read-only already, or a file in the way: entering it will tell.
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EROFS | libc::EEXIST | libc::ENOTDIR | libc::EACCES)
            ) =>
        {
            Ok(())
        }
        Err(e) => Err(StepError::io(format!("make process.cwd `{}`", cwd.display()), e)),
    }
}

fn pivot_into(root: BorrowedFd<'_>) -> Result<(), StepError> {
    let what = || "change into the rootfs";
    let new = open::openat2(root, Path::new("."), libc::O_RDONLY | libc::O_DIRECTORY, 0, 0).to(what)?;
    let old = open::place(Path::new("/")).to(|| "open /")?;
    unistd::fchdir(new.as_raw_fd()).to(what)?;
    mount::pivot_root_here().to(|| "pivot_root into the rootfs")?;
    // The old root lies over the new one now, but "." is still the new one, whose shared mounts must stay shared. The
    // old one's unmounting must not reach the host.
    unistd::fchdir(old.as_raw_fd()).to(|| "change into the old root")?;
    mount::set_top_propagation(Path::new("."), libc::MS_SLAVE).to(what)?;
    mount::detach(Path::new(".")).to(|| "unmount the old root")?;
    leave_open(old);
    leave_open(new);
    unistd::chdir("/").to(what)
}

/// Without pivot_root (whose old root can't be unmounted on an initramfs): the rootfs lies over `/` already.
fn move_into(root: BorrowedFd<'_>) -> Result<(), StepError> {
    let what = || "change into the rootfs";
    let new = open::openat2(root, Path::new("."), libc::O_RDONLY | libc::O_DIRECTORY, 0, 0).to(what)?;
    unistd::fchdir(new.as_raw_fd()).to(what)?;
    hide_host_kernel_files()?;
    unistd::chroot(".").to(what)?;
    unistd::chdir("/").to(what)
}

/// The host's procfs and sysfs stay reachable behind a chroot by those who can break out of one: they go.
fn hide_host_kernel_files() -> Result<(), StepError> {
    for path in ["/proc", "/sys"] {
        match mount::detach(Path::new(path)) {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::EPERM)) => {}
            Err(e) => return Err(StepError::io(format!("unmount the host's {path}"), e)),
        }
    }
    Ok(())
}

fn propagate_root(plan: &InitPlan) -> Result<(), StepError> {
    let Some(propagation) = plan.root_propagation else {
        return Ok(());
    };
    let slash = open::place(Path::new("/")).to(|| "open /")?;
    let change = Attributes {
        propagation: propagation.flag,
        ..Attributes::default()
    };
    // Not recursively: the mounts have the propagation that each was given.
    mount::set_attributes(slash.as_fd(), change, false).to(|| "set linux.rootfsPropagation")
}
