//! A container's cgroup, where plugins choose it.
//!
//! Whatever ends a container kills all that is in its cgroup and below. So it must be the container's alone: a new one,
//! and none that holds others.

use cri_nri::v1alpha1 as nri;
use oci_runtime_cgroups::{Cgroup, CgroupDriver};

use super::AdjustError;
use crate::cgroup_names;
use crate::node::Node;
use crate::store::Container;

/// What a chosen cgroup is held against.
pub(super) struct Neighbours<'a> {
    /// Who makes cgroups here.
    pub(super) driver: CgroupDriver,
    /// The names of those of pods, other containers and shims.
    pub(super) taken: &'a [String],
    /// Whether there is one of this name.
    pub(super) exists: &'a dyn Fn(&str) -> bool,
}

impl Node {
    /// Whether a plugin may have this cgroup for this container. Nothing else may choose one until it is recorded.
    pub(super) fn check_cgroup(
        &self,
        container: &Container,
        path: &str,
        plugin: &str,
    ) -> Result<(), AdjustError> {
        let settings = self.config();
        let others = self.store.containers().into_iter();
        let others = others.filter(|other| other.id != container.id);
        let mut taken: Vec<_> = others.map(|other| other.record().cgroup.clone()).collect();
        let pods = self.store.sandboxes().into_iter();
        taken.extend(pods.map(|pod| pod.record().cgroup_parent.name().to_owned()));
        taken.push(settings.cgroup.root().to_owned());
        taken.extend(settings.cgroup.shims().map(ToOwned::to_owned));
        taken.extend(Cgroup::of_process(std::process::id()).map(|own| own.path().to_owned()));
        let neighbours = Neighbours {
            driver: settings.cgroup.driver.into(),
            taken: &taken,
            exists: &|path| Cgroup::named(path).is_ok_and(|cgroup| cgroup.exists()),
        };
        check(path, plugin, &neighbours)
    }
}

/// Who wants the cgroup of a container, as `index-name`.
pub(super) fn who(owners: &nri::FieldOwners) -> String {
    let owner = owners.simple.get(&(nri::Field::CgroupsPath as i32));
    owner.cloned().unwrap_or_default()
}

/// Whether a chosen cgroup can be made by the driver, and is nobody else's.
pub(super) fn check(path: &str, plugin: &str, among: &Neighbours<'_>) -> Result<(), AdjustError> {
    let invalid = |problem: &str| AdjustError::Cgroup {
        plugin: plugin.to_owned(),
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    if !is_made_by(path, among.driver) {
        return Err(invalid("the cgroup driver could not make it"));
    }
    if among.driver == CgroupDriver::Systemd && !path.contains(':') {
        return Err(invalid("a slice holds other cgroups"));
    }
    let whole = cgroup_names::path(path);
    let below = |other: &String| {
        let other = cgroup_names::path(other);
        let rest = other.strip_prefix(&whole);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if let Some(other) = among.taken.iter().find(|other| below(other)) {
        return Err(invalid(&format!("it is or holds `{other}`")));
    }
    if (among.exists)(path) {
        return Err(invalid("it is there already"));
    }
    Ok(())
}

fn is_made_by(path: &str, driver: CgroupDriver) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    CgroupDriver::of(path) == driver
        && match driver {
            CgroupDriver::Cgroupfs => path
                .strip_prefix('/')
                .is_some_and(|rest| rest.split('/').all(plain)),
            CgroupDriver::Systemd => Cgroup::path_of(path).is_ok(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(path: &str, driver: CgroupDriver) -> Result<(), String> {
        let taken = [
            "/pods/x/c1",
            "/pods/x",
            "/shims",
            "pods-x.slice",
            "pods-x.slice:orlop:c1",
        ]
        .map(str::to_owned);
        let among = Neighbours {
            driver,
            taken: &taken,
            exists: &|path| matches!(path, "/old" | "old.slice:orlop:a"),
        };
        check(path, "10-p", &among).map_err(|error| error.to_string())
    }

    #[test]
    fn a_cgroup_must_be_one_that_the_driver_makes() {
        use CgroupDriver::{Cgroupfs, Systemd};
        checked("/pods/x/y", Cgroupfs).unwrap();
        checked("/pods/x/c1x", Cgroupfs).unwrap();
        checked("a.slice:orlop:b", Systemd).unwrap();
        for (path, driver) in [
            ("/pods/../x", Cgroupfs),
            ("/", Cgroupfs),
            ("pods/x", Cgroupfs),
            ("a.slice:orlop:b", Cgroupfs),
            ("/pods/x", Systemd),
        ] {
            let text = checked(path, driver).unwrap_err();
            assert!(text.contains("could not make"), "{text}");
        }
    }

    #[test]
    fn a_cgroup_must_be_new_and_hold_nobody_else() {
        use CgroupDriver::{Cgroupfs, Systemd};
        for (path, driver, why) in [
            ("/old", Cgroupfs, "there already"),
            ("/pods", Cgroupfs, "holds `/pods/x/c1`"),
            ("/pods/x", Cgroupfs, "holds `/pods/x/c1`"),
            ("/pods/x/c1", Cgroupfs, "holds `/pods/x/c1`"),
            ("/shims", Cgroupfs, "holds `/shims`"),
            ("old.slice:orlop:a", Systemd, "there already"),
            ("pods-x.slice:orlop:c1", Systemd, "holds `pods-x.slice:orlop:c1`"),
            ("pods-x.slice", Systemd, "a slice"),
            ("new.slice", Systemd, "a slice"),
        ] {
            let text = checked(path, driver).unwrap_err();
            for part in ["`10-p`", path, why, "another"] {
                assert!(text.contains(part), "{text}: {part}");
            }
        }
    }
}
