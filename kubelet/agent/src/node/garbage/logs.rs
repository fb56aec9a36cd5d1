//! Rotation of the logs of running containers.
//!
//! A log that has reached its size is renamed to `LOG.TIME`, and the runtime is told to open a new one. The next
//! rotation compresses it to `LOG.TIME.gz` (by then nobody writes to it), and the oldest are removed so that as many as
//! wanted are left. Each step can be the last: half a compressed file has a name of its own and is thrown away; a log
//! that was compressed but not removed is removed; and a log that was renamed without the runtime being told is absent
//! at the next look, upon which the runtime is told.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};

const TEMPORARY: &str = ".tmp";
const COMPRESSED: &str = ".gz";
/// Most files of one log that are looked at.
const MOST_FILES: usize = 10_000;

/// CRI's `ReopenContainerLog`.
#[async_trait]
pub trait ReopenLog: Send + Sync {
    /// Has the runtime open the container's log anew.
    ///
    /// # Errors
    /// What the runtime says.
    async fn reopen(&self, container_id: &str) -> Result<(), String>;
}

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `containerLogMaxSize` in bytes; negative: no rotation.
    pub most_bytes: i64,
    /// `containerLogMaxFiles`, the one that is written to among them.
    pub most_files: usize,
}

/// Why a log couldn't be rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// A file.
    #[error("failed to {action} container log `{path}`")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The runtime.
    #[error("failed to reopen container log `{path}`: {reason}")]
    Reopen {
        /// The log.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// There are too many files beside it.
    #[error("failed to rotate container log `{path}`: more than 10000 files of it")]
    TooMany {
        /// The log.
        path: PathBuf,
    },
}

/// What was done with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It isn't large enough.
    Kept,
    /// It was rotated.
    Rotated,
    /// It was absent, and the runtime has made it anew.
    Reopened,
}

/// A step of tidying up what was rotated before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Remove a file.
    Remove(String),
    /// Compress a file.
    Compress(String),
}

/// What is to be done with the files of the log `base` before it is rotated, so that afterwards there are as many as
/// wanted. `names` are all files of its folder.
#[must_use]
pub fn tidy(base: &str, names: &[String], most_files: usize) -> Vec<Step> {
    let prefix = format!("{base}.");
    let mut of_log: Vec<&String> = names.iter().filter(|name| name.starts_with(&prefix)).collect();
    of_log.sort();
    let is_leftover = |name: &str| {
        let compressed = format!("{name}{COMPRESSED}");
        name.ends_with(TEMPORARY) || of_log.iter().any(|other| **other == compressed)
    };
    let (leftovers, rotated): (Vec<&String>, Vec<&String>) =
        of_log.iter().copied().partition(|name| is_leftover(name));
    let mut steps: Vec<Step> = leftovers
        .into_iter()
        .map(|name| Step::Remove(name.clone()))
        .collect();
    // The one that is written to, and the one that it is about to become.
    let keep = most_files.saturating_sub(2);
    let excess = rotated.len().saturating_sub(keep);
    for (index, name) in rotated.into_iter().enumerate() {
        if index < excess {
            steps.push(Step::Remove(name.clone()));
        } else if !name.ends_with(COMPRESSED) {
            steps.push(Step::Compress(name.clone()));
        }
    }
    steps
}

/// Rotates a running container's log if it is large enough.
///
/// # Errors
/// The file or the call that failed; the log is written to as before then, unless the runtime made a new one all the same.
pub async fn rotate(
    policy: &Policy,
    container_id: &str,
    log: &Path,
    runtime: &dyn ReopenLog,
    now: Timestamp,
) -> Result<Outcome, RotationError> {
    let size = match fs::metadata(log) {
        Ok(found) => i64::try_from(found.len()).unwrap_or(i64::MAX),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            reopen(runtime, container_id, log).await?;
            return Ok(Outcome::Reopened);
        }
        Err(source) => return Err(failed("look at", log)(source)),
    };
    if policy.most_bytes < 0 || size < policy.most_bytes {
        return Ok(Outcome::Kept);
    }
    let (path, most_files) = (log.to_owned(), policy.most_files);
    let tidied = tokio::task::spawn_blocking(move || tidy_up(&path, most_files)).await;
    tidied.map_err(|error| failed("tidy up", log)(io::Error::other(error)))??;
    let time = now.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%S");
    let rotated = with_ending(log, &format!(".{time}"));
    fs::rename(log, &rotated).map_err(failed("rename", log))?;
    if let Err(error) = reopen(runtime, container_id, log).await {
        // Else the runtime would write to one that is about to be compressed. Where it made a new one before it failed, or
        // after we stopped waiting, that is the one it writes to.
        match renameat2(None, &rotated, None, log, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed("rename", &rotated)(errno.into())),
        }
        return Err(error);
    }
    Ok(Outcome::Rotated)
}

async fn reopen(runtime: &dyn ReopenLog, container_id: &str, log: &Path) -> Result<(), RotationError> {
    runtime
        .reopen(container_id)
        .await
        .map_err(|reason| RotationError::Reopen {
            path: log.to_owned(),
            reason,
        })
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> RotationError + use<> {
    let path = path.to_owned();
    move |source| RotationError::File {
        action,
        path: path.clone(),
        source,
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn tidy_up(log: &Path, most_files: usize) -> Result<(), RotationError> {
    let dir = log.parent().unwrap_or(Path::new("/"));
    let base = log
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let entries = fs::read_dir(dir).map_err(failed("list", dir))?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed("list", dir))?.file_name().into_string());
        if names.len() > MOST_FILES {
            return Err(RotationError::TooMany { path: log.to_owned() });
        }
    }
    for step in tidy(&base, &names, most_files) {
        match step {
            Step::Remove(name) => {
                let path = dir.join(name);
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
            Step::Compress(name) => {
                let path = dir.join(name);
                compress(&path).map_err(failed("compress", &path))?;
            }
        }
    }
    Ok(())
}

fn compress(path: &Path) -> io::Result<()> {
    let (temporary, compressed) = (with_ending(path, TEMPORARY), with_ending(path, COMPRESSED));
    let mut from = File::open(path)?;
    let mut to = GzEncoder::new(File::create(&temporary)?, Compression::default());
    io::copy(&mut from, &mut to)?;
    let mut done = to.finish()?;
    done.flush()?;
    done.sync_all()?;
    fs::set_permissions(&temporary, from.metadata()?.permissions())?;
    fs::rename(&temporary, &compressed)?;
    fs::remove_file(path)
}
