//! What is known of a sandbox or container, as it is on disk.
//!
//! Each has a folder named by its ID with two files. `record.json` changes when its state does: it is written to a
//! temporary name and renamed, so a killed daemon leaves the old one or the new one. `step` holds the name of the step
//! under way (see [`Step`]) in one block of fixed size, written in one go, because it changes ten times as often.
//!
//! Bytes reach the disk within half a second, by a thread of its own ([`super::sync`]), not before the answer: a
//! flush takes longer than creating a container, and what a power cut could take is only the memory of something
//! that the power cut has ended itself. A record that is torn then counts as half-created, and is removed.
//!
//! The CRI configurations in records are in protobuf, which keeps fields that this build doesn't know.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri_api::v1::{ContainerConfig, PodSandboxConfig};
use cri_api::{ContainerId, PodSandboxId};
use serde::{Deserialize, Serialize};

use crate::lifecycle::Step;

/// The size of a `step` file.
pub const STEP_BYTES: usize = 64;
const RECORD: &str = "record.json";
const RECORD_NEW: &str = "record.json.new";
const STEP: &str = "step";

/// A record that can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} record `{path}`")]
pub struct RecordError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl RecordError {
    fn of(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { what, path, source }
    }

    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// A sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its ID.
    #[serde(with = "id")]
    pub id: PodSandboxId,
    /// `name_namespace_uid_attempt`, unique.
    pub name: String,
    /// What the kubelet asked for.
    #[serde(with = "protobuf")]
    pub config: Arc<PodSandboxConfig>,
    /// As asked for; empty is the default.
    pub runtime_handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The machine's boot in which it was made.
    pub boot_id: String,
    /// Which namespaces it owns.
    pub namespaces: Owned,
    /// The cgroup above its containers.
    pub cgroup_parent: CgroupParent,
    /// Its addresses, the primary first.
    pub ips: Vec<IpAddr>,
    /// Where it is in its life.
    pub phase: SandboxPhase,
    /// What else the kubelet may have changed later.
    #[serde(default)]
    pub limits: PodLimits,
}

/// Namespaces that the sandbox made and pinned; the others are the node's or each container's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Owned {
    /// The user namespace, which owns the others.
    pub user: bool,
    /// The network namespace; without it the pod is on the node's network.
    pub network: bool,
    /// The IPC namespace.
    pub ipc: bool,
    /// The UTS namespace.
    pub uts: bool,
    /// A PID namespace that containers share, with an init of the pod's own.
    pub pid: bool,
}

/// The cgroup above a sandbox's containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupParent {
    /// The kubelet's, by its absolute path or the slice's name; it makes and removes it.
    Given(String),
    /// Nobody gave one, so this one is the sandbox's own.
    Ours(String),
}

impl CgroupParent {
    /// Its name: an absolute path, or that of a slice.
    pub fn name(&self) -> &str {
        match self {
            Self::Given(path) | Self::Ours(path) => path,
        }
    }
}

/// Pod-level limits in protobuf terms, kept for status and for a later comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodLimits {
    /// Sum over the pod.
    #[serde(with = "optional_protobuf", default)]
    pub resources: Option<cri_api::v1::LinuxContainerResources>,
    /// What the sandbox itself costs.
    #[serde(with = "optional_protobuf", default)]
    pub overhead: Option<cri_api::v1::LinuxContainerResources>,
}

/// Where a sandbox is in its life.
///
/// ```text
///   Creating ──> Ready ──> Stopped ──> (removed)
///                  └─> Lost ──^
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxPhase {
    /// Not yet known to anybody.
    Creating,
    /// Takes containers.
    Ready,
    /// Its shim is dead; it takes no containers any more, but still holds its network.
    Lost,
    /// It holds nothing but its record.
    Stopped,
}

/// A container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its ID.
    #[serde(with = "id")]
    pub id: ContainerId,
    /// The sandbox it is in.
    #[serde(with = "id")]
    pub sandbox: PodSandboxId,
    /// `container_pod_namespace_uid_attempt`, unique.
    pub name: String,
    /// What the kubelet asked for.
    #[serde(with = "protobuf")]
    pub config: Arc<ContainerConfig>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The image it was made of.
    pub image_id: String,
    /// The image's digest reference as of then, or else its ID.
    pub image_ref: String,
    /// Where its log goes.
    pub log_path: Option<PathBuf>,
    /// Its cgroup, by an absolute path or `slice:prefix:name`.
    pub cgroup: String,
    /// The number of the signal that asks it to stop.
    pub stop_signal: i32,
    /// Who it runs as.
    pub user: User,
    /// Whether its init is the first process of a PID namespace of its own, so that all end with it.
    pub own_pid_namespace: bool,
    /// Images mounted as volumes: the container path, and the ID of what is there.
    #[serde(default)]
    pub image_mounts: BTreeMap<String, String>,
    /// Where it is in its life.
    pub phase: ContainerPhase,
}

/// Who a container runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// All supplementary groups.
    pub groups: Vec<u32>,
}

/// Where a container is in its life.
///
/// ```text
///   Creating ──> Created ──> Running ──> Exited ──> (removed)
///                   └── start failed ──────^
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// Not yet known to anybody.
    Creating,
    /// Init waits.
    Created {
        /// Init's process ID.
        pid: i32,
    },
    /// Init runs.
    Running {
        /// Init's process ID.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Init has ended, or never ran.
    Exited(Ended),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Nanoseconds since the epoch; 0 if it never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// The exit code, or 128 plus the signal's number.
    pub code: i32,
    /// Why.
    pub cause: Cause,
}

/// Why a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// By itself or by a signal.
    Exit,
    /// The kernel's OOM killer.
    OomKilled,
    /// It could not be started; with the reason.
    StartError(String),
    /// Orlop lost it; with the reason.
    Lost(String),
}

/// Reads what a folder holds: the record, if it is whole, and the step under way.
///
/// # Errors
/// When the disk fails; a record that is absent or torn is `None`.
pub fn read<T: serde::de::DeserializeOwned>(folder: &Path) -> Result<(Option<T>, Option<Step>), RecordError> {
    let path = folder.join(RECORD);
    let record = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "record is damaged"))
            .ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(RecordError::of("read", &path)(error)),
    };
    let path = folder.join(STEP);
    let step = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().ok(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => None,
        Err(error) => return Err(RecordError::of("read", &path)(error)),
    };
    Ok((record, step))
}

/// The mode of what is written down.
const PRIVATE: u32 = 0o600;
/// The mode of folders: containers' users pass through to their volumes, and nobody lists.
const FOLDER: u32 = 0o711;

/// Writes the record; the folder must exist. Returns the path of what must reach the disk.
///
/// # Errors
/// When the disk is full or fails; the old record stays then.
pub fn write<T: Serialize>(folder: &Path, record: &T) -> Result<PathBuf, RecordError> {
    let path = folder.join(RECORD);
    let new = folder.join(RECORD_NEW);
    let bytes = serde_json::to_vec(record)
        .map_err(io::Error::from)
        .map_err(RecordError::of("encode", &path))?;
    write_private(&new, &bytes)
        .and_then(|()| fs::rename(&new, &path))
        .inspect_err(|_| drop(fs::remove_file(&new)))
        .map_err(RecordError::of("write", &path))
        .or_else(|error| {
            if error.is_no_space() {
                overwrite(&path, &bytes)
            } else {
                Err(error)
            }
        })?;
    Ok(path)
}

/// Writes the record over the old one, into the room that it has: on a full disk pods must still stop and go. One
/// write of less than a page is whole also when the daemon is killed; only a power cut could tear it, which makes the
/// record one of a half-made pod.
fn overwrite(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let fail = |error| RecordError::of("write", path)(error);
    let file = OpenOptions::new().write(true).open(path).map_err(fail)?;
    let old = file.metadata().map_err(fail)?.len();
    // JSON may end in blanks, so that the old end needs no second call.
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().max(usize::try_from(old).unwrap_or(0)), b' ');
    file.write_all_at(&padded, 0).map_err(fail)
}

/// Writes which step is under way, or that none is.
///
/// # Errors
/// When the disk is full or fails.
pub fn write_step(folder: &Path, step: Option<Step>) -> Result<(), RecordError> {
    let mut block = [b' '; STEP_BYTES];
    let name = step.map_or("-", Step::name).as_bytes();
    block[..name.len()].copy_from_slice(name);
    let path = folder.join(STEP);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .open(&path)
        .and_then(|file| file.write_all_at(&block, 0))
        .map_err(RecordError::of("write", &path))
}

/// Makes the folder.
///
/// # Errors
/// When it exists, or the disk is full or fails.
pub fn make_folder(folder: &Path) -> Result<(), RecordError> {
    DirBuilder::new()
        .mode(FOLDER)
        .create(folder)
        .map_err(RecordError::of("make", folder))
}

/// Makes the folder of folders, if it isn't there: its names are nobody else's business.
///
/// # Errors
/// When the disk is full or fails.
pub fn make_parent(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(FOLDER))
}

/// Writes a file that only root may read: containers' environments hold secrets.
///
/// # Errors
/// When the disk is full or fails.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE)
        .open(path)?;
    file.write_all(bytes)
}

/// Removes the folder and all in it; absent is fine. The step goes last, so that a removal cut in the middle is
/// still known as one.
///
/// # Errors
/// When the disk fails.
pub fn remove_folder(folder: &Path) -> Result<(), RecordError> {
    for name in [RECORD, RECORD_NEW, STEP] {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RecordError::of("remove", &folder.join(name))(error));
            }
            _ => {}
        }
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RecordError::of("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// The names of the folders in a folder, sorted; an absent one has none.
///
/// # Errors
/// When it can't be read.
pub fn folders(parent: &Path) -> Result<Vec<String>, RecordError> {
    let failed = |error| RecordError::of("list", parent)(error);
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

mod id {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(d: D) -> Result<T, D::Error>
    where
        T::Err: std::fmt::Display,
    {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

mod protobuf {
    use std::sync::Arc;

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use prost::Message;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<M: Message, S: Serializer>(message: &Arc<M>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(message.encode_to_vec()))
    }

    pub(super) fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Arc<M>, D::Error> {
        let bytes = STANDARD
            .decode(String::deserialize(d)?)
            .map_err(D::Error::custom)?;
        M::decode(bytes.as_slice())
            .map(Arc::new)
            .map_err(D::Error::custom)
    }
}

mod optional_protobuf {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use prost::Message;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    pub(super) fn serialize<M: Message, S: Serializer>(message: &Option<M>, s: S) -> Result<S::Ok, S::Error> {
        let text = message.as_ref().map(|m| STANDARD.encode(m.encode_to_vec()));
        text.serialize(s)
    }

    pub(super) fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<M>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else {
            return Ok(None);
        };
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice()).map(Some).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    #[test]
    fn records_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let record = testing::container(1, 2);
        let path = write(dir.path(), &record).unwrap();
        assert!(path.ends_with(RECORD));
        write_step(dir.path(), Some(Step::ContainerInit)).unwrap();
        let (read_back, step) = read::<ContainerRecord>(dir.path()).unwrap();
        assert_eq!(format!("{:?}", read_back.unwrap()), format!("{record:?}"));
        assert_eq!(step, Some(Step::ContainerInit));
        write_step(dir.path(), None).unwrap();
        assert_eq!(read::<ContainerRecord>(dir.path()).unwrap().1, None);
        let sandbox = testing::sandbox(2);
        write(dir.path(), &sandbox).unwrap();
        let read_back = read::<SandboxRecord>(dir.path()).unwrap().0.unwrap();
        assert_eq!(format!("{read_back:?}"), format!("{sandbox:?}"));
    }

    #[test]
    fn a_record_fits_over_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &testing::container(1, 2)).unwrap();
        let shorter = serde_json::to_vec(&testing::container(1, 2)).unwrap();
        fs::write(&path, [shorter.as_slice(), b"   "].concat()).unwrap();
        overwrite(&path, &shorter).unwrap();
        assert!(read::<ContainerRecord>(dir.path()).unwrap().0.is_some());
        assert!(overwrite(&dir.path().join("absent"), b"{}").is_err());
    }

    #[test]
    fn a_torn_record_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        for torn in ["", "{\"id\":", "\0\0\0"] {
            fs::write(dir.path().join(RECORD), torn).unwrap();
            fs::write(dir.path().join(STEP), torn).unwrap();
            let (record, step) = read::<SandboxRecord>(dir.path()).unwrap();
            assert!(record.is_none() && step.is_none());
        }
    }

    #[test]
    fn folders_go_and_may_be_gone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("x");
        make_folder(&folder).unwrap();
        assert!(make_folder(&folder).is_err());
        write_step(&folder, Some(Step::SandboxForget)).unwrap();
        assert_eq!(folders(dir.path()).unwrap(), ["x"]);
        remove_folder(&folder).unwrap();
        remove_folder(&folder).unwrap();
        assert!(folders(&folder).unwrap().is_empty());
    }
}
