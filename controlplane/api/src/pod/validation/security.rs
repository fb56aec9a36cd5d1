//! Security contexts of the pod and of its containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, PodSecurityContext, PodSpec, SeccompProfile};

use super::super::{list, text};
use super::{Whole, validate_descending_path};
use crate::field::{FieldErrors, Path, Shown};
use crate::names;

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn validate_id(id: Option<i64>, path: &Path, errors: &mut FieldErrors) {
    if let Some(id) = id {
        for why in names::user_or_group(id) {
            errors.invalid(path, id, why);
        }
    }
}

/// Checks the pod's.
pub(super) fn validate_pod_security(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    let default = PodSecurityContext::default();
    let context = spec.security_context.as_ref().unwrap_or(&default);
    validate_id(context.fs_group, &path.child("fsGroup"), errors);
    validate_id(context.run_as_user, &path.child("runAsUser"), errors);
    validate_id(context.run_as_group, &path.child("runAsGroup"), errors);
    for (i, group) in list(&context.supplemental_groups).iter().enumerate() {
        validate_id(Some(*group), &path.child("supplementalGroups").index(i), errors);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("shareProcessNamespace"), true, why);
    }
    validate_sysctls(spec, context, &path.child("sysctls"), errors);
    let mut choose = |name: &str, value: &Option<String>, choices: &[&str]| {
        if let Some(value) = value.as_deref().filter(|value| !choices.contains(value)) {
            errors.not_supported(&path.child(name), value, choices);
        }
    };
    choose(
        "fsGroupChangePolicy",
        &context.fs_group_change_policy,
        &["Always", "OnRootMismatch"],
    );
    validate_seccomp(
        context.seccomp_profile.as_ref(),
        &path.child("seccompProfile"),
        errors,
    );
    validate_app_armor(
        context.app_armor_profile.as_ref(),
        &path.child("appArmorProfile"),
        errors,
    );
    let mut choose = |name: &str, value: &Option<String>, choices: &[&str]| {
        if let Some(value) = value.as_deref().filter(|value| !choices.contains(value)) {
            errors.not_supported(&path.child(name), value, choices);
        }
    };
    choose(
        "supplementalGroupsPolicy",
        &context.supplemental_groups_policy,
        &["Merge", "Strict"],
    );
    choose(
        "seLinuxChangePolicy",
        &context.se_linux_change_policy,
        &["MountOption", "Recursive"],
    );
}

fn validate_sysctls(spec: &PodSpec, context: &PodSecurityContext, path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, sysctl) in list(&context.sysctls).iter().enumerate() {
        let at = path.index(i).child("name");
        let name = &*sysctl.name;
        if name.is_empty() {
            errors.required(&at, "");
        } else if !names::is_sysctl(name) {
            let why = "must have at most 253 characters and match regex \
                       ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.invalid(&at, name, why);
        } else if seen.contains(name) {
            errors.duplicate(&at, name);
        }
        let dotted = normalized(name);
        if spec.host_network == Some(true) && dotted.starts_with("net.") {
            errors.invalid(&at, name, "may not be specified when 'hostNetwork' is true");
        } else if spec.host_ipc == Some(true) && is_ipc(&dotted) {
            errors.invalid(&at, name, "may not be specified when 'hostIPC' is true");
        }
        seen.insert(name);
    }
}

/// A sysctl whose first separator is a slash has dots and slashes the other way around.
fn normalized(name: &str) -> String {
    if name
        .find(['.', '/'])
        .is_none_or(|first| name[first..].starts_with('.'))
    {
        return name.to_owned();
    }
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    name.chars().map(swap).collect()
}

fn is_ipc(name: &str) -> bool {
    let names = [
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.shm",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.msg",
    ];
    names.contains(&name) || name.starts_with("fs.mqueue.")
}

fn validate_seccomp(profile: Option<&SeccompProfile>, path: &Path, errors: &mut FieldErrors) {
    let Some(profile) = profile else { return };
    if profile.type_.is_empty() {
        errors.required(&path.child("type"), "type is required when seccompProfile is set");
    } else if !PROFILES.contains(&&*profile.type_) {
        errors.not_supported(&path.child("type"), &profile.type_, &PROFILES);
    }
    let file_path = path.child("localhostProfile");
    match (&*profile.type_, &profile.localhost_profile) {
        ("Localhost", None) => errors.required(&file_path, "must be set when seccomp type is Localhost"),
        ("Localhost", Some(file)) => validate_descending_path(file, &file_path, errors),
        (_, Some(_)) => {
            errors.invalid(
                &file_path,
                Shown::json(profile),
                "can only be set when seccomp type is Localhost",
            );
        }
        (_, None) => {}
    }
}

fn validate_app_armor(profile: Option<&AppArmorProfile>, path: &Path, errors: &mut FieldErrors) {
    const MOST: usize = 4095;
    let Some(profile) = profile else { return };
    let name_path = path.child("localhostProfile");
    match (&*profile.type_, profile.localhost_profile.as_deref()) {
        ("Localhost", None) => errors.required(&name_path, "must be set when AppArmor type is Localhost"),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                errors.invalid(&name_path, name, "must not be padded with whitespace");
            } else if name.is_empty() {
                errors.required(&name_path, "must be set when AppArmor type is Localhost");
            }
            if name.len() > MOST {
                errors.too_long(&name_path, MOST);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            errors.invalid(
                &name_path,
                name,
                "can only be set when AppArmor type is Localhost",
            );
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => errors.required(
            &path.child("type"),
            "type is required when appArmorProfile is set",
        ),
        (other, _) => errors.not_supported(&path.child("type"), other, &PROFILES),
    }
}

/// Checks a container's.
pub(super) fn validate_container_security(
    container: &Container,
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let Some(context) = &container.security_context else {
        return;
    };
    let privileged = context.privileged == Some(true);
    if privileged && !whole.options.allow_privileged {
        errors.forbidden(&path.child("privileged"), "disallowed by cluster policy");
    }
    validate_id(context.run_as_user, &path.child("runAsUser"), errors);
    validate_id(context.run_as_group, &path.child("runAsGroup"), errors);
    if context.proc_mount.is_some() {
        let mount = text(&context.proc_mount);
        if !matches!(mount, "Default" | "Unmasked") {
            errors.not_supported(&path.child("procMount"), mount, &["Default", "Unmasked"]);
        }
        if whole.host_users && mount == "Unmasked" {
            errors.invalid(
                &path.child("procMount"),
                mount,
                "`hostUsers` must be false to use `Unmasked`",
            );
        }
    }
    validate_seccomp(
        context.seccomp_profile.as_ref(),
        &path.child("seccompProfile"),
        errors,
    );
    if context.allow_privilege_escalation == Some(false) {
        if privileged {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(path, Shown::json(context), why);
        }
        let added = context
            .capabilities
            .as_ref()
            .map_or(&[][..], |capabilities| list(&capabilities.add));
        for _ in added.iter().filter(|capability| *capability == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, Shown::json(context), why);
        }
    }
    validate_app_armor(
        context.app_armor_profile.as_ref(),
        &path.child("appArmorProfile"),
        errors,
    );
}
