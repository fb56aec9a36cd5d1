//! All pods' volumes below one root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use controlplane_api::k8s_openapi::api::core::v1::{Pod, Volume};
use jiff::Timestamp;

use crate::container::{
    ContainerMount, MountSource, Propagation, all_volume_mounts, expand, recursive_read_only, volume_mounts,
};
use crate::empty_dir::EmptyDir;
use crate::error::{FailedVolume, PluginError, PodVolumes, Refreshed, VolumeError};
use crate::folder::{entries, make_dirs, open_dir};
use crate::host_path::HostPath;
use crate::layout::{Layout, NOTES, PODS, VOLUMES, component, escaped, goes_backwards};
use crate::remove::remove_tree;
use crate::seam::{Downward, Host, ObjectSource, SetUp, Source, TearDown, VolumePlugin};
use crate::usage::VolumeUsage;

/// Entries of a directory of ours.
const MOST: usize = 100_000;

/// Directories and mounts of all pods' volumes below the kubelet's root.
///
/// May be shared by threads; calls for one pod wait for each other.
pub struct Volumes {
    layout: Layout,
    root: OwnedFd,
    host: Host,
    plugins: Vec<Arc<dyn VolumePlugin>>,
    busy: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
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
        std::fs::create_dir_all(root).map_err(fail)?;
        let path = root.canonicalize().map_err(fail)?;
        let dir = OwnedFd::from(File::open(&path).map_err(fail)?);
        make_dirs(dir.as_fd(), &[PODS], 0o750).map_err(fail)?;
        let mut plugins: Vec<Arc<dyn VolumePlugin>> = vec![Arc::new(EmptyDir), Arc::new(HostPath)];
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
        self.alone(uid, || {
            let made = make_dirs(self.root.as_fd(), &[PODS, uid, VOLUMES], 0o750)
                .and_then(|_| make_dirs(self.root.as_fd(), &[PODS, uid, NOTES], 0o750));
            made.map_err(|source| VolumeError::Directory {
                path: self.layout.pod(uid),
                source,
            })?;
            let mut failed = Vec::new();
            for volume in used_volumes(pod) {
                let outcome = match self.plugin(volume) {
                    None => Err(unknown(volume)),
                    Some(plugin) => self.set_up_one(pod, uid, volume, plugin),
                };
                failed.extend(outcome.err());
            }
            Ok(PodVolumes { failed })
        })
    }

    /// Brings content that follows objects up to date; each volume changes in one step. Volumes that aren't set up are set
    /// up.
    ///
    /// # Errors
    /// When the pod has no usable UID.
    pub fn refresh(&self, pod: &Pod) -> Result<Refreshed, VolumeError> {
        let uid = uid_of(pod)?;
        self.alone(uid, || {
            let mut refreshed = Refreshed::default();
            for volume in used_volumes(pod) {
                let Some(plugin) = self.plugin(volume).filter(|plugin| plugin.refreshes()) else {
                    continue;
                };
                match self.set_up_one(pod, uid, volume, plugin) {
                    Ok(changed) => refreshed.changed |= changed,
                    Err(failed) => refreshed.failed.push(failed),
                }
            }
            Ok(refreshed)
        })
    }

    /// What a container mounts. Parts of volumes are made where they are missing, and mounted; `env` tells the
    /// container's variables for `subPathExpr`.
    ///
    /// # Errors
    /// When a mount can't be had; the container can't be made then.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<ContainerMount>, VolumeError> {
        let uid = uid_of(pod)?;
        let mounts = volume_mounts(pod, container).ok_or(VolumeError::NoContainer(container.to_owned()))?;
        component(container)?;
        self.alone(uid, || {
            let supported = || self.host.objects.recursive_read_only(pod).unwrap_or(false);
            let mut made = Vec::with_capacity(mounts.len());
            for mount in mounts {
                let missing = || VolumeError::NoVolume {
                    volume: mount.name.clone(),
                    container: container.to_owned(),
                };
                let volume = all_volumes(pod)
                    .iter()
                    .find(|volume| volume.name == mount.name)
                    .ok_or_else(missing)?;
                let plugin = self.plugin(volume).ok_or_else(missing)?;
                let sub_path = match mount.sub_path_expr.as_deref().unwrap_or_default() {
                    "" => mount.sub_path.clone().unwrap_or_default(),
                    expression => expand(expression, env)?,
                };
                if sub_path.starts_with('/') {
                    return Err(VolumeError::AbsoluteSubPath(sub_path));
                }
                if goes_backwards(&sub_path) {
                    return Err(VolumeError::BackwardSubPath(sub_path));
                }
                let dir = self.layout.volume(uid, plugin.name(), component(&volume.name)?);
                let source = match plugin.source(volume, &dir) {
                    Source::Image { reference } => MountSource::Image { reference, sub_path },
                    Source::Path(path) if sub_path.is_empty() => MountSource::Path(path),
                    Source::Path(_) => {
                        return Err(VolumeError::PrepareSubPath {
                            volume: volume.name.clone(),
                            container: container.to_owned(),
                        });
                    }
                };
                let attributes = plugin.attributes(volume);
                made.push(ContainerMount {
                    name: mount.name.clone(),
                    source,
                    container_path: absolute(&mount.mount_path),
                    read_only: mount.read_only.unwrap_or(false) || attributes.read_only,
                    recursive_read_only: recursive_read_only(mount, supported)?,
                    propagation: Propagation::parse(mount.mount_propagation.as_deref())?,
                    selinux_relabel: attributes.relabel,
                });
            }
            Ok(made)
        })
    }

    /// Unmounts the parts of volumes that a container mounted; only once the container has ended for good.
    ///
    /// # Errors
    /// When one is left.
    pub fn clean_sub_paths(&self, uid: &str, container: &str) -> Result<(), VolumeError> {
        let (uid, _) = (component(uid)?, component(container)?);
        self.alone(uid, || Ok(()))
    }

    /// Unmounts and removes everything of a pod that is below the root; fine when there is nothing. No container of the pod
    /// may run any more.
    ///
    /// # Errors
    /// When something is left; the next call goes on.
    pub fn tear_down(&self, uid: &str) -> Result<(), VolumeError> {
        let uid = component(uid)?;
        self.alone(uid, || {
            for (plugin, name) in self.volumes_on_disk(uid)? {
                self.tear_down_one(uid, &plugin, &name)?;
            }
            let path = self.layout.pod(uid);
            let pods =
                open_dir(self.root.as_fd(), Path::new(PODS), 0).map_err(|source| VolumeError::Directory {
                    path: self.layout.pods(),
                    source,
                })?;
            remove_tree(pods.as_fd(), uid.as_ref(), &path)
                .map_err(|source| VolumeError::Remove { path, source })
        })?;
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
        Ok(())
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

    /// What each volume of a pod holds that counts for the pod, by name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn usage(&self, uid: &str) -> Result<BTreeMap<String, VolumeUsage>, VolumeError> {
        component(uid)?;
        Ok(BTreeMap::new())
    }

    fn plugin(&self, volume: &Volume) -> Option<&dyn VolumePlugin> {
        let found = self.plugins.iter().find(|plugin| plugin.supports(volume));
        found.map(|plugin| &**plugin)
    }

    fn set_up_one(
        &self,
        pod: &Pod,
        uid: &str,
        volume: &Volume,
        plugin: &dyn VolumePlugin,
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
            host: &self.host,
        };
        plugin.set_up(&request).map_err(|error| failed(&error.told()))
    }

    fn tear_down_one(&self, uid: &str, plugin: &str, name: &str) -> Result<(), VolumeError> {
        let known = self.plugins.iter().find(|known| escaped(known.name()) == plugin);
        let dir = self.layout.volume(uid, plugin, name);
        let outcome = match known {
            None => Err(PluginError::Told(format!(
                "no volume plugin matched name: {plugin}"
            ))),
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

    /// The volumes of a pod that have a directory: the plugin's name as on disk, and the volume's.
    fn volumes_on_disk(&self, uid: &str) -> Result<Vec<(String, String)>, VolumeError> {
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
    fn alone<T>(&self, uid: &str, run: impl FnOnce() -> T) -> T {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(busy.entry(uid.to_owned()).or_default())
        };
        // Nothing is kept in memory that a panic could have left half-done.
        let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        run()
    }
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

fn uid_of(pod: &Pod) -> Result<&str, VolumeError> {
    component(pod.metadata.uid.as_deref().unwrap_or_default())
}

fn all_volumes(pod: &Pod) -> &[Volume] {
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

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}
