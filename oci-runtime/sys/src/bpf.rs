//! Device filters: eBPF programs of type cgroup device, attached to a cgroup v2 directory.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use crate::{check, owned};

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_QUERY: libc::c_long = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;
/// The kernel attaches at most 64 programs of a type to a cgroup.
const MAX_ATTACHED: usize = 64;

/// The start of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The same for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// The same for BPF_PROG_QUERY.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// The same for BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are a prefix of the kernel's union, whose size is given; what they point to is alive in
    // the caller. Missing fields read as zero.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    })
}

/// Loads a device filter: an array of `struct bpf_insn`, 8 bytes each.
///
/// # Errors
/// The kernel's; `EINVAL` or `EACCES` for a program that its verifier refuses.
pub fn load_device_filter(instructions: &[u64]) -> io::Result<OwnedFd> {
    let count = u32::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let mut attributes = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: count,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    owned(bpf(PROG_LOAD, &mut attributes)?)
}

/// Attaches a device filter to a cgroup beside those of its ancestors, in the place of `replaced` if given.
///
/// # Errors
/// The kernel's.
pub fn attach_device_filter(
    cgroup: BorrowedFd<'_>,
    filter: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attributes = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: filter.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI | if replaced.is_some() { REPLACE } else { 0 },
        replace_bpf_fd: replaced.map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    bpf(PROG_ATTACH, &mut attributes).map(drop)
}

/// Detaches a device filter from a cgroup.
///
/// # Errors
/// The kernel's; `ENOENT` when it is not attached there.
pub fn detach_device_filter(cgroup: BorrowedFd<'_>, filter: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: filter.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        ..Attach::default()
    };
    bpf(PROG_DETACH, &mut attributes).map(drop)
}

/// The device filters attached to this very cgroup.
///
/// # Errors
/// The kernel's.
pub fn device_filters(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MAX_ATTACHED];
    let mut attributes = Query {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut attributes)?;
    let found = (attributes.prog_cnt as usize).min(ids.len());
    let open = |id: &u32| {
        owned(bpf(
            PROG_GET_FD_BY_ID,
            &mut ById {
                id: *id,
                ..ById::default()
            },
        )?)
    };
    ids[..found].iter().map(open).collect()
}
