//! What the cgroups are called, by the driver.

use oci_runtime_cgroups::CgroupDriver;

/// A pod's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QosClass {
    /// Every container limits CPU and memory to what it requests.
    Guaranteed,
    /// Some container asks for something.
    Burstable,
    /// None does.
    BestEffort,
}

impl QosClass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Guaranteed, Self::Burstable, Self::BestEffort];

    /// Of the API's word; what isn't one is BestEffort.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "Guaranteed" => Self::Guaranteed,
            "Burstable" => Self::Burstable,
            _ => Self::BestEffort,
        }
    }

    /// Its part of names.
    fn part(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

/// A root that can't be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid configuration: cgroup-root {0:?} is not a path from the root, of slices with the systemd driver"
)]
pub struct InvalidRoot(pub String);

/// All names below one root. In the cgroupfs driver's form a name is a path, in systemd's that of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    driver: CgroupDriver,
    /// Names from the root downwards, without systemd's endings.
    root: Vec<String>,
}

impl Tree {
    /// Below `cgroupRoot`, which is empty or `/` for the root.
    ///
    /// # Errors
    /// When it isn't a path.
    pub fn new(driver: CgroupDriver, root: &str) -> Result<Self, InvalidRoot> {
        let invalid = || InvalidRoot(root.to_owned());
        let mut parts: Vec<&str> = root.split('/').filter(|part| !part.is_empty()).collect();
        if parts.iter().any(|part| matches!(*part, "." | ".."))
            || (!root.is_empty() && !root.starts_with('/') && driver == CgroupDriver::Cgroupfs)
        {
            return Err(invalid());
        }
        let mut names = Vec::new();
        if driver == CgroupDriver::Systemd {
            // A slice's name has those above it in it.
            parts = parts.last().copied().into_iter().collect();
            let whole = parts
                .first()
                .map(|last| last.strip_suffix(".slice").ok_or_else(invalid))
                .transpose()?;
            parts = whole
                .into_iter()
                .flat_map(|whole| whole.split('-'))
                .filter(|part| !part.is_empty())
                .collect();
        }
        names.extend(parts.into_iter().map(str::to_owned));
        Ok(Self { driver, root: names })
    }

    /// Who makes them.
    #[must_use]
    pub fn driver(&self) -> CgroupDriver {
        self.driver
    }

    fn join<'a>(&'a self, below: impl IntoIterator<Item = &'a str>) -> String {
        let parts = self.root.iter().map(String::as_str).chain(below);
        match self.driver {
            CgroupDriver::Cgroupfs => parts.fold(String::new(), |path, part| format!("{path}/{part}")),
            CgroupDriver::Systemd => format!("{}.slice", parts.collect::<Vec<_>>().join("-")),
        }
    }

    /// That of all pods.
    #[must_use]
    pub fn kubepods(&self) -> String {
        self.join(["kubepods"])
    }

    /// That of a class; Guaranteed pods have none of their own.
    #[must_use]
    pub fn class(&self, class: QosClass) -> String {
        self.join(["kubepods"].into_iter().chain(class.part()))
    }

    /// A pod's.
    #[must_use]
    pub fn pod(&self, uid: &str, class: QosClass) -> String {
        let last = self.pod_part(uid);
        self.join(
            ["kubepods"]
                .into_iter()
                .chain(class.part())
                .chain([last.as_str()]),
        )
    }

    fn pod_part(&self, uid: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("pod{uid}"),
            // A dash is a level of slices.
            CgroupDriver::Systemd => format!("pod{}", uid.replace('-', "_")),
        }
    }

    /// A pod's as CRI has it: the whole path with either driver.
    #[must_use]
    pub fn parent_for_cri(&self, uid: &str, class: QosClass) -> String {
        let name = self.pod(uid, class);
        match self.driver {
            CgroupDriver::Cgroupfs => name,
            CgroupDriver::Systemd => oci_runtime_cgroups::Cgroup::path_of(&name).unwrap_or(name),
        }
    }

    /// The pod that a directory in a class' cgroup is of.
    #[must_use]
    pub fn uid_of(&self, directory: &str, class: QosClass) -> Option<String> {
        match self.driver {
            CgroupDriver::Cgroupfs => directory.strip_prefix("pod").map(str::to_owned),
            CgroupDriver::Systemd => {
                let class = self.class(class);
                let above = class.strip_suffix(".slice")?;
                let own = directory
                    .strip_prefix(above)?
                    .strip_prefix("-pod")?
                    .strip_suffix(".slice")?;
                Some(own.replace('_', "-"))
            }
        }
        .filter(|uid| !uid.is_empty())
    }

    /// A cgroup that the configuration names by its path, in the driver's form.
    #[must_use]
    pub fn named(&self, path: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("/{}", path.trim_matches('/')),
            CgroupDriver::Systemd => {
                let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
                if last.ends_with(".slice") {
                    last.to_owned()
                } else {
                    format!("{last}.slice")
                }
            }
        }
    }
}
