//! Scheduling and limits.

use std::io;
use std::mem::size_of;

use crate::check;

/// The kernel's `sched_attr`, in its first version.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Filled in by [`set_scheduler`].
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the normal policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// For the deadline policy, nanoseconds.
    pub runtime: u64,
    /// For the deadline policy, nanoseconds.
    pub deadline: u64,
    /// For the deadline policy, nanoseconds.
    pub period: u64,
}

/// Sets policy and parameters.
///
/// # Errors
/// The kernel's.
pub fn set_scheduler(mut attr: SchedAttr) -> io::Result<()> {
    attr.size = size_of::<SchedAttr>() as u32;
    // SAFETY: the struct lives through the call and says its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(drop)
}

/// Sets the I/O priority: class (1 real-time, 2 best effort, 3 idle) and level.
///
/// # Errors
/// The kernel's.
pub fn set_io_priority(class: u16, level: u16) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    let value = i32::from(class) << 13 | i32::from(level);
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) }).map(drop)
}

/// Sets a resource limit (`RLIMIT_*`) of a process; 0 is the caller.
///
/// # Errors
/// The kernel's: `EPERM` for raising a hard limit without CAP_SYS_RESOURCE.
pub fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the new limit lives through the call, and the old one isn't asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, none) }).map(drop)
}

/// A resource limit of a process, soft and hard; 0 is the caller.
///
/// # Errors
/// The kernel's.
pub fn limit(pid: i32, resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let none = std::ptr::null::<libc::rlimit64>();
    // SAFETY: the old limit lives through the call, and no new one is given.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, none, &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}
