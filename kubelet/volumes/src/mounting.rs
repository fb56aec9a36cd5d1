//! A pod's volumes as one container mounts them.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use controlplane_api::k8s_openapi::api::core::v1::{Pod, VolumeMount};

use crate::container::{
    ContainerMount, MountSource, Propagation, expand, recursive_read_only, volume_mounts,
};
use crate::error::VolumeError;
use crate::layout::{SUB_PATHS, component, goes_backwards};
use crate::mount::recursive_read_only as kernel_recursive_read_only;
use crate::seam::Source;
use crate::sub_path;
use crate::volumes::{Volumes, all_volumes, uid_of};

impl Volumes {
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
        self.alone(uid, |_| {
            let mounts = mounts.iter().enumerate();
            mounts
                .map(|(index, mount)| self.one_mount(pod, (uid, container, index), mount, env))
                .collect()
        })
    }

    fn one_mount(
        &self,
        pod: &Pod,
        (uid, container, index): (&str, &str, usize),
        mount: &VolumeMount,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<ContainerMount, VolumeError> {
        let missing = || VolumeError::NoVolume {
            volume: mount.name.clone(),
            container: container.to_owned(),
        };
        let mut volumes = all_volumes(pod).iter();
        let volume = volumes
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
        // All that can be refused is, before anything is mounted.
        let supported = || {
            let told = self.host.objects.recursive_read_only(pod);
            told.unwrap_or_else(kernel_recursive_read_only)
        };
        let recursive_read_only = recursive_read_only(mount, supported)?;
        let propagation = Propagation::parse(mount.mount_propagation.as_deref())?;
        let dir = self.layout.volume(uid, plugin.name(), component(&volume.name)?);
        let source = match plugin.source(volume, &dir) {
            Source::Image { reference } => MountSource::Image { reference, sub_path },
            Source::Path(path) if sub_path.is_empty() => MountSource::Path(path),
            Source::Path(path) => {
                let target = sub_path::Target {
                    uid,
                    volume: &volume.name,
                    container,
                    index,
                };
                MountSource::Path(self.mount_part(target, &path, &sub_path)?)
            }
        };
        let attributes = plugin.attributes(volume);
        Ok(ContainerMount {
            name: mount.name.clone(),
            source,
            container_path: absolute(&mount.mount_path),
            read_only: mount.read_only.unwrap_or(false) || attributes.read_only,
            recursive_read_only,
            propagation,
            selinux_relabel: attributes.relabel,
        })
    }

    /// Mounts a part of a volume by itself. Users don't learn why it can't be had, but the log does.
    fn mount_part(
        &self,
        target: sub_path::Target<'_>,
        volume: &Path,
        path: &str,
    ) -> Result<PathBuf, VolumeError> {
        let log = |error: &io::Error| {
            let sub_path::Target {
                uid,
                volume,
                container,
                ..
            } = target;
            tracing::warn!(pod_uid = uid, volume, container, sub_path = path, %error, "failed to mount a sub path");
        };
        let source = sub_path::open(volume, path).map_err(|error| {
            log(&error);
            VolumeError::MakeSubPath {
                volume: target.volume.to_owned(),
                container: target.container.to_owned(),
            }
        })?;
        let mounted = sub_path::mount(self.root.as_fd(), self.layout.root(), target, source.as_fd());
        mounted.map_err(|error| {
            log(&error);
            VolumeError::PrepareSubPath {
                volume: target.volume.to_owned(),
                container: target.container.to_owned(),
            }
        })
    }

    /// Unmounts the parts of volumes that a container mounted; only once the container has ended for good.
    ///
    /// # Errors
    /// When one is left.
    pub fn clean_sub_paths(&self, uid: &str, container: &str) -> Result<(), VolumeError> {
        let (uid, container) = (component(uid)?, component(container)?);
        self.alone(uid, |_| self.clean(uid, Some(container)))
    }

    pub(crate) fn clean(&self, uid: &str, container: Option<&str>) -> Result<(), VolumeError> {
        sub_path::clean(self.root.as_fd(), self.layout.root(), uid, container).map_err(|source| {
            VolumeError::Directory {
                path: self.layout.pod(uid).join(SUB_PATHS),
                source,
            }
        })
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}
