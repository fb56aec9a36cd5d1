//! What the cgroups of pods and containers are called.
//!
//! Where Orlop makes them, a name is a path below the root of the hierarchies; where systemd does, a pod is a slice and
//! a container a scope in it. A record keeps the name, whose form says who made it, so that a pod can be removed after
//! the configuration has changed.

use oci_runtime_cgroups::{Cgroup, CgroupDriver};

/// The beginning of scopes' names, and what systemd's tools show.
const PREFIX: &str = "orlop";

/// A pod's own cgroup below the root of such.
pub(crate) fn pod(root: &str, id: &str) -> String {
    match root.strip_suffix(".slice").filter(|_| !root.starts_with('/')) {
        Some(above) => format!("{above}-{id}.slice"),
        None => format!("{}/{id}", root.trim_end_matches('/')),
    }
}

/// A container's, in its pod's.
pub(crate) fn container(pod: &str, id: &str) -> String {
    match CgroupDriver::of(pod) {
        CgroupDriver::Cgroupfs => format!("{pod}/{id}"),
        CgroupDriver::Systemd => format!("{pod}:{PREFIX}:{id}"),
    }
}

/// The path below the root of the hierarchies.
pub(crate) fn path(name: &str) -> String {
    match CgroupDriver::of(name) {
        CgroupDriver::Cgroupfs => name.to_owned(),
        // What is no name of a unit has no path either.
        CgroupDriver::Systemd => Cgroup::path_of(name).unwrap_or_else(|_| name.to_owned()),
    }
}

/// A parent as the kubelet names it, in the driver's form.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn given_parent(given: &str, driver: CgroupDriver) -> Result<String, String> {
    let parts: Vec<_> = given.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() || parts.iter().any(|part| matches!(*part, "." | "..")) {
        return Err(format!("cgroup_parent `{given}` is not a path below the root"));
    }
    let last = parts.last().copied().unwrap_or_default();
    let is_slice = last.ends_with(".slice") && CgroupDriver::of(given) == CgroupDriver::Systemd;
    match driver {
        CgroupDriver::Cgroupfs if is_slice => Err(format!(
            "cgroup_parent `{given}` is a slice of systemd's, but `cgroup.driver` is `cgroupfs` here; set both the \
             kubelet's cgroupDriver and this one to the same"
        )),
        CgroupDriver::Cgroupfs => Ok(format!("/{}", parts.join("/"))),
        CgroupDriver::Systemd => match Cgroup::path_of(last) {
            Ok(_) if last.ends_with(".slice") => Ok(last.to_owned()),
            _ => Err(format!(
                "cgroup_parent `{given}` is not the name of a slice, but `cgroup.driver` is `systemd` here; set both \
                 the kubelet's cgroupDriver and this one to the same"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_form_of_who_makes_them() {
        assert_eq!(pod("/orlop", "p"), "/orlop/p");
        assert_eq!(pod("orlop.slice", "p"), "orlop-p.slice");
        assert_eq!(container("/orlop/p", "c"), "/orlop/p/c");
        assert_eq!(container("orlop-p.slice", "c"), "orlop-p.slice:orlop:c");
        assert_eq!(
            path("orlop-p.slice:orlop:c"),
            "/orlop.slice/orlop-p.slice/orlop-c.scope"
        );
        assert_eq!(path("/orlop/p"), "/orlop/p");
    }

    #[test]
    fn a_kubelet_with_another_driver_is_told_so() {
        use CgroupDriver::{Cgroupfs, Systemd};
        assert_eq!(
            given_parent("kubepods/pod1/", Cgroupfs).unwrap(),
            "/kubepods/pod1"
        );
        assert_eq!(
            given_parent("kubepods-pod1.slice", Systemd).unwrap(),
            "kubepods-pod1.slice"
        );
        let whole = "/kubepods.slice/kubepods-pod1.slice";
        assert_eq!(given_parent(whole, Systemd).unwrap(), "kubepods-pod1.slice");
        assert_eq!(given_parent(whole, Cgroupfs).unwrap(), whole);
        for (bad, driver) in [
            ("kubepods-pod1.slice", Cgroupfs),
            ("/kubepods/pod1", Systemd),
            ("a--b.slice", Systemd),
        ] {
            assert!(given_parent(bad, driver).is_err(), "{bad}");
        }
        assert!(
            given_parent("/kubepods/pod1", Systemd)
                .unwrap_err()
                .contains("cgroupDriver")
        );
    }
}
