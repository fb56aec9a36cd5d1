//! What several plugins want of a container, as one wish.
//!
//! [`Creation`] collects the adjustments of a container that is being made: each plugin sees the container as the ones
//! before it want it, and none may set what another has set ([`crate::NriError::Conflict`]) unless it removes that
//! first. [`Changes`] collects changed limits of containers that exist. Both are pure.
//!
//! A thing is removed by its name with `-` before it: a mount by its destination, a variable by its name, and so on;
//! arguments by an empty first one.

mod entries;
mod resources;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::error::NriError;
use crate::owners::Owners;
use crate::v1alpha1::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerResponse, Field,
    Hooks, LinuxContainer, LinuxContainerAdjustment, LinuxContainerUpdate, LinuxRdt, LinuxResources,
    OwningPlugins,
};

pub use entries::removal;
use resources::{claim, overlay};

/// A container that is being made.
#[derive(Debug, Clone)]
pub struct Creation {
    /// As the next plugin is shown it.
    pub container: Container,
    /// What all so far want of it.
    pub adjust: ContainerAdjustment,
    /// What all so far want of others.
    pub changes: Changes,
    /// Who shall go.
    pub evict: Vec<ContainerEviction>,
}

impl Creation {
    /// The container as the CRI wants it.
    pub fn new(container: Container) -> Self {
        Self {
            container,
            adjust: ContainerAdjustment::default(),
            changes: Changes::default(),
            evict: Vec::new(),
        }
    }

    /// Takes what one plugin, called `index-name`, wants.
    ///
    /// # Errors
    /// It wants what another has set, or to update the very container that is being made.
    pub fn apply(&mut self, plugin: &str, wish: CreateContainerResponse) -> Result<(), NriError> {
        let id = self.container.id.clone();
        if let Some(adjust) = wish.adjust {
            let mut owners = Owners::of(&mut self.changes.owners, &id, plugin);
            adjust_container(&mut owners, &mut self.container, &mut self.adjust, adjust)?;
        }
        if wish.update.iter().any(|update| update.container_id == id) {
            return Err(NriError::UpdateOfNew {
                plugin: plugin.to_owned(),
                id,
            });
        }
        self.evict.extend(wish.evict);
        self.changes.apply(plugin, wish.update)
    }
}

fn adjust_container(
    owners: &mut Owners<'_>,
    container: &mut Container,
    adjust: &mut ContainerAdjustment,
    wish: ContainerAdjustment,
) -> Result<(), NriError> {
    entries::texts(
        owners,
        Field::Annotations,
        &mut container.annotations,
        &mut adjust.annotations,
        wish.annotations,
    )?;
    entries::list(
        owners,
        Field::Mounts,
        &mut container.mounts,
        &mut adjust.mounts,
        wish.mounts,
    )?;
    entries::environment(owners, &mut container.env, &mut adjust.env, wish.env)?;
    if !wish.args.is_empty() {
        let args = match wish.args.split_first() {
            Some((first, rest)) if first.is_empty() => {
                owners.clear(Field::Args);
                rest.to_vec()
            }
            _ => wish.args,
        };
        owners.claim(Field::Args)?;
        adjust.args.clone_from(&args);
        container.args = args;
    }
    if let Some(hooks) = wish.hooks.filter(|hooks| *hooks != Hooks::default()) {
        owners.share(Field::OciHooks);
        append_hooks(adjust.hooks.get_or_insert_default(), &hooks);
        append_hooks(container.hooks.get_or_insert_default(), &hooks);
    }
    if let Some(linux) = wish.linux {
        adjust_linux(
            owners,
            container.linux.get_or_insert_default(),
            adjust.linux.get_or_insert_default(),
            linux,
        )?;
    }
    entries::list(
        owners,
        Field::Rlimits,
        &mut container.rlimits,
        &mut adjust.rlimits,
        wish.rlimits,
    )?;
    for device in wish.cdi_devices {
        owners.claim_entry(Field::CdiDevices, &device.name)?;
        adjust.cdi_devices.push(device);
    }
    Ok(())
}

fn adjust_linux(
    owners: &mut Owners<'_>,
    container: &mut LinuxContainer,
    adjust: &mut LinuxContainerAdjustment,
    wish: LinuxContainerAdjustment,
) -> Result<(), NriError> {
    entries::list(
        owners,
        Field::Devices,
        &mut container.devices,
        &mut adjust.devices,
        wish.devices,
    )?;
    if let Some(resources) = wish.resources {
        claim(owners, &resources)?;
        overlay(adjust.resources.get_or_insert_default(), &resources);
        overlay(container.resources.get_or_insert_default(), &resources);
    }
    if !wish.cgroups_path.is_empty() {
        owners.claim(Field::CgroupsPath)?;
        adjust.cgroups_path.clone_from(&wish.cgroups_path);
        container.cgroups_path = wish.cgroups_path;
    }
    if let Some(score) = wish.oom_score_adj {
        owners.claim(Field::OomScoreAdj)?;
        (adjust.oom_score_adj, container.oom_score_adj) = (Some(score), Some(score));
    }
    if let Some(priority) = wish.io_priority {
        owners.claim(Field::IoPriority)?;
        (adjust.io_priority, container.io_priority) = (Some(priority), Some(priority));
    }
    if let Some(policy) = wish.seccomp_policy {
        owners.claim(Field::SeccompPolicy)?;
        adjust.seccomp_policy = Some(policy.clone());
        container.seccomp_policy = Some(policy);
    }
    entries::list(
        owners,
        Field::Namespace,
        &mut container.namespaces,
        &mut adjust.namespaces,
        wish.namespaces,
    )?;
    entries::texts(
        owners,
        Field::Sysctl,
        &mut container.sysctl,
        &mut adjust.sysctl,
        wish.sysctl,
    )?;
    entries::texts(
        owners,
        Field::LinuxNetDevices,
        &mut container.net_devices,
        &mut adjust.net_devices,
        wish.net_devices,
    )?;
    if let Some(scheduler) = wish.scheduler {
        owners.claim(Field::LinuxSched)?;
        adjust.scheduler = Some(scheduler.clone());
        container.scheduler = Some(scheduler);
    }
    if let Some(rdt) = wish.rdt {
        adjust_rdt(owners, adjust.rdt.get_or_insert_default(), rdt)?;
    }
    if let Some(policy) = wish.memory_policy {
        owners.claim(Field::MemoryPolicy)?;
        adjust.memory_policy = Some(policy);
    }
    Ok(())
}

fn adjust_rdt(owners: &mut Owners<'_>, adjust: &mut LinuxRdt, wish: LinuxRdt) -> Result<(), NriError> {
    if wish.remove {
        for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
            owners.clear(field);
        }
        *adjust = LinuxRdt {
            remove: true,
            ..LinuxRdt::default()
        };
    }
    if let Some(id) = wish.clos_id {
        owners.claim(Field::RdtClosId)?;
        (adjust.clos_id, adjust.remove) = (Some(id), false);
    }
    if let Some(schemata) = wish.schemata {
        owners.claim(Field::RdtSchemata)?;
        (adjust.schemata, adjust.remove) = (Some(schemata), false);
    }
    if let Some(enable) = wish.enable_monitoring {
        owners.claim(Field::RdtEnableMonitoring)?;
        (adjust.enable_monitoring, adjust.remove) = (Some(enable), false);
    }
    Ok(())
}

fn append_hooks(to: &mut Hooks, from: &Hooks) {
    to.prestart.extend_from_slice(&from.prestart);
    to.create_runtime.extend_from_slice(&from.create_runtime);
    to.create_container.extend_from_slice(&from.create_container);
    to.start_container.extend_from_slice(&from.start_container);
    to.poststart.extend_from_slice(&from.poststart);
    to.poststop.extend_from_slice(&from.poststop);
}

/// Changed limits of containers that exist.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// One entry for each container, in the order in which they were first named.
    pub updates: Vec<ContainerUpdate>,
    /// Who wants what.
    pub owners: OwningPlugins,
    /// Where each container's entry is.
    places: BTreeMap<String, usize>,
}

impl Changes {
    /// Begins with an update that the CRI asks for; no plugin owns any of it.
    pub fn of(container: &str, resources: LinuxResources) -> Self {
        let mut changes = Self::default();
        changes.places.insert(container.to_owned(), 0);
        changes.updates.push(ContainerUpdate {
            container_id: container.to_owned(),
            linux: Some(LinuxContainerUpdate {
                resources: Some(resources),
            }),
            ignore_failure: false,
        });
        changes
    }

    /// Takes what one plugin, called `index-name`, wants.
    ///
    /// # Errors
    /// It wants what another has set, and doesn't say that this may be ignored.
    pub fn apply(&mut self, plugin: &str, wishes: Vec<ContainerUpdate>) -> Result<(), NriError> {
        for wish in wishes {
            let wanted = wish.linux.unwrap_or_default().resources.unwrap_or_default();
            let before = self.owners.owners.get(&wish.container_id).cloned();
            let claimed = claim(
                &mut Owners::of(&mut self.owners, &wish.container_id, plugin),
                &wanted,
            );
            if let Err(error) = claimed {
                // Of a wish that may fail, either all is taken or nothing.
                match before {
                    Some(before) => self.owners.owners.insert(wish.container_id, before),
                    None => self.owners.owners.remove(&wish.container_id),
                };
                if wish.ignore_failure {
                    continue;
                }
                return Err(error);
            }
            let next = self.updates.len();
            let at = *self.places.entry(wish.container_id.clone()).or_insert(next);
            match self.updates.get_mut(at) {
                Some(update) => {
                    update.ignore_failure &= wish.ignore_failure;
                    let linux = update.linux.get_or_insert_default();
                    overlay(linux.resources.get_or_insert_default(), &wanted);
                }
                None => self.updates.push(ContainerUpdate {
                    container_id: wish.container_id,
                    linux: Some(LinuxContainerUpdate {
                        resources: Some(wanted),
                    }),
                    ignore_failure: wish.ignore_failure,
                }),
            }
        }
        Ok(())
    }
}
