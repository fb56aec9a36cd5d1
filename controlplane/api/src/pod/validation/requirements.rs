//! What containers, and the pod as a whole, request and are limited to; and the claims they name.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, Pod, PodResourceClaim, PodSpec, ResourceClaim, ResourceRequirements,
};

use super::super::resources::{
    Counting, ResourceList, aggregate_container_requests, amounts, is_huge_page, is_native,
    is_overcommit_allowed, is_pod_level_resource,
};
use super::super::{list, text};
use super::{NOT_NEGATIVE, Whole};
use crate::field::{FieldErrors, Path, Shown};
use crate::names;
use crate::quantity::Quantity;

/// Whether a name is of something outside of Kubernetes' own, like a device.
fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// A resource that there is at all.
fn validate_resource(name: &str, path: &Path, errors: &mut FieldErrors) -> bool {
    let found = names::qualified_name(name);
    let is_known = found.is_empty() && (name.contains('/') || is_standard(name));
    if !found.is_empty() {
        errors.invalid_for_each(path, name, found);
    } else if !is_known {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
    }
    is_known
}

/// The resources without a domain, quotas' included.
fn is_standard(name: &str) -> bool {
    let quota = name
        .strip_prefix("requests.")
        .or_else(|| name.strip_prefix("limits."));
    match quota {
        Some("cpu" | "memory" | "ephemeral-storage") => true,
        Some(other) => name == "requests.storage" || (name.starts_with("requests.") && is_huge_page(other)),
        None => {
            let counted = [
                "pods",
                "resourcequotas",
                "services",
                "replicationcontrollers",
                "secrets",
                "configmaps",
                "persistentvolumeclaims",
                "services.nodeports",
                "services.loadbalancers",
            ];
            matches!(name, "cpu" | "memory" | "ephemeral-storage" | "storage")
                || counted.contains(&name)
                || is_huge_page(name)
        }
    }
}

fn validate_container_resource(name: &str, path: &Path, errors: &mut FieldErrors) {
    validate_resource(name, path, errors);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_huge_page(name) {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

fn validate_pod_resource(name: &str, path: &Path, errors: &mut FieldErrors) {
    if validate_resource(name, path, errors) && !is_pod_level_resource(name) {
        errors.not_supported(path, name, &["cpu", "hugepages-", "memory"]);
    }
}

/// Checks a container's requirements.
pub(super) fn validate_container(
    container: &Container,
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    if let Some(resources) = &container.resources {
        validate(resources, validate_container_resource, whole, path, errors);
    }
}

/// Checks the overhead of the pod's runtime, as limits are checked.
pub(super) fn validate_overhead(spec: &PodSpec, whole: &Whole<'_>, path: &Path, errors: &mut FieldErrors) {
    if spec.overhead.is_some() {
        let limits = ResourceRequirements {
            limits: spec.overhead.clone(),
            ..ResourceRequirements::default()
        };
        validate(&limits, validate_container_resource, whole, path, errors);
    }
}

fn validate(
    resources: &ResourceRequirements,
    validate_name: fn(&str, &Path, &mut FieldErrors),
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let limits = validate_list(resources.limits.as_ref(), validate_name, &limits_path, errors);
    for (name, amount) in resources.requests.iter().flatten() {
        let at = requests_path.key(name);
        validate_name(name, &at, errors);
        let Some(request) = validate_amount(name, &amount.0, &at, errors) else {
            continue;
        };
        match limits.iter().find(|(limited, _)| limited == name) {
            Some((_, limit)) if request != *limit && !is_overcommit_allowed(name) => {
                let why = format!("must be equal to {name} limit of {limit}");
                errors.invalid(&requests_path, &request.to_string(), why);
            }
            Some((_, limit)) if request > *limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.invalid(&requests_path, &request.to_string(), why);
            }
            None if !is_overcommit_allowed(name) => {
                errors.required(&limits_path, "Limit must be set for non overcommitable resources");
            }
            Some(_) | None => {}
        }
        validate_pages(name, &request, &at, errors);
    }
    let all = || {
        resources
            .limits
            .iter()
            .chain(&resources.requests)
            .flat_map(ResourceList::keys)
    };
    if all().any(|name| is_huge_page(name)) && !all().any(|name| matches!(&**name, "cpu" | "memory")) {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    validate_claims(list(&resources.claims), whole, &path.child("claims"), errors);
}

fn validate_list(
    list: Option<&ResourceList>,
    validate_name: fn(&str, &Path, &mut FieldErrors),
    path: &Path,
    errors: &mut FieldErrors,
) -> Vec<(String, Quantity)> {
    let mut known = Vec::new();
    for (name, amount) in list.into_iter().flatten() {
        let at = path.key(name);
        validate_name(name, &at, errors);
        if let Some(amount) = validate_amount(name, &amount.0, &at, errors) {
            validate_pages(name, &amount, &at, errors);
            known.push((name.clone(), amount));
        }
    }
    known
}

/// The amount, if it is one at all.
fn validate_amount(name: &str, amount: &str, path: &Path, errors: &mut FieldErrors) -> Option<Quantity> {
    match amount.trim().parse::<Quantity>() {
        Err(error) => {
            errors.invalid(path, amount, error.to_string());
            None
        }
        Ok(quantity) => {
            if quantity.signum() < 0 {
                errors.invalid(path, &quantity.to_string(), NOT_NEGATIVE);
            }
            if is_extended(name) && quantity.milli_value() % 1000 != 0 {
                errors.invalid(path, &quantity.to_string(), "must be an integer");
            }
            Some(quantity)
        }
    }
}

/// An amount of huge pages is a whole number of them.
fn validate_pages(name: &str, amount: &Quantity, path: &Path, errors: &mut FieldErrors) {
    let Some(size) = name.strip_prefix("hugepages-") else {
        return;
    };
    let is_divisible = match size.parse::<Quantity>() {
        Ok(size) if size.signum() > 0 && size.is_whole() => amount.value() % size.value() == 0,
        _ => false,
    };
    if !is_divisible {
        let why = format!("{amount} is not positive integer multiple of {name}");
        errors.invalid(path, &amount.to_string(), why);
    }
}

/// Checks the claims that a container uses: each is one of the pod's.
fn validate_claims(claims: &[ResourceClaim], whole: &Whole<'_>, path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let at = path.index(i);
        let (name, request) = (&*claim.name, text(&claim.request));
        if name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        if seen.contains(name) {
            errors.duplicate(&at, name);
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                errors.invalid_for_each(&at.child("request"), request, names::dns_label(request));
                key = format!("{name}/{request}");
            }
            let covers = |other: &String| request.is_empty() && other.split('/').next() == Some(name);
            if seen.contains(&key) || seen.iter().any(covers) {
                errors.duplicate(&at, &key);
            }
            seen.insert(key);
        }
        if !whole.claims.contains(name) {
            let known: Vec<_> = whole.claims.iter().copied().collect();
            let which = if known.is_empty() {
                " which is empty".to_owned()
            } else {
                format!(": {}", known.join(", "))
            };
            errors.not_found(
                &at,
                name,
                format!("must be one of the names in pod.spec.resourceClaims{which}"),
            );
        }
    }
}

/// Checks the pod's claims.
pub(super) fn validate_pod_claims(claims: &[PodResourceClaim], path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let at = path.index(i);
        if claim.name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if seen.insert(&claim.name) {
            errors.invalid_for_each(&at.child("name"), &claim.name, names::dns_label(&claim.name));
        } else {
            errors.duplicate(&at.child("name"), &claim.name);
        }
        match (&claim.resource_claim_name, &claim.resource_claim_template_name) {
            (Some(_), Some(_)) => {
                let why =
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.invalid(&at, Shown::json(claim), why);
            }
            (None, None) => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.invalid(&at, Shown::json(claim), why);
            }
            _ => {}
        }
        let named = [
            ("resourceClaimName", &claim.resource_claim_name),
            ("resourceClaimTemplateName", &claim.resource_claim_template_name),
        ];
        for (field, name) in named {
            if let Some(name) = name {
                errors.invalid_for_each(&at.child(field), name, names::dns_subdomain(name));
            }
        }
    }
}

/// Checks what the pod as a whole requests, and that its containers fit in.
pub(super) fn validate_pod_level(spec: &PodSpec, whole: &Whole<'_>, path: &Path, errors: &mut FieldErrors) {
    let Some(resources) = &spec.resources else { return };
    if resources.claims.is_some() {
        errors.forbidden(
            &path.child("claims"),
            "claims cannot be set for Resources at pod-level",
        );
    }
    validate(resources, validate_pod_resource, whole, path, errors);
    let requests = amounts(resources.requests.as_ref());
    let pod = Pod {
        spec: Some(spec.clone()),
        ..Pod::default()
    };
    for (name, sum) in aggregate_container_requests(&pod, Counting::default()) {
        let own = requests.get(&name).cloned().unwrap_or_default();
        if sum > own {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&path.child("requests").key(&name), &own.to_string(), why);
        }
    }
    let limits = amounts(resources.limits.as_ref());
    for (i, container) in spec.containers.iter().enumerate() {
        let own = container
            .resources
            .as_ref()
            .and_then(|resources| resources.limits.as_ref());
        for (name, limit) in amounts(own) {
            if let Some(most) = limits.get(&name).filter(|most| limit > **most) {
                let at = path.child("containers").index(i).key(&name).child("limits");
                errors.invalid(
                    &at,
                    &limit.to_string(),
                    format!("must be less than or equal to pod limits of {most}"),
                );
            }
        }
    }
}
