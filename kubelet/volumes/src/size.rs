//! How large a volume in memory may be, and which huge pages it has. Pure.

use std::collections::BTreeMap;

use controlplane_api::Quantity;
use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod};
use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

/// Bytes, or pages, or whatever an amount counts; none when it is absent, negative or no quantity.
pub(crate) fn amount(wire: Option<&Wire>) -> Option<u64> {
    u64::try_from(Quantity::try_from(wire?).ok()?.value()).ok()
}

/// The size of a volume in memory: the least of what the node can give to pods, what the pod may use, and the volume's own
/// limit. Limits of 0 don't count.
pub(crate) fn memory_size(allocatable: u64, pod: &Pod, limit: Option<&Wire>) -> u64 {
    [pod_memory(pod), amount(limit)]
        .into_iter()
        .flatten()
        .filter(|limit| *limit > 0)
        .fold(allocatable, u64::min)
}

/// The memory that a pod's cgroup is limited to; none when a container has no limit and the pod has none either.
fn pod_memory(pod: &Pod) -> Option<u64> {
    let spec = pod.spec.as_ref()?;
    let of = |limits: Option<&BTreeMap<String, Wire>>| {
        amount(limits.and_then(|limits| limits.get("memory"))).filter(|limit| *limit > 0)
    };
    let whole = spec.resources.as_ref();
    if let Some(limit) = of(whole.and_then(|resources| resources.limits.as_ref())) {
        return Some(limit);
    }
    let limit = |one: &Container| of(one.resources.as_ref().and_then(|own| own.limits.as_ref()));
    // Sidecars stay; any other init container runs beside those before it.
    let (mut sidecars, mut most) = (0_u64, 0_u64);
    for init in spec.init_containers.iter().flatten() {
        let own = limit(init)?;
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(own);
            most = most.max(sidecars);
        } else {
            most = most.max(sidecars.saturating_add(own));
        }
    }
    let mut running = sidecars;
    for container in &spec.containers {
        running = running.saturating_add(limit(container)?);
    }
    let overhead = amount(spec.overhead.as_ref().and_then(|overhead| overhead.get("memory")));
    Some(most.max(running).saturating_add(overhead.unwrap_or(0)))
}

/// The size in bytes of the huge pages of a medium (`HugePages` or `HugePages-2Mi`), which the pod must request.
pub(crate) fn page_size(medium: &str, pod: &Pod) -> Result<u64, String> {
    let size_of = |text: &str| -> Result<u64, String> {
        let size = text.parse::<Quantity>().map_err(|error| error.to_string())?;
        u64::try_from(size.value()).map_err(|_| format!("invalid huge page size \"{text}\""))
    };
    let wanted = match medium.strip_prefix("HugePages-") {
        Some(size) => Some(size_of(size)?),
        None => None,
    };
    let mut found = None;
    for name in requests(pod) {
        let Some(size) = name.strip_prefix("hugepages-") else {
            continue;
        };
        let size = size_of(size)?;
        match wanted {
            Some(wanted) if size != wanted => {}
            _ if found.is_some_and(|found| found != size) => {
                return Err(format!(
                    "medium: {medium} can't be used if container requests multiple huge page sizes"
                ));
            }
            _ => found = Some(size),
        }
    }
    found.ok_or_else(|| {
        format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        )
    })
}

/// The names of all resources that a pod's containers, or itself, request.
fn requests(pod: &Pod) -> impl Iterator<Item = &str> {
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|spec| spec.resources.as_ref());
    let containers = spec.into_iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(init)
    });
    own.into_iter()
        .chain(containers.filter_map(|container| container.resources.as_ref()))
        .flat_map(|resources| resources.requests.iter().flatten())
        .map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests;
