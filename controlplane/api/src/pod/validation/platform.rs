//! What may not be set for the operating system that a pod names.

use k8s_openapi::api::core::v1::{PodSecurityContext, PodSpec, SecurityContext};

use super::super::list;
use super::every_container;
use crate::field::{FieldErrors, Path};

const FOR_LINUX: &str = "windows options cannot be set for a linux pod";
const FOR_WINDOWS: &str = "cannot be set for a windows pod";

/// Checks the system's name, and the fields that another system has.
pub(super) fn validate_os(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    match spec.os.as_ref().map(|os| &*os.name) {
        None => {}
        Some("") => errors.required(&path.child("os.name"), "cannot be empty"),
        Some("linux") => validate_linux(spec, path, errors),
        Some("windows") => validate_windows(spec, path, errors),
        Some(other) => errors.not_supported(&path.child("os"), other, &["linux", "windows"]),
    }
}

fn validate_linux(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    if spec
        .security_context
        .as_ref()
        .is_some_and(|context| context.windows_options.is_some())
    {
        errors.forbidden(&path.child("securityContext.windowsOptions"), FOR_LINUX);
    }
    for (container, at) in every_container(spec, path) {
        if container
            .security_context
            .as_ref()
            .is_some_and(|context| context.windows_options.is_some())
        {
            errors.forbidden(&at.child("securityContext.windowsOptions"), FOR_LINUX);
        }
    }
}

fn validate_windows(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    let default = PodSecurityContext::default();
    let pod = spec.security_context.as_ref().unwrap_or(&default);
    for (name, is_set) in [
        ("securityContext.appArmorProfile", pod.app_armor_profile.is_some()),
        ("securityContext.seLinuxOptions", pod.se_linux_options.is_some()),
        ("hostUsers", spec.host_users.is_some()),
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
        ("securityContext.seccompProfile", pod.seccomp_profile.is_some()),
        ("securityContext.fsGroup", pod.fs_group.is_some()),
        (
            "securityContext.fsGroupChangePolicy",
            pod.fs_group_change_policy.is_some(),
        ),
        ("securityContext.sysctls", !list(&pod.sysctls).is_empty()),
        ("shareProcessNamespace", spec.share_process_namespace.is_some()),
        ("securityContext.runAsUser", pod.run_as_user.is_some()),
        ("securityContext.runAsGroup", pod.run_as_group.is_some()),
        (
            "securityContext.supplementalGroups",
            pod.supplemental_groups.is_some(),
        ),
        (
            "securityContext.supplementalGroupsPolicy",
            pod.supplemental_groups_policy.is_some(),
        ),
        (
            "securityContext.seLinuxChangePolicy",
            pod.se_linux_change_policy.is_some(),
        ),
    ] {
        if is_set {
            errors.forbidden(&path.child(name), FOR_WINDOWS);
        }
    }
    for (container, at) in every_container(spec, path) {
        if let Some(context) = &container.security_context {
            validate_windows_container(context, &at.child("securityContext"), errors);
        }
    }
}

fn validate_windows_container(context: &SecurityContext, path: &Path, errors: &mut FieldErrors) {
    for (name, is_set) in [
        ("appArmorProfile", context.app_armor_profile.is_some()),
        ("seLinuxOptions", context.se_linux_options.is_some()),
        ("seccompProfile", context.seccomp_profile.is_some()),
        ("capabilities", context.capabilities.is_some()),
        (
            "readOnlyRootFilesystem",
            context.read_only_root_filesystem.is_some(),
        ),
        ("privileged", context.privileged.is_some()),
        (
            "allowPrivilegeEscalation",
            context.allow_privilege_escalation.is_some(),
        ),
        ("procMount", context.proc_mount.is_some()),
        ("runAsUser", context.run_as_user.is_some()),
        ("runAsGroup", context.run_as_group.is_some()),
    ] {
        if is_set {
            errors.forbidden(&path.child(name), FOR_WINDOWS);
        }
    }
}
