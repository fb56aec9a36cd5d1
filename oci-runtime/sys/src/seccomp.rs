//! Loading a seccomp program.

use std::io;

use crate::check;

const SET_MODE_FILTER: libc::c_uint = 1;

/// Loads a program, an array of `sock_filter` as bytes, for the calling thread and its children.
///
/// # Errors
/// `EINVAL` for what is no program; `EACCES` without no_new_privs and CAP_SYS_ADMIN.
pub fn load(program: &[u8], flags: u32) -> io::Result<()> {
    let length = program.len() / 8;
    if !program.len().is_multiple_of(8) || length == 0 || length > 4096 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // Bytes may lie anywhere; the kernel copies the array, but its address should fit the type.
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let program = libc::sock_fprog {
        len: length as u16,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: the array has as many instructions as said and lives through the call; the kernel only reads it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) }).map(drop)
}
