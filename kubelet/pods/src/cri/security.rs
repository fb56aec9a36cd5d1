//! Security contexts: the pod's and a container's merged, and what they become in CRI's words.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile,
    SecurityContext,
};
use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, UserNamespace,
};

use super::container::{ContainerExtra, ImageUser, all_containers};
use super::errors::ConfigError;
use super::facts::NodeFacts;
use super::labels;
use super::sandbox::{SandboxExtra, is_host_network, spec};
use super::userns::IdRange;

const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

fn pod_context(pod: &Pod) -> Option<&PodSecurityContext> {
    spec(pod).security_context.as_ref()
}

/// A container's security context with what it inherits from its pod.
pub fn effective(pod: &Pod, container: &Container) -> SecurityContext {
    let mut merged = container.security_context.clone().unwrap_or_default();
    if let Some(pod) = pod_context(pod) {
        merged.run_as_user = merged.run_as_user.or(pod.run_as_user);
        merged.run_as_group = merged.run_as_group.or(pod.run_as_group);
        merged.run_as_non_root = merged.run_as_non_root.or(pod.run_as_non_root);
        merged.se_linux_options = merged.se_linux_options.or_else(|| pod.se_linux_options.clone());
        merged.seccomp_profile = merged.seccomp_profile.or_else(|| pod.seccomp_profile.clone());
    }
    merged
}

/// Which namespaces a pod shares with the node, and its containers with each other.
pub(crate) fn namespaces(
    pod: &Pod,
    facts: &NodeFacts,
    range: Option<IdRange>,
    handler: &str,
) -> Result<NamespaceOption, ConfigError> {
    let spec = spec(pod);
    let mode = |host: Option<bool>| {
        if host == Some(true) {
            NamespaceMode::Node
        } else {
            NamespaceMode::Pod
        }
    };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => NamespaceMode::Node,
        (_, Some(true)) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    let own_users = spec.host_users == Some(false);
    let userns = match range {
        Some(range) if own_users && facts.runtime.user_namespaces => range.to_cri(),
        _ if own_users => {
            return Err(ConfigError::NoUserNamespaces {
                handler: handler.to_owned(),
            });
        }
        _ => UserNamespace {
            mode: NamespaceMode::Node.into(),
            uids: Vec::new(),
            gids: Vec::new(),
        },
    };
    Ok(NamespaceOption {
        network: mode(spec.host_network).into(),
        pid: pid.into(),
        ipc: mode(spec.host_ipc).into(),
        target_id: String::new(),
        userns_options: Some(userns),
    })
}

fn id(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

fn selinux(options: &SELinuxOptions) -> SeLinuxOption {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

/// The groups that containers of a pod have besides their own: `fsGroup`, then `supplementalGroups`, then the volumes'.
fn groups(pod: &Pod, of_volumes: &[i64]) -> Vec<i64> {
    let context = pod_context(pod);
    let own = context
        .and_then(|context| context.supplemental_groups.as_deref())
        .unwrap_or_default();
    let fs_group = context.and_then(|context| context.fs_group);
    fs_group
        .into_iter()
        .chain(own.iter().copied())
        .chain(of_volumes.iter().copied())
        .collect()
}

fn groups_policy(pod: &Pod, facts: &NodeFacts) -> Result<SupplementalGroupsPolicy, ConfigError> {
    match pod_context(pod).and_then(|context| context.supplemental_groups_policy.as_deref()) {
        None | Some("" | "Merge") => Ok(SupplementalGroupsPolicy::Merge),
        Some("Strict") if facts.runtime.supplemental_groups_policy => Ok(SupplementalGroupsPolicy::Strict),
        Some(other) => Err(ConfigError::SupplementalGroupsPolicy(other.to_owned())),
    }
}

/// The security context of a sandbox.
pub(crate) fn sandbox_context(
    pod: &Pod,
    facts: &NodeFacts,
    extra: &SandboxExtra,
) -> Result<LinuxSandboxSecurityContext, ConfigError> {
    let context = pod_context(pod);
    let privileged = |container: &Container| {
        container
            .security_context
            .as_ref()
            .and_then(|context| context.privileged)
            == Some(true)
    };
    Ok(LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(
            pod,
            facts,
            extra.user_namespace,
            &extra.runtime_handler,
        )?),
        selinux_options: context
            .and_then(|context| context.se_linux_options.as_ref())
            .map(selinux),
        run_as_user: id(context.and_then(|context| context.run_as_user)),
        run_as_group: id(context.and_then(|context| context.run_as_group)),
        supplemental_groups: groups(pod, &extra.groups),
        supplemental_groups_policy: groups_policy(pod, facts)?.into(),
        privileged: all_containers(pod).iter().any(|container| privileged(container)),
        seccomp: Some(profile(ProfileType::RuntimeDefault)),
        ..LinuxSandboxSecurityContext::default()
    })
}

/// The security context of a container.
#[expect(
    deprecated,
    reason = "runtimes that don't know the field yet read the old one"
)]
pub(crate) fn container_context(
    pod: &Pod,
    container: &Container,
    user: &ImageUser,
    facts: &NodeFacts,
    extra: &ContainerExtra,
) -> Result<LinuxContainerSecurityContext, ConfigError> {
    let effective = effective(pod, container);
    verify_non_root(pod, container, &effective, user)?;
    let mut options = namespaces(pod, facts, extra.user_namespace, &extra.runtime_handler)?;
    if let Some(target) = extra
        .target_id
        .as_ref()
        .filter(|_| options.pid == i32::from(NamespaceMode::Container))
    {
        options.pid = NamespaceMode::Target.into();
        options.target_id = target.clone();
    }
    let (image_uid, image_name) = match (effective.run_as_user, user) {
        (Some(_), _) => (None, String::new()),
        (None, ImageUser::Id(uid)) => (Some(*uid), String::new()),
        (None, ImageUser::Name(name)) => (None, name.clone()),
    };
    let unmasked = effective.proc_mount.as_deref() == Some("Unmasked");
    let masked = MASKED_PATHS.iter().map(|path| (*path).to_owned());
    let apparmor = apparmor(pod, container);
    Ok(LinuxContainerSecurityContext {
        capabilities: effective.capabilities.as_ref().map(capabilities),
        privileged: effective.privileged.unwrap_or(false),
        namespace_options: Some(options),
        selinux_options: effective.se_linux_options.as_ref().map(selinux),
        run_as_user: id(effective.run_as_user.or(image_uid)),
        run_as_group: id(effective.run_as_group),
        run_as_username: image_name,
        readonly_rootfs: effective.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(pod, &extra.groups),
        supplemental_groups_policy: groups_policy(pod, facts)?.into(),
        no_new_privs: effective.allow_privilege_escalation == Some(false),
        masked_paths: match unmasked {
            true => Vec::new(),
            false => masked
                .chain(facts.thermal_throttle_paths.iter().cloned())
                .collect(),
        },
        readonly_paths: match unmasked {
            true => Vec::new(),
            false => READONLY_PATHS.iter().map(|path| (*path).to_owned()).collect(),
        },
        seccomp: Some(seccomp(effective.seccomp_profile.as_ref(), facts)?),
        apparmor_profile: apparmor.as_ref().map(deprecated_apparmor).unwrap_or_default(),
        apparmor,
        ..LinuxContainerSecurityContext::default()
    })
}

fn verify_non_root(
    pod: &Pod,
    container: &Container,
    effective: &SecurityContext,
    user: &ImageUser,
) -> Result<(), ConfigError> {
    if effective.run_as_non_root != Some(true) {
        return Ok(());
    }
    let (pod, container) = (labels::describe(pod), container.name.clone());
    match (effective.run_as_user, user) {
        (Some(0), _) => Err(ConfigError::RunsAsRoot { pod, container }),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Id(0)) => Err(ConfigError::ImageRunsAsRoot { pod, container }),
        (None, ImageUser::Id(_)) => Ok(()),
        (None, ImageUser::Name(user)) => Err(ConfigError::ImageUserIsAName {
            user: user.clone(),
            pod,
            container,
        }),
    }
}

fn capabilities(wanted: &Capabilities) -> Capability {
    Capability {
        add_capabilities: wanted.add.clone().unwrap_or_default(),
        drop_capabilities: wanted.drop.clone().unwrap_or_default(),
        add_ambient_capabilities: Vec::new(),
    }
}

fn profile(kind: ProfileType) -> SecurityProfile {
    SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: String::new(),
    }
}

fn seccomp(wanted: Option<&SeccompProfile>, facts: &NodeFacts) -> Result<SecurityProfile, ConfigError> {
    let default = match facts.seccomp_default {
        true => ProfileType::RuntimeDefault,
        false => ProfileType::Unconfined,
    };
    match wanted.map(|wanted| (wanted.type_.as_str(), wanted.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => Ok(profile(ProfileType::RuntimeDefault)),
        Some(("Unconfined", _)) => Ok(profile(ProfileType::Unconfined)),
        Some(("Localhost", Some(file))) if !file.is_empty() => Ok(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: format!("{}/seccomp/{file}", facts.root_dir),
        }),
        Some(("Localhost", _)) => Err(ConfigError::SeccompWithoutFile),
        _ => Ok(profile(default)),
    }
}

/// The container's field, else the old annotation, which static pods may still have, else the pod's field.
fn apparmor(pod: &Pod, container: &Container) -> Option<SecurityProfile> {
    let own = container
        .security_context
        .as_ref()
        .and_then(|context| context.app_armor_profile.as_ref());
    let of_pod = || pod_context(pod).and_then(|context| context.app_armor_profile.as_ref());
    let annotated = || {
        let key = format!("{APPARMOR_ANNOTATION}{}", container.name);
        from_annotation(labels::annotation(pod, &key)?)
    };
    own.and_then(from_field)
        .or_else(annotated)
        .or_else(|| of_pod().and_then(from_field))
}

fn from_field(wanted: &AppArmorProfile) -> Option<SecurityProfile> {
    match wanted.type_.as_str() {
        "RuntimeDefault" => Some(profile(ProfileType::RuntimeDefault)),
        "Unconfined" => Some(profile(ProfileType::Unconfined)),
        "Localhost" => Some(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: wanted.localhost_profile.clone().filter(|name| !name.is_empty())?,
        }),
        _ => None,
    }
}

fn from_annotation(value: &str) -> Option<SecurityProfile> {
    match value {
        "runtime/default" => Some(profile(ProfileType::RuntimeDefault)),
        "unconfined" => Some(profile(ProfileType::Unconfined)),
        _ => Some(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: value
                .strip_prefix("localhost/")
                .filter(|name| !name.is_empty())?
                .to_owned(),
        }),
    }
}

/// What runtimes read that don't know the field yet.
fn deprecated_apparmor(profile: &SecurityProfile) -> String {
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::Unconfined) => "unconfined".to_owned(),
        Ok(ProfileType::Localhost) => format!("localhost/{}", profile.localhost_ref),
        _ => "runtime/default".to_owned(),
    }
}

/// A pod's sysctls with dots between their parts, whichever way they are written.
pub fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let wanted = pod_context(pod)
        .and_then(|context| context.sysctls.as_deref())
        .unwrap_or_default();
    wanted
        .iter()
        .map(|sysctl| (dotted(&sysctl.name), sysctl.value.clone()))
        .collect()
}

/// `net/ipv4/conf/eth0.100/mtu` is `net.ipv4.conf.eth0/100.mtu`.
fn dotted(name: &str) -> String {
    let swap = |c: char| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

/// Whether the node allows every sysctl of a pod; also asked when a pod is admitted, with the reason `SysctlForbidden`.
pub fn check_sysctls(pod: &Pod, facts: &NodeFacts) -> Result<(), ConfigError> {
    let allowed = |name: &str| {
        SAFE_SYSCTLS.contains(&name)
            || facts
                .allowed_unsafe_sysctls
                .iter()
                .any(|known| match known.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => known == name,
                })
    };
    for name in sysctls(pod).into_keys() {
        let reason = if !allowed(&name) {
            "not allowlisted"
        } else if name.starts_with("net.") && is_host_network(pod) {
            "not allowed with host net enabled"
        } else if is_ipc(&name) && spec(pod).host_ipc == Some(true) {
            "not allowed with host ipc enabled"
        } else {
            continue;
        };
        return Err(ConfigError::Sysctl { name, reason });
    }
    Ok(())
}

fn is_ipc(name: &str) -> bool {
    ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}
