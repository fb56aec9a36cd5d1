//! Probes and lifecycle hooks: each does exactly one thing.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, SleepAction, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::{list, text};
use super::{Whole, validate_not_negative};
use crate::field::{FieldErrors, Path};
use crate::names;

/// What a probe or a hook does.
#[derive(Default)]
struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    sleep: Option<&'a SleepAction>,
}

/// Checks the hooks and probes of a container that may have them.
pub(super) fn validate_hooks_and_probes(
    container: &Container,
    whole: &Whole<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    if let Some(lifecycle) = &container.lifecycle {
        let at = path.child("lifecycle");
        let hooks = [
            ("postStart", &lifecycle.post_start),
            ("preStop", &lifecycle.pre_stop),
        ];
        for (name, hook) in hooks {
            if let Some(hook) = hook {
                validate_handler(&of_hook(hook), whole, &at.child(name), errors);
            }
        }
    }
    if let Some(probe) = &container.liveness_probe {
        validate_probe(probe, whole, &path.child("livenessProbe"), errors);
        validate_one_success(probe, &path.child("livenessProbe"), errors);
    }
    if let Some(probe) = &container.readiness_probe {
        let at = path.child("readinessProbe");
        validate_probe(probe, whole, &at, errors);
        if let Some(seconds) = probe.termination_grace_period_seconds {
            errors.invalid(
                &at.child("terminationGracePeriodSeconds"),
                seconds,
                "must not be set for readinessProbes",
            );
        }
    }
    if let Some(probe) = &container.startup_probe {
        validate_probe(probe, whole, &path.child("startupProbe"), errors);
        validate_one_success(probe, &path.child("startupProbe"), errors);
    }
}

fn of_hook(hook: &LifecycleHandler) -> Handler<'_> {
    Handler {
        exec: hook.exec.as_ref(),
        http_get: hook.http_get.as_ref(),
        tcp_socket: hook.tcp_socket.as_ref(),
        sleep: hook.sleep.as_ref(),
        ..Handler::default()
    }
}

fn validate_one_success(probe: &Probe, path: &Path, errors: &mut FieldErrors) {
    let threshold = probe.success_threshold.unwrap_or(0);
    if threshold != 1 {
        errors.invalid(&path.child("successThreshold"), threshold, "must be 1");
    }
}

fn validate_probe(probe: &Probe, whole: &Whole<'_>, path: &Path, errors: &mut FieldErrors) {
    let handler = Handler {
        exec: probe.exec.as_ref(),
        http_get: probe.http_get.as_ref(),
        tcp_socket: probe.tcp_socket.as_ref(),
        grpc: probe.grpc.as_ref(),
        ..Handler::default()
    };
    validate_handler(&handler, whole, path, errors);
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        validate_not_negative(i64::from(value.unwrap_or(0)), &path.child(name), errors);
    }
    if let Some(seconds) = probe
        .termination_grace_period_seconds
        .filter(|seconds| *seconds <= 0)
    {
        errors.invalid(
            &path.child("terminationGracePeriodSeconds"),
            seconds,
            "must be greater than 0",
        );
    }
}

fn validate_handler(handler: &Handler<'_>, whole: &Whole<'_>, path: &Path, errors: &mut FieldErrors) {
    let mut has_one = false;
    let mut is_first = |name: &str, errors: &mut FieldErrors| {
        let is_first = !std::mem::replace(&mut has_one, true);
        if !is_first {
            errors.forbidden(&path.child(name), "may not specify more than 1 handler type");
        }
        is_first
    };
    if let Some(exec) = handler.exec.filter(|_| is_first("exec", errors))
        && list(&exec.command).is_empty()
    {
        errors.required(&path.child("exec.command"), "");
    }
    if let Some(http) = handler.http_get.filter(|_| is_first("httpGet", errors)) {
        validate_http_get(http, &path.child("httpGet"), errors);
    }
    if let Some(tcp) = handler.tcp_socket.filter(|_| is_first("tcpSocket", errors)) {
        validate_port(&tcp.port, &path.child("tcpSocket.port"), errors);
    }
    if let Some(grpc) = handler.grpc.filter(|_| is_first("grpc", errors)) {
        validate_port(&IntOrString::Int(grpc.port), &path.child("grpc.port"), errors);
        if let Some(mode) = grpc
            .mode
            .as_deref()
            .filter(|mode| !matches!(*mode, "Plaintext" | "TLS"))
        {
            errors.not_supported(&path.child("grpc.mode"), mode, &["Plaintext", "TLS"]);
        }
    }
    if let Some(sleep) = handler.sleep.filter(|_| is_first("sleep", errors))
        && let Some(grace) = whole
            .grace
            .filter(|grace| sleep.seconds < 0 || sleep.seconds > *grace)
    {
        let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid(&path.child("sleep"), sleep.seconds, why);
    }
    if !has_one {
        errors.required(path, "must specify a handler type");
    }
}

fn validate_http_get(http: &HTTPGetAction, path: &Path, errors: &mut FieldErrors) {
    if text(&http.path).is_empty() {
        errors.required(&path.child("path"), "");
    }
    validate_port(&http.port, &path.child("port"), errors);
    let scheme = text(&http.scheme);
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in list(&http.http_headers) {
        errors.invalid_for_each(
            &path.child("httpHeaders"),
            &header.name,
            names::http_header(&header.name),
        );
    }
}

fn validate_port(port: &IntOrString, path: &Path, errors: &mut FieldErrors) {
    match port {
        IntOrString::Int(number) => {
            for why in names::port_number(*number) {
                errors.invalid(path, *number, why);
            }
        }
        IntOrString::String(name) => errors.invalid_for_each(path, name, names::port_name(name)),
    }
}
