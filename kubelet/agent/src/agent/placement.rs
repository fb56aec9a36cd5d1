//! Which CPUs and memory nodes containers get: the policies of CPU, memory and topology, asked at admission.
//!
//! A pod is admitted once each of its containers has what it may have for itself; what that is outlives restarts in
//! upstream's state files. Containers without CPUs of their own run on what is left, and are told when that changes
//! ([`reconcile`]); each is told again until the runtime took it. With the policies `none` nothing is done at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controlplane_api::Quantity;
use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod};
use cri_api::v1;
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

use super::adapters::{chain, class};
use crate::config::KubeletConfiguration;
use crate::node::capacity::Capacity;
use crate::node::cgroups::QosClass;
use crate::node::cpu::{self, Ask, CpuSet, Machine, Options};
use crate::node::memory;
use crate::node::resources::{Amounts, requests_of};
use crate::node::topology::{self, Nearness, NotAligned, Wishes};
use crate::runtime::observe::labels::{CONTAINER_NAME, POD_UID};
use crate::runtime::{CallError, Cri};
use crate::sync::context::Allocated;

/// The policies as the state files name them.
const CPU_POLICY: &str = "static";
const MEMORY_POLICY: &str = "Static";
/// The shortest time between two looks at the shared CPUs.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// Reason and message of a refusal.
type Refusal = (String, String);

/// Who has what.
#[derive(Debug, Default)]
pub(super) struct Placement {
    held: Mutex<Held>,
    topology: topology::Settings,
    nodes: BTreeSet<u32>,
    near: Nearness,
    root: PathBuf,
}

#[derive(Debug, Default, Clone)]
struct Held {
    cpus: Option<cpu::Static>,
    memory: Option<memory::Static>,
    /// Pods of the state files that weren't admitted since: they may be gone.
    restored: BTreeSet<String>,
}

impl Placement {
    /// The policies of a configuration, with what was kept in the kubelet's directory.
    ///
    /// # Errors
    /// A setting that can't be followed, or a state that isn't of this machine: the administrator has to decide.
    pub(super) fn new(
        config: &KubeletConfiguration,
        machine: &Machine,
        capacity: &Capacity,
        root: &Path,
    ) -> Result<Self, String> {
        let nodes = machine.numa_nodes();
        let topology = topology::Settings::parse(
            &config.topology_manager_policy,
            &config.topology_manager_scope,
            &config.topology_manager_policy_options,
            nodes.len(),
        )
        .map_err(|error| error.to_string())?;
        let mut held = Held::default();
        if config.cpu_manager_policy == CPU_POLICY {
            held.cpus = Some(cpus(config, machine, capacity, root)?);
        }
        if config.memory_manager_policy == MEMORY_POLICY {
            let fresh = memory::Static::new(machine, &config.reserved_memory, &reserved(capacity))
                .map_err(|error| error.to_string())?;
            let kept = memory::state::read(&root.join(memory::state::FILE), MEMORY_POLICY)
                .map_err(|error| chain(&error))?;
            held.memory = Some(match kept {
                Some((nodes, assignments)) => fresh
                    .restore(&nodes, assignments)
                    .map_err(|error| error.to_string())?,
                None => fresh,
            });
        }
        let with_cpus = held.cpus.iter().flat_map(|cpus| cpus.assignments().keys());
        let with_memory = held.memory.iter().flat_map(|memory| memory.assignments().keys());
        held.restored = with_cpus.chain(with_memory).cloned().collect();
        Ok(Self {
            held: Mutex::new(held),
            topology,
            near: nearness(&nodes, Path::new("/sys/devices/system/node")),
            nodes,
            root: root.to_owned(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any policy gives anything.
    fn is_idle(&self) -> bool {
        let held = self.held();
        held.cpus.is_none() && held.memory.is_none()
    }

    /// Gives each container of a pod what it may have for itself, or none of them anything. What pods have that are
    /// `ending` for its sake is free already: until they have ended, they run on the shared CPUs.
    pub(super) fn admit(&self, pod: &Pod, ending: &[String]) -> Result<(), Refusal> {
        let mut held = self.held();
        if held.cpus.is_none() && held.memory.is_none() {
            return Ok(());
        }
        let mut next = held.clone();
        next.retain(|uid| !ending.iter().any(|victim| victim == uid));
        self.place(&mut next, pod)?;
        next.restored
            .remove(pod.metadata.uid.as_deref().unwrap_or_default());
        self.keep(&next).map_err(unexpected)?;
        *held = next;
        Ok(())
    }

    fn place(&self, held: &mut Held, pod: &Pod) -> Result<(), Refusal> {
        let Some(spec) = &pod.spec else {
            return Ok(());
        };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        // What the pod as a whole asks for can't be divided among its containers.
        let guaranteed = class(pod) == QosClass::Guaranteed && spec.resources.is_none();
        let init = spec.init_containers.iter().flatten().map(|one| (one, ends(one)));
        for (container, init) in init.chain(spec.containers.iter().map(|one| (one, false))) {
            let requests = requests_of(container);
            let cpu = requests.get("cpu");
            let ask = Ask {
                uid,
                container: &container.name,
                milli_cpus: cpu.map_or(0, Quantity::milli_value),
                guaranteed,
                init,
            };
            let wanted = memory::wanted(&requests);
            let mut wishes = Vec::new();
            if let Some(cpus) = &held.cpus {
                wishes.push(Wishes::from([("cpu".to_owned(), cpus.hints(&ask))]));
            }
            if let Some(memory) = &held.memory {
                let hints = memory.hints(uid, &container.name, guaranteed, &wanted);
                wishes.push(Wishes::from([("memory".to_owned(), hints)]));
            }
            let affinity = self
                .topology
                .admit(&self.nodes, &wishes, &self.near)
                .map_err(|error| (NotAligned::REASON.to_owned(), error.to_string()))?;
            if let Some(cpus) = &mut held.cpus {
                cpus.allocate(&ask, affinity).map_err(|error| refusal(&error))?;
            }
            if let Some(memory) = &mut held.memory {
                let who = (uid, container.name.as_str());
                memory
                    .allocate(who, guaranteed, init, &wanted, affinity)
                    .map_err(|error| unexpected(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// What a container of an admitted pod gets.
    pub(super) fn of(&self, uid: &str, container: &str) -> Allocated {
        let held = self.held();
        let mut given = Allocated::default();
        if let Some(cpus) = &held.cpus {
            let assigned = cpus.assignments().get(uid);
            given.exclusive = assigned.is_some_and(|pod| pod.contains_key(container));
            given.cpus = cpus.cpus_of(uid, container).to_string();
        }
        if let Some(nodes) = held
            .memory
            .as_ref()
            .and_then(|memory| memory.nodes_of(uid, container))
        {
            let numbers: Vec<String> = nodes.iter().map(u32::to_string).collect();
            given.memory_nodes = numbers.join(",");
        }
        given
    }

    /// Takes back what a pod has.
    pub(super) fn release(&self, uid: &str) {
        self.retain(|other| other != uid);
    }

    /// Whether pods of before this kubelet's start may have something that is to be taken back.
    pub(super) fn has_restored(&self) -> bool {
        !self.held().restored.is_empty()
    }

    /// Takes back what pods of before this kubelet's start have that aren't `there` any more. Those admitted since are
    /// released as they end.
    pub(super) fn forget_gone(&self, there: impl Fn(&str) -> bool) {
        let gone: BTreeSet<String> = {
            let mut held = self.held();
            let all = std::mem::take(&mut held.restored);
            let (left, gone) = all.into_iter().partition(|uid| there(uid));
            held.restored = left;
            gone
        };
        if !gone.is_empty() {
            self.retain(|uid| !gone.contains(uid));
        }
    }

    fn retain(&self, there: impl Fn(&str) -> bool) {
        let mut held = self.held();
        let before = held.counts();
        held.retain(there);
        if held.counts() != before
            && let Err(error) = self.keep(&held)
        {
            // A restart before the next change takes it back again.
            warn!(error, "failed to keep who has which CPUs and memory");
        }
    }

    /// Writes the state files.
    fn keep(&self, held: &Held) -> Result<(), String> {
        if let Some(cpus) = &held.cpus {
            let path = self.root.join(cpu::state::FILE);
            cpu::state::write(&path, CPU_POLICY, cpus.shared(), cpus.assignments())
                .map_err(|error| chain(&error))?;
        }
        if let Some(memory) = &held.memory {
            let path = self.root.join(memory::state::FILE);
            memory::state::write(&path, MEMORY_POLICY, memory.nodes(), memory.assignments())
                .map_err(|error| chain(&error))?;
        }
        Ok(())
    }
}

impl Held {
    fn retain(&mut self, there: impl Fn(&str) -> bool) {
        if let Some(cpus) = &mut self.cpus {
            cpus.release_all_but(&there);
        }
        if let Some(memory) = &mut self.memory {
            memory.release_all_but(&there);
        }
    }

    /// How many pods have CPUs and memory.
    fn counts(&self) -> (usize, usize) {
        (
            self.cpus.as_ref().map_or(0, |cpus| cpus.assignments().len()),
            self.memory
                .as_ref()
                .map_or(0, |memory| memory.assignments().len()),
        )
    }
}

fn cpus(
    config: &KubeletConfiguration,
    machine: &Machine,
    capacity: &Capacity,
    root: &Path,
) -> Result<cpu::Static, String> {
    let options = Options::parse(&config.cpu_manager_policy_options, &config.feature_gates)
        .map_err(|error| error.to_string())?;
    let explicit = match config.reserved_system_cpus.as_str() {
        "" => None,
        list => Some(
            list.parse::<CpuSet>()
                .map_err(|error| format!("reservedSystemCPUs: {error}"))?,
        ),
    };
    let milli = |amounts: &Amounts| amounts.get("cpu").map_or(0, Quantity::milli_value);
    let reserved = milli(&capacity.system_reserved).saturating_add(milli(&capacity.kube_reserved));
    let fresh =
        cpu::Static::new(machine.clone(), options, reserved, explicit).map_err(|error| error.to_string())?;
    let kept = cpu::state::read(&root.join(cpu::state::FILE), CPU_POLICY).map_err(|error| chain(&error))?;
    match kept {
        Some((shared, assignments)) => fresh
            .restore(shared, assignments)
            .map_err(|error| error.to_string()),
        None => Ok(fresh),
    }
}

/// Memory that isn't for pods: what is reserved and the hard threshold.
fn reserved(capacity: &Capacity) -> Amounts {
    let value = |amounts: &Amounts, name: &str| amounts.get(name).map_or(0, Quantity::value);
    let pages = capacity
        .capacity
        .iter()
        .filter(|(name, _)| name.starts_with("hugepages-"));
    let in_pages: i64 = pages.map(|(_, amount)| amount.value()).sum();
    let less = |name: &str| value(&capacity.capacity, name) - value(&capacity.allocatable, name);
    let memory = capacity
        .capacity
        .keys()
        .filter(|name| *name == "memory" || name.starts_with("hugepages-"));
    let all = memory.map(|name| {
        let pages = if name == "memory" { in_pages } else { 0 };
        (name.clone(), Quantity::from_bytes((less(name) - pages).max(0)))
    });
    all.collect()
}

/// Distances between NUMA nodes; what the kernel doesn't tell is absent.
fn nearness(nodes: &BTreeSet<u32>, folder: &Path) -> Nearness {
    let mut near = Nearness::new();
    for one in nodes {
        let text = fs::read_to_string(folder.join(format!("node{one}/distance"))).unwrap_or_default();
        for (other, distance) in nodes.iter().zip(text.split_ascii_whitespace()) {
            if let Ok(distance) = distance.parse() {
                near.insert((*one, *other), distance);
            }
        }
    }
    near
}

/// Whether an init container ends before the others start.
fn ends(container: &Container) -> bool {
    container.restart_policy.as_deref() != Some("Always")
}

fn refusal(error: &cpu::CpuError) -> Refusal {
    match error.reason() {
        "UnexpectedAdmissionError" => unexpected(error.to_string()),
        reason => (reason.to_owned(), error.to_string()),
    }
}

/// As upstream words what it didn't expect.
fn unexpected(error: String) -> Refusal {
    (
        "UnexpectedAdmissionError".to_owned(),
        format!("Allocate failed due to {error}, which is unexpected"),
    )
}

/// Tells running containers of the shared CPUs where they don't know them yet, for ever.
pub(super) async fn reconcile(admission: Arc<super::adapters::NodeAdmission>, cri: Cri, period: Duration) {
    let placement = &admission.placement;
    if placement.is_idle() {
        // A task that ends would end the kubelet.
        return std::future::pending().await;
    }
    let mut ticks = tokio::time::interval(period.max(LEAST_INTERVAL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = BTreeMap::new();
    loop {
        ticks.tick().await;
        if let Err(error) = share(placement, &cri, &mut told).await {
            warn!(%error, "failed to find the containers that share CPUs");
        }
    }
}

/// Tells those that don't know it yet. One that can't be told keeps none of the others, and is told at the next tick.
async fn share(
    placement: &Placement,
    cri: &Cri,
    told: &mut BTreeMap<String, String>,
) -> Result<(), CallError> {
    let listed = cri.list_containers(v1::ListContainersRequest::default()).await?;
    for (id, cpus) in untold(sharing(placement, &listed.containers), told) {
        let linux = v1::LinuxContainerResources {
            cpuset_cpus: cpus.clone(),
            ..Default::default()
        };
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        match cri.update_container_resources(request).await {
            Ok(_) => {
                debug!(container = id, cpus, "told of the shared CPUs");
                told.insert(id, cpus);
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => warn!(container = id, %error, "failed to tell a container of the shared CPUs"),
        }
    }
    Ok(())
}

/// What containers are still to be told, by what each was `told`; those that are gone are forgotten.
fn untold(sharing: Vec<(String, String)>, told: &mut BTreeMap<String, String>) -> Vec<(String, String)> {
    told.retain(|id, _| sharing.iter().any(|(there, _)| there == id));
    sharing
        .into_iter()
        .filter(|(id, cpus)| told.get(id) != Some(cpus))
        .collect()
}

/// Running containers without CPUs of their own, and the CPUs that they may run on.
fn sharing(placement: &Placement, containers: &[v1::Container]) -> Vec<(String, String)> {
    let running = containers
        .iter()
        .filter(|one| one.state() == v1::ContainerState::ContainerRunning);
    running
        .filter_map(|one| {
            let given = placement.of(one.labels.get(POD_UID)?, one.labels.get(CONTAINER_NAME)?);
            (!given.exclusive && !given.cpus.is_empty()).then(|| (one.id.clone(), given.cpus))
        })
        .collect()
}

#[cfg(test)]
mod tests;
