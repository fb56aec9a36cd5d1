//! The annotations that mean something in a pod, and their agreement with the fields that replaced them.

use k8s_openapi::api::core::v1::{AppArmorProfile, Pod, PodSpec, SeccompProfile};

use super::super::text;
use super::{every_container, validate_descending_path};
use crate::field::{FieldErrors, Path, quoted};

const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Checks the annotations with a meaning.
pub(super) fn validate_annotations(pod: &Pod, spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    if let Some(value) = annotation(pod, MIRROR).filter(|_| text(&spec.node_name).is_empty()) {
        errors.invalid(
            &path.key(MIRROR),
            value,
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
    if let Some(cost) = annotation(pod, DELETION_COST).filter(|cost| !is_cost(cost)) {
        errors.invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer");
    }
    let all = || pod.metadata.annotations.iter().flatten();
    for (key, profile) in all().filter(|(key, _)| *key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER)) {
        validate_seccomp(profile, &path.child(key), errors);
    }
    for (key, profile) in all() {
        let Some(name) = key.strip_prefix(APP_ARMOR) else {
            continue;
        };
        if !every_container(spec, path)
            .iter()
            .any(|(container, _)| container.name == name)
        {
            errors.invalid(&path.key(key), name, "container not found");
        }
        let known =
            matches!(&**profile, "" | "runtime/default" | "unconfined") || profile.starts_with("localhost/");
        if !known {
            let why = format!("invalid AppArmor profile name: {}", quoted(profile));
            errors.invalid(&path.key(key), profile, why);
        }
    }
}

fn is_cost(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let starts_well = text == "0" || digits.starts_with(|c: char| ('1'..='9').contains(&c));
    starts_well && text.parse::<i32>().is_ok()
}

fn validate_seccomp(profile: &str, path: &Path, errors: &mut FieldErrors) {
    match profile {
        "runtime/default" | "docker/default" | "unconfined" => {}
        _ => match profile.strip_prefix("localhost/") {
            Some(file) => validate_descending_path(file, path, errors),
            None => errors.invalid(path, profile, "must be a valid seccomp profile"),
        },
    }
}

/// Checks that fields say what the annotations say, where there are both.
pub(super) fn validate_agreement(pod: &Pod, spec: &PodSpec, path: &Path, errors: &mut FieldErrors) {
    let security = spec.security_context.as_ref();
    if let (Some(profile), Some(said)) = (
        security.and_then(|context| context.seccomp_profile.as_ref()),
        annotation(pod, SECCOMP_POD),
    ) {
        compare_seccomp(
            said,
            profile,
            &path.child("securityContext.seccompProfile"),
            errors,
        );
    }
    for (container, at) in every_container(spec, path) {
        let own = container
            .security_context
            .as_ref()
            .and_then(|context| context.seccomp_profile.as_ref());
        let said = annotation(pod, &format!("{SECCOMP_CONTAINER}{}", container.name));
        if let (Some(profile), Some(said)) = (own, said) {
            compare_seccomp(said, profile, &at.child("securityContext.seccompProfile"), errors);
        }
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return;
    }
    for (container, at) in every_container(spec, path) {
        let own = container
            .security_context
            .as_ref()
            .and_then(|context| context.app_armor_profile.as_ref());
        let profile = own.or_else(|| security.and_then(|context| context.app_armor_profile.as_ref()));
        let said = annotation(pod, &format!("{APP_ARMOR}{}", container.name));
        if let (Some(profile), Some(said)) = (profile, said) {
            compare_app_armor(
                said,
                profile,
                &at.child("securityContext.appArmorProfile"),
                errors,
            );
        }
    }
}

fn compare_seccomp(said: &str, profile: &SeccompProfile, path: &Path, errors: &mut FieldErrors) {
    let defaults = ["runtime/default", "docker/default"];
    let file = profile.localhost_profile.as_deref();
    compare(
        said,
        &profile.type_,
        file,
        &defaults,
        ["seccomp type", "seccomp profile"],
        path,
        errors,
    );
}

fn compare_app_armor(said: &str, profile: &AppArmorProfile, path: &Path, errors: &mut FieldErrors) {
    let file = profile.localhost_profile.as_deref();
    compare(
        said,
        &profile.type_,
        file,
        &["runtime/default"],
        ["apparmor type", "apparmor profile"],
        path,
        errors,
    );
}

fn compare(
    said: &str,
    kind: &str,
    file: Option<&str>,
    defaults: &[&str],
    [of_type, of_profile]: [&str; 2],
    path: &Path,
    errors: &mut FieldErrors,
) {
    let local = said.strip_prefix("localhost/");
    let same_type = match kind {
        "Unconfined" => said == "unconfined",
        "RuntimeDefault" => defaults.contains(&said),
        "Localhost" => local.is_some(),
        _ => true,
    };
    if !same_type {
        errors.forbidden(
            &path.child("type"),
            format!("{of_type} in annotation and field must match"),
        );
    } else if kind == "Localhost" && local != file {
        let why = format!("{of_profile} in annotation and field must match");
        errors.forbidden(&path.child("localhostProfile"), why);
    }
}
