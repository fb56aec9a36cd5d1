//! Reading and writing the kernel's interface files, with errors that name them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use crate::CgroupError;

/// One write(2) of the whole value: interface files take a value per write.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    write_once(path, value).map_err(|e| CgroupError::write(path, value, e))
}

pub(crate) fn write_once(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

pub(crate) fn open_for_write(path: &Path) -> Result<File, CgroupError> {
    let opened = OpenOptions::new().write(true).open(path);
    opened.map_err(|source| CgroupError::Open {
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn read(path: &Path) -> Result<String, CgroupError> {
    read_once(path).map_err(|e| CgroupError::read(path, e))
}

/// No interface file is larger than a few pages, but for the pids of a huge cgroup.
fn read_once(path: &Path) -> io::Result<String> {
    const MOST: u64 = 64 << 20;
    let bytes = oci_runtime_sys::open::read_lines(path, 4096, MOST)?;
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// `None` when the file is not there, is not supported, or the cgroup is just going away.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<String>, CgroupError> {
    match read_once(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if is_absent(&e) || e.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(CgroupError::read(path, e)),
    }
}

/// ENOENT, or ENODEV from a file whose cgroup was removed after the open.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}
