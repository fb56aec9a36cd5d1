//! Kernel settings below /proc/sys/net: those of the calling thread's network namespace.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A setting can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} `{}`", path.display())]
pub struct SysctlError {
    what: String,
    path: PathBuf,
    source: io::Error,
}

impl SysctlError {
    /// Whether this kernel has no such setting.
    pub fn is_absent(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// The file of a setting: its parts, for example `["net", "ipv4", "conf", "eth0", "arp_notify"]`. Refuses parts
/// that would lead elsewhere.
pub fn sysctl_path(parts: &[&str]) -> Result<PathBuf, SysctlError> {
    let mut path = Path::new("/proc/sys").to_owned();
    for part in parts {
        path.push(part);
        if part.is_empty() || *part == "." || *part == ".." || part.contains(['/', '\0']) {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(SysctlError {
                what: "use the setting".into(),
                path,
                source,
            });
        }
    }
    Ok(path)
}

/// Reads a setting, without the line's end.
pub fn read_sysctl(parts: &[&str]) -> Result<String, SysctlError> {
    let path = sysctl_path(parts)?;
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(SysctlError {
            what: "read".into(),
            path,
            source,
        }),
    }
}

/// Writes a setting unless it has that value already.
pub fn write_sysctl(parts: &[&str], value: &str) -> Result<(), SysctlError> {
    if read_sysctl(parts)? == value {
        return Ok(());
    }
    let path = sysctl_path(parts)?;
    fs::write(&path, value).map_err(|source| SysctlError {
        what: format!("write {value:?} to"),
        path,
        source,
    })
}
