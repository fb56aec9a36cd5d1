//! The pod's volumes: their names, and that each has exactly one source.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, ConfigMapVolumeSource, EmptyDirVolumeSource, EphemeralVolumeSource,
    HostPathVolumeSource, ImageVolumeSource, KeyToPath, PersistentVolumeClaimSpec,
    PersistentVolumeClaimVolumeSource, SecretVolumeSource, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::{list, text};
use super::other_volumes as other;
use super::{NOT_POSITIVE, containers, metadata, projected, validate_file_path, validate_no_backsteps};
use crate::field::{FieldErrors, Path};
use crate::names;
use crate::quantity::Quantity;

const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

/// Checks all volumes, and returns the valid ones.
pub(super) fn validate_volumes<'a>(
    volumes: &'a [Volume],
    pod_name: Option<&str>,
    path: &Path,
    errors: &mut FieldErrors,
) -> BTreeMap<&'a str, &'a Volume> {
    let pod_name = pod_name.filter(|name| !name.is_empty());
    let created: BTreeSet<_> = match pod_name {
        Some(pod) => volumes
            .iter()
            .filter(|v| v.ephemeral.is_some())
            .map(|v| format!("{pod}-{}", v.name))
            .collect(),
        None => BTreeSet::new(),
    };
    let mut valid = BTreeMap::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = path.index(i);
        let mut found = FieldErrors::default();
        validate_source(volume, pod_name, &at, &mut found);
        match &*volume.name {
            "" => found.required(&at.child("name"), ""),
            name => found.invalid_for_each(&at.child("name"), name, names::dns_label(name)),
        }
        if valid.contains_key(&*volume.name) {
            found.duplicate(&at.child("name"), &volume.name);
        }
        if found.is_empty() {
            valid.insert(&*volume.name, volume);
        }
        errors.append(found);
        if let Some(claim) = volume
            .persistent_volume_claim
            .as_ref()
            .filter(|c| created.contains(&c.claim_name))
        {
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            errors.invalid(
                &at.child("persistentVolumeClaim.claimName"),
                &claim.claim_name,
                why,
            );
        }
    }
    valid
}

/// Runs the check of the first source there is, and forbids the others. Each has a name where it is forbidden, and
/// one below which its fields are: upstream's differ in a few.
macro_rules! one_of {
    ($volume:ident, $path:ident, $errors:ident; $($name:literal $inner:literal $field:ident $check:expr;)*) => {{
        let mut has_one = false;
        $(if let Some(source) = &$volume.$field {
            if std::mem::replace(&mut has_one, true) {
                $errors.forbidden(&$path.child($name), "may not specify more than 1 volume type");
            } else {
                $check(source, &$path.child($inner), $errors);
            }
        })*
        has_one
    }};
}

fn validate_source(volume: &Volume, pod_name: Option<&str>, path: &Path, errors: &mut FieldErrors) {
    let ephemeral = |source: &EphemeralVolumeSource, at: &Path, errors: &mut FieldErrors| {
        validate_ephemeral(source, at, errors);
        if let Some(pod) = pod_name.filter(|_| !volume.name.is_empty()) {
            let claim = format!("{pod}-{}", volume.name);
            for why in names::dns_subdomain(&claim) {
                let why = format!("PVC name {}: {why}", crate::field::quoted(&claim));
                errors.invalid(&path.child("name"), &volume.name, why);
            }
        }
    };
    let has_one = one_of! { volume, path, errors;
        "emptyDir" "emptyDir" empty_dir validate_empty_dir;
        "hostPath" "hostPath" host_path validate_host_path;
        "gitRepo" "gitRepo" git_repo other::git_repo;
        "gcePersistentDisk" "persistentDisk" gce_persistent_disk other::gce_persistent_disk;
        "awsElasticBlockStore" "awsElasticBlockStore" aws_elastic_block_store other::aws_elastic_block_store;
        "secret" "secret" secret validate_secret;
        "nfs" "nfs" nfs other::nfs;
        "iscsi" "iscsi" iscsi other::iscsi;
        "glusterfs" "glusterfs" glusterfs other::glusterfs;
        "flocker" "flocker" flocker other::flocker;
        "persistentVolumeClaim" "persistentVolumeClaim" persistent_volume_claim validate_claim;
        "rbd" "rbd" rbd other::rbd;
        "cinder" "cinder" cinder other::cinder;
        "cephFS" "cephfs" cephfs other::cephfs;
        "quobyte" "quobyte" quobyte other::quobyte;
        "downwarAPI" "downwardAPI" downward_api projected::validate_downward;
        "fc" "fc" fc other::fc;
        "flexVolume" "flexVolume" flex_volume other::flex_volume;
        "configMap" "configMap" config_map validate_config_map;
        "azureFile" "azureFile" azure_file other::azure_file;
        "vsphereVolume" "vsphereVolume" vsphere_volume other::vsphere_volume;
        "photonPersistentDisk" "photonPersistentDisk" photon_persistent_disk other::photon_persistent_disk;
        "portworxVolume" "portworxVolume" portworx_volume other::portworx_volume;
        "azureDisk" "azureDisk" azure_disk other::azure_disk;
        "storageos" "storageos" storageos other::storageos;
        "projected" "projected" projected projected::validate_projected;
        "scaleIO" "scaleIO" scale_io other::scale_io;
        "csi" "csi" csi validate_csi;
        "ephemeral" "ephemeral" ephemeral ephemeral;
        "image" "image" image validate_image;
    };
    if !has_one {
        errors.required(path, "must specify a volume type");
    }
}

/// The wording of the mode's is ours.
fn validate_empty_dir(source: &EmptyDirVolumeSource, path: &Path, errors: &mut FieldErrors) {
    if let Some(limit) = &source.size_limit
        && !Quantity::try_from(limit).is_ok_and(|limit| limit.signum() >= 0)
    {
        errors.forbidden(
            &path.child("sizeLimit"),
            "SizeLimit field must be a valid resource quantity",
        );
    }
    if let Some(mode) = source.mode.filter(|mode| !(0..=0o1777).contains(mode)) {
        let why = "must be a number between 0 and 01777 (octal), both inclusive";
        errors.invalid(&path.child("mode"), mode, why);
    }
}

fn validate_host_path(source: &HostPathVolumeSource, path: &Path, errors: &mut FieldErrors) {
    if source.path.is_empty() {
        return errors.required(&path.child("path"), "");
    }
    validate_no_backsteps(&source.path, &path.child("path"), errors);
    if let Some(kind) = source
        .type_
        .as_deref()
        .filter(|kind| !HOST_PATH_TYPES.contains(kind))
    {
        errors.not_supported(&path.child("type"), kind, &HOST_PATH_TYPES);
    }
}

/// The mode of files.
pub(super) fn validate_mode(mode: Option<i32>, path: &Path, errors: &mut FieldErrors) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(
            path,
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}

/// The keys of a ConfigMap or a Secret, and their files.
pub(super) fn validate_items(items: &Option<Vec<KeyToPath>>, path: &Path, errors: &mut FieldErrors) {
    for (i, item) in list(items).iter().enumerate() {
        let at = path.index(i);
        if item.key.is_empty() {
            errors.required(&at.child("key"), "");
        }
        if item.path.is_empty() {
            errors.required(&at.child("path"), "");
        }
        validate_file_path(&item.path, &at.child("path"), errors);
        validate_mode(item.mode, &at.child("mode"), errors);
    }
}

fn validate_secret(source: &SecretVolumeSource, path: &Path, errors: &mut FieldErrors) {
    if text(&source.secret_name).is_empty() {
        errors.required(&path.child("secretName"), "");
    }
    validate_mode(source.default_mode, &path.child("defaultMode"), errors);
    validate_items(&source.items, &path.child("items"), errors);
}

fn validate_config_map(source: &ConfigMapVolumeSource, path: &Path, errors: &mut FieldErrors) {
    if source.name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    validate_mode(source.default_mode, &path.child("defaultMode"), errors);
    validate_items(&source.items, &path.child("items"), errors);
}

fn validate_claim(source: &PersistentVolumeClaimVolumeSource, path: &Path, errors: &mut FieldErrors) {
    if source.claim_name.is_empty() {
        errors.required(&path.child("claimName"), "");
    }
}

fn validate_csi(source: &CSIVolumeSource, path: &Path, errors: &mut FieldErrors) {
    const MOST: usize = 63;
    let driver_path = path.child("driver");
    if source.driver.is_empty() {
        errors.required(&driver_path, "");
    }
    if source.driver.len() > MOST {
        errors.too_long(&driver_path, MOST);
    }
    let found = names::dns_subdomain(&source.driver.to_lowercase());
    errors.invalid_for_each(&driver_path, &source.driver, found);
    match source
        .node_publish_secret_ref
        .as_ref()
        .map(|secret| &*secret.name)
    {
        None => {}
        Some("") => errors.required(&path.child("nodePublishSecretRef.name"), ""),
        Some(name) => errors.invalid_for_each(&path.child("name"), name, names::dns_subdomain(name)),
    }
}

fn validate_image(source: &ImageVolumeSource, path: &Path, errors: &mut FieldErrors) {
    if text(&source.reference).is_empty() {
        errors.required(&path.child("reference"), "");
    }
    containers::validate_pull_policy(text(&source.pull_policy), &path.child("pullPolicy"), errors);
}

fn validate_ephemeral(source: &EphemeralVolumeSource, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("volumeClaimTemplate");
    let Some(template) = &source.volume_claim_template else {
        return errors.required(&path, "");
    };
    if let Some(meta) = &template.metadata {
        validate_template_metadata(meta, &path.child("metadata"), errors);
    }
    validate_claim_spec(&template.spec, &path.child("spec"), errors);
}

/// A template's metadata may only hold labels and annotations.
fn validate_template_metadata(meta: &ObjectMeta, path: &Path, errors: &mut FieldErrors) {
    metadata::validate_annotations(meta.annotations.as_ref(), &path.child("annotations"), errors);
    metadata::validate_labels(meta.labels.as_ref(), &path.child("labels"), errors);
    for (name, is_set) in [
        ("name", !text(&meta.name).is_empty()),
        ("generateName", !text(&meta.generate_name).is_empty()),
        ("namespace", !text(&meta.namespace).is_empty()),
        ("uID", !text(&meta.uid).is_empty()),
        ("resourceVersion", !text(&meta.resource_version).is_empty()),
        ("ownerReferences", !list(&meta.owner_references).is_empty()),
        ("finalizers", !list(&meta.finalizers).is_empty()),
    ] {
        if is_set {
            errors.forbidden(&path.child(name), "cannot be set");
        }
    }
}

fn validate_claim_spec(spec: &PersistentVolumeClaimSpec, path: &Path, errors: &mut FieldErrors) {
    const MODES: [&str; 4] = [
        "ReadOnlyMany",
        "ReadWriteMany",
        "ReadWriteOnce",
        "ReadWriteOncePod",
    ];
    let modes = list(&spec.access_modes);
    let modes_path = path.child("accessModes");
    if modes.is_empty() {
        errors.required(&modes_path, "at least 1 access mode is required");
    }
    metadata::validate_selector(spec.selector.as_ref(), &path.child("selector"), errors);
    for mode in modes.iter().filter(|mode| !MODES.contains(&&***mode)) {
        errors.not_supported(&modes_path, mode, &MODES);
    }
    let is_alone = |mode: &&String| *mode == "ReadWriteOncePod";
    if modes.iter().any(|mode| is_alone(&mode))
        && modes
            .iter()
            .any(|mode| !is_alone(&mode) && MODES.contains(&&**mode))
    {
        errors.forbidden(
            &modes_path,
            "may not use ReadWriteOncePod with other access modes",
        );
    }
    let storage_path = path.child("resources").key("storage");
    let requests = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    match requests.and_then(|requests| requests.get("storage")) {
        None => errors.required(&storage_path, ""),
        Some(wire) => match Quantity::try_from(wire) {
            Ok(storage) if storage.signum() > 0 => {}
            Ok(storage) => errors.invalid(&storage_path, &storage.to_string(), NOT_POSITIVE),
            Err(error) => errors.invalid(&storage_path, &wire.0, error.to_string()),
        },
    }
    let class = text(&spec.storage_class_name);
    if !class.is_empty() {
        errors.invalid_for_each(
            &path.child("storageClassName"),
            class,
            names::dns_subdomain(class),
        );
    }
    let mode = spec.volume_mode.as_deref();
    if let Some(mode) = mode.filter(|mode| !matches!(*mode, "Block" | "Filesystem")) {
        errors.not_supported(&path.child("volumeMode"), mode, &["Block", "Filesystem"]);
    }
}
