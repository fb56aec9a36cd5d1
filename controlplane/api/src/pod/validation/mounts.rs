//! Where a container sees the pod's volumes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, VolumeMount};

use super::super::{list, text};
use super::{Whole, has_backsteps, validate_descending_path};
use crate::field::{FieldErrors, Path};

/// Checks a container's mounts.
pub(super) fn validate_mounts(
    container: &Container,
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let devices = list(&container.volume_devices);
    let mut seen = BTreeSet::new();
    for (i, mount) in list(&container.volume_mounts).iter().enumerate() {
        let at = path.index(i);
        if mount.name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        if !whole.volumes.contains_key(&*mount.name) {
            errors.not_found(&at.child("name"), &mount.name, "");
        }
        if mount.mount_path.is_empty() {
            errors.required(&at.child("mountPath"), "");
        }
        if !seen.insert(&mount.mount_path) {
            errors.invalid(&at.child("mountPath"), &mount.mount_path, "must be unique");
        }
        if devices.iter().any(|device| device.name == mount.name) {
            errors.invalid(
                &at.child("name"),
                &mount.name,
                "must not already exist in volumeDevices",
            );
        }
        if devices
            .iter()
            .any(|device| device.device_path == mount.mount_path)
        {
            let why = "must not already exist as a path in volumeDevices";
            errors.invalid(&at.child("mountPath"), &mount.mount_path, why);
        }
        // From here on, upstream's paths lack the index.
        validate_sub_path(mount, &at, path, errors);
        validate_propagation(mount, container, &path.child("mountPropagation"), errors);
        validate_recursive_read_only(mount, &path.child("recursiveReadOnly"), errors);
    }
}

fn validate_sub_path(mount: &VolumeMount, at: &Path, path: &Path, errors: &mut FieldErrors) {
    let (sub_path, expression) = (text(&mount.sub_path), text(&mount.sub_path_expr));
    if !sub_path.is_empty() {
        validate_descending_path(sub_path, &path.child("subPath"), errors);
    }
    if !expression.is_empty() {
        if !sub_path.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.invalid(&at.child("subPathExpr"), expression, why);
        }
        validate_descending_path(expression, &path.child("subPathExpr"), errors);
    }
}

fn validate_propagation(mount: &VolumeMount, container: &Container, path: &Path, errors: &mut FieldErrors) {
    let Some(mode) = mount.mount_propagation.as_deref() else {
        return;
    };
    if !matches!(mode, "Bidirectional" | "HostToContainer" | "None") {
        errors.not_supported(path, mode, &["Bidirectional", "HostToContainer", "None"]);
    }
    let privileged = container
        .security_context
        .as_ref()
        .and_then(|context| context.privileged);
    if mode == "Bidirectional" && privileged != Some(true) {
        errors.forbidden(
            path,
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
}

fn validate_recursive_read_only(mount: &VolumeMount, path: &Path, errors: &mut FieldErrors) {
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount.read_only != Some(true) {
                errors.forbidden(path, "may only be specified when readOnly is true");
            }
            if mount
                .mount_propagation
                .as_deref()
                .is_some_and(|mode| mode != "None")
            {
                errors.forbidden(
                    path,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        Some(other) => errors.not_supported(path, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// Checks a container's raw block devices.
pub(super) fn validate_devices(
    container: &Container,
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let mounts = list(&container.volume_mounts);
    let mut names = BTreeSet::new();
    let mut paths = BTreeSet::new();
    for (i, device) in list(&container.volume_devices).iter().enumerate() {
        let at = path.index(i);
        let (name_path, device_path) = (at.child("name"), at.child("devicePath"));
        if device.name.is_empty() {
            errors.required(&name_path, "");
        }
        if names.contains(&device.name) {
            errors.invalid(&name_path, &device.name, "must be unique");
        }
        match whole.volumes.get(&*device.name) {
            Some(volume) if volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none() => {
                let why =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name_path, &device.name, why);
            }
            Some(_) => {}
            None => errors.not_found(&name_path, &device.name, ""),
        }
        if device.device_path.is_empty() {
            errors.required(&device_path, "");
        }
        if paths.contains(&device.device_path) {
            errors.invalid(&device_path, &device.device_path, "must be unique");
        }
        if has_backsteps(&device.device_path) {
            errors.invalid(
                &device_path,
                &device.device_path,
                "can not contain backsteps ('..')",
            );
        } else {
            paths.insert(&device.device_path);
        }
        if mounts.iter().any(|mount| mount.name == device.name) {
            errors.invalid(&name_path, &device.name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|mount| mount.mount_path == device.device_path) {
            let why = "must not already exist as a path in volumeMounts";
            errors.invalid(&device_path, &device.device_path, why);
        }
        if !device.name.is_empty() {
            names.insert(&device.name);
        }
    }
}
