//! What an evicted pod's status and event say, in upstream's words.

use std::collections::BTreeMap;

use controlplane_api::Quantity;
use controlplane_api::quantity::Format;

use super::{Candidate, ContainerUsage, Limit, Observation, Signal, Threshold};
use crate::node::resources::requests_of;

/// Message and annotations for a pod that goes because something runs low.
pub(super) fn of_shortage(
    threshold: &Threshold,
    seen: Option<Observation>,
    chosen: &Candidate<'_>,
) -> (String, BTreeMap<String, String>) {
    let resource = threshold.signal.resource();
    let mut message = format!("The node was low on resource: {resource}. ");
    if let Some(seen) = seen {
        let limit = match &threshold.limit {
            Limit::Quantity(amount) => amount.clone(),
            Limit::Percentage(_) => amount(threshold.signal, threshold.limit.of(seen.capacity)),
        };
        let available = amount(threshold.signal, seen.available);
        message.push_str(&format!("Threshold quantity: {limit}, available: {available}. "));
    }
    let (mut offending, mut used) = (Vec::new(), Vec::new());
    let spec = chosen.pod.spec.as_ref();
    let init = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    for container in spec.iter().flat_map(|spec| &spec.containers).chain(init) {
        let usage = chosen
            .usage
            .and_then(|usage| usage.containers.get(&container.name));
        let Some(usage) = usage.and_then(|usage| usage_of(usage, resource)) else {
            continue;
        };
        let requested = requests_of(container).remove(resource).unwrap_or_default();
        if usage > requested {
            let name = &container.name;
            message.push_str(&format!(
                "Container {name} was using {usage}, request is {requested}, has larger consumption of {resource}. "
            ));
            offending.push(name.clone());
            used.push(usage.to_string());
        }
    }
    let annotations = BTreeMap::from([
        ("offending_containers".to_owned(), offending.join(",")),
        ("offending_containers_usage".to_owned(), used.join(",")),
        ("starved_resource".to_owned(), resource.to_owned()),
    ]);
    (message, annotations)
}

fn amount(signal: Signal, value: i64) -> Quantity {
    match signal.is_bytes() {
        true => Quantity::new(value, Format::BinarySi),
        false => Quantity::new(value, Format::DecimalSi),
    }
}

fn usage_of(usage: &ContainerUsage, resource: &str) -> Option<Quantity> {
    match resource {
        "memory" => usage.memory.map(Quantity::from_bytes),
        "ephemeral-storage" => Some(Quantity::from_bytes(
            usage.root.bytes.saturating_add(usage.logs.bytes),
        )),
        _ => None,
    }
}
