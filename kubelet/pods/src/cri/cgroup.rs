//! The names of pods' cgroups, and their paths by either driver.

use super::facts::{CgroupDriver, CgroupFacts};
use super::resources::QosClass;

/// The cgroup of all pods.
pub const KUBEPODS: &str = "kubepods";

/// The names from `kubepods` down to a pod's own cgroup.
pub fn pod_cgroup_name(qos: QosClass, uid: &str) -> Vec<String> {
    let mut name = qos_cgroup_name(qos);
    name.push(format!("pod{uid}"));
    name
}

/// The names from `kubepods` down to the cgroup of a QoS class; guaranteed pods are directly below `kubepods`.
pub fn qos_cgroup_name(qos: QosClass) -> Vec<String> {
    let class = match qos {
        QosClass::Guaranteed => None,
        QosClass::Burstable => Some("burstable"),
        QosClass::BestEffort => Some("besteffort"),
    };
    [Some(KUBEPODS), class]
        .into_iter()
        .flatten()
        .map(str::to_owned)
        .collect()
}

/// The path of a cgroup, which is also how a runtime is told of it: of the cgroupfs driver `/kubepods/burstable/podUID`,
/// of systemd's the slice with all that it is in, `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice`.
pub fn cgroup_path(facts: &CgroupFacts, name: &[String]) -> String {
    let parts: Vec<&str> = facts
        .root
        .iter()
        .chain(name)
        .map(String::as_str)
        .filter(|p| !p.is_empty())
        .collect();
    if parts.is_empty() {
        return "/".to_owned();
    }
    match facts.driver {
        CgroupDriver::Cgroupfs => format!("/{}", parts.join("/")),
        CgroupDriver::Systemd => {
            let mut path = String::new();
            let mut slice = String::new();
            for part in parts {
                if !slice.is_empty() {
                    slice.push('-');
                }
                slice.push_str(&part.replace('-', "_"));
                path = format!("{path}/{slice}.slice");
            }
            path
        }
    }
}
