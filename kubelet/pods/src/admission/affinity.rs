//! Whether a node is one that a pod wants (node selector and required node affinity), and which taints a pod tolerates.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

use super::{Node, Rejection};
use crate::containers::spec;

/// Why the pod doesn't want this node.
pub(super) fn objection(pod: &Pod, node: &Node) -> Option<Rejection> {
    let spec = spec(pod)?;
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(name, value)| node.labels.get(name) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let wanted = required.is_none_or(|required| {
        required
            .node_selector_terms
            .iter()
            .any(|term| matches(term, node))
    });
    let why = "node(s) didn't match Pod's node affinity/selector";
    (!selected || !wanted).then(|| Rejection::predicate("NodeAffinity", why))
}

/// All of a term's requirements hold; a term without any holds nowhere.
fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let of_node = BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|one| holds(one, &node.labels))
        && fields.iter().all(|one| holds(one, &of_node))
}

fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.contains(value));
    let number = |text: &String| text.parse::<i64>().ok();
    let bound = match values {
        [bound] => number(bound),
        _ => None,
    };
    let compared = || value.and_then(number).zip(bound);
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(value, bound)| value > bound),
        "Lt" => compared().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Whether the pod tolerates a taint.
pub(super) fn tolerates(pod: &Pod, taint: &Taint) -> bool {
    let all = spec(pod)
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default();
    all.iter().any(|one| one_tolerates(one, taint))
}

fn one_tolerates(one: &Toleration, taint: &Taint) -> bool {
    let any = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let effect = any(&one.effect) || one.effect.as_deref() == Some(taint.effect.as_str());
    let key = any(&one.key) || one.key.as_deref() == Some(taint.key.as_str());
    let value = match one.operator.as_deref() {
        None | Some("" | "Equal") => {
            !any(&one.key)
                && one.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        Some("Exists") => true,
        Some("Gt") => compared(one, taint).is_some_and(|(wanted, has)| has > wanted),
        Some("Lt") => compared(one, taint).is_some_and(|(wanted, has)| has < wanted),
        Some(_) => false,
    };
    effect && key && value
}

/// The toleration's number and the taint's.
fn compared(one: &Toleration, taint: &Taint) -> Option<(i64, i64)> {
    Some((
        one.value.as_ref()?.parse().ok()?,
        taint.value.as_ref()?.parse().ok()?,
    ))
}
