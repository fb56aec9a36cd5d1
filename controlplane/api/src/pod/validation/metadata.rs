//! Metadata, labels and label selectors of any object.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use super::super::{list, text};
use super::validate_not_negative;
use crate::field::{FieldErrors, Path, Shown};
use crate::names;

/// Bytes of all annotations together.
const MOST_ANNOTATIONS: usize = 256 << 10;

type Labels = BTreeMap<String, String>;

/// Checks the metadata of an object in a namespace whose name is a DNS subdomain.
pub fn validate_metadata(meta: &ObjectMeta, path: &Path, errors: &mut FieldErrors) {
    let generate = text(&meta.generate_name);
    if !generate.is_empty() {
        errors.invalid_for_each(
            &path.child("generateName"),
            generate,
            names::prefix_of_dns_subdomain(generate),
        );
    }
    match text(&meta.name) {
        "" => errors.required(&path.child("name"), "name or generateName is required"),
        name => errors.invalid_for_each(&path.child("name"), name, names::dns_subdomain(name)),
    }
    match text(&meta.namespace) {
        "" => errors.required(&path.child("namespace"), ""),
        namespace => {
            errors.invalid_for_each(&path.child("namespace"), namespace, names::dns_label(namespace))
        }
    }
    validate_not_negative(meta.generation.unwrap_or(0), &path.child("generation"), errors);
    validate_labels(meta.labels.as_ref(), &path.child("labels"), errors);
    validate_annotations(meta.annotations.as_ref(), &path.child("annotations"), errors);
    validate_owners(
        list(&meta.owner_references),
        &path.child("ownerReferences"),
        errors,
    );
    validate_finalizers(list(&meta.finalizers), &path.child("finalizers"), errors);
}

/// Checks keys and values of labels.
pub fn validate_labels(labels: Option<&Labels>, path: &Path, errors: &mut FieldErrors) {
    for (key, value) in labels.into_iter().flatten() {
        errors.invalid_for_each(path, key, names::qualified_name(key));
        errors.invalid_for_each(path, value, names::label_value(value));
    }
}

/// Checks the keys of annotations, and their size.
pub fn validate_annotations(annotations: Option<&Labels>, path: &Path, errors: &mut FieldErrors) {
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        errors.invalid_for_each(path, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.len();
    }
    if size > MOST_ANNOTATIONS {
        errors.too_long(path, MOST_ANNOTATIONS);
    }
}

fn validate_owners(owners: &[OwnerReference], path: &Path, errors: &mut FieldErrors) {
    let mut controller: Option<String> = None;
    for (i, owner) in owners.iter().enumerate() {
        let at = path.index(i);
        if owner.api_version.is_empty() {
            errors.required(&at.child("apiVersion"), "must not be empty");
        } else if owner.api_version.matches('/').count() > 1 || owner.api_version.ends_with('/') {
            let why = "must be <group>/<version> or <version>";
            errors.invalid(&at.child("apiVersion"), &owner.api_version, why);
        }
        for (name, value) in [("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)] {
            if value.is_empty() {
                errors.required(&at.child(name), "must not be empty");
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.invalid(&at, Shown::json(owner), why);
        }
        if owner.controller == Some(true) {
            let this = format!("{}/{}", owner.kind, owner.name);
            match &controller {
                None => controller = Some(this),
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for \
                         {first} and {this}"
                    );
                    errors.invalid(path, Shown::json(owners), why);
                }
            }
        }
    }
}

fn validate_finalizers(finalizers: &[String], path: &Path, errors: &mut FieldErrors) {
    for finalizer in finalizers {
        errors.invalid_for_each(path, finalizer, names::qualified_name(finalizer));
    }
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        let why = "finalizer foregroundDeletion and orphan cannot be both set";
        errors.invalid(path, Shown::json(finalizers), why);
    }
    for (i, finalizer) in finalizers.iter().enumerate() {
        let is_standard = matches!(&**finalizer, "kubernetes" | "orphan" | "foregroundDeletion");
        if !finalizer.contains('/') && !is_standard {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(&path.index(i), finalizer, why);
        }
    }
}

/// Checks a label selector.
pub fn validate_selector(selector: Option<&LabelSelector>, path: &Path, errors: &mut FieldErrors) {
    let Some(selector) = selector else { return };
    validate_labels(selector.match_labels.as_ref(), &path.child("matchLabels"), errors);
    for (i, requirement) in list(&selector.match_expressions).iter().enumerate() {
        let at = path.child("matchExpressions").index(i);
        let values = list(&requirement.values);
        validate_operator(&requirement.operator, values, &at, errors);
        errors.invalid_for_each(
            &at.child("key"),
            &requirement.key,
            names::qualified_name(&requirement.key),
        );
        for (j, value) in values.iter().enumerate() {
            errors.invalid_for_each(&at.child("values").index(j), value, names::label_value(value));
        }
    }
}

/// The operators that label selectors and node selectors share.
pub(super) fn validate_operator(operator: &str, values: &[String], path: &Path, errors: &mut FieldErrors) {
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            );
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.forbidden(&path.child("values"), why);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => errors.invalid(&path.child("operator"), operator, "not a valid selector operator"),
    }
}
