//! What a kubelet refuses of a static pod: all that an API server would, and whatever names an object of the API, since
//! a static pod must run without one.

use k8s_openapi::api::core::v1::{Pod, PodSpec, Volume};

use super::super::{list, spec_of, text};
use super::{Options, every_container, validate_pod};
use crate::field::Path;

/// Checks a static pod, whose defaults, namespace and node's name are filled in.
///
/// # Errors
/// The reason, in the kubelet's words.
pub fn validate_static_pod(pod: &Pod) -> Result<(), String> {
    let errors = validate_pod(pod, Options::default());
    if !errors.is_empty() {
        return Err(format!("invalid pod: {errors}"));
    }
    match reference(&spec_of(pod)) {
        None => Ok(()),
        Some(resource) => Err(format!("static pods may not reference {resource}")),
    }
}

/// The first kind of object that is referred to, in upstream's order.
fn reference(spec: &PodSpec) -> Option<&'static str> {
    if !text(&spec.service_account_name).is_empty() {
        return Some("serviceaccounts");
    }
    if list(&spec.image_pull_secrets)
        .iter()
        .any(|secret| !secret.name.is_empty())
        || in_variables(spec, true)
        || list(&spec.volumes).iter().any(names_a_secret)
    {
        return Some("secrets");
    }
    let has_map = |volume: &Volume| {
        let sources = volume
            .projected
            .as_ref()
            .map_or(&[][..], |projected| list(&projected.sources));
        volume.config_map.is_some() || sources.iter().any(|source| source.config_map.is_some())
    };
    if in_variables(spec, false) || list(&spec.volumes).iter().any(has_map) {
        return Some("configmaps");
    }
    if !list(&spec.resource_claims).is_empty() {
        return Some("resourceclaims");
    }
    list(&spec.volumes).iter().find_map(volume_reference)
}

/// Whether some container's variables come from Secrets, or else from ConfigMaps.
fn in_variables(spec: &PodSpec, secrets: bool) -> bool {
    every_container(spec, &Path::default())
        .iter()
        .any(|(container, _)| {
            let whole = list(&container.env_from).iter().any(|source| match secrets {
                true => source.secret_ref.is_some(),
                false => source.config_map_ref.is_some(),
            });
            let mut single = list(&container.env)
                .iter()
                .filter_map(|variable| variable.value_from.as_ref());
            let single = single.any(|source| match secrets {
                true => source.secret_key_ref.is_some(),
                false => source.config_map_key_ref.is_some(),
            });
            whole || single
        })
}

fn names_a_secret(volume: &Volume) -> bool {
    let sources = volume
        .projected
        .as_ref()
        .map_or(&[][..], |projected| list(&projected.sources));
    volume.secret.is_some()
        || volume.azure_file.is_some()
        || sources.iter().any(|source| source.secret.is_some())
        || volume
            .csi
            .as_ref()
            .is_some_and(|csi| csi.node_publish_secret_ref.is_some())
        || volume
            .cephfs
            .as_ref()
            .is_some_and(|source| source.secret_ref.is_some())
        || volume
            .cinder
            .as_ref()
            .is_some_and(|source| source.secret_ref.is_some())
        || volume
            .flex_volume
            .as_ref()
            .is_some_and(|source| source.secret_ref.is_some())
        || volume
            .rbd
            .as_ref()
            .is_some_and(|source| source.secret_ref.is_some())
        || volume.scale_io.is_some()
        || volume
            .iscsi
            .as_ref()
            .is_some_and(|source| source.secret_ref.is_some())
        || volume
            .storageos
            .as_ref()
            .is_some_and(|source| source.secret_ref.is_some())
}

fn volume_reference(volume: &Volume) -> Option<&'static str> {
    if volume.csi.is_some() {
        return Some("csidrivers (via CSI volumes)");
    }
    if volume.glusterfs.is_some() {
        return Some("endpoints (via glusterFS volumes)");
    }
    if volume.persistent_volume_claim.is_some() {
        return Some("persistentvolumeclaims");
    }
    if volume.ephemeral.is_some() {
        return Some("persistentvolumeclaims (via ephemeral volumes)");
    }
    let sources = volume
        .projected
        .as_ref()
        .map_or(&[][..], |projected| list(&projected.sources));
    sources.iter().find_map(|source| {
        if source.service_account_token.is_some() {
            Some("serviceaccounts (via projected volumes)")
        } else if source.cluster_trust_bundle.is_some() {
            Some("clustertrustbundles")
        } else if source.pod_certificate.is_some() {
            Some("podcertificates")
        } else {
            None
        }
    })
}
