//! Where a pod may run: affinities, tolerations, spreading, gates.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSpec, Toleration,
    TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::super::{list, text};
use super::NOT_POSITIVE;
use super::metadata::{validate_operator, validate_selector};
use crate::field::{FieldErrors, Path};
use crate::names;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Checks affinities to nodes and to other pods.
pub(super) fn validate_affinity(affinity: Option<&Affinity>, path: &Path, errors: &mut FieldErrors) {
    let Some(affinity) = affinity else { return };
    if let Some(node) = &affinity.node_affinity {
        let at = path.child("nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            let at = at.child(REQUIRED).child("nodeSelectorTerms");
            if selector.node_selector_terms.is_empty() {
                errors.required(&at, "must have at least one node selector term");
            }
            for (i, term) in selector.node_selector_terms.iter().enumerate() {
                validate_term(term, true, &at.index(i), errors);
            }
        }
        let preferred = list(&node.preferred_during_scheduling_ignored_during_execution);
        for (i, term) in preferred.iter().enumerate() {
            let at = at.child(PREFERRED).index(i);
            validate_weight(term.weight, &at, errors);
            validate_term(&term.preference, false, &at.child("preference"), errors);
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        let required = list(&pods.required_during_scheduling_ignored_during_execution);
        let preferred = list(&pods.preferred_during_scheduling_ignored_during_execution);
        validate_pod_terms(required, preferred, &path.child("podAffinity"), errors);
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let required = list(&pods.required_during_scheduling_ignored_during_execution);
        let preferred = list(&pods.preferred_during_scheduling_ignored_during_execution);
        validate_pod_terms(required, preferred, &path.child("podAntiAffinity"), errors);
    }
}

fn validate_weight(weight: i32, path: &Path, errors: &mut FieldErrors) {
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn validate_term(term: &NodeSelectorTerm, check_values: bool, path: &Path, errors: &mut FieldErrors) {
    for (i, requirement) in list(&term.match_expressions).iter().enumerate() {
        validate_requirement(
            requirement,
            check_values,
            &path.child("matchExpressions").index(i),
            errors,
        );
    }
    for (i, requirement) in list(&term.match_fields).iter().enumerate() {
        let at = path.child("matchFields").index(i);
        let values = list(&requirement.values);
        if !matches!(&*requirement.operator, "In" | "NotIn") {
            errors.invalid(
                &at.child("operator"),
                &requirement.operator,
                "not a valid selector operator",
            );
        } else if values.len() != 1 {
            let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.required(&at.child("values"), why);
        }
        if requirement.key != "metadata.name" {
            errors.invalid(
                &at.child("key"),
                &requirement.key,
                "not a valid field selector key",
            );
            continue;
        }
        for (j, value) in values.iter().enumerate() {
            errors.invalid_for_each(&at.child("values").index(j), value, names::dns_subdomain(value));
        }
    }
}

fn validate_requirement(
    requirement: &NodeSelectorRequirement,
    check_values: bool,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let values = list(&requirement.values);
    match &*requirement.operator {
        "Gt" | "Lt" => {
            if values.len() != 1 {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.required(&path.child("values"), why);
            }
        }
        operator => validate_operator(operator, values, path, errors),
    }
    errors.invalid_for_each(
        &path.child("key"),
        &requirement.key,
        names::qualified_name(&requirement.key),
    );
    if check_values {
        for (i, value) in values.iter().enumerate() {
            errors.invalid_for_each(&path.child("values").index(i), value, names::label_value(value));
        }
    }
}

fn validate_pod_terms(
    required: &[PodAffinityTerm],
    preferred: &[WeightedPodAffinityTerm],
    path: &Path,
    errors: &mut FieldErrors,
) {
    for (i, term) in required.iter().enumerate() {
        validate_pod_term(term, &path.child(REQUIRED).index(i), errors);
    }
    for (i, term) in preferred.iter().enumerate() {
        let at = path.child(PREFERRED).index(i);
        validate_weight(term.weight, &at, errors);
        validate_pod_term(&term.pod_affinity_term, &at.child("podAffinityTerm"), errors);
    }
}

fn validate_pod_term(term: &PodAffinityTerm, path: &Path, errors: &mut FieldErrors) {
    validate_selector(term.label_selector.as_ref(), &path.child("labelSelector"), errors);
    validate_selector(
        term.namespace_selector.as_ref(),
        &path.child("namespaceSelector"),
        errors,
    );
    for name in list(&term.namespaces) {
        errors.invalid_for_each(&path.child("namespace"), name, names::dns_label(name));
    }
    let (matching, other) = (list(&term.match_label_keys), list(&term.mismatch_label_keys));
    for (field, keys) in [("matchLabelKeys", matching), ("mismatchLabelKeys", other)] {
        let at = path.child(field);
        if !keys.is_empty() && term.label_selector.is_none() {
            errors.forbidden(&at, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in keys.iter().enumerate() {
            errors.invalid_for_each(&at.index(i), key, names::qualified_name(key));
        }
    }
    for (i, key) in matching.iter().enumerate().filter(|(_, key)| other.contains(key)) {
        let why = "exists in both matchLabelKeys and mismatchLabelKeys";
        errors.invalid(&path.child("matchLabelKeys").index(i), key, why);
    }
    if term.topology_key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    }
    let found = names::qualified_name(&term.topology_key);
    errors.invalid_for_each(&path.child("topologyKey"), &term.topology_key, found);
}

/// Checks what taints the pod tolerates.
pub(super) fn validate_tolerations(tolerations: &[Toleration], path: &Path, errors: &mut FieldErrors) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let at = path.index(i);
        let (key, value) = (text(&toleration.key), text(&toleration.value));
        let (operator, effect) = (text(&toleration.operator), text(&toleration.effect));
        if !key.is_empty() {
            errors.invalid_for_each(&at.child("key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&at.child("operator"), operator, why);
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            errors.invalid(
                &at.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match operator {
            "Equal" | "" => {
                let found = names::label_value(value);
                if !found.is_empty() {
                    errors.invalid(&at.child("operator"), value, found.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.invalid(
                        &at.child("operator"),
                        value,
                        "value must be empty when `operator` is 'Exists'",
                    );
                }
            }
            _ => errors.not_supported(&at.child("operator"), operator, &["Equal", "Exists"]),
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !effect.is_empty() && !effects.contains(&effect) {
            errors.not_supported(&at.child("effect"), effect, &effects);
        }
    }
}

/// Checks how pods are to be spread.
pub(super) fn validate_topology_spread(
    constraints: &[TopologySpreadConstraint],
    path: &Path,
    errors: &mut FieldErrors,
) {
    for (i, constraint) in constraints.iter().enumerate() {
        let at = path.index(i);
        if constraint.max_skew <= 0 {
            errors.invalid(&at.child("maxSkew"), constraint.max_skew, NOT_POSITIVE);
        }
        if constraint.topology_key.is_empty() {
            errors.required(&at.child("topologyKey"), "can not be empty");
        }
        let action = &*constraint.when_unsatisfiable;
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            errors.not_supported(
                &at.child("whenUnsatisfiable"),
                action,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
        }
        let same = |other: &&TopologySpreadConstraint| {
            other.topology_key == constraint.topology_key && other.when_unsatisfiable == action
        };
        if constraints[i + 1..].iter().any(|other| same(&other)) {
            let pair = format!("{{{}, {action}}}", constraint.topology_key);
            errors.duplicate(&at.child("{topologyKey, whenUnsatisfiable}"), &pair);
        }
        if let Some(domains) = constraint.min_domains {
            if domains <= 0 {
                errors.invalid(&at.child("minDomains"), domains, NOT_POSITIVE);
            }
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(&at.child("minDomains"), domains, why);
            }
        }
        let policies = [
            ("nodeAffinityPolicy", &constraint.node_affinity_policy),
            ("nodeTaintsPolicy", &constraint.node_taints_policy),
        ];
        for (name, policy) in policies {
            if let Some(policy) = policy
                .as_deref()
                .filter(|policy| !matches!(*policy, "Honor" | "Ignore"))
            {
                errors.not_supported(&at.child(name), policy, &["Honor", "Ignore"]);
            }
        }
        let keys = list(&constraint.match_label_keys);
        validate_spread_keys(
            keys,
            constraint.label_selector.as_ref(),
            &at.child("matchLabelKeys"),
            errors,
        );
        validate_selector(
            constraint.label_selector.as_ref(),
            &at.child("labelSelector"),
            errors,
        );
    }
}

fn validate_spread_keys(
    keys: &[String],
    selector: Option<&LabelSelector>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    if keys.is_empty() {
        return;
    }
    let mut selected = BTreeSet::new();
    match selector {
        None => errors.forbidden(path, "must not be specified when labelSelector is not set"),
        Some(selector) => {
            selected.extend(selector.match_labels.iter().flatten().map(|(key, _)| key));
            selected.extend(
                list(&selector.match_expressions)
                    .iter()
                    .map(|expression| &expression.key),
            );
        }
    }
    for (i, key) in keys.iter().enumerate() {
        errors.invalid_for_each(&path.index(i), key, names::qualified_name(key));
        if selected.contains(key) {
            errors.invalid(
                &path.index(i),
                key,
                "exists in both matchLabelKeys and labelSelector",
            );
        }
    }
}

/// Checks readiness gates and scheduling gates.
pub(super) fn validate_gates(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    for (i, gate) in list(&spec.readiness_gates).iter().enumerate() {
        let at = path.child("readinessGates").index(i).child("conditionType");
        errors.invalid_for_each(
            &at,
            &gate.condition_type,
            names::qualified_name(&gate.condition_type),
        );
    }
    let mut seen = BTreeSet::new();
    for (i, gate) in list(&spec.scheduling_gates).iter().enumerate() {
        let at = path.child("schedulingGates").index(i);
        errors.invalid_for_each(&at, &gate.name, names::qualified_name(&gate.name));
        if !seen.insert(&gate.name) {
            errors.duplicate(&at, &gate.name);
        }
    }
}
