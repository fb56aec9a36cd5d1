//! Where logs lie: `/var/log/pods/NAMESPACE_NAME_UID/CONTAINER/ATTEMPT.log`, and the links of old log collectors.

use controlplane_api::k8s_openapi::api::core::v1::Pod;

/// The folder of links that old log collectors read.
pub const LEGACY_CONTAINER_LOGS_DIR: &str = "/var/log/containers";

/// The most bytes that a file's name has.
const MAX_FILE_NAME: usize = 255;

/// A pod's folder of logs.
pub fn pod_log_dir(root: &str, pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!(
        "{root}/{}_{}_{}",
        text(&meta.namespace),
        text(&meta.name),
        text(&meta.uid)
    )
}

/// A container's log within its pod's folder.
pub fn container_log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The name of the link in [`LEGACY_CONTAINER_LOGS_DIR`]: `POD_NAMESPACE_CONTAINER-ID.log`, cut to what a file's name may have.
pub fn legacy_link(pod: &str, namespace: &str, container: &str, container_id: &str) -> String {
    let mut name = format!("{pod}_{namespace}_{container}-{container_id}");
    let most = MAX_FILE_NAME - ".log".len();
    if name.len() > most {
        let end = (0..=most)
            .rev()
            .find(|&at| name.is_char_boundary(at))
            .unwrap_or(0);
        name.truncate(end);
    }
    name + ".log"
}

/// The attempt that a container's next log belongs to, from the names of the files in its folder: one more than the
/// highest. For a node whose runtime forgot its containers in a reboot.
pub fn next_attempt<'a>(names: impl IntoIterator<Item = &'a str>) -> u32 {
    let attempt = |name: &str| {
        let (number, rest) = name.split_once('.')?;
        let log = rest == "log" || rest.starts_with("log.");
        (log && number.bytes().all(|b| b.is_ascii_digit())).then(|| number.parse::<u32>().ok())?
    };
    names
        .into_iter()
        .filter_map(attempt)
        .map(|number| number.saturating_add(1))
        .max()
        .unwrap_or(0)
}
