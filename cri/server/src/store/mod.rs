//! All sandboxes and containers: in memory, and each as a record on disk (see [`record`]).
//!
//! Names (`name_namespace_uid_attempt`) are unique; the index of names is derived from the records, so a name can't
//! be stuck without one. IDs may be abbreviated to any unambiguous beginning, as `crictl` does.

mod entry;
pub mod filter;
pub mod record;
mod sync;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cri_api::{ContainerId, PodSandboxId};

pub use entry::Entry;
pub use record::{
    Cause, CgroupParent, ContainerPhase, ContainerRecord, Ended, Owned, PodLimits, RecordError, STEP_BYTES,
    SandboxPhase, SandboxRecord, User,
};

use crate::lifecycle::Step;
use crate::nri::Told;
use crate::shim::Shim;
use sync::Syncer;

/// Something that the store can't do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The name is taken.
    #[error("the name `{name}` is taken by {kind} {id}")]
    NameTaken {
        /// "sandbox" or "container".
        kind: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// No such thing.
    #[error("there is no {kind} `{id}`")]
    NotFound {
        /// "sandbox" or "container".
        kind: &'static str,
        /// As the caller said it.
        id: String,
    },
    /// The abbreviation fits several.
    #[error("`{id}` is the beginning of more than one {kind} ID; use more digits")]
    Ambiguous {
        /// "sandbox" or "container".
        kind: &'static str,
        /// As the caller said it.
        id: String,
    },
    /// The thread that flushes can't be had.
    #[error("failed to start the thread that flushes records")]
    Thread(#[source] io::Error),
    /// A folder of the store can't be made.
    #[error("failed to make the folder `{path}`")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A sandbox.
pub struct Sandbox {
    /// Its ID.
    pub id: PodSandboxId,
    /// Its record.
    pub entry: Entry<SandboxRecord>,
    /// Making a container in it takes this for reading; stopping, removing, undoing and taking it up, for writing.
    pub gate: tokio::sync::RwLock<()>,
    /// What NRI plugins were told of it.
    pub told: Told,
    shim: Mutex<ShimLink>,
}

/// What is known of a sandbox's shim.
#[derive(Clone, Default)]
pub enum ShimLink {
    /// It is dead, or was never started.
    #[default]
    None,
    /// It lives as far as is known.
    Live(Arc<dyn Shim>),
    /// It may live, and couldn't be reached since the daemon started; that is tried again.
    Unreached,
}

impl Sandbox {
    /// Its record as it is now.
    pub fn record(&self) -> Arc<SandboxRecord> {
        self.entry.record()
    }

    /// What is known of its shim.
    pub fn link(&self) -> ShimLink {
        self.shim.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its shim, while it lives as far as is known.
    pub fn shim(&self) -> Option<Arc<dyn Shim>> {
        match self.link() {
            ShimLink::Live(shim) => Some(shim),
            ShimLink::None | ShimLink::Unreached => None,
        }
    }

    /// Remembers what is known of its shim.
    pub fn set_link(&self, link: ShimLink) {
        *self.shim.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }
}

/// A container.
pub struct Container {
    /// Its ID.
    pub id: ContainerId,
    /// The sandbox it is in.
    pub sandbox: PodSandboxId,
    /// Its record.
    pub entry: Entry<ContainerRecord>,
    /// Starting and removing it take this, and deleting it from the runtime when its pod stops.
    pub gate: tokio::sync::Mutex<()>,
    /// Held while the shim makes it or lets it go: its end is heard only after that is recorded.
    pub starting: Arc<tokio::sync::Mutex<()>>,
    /// How exec'd processes are to be made: the OCI process of the container, read once.
    pub process: tokio::sync::OnceCell<Arc<oci_spec::runtime::Process>>,
    /// What NRI plugins were told of it.
    pub told: Told,
}

impl Container {
    /// Its record as it is now.
    pub fn record(&self) -> Arc<ContainerRecord> {
        self.entry.record()
    }

    /// Waits until it has exited, or is gone.
    pub async fn exited(&self) {
        let mut changes = self.entry.changes();
        while !matches!(self.record().phase, ContainerPhase::Exited(_)) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A sandbox's or container's folder whose record is absent or torn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Torn {
    /// Of a sandbox, with the folder's name.
    Sandbox(String),
    /// Of a container, with the folder's name.
    Container(String),
}

/// All of them.
pub struct Store {
    sandboxes_dir: PathBuf,
    containers_dir: PathBuf,
    index: RwLock<Index>,
    sync: Syncer,
}

#[derive(Default)]
struct Index {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    sandbox_names: BTreeMap<String, String>,
    container_names: BTreeMap<String, String>,
    in_sandbox: BTreeMap<String, BTreeSet<String>>,
}

const SANDBOX: &str = "sandbox";
const CONTAINER: &str = "container";

impl Store {
    /// Reads all records under `root`. Blocks. Folders without a whole record are returned beside it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(root: &Path) -> Result<(Self, Vec<Torn>), StoreError> {
        let store = Self {
            sandboxes_dir: root.join("sandboxes"),
            containers_dir: root.join("containers"),
            index: RwLock::default(),
            sync: Syncer::start().map_err(StoreError::Thread)?,
        };
        for path in [&store.sandboxes_dir, &store.containers_dir] {
            record::make_parent(path).map_err(|source| StoreError::Folder {
                path: path.clone(),
                source,
            })?;
        }
        let mut torn = Vec::new();
        for name in record::folders(&store.sandboxes_dir)? {
            let (record, step) = record::read::<SandboxRecord>(&store.sandboxes_dir.join(&name))?;
            match record.filter(|r| r.id.as_str() == name) {
                Some(record) => store.write().add_sandbox(store.sandbox(record, step)),
                None => torn.push(Torn::Sandbox(name)),
            }
        }
        for name in record::folders(&store.containers_dir)? {
            let (record, step) = record::read::<ContainerRecord>(&store.containers_dir.join(&name))?;
            match record.filter(|r| r.id.as_str() == name) {
                Some(record) => store.write().add_container(store.container(record, step)),
                None => torn.push(Torn::Container(name)),
            }
        }
        Ok((store, torn))
    }

    fn sandbox(&self, record: SandboxRecord, step: Option<Step>) -> Arc<Sandbox> {
        Arc::new(Sandbox {
            id: record.id.clone(),
            told: Told::default(),
            gate: tokio::sync::RwLock::default(),
            shim: Mutex::default(),
            entry: Entry::new(
                self.sandboxes_dir.join(record.id.as_str()),
                record,
                step,
                self.sync.clone(),
            ),
        })
    }

    fn container(&self, record: ContainerRecord, step: Option<Step>) -> Arc<Container> {
        Arc::new(Container {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            gate: tokio::sync::Mutex::default(),
            starting: Arc::default(),
            process: tokio::sync::OnceCell::new(),
            told: Told::default(),
            entry: Entry::new(
                self.containers_dir.join(record.id.as_str()),
                record,
                step,
                self.sync.clone(),
            ),
        })
    }

    /// Takes the name and writes the record. Blocks for microseconds.
    ///
    /// # Errors
    /// When the name is taken, or the disk is full or fails.
    pub fn create_sandbox(&self, record: SandboxRecord) -> Result<Arc<Sandbox>, StoreError> {
        let name = record.name.clone();
        let sandbox = self.sandbox(record, Some(Step::SandboxRecord));
        {
            let mut index = self.write();
            if let Some(id) = index.sandbox_names.get(&name) {
                let (kind, id) = (SANDBOX, id.clone());
                return Err(StoreError::NameTaken { kind, name, id });
            }
            index.add_sandbox(sandbox.clone());
        }
        sandbox
            .entry
            .make()
            .inspect_err(|_| self.drop_sandbox(&sandbox))?;
        Ok(sandbox)
    }

    /// Takes the name and writes the record. Blocks for microseconds.
    ///
    /// # Errors
    /// When the name is taken, or the disk is full or fails.
    pub fn create_container(&self, record: ContainerRecord) -> Result<Arc<Container>, StoreError> {
        let name = record.name.clone();
        let container = self.container(record, Some(Step::ContainerRecord));
        {
            let mut index = self.write();
            if let Some(id) = index.container_names.get(&name) {
                let (kind, id) = (CONTAINER, id.clone());
                return Err(StoreError::NameTaken { kind, name, id });
            }
            index.add_container(container.clone());
        }
        container
            .entry
            .make()
            .inspect_err(|_| self.drop_container(&container))?;
        Ok(container)
    }

    fn drop_sandbox(&self, sandbox: &Sandbox) {
        if let Err(error) = self.forget_sandbox(sandbox) {
            tracing::warn!(sandbox_id = %sandbox.id, %error, "failed to remove a half-written record");
        }
    }

    fn drop_container(&self, container: &Container) {
        if let Err(error) = self.forget_container(container) {
            tracing::warn!(container_id = %container.id, %error, "failed to remove a half-written record");
        }
    }

    /// Removes the record and frees the name. Blocks for microseconds.
    ///
    /// # Errors
    /// When the disk fails; it is still in the store then.
    pub fn forget_sandbox(&self, sandbox: &Sandbox) -> Result<(), StoreError> {
        record::remove_folder(sandbox.entry.folder())?;
        self.write().remove_sandbox(sandbox);
        Ok(())
    }

    /// Removes the record and frees the name. Blocks for microseconds.
    ///
    /// # Errors
    /// When the disk fails; it is still in the store then.
    pub fn forget_container(&self, container: &Container) -> Result<(), StoreError> {
        record::remove_folder(container.entry.folder())?;
        self.write().remove_container(container);
        Ok(())
    }

    /// Frees the name of something that is only waiting for the rest of it to be cleaned up.
    pub fn free_name(&self, id: &str) {
        let mut index = self.write();
        index.sandbox_names.retain(|_, owner| owner != id);
        index.container_names.retain(|_, owner| owner != id);
    }

    /// Removes a folder without a whole record.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget_torn(&self, torn: &Torn) -> Result<(), StoreError> {
        let folder = match torn {
            Torn::Sandbox(name) => self.sandboxes_dir.join(name),
            Torn::Container(name) => self.containers_dir.join(name),
        };
        Ok(record::remove_folder(&folder)?)
    }

    /// The sandbox of this ID or beginning of an ID. One that is only being made isn't found.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn find_sandbox(&self, id: &str) -> Result<Arc<Sandbox>, StoreError> {
        let index = self.read();
        let known = |s: &Arc<Sandbox>| s.record().phase != SandboxPhase::Creating;
        find(&index.sandboxes, SANDBOX, id, known)
    }

    /// The container of this ID or beginning of an ID. One that is only being made isn't found.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn find_container(&self, id: &str) -> Result<Arc<Container>, StoreError> {
        let index = self.read();
        let known = |c: &Arc<Container>| c.record().phase != ContainerPhase::Creating;
        find(&index.containers, CONTAINER, id, known)
    }

    /// The sandbox of exactly this ID, even one that is being made.
    pub fn sandbox_by_id(&self, id: &PodSandboxId) -> Option<Arc<Sandbox>> {
        self.read().sandboxes.get(id.as_str()).cloned()
    }

    /// The container of exactly this ID, even one that is being made.
    pub fn container_by_id(&self, id: &str) -> Option<Arc<Container>> {
        self.read().containers.get(id).cloned()
    }

    /// All sandboxes in the order of their IDs, also those that are being made.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.read().sandboxes.values().cloned().collect()
    }

    /// All containers in the order of their IDs, also those that are being made.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.read().containers.values().cloned().collect()
    }

    /// All containers of a sandbox in the order of their IDs, also those that are being made.
    pub fn containers_in(&self, sandbox: &PodSandboxId) -> Vec<Arc<Container>> {
        let index = self.read();
        let ids = index.in_sandbox.get(sandbox.as_str()).into_iter().flatten();
        ids.filter_map(|id| index.containers.get(id)).cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn add_sandbox(&mut self, sandbox: Arc<Sandbox>) {
        let id = sandbox.id.to_string();
        self.sandbox_names
            .insert(sandbox.record().name.clone(), id.clone());
        self.sandboxes.insert(id, sandbox);
    }

    fn add_container(&mut self, container: Arc<Container>) {
        let id = container.id.to_string();
        self.container_names
            .insert(container.record().name.clone(), id.clone());
        self.in_sandbox
            .entry(container.sandbox.to_string())
            .or_default()
            .insert(id.clone());
        self.containers.insert(id, container);
    }

    fn remove_sandbox(&mut self, sandbox: &Sandbox) {
        self.sandboxes.remove(sandbox.id.as_str());
        self.sandbox_names.retain(|_, id| id != sandbox.id.as_str());
    }

    fn remove_container(&mut self, container: &Container) {
        self.containers.remove(container.id.as_str());
        self.container_names.retain(|_, id| id != container.id.as_str());
        if let Some(ids) = self.in_sandbox.get_mut(container.sandbox.as_str()) {
            ids.remove(container.id.as_str());
            if ids.is_empty() {
                self.in_sandbox.remove(container.sandbox.as_str());
            }
        }
    }
}

fn find<T>(
    all: &BTreeMap<String, Arc<T>>,
    kind: &'static str,
    id: &str,
    known: impl Fn(&Arc<T>) -> bool,
) -> Result<Arc<T>, StoreError> {
    let not_found = || StoreError::NotFound {
        kind,
        id: id.to_owned(),
    };
    if id.is_empty() {
        return Err(not_found());
    }
    let mut fitting = all
        .range(id.to_owned()..)
        .take_while(|(key, _)| key.starts_with(id))
        .filter(|(_, value)| known(value));
    let (key, first) = fitting.next().ok_or_else(not_found)?;
    if key != id && fitting.next().is_some() {
        let id = id.to_owned();
        return Err(StoreError::Ambiguous { kind, id });
    }
    Ok(first.clone())
}

#[cfg(test)]
pub(crate) mod testing {
    //! Records to play with.

    use cri_api::v1::{ContainerConfig, ContainerMetadata, PodSandboxConfig, PodSandboxMetadata};

    use super::*;

    pub(crate) fn sandbox(n: u8) -> SandboxRecord {
        let metadata = PodSandboxMetadata {
            name: format!("pod-{n}"),
            uid: format!("uid-{n}"),
            namespace: "default".into(),
            attempt: 0,
        };
        let labels = [("app".to_owned(), format!("a{n}"))].into();
        SandboxRecord {
            id: PodSandboxId::from_bytes([n; 32]),
            name: crate::lifecycle::sandbox_name(&metadata),
            config: Arc::new(PodSandboxConfig {
                metadata: Some(metadata),
                labels,
                ..PodSandboxConfig::default()
            }),
            runtime_handler: String::new(),
            created_at: i64::from(n),
            boot_id: "boot".into(),
            namespaces: Owned::default(),
            cgroup_parent: CgroupParent::Ours(format!("/orlop/{n}")),
            ips: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            phase: SandboxPhase::Ready,
            limits: PodLimits::default(),
        }
    }

    pub(crate) fn container(n: u8, sandbox: u8) -> ContainerRecord {
        ContainerRecord {
            id: ContainerId::from_bytes([n; 32]),
            sandbox: PodSandboxId::from_bytes([sandbox; 32]),
            name: format!("c{n}"),
            config: Arc::new(ContainerConfig {
                metadata: Some(ContainerMetadata {
                    name: format!("c{n}"),
                    attempt: 0,
                }),
                labels: [("app".to_owned(), format!("a{n}"))].into(),
                ..ContainerConfig::default()
            }),
            created_at: i64::from(n),
            image_id: "sha256:1".into(),
            image_ref: "sha256:1".into(),
            log_path: None,
            cgroup: format!("/orlop/{sandbox}/{n}"),
            stop_signal: 15,
            user: User::default(),
            own_pid_namespace: true,
            image_mounts: BTreeMap::new(),
            phase: ContainerPhase::Created { pid: 7 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Operation;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let (store, torn) = Store::open(dir.path()).unwrap();
        assert!(torn.is_empty());
        (dir, store)
    }

    #[test]
    fn names_are_unique_until_forgotten() {
        let (_dir, store) = store();
        let one = store.create_sandbox(testing::sandbox(1)).unwrap();
        let mut again = testing::sandbox(2);
        again.name.clone_from(&one.record().name);
        let error = store.create_sandbox(again.clone()).err().unwrap();
        assert!(matches!(error, StoreError::NameTaken { .. }));
        assert!(error.to_string().contains(one.id.as_str()));
        store.forget_sandbox(&one).unwrap();
        store.create_sandbox(again).unwrap();
    }

    #[test]
    fn ids_may_be_abbreviated_while_unambiguous() {
        let (_dir, store) = store();
        for n in [0x11, 0x12, 0x22] {
            store.create_container(testing::container(n, 1)).unwrap();
        }
        assert_eq!(store.find_container("22").unwrap().id.as_str(), "22".repeat(32));
        assert_eq!(
            store.find_container(&"11".repeat(32)).unwrap().id.as_str(),
            "11".repeat(32)
        );
        assert!(matches!(
            store.find_container("1"),
            Err(StoreError::Ambiguous { .. })
        ));
        for absent in ["", "3", "223", &"33".repeat(32)] {
            assert!(matches!(
                store.find_container(absent),
                Err(StoreError::NotFound { .. })
            ));
        }
        assert_eq!(store.containers_in(&PodSandboxId::from_bytes([1; 32])).len(), 3);
    }

    #[test]
    fn what_is_being_made_is_not_found() {
        let (_dir, store) = store();
        let mut record = testing::sandbox(1);
        record.phase = SandboxPhase::Creating;
        let sandbox = store.create_sandbox(record).unwrap();
        assert!(store.find_sandbox(sandbox.id.as_str()).is_err());
        sandbox.entry.update(|r| r.phase = SandboxPhase::Ready).unwrap();
        assert!(store.find_sandbox(sandbox.id.as_str()).is_ok());
    }

    #[test]
    fn everything_is_there_after_a_restart() {
        let (dir, store) = store();
        let sandbox = store.create_sandbox(testing::sandbox(1)).unwrap();
        sandbox.entry.settle(Operation::Create).unwrap();
        let container = store.create_container(testing::container(2, 1)).unwrap();
        container.entry.begin(Step::ContainerInit).unwrap();
        container
            .entry
            .update(|r| r.phase = ContainerPhase::Created { pid: 99 })
            .unwrap();
        std::fs::create_dir(dir.path().join("containers/torn")).unwrap();
        drop(store);
        let (store, torn) = Store::open(dir.path()).unwrap();
        assert_eq!(torn, [Torn::Container("torn".into())]);
        store.forget_torn(&torn[0]).unwrap();
        assert_eq!(store.sandboxes()[0].entry.step(), None);
        let container = store.find_container("02").unwrap();
        assert_eq!(container.entry.step(), Some(Step::ContainerInit));
        assert_eq!(container.record().phase, ContainerPhase::Created { pid: 99 });
        assert!(store.create_container(testing::container(2, 1)).is_err());
        assert_eq!(Store::open(dir.path()).unwrap().1, []);
    }

    #[tokio::test]
    async fn waiting_for_the_end_of_a_container() {
        let (_dir, store) = store();
        let container = store.create_container(testing::container(1, 1)).unwrap();
        let waiter = tokio::spawn({
            let container = container.clone();
            async move { container.exited().await }
        });
        container.entry.note(|r| {
            r.phase = ContainerPhase::Exited(Ended {
                started_at: 1,
                finished_at: 2,
                code: 3,
                cause: Cause::Exit,
            });
        });
        waiter.await.unwrap();
    }
}
