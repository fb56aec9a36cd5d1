//! From a path to what it asks for. Pure.

/// Which container of which pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: Option<String>,
    pub(super) container: String,
}

/// Metrics by family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metrics {
    Kubelet,
    Cadvisor,
    Resource,
    Probes,
    Slis,
}

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// One check, or all.
    Healthz(Option<String>),
    Pods,
    RunningPods,
    Configz,
    ContainerLogs(Target),
    Exec(Target),
    Attach(Target),
    PortForward {
        namespace: String,
        pod: String,
        uid: Option<String>,
    },
    Run(Target),
    Metrics(Metrics),
    Summary,
    /// The path below the folder of logs, without a slash in front.
    Logs(String),
    Checkpoint(Target),
    Timeline {
        namespace: String,
        pod: String,
    },
    Events {
        namespace: String,
        pod: String,
    },
}

/// The path without its escapes; none when it isn't text.
pub(super) fn decode(path: &str) -> Option<String> {
    if !path.contains('%') {
        return Some(path.to_owned());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after.get(2..)?;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The parameters of a query, in order.
pub(super) fn query(text: Option<&str>) -> Vec<(String, String)> {
    let plain = |part: &str| decode(&part.replace('+', " "));
    text.unwrap_or_default()
        .split('&')
        .filter(|part| !part.is_empty())
        .filter_map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Some((plain(name)?, plain(value)?))
        })
        .collect()
}

/// The first value of a parameter.
pub(super) fn parameter<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

/// What a decoded path asks for; none when nothing is there.
pub(super) fn route(path: &str) -> Option<Route> {
    if let Some(rest) = path.strip_prefix("/logs/") {
        return Some(Route::Logs(rest.to_owned()));
    }
    let words: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let owned = |word: &str| word.to_owned();
    let route = match words.as_slice() {
        ["healthz"] | ["healthz", ""] => Route::Healthz(None),
        ["healthz", check] => Route::Healthz(Some(owned(check))),
        ["pods"] | ["pods", ""] => Route::Pods,
        ["runningpods"] | ["runningpods", ""] => Route::RunningPods,
        ["configz"] => Route::Configz,
        ["metrics"] => Route::Metrics(Metrics::Kubelet),
        ["metrics", "cadvisor"] => Route::Metrics(Metrics::Cadvisor),
        ["metrics", "resource"] => Route::Metrics(Metrics::Resource),
        ["metrics", "probes"] => Route::Metrics(Metrics::Probes),
        ["metrics", "slis"] => Route::Metrics(Metrics::Slis),
        ["stats", "summary"] => Route::Summary,
        ["logs"] => Route::Logs(String::new()),
        [kind @ ("timeline" | "events"), namespace, pod] => {
            let (namespace, pod) = (owned(namespace), owned(pod));
            if *kind == "timeline" {
                Route::Timeline { namespace, pod }
            } else {
                Route::Events { namespace, pod }
            }
        }
        ["portForward", namespace, pod] => Route::PortForward {
            namespace: owned(namespace),
            pod: owned(pod),
            uid: None,
        },
        ["portForward", namespace, pod, uid] => Route::PortForward {
            namespace: owned(namespace),
            pod: owned(pod),
            uid: Some(owned(uid)),
        },
        [verb, namespace, pod, rest @ ..] => {
            let (uid, container) = match rest {
                [container] => (None, *container),
                [uid, container] if matches!(*verb, "exec" | "attach" | "run") => {
                    (Some(owned(uid)), *container)
                }
                _ => return None,
            };
            let target = Target {
                namespace: owned(namespace),
                pod: owned(pod),
                uid,
                container: owned(container),
            };
            match *verb {
                "exec" => Route::Exec(target),
                "attach" => Route::Attach(target),
                "run" => Route::Run(target),
                "containerLogs" => Route::ContainerLogs(target),
                "checkpoint" => Route::Checkpoint(target),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(route)
}

impl Route {
    /// Whether it is only there with debugging handlers.
    pub(super) fn is_debugging(&self) -> bool {
        matches!(
            self,
            Self::Run(_)
                | Self::Exec(_)
                | Self::Attach(_)
                | Self::PortForward { .. }
                | Self::ContainerLogs(_)
                | Self::RunningPods
                | Self::Logs(_)
        )
    }

    /// Whether the read-only port has it as well.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(
            self,
            Self::Healthz(_) | Self::Pods | Self::Metrics(_) | Self::Summary
        )
    }

    /// Its methods, for those that not all may use.
    pub(super) fn methods(&self) -> Option<&'static str> {
        match self {
            Self::Exec(_) | Self::Attach(_) | Self::PortForward { .. } => Some("GET, POST"),
            Self::Run(_) | Self::Checkpoint(_) => Some("POST"),
            Self::Metrics(_) | Self::Healthz(_) => None,
            _ => Some("GET"),
        }
    }

    /// What it is called in metrics, and whether requests of it take long by nature.
    pub(super) fn bucket(&self) -> (&'static str, bool) {
        match self {
            Self::Healthz(_) => ("healthz", false),
            Self::Pods => ("pods", false),
            Self::RunningPods => ("runningpods", false),
            Self::Configz => ("configz", false),
            Self::ContainerLogs(_) => ("containerLogs", false),
            Self::Exec(_) => ("exec", true),
            Self::Attach(_) => ("attach", true),
            Self::PortForward { .. } => ("portForward", false),
            Self::Run(_) => ("run", false),
            Self::Metrics(Metrics::Kubelet) => ("metrics", false),
            Self::Metrics(Metrics::Cadvisor) => ("metrics/cadvisor", false),
            Self::Metrics(Metrics::Resource) => ("metrics/resource", false),
            Self::Metrics(Metrics::Probes) => ("metrics/probes", false),
            Self::Metrics(Metrics::Slis) => ("metrics/slis", false),
            Self::Summary => ("stats", false),
            Self::Logs(_) => ("logs", false),
            Self::Checkpoint(_) => ("checkpoint", false),
            Self::Timeline { .. } => ("timeline", false),
            Self::Events { .. } => ("events", false),
        }
    }
}
