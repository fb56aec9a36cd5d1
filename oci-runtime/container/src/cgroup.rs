//! Which cgroup a container gets, and with what limits.

use std::path::Path;

use oci_runtime_cgroups::CgroupDriver;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Spec};

/// Where containers go whose configuration doesn't say.
const DEFAULT_PARENT: &str = "/orlop";
/// Of their scopes, where systemd makes cgroups.
const DEFAULT_PREFIX: &str = "orlop";

/// The cgroup's name, in the driver's form.
pub(crate) fn path(spec: &Spec, id: &str, driver: CgroupDriver) -> String {
    let given = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_deref());
    match given.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) if driver == CgroupDriver::Systemd => path.display().to_string(),
        Some(path) => Path::new("/").join(path).display().to_string(),
        None if driver == CgroupDriver::Systemd => format!(":{DEFAULT_PREFIX}:{id}"),
        None => format!("{DEFAULT_PARENT}/{id}"),
    }
}

/// The limits, with the devices that every container may use.
///
/// As with runc, the list starts from nothing allowed: a configuration without rules gets the usual devices only.
pub(crate) fn resources(spec: &Spec) -> LinuxResources {
    let given = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    let mut resources = given.unwrap_or_default();
    let mut rules = vec![rule(false, LinuxDeviceType::A, None, None, "rwm")];
    rules.extend(resources.devices().iter().flatten().cloned());
    let allows_all = rules
        .last()
        .is_some_and(|last| last.allow() && is_everything(last));
    if !allows_all {
        rules.extend(usual());
    }
    resources.set_devices(Some(rules));
    resources
}

fn is_everything(rule: &LinuxDeviceCgroup) -> bool {
    rule.typ().unwrap_or_default() == LinuxDeviceType::A && rule.major().is_none() && rule.minor().is_none()
}

/// Making any node (which gives no right to open it), the standard devices, terminals.
fn usual() -> Vec<LinuxDeviceCgroup> {
    use LinuxDeviceType::{B, C};
    let mut rules = vec![rule(true, C, None, None, "m"), rule(true, B, None, None, "m")];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(rule(true, C, Some(major), Some(minor), "rwm"));
    }
    rules.push(rule(true, C, Some(136), None, "rwm"));
    rules
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(kind))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(linux: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2","linux":{linux}}}"#)).unwrap()
    }

    #[test]
    fn paths_are_absolute_and_have_a_default() {
        let named = |linux| path(&spec(linux), "c", CgroupDriver::Cgroupfs);
        assert_eq!(named("{}"), "/orlop/c");
        assert_eq!(named(r#"{"cgroupsPath":"/a/b"}"#), "/a/b");
        assert_eq!(named(r#"{"cgroupsPath":"a/b"}"#), "/a/b");
    }

    #[test]
    fn scopes_are_named_and_have_a_default() {
        let named = |linux| path(&spec(linux), "c", CgroupDriver::Systemd);
        assert_eq!(named("{}"), ":orlop:c");
        assert_eq!(named(r#"{"cgroupsPath":"a.slice:b:c"}"#), "a.slice:b:c");
    }

    #[test]
    fn devices_start_from_nothing_and_end_with_the_usual_ones() {
        let rules = resources(&spec("{}")).devices().clone().unwrap();
        assert!(!rules[0].allow());
        assert!(rules.iter().any(|r| r.major() == Some(136)));
        let all = resources(&spec(
            r#"{"resources":{"devices":[{"allow":true,"access":"rwm"}]}}"#,
        ));
        assert_eq!(all.devices().as_ref().map(Vec::len), Some(2));
    }
}
