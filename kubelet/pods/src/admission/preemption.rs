//! Which pods end so that a critical pod gets the resources that it lacks: the least important that suffice, and of equals
//! the fewest.
//!
//! Pods that may be pushed out are grouped by priority and QoS class, least important first. From the most important group
//! down, each group gives up only what all less important groups together can't; within a group the pod that comes nearest
//! to what is missing goes first.

use std::cmp::Ordering;

use controlplane_api::k8s_openapi::api::core::v1::Pod;

use super::requests::PodRequests;
use super::{Shortage, is_critical};
use crate::containers::spec;
use crate::status::qos;

/// A resource and how much of it is missing.
type Missing = Vec<(String, i64)>;

/// A pod that may be pushed out.
struct Candidate<'p> {
    pod: &'p Pod,
    requests: PodRequests,
}

impl Candidate<'_> {
    /// A pod takes one of `pods`.
    fn amount(&self, name: &str) -> i64 {
        if name == "pods" {
            1
        } else {
            self.requests.amount(name)
        }
    }
}

/// UIDs of the pods that end, or what is missing even if all that may end do.
pub(super) fn victims(pod: &Pod, others: &[&Pod], shortages: &[Shortage]) -> Result<Vec<String>, String> {
    let groups = groups(pod, others);
    let mut missing: Vec<Missing> = vec![
        shortages
            .iter()
            .map(|one| (one.resource.clone(), one.missing()))
            .collect(),
    ];
    for group in &groups {
        let before = missing.last().map(Vec::as_slice).unwrap_or_default();
        missing.push(subtract(before, group.iter()));
    }
    if let Some(left) = missing.last().filter(|left| !left.is_empty()) {
        let each: Vec<_> = left
            .iter()
            .map(|(name, amount)| format!("(res: {name}, q: {amount}), "))
            .collect();
        return Err(format!("[{}]", each.concat()));
    }
    let mut chosen: Vec<Candidate<'_>> = Vec::new();
    for (group, missing) in groups.into_iter().zip(missing).rev() {
        let missing = subtract(&missing, chosen.iter());
        chosen.extend(nearest(group, missing));
    }
    Ok(chosen
        .iter()
        .map(|one| one.pod.metadata.uid.clone().unwrap_or_default())
        .collect())
}

/// Whether one pod may push out another: a critical one those that aren't, else by priority.
fn outranks(one: &Pod, other: &Pod) -> bool {
    let priority = |pod: &Pod| spec(pod).and_then(|spec| spec.priority);
    if is_critical(one) && !is_critical(other) {
        return true;
    }
    priority(one)
        .zip(priority(other))
        .is_some_and(|(one, other)| one > other)
}

fn rank(one: &Candidate<'_>, other: &Candidate<'_>) -> Ordering {
    if outranks(one.pod, other.pod) {
        Ordering::Greater
    } else if outranks(other.pod, one.pod) {
        Ordering::Less
    } else {
        qos::class(one.pod).cmp(&qos::class(other.pod))
    }
}

/// Least important first.
fn groups<'p>(pod: &Pod, others: &[&'p Pod]) -> Vec<Vec<Candidate<'p>>> {
    let mut groups: Vec<Vec<Candidate<'p>>> = Vec::new();
    for other in others.iter().filter(|other| outranks(pod, other)) {
        let candidate = Candidate {
            pod: other,
            requests: PodRequests::of(other),
        };
        let place = groups
            .iter()
            .position(|group| group.first().is_some_and(|first| rank(first, &candidate).is_ge()));
        match place {
            Some(place) if rank(&groups[place][0], &candidate).is_eq() => groups[place].push(candidate),
            Some(place) => groups.insert(place, vec![candidate]),
            None => groups.push(vec![candidate]),
        }
    }
    groups
}

fn subtract<'c, 'p: 'c>(
    missing: &[(String, i64)],
    pods: impl Iterator<Item = &'c Candidate<'p>> + Clone,
) -> Missing {
    let left = missing.iter().map(|(name, amount)| {
        let freed = pods
            .clone()
            .fold(0_i64, |sum, one| sum.saturating_add(one.amount(name)));
        (name.clone(), amount.saturating_sub(freed))
    });
    left.filter(|(_, amount)| *amount > 0).collect()
}

/// Pods of one group that free what is missing, the one that comes nearest first, of equally near ones the smaller.
fn nearest<'p>(mut group: Vec<Candidate<'p>>, mut missing: Missing) -> Vec<Candidate<'p>> {
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let size = |one: &Candidate<'_>| (one.amount("memory"), one.amount("cpu"));
        let best = (0..group.len()).min_by(|&a, &b| {
            let (a, b) = (&group[a], &group[b]);
            distance(a, &missing)
                .total_cmp(&distance(b, &missing))
                .then_with(|| size(a).cmp(&size(b)))
        });
        let Some(best) = best else {
            break;
        };
        let one = group.swap_remove(best);
        missing = subtract(&missing, std::iter::once(&one));
        chosen.push(one);
    }
    chosen
}

/// How far a pod is from freeing all that is missing: the sum of squares of the parts that it leaves.
fn distance(one: &Candidate<'_>, missing: &[(String, i64)]) -> f64 {
    let part = |(name, amount): &(String, i64)| {
        let left = amount.saturating_sub(one.amount(name)).max(0);
        (left as f64 / *amount as f64).powi(2)
    };
    missing.iter().map(part).sum()
}
