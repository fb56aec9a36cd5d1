//! Namespaces: the pod's by path, the container's own as new ones.
//!
//! Network, IPC and UTS always belong to the pod. The PID namespace depends on the mode: the pod's, the container's
//! own, the host's, or another container's. A container that says nothing at all gets what its sandbox was made with.
//! The mount namespace is always new. The cgroup namespace is new too, so that a container sees its own cgroup as the
//! root; a privileged one sees the host's, which is what tools that manage the node expect.

use std::path::PathBuf;

use cri_api::v1::{self, NamespaceMode};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};

use super::{SpecError, SpecInput};

/// The PID namespace mode of a container: its own, or where it has no namespace options, its sandbox's.
pub fn pid_mode(
    sandbox: &v1::PodSandboxConfig,
    container: &v1::ContainerConfig,
) -> Result<NamespaceMode, SpecError> {
    let own = container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let own = own.and_then(|s| s.namespace_options.as_ref());
    let pod = sandbox.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let pod = pod.and_then(|s| s.namespace_options.as_ref());
    let mode = own.or(pod).map_or(0, |options| options.pid);
    NamespaceMode::try_from(mode).map_err(|_| SpecError::UnknownEnum {
        field: "linux.security_context.namespace_options.pid",
        value: mode,
    })
}

/// The container's namespaces.
pub(super) fn namespaces(input: &SpecInput<'_>) -> Result<Vec<LinuxNamespace>, SpecError> {
    use LinuxNamespaceType as Type;
    let mut all = Vec::with_capacity(7);
    let paths = &input.namespaces;
    // The user namespace first: joining it gives the rights over the others that it owns.
    let shared = [
        (Type::User, &paths.user),
        (Type::Network, &paths.network),
        (Type::Ipc, &paths.ipc),
        (Type::Uts, &paths.uts),
    ];
    for (kind, path) in shared {
        if let Some(path) = path {
            all.push(namespace(kind, Some(path.clone()))?);
        }
    }
    match pid_mode(input.sandbox, input.container)? {
        NamespaceMode::Node => {}
        NamespaceMode::Container => all.push(namespace(Type::Pid, None)?),
        mode @ (NamespaceMode::Pod | NamespaceMode::Target) => {
            let path = paths.pid.clone().ok_or_else(|| SpecError::NoPidNamespace {
                mode: mode.as_str_name(),
                why: match mode {
                    NamespaceMode::Target => "the target container has no PID namespace to join",
                    _ => "its sandbox was made without a shared PID namespace",
                },
            })?;
            all.push(namespace(Type::Pid, Some(path))?);
        }
    }
    all.push(namespace(Type::Mount, None)?);
    if !input.privileged() {
        all.push(namespace(Type::Cgroup, None)?);
    }
    Ok(all)
}

fn namespace(kind: LinuxNamespaceType, path: Option<PathBuf>) -> Result<LinuxNamespace, SpecError> {
    let mut namespace = LinuxNamespaceBuilder::default().typ(kind).build()?;
    namespace.set_path(path);
    Ok(namespace)
}
