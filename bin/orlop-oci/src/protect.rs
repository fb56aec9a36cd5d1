//! The host's executable must stay out of containers' reach (CVE-2019-5736).
//!
//! A process in a container that gets at `/proc/PID/exe` of a runtime's process could open it and write to the host's
//! file. So what makes containers' processes is not executed from that file: this program executes itself once more,
//! from a read-only overlay that exists only for that (no bytes are copied, and there is no upper layer to write to),
//! or where that fails from a sealed memory file.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use oci_runtime_sys::mount::FsContext;
use oci_runtime_sys::{open, process};

/// Returns when this process runs from a protected copy; executes one otherwise.
pub(crate) fn ensure() -> io::Result<()> {
    let own = File::open("/proc/self/exe")?;
    if is_protected(&own)? {
        return Ok(());
    }
    let copy = overlay().or_else(|_| memory_copy(own))?;
    let args = std::env::args_os().map(|arg| CString::new(arg.into_vec()));
    let env = std::env::vars_os().map(|(key, value)| {
        let mut entry = key.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        CString::new(entry)
    });
    let args: Vec<CString> = args.collect::<Result<_, _>>()?;
    let env: Vec<CString> = env.collect::<Result<_, _>>()?;
    Err(process::execve_fd(copy.as_fd(), &args, &env))
}

fn is_protected(own: &File) -> io::Result<bool> {
    Ok(match open::magic(own.as_fd())? {
        open::OVERLAY_MAGIC => open::is_read_only(own.as_fd())?,
        open::TMPFS_MAGIC => process::is_sealed(own.as_fd()),
        _ => false,
    })
}

/// The program's folder through an overlay of lower layers only, not attached anywhere.
fn overlay() -> io::Result<OwnedFd> {
    let path = std::fs::read_link("/proc/self/exe")?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    if folder
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .any(|b| b":,\\".contains(b))
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // What is open on the way is closed by executing.
    let overlay = ManuallyDrop::new(FsContext::open("overlay")?);
    overlay.string("source", "orlop-oci")?;
    // An overlay without an upper layer wants two lower ones. The second is any other that every host has: names are
    // found in the first, and nobody ever sees this mount's folder.
    overlay.string("lowerdir", &format!("{}:/sys", folder.display()))?;
    overlay.create()?;
    const RDONLY_NODEV_NOSUID: u64 = 1 | 2 | 4;
    let root = ManuallyDrop::new(overlay.mount(RDONLY_NODEV_NOSUID)?);
    const O_RDONLY: i32 = 0;
    open::openat2(root.as_fd(), Path::new(name), O_RDONLY, 0, open::RESOLVE_BENEATH)
}

fn memory_copy(mut own: File) -> io::Result<OwnedFd> {
    let mut copy = File::from(process::memfd("orlop-oci")?);
    io::copy(&mut own, &mut copy)?;
    process::seal(copy.as_fd())?;
    Ok(copy.into())
}
