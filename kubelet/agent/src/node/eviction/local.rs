//! Pods that use more of the node's disk than their own limits allow.

use std::collections::BTreeMap;

use controlplane_api::Quantity;

use super::{Candidate, Eviction, IMMEDIATELY, rank};
use crate::node::resources::{PodResources, limits_of};

/// Why a pod goes for the limits of its emptyDir volumes, of itself, or of its containers; `None` when it stays. Who is
/// spared the caller knows.
#[must_use]
pub fn exceeding_local_storage(one: &Candidate<'_>) -> Option<Eviction> {
    let message = volume(one)
        .or_else(|| whole_pod(one))
        .or_else(|| container(one))?;
    Some(Eviction {
        uid: one.pod.metadata.uid.clone().unwrap_or_default(),
        message,
        grace_seconds: IMMEDIATELY,
        annotations: BTreeMap::new(),
    })
}

fn volume(one: &Candidate<'_>) -> Option<String> {
    let usage = one.usage?;
    let volumes = one.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|dir| dir.size_limit.as_ref()) else {
            continue;
        };
        let limit = Quantity::try_from(limit).ok().filter(|limit| limit.signum() > 0);
        let used = usage
            .volumes
            .get(&volume.name)
            .or_else(|| usage.memory_volumes.get(&volume.name));
        if let (Some(limit), Some(used)) = (limit, used)
            && used.bytes > limit.value()
        {
            let name = &volume.name;
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit \"{limit}\". "
            ));
        }
    }
    None
}

fn whole_pod(one: &Candidate<'_>) -> Option<String> {
    let limits = PodResources::of(one.pod).limits;
    let limit = limits.get("ephemeral-storage")?;
    let used = rank::total(one.usage?, true, true).bytes;
    (used > limit.value())
        .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "))
}

fn container(one: &Candidate<'_>) -> Option<String> {
    let usage = one.usage?;
    let spec = one.pod.spec.as_ref()?;
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        let limit = limits_of(container).remove("ephemeral-storage");
        let used = usage.containers.get(&container.name);
        if let (Some(limit), Some(used)) = (limit, used)
            && used.root.bytes.saturating_add(used.logs.bytes) > limit.value()
        {
            let name = &container.name;
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit \"{limit}\". "
            ));
        }
    }
    None
}
