//! What upstream's API server fills in where a pod says nothing, in upstream's order, since some defaults follow from
//! others. Applying it twice changes nothing more.

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, EphemeralContainer, HTTPGetAction, Lifecycle,
    ObjectFieldSelector, Pod, PodSpec, Probe, ProjectedVolumeSource, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

use super::resources::{
    Counting, ResourceList, aggregate_container_limits, aggregate_container_requests, has_pod_level_limits,
    has_pod_level_requests, is_huge_page, is_overcommit_allowed, is_pod_level_resource,
};
use super::text;
use crate::quantity::Quantity;

/// 0644, the mode of files in volumes.
const FILE_MODE: i32 = 0o644;
const HOUR: i64 = 3600;
const DAY: i32 = 24 * 3600;

fn fill(field: &mut Option<String>, value: &str) {
    if text(field).is_empty() {
        *field = Some(value.to_owned());
    }
}

fn fill_number(field: &mut Option<i32>, value: i32) {
    if field.is_none_or(|number| number == 0) {
        *field = Some(value);
    }
}

/// Fills in a pod's defaults.
pub fn default_pod(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        default_requests(container);
    }
    default_pod_level(pod);
    let spec = pod.spec.get_or_insert_default();
    spec.enable_service_links.get_or_insert(true);
    if spec.host_network == Some(true) {
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            for port in container.ports.iter_mut().flatten() {
                fill_number(&mut port.host_port, port.container_port);
            }
        }
    }
    default_pod_spec(spec);
}

/// Fills in the defaults that hold for the spec in any object, so also in a pod's template.
pub fn default_pod_spec(spec: &mut PodSpec) {
    fill(&mut spec.dns_policy, "ClusterFirst");
    fill(&mut spec.restart_policy, "Always");
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    fill(&mut spec.scheduler_name, "default-scheduler");
    default_service_account(spec);
    for volume in spec.volumes.iter_mut().flatten() {
        default_volume(volume);
    }
    for container in spec
        .init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers)
    {
        default_container(container);
    }
    for container in spec.ephemeral_containers.iter_mut().flatten() {
        default_ephemeral_container(container);
    }
    default_quantities(&mut spec.overhead);
    default_requirements(&mut spec.resources);
}

/// `serviceAccount` is the old name of `serviceAccountName`, and always says the same.
fn default_service_account(spec: &mut PodSpec) {
    if text(&spec.service_account_name).is_empty() {
        spec.service_account_name.clone_from(&spec.service_account);
    }
    spec.service_account.clone_from(&spec.service_account_name);
}

/// What is limited but not requested is requested up to its limit.
fn default_requests(container: &mut Container) {
    let Some(ResourceRequirements {
        limits: Some(limits),
        requests,
        ..
    }) = &mut container.resources
    else {
        return;
    };
    let requests = requests.get_or_insert_default();
    for (name, limit) in limits {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

/// The defaults of a pod that requests or limits something as a whole.
fn default_pod_level(pod: &mut Pod) {
    let resources = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let is_set = |list: &Option<ResourceList>| list.as_ref().is_some_and(|list| !list.is_empty());
    let Some((has_requests, has_limits)) = resources.map(|r| (is_set(&r.requests), is_set(&r.limits))) else {
        return;
    };
    if has_requests || has_limits {
        let limits = aggregate_container_limits(pod, Counting::default());
        let pages = limits.into_iter().filter(|(name, _)| is_huge_page(name));
        let pages: Vec<_> = pages.filter(|(name, _)| !requests_pod_level(pod, name)).collect();
        for (name, limit) in pages {
            pod_level(pod)
                .limits
                .get_or_insert_default()
                .entry(name)
                .or_insert_with(|| Wire::from(limit));
        }
    }
    if is_set(&pod_level(pod).limits) {
        let sums = aggregate_container_requests(pod, Counting::default());
        let resources = pod_level(pod);
        let requests = resources.requests.get_or_insert_default();
        for (name, sum) in sums
            .into_iter()
            .filter(|(name, _)| is_pod_level_resource(name) && is_overcommit_allowed(name))
        {
            requests.entry(name).or_insert_with(|| Wire::from(sum));
        }
        for (name, limit) in resources
            .limits
            .iter()
            .flatten()
            .filter(|(name, _)| is_pod_level_resource(name))
        {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
    if !has_pod_level_limits(pod) && has_pod_level_requests(pod) {
        let sums = aggregate_container_limits(pod, Counting::default()).into_iter();
        let fits =
            |name: &str| is_pod_level_resource(name) && is_overcommit_allowed(name) && all_limited(pod, name);
        let sums: Vec<_> = sums.filter(|(name, _)| fits(name)).collect();
        for (name, sum) in sums {
            pod_level(pod)
                .limits
                .get_or_insert_default()
                .entry(name)
                .or_insert_with(|| Wire::from(sum));
        }
    }
}

fn pod_level(pod: &mut Pod) -> &mut ResourceRequirements {
    pod.spec.get_or_insert_default().resources.get_or_insert_default()
}

fn requests_pod_level(pod: &Pod, name: &str) -> bool {
    let resources = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    resources
        .and_then(|resources| resources.requests.as_ref())
        .is_some_and(|list| list.contains_key(name))
}

/// Whether every container is limited in a resource.
fn all_limited(pod: &Pod, name: &str) -> bool {
    let is_limited = |container: &Container| {
        super::resources::limits(&container.resources).is_some_and(|limits| limits.contains_key(name))
    };
    let spec = super::spec_of(pod);
    spec.containers
        .iter()
        .chain(super::init_containers(&spec))
        .all(is_limited)
}

/// Rounds up to thousandths and writes the amount in its canonical form, as any write through upstream does.
fn default_quantities(list: &mut Option<ResourceList>) {
    for wire in list.iter_mut().flat_map(|list| list.values_mut()) {
        // What is no quantity is left for validation to name.
        if let Ok(mut quantity) = Quantity::try_from(&*wire) {
            quantity.round_up_to_milli();
            *wire = Wire::from(quantity);
        }
    }
}

fn default_requirements(resources: &mut Option<ResourceRequirements>) {
    if let Some(resources) = resources {
        default_quantities(&mut resources.limits);
        default_quantities(&mut resources.requests);
    }
}

/// `Always` for an image that its tag, or the lack of one, calls the latest, else `IfNotPresent`.
pub fn pull_policy(image: &str) -> &'static str {
    let (name, has_digest) = image
        .split_once('@')
        .map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !has_digest && !last.is_empty() => "Always",
        _ => "IfNotPresent",
    }
}

/// The fields that ephemeral containers share with the others.
macro_rules! default_shared {
    ($container:expr) => {{
        let container = $container;
        fill(
            &mut container.image_pull_policy,
            pull_policy(text(&container.image)),
        );
        fill(&mut container.termination_message_path, "/dev/termination-log");
        fill(&mut container.termination_message_policy, "File");
        for port in container.ports.iter_mut().flatten() {
            fill(&mut port.protocol, "TCP");
        }
        container.env.iter_mut().flatten().for_each(default_variable);
        default_requirements(&mut container.resources);
        let probes = [
            &mut container.liveness_probe,
            &mut container.readiness_probe,
            &mut container.startup_probe,
        ];
        probes.into_iter().flatten().for_each(default_probe);
        container.lifecycle.iter_mut().for_each(default_lifecycle);
    }};
}

fn default_container(container: &mut Container) {
    default_shared!(container);
}

fn default_ephemeral_container(container: &mut EphemeralContainer) {
    default_shared!(container);
}

fn default_variable(variable: &mut EnvVar) {
    if let Some(source) = &mut variable.value_from {
        source.field_ref.iter_mut().for_each(default_field_ref);
        source.file_key_ref.iter_mut().for_each(|file| {
            file.optional.get_or_insert(false);
        });
    }
}

fn default_field_ref(field: &mut ObjectFieldSelector) {
    fill(&mut field.api_version, "v1");
}

fn default_http_get(action: &mut HTTPGetAction) {
    fill(&mut action.path, "/");
    fill(&mut action.scheme, "HTTP");
}

fn default_probe(probe: &mut Probe) {
    fill_number(&mut probe.timeout_seconds, 1);
    fill_number(&mut probe.period_seconds, 10);
    fill_number(&mut probe.success_threshold, 1);
    fill_number(&mut probe.failure_threshold, 3);
    probe.http_get.iter_mut().for_each(default_http_get);
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn default_lifecycle(lifecycle: &mut Lifecycle) {
    for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop]
        .into_iter()
        .flatten()
    {
        handler.http_get.iter_mut().for_each(default_http_get);
    }
}

fn default_volume(volume: &mut Volume) {
    let nameless = Volume {
        name: String::new(),
        ..volume.clone()
    };
    if nameless == Volume::default() {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(image) = &mut volume.image {
        fill(&mut image.pull_policy, pull_policy(text(&image.reference)));
    }
    if let Some(host_path) = &mut volume.host_path {
        host_path.type_.get_or_insert_default();
    }
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(config_map) = &mut volume.config_map {
        config_map.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(FILE_MODE);
        let files = downward.items.iter_mut().flatten();
        files
            .filter_map(|file| file.field_ref.as_mut())
            .for_each(default_field_ref);
    }
    volume.projected.iter_mut().for_each(default_projected);
    default_claim_template(volume);
    default_other_volumes(volume);
}

fn default_projected(projected: &mut ProjectedVolumeSource) {
    projected.default_mode.get_or_insert(FILE_MODE);
    for source in projected.sources.iter_mut().flatten() {
        if let Some(downward) = &mut source.downward_api {
            let files = downward.items.iter_mut().flatten();
            files
                .filter_map(|file| file.field_ref.as_mut())
                .for_each(default_field_ref);
        }
        if let Some(token) = &mut source.service_account_token {
            token.expiration_seconds.get_or_insert(HOUR);
        }
        if let Some(certificate) = &mut source.pod_certificate {
            certificate.max_expiration_seconds.get_or_insert(DAY);
        }
    }
}

fn default_claim_template(volume: &mut Volume) {
    let template = volume
        .ephemeral
        .as_mut()
        .and_then(|ephemeral| ephemeral.volume_claim_template.as_mut());
    if let Some(template) = template {
        fill(&mut template.spec.volume_mode, "Filesystem");
        if let Some(resources) = &mut template.spec.resources {
            default_quantities(&mut resources.limits);
            default_quantities(&mut resources.requests);
        }
    }
}

/// The kinds of volumes that only the API knows here, no node of ours.
fn default_other_volumes(volume: &mut Volume) {
    if let Some(iscsi) = &mut volume.iscsi {
        fill(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(rbd) = &mut volume.rbd {
        fill(&mut rbd.pool, "rbd");
        fill(&mut rbd.user, "admin");
        fill(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(disk) = &mut volume.azure_disk {
        fill(&mut disk.caching_mode, "ReadWrite");
        fill(&mut disk.kind, "Shared");
        fill(&mut disk.fs_type, "ext4");
        disk.read_only.get_or_insert(false);
    }
    if let Some(scale_io) = &mut volume.scale_io {
        fill(&mut scale_io.storage_mode, "ThinProvisioned");
        fill(&mut scale_io.fs_type, "xfs");
    }
}

#[cfg(test)]
mod tests;
