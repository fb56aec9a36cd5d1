//! Device plugins: who offers which devices, and which container has which.
//!
//! A plugin registers on the kubelet's socket ([`server`]), is called back on its own, and streams its devices
//! ([`plugin`]). [`Devices`] holds what came and decides, with no I/O: which devices a container gets (those of its
//! pod's init containers first, then the nearest), hints for [`super::topology`], what the node's status tells. What the
//! plugin answers to `Allocate` (variables, mounts, devices, annotations, CDI names) is kept with the devices, so that a
//! container gets the same again after a restart; [`state`] keeps it in upstream's `kubelet_internal_checkpoint`.
//!
//! After a restart devices are known from the checkpoint as not healthy until their plugin registers again; containers
//! that have some keep them, and nothing running is touched.

pub mod plugin;
pub mod proto;
pub mod server;
pub mod state;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::topology::{Hint, NodeMask, aligned_hints};
use proto::{ContainerAllocateResponse, Device, DevicePluginOptions};

/// How long a resource whose plugin went away is still told of, with nothing allocatable.
const PLUGIN_GRACE: SignedDuration = SignedDuration::from_mins(5);
/// Most devices of one resource that are taken from a plugin.
pub const MOST_DEVICES: usize = 100_000;
/// The only version that is spoken.
pub const VERSION: &str = "v1beta1";

/// A container's place in the books.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The pod.
    pub uid: String,
    /// The container.
    pub container: String,
}

/// What a container has of one resource.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grant {
    /// The devices by NUMA node, -1 for those without one.
    pub devices: BTreeMap<i64, BTreeSet<String>>,
    /// What the plugin answered, as it came.
    pub answer: Vec<u8>,
}

impl Grant {
    /// All devices.
    pub fn ids(&self) -> impl Iterator<Item = &String> {
        self.devices.values().flatten()
    }

    /// The plugin's answer.
    #[must_use]
    pub fn response(&self) -> ContainerAllocateResponse {
        // What isn't one was never written: it's checked when it comes.
        prost::Message::decode(self.answer.as_slice()).unwrap_or_default()
    }
}

/// A plugin's resource.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resource {
    /// The plugin's socket; none after a restart, until it registers.
    pub endpoint: Option<String>,
    /// What it wants to be asked.
    pub options: DevicePluginOptions,
    /// Its devices: whether they are healthy, and their NUMA nodes.
    pub devices: BTreeMap<String, (bool, BTreeSet<i64>)>,
    gone_since: Option<Timestamp>,
}

/// Why a container doesn't get its devices; worded as upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There aren't enough.
    #[error(
        "requested number of devices unavailable for {resource}. Requested: {requested}, Available: {available}"
    )]
    NotEnough {
        /// The resource.
        resource: String,
        /// How many were asked for.
        requested: usize,
        /// How many there are.
        available: usize,
    },
    /// What it had isn't there any more.
    #[error("previously allocated devices are no longer healthy; cannot allocate unhealthy devices {0}")]
    Unhealthy(String),
    /// No plugin has registered yet.
    #[error("cannot allocate unregistered device {0}")]
    Unregistered(String),
}

/// What has to be done so that a container gets devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// It has them already.
    Kept,
    /// These are to be asked for.
    Take(BTreeSet<String>),
}

/// All devices and who has them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Devices {
    resources: BTreeMap<String, Resource>,
    grants: BTreeMap<Owner, BTreeMap<String, Grant>>,
    /// Devices of a pod's init containers, for its other containers.
    reusable: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Devices {
    /// What was kept: grants, and the names of devices, none of which is healthy yet.
    #[must_use]
    pub fn restored(
        grants: BTreeMap<Owner, BTreeMap<String, Grant>>,
        registered: BTreeMap<String, Vec<String>>,
        now: Timestamp,
    ) -> Self {
        let resources = registered.into_keys().map(|name| {
            let resource = Resource {
                gone_since: Some(now),
                ..Resource::default()
            };
            (name, resource)
        });
        Self {
            resources: resources.collect(),
            grants,
            reusable: BTreeMap::new(),
        }
    }

    /// The plugins' resources.
    #[must_use]
    pub fn resources(&self) -> &BTreeMap<String, Resource> {
        &self.resources
    }

    /// Who has what.
    #[must_use]
    pub fn grants(&self) -> &BTreeMap<Owner, BTreeMap<String, Grant>> {
        &self.grants
    }

    /// A plugin has registered.
    pub fn registered(&mut self, name: &str, endpoint: &str, options: DevicePluginOptions) {
        let resource = self.resources.entry(name.to_owned()).or_default();
        resource.endpoint = Some(endpoint.to_owned());
        resource.options = options;
        resource.gone_since = None;
    }

    /// A plugin has told its devices; it has to be the one that registered last.
    pub fn listed(&mut self, name: &str, endpoint: &str, devices: &[Device]) {
        let Some(resource) = self.resources.get_mut(name) else {
            return;
        };
        if resource.endpoint.as_deref() != Some(endpoint) {
            return;
        }
        let told = devices.iter().take(MOST_DEVICES).map(|device| {
            let nodes = device
                .topology
                .iter()
                .flat_map(|topology| topology.nodes.iter().map(|node| node.id));
            (device.id.clone(), (device.health == "Healthy", nodes.collect()))
        });
        resource.devices = told.collect();
    }

    /// A plugin is gone: its devices aren't healthy any more.
    pub fn gone(&mut self, name: &str, endpoint: &str, now: Timestamp) {
        let Some(resource) = self.resources.get_mut(name) else {
            return;
        };
        if resource.endpoint.as_deref() == Some(endpoint) {
            resource.endpoint = None;
            resource.gone_since = Some(now);
            resource
                .devices
                .values_mut()
                .for_each(|(healthy, _)| *healthy = false);
        }
    }

    /// Capacity and allocatable of the node by resource; what isn't told of any more is forgotten.
    pub fn capacity(&mut self, now: Timestamp) -> BTreeMap<String, (usize, usize)> {
        let here = |resource: &Resource| {
            resource
                .gone_since
                .is_none_or(|since| now.duration_since(since) < PLUGIN_GRACE)
        };
        self.resources.retain(|_, resource| here(resource));
        let counts = self.resources.iter().map(|(name, resource)| {
            let healthy = resource.devices.values().filter(|(healthy, _)| *healthy).count();
            (name.clone(), (resource.devices.len(), healthy))
        });
        counts.collect()
    }

    fn taken(&self, resource: &str) -> BTreeSet<&String> {
        let grants = self.grants.values().filter_map(|all| all.get(resource));
        grants.flat_map(Grant::ids).collect()
    }

    fn free(&self, name: &str) -> BTreeSet<String> {
        let taken = self.taken(name);
        let devices = self
            .resources
            .get(name)
            .into_iter()
            .flat_map(|resource| &resource.devices);
        let free = devices.filter(|(id, (healthy, _))| *healthy && !taken.contains(id));
        free.map(|(id, _)| id.clone()).collect()
    }

    fn reusable(&self, uid: &str, name: &str) -> BTreeSet<String> {
        self.reusable
            .get(&(uid.to_owned(), name.to_owned()))
            .cloned()
            .unwrap_or_default()
    }

    /// Which devices a container is to get. Those of init containers come first, then those on the nodes that were
    /// agreed on, those without a node, and the others.
    ///
    /// # Errors
    /// When there aren't enough, or what it has isn't healthy any more.
    pub fn choose(
        &self,
        owner: &Owner,
        name: &str,
        count: usize,
        affinity: Option<NodeMask>,
    ) -> Result<Choice, DeviceError> {
        let resource = self.resources.get(name);
        if let Some(grant) = self.grants.get(owner).and_then(|all| all.get(name)) {
            let told = resource.filter(|resource| resource.endpoint.is_some());
            let sick =
                |id: &&String| told.is_some_and(|r| r.devices.get(*id).is_none_or(|(healthy, _)| !healthy));
            return match grant.ids().any(|id| sick(&id)) {
                true => Err(DeviceError::Unhealthy(name.to_owned())),
                false => Ok(Choice::Kept),
            };
        }
        let resource = resource.filter(|resource| resource.endpoint.is_some());
        let resource = resource.ok_or_else(|| DeviceError::Unregistered(name.to_owned()))?;
        let mut chosen: BTreeSet<String> = self.reusable(&owner.uid, name).into_iter().take(count).collect();
        let free = self.free(name);
        if chosen.len() + free.len() < count {
            return Err(DeviceError::NotEnough {
                resource: name.to_owned(),
                requested: count,
                available: free.len(),
            });
        }
        let distance = |id: &String| match (affinity, resource.devices.get(id)) {
            (None, _) => 0,
            (Some(_), Some((_, nodes))) if nodes.is_empty() => 1,
            (Some(mask), Some((_, nodes))) => {
                let near = nodes
                    .iter()
                    .any(|node| u32::try_from(*node).is_ok_and(|node| mask.has(node)));
                if near { 0 } else { 2 }
            }
            (Some(_), None) => 2,
        };
        let mut by_distance: Vec<(u8, &String)> = free.iter().map(|id| (distance(id), id)).collect();
        by_distance.sort();
        let missing = count - chosen.len();
        chosen.extend(by_distance.into_iter().take(missing).map(|(_, id)| id.clone()));
        Ok(Choice::Take(chosen))
    }

    /// What a plugin may choose from with `GetPreferredAllocation`: all that could be given, and what has to be.
    #[must_use]
    pub fn choices(&self, owner: &Owner, name: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let reusable = self.reusable(&owner.uid, name);
        let all = self.free(name).union(&reusable).cloned().collect();
        (all, reusable)
    }

    /// Notes what a container was given. `init`: whether it ends before the others start.
    pub fn grant(&mut self, owner: &Owner, name: &str, ids: &BTreeSet<String>, answer: Vec<u8>, init: bool) {
        let mut grant = Grant {
            answer,
            ..Grant::default()
        };
        let known = self.resources.get(name).map(|resource| &resource.devices);
        for id in ids {
            let nodes = known
                .and_then(|devices| devices.get(id))
                .map(|(_, nodes)| nodes.clone());
            let mut nodes = nodes.unwrap_or_default();
            if nodes.is_empty() {
                nodes.insert(-1);
            }
            for node in nodes {
                grant.devices.entry(node).or_default().insert(id.clone());
            }
        }
        self.reusable.retain(|(uid, _), _| *uid == owner.uid);
        let reusable = self
            .reusable
            .entry((owner.uid.clone(), name.to_owned()))
            .or_default();
        if init {
            reusable.extend(ids.iter().cloned());
        } else {
            reusable.retain(|id| !ids.contains(id));
        }
        self.grants
            .entry(owner.clone())
            .or_default()
            .insert(name.to_owned(), grant);
    }

    /// Takes back what pods have that aren't there any more. Returns whether anything was.
    pub fn release_all_but(&mut self, there: impl Fn(&str) -> bool) -> bool {
        let before = self.grants.len();
        self.grants.retain(|owner, _| there(&owner.uid));
        self.reusable.retain(|(uid, _), _| there(uid));
        before != self.grants.len()
    }

    /// On which NUMA nodes a container's devices could be; `None` without a wish, or when no device has a node.
    #[must_use]
    pub fn hints(&self, owner: &Owner, name: &str, count: usize) -> Option<Vec<Hint>> {
        let resource = self.resources.get(name)?;
        let nodes = |id: &String| {
            resource
                .devices
                .get(id)
                .map(|(_, nodes)| nodes.clone())
                .unwrap_or_default()
        };
        let all: BTreeSet<u32> = resource
            .devices
            .values()
            .flat_map(|(_, nodes)| nodes.iter().filter_map(|node| u32::try_from(*node).ok()))
            .collect();
        if all.is_empty() || count == 0 {
            return None;
        }
        let within = |id: &String, mask: NodeMask| {
            let nodes = nodes(id);
            nodes.is_empty()
                || nodes
                    .iter()
                    .any(|node| u32::try_from(*node).is_ok_and(|node| mask.has(node)))
        };
        let granted = self.grants.get(owner).and_then(|grants| grants.get(name));
        let (usable, must): (BTreeSet<String>, BTreeSet<String>) = match granted {
            Some(grant) => {
                let own: BTreeSet<String> = grant.ids().cloned().collect();
                (own.clone(), own)
            }
            None => self.choices(owner, name),
        };
        Some(aligned_hints(
            &all,
            |mask| resource.devices.keys().filter(|id| within(id, mask)).count() >= count,
            |mask| {
                must.iter().take(count).all(|id| within(id, mask))
                    && usable.iter().filter(|id| within(id, mask)).count() >= count
            },
        ))
    }

    /// The plugins' answers for a container: what goes into its configuration.
    #[must_use]
    pub fn answers(&self, owner: &Owner) -> Vec<ContainerAllocateResponse> {
        self.grants
            .get(owner)
            .into_iter()
            .flat_map(BTreeMap::values)
            .map(Grant::response)
            .collect()
    }
}

#[cfg(test)]
mod tests;
