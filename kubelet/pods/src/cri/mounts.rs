//! A container's mounts: what its volumes became, `/etc/hosts`, and the file for its termination message.

use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use cri_api::v1::{ImageSpec, Mount, MountPropagation, UserNamespace};

use super::container::ContainerExtra;
use super::errors::ConfigError;
use super::facts::NodeFacts;
use super::hosts::ETC_HOSTS;

/// What the volume of one entry of a container's `volumeMounts` became, sub-path included.
#[derive(Debug, Clone, PartialEq)]
pub enum MountFrom {
    /// A path on the node.
    Path {
        /// Where it is.
        host_path: String,
        /// Whether the volume itself is read-only.
        read_only: bool,
        /// Whether its files shall be given the container's SELinux label.
        selinux_relabel: bool,
    },
    /// An image, which the runtime mounts.
    Image {
        /// As it was pulled.
        image: ImageSpec,
        /// Within the image.
        sub_path: String,
    },
}

/// All mounts of a container: those of its volumes in the spec's order, `/etc/hosts` where the pod has addresses and no
/// volume is there, and the file for its termination message.
pub(crate) fn mounts(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts,
    extra: &ContainerExtra,
    has_ips: bool,
    userns: Option<&UserNamespace>,
) -> Result<Vec<Mount>, ConfigError> {
    let mut mounts = Vec::new();
    let wanted = container.volume_mounts.as_deref().unwrap_or_default();
    for mount in wanted {
        let from = extra
            .mounts
            .get(&mount.mount_path)
            .ok_or_else(|| ConfigError::NoVolume {
                volume: mount.name.clone(),
                container: container.name.clone(),
            })?;
        mounts.push(of_volume(mount, from, facts)?);
    }
    mounts.extend(extra.more_mounts.iter().cloned());
    if has_ips && !wanted.iter().any(|mount| mount.mount_path == ETC_HOSTS) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        mounts.push(of_file(facts.hosts_file(uid), ETC_HOSTS));
    }
    let message = container
        .termination_message_path
        .as_deref()
        .filter(|path| !path.is_empty());
    if let (Some(host_path), Some(path)) = (extra.termination_log.as_ref(), message) {
        mounts.push(of_file(host_path.clone(), &absolute(path)));
    }
    if let Some(userns) = userns {
        for mount in &mut mounts {
            mount.uid_mappings.clone_from(&userns.uids);
            mount.gid_mappings.clone_from(&userns.gids);
        }
    }
    Ok(mounts)
}

fn of_file(host_path: String, container_path: &str) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path,
        selinux_relabel: true,
        ..Mount::default()
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

fn of_volume(mount: &VolumeMount, from: &MountFrom, facts: &NodeFacts) -> Result<Mount, ConfigError> {
    let container_path = absolute(&mount.mount_path);
    match from {
        MountFrom::Image { image, sub_path } => Ok(Mount {
            container_path,
            readonly: true,
            image: Some(image.clone()),
            image_sub_path: sub_path.clone(),
            ..Mount::default()
        }),
        MountFrom::Path {
            host_path,
            read_only,
            selinux_relabel,
        } => Ok(Mount {
            container_path,
            host_path: host_path.clone(),
            readonly: mount.read_only.unwrap_or(false) || *read_only,
            selinux_relabel: *selinux_relabel,
            propagation: propagation(mount)?.into(),
            recursive_read_only: recursive_read_only(mount, facts)?,
            mount_options: options(mount, facts)?,
            ..Mount::default()
        }),
    }
}

fn propagation(mount: &VolumeMount) -> Result<MountPropagation, ConfigError> {
    match mount.mount_propagation.as_deref() {
        None | Some("None") => Ok(MountPropagation::PropagationPrivate),
        Some("HostToContainer") => Ok(MountPropagation::PropagationHostToContainer),
        Some("Bidirectional") => Ok(MountPropagation::PropagationBidirectional),
        Some(other) => Err(ConfigError::Propagation(other.to_owned())),
    }
}

fn recursive_read_only(mount: &VolumeMount, facts: &NodeFacts) -> Result<bool, ConfigError> {
    let required = match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => return Ok(false),
        Some("IfPossible") => false,
        Some("Enabled") => true,
        Some(other) => {
            return Err(ConfigError::RecursiveReadOnly(format!(
                "unknown recursive read-only mode {other:?}"
            )));
        }
    };
    let name = &mount.name;
    let problem = if mount.read_only != Some(true) {
        format!("volume {name:?} requested recursive read-only mode, but it is not read-only")
    } else if let Some(mode) = mount.mount_propagation.as_deref().filter(|mode| *mode != "None") {
        format!(
            "volume {name:?} requested recursive read-only mode, but it is not compatible with propagation {mode:?}"
        )
    } else if facts.runtime.recursive_read_only {
        return Ok(true);
    } else if !required {
        return Ok(false);
    } else {
        format!("volume {name:?} requested recursive read-only mode, but it is not supported by the runtime")
    };
    Err(ConfigError::RecursiveReadOnly(problem))
}

fn options(mount: &VolumeMount, facts: &NodeFacts) -> Result<Vec<String>, ConfigError> {
    match mount
        .bind_mount_options
        .as_ref()
        .filter(|options| !options.is_empty())
    {
        None => Ok(Vec::new()),
        Some(options) if facts.runtime.mount_options => Ok(options.clone()),
        Some(_) => Err(ConfigError::MountOptions(mount.name.clone())),
    }
}
