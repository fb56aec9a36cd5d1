//! Volumes made of the pod's own fields and of several sources together.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, DownwardAPIVolumeFile, DownwardAPIVolumeSource, PodCertificateProjection,
    PodSpec, ProjectedVolumeSource, ServiceAccountTokenProjection, VolumeProjection,
};

use super::super::{list, text};
use super::environment::{FILE_FIELDS, validate_field_ref, validate_resource_ref};
use super::volumes::{validate_items, validate_mode};
use super::{metadata, validate_file_path};
use crate::field::{FieldErrors, Path, Shown};
use crate::names;

/// Checks a volume of the pod's fields. That upstream's paths lack the file's index is theirs.
pub(super) fn validate_downward(source: &DownwardAPIVolumeSource, path: &Path, errors: &mut FieldErrors) {
    validate_mode(source.default_mode, &path.child("defaultMode"), errors);
    for file in list(&source.items) {
        validate_file(file, path, errors);
    }
}

fn validate_file(file: &DownwardAPIVolumeFile, path: &Path, errors: &mut FieldErrors) {
    if file.path.is_empty() {
        errors.required(&path.child("path"), "");
    }
    validate_file_path(&file.path, &path.child("path"), errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), resource) => {
            validate_field_ref(field, &FILE_FIELDS, &path.child("fieldRef"), errors);
            if resource.is_some() {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(path, "resource", why);
            }
        }
        (None, Some(resource)) => {
            validate_resource_ref(resource, true, &path.child("resourceFieldRef"), errors)
        }
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    validate_mode(file.mode, &path.child("mode"), errors);
}

/// The paths of files, each of which only one source may have.
struct Files<'a>(BTreeSet<&'a str>);

impl<'a> Files<'a> {
    /// `shown` is what the complaint shows, since upstream names the object for some sources.
    fn claim(&mut self, file: &'a str, shown: &str, path: &Path, errors: &mut FieldErrors) {
        if !file.is_empty() && !self.0.insert(file) {
            errors.invalid(path, shown, "conflicting duplicate paths");
        }
    }
}

/// Checks a volume of several sources.
pub(super) fn validate_projected(source: &ProjectedVolumeSource, path: &Path, errors: &mut FieldErrors) {
    validate_mode(source.default_mode, &path.child("defaultMode"), errors);
    let mut files = Files(BTreeSet::new());
    for (i, projection) in list(&source.sources).iter().enumerate() {
        let at = path.child("sources").index(i);
        let count = validate_projection(projection, &mut files, &at, path, errors);
        if count > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
}

fn validate_projection<'a>(
    projection: &'a VolumeProjection,
    files: &mut Files<'a>,
    at: &Path,
    path: &Path,
    errors: &mut FieldErrors,
) -> usize {
    let mut count = 0;
    let objects = [
        (
            "secret",
            projection
                .secret
                .as_ref()
                .map(|secret| (&secret.name, &secret.items)),
        ),
        (
            "configMap",
            projection.config_map.as_ref().map(|map| (&map.name, &map.items)),
        ),
    ];
    for (kind, object) in objects {
        let Some((name, items)) = object else { continue };
        count += 1;
        let at = at.child(kind);
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        validate_items(items, &at.child("items"), errors);
        for item in list(items) {
            files.claim(&item.path, name, path, errors);
        }
    }
    if let Some(downward) = &projection.downward_api {
        count += 1;
        for file in list(&downward.items) {
            validate_file(file, &at.child("downwardAPI"), errors);
            files.claim(&file.path, &file.path, path, errors);
        }
    }
    if let Some(token) = &projection.service_account_token {
        count += 1;
        validate_token(token, &at.child("serviceAccountToken"), path, errors);
    }
    if let Some(bundle) = &projection.cluster_trust_bundle {
        count += 1;
        validate_bundle(bundle, &at.child("clusterTrustBundle"), errors);
        files.claim(&bundle.path, &bundle.path, path, errors);
    }
    if let Some(certificate) = &projection.pod_certificate {
        count += 1;
        validate_certificate(certificate, &at.child("podCertificate"), errors);
        let paths = [
            &certificate.credential_bundle_path,
            &certificate.key_path,
            &certificate.certificate_chain_path,
        ];
        for file in paths.into_iter().map(text) {
            files.claim(file, file, path, errors);
        }
    }
    count
}

fn validate_token(token: &ServiceAccountTokenProjection, at: &Path, path: &Path, errors: &mut FieldErrors) {
    let seconds = token.expiration_seconds.unwrap_or(0);
    let seconds_path = at.child("expirationSeconds");
    if seconds < 600 {
        errors.invalid(
            &seconds_path,
            seconds,
            "may not specify a duration less than 10 minutes",
        );
    }
    if seconds > 1 << 32 {
        errors.invalid(
            &seconds_path,
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    if token.path.is_empty() {
        errors.required(&path.child("path"), "");
    } else {
        validate_file_path(&token.path, &path.child("path"), errors);
    }
}

fn validate_bundle(bundle: &ClusterTrustBundleProjection, at: &Path, errors: &mut FieldErrors) {
    match (bundle.name.as_deref(), bundle.signer_name.as_deref()) {
        (Some(_), Some(_)) => {
            errors.invalid(
                at,
                Shown::json(bundle),
                "only one of name and signerName may be used",
            );
        }
        (Some(name), None) => {
            if name.is_empty() {
                errors.required(&at.child("name"), "must be a valid object name");
            }
            // Names begin with the signer's, its slash written as a colon, if the bundle has one.
            let last = name.rsplit(':').next().unwrap_or(name);
            for why in names::dns_subdomain(last) {
                errors.invalid(
                    &at.child("name"),
                    name,
                    format!("not a valid clustertrustbundlename: {why}"),
                );
            }
            if let Some(selector) = &bundle.label_selector {
                let why = "labelSelector must be unset if name is specified";
                errors.invalid(&at.child("labelSelector"), Shown::json(selector), why);
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                errors.required(&at.child("signerName"), "must be a valid signer name");
            }
            metadata::validate_selector(bundle.label_selector.as_ref(), &at.child("labelSelector"), errors);
        }
        (None, None) => errors.required(at, "either name or signerName must be specified"),
    }
    if bundle.path.is_empty() {
        errors.required(&at.child("path"), "");
    }
    validate_file_path(&bundle.path, &at.child("path"), errors);
}

/// The wording of these is ours.
fn validate_certificate(certificate: &PodCertificateProjection, at: &Path, errors: &mut FieldErrors) {
    const KEYS: [&str; 6] = [
        "ECDSAP256",
        "ECDSAP384",
        "ECDSAP521",
        "ED25519",
        "RSA3072",
        "RSA4096",
    ];
    if certificate.signer_name.is_empty() {
        errors.required(&at.child("signerName"), "must be a valid signer name");
    }
    if !KEYS.contains(&&*certificate.key_type) {
        errors.not_supported(&at.child("keyType"), &certificate.key_type, &KEYS);
    }
    let (hour, quarter) = (3600, 91 * 24 * 3600);
    let seconds = certificate.max_expiration_seconds.unwrap_or(0);
    if !(hour..=quarter).contains(&seconds) {
        let why = names::range_error(i64::from(hour), i64::from(quarter));
        errors.invalid(&at.child("maxExpirationSeconds"), seconds, why);
    }
    let paths = [
        ("credentialBundlePath", text(&certificate.credential_bundle_path)),
        ("keyPath", text(&certificate.key_path)),
        ("certificateChainPath", text(&certificate.certificate_chain_path)),
    ];
    if paths.iter().all(|(_, file)| file.is_empty()) {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.required(at, why);
    }
    for (name, file) in paths {
        validate_file_path(file, &at.child(name), errors);
    }
}

/// A token is somebody's: without a service account there is nobody.
pub(super) fn forbid_tokens(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    for (i, volume) in list(&spec.volumes).iter().enumerate() {
        let sources = volume
            .projected
            .as_ref()
            .map_or(&[][..], |projected| list(&projected.sources));
        for (j, _) in sources
            .iter()
            .enumerate()
            .filter(|(_, source)| source.service_account_token.is_some())
        {
            let at = path.child("volumes").index(i).child("projected.sources").index(j);
            let why = "must not be specified when serviceAccountName is not set";
            errors.forbidden(&at.child("serviceAccountToken"), why);
        }
    }
}
