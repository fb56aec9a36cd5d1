//! Seccomp, AppArmor, SELinux and the paths that are hidden or read-only.
//!
//! A profile is asked for in one of two ways: the CRI's structured field, or the deprecated text of older callers
//! (`runtime/default`, `unconfined`, `localhost/<name>`). Both are read into one [`Profile`]. A privileged container
//! is confined by none of them.

use cri_api::v1::{self, SecurityProfile, security_profile::ProfileType};
use oci_spec::runtime::{Capability, LinuxSeccomp, get_default_maskedpaths, get_default_readonly_paths};

use super::{ALL_CAPABILITIES, SpecError, SpecInput, UnsetSeccomp, capabilities};

/// A profile as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Profile {
    Unset,
    RuntimeDefault,
    Unconfined,
    Localhost(String),
}

/// Where a container's seccomp filter comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompSource {
    /// No filter.
    Unconfined,
    /// The built-in default.
    RuntimeDefault,
    /// A file on the host, whose contents go into [`SpecInput::seccomp_profile`].
    File(std::path::PathBuf),
}

/// Where the seccomp filter of a container with this security context comes from.
pub fn seccomp_source(
    security: Option<&v1::LinuxContainerSecurityContext>,
    unset: UnsetSeccomp,
) -> Result<SeccompSource, SpecError> {
    if security.is_some_and(|s| s.privileged) {
        return Ok(SeccompSource::Unconfined);
    }
    Ok(match seccomp_profile(security)? {
        Profile::Unset if unset == UnsetSeccomp::RuntimeDefault => SeccompSource::RuntimeDefault,
        Profile::Unset | Profile::Unconfined => SeccompSource::Unconfined,
        Profile::RuntimeDefault => SeccompSource::RuntimeDefault,
        Profile::Localhost(path) => SeccompSource::File(path.into()),
    })
}

fn seccomp_profile(security: Option<&v1::LinuxContainerSecurityContext>) -> Result<Profile, SpecError> {
    let Some(security) = security else {
        return Ok(Profile::Unset);
    };
    if let Some(profile) = &security.seccomp {
        return structured(profile, "seccomp");
    }
    #[allow(deprecated, reason = "older callers send only this")]
    let text = security.seccomp_profile_path.as_str();
    let profile = legacy(text).ok_or_else(|| SpecError::SeccompName {
        profile: text.to_owned(),
    })?;
    match &profile {
        Profile::Localhost(path) if !path.starts_with('/') => Err(SpecError::SeccompName {
            profile: text.to_owned(),
        }),
        _ => Ok(profile),
    }
}

fn structured(profile: &SecurityProfile, kind: &'static str) -> Result<Profile, SpecError> {
    let field = if kind == "seccomp" {
        "seccomp.profile_type"
    } else {
        "apparmor.profile_type"
    };
    let unknown = |_| SpecError::UnknownEnum {
        field,
        value: profile.profile_type,
    };
    Ok(
        match ProfileType::try_from(profile.profile_type).map_err(unknown)? {
            ProfileType::RuntimeDefault => Profile::RuntimeDefault,
            ProfileType::Unconfined => Profile::Unconfined,
            ProfileType::Localhost if profile.localhost_ref.is_empty() => {
                return Err(SpecError::NoLocalhostRef { kind });
            }
            ProfileType::Localhost => {
                let name = &profile.localhost_ref;
                Profile::Localhost(name.strip_prefix("localhost/").unwrap_or(name).to_owned())
            }
        },
    )
}

fn legacy(text: &str) -> Option<Profile> {
    Some(match text {
        "" => Profile::Unset,
        "runtime/default" | "docker/default" => Profile::RuntimeDefault,
        "unconfined" => Profile::Unconfined,
        _ => Profile::Localhost(
            text.strip_prefix("localhost/")
                .filter(|n| !n.is_empty())?
                .to_owned(),
        ),
    })
}

/// The container's seccomp filter.
pub(super) fn seccomp(input: &SpecInput<'_>) -> Result<Option<LinuxSeccomp>, SpecError> {
    match seccomp_source(input.security(), input.defaults.unset_seccomp)? {
        SeccompSource::Unconfined => Ok(None),
        SeccompSource::RuntimeDefault => {
            // Some system calls are allowed only to who may use them anyway.
            let held = capabilities::capabilities(input)?;
            let held = held.bounding().clone().unwrap_or_default();
            let names: Vec<String> = ALL_CAPABILITIES
                .iter()
                .filter(|c| held.contains(c))
                .map(kernel_name)
                .collect();
            Ok(Some(crate::seccomp_default::runtime_default(
                &names,
                std::env::consts::ARCH,
            )))
        }
        SeccompSource::File(path) => {
            let text = input.seccomp_profile.as_deref();
            let text = text.ok_or(SpecError::Inconsistent(
                "the seccomp profile's contents are not handed in",
            ))?;
            let profile = path.display().to_string();
            serde_json::from_str(text)
                .map(Some)
                .map_err(|source| SpecError::Seccomp { profile, source })
        }
    }
}

fn kernel_name(capability: &Capability) -> String {
    format!("CAP_{capability}")
}

/// The AppArmor profile of the container's process.
pub(super) fn apparmor(input: &SpecInput<'_>) -> Result<Option<String>, SpecError> {
    let Some(security) = input.security() else {
        return Ok(input.default_apparmor());
    };
    #[allow(deprecated, reason = "older callers send only this")]
    let text = security.apparmor_profile.as_str();
    let profile = match &security.apparmor {
        Some(profile) => structured(profile, "apparmor")?,
        None => legacy(text).ok_or_else(|| SpecError::AppArmorName {
            profile: text.to_owned(),
        })?,
    };
    match profile {
        // A profile that someone names is never dropped silently, privileged or not.
        Profile::Localhost(name) if !input.host.apparmor => Err(SpecError::NoAppArmor { profile: name }),
        Profile::Localhost(name) => Ok(Some(name)),
        Profile::Unconfined => Ok(input.host.apparmor.then(|| "unconfined".to_owned())),
        Profile::Unset | Profile::RuntimeDefault if security.privileged => Ok(None),
        Profile::Unset | Profile::RuntimeDefault => Ok(input.default_apparmor()),
    }
}

impl SpecInput<'_> {
    fn default_apparmor(&self) -> Option<String> {
        self.defaults
            .apparmor_profile
            .clone()
            .filter(|_| self.host.apparmor)
    }

    fn selinux(&self) -> Option<&v1::SeLinuxOption> {
        if !self.host.selinux {
            return None;
        }
        let own = self.security().and_then(|s| s.selinux_options.as_ref());
        own.or_else(|| self.sandbox_security().and_then(|s| s.selinux_options.as_ref()))
    }
}

/// `user:role:type:level`, with what a container gets where a part is missing.
pub(super) fn process_label(input: &SpecInput<'_>) -> Option<String> {
    if input.privileged() {
        return None;
    }
    input.selinux().map(|o| label(o, "container_t"))
}

/// As [`process_label`], for the files of the container's own mounts.
pub(super) fn mount_label(input: &SpecInput<'_>) -> Option<String> {
    if input.privileged() {
        return None;
    }
    let file = |o: &v1::SeLinuxOption| {
        let file = v1::SeLinuxOption {
            user: String::new(),
            role: "object_r".to_owned(),
            r#type: String::new(),
            level: o.level.clone(),
        };
        label(&file, "container_file_t")
    };
    input.selinux().map(file)
}

fn label(options: &v1::SeLinuxOption, default_type: &str) -> String {
    let or = |text: &str, default: &str| {
        if text.is_empty() {
            default.to_owned()
        } else {
            text.to_owned()
        }
    };
    let user = or(&options.user, "system_u");
    let role = or(&options.role, "system_r");
    let kind = or(&options.r#type, default_type);
    let level = or(&options.level, "s0");
    format!("{user}:{role}:{kind}:{level}")
}

/// Paths that the container can't read.
pub(super) fn masked_paths(input: &SpecInput<'_>) -> Vec<String> {
    paths(input, |s| &s.masked_paths, get_default_maskedpaths)
}

/// Paths that the container can't write.
pub(super) fn readonly_paths(input: &SpecInput<'_>) -> Vec<String> {
    paths(input, |s| &s.readonly_paths, get_default_readonly_paths)
}

/// The kubelet always sends both lists, except for `procMount: Unmasked`, which it allows only in a user namespace. So
/// two empty lists outside of one come from a caller that knows nothing of them, who is better off with the default.
fn paths(
    input: &SpecInput<'_>,
    list: impl Fn(&v1::LinuxContainerSecurityContext) -> &Vec<String>,
    default: impl Fn() -> Vec<String>,
) -> Vec<String> {
    if input.privileged() {
        return Vec::new();
    }
    let security = input.security();
    let silent = security.is_none_or(|s| s.masked_paths.is_empty() && s.readonly_paths.is_empty());
    match security {
        Some(security) if !silent => list(security).clone(),
        _ if input.namespaces.user.is_some() => Vec::new(),
        _ => default(),
    }
}
