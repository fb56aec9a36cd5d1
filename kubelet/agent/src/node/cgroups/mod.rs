//! The cgroups of pods: `kubepods`, below it one for each QoS class but Guaranteed, and below those one for each pod.
//!
//! The kubelet makes a pod's cgroup before its sandbox and names it as CRI's `cgroup_parent`; the runtime makes the
//! containers' inside. Names have the form of the driver ([`names`]), limits are planned ([`limits`]), and both are put
//! to the kernel or systemd through [`Writer`]. With v1 and hybrid hosts each is one path in every hierarchy.
//!
//! A pod's cgroup is removed once its containers have ended: what is left in it is killed. At start, and now and then,
//! cgroups of pods that nobody knows any more are removed the same way ([`Cgroups::remove_orphans`]); everything here
//! may be done again after a crash.

mod kernel;
pub mod limits;
mod names;

use std::collections::BTreeMap;

use oci_runtime_cgroups::{CgroupDriver, CgroupError, Stats};

pub use kernel::Kernel;
use limits::Limits;
pub use names::{InvalidRoot, QosClass, Tree};

use super::capacity::Capacity;
use super::resources::{Amounts, PodResources};
use crate::config::KubeletConfiguration;

/// What the tree of cgroups is written with.
pub trait Writer: Send + Sync {
    /// Makes a cgroup and those above it; present is fine.
    ///
    /// # Errors
    /// What the kernel or systemd says.
    fn create(&self, name: &str) -> Result<(), CgroupError>;
    /// Sets limits.
    ///
    /// # Errors
    /// What the kernel or systemd says.
    fn apply(&self, name: &str, limits: &Limits) -> Result<(), CgroupError>;
    /// Whether there is such a cgroup.
    fn exists(&self, name: &str) -> bool;
    /// Ends all processes in it and below, and removes it; absent is fine.
    ///
    /// # Errors
    /// What the kernel or systemd says.
    fn remove(&self, name: &str) -> Result<(), CgroupError>;
    /// The last parts of the names of those directly below, in order; none for one that is absent.
    fn children(&self, name: &str) -> Vec<String>;
    /// What it uses.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    fn stats(&self, name: &str) -> Result<Stats, CgroupError>;
}

/// Why something couldn't be done to the tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A cgroup that the configuration names is absent; worded as upstream.
    #[error("{0:?} cgroup does not exist")]
    Absent(String),
    /// The cgroup.
    #[error("failed to {action} cgroup `{name}`")]
    Cgroup {
        /// What was tried.
        action: &'static str,
        /// The cgroup.
        name: String,
        /// Why not.
        source: Box<CgroupError>,
    },
}

/// The settings of the tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `podPidsLimit`; none: no limit of each pod's own.
    pub pod_pids: Option<i64>,
    /// `cpuCFSQuota`.
    pub quota: bool,
    /// `cpuCFSQuotaPeriod` in microseconds.
    pub period_micros: u64,
    /// What is enforced.
    pub enforce: Vec<String>,
    /// `systemReservedCgroup`.
    pub system_cgroup: String,
    /// `kubeReservedCgroup`.
    pub kube_cgroup: String,
    /// Sizes of huge pages that the machine has, like `2MB`, with their names in resources.
    pub page_sizes: BTreeMap<String, String>,
}

impl Settings {
    /// Of a configuration, on a machine with huge pages of some sizes in bytes.
    #[must_use]
    pub fn of(config: &KubeletConfiguration, page_sizes: impl IntoIterator<Item = u64>) -> Self {
        let nanos = u64::try_from(config.cpu_cfs_quota_period.as_nanos()).unwrap_or(100_000_000);
        let sizes = page_sizes.into_iter().map(limits::page_size);
        Self {
            pod_pids: Some(config.pod_pids_limit).filter(|limit| *limit > 0),
            quota: config.cpu_cfs_quota,
            period_micros: nanos / 1000,
            enforce: config.enforce_node_allocatable.clone(),
            system_cgroup: config.system_reserved_cgroup.clone(),
            kube_cgroup: config.kube_reserved_cgroup.clone(),
            page_sizes: sizes.collect(),
        }
    }
}

/// The seam for the sync loop: pods' cgroups, by the pods' UIDs.
pub trait PodCgroups: Send + Sync {
    /// Makes a pod's cgroup or changes its limits: before the sandbox is made, and at a resize.
    ///
    /// # Errors
    /// What the kernel or systemd says.
    fn ensure(&self, uid: &str, qos: QosClass, resources: &PodResources) -> Result<(), TreeError>;
    /// What CRI's `cgroup_parent` of the pod's sandbox is.
    fn parent_name(&self, uid: &str, qos: QosClass) -> String;
    /// Ends what is left in a pod's cgroup, whatever its class is, and removes it; absent is fine.
    ///
    /// # Errors
    /// What the kernel or systemd says.
    fn remove(&self, uid: &str) -> Result<(), TreeError>;
    /// The UIDs of all pods that have one.
    fn list(&self) -> Vec<String>;
    /// What a pod uses; `None` when it has no cgroup.
    fn stats(&self, uid: &str, qos: QosClass) -> Option<Stats>;
}

/// The tree below one root.
#[derive(Debug)]
pub struct Cgroups<W> {
    tree: Tree,
    settings: Settings,
    writer: W,
}

impl<W: Writer> Cgroups<W> {
    /// Nothing is made yet.
    pub fn new(tree: Tree, settings: Settings, writer: W) -> Self {
        Self {
            tree,
            settings,
            writer,
        }
    }

    /// The names.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Makes `kubepods` and the classes' cgroups, and enforces what is to be enforced: at start, and again after.
    ///
    /// # Errors
    /// What the kernel or systemd says, and a cgroup for reserved resources that isn't there.
    pub fn start(&self, capacity: &Capacity) -> Result<(), TreeError> {
        let kubepods = self.tree.kubepods();
        self.create(&kubepods)?;
        let enforced = self.settings.enforce.iter().any(|what| what == "pods");
        let all = limits::of_node(&capacity.enforced, enforced, &self.settings.page_sizes);
        self.apply(&kubepods, &all)?;
        for class in [QosClass::BestEffort, QosClass::Burstable] {
            let name = self.tree.class(class);
            self.create(&name)?;
            // Until pods are known they have the least weight.
            self.apply(&name, &Limits::weight(limits::LEAST_SHARES))?;
        }
        let (system, kube) = (&self.settings.system_cgroup, &self.settings.kube_cgroup);
        for what in &self.settings.enforce {
            match what.as_str() {
                "system-reserved" => self.reserve(system, &capacity.system_reserved, false)?,
                "system-reserved-compressible" => self.reserve(system, &capacity.system_reserved, true)?,
                "kube-reserved" => self.reserve(kube, &capacity.kube_reserved, false)?,
                "kube-reserved-compressible" => self.reserve(kube, &capacity.kube_reserved, true)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn reserve(&self, path: &str, amounts: &Amounts, compressible: bool) -> Result<(), TreeError> {
        let name = self.tree.named(path);
        if !self.writer.exists(&name) {
            return Err(TreeError::Absent(path.to_owned()));
        }
        self.apply(&name, &limits::of_reserved(amounts, compressible))
    }

    /// Gives the burstable class the weight of all its pods' requests together: whenever pods come, go or change.
    ///
    /// # Errors
    /// What the kernel or systemd says.
    pub fn weigh(&self, burstable_milli_cpus: i64) -> Result<(), TreeError> {
        let shares = Limits::weight(limits::shares(burstable_milli_cpus));
        self.apply(&self.tree.class(QosClass::Burstable), &shares)
    }

    /// Removes the cgroups of pods that aren't known. Returns those that were removed and those that couldn't be.
    pub fn remove_orphans(&self, known: impl Fn(&str) -> bool) -> (Vec<String>, Vec<TreeError>) {
        let (mut removed, mut failed) = (Vec::new(), Vec::new());
        for uid in self.list().into_iter().filter(|uid| !known(uid)) {
            match self.remove(&uid) {
                Ok(()) => removed.push(uid),
                Err(error) => failed.push(error),
            }
        }
        (removed, failed)
    }

    fn create(&self, name: &str) -> Result<(), TreeError> {
        self.writer.create(name).map_err(|source| TreeError::Cgroup {
            action: "create",
            name: name.to_owned(),
            source: Box::new(source),
        })
    }

    fn apply(&self, name: &str, limits: &Limits) -> Result<(), TreeError> {
        self.writer
            .apply(name, limits)
            .map_err(|source| TreeError::Cgroup {
                action: "limit",
                name: name.to_owned(),
                source: Box::new(source),
            })
    }
}

impl<W: Writer> PodCgroups for Cgroups<W> {
    fn ensure(&self, uid: &str, qos: QosClass, resources: &PodResources) -> Result<(), TreeError> {
        let name = self.tree.pod(uid, qos);
        self.create(&name)?;
        self.apply(&name, &limits::of_pod(qos, resources, &self.settings))
    }

    fn parent_name(&self, uid: &str, qos: QosClass) -> String {
        self.tree.parent_for_cri(uid, qos)
    }

    fn remove(&self, uid: &str) -> Result<(), TreeError> {
        for class in QosClass::ALL {
            let name = self.tree.pod(uid, class);
            if !self.writer.exists(&name) {
                continue;
            }
            self.writer.remove(&name).map_err(|source| TreeError::Cgroup {
                action: "remove",
                name,
                source: Box::new(source),
            })?;
        }
        Ok(())
    }

    fn list(&self) -> Vec<String> {
        let mut found = Vec::new();
        for class in QosClass::ALL {
            let children = self.writer.children(&self.tree.class(class));
            found.extend(children.iter().filter_map(|name| self.tree.uid_of(name, class)));
        }
        found.sort();
        found.dedup();
        found
    }

    fn stats(&self, uid: &str, qos: QosClass) -> Option<Stats> {
        self.writer.stats(&self.tree.pod(uid, qos)).ok()
    }
}

/// The driver of a configuration, or of the runtime's answer, which counts more.
#[must_use]
pub fn driver(config: &KubeletConfiguration, runtime: Option<CgroupDriver>) -> CgroupDriver {
    runtime.unwrap_or(match config.cgroup_driver.as_str() {
        "systemd" => CgroupDriver::Systemd,
        _ => CgroupDriver::Cgroupfs,
    })
}

#[cfg(test)]
mod tests;
