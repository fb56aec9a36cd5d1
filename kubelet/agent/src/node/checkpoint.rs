//! State that survives restarts: one file each, written whole or not at all, with a checksum.
//!
//! A file is written beside its place, flushed, renamed over it, and the folder flushed. The checksum is upstream's
//! (FNV-1a of 32 bits over the value as Go's spew prints it), so that upstream's kubelet reads our files and we its.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Largest file that is read.
const MOST: u64 = 16 << 20;

/// Why a checkpoint couldn't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file can't be read.
    #[error("failed to read checkpoint `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file can't be written.
    #[error("failed to write checkpoint `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file isn't in the format; worded as upstream.
    #[error(
        "could not restore state from checkpoint: {reason}, please drain this node and delete the checkpoint file {path:?} before restarting Kubelet"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl CheckpointError {
    /// A file that isn't in the format.
    #[must_use]
    pub fn corrupt(path: &Path, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// Upstream's checksum of a value, given as Go's spew prints it.
#[must_use]
pub fn checksum(dump: &str) -> u32 {
    dump.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Upstream's checksum of a text.
#[must_use]
pub fn checksum_of_text(text: &str) -> u32 {
    checksum(&format!("(string){text}"))
}

/// The file's text; `None` when there is no file.
///
/// # Errors
/// When it can't be read, is larger than 16 MiB, or no text.
pub fn read(path: &Path) -> Result<Option<String>, CheckpointError> {
    let failed = |source| CheckpointError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MOST {
        return Err(CheckpointError::corrupt(path, "larger than 16 MiB"));
    }
    Ok(Some(text))
}

/// Replaces the file; after a crash it is the old one or the new one.
///
/// # Errors
/// When it can't be written.
pub fn write(path: &Path, text: &str) -> Result<(), CheckpointError> {
    let beside = path.with_extension("tmp");
    let written = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    written().map_err(|source| CheckpointError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_upstreams() {
        assert_eq!(
            checksum_of_text(r#"{"policyName":"none","defaultCPUSet":"4-6"}"#),
            657_950_972
        );
    }

    #[test]
    fn a_file_is_replaced_whole_and_absence_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert!(read(&path).unwrap().is_none());
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "something is left beside it"
        );
        let nowhere = dir.path().join("no/where");
        assert!(matches!(write(&nowhere, "x"), Err(CheckpointError::Write { .. })));
    }
}
