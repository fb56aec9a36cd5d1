//! What a container mounts for its `volumeMounts`.

use std::path::PathBuf;

use controlplane_api::k8s_openapi::api::core::v1::{Pod, VolumeMount};

use crate::error::VolumeError;

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerMount {
    /// The volume's name.
    pub name: String,
    /// What is mounted.
    pub source: MountSource,
    /// Where; always absolute.
    pub container_path: String,
    /// Whether the container can't write to it.
    pub read_only: bool,
    /// Whether that holds for mounts below it, too.
    pub recursive_read_only: bool,
    /// Whether mounts pass between node and container.
    pub propagation: Propagation,
    /// Whether the runtime should give it the pod's SELinux label.
    pub selinux_relabel: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A path of the node; a sub path's is a mount of its own that nobody can exchange.
    Path(PathBuf),
    /// An image, mounted by the runtime.
    Image {
        /// Its reference as the pod's spec has it.
        reference: String,
        /// The part of it that is mounted; empty is all.
        sub_path: String,
    },
}

/// Whether mounts pass between node and container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// `None`: not at all.
    #[default]
    Private,
    /// `HostToContainer`.
    HostToContainer,
    /// `Bidirectional`.
    Bidirectional,
}

impl Propagation {
    /// From a volume mount's word for it.
    ///
    /// # Errors
    /// For a word that there isn't.
    pub fn parse(word: Option<&str>) -> Result<Self, VolumeError> {
        match word {
            None | Some("None") => Ok(Self::Private),
            Some("HostToContainer") => Ok(Self::HostToContainer),
            Some("Bidirectional") => Ok(Self::Bidirectional),
            Some(other) => Err(VolumeError::Propagation(other.to_owned())),
        }
    }
}

/// The volume mounts of a container of any kind; none when there is no such container.
pub(crate) fn volume_mounts<'a>(pod: &'a Pod, container: &str) -> Option<&'a [VolumeMount]> {
    all_volume_mounts(pod)
        .find(|(name, _)| *name == container)
        .map(|(_, mounts)| mounts)
}

/// The containers of a pod of any kind with their volume mounts.
pub(crate) fn all_volume_mounts(pod: &Pod) -> impl Iterator<Item = (&str, &[VolumeMount])> {
    let spec = pod.spec.as_ref();
    let plain = spec.into_iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
    });
    let plain = plain.map(|container| {
        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        (container.name.as_str(), mounts)
    });
    let ephemeral = spec
        .into_iter()
        .flat_map(|spec| spec.ephemeral_containers.iter().flatten())
        .map(|container| {
            let mounts = container.volume_mounts.as_deref().unwrap_or_default();
            (container.name.as_str(), mounts)
        });
    plain.chain(ephemeral)
}

/// Expands `$(NAME)` as in a container's command; `$$` stands for `$`.
pub(crate) fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, VolumeError> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest
            .strip_prefix('(')
            .and_then(|variable| variable.split_once(')'))
        {
            out.push_str(&env(name).ok_or_else(|| VolumeError::MissingVariable(name.to_owned()))?);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Whether a mount is recursively read-only, as upstream decides it.
pub(crate) fn recursive_read_only(
    mount: &VolumeMount,
    supported: impl FnOnce() -> bool,
) -> Result<bool, VolumeError> {
    let wanted = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    let refuse = |why: String| Err(VolumeError::RecursiveReadOnly(why));
    match wanted {
        "Disabled" => return Ok(false),
        "IfPossible" | "Enabled" => {}
        other => return refuse(format!("unknown recursive read-only mode \"{other}\"")),
    }
    let start = format!(
        "volume \"{}\" requested recursive read-only mode, but",
        mount.name
    );
    if mount.read_only != Some(true) {
        return refuse(format!("{start} it is not read-only"));
    }
    if let Some(propagation) = mount.mount_propagation.as_deref()
        && propagation != "None"
    {
        return refuse(format!(
            "{start} it is not compatible with propagation \"{propagation}\""
        ));
    }
    match (wanted, supported()) {
        ("Enabled", false) => refuse(format!("{start} it is not supported by the runtime")),
        (_, supported) => Ok(supported),
    }
}

#[cfg(test)]
mod tests;
