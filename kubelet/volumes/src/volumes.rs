//! All pods' volumes below one root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use controlplane_api::k8s_openapi::api::core::v1::{Pod, Volume};
use jiff::Timestamp;

use crate::backing::remove_all;
use crate::container::all_volume_mounts;
use crate::content::Content;
use crate::empty_dir::EmptyDir;
use crate::error::{FailedVolume, PluginError, PodVolumes, Refreshed, VolumeError};
use crate::folder::{entries, make_dirs, open_absolute, open_dir};
use crate::host_path::HostPath;
use crate::image::Image;
use crate::layout::{Layout, NOTES, PODS, VOLUMES, component, escaped};
use crate::mount::{is_mounted, share};
use crate::ownership::GroupOwnership;
use crate::payload::fs_group;
use crate::seam::{Downward, Host, ObjectSource, SetUp, TearDown, VolumePlugin};
use crate::usage::{VolumeUsage, measure};

/// Entries of a directory of ours.
const MOST: usize = 100_000;

/// Directories and mounts of all pods' volumes below the kubelet's root.
///
/// May be shared by threads; calls for one pod wait for each other.
pub struct Volumes {
    pub(crate) layout: Layout,
    pub(crate) root: OwnedFd,
    pub(crate) host: Host,
    plugins: Vec<Arc<dyn VolumePlugin>>,
    busy: Mutex<BTreeMap<String, Arc<Busy>>>,
}

/// Who works with a pod's volumes.
#[derive(Default)]
struct Busy {
    one_at_a_time: Mutex<()>,
    /// Whether the pod is to be torn down, so that long work should end.
    stop: AtomicBool,
}

/// A volume of a pod as it is found on disk, whoever set it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOnDisk {
    /// The plugin's name as on disk, such as `kubernetes.io~empty-dir`.
    pub plugin: String,
    /// Whether there is such a plugin.
    pub known: bool,
    /// The volume's name.
    pub name: String,
    /// Whether a file system is mounted on its directory.
    pub mounted: bool,
}

/// What volumes need from the rest of the kubelet.
pub struct Seams {
    /// Objects of the cluster, and facts about the node.
    pub objects: Arc<dyn ObjectSource>,
    /// Values of the downward API.
    pub downward: Arc<dyn Downward>,
    /// The time; `Timestamp::now` outside of tests.
    pub now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// Kinds of volumes beside the built-in ones, which come first.
    pub plugins: Vec<Arc<dyn VolumePlugin>>,
}

impl Volumes {
    /// Opens the kubelet's root, usually `/var/lib/kubelet`, which is made where there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(root: &Path, seams: Seams) -> Result<Self, VolumeError> {
        let fail = |source| VolumeError::Directory {
            path: root.to_owned(),
            source,
        };
        make_root(root).map_err(fail)?;
        let path = root.canonicalize().map_err(fail)?;
        let dir = OwnedFd::from(File::open(&path).map_err(fail)?);
        make_dirs(dir.as_fd(), &[PODS], 0o750).map_err(fail)?;
        let mut plugins: Vec<Arc<dyn VolumePlugin>> = vec![
            Arc::new(EmptyDir),
            Arc::new(HostPath),
            Arc::new(Content::ConfigMap),
            Arc::new(Content::Secret),
            Arc::new(Content::DownwardApi),
            Arc::new(Content::Projected),
            Arc::new(Image),
        ];
        plugins.extend(seams.plugins);
        Ok(Self {
            layout: Layout::new(path),
            root: dir,
            host: Host {
                objects: seams.objects,
                downward: seams.downward,
                now: seams.now,
            },
            plugins,
            busy: Mutex::default(),
        })
    }

    /// Makes sure that mounts below the kubelet's root pass between node and containers that ask for it, by mounting the
    /// root onto itself if need be. Once, before [`Volumes::new`]. Returns whether it had to be mounted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn share_root(root: &Path) -> Result<bool, VolumeError> {
        let shared = || {
            make_root(root)?;
            share(&root.canonicalize()?)
        };
        shared().map_err(|source| VolumeError::Directory {
            path: root.to_owned(),
            source,
        })
    }

    /// A pod's directory, `pods/UID` below the root. What else the kubelet keeps there goes with [`Volumes::tear_down`].
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.layout.pod(uid)
    }

    /// Makes every volume ready that a container of the pod mounts, or makes sure that it is, and names those that failed.
    ///
    /// # Errors
    /// When the pod's own directories can't be made.
    pub fn set_up(&self, pod: &Pod) -> Result<PodVolumes, VolumeError> {
        let uid = uid_of(pod)?;
        self.alone(uid, |stop| {
            self.make_pod_dirs(uid)?;
            let mut failed = Vec::new();
            for volume in used_volumes(pod) {
                let outcome = match self.plugin(volume) {
                    None => Err(unknown(volume)),
                    Some(plugin) => self.set_up_one(pod, uid, volume, plugin, stop),
                };
                failed.extend(outcome.err());
            }
            Ok(PodVolumes { failed })
        })
    }

    /// Brings content that follows objects up to date; each volume changes in one step. Does nothing for a pod that was
    /// never set up, or was torn down.
    ///
    /// # Errors
    /// When the pod has no usable UID.
    pub fn refresh(&self, pod: &Pod) -> Result<Refreshed, VolumeError> {
        let uid = uid_of(pod)?;
        self.alone(uid, |stop| {
            let mut refreshed = Refreshed::default();
            if !self.layout.pod(uid).join(VOLUMES).is_dir() {
                return Ok(refreshed);
            }
            for volume in used_volumes(pod) {
                let Some(plugin) = self.plugin(volume).filter(|plugin| plugin.refreshes()) else {
                    continue;
                };
                match self.set_up_one(pod, uid, volume, plugin, stop) {
                    Ok(changed) => refreshed.changed |= changed,
                    Err(failed) => refreshed.failed.push(failed),
                }
            }
            Ok(refreshed)
        })
    }

    /// Unmounts and removes everything of a pod that is below the root; fine when there is nothing. No container of the pod
    /// may run any more.
    ///
    /// # Errors
    /// When something is left; the next call goes on.
    pub fn tear_down(&self, uid: &str) -> Result<(), VolumeError> {
        let uid = component(uid)?;
        self.busy(uid).stop.store(true, Ordering::Relaxed);
        self.alone(uid, |stop| {
            stop.store(false, Ordering::Relaxed);
            self.clean(uid, None)?;
            // All that can go goes, whatever is left of one.
            let names = self.names_on_disk(uid)?;
            let torn_down = names
                .iter()
                .map(|(plugin, name)| self.tear_down_one(uid, plugin, name));
            torn_down.fold(Ok(()), Result::and)?;
            let path = self.layout.pod(uid);
            remove_all(&path).map_err(|source| VolumeError::Remove { path, source })
        })
    }

    /// The UIDs of all pods that have anything on disk.
    ///
    /// # Errors
    /// The kernel's.
    pub fn present(&self) -> io::Result<Vec<String>> {
        let pods = open_dir(self.root.as_fd(), Path::new(PODS), 0)?;
        let found = entries(pods.as_fd(), MOST)?;
        let uids = found.into_iter().filter(|entry| entry.is_dir);
        Ok(uids.filter_map(|entry| entry.name.into_string().ok()).collect())
    }

    /// Tears down every pod that has anything on disk and isn't among these: what an earlier kubelet left. Returns those
    /// of which something is left, and why.
    ///
    /// # Errors
    /// When it can't be told which pods have anything.
    pub fn remove_orphans(&self, alive: &BTreeSet<String>) -> io::Result<Vec<(String, VolumeError)>> {
        let present = self.present()?.into_iter();
        let orphans = present.filter(|uid| !alive.contains(uid));
        let left = orphans.filter_map(|uid| self.tear_down(&uid).err().map(|error| (uid, error)));
        Ok(left.collect())
    }

    /// What each volume of a pod holds that counts for the pod, by name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn usage(&self, uid: &str) -> Result<BTreeMap<String, VolumeUsage>, VolumeError> {
        let mut usage = BTreeMap::new();
        for (plugin, name) in self.names_on_disk(component(uid)?)? {
            let known = self.plugins.iter().find(|known| escaped(known.name()) == plugin);
            if !known.is_some_and(|known| known.measured()) {
                continue;
            }
            let path = self.layout.volume(uid, &plugin, &name);
            match open_absolute(&path).and_then(|dir| measure(dir.as_fd())) {
                Ok(found) => drop(usage.insert(name, found)),
                // The pod is being torn down.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(VolumeError::Directory { path, source }),
            }
        }
        Ok(usage)
    }

    /// The volumes of a pod that have a directory: what an earlier kubelet set up, or began to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn on_disk(&self, uid: &str) -> Result<Vec<VolumeOnDisk>, VolumeError> {
        let names = self.names_on_disk(component(uid)?)?;
        let found = names.into_iter().map(|(plugin, name)| {
            let path = self.layout.volume(uid, &plugin, &name);
            let mounted = is_mounted(&path).map_err(|source| VolumeError::Directory { path, source })?;
            let known = self.plugins.iter().any(|known| escaped(known.name()) == plugin);
            Ok(VolumeOnDisk {
                plugin,
                known,
                name,
                mounted,
            })
        });
        found.collect()
    }

    fn make_pod_dirs(&self, uid: &str) -> Result<(), VolumeError> {
        let make = |kind| make_dirs(self.root.as_fd(), &[PODS, uid, kind], 0o750);
        let made = make(VOLUMES).and_then(|_| make(NOTES));
        made.map(drop).map_err(|source| VolumeError::Directory {
            path: self.layout.pod(uid),
            source,
        })
    }

    pub(crate) fn plugin(&self, volume: &Volume) -> Option<&dyn VolumePlugin> {
        let found = self.plugins.iter().find(|plugin| plugin.supports(volume));
        found.map(|plugin| &**plugin)
    }

    fn set_up_one(
        &self,
        pod: &Pod,
        uid: &str,
        volume: &Volume,
        plugin: &dyn VolumePlugin,
        stop: &AtomicBool,
    ) -> Result<bool, FailedVolume> {
        let failed = |why: &str| FailedVolume {
            name: volume.name.clone(),
            message: format!("MountVolume.SetUp failed for volume \"{}\" : {why}", volume.name),
            unknown: false,
        };
        component(&volume.name).map_err(|error| failed(&error.to_string()))?;
        let request = SetUp {
            pod,
            uid,
            volume,
            dir: &self.layout.volume(uid, plugin.name(), &volume.name),
            notes: &self.layout.notes(uid, plugin.name(), &volume.name),
            group: group_of(pod),
            stop,
            host: &self.host,
        };
        plugin.set_up(&request).map_err(|error| failed(&error.told()))
    }

    fn tear_down_one(&self, uid: &str, plugin: &str, name: &str) -> Result<(), VolumeError> {
        let known = self.plugins.iter().find(|known| escaped(known.name()) == plugin);
        let dir = self.layout.volume(uid, plugin, name);
        let outcome = match known {
            None => Self::remove_unknown(plugin, &dir),
            Some(known) => known.tear_down(&TearDown {
                uid,
                name,
                dir: &dir,
                notes: &self.layout.notes(uid, plugin, name),
            }),
        };
        outcome.map_err(|source| VolumeError::TearDown {
            uid: uid.to_owned(),
            name: name.to_owned(),
            source,
        })
    }

    /// What a plugin that isn't there any more has left may be somebody's data: only what is empty is removed.
    fn remove_unknown(plugin: &str, dir: &Path) -> Result<(), PluginError> {
        match std::fs::remove_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("no volume plugin matched name: {}", plugin.replace('~', "/"));
                Err(PluginError::Told(message))
            }
            _ => Ok(()),
        }
    }

    /// The volumes of a pod that have a directory: the plugin's name as on disk, and the volume's.
    fn names_on_disk(&self, uid: &str) -> Result<Vec<(String, String)>, VolumeError> {
        let path: PathBuf = [PODS, uid, VOLUMES].iter().collect();
        let list = || -> io::Result<Vec<(String, String)>> {
            let volumes = open_dir(self.root.as_fd(), &path, 0)?;
            let mut found = Vec::new();
            for plugin in entries(volumes.as_fd(), MOST)? {
                let Ok(plugin_name) = plugin.name.into_string() else {
                    continue;
                };
                if !plugin.is_dir {
                    continue;
                }
                let dir = open_dir(volumes.as_fd(), Path::new(&plugin_name), 0)?;
                for volume in entries(dir.as_fd(), MOST)? {
                    if let (Ok(name), true) = (volume.name.into_string(), volume.is_dir) {
                        found.push((plugin_name.clone(), name));
                    }
                }
            }
            Ok(found)
        };
        match list() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(|source| VolumeError::Directory {
                path: self.layout.pod(uid).join(VOLUMES),
                source,
            }),
        }
    }

    /// Runs something while nobody else does anything with that pod.
    pub(crate) fn alone<T>(&self, uid: &str, run: impl FnOnce(&AtomicBool) -> T) -> T {
        let busy = self.busy(uid);
        // Nothing is kept in memory that a panic could have left half-done.
        let held = busy.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = run(&busy.stop);
        drop(held);
        drop(busy);
        self.forget(uid);
        outcome
    }

    fn busy(&self, uid: &str) -> Arc<Busy> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(busy.entry(uid.to_owned()).or_default())
    }

    /// Forgets a pod for which nobody waits.
    fn forget(&self, uid: &str) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if busy.get(uid).is_some_and(|busy| Arc::strong_count(busy) == 1) {
            busy.remove(uid);
        }
    }
}

fn make_root(root: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(root)
}

fn group_of(pod: &Pod) -> Option<GroupOwnership> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    Some(GroupOwnership {
        group: fs_group(pod)?,
        read_only: false,
        on_root_mismatch: context.fs_group_change_policy.as_deref() == Some("OnRootMismatch"),
    })
}

fn unknown(volume: &Volume) -> FailedVolume {
    FailedVolume {
        name: volume.name.clone(),
        message: format!(
            "failed to get Plugin from volumeSpec for volume \"{}\" err=no volume plugin matched",
            volume.name
        ),
        unknown: true,
    }
}

pub(crate) fn uid_of(pod: &Pod) -> Result<&str, VolumeError> {
    component(pod.metadata.uid.as_deref().unwrap_or_default())
}

pub(crate) fn all_volumes(pod: &Pod) -> &[Volume] {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.volumes.as_deref())
        .unwrap_or_default()
}

/// The volumes that any container mounts, in the spec's order.
fn used_volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let used: BTreeSet<&str> = all_volume_mounts(pod)
        .flat_map(|(_, mounts)| mounts)
        .map(|mount| mount.name.as_str())
        .collect();
    all_volumes(pod)
        .iter()
        .filter(move |volume| used.contains(volume.name.as_str()))
}
