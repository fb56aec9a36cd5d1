//! `CreateContainer`'s configuration.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod};
use cri_api::v1::{
    CdiDevice, ContainerConfig, ContainerMetadata, Device, ImageSpec, KeyValue, LinuxContainerConfig, Mount,
    Signal,
};

use super::env::EnvObjects;
use super::errors::ConfigError;
use super::expansion::expand_all;
use super::facts::NodeFacts;
use super::mounts::MountFrom;
use super::sandbox::{is_host_network, spec};
use super::userns::IdRange;
use super::{env, labels, logs, mounts, resources, security};
use crate::containers::from_ephemeral;

/// Who an image says that it runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// A number; 0 where the image says nothing.
    Id(i64),
    /// A name of the image's own.
    Name(String),
}

/// An image that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedImage {
    /// What `CreateContainer` names it by: what pulling it answered.
    pub reference: String,
    /// The runtime's ID of it.
    pub id: String,
    /// Who it runs as.
    pub user: ImageUser,
    /// Annotations of the image's spec, as it was pulled.
    pub annotations: BTreeMap<String, String>,
}

/// What a container's configuration needs besides pod, node and image.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ContainerExtra {
    /// What each entry of its `volumeMounts` became, by `mountPath`.
    pub mounts: BTreeMap<String, MountFrom>,
    /// Mounts of device plugins.
    pub more_mounts: Vec<Mount>,
    /// The file on the node that its termination message shall be in.
    pub termination_log: Option<String>,
    /// The pod's addresses, the primary one first.
    pub pod_ips: Vec<IpAddr>,
    /// Objects that variables come from.
    pub objects: EnvObjects,
    /// Variables of devices.
    pub device_env: Vec<(String, String)>,
    /// Devices of plugins and of block volumes.
    pub devices: Vec<Device>,
    /// Names of CDI devices.
    pub cdi_devices: Vec<String>,
    /// Annotations of device plugins.
    pub annotations: BTreeMap<String, String>,
    /// The CPUs that it may use, as a list of the kernel's; empty is any.
    pub cpuset_cpus: String,
    /// The memory nodes that it may use; empty is any.
    pub cpuset_mems: String,
    /// Whether its CPUs are its own: no quota then.
    pub exclusive_cpus: bool,
    /// The IDs of the pod's user namespace, where it has one.
    pub user_namespace: Option<IdRange>,
    /// The handler of the pod's RuntimeClass.
    pub runtime_handler: String,
    /// Of an ephemeral container: the ID of the container whose processes it shall see.
    pub target_id: Option<String>,
    /// Groups that the pod's volumes ask for.
    pub groups: Vec<i64>,
}

/// A container of a pod by its name: regular, init or ephemeral.
pub fn spec_of<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    let spec = spec(pod);
    let plain = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let ephemeral = || {
        spec.ephemeral_containers
            .iter()
            .flatten()
            .find(|container| container.name == name)
    };
    match plain.into_iter().find(|container| container.name == name) {
        Some(container) => Some(Cow::Borrowed(container)),
        None => ephemeral().map(|container| Cow::Owned(from_ephemeral(container))),
    }
}

/// All containers of a pod: init, regular and ephemeral ones.
pub(crate) fn all_containers(pod: &Pod) -> Vec<Cow<'_, Container>> {
    let spec = spec(pod);
    let plain = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(Cow::Borrowed);
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|c| Cow::Owned(from_ephemeral(c)));
    plain.chain(ephemeral).collect()
}

/// The configuration of a container by its name; `attempt` counts those of this name that the pod had before.
pub fn container_config(
    pod: &Pod,
    name: &str,
    attempt: u32,
    image: &ResolvedImage,
    facts: &NodeFacts,
    extra: &ContainerExtra,
) -> Result<ContainerConfig, ConfigError> {
    let container = spec_of(pod, name).ok_or_else(|| ConfigError::NoSuchContainer(name.to_owned()))?;
    let container = container.as_ref();
    check_target(pod, name, extra)?;
    let pod_ips = match is_host_network(pod) && extra.pod_ips.is_empty() {
        true => &facts.host_ips,
        false => &extra.pod_ips,
    };
    let environment = env::environment(pod, container, facts, &extra.objects, &extra.device_env, pod_ips)?;
    let variables = environment.map();
    let expanded = |texts: &Option<Vec<String>>| expand_all(texts.as_deref().unwrap_or_default(), &variables);
    let context = security::container_context(pod, container, &image.user, facts, extra)?;
    let userns = context
        .namespace_options
        .as_ref()
        .and_then(|options| options.userns_options.as_ref());
    let userns = userns.filter(|userns| !userns.uids.is_empty());
    let mounts = mounts::mounts(pod, container, facts, extra, !pod_ips.is_empty(), userns)?;
    let mut limits = resources::container_resources(pod, container, facts, extra.exclusive_cpus);
    limits.cpuset_cpus.clone_from(&extra.cpuset_cpus);
    limits.cpuset_mems.clone_from(&extra.cpuset_mems);
    let key_value = |(key, value): (String, String)| KeyValue {
        key,
        value: value.into_bytes(),
    };
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.to_owned(),
            attempt,
        }),
        image: Some(image_spec(container, image)),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: environment.variables.into_iter().map(key_value).collect(),
        mounts,
        devices: extra.devices.clone(),
        cdi_devices: extra
            .cdi_devices
            .iter()
            .map(|name| CdiDevice { name: name.clone() })
            .collect(),
        labels: labels::container_labels(pod, name),
        annotations: labels::container_annotations(pod, container, attempt, &extra.annotations),
        log_path: logs::container_log_path(name, attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(limits),
            security_context: Some(context),
        }),
        windows: None,
        stop_signal: stop_signal(container)?.into(),
    })
}

fn check_target(pod: &Pod, name: &str, extra: &ContainerExtra) -> Result<(), ConfigError> {
    let ephemeral = spec(pod)
        .ephemeral_containers
        .iter()
        .flatten()
        .find(|container| container.name == name);
    let target = ephemeral.and_then(|container| container.target_container_name.as_deref());
    match target.filter(|target| !target.is_empty()) {
        Some(target) if extra.target_id.is_none() => Err(ConfigError::NoTarget(target.to_owned())),
        _ => Ok(()),
    }
}

fn image_spec(container: &Container, image: &ResolvedImage) -> ImageSpec {
    let annotations: HashMap<String, String> = image
        .annotations
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    ImageSpec {
        image: image.reference.clone(),
        annotations,
        user_specified_image: container.image.clone().unwrap_or_default(),
        ..ImageSpec::default()
    }
}

fn stop_signal(container: &Container) -> Result<Signal, ConfigError> {
    let wanted = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    match wanted.filter(|name| !name.is_empty()) {
        None => Ok(Signal::RuntimeDefault),
        Some(name) => {
            let known = Signal::from_str_name(&format!(
                "SIGNAL_{}",
                name.replace('+', "PLUS").replace('-', "MINUS")
            ));
            known.ok_or_else(|| ConfigError::StopSignal(name.to_owned()))
        }
    }
}
