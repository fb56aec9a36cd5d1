//! Whether a pod is valid: upstream's `ValidatePodCreate`, with its order, paths and wording.
//!
//! Pods are expected with their defaults filled in ([`super::defaults`]); what is still missing then is complained of.
//! Each part of a pod has a module; what they share about the pod as a whole stands in [`Whole`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

use super::{as_container, init_containers, list, spec_of, text};
use crate::field::{FieldErrors, Path};
use crate::names;

mod annotations;
mod containers;
mod environment;
mod handlers;
pub mod metadata;
mod mounts;
mod other_volumes;
mod platform;
mod projected;
mod requirements;
mod scheduling;
mod security;
mod static_pod;
mod volumes;

pub use static_pod::validate_static_pod;

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const NOT_POSITIVE: &str = "must be greater than zero";

/// What the cluster allows.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether containers may be privileged.
    pub allow_privileged: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            allow_privileged: true,
        }
    }
}

/// What the checks of the parts must know of the pod as a whole.
struct Whole<'a> {
    options: Options,
    /// The valid volumes by name.
    volumes: BTreeMap<&'a str, &'a Volume>,
    claims: BTreeSet<&'a str>,
    grace: Option<i64>,
    restart_policy: &'a str,
    host_users: bool,
}

/// Checks a pod that is to be created. Its namespace must be set.
pub fn validate_pod(pod: &Pod, options: Options) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (meta, spec_path) = (Path::new("metadata"), Path::new("spec"));
    let spec = &*spec_of(pod);
    metadata::validate_metadata(&pod.metadata, &meta, &mut errors);
    annotations::validate_annotations(pod, spec, &meta.child("annotations"), &mut errors);
    validate_spec(
        spec,
        Some(text(&pod.metadata.name)),
        &spec_path,
        options,
        &mut errors,
    );
    if text(&spec.service_account_name).is_empty() {
        projected::forbid_tokens(spec, &spec_path, &mut errors);
    }
    containers::validate_images(&spec.containers, &spec_path.child("containers"), &mut errors);
    containers::validate_images(
        init_containers(spec),
        &spec_path.child("initContainers"),
        &mut errors,
    );
    if !list(&spec.ephemeral_containers).is_empty() {
        errors.forbidden(&spec_path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !text(&spec.node_name).is_empty() && !list(&spec.scheduling_gates).is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.forbidden(&spec_path.child("nodeName"), why);
    }
    annotations::validate_agreement(pod, spec, &spec_path, &mut errors);
    errors
}

/// Checks the spec of a pod, or of a pod template: that has no pod's name.
fn validate_spec(
    spec: &PodSpec,
    pod_name: Option<&str>,
    path: &Path,
    options: Options,
    errors: &mut FieldErrors,
) {
    if spec.termination_grace_period_seconds.is_none() {
        errors.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = volumes::validate_volumes(list(&spec.volumes), pod_name, &path.child("volumes"), errors);
    let claims = list(&spec.resource_claims);
    requirements::validate_pod_claims(claims, &path.child("resourceClaims"), errors);
    let whole = Whole {
        options,
        volumes,
        claims: claims
            .iter()
            .map(|claim| &*claim.name)
            .filter(|name| !name.is_empty())
            .collect(),
        grace: spec.termination_grace_period_seconds,
        restart_policy: text(&spec.restart_policy),
        host_users: spec.host_users.unwrap_or(true),
    };
    containers::validate_containers(&spec.containers, &whole, &path.child("containers"), errors);
    containers::validate_init_containers(spec, &whole, &path.child("initContainers"), errors);
    containers::validate_ephemeral_containers(spec, &whole, &path.child("ephemeralContainers"), errors);
    requirements::validate_pod_level(spec, &whole, &path.child("resources"), errors);
    validate_host_network_ports(spec, path, errors);
    validate_policies(spec, path, errors);
    metadata::validate_labels(spec.node_selector.as_ref(), &path.child("nodeSelector"), errors);
    security::validate_pod_security(spec, &path.child("securityContext"), errors);
    scheduling::validate_affinity(spec.affinity.as_ref(), &path.child("affinity"), errors);
    validate_dns_config(spec, &path.child("dnsConfig"), errors);
    scheduling::validate_gates(spec, path, errors);
    let spread = path.child("topologySpreadConstraints");
    scheduling::validate_topology_spread(list(&spec.topology_spread_constraints), &spread, errors);
    validate_host_users(spec, path, errors);
    validate_names(spec, path, errors);
    scheduling::validate_tolerations(list(&spec.tolerations), &path.child("tolerations"), errors);
    validate_host_aliases(spec, &path.child("hostAliases"), errors);
    validate_classes(spec, path, errors);
    requirements::validate_overhead(spec, &whole, &path.child("overhead"), errors);
    platform::validate_os(spec, path, errors);
}

/// One of a few texts, of which none is empty.
fn validate_choice(value: &str, choices: &[&str], path: &Path, errors: &mut FieldErrors) {
    if value.is_empty() {
        errors.required(path, "");
    } else if !choices.contains(&value) {
        errors.not_supported(path, value, choices);
    }
}

fn validate_policies(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    let restart = ["Always", "OnFailure", "Never"];
    validate_choice(
        text(&spec.restart_policy),
        &restart,
        &path.child("restartPolicy"),
        errors,
    );
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    validate_choice(text(&spec.dns_policy), &dns, &path.child("dnsPolicy"), errors);
}

/// With the host's network, a port is the host's own.
fn validate_host_network_ports(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    if spec.host_network != Some(true) {
        return;
    }
    for (i, container) in spec.containers.iter().enumerate() {
        for (j, port) in list(&container.ports).iter().enumerate() {
            let host_port = port.host_port.unwrap_or(0);
            if host_port != port.container_port {
                let path = path
                    .child("containers")
                    .index(i)
                    .child("ports")
                    .index(j)
                    .child("hostPort");
                errors.invalid(
                    &path,
                    host_port,
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
    }
}

fn validate_host_users(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    const WHY: &str = "when `pod.Spec.HostUsers` is false";
    if spec.host_users != Some(false) {
        return;
    }
    // The spelling of the paths is upstream's.
    let shared = [
        ("hostNetwork", spec.host_network),
        ("HostPID", spec.host_pid),
        ("HostIPC", spec.host_ipc),
    ];
    for (name, _) in shared.iter().filter(|(_, shared)| *shared == Some(true)) {
        errors.forbidden(&path.child(name), WHY);
    }
    for (container, at) in every_container(spec, path) {
        if !list(&container.volume_devices).is_empty() {
            errors.forbidden(&at.child("volumeDevices"), WHY);
        }
    }
}

fn validate_names(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    let mut check = |name: &str, field: &Option<String>, form: fn(&str) -> Vec<String>| {
        let value = text(field);
        if !value.is_empty() {
            errors.invalid_for_each(&path.child(name), value, form(value));
        }
    };
    check(
        "serviceAccountName",
        &spec.service_account_name,
        names::dns_subdomain,
    );
    check("nodeName", &spec.node_name, names::dns_subdomain);
    if let Some(seconds) = spec.active_deadline_seconds {
        let most = i64::from(i32::MAX);
        if !(1..=most).contains(&seconds) {
            errors.invalid(
                &path.child("activeDeadlineSeconds"),
                seconds,
                names::range_error(1, most),
            );
        }
    }
    let mut check = |name: &str, field: &Option<String>, form: fn(&str) -> Vec<String>| {
        let value = text(field);
        if !value.is_empty() {
            errors.invalid_for_each(&path.child(name), value, form(value));
        }
    };
    check("hostname", &spec.hostname, names::dns_label);
    check("subdomain", &spec.subdomain, names::dns_label);
    check("hostnameOverride", &spec.hostname_override, names::dns_subdomain);
    validate_hostname_override(spec, path, errors);
}

/// The wording of these is ours.
fn validate_hostname_override(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    const MOST: usize = 64;
    let name = text(&spec.hostname_override);
    if name.is_empty() {
        return;
    }
    if name.len() > MOST {
        errors.too_long(&path.child("hostnameOverride"), MOST);
    }
    if spec.set_hostname_as_fqdn == Some(true) {
        errors.forbidden(
            &path.child("setHostnameAsFQDN"),
            "may not be true when `hostnameOverride` is set",
        );
    }
    if spec.host_network == Some(true) {
        errors.forbidden(
            &path.child("hostNetwork"),
            "may not be true when `hostnameOverride` is set",
        );
    }
}

fn validate_classes(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    let class = text(&spec.priority_class_name);
    if !class.is_empty() {
        errors.invalid_for_each(
            &path.child("priorityClassName"),
            class,
            names::dns_subdomain(class),
        );
    }
    if let Some(class) = &spec.runtime_class_name {
        errors.invalid_for_each(
            &path.child("runtimeClassName"),
            class,
            names::dns_subdomain(class),
        );
    }
    if let Some(policy) = &spec.preemption_policy {
        let choices = ["PreemptLowerPriority", "Never"];
        validate_choice(policy, &choices, &path.child("preemptionPolicy"), errors);
    }
}

fn validate_dns_config(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    const MOST_SERVERS: usize = 3;
    const MOST_SEARCHES: usize = 32;
    const MOST_CHARACTERS: usize = 2048;
    let is_none = text(&spec.dns_policy) == "None";
    let Some(config) = &spec.dns_config else {
        if is_none {
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let servers = list(&config.nameservers);
    let (servers_path, searches_path) = (path.child("nameservers"), path.child("searches"));
    if is_none && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        return errors.required(&servers_path, why);
    }
    if servers.len() > MOST_SERVERS {
        let why = format!("must not have more than {MOST_SERVERS} nameservers");
        errors.invalid(&servers_path, crate::field::Shown::json(servers), why);
    }
    for (i, server) in servers.iter().enumerate() {
        validate_ip(server, &servers_path.index(i), errors);
    }
    let searches = list(&config.searches);
    if searches.len() > MOST_SEARCHES {
        let why = format!("must not have more than {MOST_SEARCHES} search paths");
        errors.invalid(&searches_path, crate::field::Shown::json(searches), why);
    }
    if searches.join(" ").len() > MOST_CHARACTERS {
        let why = format!(
            "must not have more than {MOST_CHARACTERS} characters (including spaces) in the search list"
        );
        errors.invalid(&searches_path, crate::field::Shown::json(searches), why);
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, search)| *search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        let found = names::dns_subdomain_with_underscores(search);
        errors.invalid_for_each(&searches_path.index(i), search, found);
    }
    for (i, option) in list(&config.options).iter().enumerate() {
        if text(&option.name).is_empty() {
            errors.required(&path.child("options").index(i), "must not be empty");
        }
    }
}

/// An address that every reader takes for the same one.
fn validate_ip(address: &str, path: &Path, errors: &mut FieldErrors) {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(address_v6)) if address_v6.to_ipv4_mapped().is_some() => {
            errors.invalid(path, address, "must not be an IPv4-mapped IPv6 address");
        }
        Ok(_) => {}
        Err(_) => {
            let strip = |octet: &str| match octet.trim_start_matches('0') {
                "" if !octet.is_empty() => "0".to_owned(),
                rest => rest.to_owned(),
            };
            let stripped: Vec<_> = address.split('.').map(strip).collect();
            let why = match stripped.join(".").parse::<std::net::Ipv4Addr>() {
                Ok(_) => "must not have leading 0s",
                Err(_) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            };
            errors.invalid(path, address, why);
        }
    }
}

fn validate_host_aliases(spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    for (i, alias) in list(&spec.host_aliases).iter().enumerate() {
        validate_ip(&alias.ip, &path.index(i).child("ip"), errors);
        for (j, name) in list(&alias.hostnames).iter().enumerate() {
            let path = path.index(i).child("hostnames").index(j);
            errors.invalid_for_each(&path, name, names::dns_subdomain(name));
        }
    }
}

/// Each container of any kind with its path, in upstream's order.
fn every_container(spec: &PodSpec, path: &Path) -> Vec<(Container, Path)> {
    let mut all = Vec::new();
    for (i, container) in init_containers(spec).iter().enumerate() {
        all.push((container.clone(), path.child("initContainers").index(i)));
    }
    for (i, container) in spec.containers.iter().enumerate() {
        all.push((container.clone(), path.child("containers").index(i)));
    }
    for (i, container) in list(&spec.ephemeral_containers).iter().enumerate() {
        all.push((
            as_container(container),
            path.child("ephemeralContainers").index(i),
        ));
    }
    all
}

/// A path that stays below where it begins.
fn validate_descending_path(target: &str, path: &Path, errors: &mut FieldErrors) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    validate_no_backsteps(target, path, errors);
}

fn has_backsteps(target: &str) -> bool {
    target.split('/').any(|step| step == "..")
}

fn validate_no_backsteps(target: &str, path: &Path, errors: &mut FieldErrors) {
    if has_backsteps(target) {
        errors.invalid(path, target, "must not contain '..'");
    }
}

/// A path of a file in a volume: names that begin with `..` are the kubelet's own.
fn validate_file_path(target: &str, path: &Path, errors: &mut FieldErrors) {
    validate_descending_path(target, path, errors);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.invalid(path, target, "must not start with '..'");
    }
}

fn validate_not_negative(value: i64, path: &Path, errors: &mut FieldErrors) {
    if value < 0 {
        errors.invalid(path, value, NOT_NEGATIVE);
    }
}

#[cfg(test)]
mod tests;
