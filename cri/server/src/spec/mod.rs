//! CRI configuration to OCI specification.
//!
//! The heart, [`container_spec`], is pure: everything that it needs to know of the machine, the image and the pod is
//! handed in as a [`SpecInput`], so each rule of the CRI is a plain test. What must touch the machine to fill that
//! input sits in modules of its own, each small: [`resolve_user`] reads `/etc/passwd` and `/etc/group` inside an
//! image's root, [`HostFacts::read`] asks the kernel what it can do, [`resolve_devices`] looks at device nodes and
//! [`MountSource`] at the host side of a volume.
//!
//! The story of a container: the daemon resolves the user, the devices and the mount sources, calls
//! [`container_spec`], writes the result as the bundle's `config.json` and hands the bundle to the shim. An exec later
//! starts from the same file: [`exec_process`] takes the container's process and replaces only what an exec changes.
//! An update of limits goes through [`linux_resources`], the function that made the first ones.

mod capabilities;
mod devices;
mod error;
mod host;
mod input;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod security;
mod signal;
mod sources;
mod user;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use oci_spec::runtime::{LinuxBuilder, RootBuilder, Spec};

pub use capabilities::{ALL_CAPABILITIES, capability_by_name};
pub use devices::{DeviceError, DeviceNode, ResolvedDevice, resolve_devices};
pub use error::SpecError;
pub use host::{HostError, HostFacts};
pub use input::{ImageVolume, NamespacePaths, SandboxFiles, SpecDefaults, SpecInput, UnsetSeccomp};
pub(crate) use mounts::destination;
pub use namespaces::pid_mode;
pub use process::{container_args, exec_process};
pub use resources::linux_resources;
pub use security::{SeccompSource, seccomp_source};
pub use signal::stop_signal;
pub use sources::{MountSource, Peering, SourceError, peering_of, resolve_in_image};
pub use user::{ResolvedUser, UserError, resolve_user};

/// The version of the OCI runtime specification that our `config.json` follows.
const OCI_VERSION: &str = "1.1.0";

/// The OCI specification of a container, ready to be written as `config.json`.
///
/// # Errors
/// A [`SpecError`] names the field that makes no sense, or that this host can't honour; nothing is dropped silently
/// except where the CRI says that a field is ignored (for example masked paths of a privileged container).
pub fn container_spec(input: &SpecInput<'_>) -> Result<Spec, SpecError> {
    refuse_unsupported(input)?;
    let privileged = input.privileged();
    if privileged && !input.sandbox_privileged() {
        return Err(SpecError::PrivilegedInPlainSandbox);
    }

    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces::namespaces(input)?)
        .cgroups_path(input.cgroups_path.as_str())
        .resources(resources::container_resources(input)?)
        .devices(devices::linux_devices(input)?)
        .masked_paths(security::masked_paths(input))
        .readonly_paths(security::readonly_paths(input))
        .build()?;
    linux.set_seccomp(security::seccomp(input)?);
    linux.set_mount_label(security::mount_label(input));
    linux.set_rootfs_propagation(mounts::rootfs_propagation(input.container).map(str::to_owned));

    let root = RootBuilder::default()
        .path(input.rootfs.clone())
        .readonly(input.readonly_rootfs())
        .build()?;

    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts::mounts(input)?))
        .set_process(Some(process::container_process(input)?))
        // The UTS namespace is the pod's: its name was set when the pod was made.
        .set_hostname(None)
        .set_domainname(None)
        .set_hooks(None)
        .set_annotations(Some(annotations(input)))
        .set_linux(Some(linux));
    Ok(spec)
}

/// Refuses what no part of this crate can honour, before anything else is looked at.
fn refuse_unsupported(input: &SpecInput<'_>) -> Result<(), SpecError> {
    if let Some(device) = input.container.cdi_devices.first() {
        return Err(SpecError::CdiDevice {
            name: device.name.clone(),
        });
    }
    if input.container.windows.is_some() {
        return Err(SpecError::Windows);
    }
    Ok(())
}

/// The annotations that tools reading a bundle look for.
fn annotations(input: &SpecInput<'_>) -> HashMap<String, String> {
    let mut annotations = HashMap::new();
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            annotations.insert(format!("io.kubernetes.cri.{key}"), value.to_owned());
        }
    };
    put("container-type", "container");
    put("sandbox-id", &input.sandbox_id);
    if let Some(metadata) = &input.sandbox.metadata {
        put("sandbox-name", &metadata.name);
        put("sandbox-namespace", &metadata.namespace);
        put("sandbox-uid", &metadata.uid);
    }
    if let Some(metadata) = &input.container.metadata {
        put("container-name", &metadata.name);
    }
    if let Some(image) = &input.container.image {
        let shown = if image.user_specified_image.is_empty() {
            &image.image
        } else {
            &image.user_specified_image
        };
        put("image-name", shown);
    }
    annotations
}
