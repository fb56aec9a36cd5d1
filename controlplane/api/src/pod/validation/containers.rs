//! Containers of all kinds: their names, images, ports, restart rules, and what each kind may not have.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec, ResourceRequirements};

use super::super::{as_container, init_containers, is_sidecar, list, text};
use super::{Whole, environment, handlers, mounts, requirements, security, validate_choice};
use crate::field::{FieldErrors, Path};
use crate::names;

/// Checks the containers proper.
pub(super) fn validate_containers(
    containers: &[Container],
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    if containers.is_empty() {
        return errors.required(path, "");
    }
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        let at = path.index(i);
        validate_common(container, whole, &at, errors);
        if !seen.insert(&container.name) {
            errors.duplicate(&at.child("name"), &container.name);
        }
        handlers::validate_hooks_and_probes(container, whole, &at, errors);
        validate_restart_policy(container, &at, errors);
    }
    validate_host_ports(containers, path, errors);
}

/// Checks init containers, sidecars among them.
pub(super) fn validate_init_containers(
    spec: &PodSpec,
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let mut seen: BTreeSet<_> = spec.containers.iter().map(|container| &*container.name).collect();
    for (i, container) in init_containers(spec).iter().enumerate() {
        let at = path.index(i);
        validate_common(container, whole, &at, errors);
        validate_restart_policy(container, &at, errors);
        if seen.contains(&*container.name) {
            errors.duplicate(&at.child("name"), &container.name);
        } else if !container.name.is_empty() {
            seen.insert(&container.name);
        }
        // They run one by one, so that only their own ports can collide. The path without an index is upstream's.
        validate_host_ports(std::slice::from_ref(container), path, errors);
        if is_sidecar(container) {
            handlers::validate_hooks_and_probes(container, whole, &at, errors);
            continue;
        }
        let why = "may not be set for init containers without restartPolicy=Always";
        for (name, is_set) in [
            ("lifecycle", container.lifecycle.is_some()),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
        ] {
            if is_set {
                errors.forbidden(&at.child(name), why);
            }
        }
    }
}

/// Checks ephemeral containers, which may have little.
pub(super) fn validate_ephemeral_containers(
    spec: &PodSpec,
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    const WHY: &str = "cannot be set for an Ephemeral Container";
    let others = spec.containers.iter().chain(init_containers(spec));
    let others: BTreeSet<_> = others.map(|container| container.name.clone()).collect();
    let mut seen = others.clone();
    for (i, ephemeral) in list(&spec.ephemeral_containers).iter().enumerate() {
        let at = path.index(i);
        let container = as_container(ephemeral);
        validate_common(&container, whole, &at, errors);
        validate_image(&container, &at, errors);
        if !seen.insert(container.name.clone()) {
            errors.duplicate(&at.child("name"), &container.name);
        }
        let target = text(&ephemeral.target_container_name);
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(&at.child("targetContainerName"), target, "");
        }
        let has_resources = container
            .resources
            .as_ref()
            .is_some_and(|r| *r != ResourceRequirements::default());
        for (name, is_set) in [
            ("ports", !list(&container.ports).is_empty()),
            ("resources", has_resources),
            ("resizePolicy", !list(&container.resize_policy).is_empty()),
            ("restartPolicy", container.restart_policy.is_some()),
            (
                "restartPolicyRules",
                !list(&container.restart_policy_rules).is_empty(),
            ),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
            ("lifecycle", container.lifecycle.is_some()),
        ] {
            if is_set {
                errors.forbidden(&at.child(name), WHY);
            }
        }
        for (j, mount) in list(&container.volume_mounts).iter().enumerate() {
            let at = at.child("volumeMounts").index(j);
            if !text(&mount.sub_path).is_empty() {
                errors.forbidden(&at.child("subPath"), WHY);
            }
            if !text(&mount.sub_path_expr).is_empty() {
                errors.forbidden(&at.child("subPathExpr"), WHY);
            }
        }
    }
}

/// What holds for containers of any kind.
fn validate_common(container: &Container, whole: &Whole<'_>, path: &Path, errors: &mut FieldErrors) {
    match &*container.name {
        "" => errors.required(&path.child("name"), ""),
        name => errors.invalid_for_each(&path.child("name"), name, names::dns_label(name)),
    }
    if text(&container.image).is_empty() {
        errors.required(&path.child("image"), "");
    }
    let policies = ["File", "FallbackToLogsOnError"];
    let policy = text(&container.termination_message_policy);
    validate_choice(policy, &policies, &path.child("terminationMessagePolicy"), errors);
    validate_ports(list(&container.ports), &path.child("ports"), errors);
    environment::validate_variables(container, whole, &path.child("env"), errors);
    environment::validate_sources(list(&container.env_from), &path.child("envFrom"), errors);
    mounts::validate_mounts(container, whole, &path.child("volumeMounts"), errors);
    mounts::validate_devices(container, whole, &path.child("volumeDevices"), errors);
    validate_pull_policy(
        text(&container.image_pull_policy),
        &path.child("imagePullPolicy"),
        errors,
    );
    requirements::validate_container(container, whole, &path.child("resources"), errors);
    validate_resize_policy(container, whole, &path.child("resizePolicy"), errors);
    security::validate_container_security(container, whole, &path.child("securityContext"), errors);
}

/// Checks a pull policy, of an image or a volume of one.
pub(super) fn validate_pull_policy(policy: &str, path: &Path, errors: &mut FieldErrors) {
    validate_choice(policy, &["Always", "IfNotPresent", "Never"], path, errors);
}

/// What is checked of containers in pods, but not in templates.
pub(super) fn validate_images(containers: &[Container], path: &Path, errors: &mut FieldErrors) {
    for (i, container) in containers.iter().enumerate() {
        validate_image(container, &path.index(i), errors);
    }
}

fn validate_image(container: &Container, path: &Path, errors: &mut FieldErrors) {
    let image = text(&container.image);
    if image.trim() != image {
        errors.invalid(
            &path.child("image"),
            image,
            "must not have leading or trailing whitespace",
        );
    }
}

fn validate_ports(ports: &[ContainerPort], path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = text(&port.name);
        if !name.is_empty() {
            let found = names::port_name(name);
            if !found.is_empty() {
                errors.invalid_for_each(&at.child("name"), name, found);
            } else if !seen.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
        }
        let mut number = |name: &str, value: i32| {
            for why in names::port_number(value) {
                errors.invalid(&at.child(name), value, why);
            }
        };
        match port.container_port {
            0 => errors.required(&at.child("containerPort"), ""),
            value => number("containerPort", value),
        }
        if let Some(value) = port.host_port.filter(|value| *value != 0) {
            for why in names::port_number(value) {
                errors.invalid(&at.child("hostPort"), value, why);
            }
        }
        validate_choice(
            text(&port.protocol),
            &["SCTP", "TCP", "UDP"],
            &at.child("protocol"),
            errors,
        );
    }
}

/// Checks that no two ports claim the same of the host.
fn validate_host_ports(containers: &[Container], path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in list(&container.ports).iter().enumerate() {
            let Some(number) = port.host_port.filter(|number| *number != 0) else {
                continue;
            };
            let claim = format!("{}/{}/{number}", text(&port.protocol), text(&port.host_ip));
            if seen.contains(&claim) {
                errors.duplicate(&path.index(i).child("ports").index(j).child("hostPort"), &claim);
            } else {
                seen.insert(claim);
            }
        }
    }
}

/// Checks a container's own restart policy, and its rules on exit codes.
fn validate_restart_policy(container: &Container, path: &Path, errors: &mut FieldErrors) {
    const MOST_RULES: usize = 20;
    const MOST_CODES: usize = 255;
    let rules = list(&container.restart_policy_rules);
    let policy_path = path.child("restartPolicy");
    match container.restart_policy.as_deref() {
        None if !rules.is_empty() => {
            errors.required(
                &policy_path,
                "must specify restartPolicy when restart rules are used",
            );
        }
        None | Some("Always" | "Never" | "OnFailure") => {}
        Some(policy) => errors.not_supported(&policy_path, policy, &["Always", "Never", "OnFailure"]),
    }
    let rules_path = path.child("restartPolicyRules");
    if rules.len() > MOST_RULES {
        errors.too_many(&rules_path, rules.len(), MOST_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = rules_path.index(i);
        if !matches!(&*rule.action, "Restart" | "RestartAllContainers") {
            errors.not_supported(
                &at.child("action"),
                &rule.action,
                &["Restart", "RestartAllContainers"],
            );
        }
        let codes_path = at.child("exitCodes");
        let Some(codes) = &rule.exit_codes else {
            errors.required(&codes_path, "must be specified");
            continue;
        };
        if !matches!(&*codes.operator, "In" | "NotIn") {
            errors.not_supported(&codes_path.child("operator"), &codes.operator, &["In", "NotIn"]);
        }
        let count = list(&codes.values).len();
        if count > MOST_CODES {
            errors.too_many(&codes_path.child("values"), count, MOST_CODES);
        }
    }
}

fn validate_resize_policy(container: &Container, whole: &Whole<'_>, path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, policy) in list(&container.resize_policy).iter().enumerate() {
        if !seen.insert(&policy.resource_name) {
            errors.duplicate(&path.index(i), &policy.resource_name);
        }
        validate_choice(&policy.resource_name, &["cpu", "memory"], path, errors);
        validate_choice(
            &policy.restart_policy,
            &["NotRequired", "RestartContainer"],
            path,
            errors,
        );
        if whole.restart_policy == "Never" && policy.restart_policy != "NotRequired" {
            let why = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.invalid(path, &policy.restart_policy, why);
        }
    }
}
