//! Environment variables and where their values come from.

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, EnvVar, FileKeySelector, ObjectFieldSelector, ResourceFieldSelector,
};

use super::super::{list, text};
use super::{Whole, validate_file_path};
use crate::field::{FieldErrors, Path};
use crate::names;
use crate::quantity::Quantity;

/// What a variable may take from the pod, in order.
const VARIABLE_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What a file may take from the pod, in order.
pub(super) const FILE_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Checks a container's variables.
pub(super) fn validate_variables(
    container: &Container,
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    for (i, variable) in list(&container.env).iter().enumerate() {
        let at = path.index(i);
        match &*variable.name {
            "" => errors.required(&at.child("name"), ""),
            name => errors.invalid_for_each(&at.child("name"), name, names::environment_variable(name)),
        }
        validate_value_from(variable, whole, &at.child("valueFrom"), errors);
    }
}

fn validate_value_from(variable: &EnvVar, whole: &Whole<'_>, path: &Path, errors: &mut FieldErrors) {
    let Some(source) = &variable.value_from else {
        return;
    };
    let mut count = 0;
    if let Some(field) = &source.field_ref {
        count += 1;
        validate_field_ref(field, &VARIABLE_FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(resource) = &source.resource_field_ref {
        count += 1;
        validate_resource_ref(resource, false, &path.child("resourceFieldRef"), errors);
    }
    if let Some(key) = &source.config_map_key_ref {
        count += 1;
        validate_key_ref(&key.name, &key.key, &path.child("configMapKeyRef"), errors);
    }
    if let Some(key) = &source.secret_key_ref {
        count += 1;
        validate_key_ref(&key.name, &key.key, &path.child("secretKeyRef"), errors);
    }
    if let Some(file) = &source.file_key_ref {
        count += 1;
        validate_file_ref(file, whole, &path.child("fileKeyRef"), errors);
    }
    if count == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or \
                   `fileKeyRef`";
        errors.invalid(path, "", why);
    } else if !text(&variable.value).is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if count > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn validate_key_ref(name: &str, key: &str, path: &Path, errors: &mut FieldErrors) {
    errors.invalid_for_each(&path.child("name"), name, names::dns_subdomain(name));
    match key {
        "" => errors.required(&path.child("key"), ""),
        key => errors.invalid_for_each(&path.child("key"), key, names::config_key(key)),
    }
}

fn validate_file_ref(file: &FileKeySelector, whole: &Whole<'_>, path: &Path, errors: &mut FieldErrors) {
    const MOST_KEY: usize = 128;
    let volume_path = path.child("volumeName");
    match whole.volumes.get(&*file.volume_name) {
        _ if file.volume_name.is_empty() => errors.required(&volume_path, ""),
        None => errors.not_found(&volume_path, &file.volume_name, ""),
        Some(_) => {}
    }
    if file.path.is_empty() {
        errors.required(&path.child("path"), "");
    } else {
        validate_file_path(&file.path, &path.child("path"), errors);
    }
    match &*file.key {
        "" => errors.required(&path.child("key"), ""),
        key => {
            errors.invalid_for_each(&path.child("key"), key, names::environment_variable(key));
            if key.len() > MOST_KEY {
                errors.too_long(&path.child("key"), MOST_KEY);
            }
        }
    }
}

/// Takes `metadata.labels['key']` apart.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, key) = path.strip_suffix("']")?.split_once("['")?;
    (!field.is_empty()).then_some((field, key))
}

/// Checks a reference to a field of the pod.
pub(super) fn validate_field_ref(
    field: &ObjectFieldSelector,
    known: &[&str],
    path: &Path,
    errors: &mut FieldErrors,
) {
    let version = text(&field.api_version);
    let field_path = path.child("fieldPath");
    if version.is_empty() {
        return errors.required(&path.child("apiVersion"), "");
    }
    if field.field_path.is_empty() {
        return errors.required(&field_path, "");
    }
    let convertible = match subscript(&field.field_path) {
        Some((outer, _)) => matches!(outer, "metadata.annotations" | "metadata.labels"),
        None => {
            VARIABLE_FIELDS.contains(&&*field.field_path)
                || FILE_FIELDS.contains(&&*field.field_path)
                || matches!(
                    &*field.field_path,
                    "spec.restartPolicy" | "spec.schedulerName" | "status.phase" | "spec.host"
                )
        }
    };
    if version != "v1" {
        let why = format!("error converting fieldPath: unsupported pod version: {version}");
        return errors.invalid(&field_path, &field.field_path, why);
    }
    match subscript(&field.field_path) {
        _ if !convertible => {
            let why = match subscript(&field.field_path) {
                Some((outer, _)) => {
                    format!("error converting fieldPath: field label does not support subscript: {outer}")
                }
                None => format!(
                    "error converting fieldPath: field label not supported: {}",
                    field.field_path
                ),
            };
            errors.invalid(&field_path, &field.field_path, why);
        }
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            errors.invalid_for_each(path, &key, names::qualified_name(&key));
        }
        Some((_, key)) => errors.invalid_for_each(path, key, names::qualified_name(key)),
        None if !known.contains(&&*field.field_path) => {
            errors.not_supported(&field_path, &field.field_path, known)
        }
        None => {}
    }
}

/// Checks a reference to a container's resource; a file must name the container.
pub(super) fn validate_resource_ref(
    resource: &ResourceFieldSelector,
    in_file: bool,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let name = &*resource.resource;
    let is_huge = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if in_file && text(&resource.container_name).is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if name.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !RESOURCES.contains(&name) && !is_huge {
        errors.not_supported(&path.child("resource"), name, &RESOURCES);
    }
    let divisor = resource
        .divisor
        .as_ref()
        .and_then(|divisor| Quantity::try_from(divisor).ok());
    let Some(divisor) = divisor
        .filter(|divisor| !divisor.is_zero())
        .map(|divisor| divisor.to_string())
    else {
        return;
    };
    let units = [
        "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    let (allowed, what): (&[&str], _) = match name {
        "limits.cpu" | "requests.cpu" => (
            &["1m", "1"],
            "1m and 1 are supported with the cpu resource".to_owned(),
        ),
        "limits.memory" | "requests.memory" => (
            &units,
            format!("{} are supported with the memory resource", units.join(", ")),
        ),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (
            &units,
            format!(
                "{} are supported with the local ephemeral storage resource",
                units.join(", ")
            ),
        ),
        _ if is_huge => (
            &units,
            format!("{} are supported with the hugepages resource", units.join(", ")),
        ),
        _ => return,
    };
    if !allowed.contains(&&*divisor) {
        errors.invalid(
            &path.child("divisor"),
            name,
            format!("only divisor's values {what}"),
        );
    }
}

/// Checks what whole sets of variables come from.
pub(super) fn validate_sources(sources: &[EnvFromSource], path: &Path, errors: &mut FieldErrors) {
    for (i, source) in sources.iter().enumerate() {
        let at = path.index(i);
        let prefix = text(&source.prefix);
        if !prefix.is_empty() {
            errors.invalid_for_each(&at.child("prefix"), prefix, names::environment_variable(prefix));
        }
        let named = [
            (
                "configMapRef",
                source.config_map_ref.as_ref().map(|source| &*source.name),
            ),
            (
                "secretRef",
                source.secret_ref.as_ref().map(|source| &*source.name),
            ),
        ];
        let mut count = 0;
        for (field, name) in named {
            let Some(name) = name else { continue };
            count += 1;
            let name_path = at.child(field).child("name");
            match name {
                "" => errors.required(&name_path, ""),
                name => errors.invalid_for_each(&name_path, name, names::prefix_of_dns_subdomain(name)),
            }
        }
        match count {
            0 => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}
