//! Volumes that need a storage of their own, and of which only the API's fields are known here.

use k8s_openapi::api::core::v1 as api;

use super::super::{list, text};
use super::validate_descending_path;
use crate::field::{FieldErrors, Path, Shown};
use crate::names;

/// Complains of each empty field.
fn require(fields: &[(&str, &str)], path: &Path, errors: &mut FieldErrors) {
    for (name, _) in fields.iter().filter(|(_, value)| value.is_empty()) {
        errors.required(&path.child(name), "");
    }
}

fn require_secret(secret: Option<&api::LocalObjectReference>, path: &Path, errors: &mut FieldErrors) {
    if secret.is_some_and(|secret| secret.name.is_empty()) {
        errors.required(&path.child("secretRef.name"), "");
    }
}

fn validate_range(
    value: Option<i32>,
    [low, high]: [i32; 2],
    says: [i64; 2],
    path: &Path,
    errors: &mut FieldErrors,
) {
    if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
        errors.invalid(path, value, names::range_error(says[0], says[1]));
    }
}

pub(super) fn git_repo(source: &api::GitRepoVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(&[("repository", &source.repository)], path, errors);
    validate_descending_path(text(&source.directory), &path.child("directory"), errors);
}

pub(super) fn gce_persistent_disk(
    source: &api::GCEPersistentDiskVolumeSource,
    path: &Path,
    errors: &mut FieldErrors,
) {
    require(&[("pdName", &source.pd_name)], path, errors);
    validate_range(
        source.partition,
        [0, 255],
        [1, 255],
        &path.child("partition"),
        errors,
    );
}

pub(super) fn aws_elastic_block_store(
    source: &api::AWSElasticBlockStoreVolumeSource,
    path: &Path,
    errors: &mut FieldErrors,
) {
    require(&[("volumeID", &source.volume_id)], path, errors);
    validate_range(
        source.partition,
        [0, 255],
        [1, 255],
        &path.child("partition"),
        errors,
    );
}

pub(super) fn nfs(source: &api::NFSVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(
        &[("server", &source.server), ("path", &source.path)],
        path,
        errors,
    );
    if !source.path.starts_with('/') {
        errors.invalid(&path.child("path"), &source.path, "must be an absolute path");
    }
}

pub(super) fn iscsi(source: &api::ISCSIVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(
        &[("targetPortal", &source.target_portal), ("iqn", &source.iqn)],
        path,
        errors,
    );
    let known = ["iqn", "eui", "naa"]
        .iter()
        .any(|prefix| source.iqn.starts_with(prefix));
    if !source.iqn.is_empty() && !known {
        let why = "must be valid format starting with iqn, eui, or naa";
        errors.invalid(&path.child("iqn"), &source.iqn, why);
    }
    validate_range(Some(source.lun), [0, 255], [0, 255], &path.child("lun"), errors);
    let has_chap = source.chap_auth_discovery == Some(true) || source.chap_auth_session == Some(true);
    if has_chap && source.secret_ref.is_none() {
        errors.required(&path.child("secretRef"), "");
    }
}

pub(super) fn glusterfs(source: &api::GlusterfsVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(
        &[("endpoints", &source.endpoints), ("path", &source.path)],
        path,
        errors,
    );
}

pub(super) fn flocker(source: &api::FlockerVolumeSource, path: &Path, errors: &mut FieldErrors) {
    let (name, uuid) = (text(&source.dataset_name), text(&source.dataset_uuid));
    if name.is_empty() && uuid.is_empty() {
        errors.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.invalid(
            path,
            "resource",
            "datasetName and datasetUUID can not be specified simultaneously",
        );
    }
    if name.contains('/') {
        errors.invalid(&path.child("datasetName"), name, "must not contain '/'");
    }
}

pub(super) fn rbd(source: &api::RBDVolumeSource, path: &Path, errors: &mut FieldErrors) {
    let monitors = source.monitors.first().map_or("", String::as_str);
    require(&[("monitors", monitors), ("image", &source.image)], path, errors);
}

pub(super) fn cinder(source: &api::CinderVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(&[("volumeID", &source.volume_id)], path, errors);
    require_secret(source.secret_ref.as_ref(), path, errors);
}

pub(super) fn cephfs(source: &api::CephFSVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(
        &[("monitors", source.monitors.first().map_or("", String::as_str))],
        path,
        errors,
    );
}

pub(super) fn quobyte(source: &api::QuobyteVolumeSource, path: &Path, errors: &mut FieldErrors) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    if source.registry.is_empty() {
        errors.required(&path.child("registry"), PAIRS);
    } else if text(&source.tenant).len() >= 65 {
        let why = "must be a UUID and may not exceed a length of 64 characters";
        errors.required(&path.child("tenant"), why);
    } else {
        for _ in source.registry.split(',').filter(|pair| !pair.contains(':')) {
            errors.invalid(&path.child("registry"), &source.registry, PAIRS);
        }
    }
    require(&[("volume", &source.volume)], path, errors);
}

pub(super) fn fc(source: &api::FCVolumeSource, path: &Path, errors: &mut FieldErrors) {
    let (targets, ids) = (list(&source.target_wwns), list(&source.wwids));
    let targets_path = path.child("targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        errors.required(
            &targets_path,
            "must specify either targetWWNs or wwids, but not both",
        );
    }
    if !targets.is_empty() && !ids.is_empty() {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        errors.invalid(&targets_path, Shown::json(targets), why);
    }
    if !targets.is_empty() {
        if source.lun.is_none() {
            errors.required(&path.child("lun"), "lun is required if targetWWNs is specified");
        }
        validate_range(source.lun, [0, 255], [0, 255], &path.child("lun"), errors);
    }
}

pub(super) fn flex_volume(source: &api::FlexVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(&[("driver", &source.driver)], path, errors);
    for key in source.options.iter().flatten().map(|(key, _)| key) {
        let namespace = format!(".{}", key.split('/').next().unwrap_or(key).to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid(&path.child("options").key(key), key, why);
        }
    }
}

pub(super) fn azure_file(source: &api::AzureFileVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(
        &[
            ("secretName", &source.secret_name),
            ("shareName", &source.share_name),
        ],
        path,
        errors,
    );
}

pub(super) fn vsphere_volume(
    source: &api::VsphereVirtualDiskVolumeSource,
    path: &Path,
    errors: &mut FieldErrors,
) {
    require(&[("volumePath", &source.volume_path)], path, errors);
}

pub(super) fn photon_persistent_disk(
    source: &api::PhotonPersistentDiskVolumeSource,
    path: &Path,
    errors: &mut FieldErrors,
) {
    require(&[("pdID", &source.pd_id)], path, errors);
}

pub(super) fn portworx_volume(source: &api::PortworxVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(&[("volumeID", &source.volume_id)], path, errors);
}

pub(super) fn azure_disk(source: &api::AzureDiskVolumeSource, path: &Path, errors: &mut FieldErrors) {
    require(
        &[("diskName", &source.disk_name), ("diskURI", &source.disk_uri)],
        path,
        errors,
    );
    let mut choose = |name: &str, value: &Option<String>, choices: &[&str]| {
        if let Some(value) = value.as_deref().filter(|value| !choices.contains(value)) {
            errors.not_supported(&path.child(name), value, choices);
        }
    };
    choose(
        "cachingMode",
        &source.caching_mode,
        &["None", "ReadOnly", "ReadWrite"],
    );
    choose("kind", &source.kind, &["Dedicated", "Managed", "Shared"]);
    let form = match source.kind.as_deref() {
        None => return,
        Some("Managed") => {
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
        }
        Some(_) => "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd",
    };
    let prefix = if form.starts_with('/') {
        "/subscriptions/"
    } else {
        "https://"
    };
    if !source.disk_uri.starts_with(prefix) {
        errors.not_supported(&path.child("diskURI"), &source.disk_uri, &[form]);
    }
}

pub(super) fn storageos(source: &api::StorageOSVolumeSource, path: &Path, errors: &mut FieldErrors) {
    match text(&source.volume_name) {
        "" => errors.required(&path.child("volumeName"), ""),
        name => errors.invalid_for_each(&path.child("volumeName"), name, names::dns_label(name)),
    }
    let namespace = text(&source.volume_namespace);
    if !namespace.is_empty() {
        errors.invalid_for_each(
            &path.child("volumeNamespace"),
            namespace,
            names::dns_label(namespace),
        );
    }
    require_secret(source.secret_ref.as_ref(), path, errors);
}

pub(super) fn scale_io(source: &api::ScaleIOVolumeSource, path: &Path, errors: &mut FieldErrors) {
    let fields = [
        ("gateway", &*source.gateway),
        ("system", &*source.system),
        ("volumeName", text(&source.volume_name)),
    ];
    require(&fields, path, errors);
}
