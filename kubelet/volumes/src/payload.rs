//! What is written into a volume, gathered from objects and fields. Pure but for asking the sources.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume, VolumeProjection,
};

use crate::error::{PluginError, told};
use crate::seam::Host;

/// The mode of files where a pod's spec has none; the API's default.
const DEFAULT_MODE: i32 = 0o644;

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    /// Permissions, before a group gets any.
    pub(crate) mode: u32,
    /// Its owner, if not the kubelet's user.
    pub(crate) user: Option<u32>,
}

/// Files by their paths in the volume, as they were asked for.
pub(crate) type Payload = BTreeMap<String, Content>;

/// Modes and owners of what a source gives.
#[derive(Debug, Clone, Copy)]
struct Defaults {
    mode: i32,
    user: Option<i64>,
}

impl Defaults {
    fn new(mode: Option<i32>, user: Option<i64>) -> Self {
        Self {
            mode: mode.unwrap_or(DEFAULT_MODE),
            user,
        }
    }

    fn content(self, bytes: Vec<u8>, mode: Option<i32>, user: Option<i64>) -> Content {
        Content {
            bytes,
            mode: mode.unwrap_or(self.mode).cast_unsigned() & 0o7777,
            user: user.or(self.user).and_then(|user| u32::try_from(user).ok()),
        }
    }

    /// What only the pod is to read: closed to others as soon as the pod's user or group is known.
    fn credential(self, bytes: Vec<u8>, pod: &Pod, user: Option<i64>) -> Content {
        let owner = single_user(pod);
        let mode = (owner.is_some() || fs_group(pod).is_some()).then_some(0o600);
        self.content(bytes, mode, user.or(owner))
    }
}

/// What a volume is to hold; none when it isn't of a kind that has content.
pub(crate) fn gather(host: &Host, pod: &Pod, volume: &Volume) -> Result<Option<Payload>, PluginError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if let Some(source) = &volume.config_map {
        let defaults = Defaults::new(source.default_mode, source.default_user);
        let optional = source.optional.unwrap_or(false);
        return from_config_map(
            host,
            namespace,
            &source.name,
            source.items.as_deref(),
            defaults,
            optional,
        )
        .map(Some);
    }
    if let Some(source) = &volume.secret {
        let defaults = Defaults::new(source.default_mode, source.default_user);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let optional = source.optional.unwrap_or(false);
        return from_secret(host, namespace, name, source.items.as_deref(), defaults, optional).map(Some);
    }
    if let Some(source) = &volume.downward_api {
        let defaults = Defaults::new(source.default_mode, source.default_user);
        return from_fields(host, pod, source.items.as_deref(), defaults).map(Some);
    }
    match &volume.projected {
        Some(source) => projected(host, pod, namespace, &volume.name, source).map(Some),
        None => Ok(None),
    }
}

fn from_config_map(
    host: &Host,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    defaults: Defaults,
    optional: bool,
) -> Result<Payload, PluginError> {
    match host.objects().config_map(namespace, name)? {
        Some(object) => of_config_map(&object, items, defaults, optional),
        None if optional => Ok(Payload::new()),
        None => Err(PluginError::Told(format!("configmap \"{name}\" not found"))),
    }
}

fn of_config_map(
    object: &ConfigMap,
    items: Option<&[KeyToPath]>,
    defaults: Defaults,
    optional: bool,
) -> Result<Payload, PluginError> {
    let text = object.data.iter().flatten();
    let text = text.map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary = object.binary_data.iter().flatten();
    let binary = binary.map(|(key, value)| (key.as_str(), &*value.0));
    // Of a key in both, the items mean the text, and without items the bytes are written last; as upstream.
    let keys: BTreeMap<&str, &[u8]> = if has_items(items) {
        binary.chain(text).collect()
    } else {
        text.chain(binary).collect()
    };
    let missing = |key: &str| format!("configmap references non-existent config key: {key}");
    pick(&keys, items, defaults, optional, missing)
}

fn from_secret(
    host: &Host,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    defaults: Defaults,
    optional: bool,
) -> Result<Payload, PluginError> {
    match host.objects().secret(namespace, name)? {
        Some(object) => of_secret(&object, items, defaults, optional),
        None if optional => Ok(Payload::new()),
        None => Err(PluginError::Told(format!("secret \"{name}\" not found"))),
    }
}

fn of_secret(
    object: &Secret,
    items: Option<&[KeyToPath]>,
    defaults: Defaults,
    optional: bool,
) -> Result<Payload, PluginError> {
    let keys = object.data.iter().flatten();
    let keys = keys.map(|(key, value)| (key.as_str(), &*value.0)).collect();
    let missing = |key: &str| format!("references non-existent secret key: {key}");
    pick(&keys, items, defaults, optional, missing)
}

fn has_items(items: Option<&[KeyToPath]>) -> bool {
    items.is_some_and(|items| !items.is_empty())
}

/// The keys that items name, or all under their own names.
fn pick(
    keys: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    defaults: Defaults,
    optional: bool,
    missing: impl Fn(&str) -> String,
) -> Result<Payload, PluginError> {
    let mut payload = Payload::new();
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in keys {
            payload.insert((*key).to_owned(), defaults.content(bytes.to_vec(), None, None));
        }
        return Ok(payload);
    };
    for item in items {
        match keys.get(item.key.as_str()) {
            Some(bytes) => {
                let content = defaults.content(bytes.to_vec(), item.mode, item.user);
                payload.insert(item.path.clone(), content);
            }
            None if optional => {}
            None => return Err(PluginError::Told(missing(&item.key))),
        }
    }
    Ok(payload)
}

fn from_fields(
    host: &Host,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    defaults: Defaults,
) -> Result<Payload, PluginError> {
    let mut payload = Payload::new();
    let mut errors = Vec::new();
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => host.downward().field(pod, &field.field_path),
            (None, Some(resource)) => host.downward().resource(pod, resource),
            (None, None) => Ok(String::new()),
        };
        match value {
            Ok(value) => {
                let content = defaults.content(sorted_lines(&value).into_bytes(), item.mode, item.user);
                payload.insert(item.path.clone(), content);
            }
            Err(error) => errors.push(told(&error)),
        }
    }
    all_or(payload, errors)
}

/// Labels and annotations come in an order of their own; files have them sorted.
fn sorted_lines(text: &str) -> String {
    let mut lines: Vec<_> = text.split('\n').collect();
    lines.sort_unstable();
    lines.join("\n")
}

fn projected(
    host: &Host,
    pod: &Pod,
    namespace: &str,
    volume: &str,
    source: &ProjectedVolumeSource,
) -> Result<Payload, PluginError> {
    let defaults = Defaults::new(source.default_mode, source.default_user);
    let mut payload = Payload::new();
    let mut errors = Vec::new();
    for (index, source) in source.sources.iter().flatten().enumerate() {
        // Of two sources for one path the later one counts.
        match one_source(host, pod, namespace, (volume, index), source, defaults) {
            Ok(files) => payload.extend(files),
            Err(error) => errors.push(error.told()),
        }
    }
    all_or(payload, errors)
}

fn one_source(
    host: &Host,
    pod: &Pod,
    namespace: &str,
    (volume, index): (&str, usize),
    source: &VolumeProjection,
    defaults: Defaults,
) -> Result<Payload, PluginError> {
    let mut payload = Payload::new();
    if let Some(secret) = &source.secret {
        let optional = secret.optional.unwrap_or(false);
        let items = secret.items.as_deref();
        return from_secret(host, namespace, &secret.name, items, defaults, optional);
    }
    if let Some(map) = &source.config_map {
        let optional = map.optional.unwrap_or(false);
        return from_config_map(
            host,
            namespace,
            &map.name,
            map.items.as_deref(),
            defaults,
            optional,
        );
    }
    if let Some(fields) = &source.downward_api {
        return from_fields(host, pod, fields.items.as_deref(), defaults);
    }
    if let Some(token) = &source.service_account_token {
        let bytes = host.objects().service_account_token(pod, token)?.into_bytes();
        payload.insert(token.path.clone(), defaults.credential(bytes, pod, token.user));
    }
    if let Some(bundle) = &source.cluster_trust_bundle {
        let bytes = match host.objects().cluster_trust_bundle(bundle)? {
            Some(bytes) => bytes,
            None if bundle.optional.unwrap_or(false) => Vec::new(),
            None => return Err(PluginError::Told(no_bundle(bundle.name.as_deref()))),
        };
        payload.insert(bundle.path.clone(), defaults.credential(bytes, pod, bundle.user));
    }
    if let Some(wanted) = &source.pod_certificate {
        let issued = host.objects().pod_certificate(pod, volume, index, wanted)?;
        let bundle = [issued.key.as_slice(), issued.chain.as_slice()].concat();
        let files = [
            (&wanted.credential_bundle_path, bundle),
            (&wanted.key_path, issued.key),
            (&wanted.certificate_chain_path, issued.chain),
        ];
        for (path, bytes) in files {
            if let Some(path) = path.as_ref().filter(|path| !path.is_empty()) {
                payload.insert(path.clone(), defaults.credential(bytes, pod, wanted.user));
            }
        }
    }
    Ok(payload)
}

fn no_bundle(name: Option<&str>) -> String {
    match name {
        Some(name) => format!("clustertrustbundle \"{name}\" not found"),
        None => "combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned(),
    }
}

/// One error as it is, several in brackets.
fn all_or(payload: Payload, errors: Vec<String>) -> Result<Payload, PluginError> {
    match errors.as_slice() {
        [] => Ok(payload),
        [one] => Err(PluginError::Told(one.clone())),
        several => Err(PluginError::Told(format!("[{}]", several.join(", ")))),
    }
}

/// The pod's `fsGroup`.
pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

/// The user that all containers of a pod run as; none when they differ, or one doesn't say.
fn single_user(pod: &Pod) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    let init = spec.init_containers.iter().flatten();
    let plain = init.chain(&spec.containers).map(|one| &one.security_context);
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let mut users = plain
        .chain(ephemeral.map(|one| &one.security_context))
        .map(|context| {
            context
                .as_ref()
                .and_then(|context| context.run_as_user)
                .or(of_pod)
        });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}
