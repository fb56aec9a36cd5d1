//! The mount API of file descriptors: a mount is made detached, given its attributes, and moved to where an O_PATH
//! descriptor points, so that no path is resolved twice.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr;

use crate::{c_path, c_str, check, owned};

const EMPTY: &CStr = c"";

/// Clones the mount that a descriptor points into (the file or folder itself becomes its root), detached.
///
/// # Errors
/// The kernel's.
pub fn clone_tree(at: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: the string is NUL-terminated and static.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), EMPTY.as_ptr(), flags) })
}

/// Attaches a detached mount (or moves an attached one) to where the descriptor points.
///
/// # Errors
/// The kernel's.
pub fn move_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the strings are NUL-terminated and static.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            EMPTY.as_ptr(),
            target.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
        )
    };
    check(result).map(drop)
}

/// What [`set_attributes`] changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave the propagation.
    pub propagation: u64,
}

/// Changes a mount's attributes, with those of everything below it if `recursive`.
///
/// # Errors
/// The kernel's.
pub fn set_attributes(mount: BorrowedFd<'_>, change: Attributes, recursive: bool) -> io::Result<()> {
    set(mount, change, None, recursive)
}

/// Maps the owners of a detached mount's files through a user namespace's mappings.
///
/// # Errors
/// The kernel's: `EINVAL` also where the file system can't.
pub fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let change = Attributes {
        set: libc::MOUNT_ATTR_IDMAP,
        ..Attributes::default()
    };
    set(mount, change, Some(user_namespace), recursive)
}

fn set(
    mount: BorrowedFd<'_>,
    change: Attributes,
    user_namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the string is static, the struct lives through the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// A new file system instance being configured.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl From<FsContext> for OwnedFd {
    fn from(context: FsContext) -> Self {
        context.0
    }
}

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_FD: u32 = 5;
const FSCONFIG_CMD_CREATE: u32 = 6;

impl FsContext {
    /// Begins to make a file system of a type, e.g. `tmpfs`.
    ///
    /// # Errors
    /// The kernel's: `ENODEV` for an unknown type.
    pub fn open(kind: &str) -> io::Result<Self> {
        let kind = c_str(kind)?;
        // SAFETY: the string is NUL-terminated and lives through the call. 1 is FSOPEN_CLOEXEC.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) }).map(Self)
    }

    fn config(
        &self,
        command: u32,
        key: Option<&CStr>,
        value: *const libc::c_char,
        aux: i32,
    ) -> io::Result<()> {
        let key = key.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are null or NUL-terminated and live through the call.
        let result =
            unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key, value, aux) };
        check(result).map(drop)
    }

    /// Sets an option with a value.
    ///
    /// # Errors
    /// The kernel's.
    pub fn string(&self, key: &str, value: &str) -> io::Result<()> {
        self.config(FSCONFIG_SET_STRING, Some(&c_str(key)?), c_str(value)?.as_ptr(), 0)
    }

    /// Sets an option whose value is a path.
    ///
    /// # Errors
    /// The kernel's.
    pub fn path(&self, key: &str, value: &Path) -> io::Result<()> {
        self.config(
            FSCONFIG_SET_STRING,
            Some(&c_str(key)?),
            c_path(value)?.as_ptr(),
            0,
        )
    }

    /// Sets an option without a value.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        self.config(FSCONFIG_SET_FLAG, Some(&c_str(key)?), ptr::null(), 0)
    }

    /// Sets an option whose value is a descriptor.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fd(&self, key: &str, value: BorrowedFd<'_>) -> io::Result<()> {
        self.config(
            FSCONFIG_SET_FD,
            Some(&c_str(key)?),
            ptr::null(),
            value.as_raw_fd(),
        )
    }

    /// Creates the file system, with the options set so far.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(&self) -> io::Result<()> {
        self.config(FSCONFIG_CMD_CREATE, None, ptr::null(), 0)
    }

    /// Makes a detached mount of the created file system with `MOUNT_ATTR_*` attributes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mount(&self, attributes: u64) -> io::Result<OwnedFd> {
        // SAFETY: takes numbers only. 1 is FSMOUNT_CLOEXEC.
        owned(unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                1,
                attributes as libc::c_uint,
            )
        })
    }

    /// What the kernel has to say about the last error, in its words; empty when nothing.
    #[must_use]
    pub fn messages(&self) -> String {
        let mut text = String::new();
        let mut line = [0u8; 512];
        // The kernel's log holds eight messages.
        for _ in 0..8 {
            // SAFETY: the buffer is as long as said.
            let read = unsafe { libc::read(self.0.as_raw_fd(), line.as_mut_ptr().cast(), line.len()) };
            let Ok(length) = usize::try_from(read) else { break };
            let message = String::from_utf8_lossy(&line[..length]);
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(message.trim_end().trim_start_matches("e "));
        }
        text
    }
}

/// `pivot_root(".", ".")`: the current folder becomes the root, and the old root is mounted over it.
///
/// # Errors
/// The kernel's.
pub fn pivot_root_here() -> io::Result<()> {
    let dot = c".";
    // SAFETY: the strings are NUL-terminated and static.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, dot.as_ptr(), dot.as_ptr()) }).map(drop)
}

/// Sets the propagation of what is mounted on top at a path, and of everything below it.
///
/// # Errors
/// The kernel's.
pub fn set_top_propagation(path: &Path, propagation: u64) -> io::Result<()> {
    let path = c_path(path)?;
    let none: *const libc::c_char = ptr::null();
    let flags = propagation | libc::MS_REC;
    // SAFETY: the string is NUL-terminated and lives through the call; a change of propagation reads nothing else.
    check(unsafe { libc::mount(none, path.as_ptr(), none, flags, ptr::null()) }.into()).map(drop)
}

/// Detaches what is mounted at a path, following no symbolic link.
///
/// # Errors
/// The kernel's.
pub fn detach(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the string is NUL-terminated and lives through the call.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) }.into()).map(drop)
}
