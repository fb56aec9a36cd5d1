//! `orlop describe`: all about a pod, laid out as `kubectl describe pod` does.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use controlplane_api::k8s_openapi::List;
use controlplane_api::k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStatus, EnvVar, Event, Pod, Probe, Volume,
};
use controlplane_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use jiff::Timestamp;
use serde_json::Value;

use crate::args::PodArguments;
use crate::client::{Client, escape};
use crate::failure::{Failure, print};
use crate::select::{self, name, namespace};
use crate::table;

/// Prints it.
pub(crate) async fn run(client: &Client, options: &PodArguments) -> Result<(), Failure> {
    let pod = select::pod(client, options).await?;
    let path = format!("/events/{}/{}", escape(namespace(&pod)), escape(name(&pod)));
    let events: List<Event> = client.object(&path).await?;
    print(&describe(&pod, &events.items, Timestamp::now()))
}

/// Lines of `Key:   value`, values in one column.
struct Page(String);

impl Page {
    fn line(&mut self, indent: usize, key: &str, value: impl std::fmt::Display) {
        let width = 18usize.saturating_sub(indent);
        let key = format!("{key}:");
        let text = format!("{}{key:<width$} {value}", " ".repeat(indent));
        let _ = writeln!(self.0, "{}", text.trim_end());
    }

    /// A value over several lines.
    fn lines(&mut self, indent: usize, key: &str, values: &[String]) {
        let none = "<none>".to_owned();
        let mut values = values.iter();
        self.line(indent, key, values.next().unwrap_or(&none));
        for value in values {
            let _ = writeln!(self.0, "{}{value}", " ".repeat(19.max(indent)));
        }
    }
}

fn describe(pod: &Pod, events: &[Event], now: Timestamp) -> String {
    let mut page = Page(String::new());
    head(&mut page, pod);
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let init = spec.init_containers.unwrap_or_default();
    if !init.is_empty() {
        page.0 += "Init Containers:\n";
        containers(
            &mut page,
            &init,
            status.init_container_statuses.as_deref().unwrap_or_default(),
        );
    }
    page.0 += "Containers:\n";
    containers(
        &mut page,
        &spec.containers,
        status.container_statuses.as_deref().unwrap_or_default(),
    );
    if let Some(conditions) = &status.conditions {
        page.0 += "Conditions:\n";
        let mut rows = vec![vec!["  Type".to_owned(), "Status".to_owned()]];
        rows.extend(
            conditions
                .iter()
                .map(|c| vec![format!("  {}", c.type_), c.status.clone()]),
        );
        page.0 += &table::render(&rows);
    }
    page.0 += "Volumes:\n";
    volumes(&mut page, spec.volumes.as_deref().unwrap_or_default());
    page.line(0, "QoS Class", status.qos_class.unwrap_or_default());
    page.lines(0, "Node-Selectors", &pairs(spec.node_selector.as_ref()));
    let tolerations: Vec<String> = spec
        .tolerations
        .unwrap_or_default()
        .iter()
        .map(|t| {
            let mut text = t.key.clone().unwrap_or_default();
            if let Some(value) = t.value.as_deref().filter(|value| !value.is_empty()) {
                text += &format!("={value}");
            }
            if let Some(effect) = t.effect.as_deref().filter(|effect| !effect.is_empty()) {
                text += &format!(":{effect}");
            }
            if t.operator.as_deref() == Some("Exists") {
                text += if t.effect.is_none() {
                    "op=Exists"
                } else {
                    " op=Exists"
                };
            }
            text
        })
        .collect();
    page.lines(0, "Tolerations", &tolerations);
    page.0 += &event_table(events, now);
    page.0
}

fn head(page: &mut Page, pod: &Pod) {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    page.line(0, "Name", name(pod));
    page.line(0, "Namespace", namespace(pod));
    page.line(0, "UID", pod.metadata.uid.as_deref().unwrap_or_default());
    page.line(0, "Priority", spec.priority.unwrap_or(0));
    if let Some(class) = &spec.priority_class_name {
        page.line(0, "Priority Class Name", class);
    }
    page.line(
        0,
        "Service Account",
        spec.service_account_name.as_deref().unwrap_or("default"),
    );
    let node = spec.node_name.as_deref().unwrap_or("<none>");
    match &status.host_ip {
        Some(ip) => page.line(0, "Node", format!("{node}/{ip}")),
        None => page.line(0, "Node", node),
    }
    if let Some(start) = &status.start_time {
        page.line(0, "Start Time", start.0);
    }
    page.lines(0, "Labels", &pairs(pod.metadata.labels.as_ref()));
    let annotations: Vec<String> = pod
        .metadata
        .annotations
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}: {value}"))
        .collect();
    page.lines(0, "Annotations", &annotations);
    match &pod.metadata.deletion_timestamp {
        Some(time) => page.line(0, "Status", format!("Terminating (since {})", time.0)),
        None => page.line(0, "Status", status.phase.as_deref().unwrap_or_default()),
    }
    for (key, value) in [("Reason", &status.reason), ("Message", &status.message)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            page.line(0, key, value);
        }
    }
    page.line(0, "IP", status.pod_ip.as_deref().unwrap_or_default());
    let ips: Vec<String> = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    page.lines(0, "IPs", &ips);
}

fn pairs(map: Option<&BTreeMap<String, String>>) -> Vec<String> {
    map.into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"))
        .collect()
}

fn containers(page: &mut Page, containers: &[Container], statuses: &[ContainerStatus]) {
    for container in containers {
        let _ = writeln!(page.0, "  {}:", container.name);
        let status = statuses.iter().find(|status| status.name == container.name);
        if let Some(status) = status {
            page.line(
                4,
                "Container ID",
                status.container_id.as_deref().unwrap_or_default(),
            );
        }
        page.line(4, "Image", container.image.as_deref().unwrap_or_default());
        if let Some(status) = status {
            page.line(4, "Image ID", &status.image_id);
        }
        let ports = |host: bool| {
            let ports: Vec<String> = container
                .ports
                .iter()
                .flatten()
                .map(|port| {
                    let number = if host {
                        port.host_port.unwrap_or(0)
                    } else {
                        port.container_port
                    };
                    format!("{number}/{}", port.protocol.as_deref().unwrap_or("TCP"))
                })
                .collect();
            if ports.is_empty() {
                "<none>".to_owned()
            } else {
                ports.join(", ")
            }
        };
        page.line(4, "Port", ports(false));
        page.line(4, "Host Port", ports(true));
        for (key, words) in [("Command", &container.command), ("Args", &container.args)] {
            if let Some(words) = words {
                let _ = writeln!(page.0, "    {key}:");
                for word in words {
                    let _ = writeln!(page.0, "      {word}");
                }
            }
        }
        if let Some(status) = status {
            states(page, status);
        }
        more(page, container);
    }
}

fn states(page: &mut Page, status: &ContainerStatus) {
    state(page, "State", status.state.as_ref());
    if let Some(last) = status
        .last_state
        .as_ref()
        .filter(|last| last.terminated.is_some())
    {
        state(page, "Last State", Some(last));
    }
    page.line(4, "Ready", if status.ready { "True" } else { "False" });
    page.line(4, "Restart Count", status.restart_count);
}

fn state(page: &mut Page, key: &str, state: Option<&ContainerState>) {
    let state = state.cloned().unwrap_or_default();
    if let Some(running) = state.running {
        page.line(4, key, "Running");
        if let Some(start) = running.started_at {
            page.line(6, "Started", start.0);
        }
    } else if let Some(ended) = state.terminated {
        page.line(4, key, "Terminated");
        for (key, value) in [("Reason", &ended.reason), ("Message", &ended.message)] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                page.line(6, key, value);
            }
        }
        page.line(6, "Exit Code", ended.exit_code);
        if let Some(signal) = ended.signal.filter(|signal| *signal > 0) {
            page.line(6, "Signal", signal);
        }
        for (key, time) in [("Started", ended.started_at), ("Finished", ended.finished_at)] {
            if let Some(time) = time {
                page.line(6, key, time.0);
            }
        }
    } else {
        page.line(4, key, "Waiting");
        for (key, value) in state
            .waiting
            .iter()
            .flat_map(|w| [("Reason", &w.reason), ("Message", &w.message)])
        {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                page.line(6, key, value);
            }
        }
    }
}

fn more(page: &mut Page, container: &Container) {
    let resources = container.resources.clone().unwrap_or_default();
    for (key, list) in [("Limits", resources.limits), ("Requests", resources.requests)] {
        let list: BTreeMap<String, Quantity> = list.unwrap_or_default();
        if !list.is_empty() {
            let _ = writeln!(page.0, "    {key}:");
            for (resource, quantity) in &list {
                page.line(6, resource, &quantity.0);
            }
        }
    }
    for (key, probe) in [
        ("Liveness", &container.liveness_probe),
        ("Readiness", &container.readiness_probe),
        ("Startup", &container.startup_probe),
    ] {
        if let Some(probe) = probe {
            page.line(4, key, probe_text(probe));
        }
    }
    let environment = container.env.as_deref().unwrap_or_default();
    if environment.is_empty() {
        page.line(4, "Environment", "<none>");
    } else {
        page.0 += "    Environment:\n";
        for variable in environment {
            page.line(6, &variable.name, variable_text(variable));
        }
    }
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    if mounts.is_empty() {
        page.line(4, "Mounts", "<none>");
    } else {
        page.0 += "    Mounts:\n";
        for mount in mounts {
            let mode = if mount.read_only == Some(true) { "ro" } else { "rw" };
            let below = mount
                .sub_path
                .as_ref()
                .map(|path| format!(",path={path:?}"))
                .unwrap_or_default();
            let _ = writeln!(
                page.0,
                "      {} from {} ({mode}{below})",
                mount.mount_path, mount.name
            );
        }
    }
}

fn variable_text(variable: &EnvVar) -> String {
    let Some(from) = &variable.value_from else {
        return variable.value.clone().unwrap_or_default();
    };
    if let Some(field) = &from.field_ref {
        format!(
            "({}:{})",
            field.api_version.as_deref().unwrap_or("v1"),
            field.field_path
        )
    } else if let Some(key) = &from.config_map_key_ref {
        format!("<set to the key '{}' of config map '{}'>", key.key, key.name)
    } else if let Some(key) = &from.secret_key_ref {
        format!("<set to the key '{}' in secret '{}'>", key.key, key.name)
    } else if let Some(resource) = &from.resource_field_ref {
        format!("({})", resource.resource)
    } else {
        String::new()
    }
}

fn probe_text(probe: &Probe) -> String {
    let port = |port: &Value| port.as_str().map_or_else(|| port.to_string(), str::to_owned);
    let value = serde_json::to_value(probe).unwrap_or_default();
    let action = if let Some(exec) = &probe.exec {
        format!("exec [{}]", exec.command.as_deref().unwrap_or_default().join(" "))
    } else if let Some(get) = &probe.http_get {
        let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
        let host = get.host.as_deref().unwrap_or_default();
        let path = get.path.as_deref().unwrap_or("/");
        format!(
            "http-get {scheme}://{host}:{}{path}",
            port(&value["httpGet"]["port"])
        )
    } else if let Some(tcp) = &probe.tcp_socket {
        let host = tcp.host.as_deref().unwrap_or_default();
        format!("tcp-socket {host}:{}", port(&value["tcpSocket"]["port"]))
    } else if let Some(grpc) = &probe.grpc {
        format!(
            "grpc <pod>:{} {}",
            grpc.port,
            grpc.service.as_deref().unwrap_or_default()
        )
    } else {
        "unknown".to_owned()
    };
    format!(
        "{action} delay={}s timeout={}s period={}s #success={} #failure={}",
        probe.initial_delay_seconds.unwrap_or(0),
        probe.timeout_seconds.unwrap_or(1),
        probe.period_seconds.unwrap_or(10),
        probe.success_threshold.unwrap_or(1),
        probe.failure_threshold.unwrap_or(3),
    )
}

/// Each volume with its source's fields, whatever kind it is.
fn volumes(page: &mut Page, volumes: &[Volume]) {
    if volumes.is_empty() {
        page.0 += "  <none>\n";
    }
    for volume in volumes {
        let _ = writeln!(page.0, "  {}:", volume.name);
        let Ok(Value::Object(fields)) = serde_json::to_value(volume) else {
            continue;
        };
        for (kind, source) in fields.iter().filter(|(key, _)| *key != "name") {
            page.line(4, "Type", kind);
            for (key, value) in source.as_object().into_iter().flatten() {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                page.line(4, key, text);
            }
        }
    }
}

fn event_table(events: &[Event], now: Timestamp) -> String {
    if events.is_empty() {
        return "Events:            <none>\n".to_owned();
    }
    let head = ["  Type", "Reason", "Age", "From", "Message"];
    let line = ["  ----", "------", "----", "----", "-------"];
    let mut rows = vec![head.map(str::to_owned).to_vec(), line.map(str::to_owned).to_vec()];
    for event in events {
        let first = event
            .first_timestamp
            .as_ref()
            .map(|time| time.0)
            .or(event.event_time.as_ref().map(|time| time.0));
        let last = event.last_timestamp.as_ref().map(|time| time.0).or(first);
        let count = event.count.unwrap_or(1);
        let age = if count > 1 {
            format!(
                "{} (x{count} over {})",
                table::age(last, now),
                table::age(first, now)
            )
        } else {
            table::age(last, now)
        };
        let from = event.source.as_ref().and_then(|source| source.component.clone());
        rows.push(vec![
            format!("  {}", event.type_.as_deref().unwrap_or_default()),
            event.reason.clone().unwrap_or_default(),
            age,
            from.or_else(|| event.reporting_component.clone())
                .unwrap_or_default(),
            event.message.as_deref().unwrap_or_default().trim().to_owned(),
        ]);
    }
    format!("Events:\n{}", table::render(&rows))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_told_whole() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "x", "uid": "u1", "labels": {"app": "web", "tier": "front"}},
            "spec": {
                "nodeName": "n1",
                "containers": [{
                    "name": "app", "image": "img:1", "command": ["serve", "-v"],
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "1"}},
                    "env": [{"name": "A", "value": "b"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    "livenessProbe": {"httpGet": {"path": "/ok", "port": "web"}},
                    "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}],
                }],
                "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}], "qosClass": "Burstable",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{
                    "name": "app", "image": "img:1", "imageID": "sha256:1", "containerID": "orlop://c1", "ready": true, "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                    "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                }],
            },
        }))
        .unwrap();
        let event: Event = serde_json::from_value(json!({
            "metadata": {}, "involvedObject": {}, "type": "Warning", "reason": "BackOff", "message": "Back-off restarting",
            "count": 4, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:09:00Z",
            "source": {"component": "kubelet"},
        }))
        .unwrap();
        let text = describe(&pod, &[event], "2026-01-01T00:10:00Z".parse().unwrap());
        for line in [
            "Name:              web",
            "Labels:            app=web",
            "                   tier=front",
            "IPs:               10.0.0.2",
            "    Port:          80/TCP",
            "      serve",
            "    State:         Waiting",
            "      Reason:      CrashLoopBackOff",
            "    Last State:    Terminated",
            "      Exit Code:   137",
            "    Restart Count: 3",
            "      cpu:         1",
            "      IP:          (v1:status.podIP)",
            "    Liveness:      http-get http://:web/ok delay=0s timeout=1s period=10s #success=1 #failure=3",
            "      /data from data (ro)",
            "  Ready   True",
            "    Type:          emptyDir",
            "    medium:        Memory",
            "QoS Class:         Burstable",
            "  Warning   BackOff   60s (x4 over 10m)   kubelet   Back-off restarting",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
        }
    }
}
