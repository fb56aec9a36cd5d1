//! Makes sandboxes and starts containers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::{Container, Pod};
use cri_api::v1;
use kubelet_pods::actions::{StartContainer, Waiting};
use kubelet_pods::containers::{self, ContainerKind};
use kubelet_pods::cri::env::{EnvObjects, environment};
use kubelet_pods::cri::userns::IdRange;
use kubelet_pods::cri::{
    ContainerExtra, ImageUser, MountFrom, NodeFacts, ResolvedImage, SandboxExtra, container_config, hosts,
    logs, sandbox_config,
};
use kubelet_pods::observed::{ObservedPod, ObservedSandbox};
use kubelet_volumes::{ContainerMount, MountSource};

use super::belongings;
use super::context::Context;
use crate::events::EventType;
use crate::images::{How, Keyring, Missing, Present, Progress, PullPolicy, Wanted};
use crate::timeline::Phase;

/// How long a container that could not be started is left alone.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a container whose `postStart` hook failed has to end.
const HOOK_GRACE: Duration = Duration::from_secs(2);

/// Why a sandbox can't be made.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct SandboxError {
    /// With upstream's words, for the event `FailedCreatePodSandBox`.
    message: String,
}

/// What a pod's containers are made with, besides their specs.
pub(super) struct Prepared {
    /// The pod's own cgroup, as CRI calls it.
    pub(super) cgroup_parent: String,
    /// The handler of its RuntimeClass.
    pub(super) handler: String,
    /// Its user IDs.
    pub(super) user_namespace: Option<IdRange>,
    /// The node as it was when this was made.
    pub(super) facts: Arc<NodeFacts>,
    /// Credentials for its images.
    pub(super) keyring: Arc<Keyring>,
}

/// Makes a sandbox; its ID.
pub(super) async fn sandbox(
    ctx: &Context,
    pod: &Arc<Pod>,
    attempt: u32,
    prepared: &Prepared,
) -> Result<String, SandboxError> {
    let uid = uid(pod);
    let _phase = ctx.timelines.begin(uid, Phase::Sandbox, None);
    let config = sandbox_request(pod, attempt, prepared).map_err(|message| SandboxError {
        message: format!("Failed to generate sandbox config for pod: {message}"),
    })?;
    let log_dir = config.log_directory.clone();
    let made = ctx
        .blocking(move || belongings::make_dir(Path::new(&log_dir), 0o755))
        .await;
    if let Some(Err(error)) = made {
        return Err(SandboxError {
            message: format!("Failed to create log directory for pod: {error}"),
        });
    }
    let request = v1::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: prepared.handler.clone(),
    };
    ctx.cri
        .run_pod_sandbox(request)
        .await
        .map_err(|error| SandboxError {
            message: format!("Failed to create pod sandbox: {error}"),
        })
}

fn sandbox_request(pod: &Pod, attempt: u32, prepared: &Prepared) -> Result<v1::PodSandboxConfig, String> {
    let extra = SandboxExtra {
        cgroup_parent: prepared.cgroup_parent.clone(),
        user_namespace: prepared.user_namespace,
        runtime_handler: prepared.handler.clone(),
        groups: Vec::new(),
    };
    sandbox_config(pod, attempt, &prepared.facts, &extra).map_err(|error| error.to_string())
}

/// Pulls what a container needs, makes it and starts it.
///
/// # Errors
/// Why it waits.
pub(super) async fn container(
    ctx: &Context,
    pod: &Arc<Pod>,
    observed: &ObservedPod,
    sandbox: &ObservedSandbox,
    start: &StartContainer,
    prepared: &Prepared,
) -> Result<(), Waiting> {
    let Some((_, spec)) = containers::find(pod, &start.name) else {
        return Err(waiting(
            ctx,
            "CreateContainerConfigError",
            format!("container {} not found", start.name),
        ));
    };
    let mut sandbox_config = sandbox_request(pod, sandbox.attempt, prepared)
        .map_err(|message| waiting(ctx, "CreateContainerConfigError", message))?;
    let image = pull(ctx, pod, &spec, prepared, &sandbox_config).await?;
    pull_volumes(ctx, pod, &spec, prepared, &sandbox_config).await?;
    let making = ctx.timelines.begin(uid(pod), Phase::Create, Some(&start.name));
    let attempt = attempt_of(ctx, start, &sandbox_config.log_directory).await;
    let config = configure(
        ctx,
        pod,
        observed,
        sandbox,
        (start, &spec, attempt),
        &image,
        prepared,
    )
    .await;
    let mut config = config.map_err(|message| {
        ctx.event(
            pod,
            Some(&start.name),
            EventType::Warning,
            "Failed",
            format!("Error: {message}"),
        );
        waiting(ctx, "CreateContainerConfigError", message)
    })?;
    // The runtime makes the log itself, in the folder of its container.
    if let Some(folder) = Path::new(&config.log_path).parent() {
        let folder = Path::new(&sandbox_config.log_directory).join(folder);
        let made = ctx.blocking(move || belongings::make_dir(&folder, 0o755)).await;
        if let Some(Err(error)) = made {
            return Err(waiting(ctx, "CreateContainerError", error.to_string()));
        }
    }
    let log = Path::new(&sandbox_config.log_directory).join(&config.log_path);
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.id.clone(),
        config: Some(std::mem::take(&mut config)),
        sandbox_config: Some(std::mem::take(&mut sandbox_config)),
    };
    let id = match ctx.cri.create_container(request).await {
        Ok(answer) => answer.container_id,
        Err(error) => {
            ctx.event(
                pod,
                Some(&start.name),
                EventType::Warning,
                "Failed",
                format!("Error: {}", error.description),
            );
            return Err(waiting(ctx, "CreateContainerError", error.description));
        }
    };
    making.end();
    ctx.event(
        pod,
        Some(&start.name),
        EventType::Normal,
        "Created",
        "Container created",
    );
    run(ctx, pod, sandbox, &start.name, &id).await?;
    link_log(ctx, pod, &start.name, &id, &log).await;
    Ok(())
}

/// Starts a container that was made, and runs its hook.
async fn run(
    ctx: &Context,
    pod: &Pod,
    sandbox: &ObservedSandbox,
    name: &str,
    id: &str,
) -> Result<(), Waiting> {
    let starting = ctx.timelines.begin(uid(pod), Phase::Start, Some(name));
    let request = v1::StartContainerRequest {
        container_id: id.to_owned(),
    };
    if let Err(error) = ctx.cri.start_container(request).await {
        ctx.event(
            pod,
            Some(name),
            EventType::Warning,
            "Failed",
            format!("Error: {}", error.description),
        );
        return Err(waiting(ctx, "RunContainerError", error.description));
    }
    starting.end();
    ctx.event(pod, Some(name), EventType::Normal, "Started", "Container started");
    let has_hook = containers::find(pod, name)
        .and_then(|(_, container)| container.lifecycle?.post_start)
        .is_some();
    if !has_hook {
        return Ok(());
    }
    let _phase = ctx.timelines.begin(uid(pod), Phase::Hook, Some(name));
    match ctx
        .hooks
        .post_start(pod, sandbox.ips.first().copied(), name, id)
        .await
    {
        Ok(()) => Ok(()),
        Err(message) => {
            ctx.event(
                pod,
                Some(name),
                EventType::Warning,
                "FailedPostStartHook",
                message.clone(),
            );
            ctx.event(
                pod,
                Some(name),
                EventType::Normal,
                "Killing",
                "FailedPostStartHook",
            );
            // One that can't be stopped is seen to run, and is ended with its pod.
            let _ = ctx.cri.stop_container(id, HOOK_GRACE).await;
            Err(waiting(ctx, "PostStartHookError", message))
        }
    }
}

/// Has the container's image there.
async fn pull(
    ctx: &Context,
    pod: &Pod,
    spec: &Container,
    prepared: &Prepared,
    sandbox: &v1::PodSandboxConfig,
) -> Result<Present, Waiting> {
    let policy = PullPolicy::of(spec.image_pull_policy.as_deref());
    let image = spec.image.clone().unwrap_or_default();
    pull_one(ctx, pod, spec, (image, policy), prepared, sandbox).await
}

/// Has the images there that the container mounts as volumes.
async fn pull_volumes(
    ctx: &Context,
    pod: &Pod,
    spec: &Container,
    prepared: &Prepared,
    sandbox: &v1::PodSandboxConfig,
) -> Result<(), Waiting> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mounted = |name: &str| {
        spec.volume_mounts
            .iter()
            .flatten()
            .any(|mount| mount.name == name)
    };
    for volume in volumes.filter(|volume| mounted(&volume.name)) {
        let Some(image) = &volume.image else { continue };
        let Some(reference) = image.reference.clone().filter(|reference| !reference.is_empty()) else {
            continue;
        };
        let policy = PullPolicy::of(image.pull_policy.as_deref());
        pull_one(ctx, pod, spec, (reference, policy), prepared, sandbox).await?;
    }
    Ok(())
}

/// Has one image there.
async fn pull_one(
    ctx: &Context,
    pod: &Pod,
    spec: &Container,
    (image, policy): (String, PullPolicy),
    prepared: &Prepared,
    sandbox: &v1::PodSandboxConfig,
) -> Result<Present, Waiting> {
    let _phase = ctx.timelines.begin(uid(pod), Phase::Pull, Some(&spec.name));
    let wanted = Wanted {
        pod_uid: uid(pod).to_owned(),
        image,
        policy,
        handler: prepared.handler.clone(),
        keyring: prepared.keyring.clone(),
        sandbox: sandbox.clone(),
    };
    let name = Some(spec.name.as_str());
    let tell = |progress: Progress| match progress {
        Progress::AlreadyPresent(image) => {
            let message = format!(
                "Container image \"{image}\" already present on machine and can be accessed by the pod"
            );
            ctx.event(pod, name, EventType::Normal, "Pulled", message);
        }
        Progress::Pulling(image) => {
            ctx.event(
                pod,
                name,
                EventType::Normal,
                "Pulling",
                format!("Pulling image \"{image}\""),
            );
        }
    };
    match ctx.puller.ensure(&wanted, || ctx.now(), tell).await {
        Ok(present) => {
            if let How::Pulled(took, waited, size) = present.how {
                let message = format!(
                    "Successfully pulled image \"{}\" in {} ({} including waiting). Image size: {size} bytes.",
                    wanted.image,
                    go_duration(took),
                    go_duration(waited)
                );
                ctx.event(pod, name, EventType::Normal, "Pulled", message);
            }
            Ok(present)
        }
        Err(missing) => Err(not_there(ctx, pod, &spec.name, &wanted.image, missing)),
    }
}

/// Tells of an image that isn't there.
fn not_there(ctx: &Context, pod: &Pod, name: &str, image: &str, missing: Missing) -> Waiting {
    let Missing {
        reason,
        message,
        again_at,
    } = missing;
    match reason {
        "ImagePullBackOff" => {
            ctx.event(
                pod,
                Some(name),
                EventType::Normal,
                "BackOff",
                format!("Back-off pulling image \"{image}\""),
            );
        }
        "InvalidImageName" => ctx.event(
            pod,
            Some(name),
            EventType::Warning,
            "InspectFailed",
            message.clone(),
        ),
        "ErrImageNeverPull" => ctx.event(
            pod,
            Some(name),
            EventType::Warning,
            "ErrImageNeverPull",
            message.clone(),
        ),
        "ImageInspectError" => ctx.event(
            pod,
            Some(name),
            EventType::Warning,
            "InspectFailed",
            message.clone(),
        ),
        _ => {
            let said = format!("Failed to pull image \"{image}\": {message}");
            ctx.event(pod, Some(name), EventType::Warning, "Failed", said);
        }
    }
    ctx.event(
        pod,
        Some(name),
        EventType::Warning,
        "Failed",
        format!("Error: {reason}"),
    );
    let until = again_at.or_else(|| pause_end(ctx));
    Waiting {
        reason: reason.to_owned(),
        message,
        until,
    }
}

/// The attempt's number: not below that of a log that is there already.
async fn attempt_of(ctx: &Context, start: &StartContainer, log_dir: &str) -> u32 {
    if start.attempt > 0 {
        return start.attempt;
    }
    let (log_dir, name) = (log_dir.to_owned(), start.name.clone());
    let by_logs = ctx
        .blocking(move || belongings::next_log_attempt(&log_dir, &name))
        .await;
    start.attempt.max(by_logs.unwrap_or(0))
}

/// A container's configuration, with everything on the node that it names made.
async fn configure(
    ctx: &Context,
    pod: &Arc<Pod>,
    observed: &ObservedPod,
    sandbox: &ObservedSandbox,
    (start, spec, attempt): (&StartContainer, &Container, u32),
    image: &Present,
    prepared: &Prepared,
) -> Result<v1::ContainerConfig, String> {
    let facts = prepared.facts.clone();
    let objects = env_objects(ctx, pod, spec)?;
    let pod_ips = addresses(pod, sandbox, &facts);
    let variables =
        environment(pod, spec, &facts, &objects, &[], &pod_ips).map_err(|error| error.to_string())?;
    for warning in &variables.warnings {
        ctx.event(
            pod,
            Some(&start.name),
            EventType::Warning,
            "InvalidEnvironmentVariableNames",
            warning.clone(),
        );
    }
    let mounts = mounts(ctx, pod, &start.name, variables.map(), prepared).await?;
    let termination_log = on_disk(ctx, pod, spec, attempt, &pod_ips, prepared).await?;
    let given = ctx.allocations.container(pod, &start.name);
    let resolved = ResolvedImage {
        reference: image.reference.clone(),
        id: image.reference.clone(),
        user: match &image.user {
            (Some(uid), _) => ImageUser::Id(*uid),
            (None, name) if name.is_empty() => ImageUser::Id(0),
            (None, name) => ImageUser::Name(name.clone()),
        },
        annotations: image.annotations.clone(),
    };
    let extra = ContainerExtra {
        mounts,
        more_mounts: given.mounts,
        termination_log,
        pod_ips,
        objects,
        device_env: given.env,
        devices: given.devices,
        cdi_devices: given.cdi,
        annotations: given.annotations,
        cpuset_cpus: given.cpus,
        cpuset_mems: given.memory_nodes,
        exclusive_cpus: given.exclusive,
        user_namespace: prepared.user_namespace,
        runtime_handler: prepared.handler.clone(),
        target_id: target(pod, observed, start),
        groups: Vec::new(),
    };
    container_config(pod, &start.name, attempt, &resolved, &facts, &extra).map_err(|error| error.to_string())
}

/// The container whose processes an ephemeral one shall see.
fn target(pod: &Pod, observed: &ObservedPod, start: &StartContainer) -> Option<String> {
    if start.kind != ContainerKind::Ephemeral {
        return None;
    }
    let ephemeral = containers::ephemeral_containers(pod)
        .iter()
        .find(|one| one.name == start.name)?;
    let target = ephemeral
        .target_container_name
        .as_deref()
        .filter(|name| !name.is_empty())?;
    observed.container(target).map(|container| container.id.clone())
}

/// The pod's addresses: with the host's network the node's.
pub(super) fn addresses(pod: &Pod, sandbox: &ObservedSandbox, facts: &NodeFacts) -> Vec<IpAddr> {
    let host = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false);
    if host {
        facts.host_ips.clone()
    } else {
        sandbox.ips.clone()
    }
}

/// What a container mounts for its volumes.
async fn mounts(
    ctx: &Context,
    pod: &Arc<Pod>,
    name: &str,
    variables: BTreeMap<String, String>,
    prepared: &Prepared,
) -> Result<BTreeMap<String, MountFrom>, String> {
    let (volumes, pod, name, handler) = (
        ctx.volumes.clone(),
        pod.clone(),
        name.to_owned(),
        prepared.handler.clone(),
    );
    let made = ctx
        .blocking(move || volumes.mounts(&pod, &name, &|key| variables.get(key).cloned()))
        .await;
    let made = made
        .ok_or("the kubelet stops")?
        .map_err(|error| error.to_string())?;
    Ok(made
        .into_iter()
        .map(|mount| (mount.container_path.clone(), from(mount, &handler)))
        .collect())
}

fn from(mount: ContainerMount, handler: &str) -> MountFrom {
    match mount.source {
        MountSource::Path(path) => MountFrom::Path {
            host_path: path.display().to_string(),
            read_only: mount.read_only,
            selinux_relabel: mount.selinux_relabel,
        },
        MountSource::Image { reference, sub_path } => MountFrom::Image {
            image: v1::ImageSpec {
                image: reference.clone(),
                user_specified_image: reference,
                runtime_handler: handler.to_owned(),
                ..Default::default()
            },
            sub_path,
        },
    }
}

/// Writes the files that a container mounts: `/etc/hosts` and the one for its termination message.
async fn on_disk(
    ctx: &Context,
    pod: &Arc<Pod>,
    spec: &Container,
    attempt: u32,
    ips: &[IpAddr],
    prepared: &Prepared,
) -> Result<Option<String>, String> {
    let facts = prepared.facts.clone();
    let (owner, root, node_file) = (
        prepared.user_namespace,
        ctx.settings.root.clone(),
        ctx.settings.hosts_file.clone(),
    );
    let (pod, name, ips) = (pod.clone(), spec.name.clone(), ips.to_vec());
    let wants = spec
        .termination_message_path
        .as_deref()
        .is_some_and(|path| !path.is_empty());
    let written = ctx.blocking(move || {
        let uid = uid(&pod);
        let node_file = std::fs::read_to_string(node_file).unwrap_or_default();
        let text =
            hosts::pod_hosts_file(&pod, &facts, &ips, &node_file).map_err(|error| error.to_string())?;
        belongings::write_hosts(&facts, uid, &text, owner).map_err(|error| error.to_string())?;
        if !wants {
            return Ok(None);
        }
        let made = belongings::termination_log(&root, uid, &name, attempt, owner);
        made.map(|path| Some(path.display().to_string()))
            .map_err(|error| error.to_string())
    });
    written
        .await
        .unwrap_or_else(|| Err("the kubelet stops".to_owned()))
}

/// The objects that a container's variables come from.
fn env_objects(ctx: &Context, pod: &Pod, spec: &Container) -> Result<EnvObjects, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let store = ctx.objects();
    let mut objects = EnvObjects::default();
    let sources = spec
        .env
        .iter()
        .flatten()
        .filter_map(|variable| variable.value_from.as_ref());
    let of_keys = sources
        .clone()
        .filter_map(|from| from.config_map_key_ref.as_ref().map(|key| key.name.as_str()));
    let whole = spec.env_from.iter().flatten();
    let of_whole = whole
        .clone()
        .filter_map(|from| from.config_map_ref.as_ref().map(|map| map.name.as_str()));
    for name in of_keys.chain(of_whole) {
        if let Some(map) = store.config_map(namespace, name) {
            objects
                .config_maps
                .insert(name.to_owned(), map.data.clone().unwrap_or_default());
        }
    }
    let of_keys = sources.filter_map(|from| from.secret_key_ref.as_ref().map(|key| key.name.as_str()));
    let of_whole = whole.filter_map(|from| from.secret_ref.as_ref().map(|secret| secret.name.as_str()));
    for name in of_keys.chain(of_whole) {
        if let Some(secret) = store.secret(namespace, name) {
            let data = secret
                .data
                .iter()
                .flatten()
                .map(|(key, bytes)| (key.clone(), bytes.0.clone()));
            objects.secrets.insert(name.to_owned(), data.collect());
        }
    }
    Ok(objects)
}

/// Links a log where older collectors look for it; only told of where that fails.
async fn link_log(ctx: &Context, pod: &Pod, name: &str, id: &str, log: &Path) {
    let Some(links) = ctx.settings.container_logs.clone() else {
        return;
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let link = logs::legacy_link(
        &text(&pod.metadata.name),
        &text(&pod.metadata.namespace),
        name,
        id,
    );
    let log = log.to_owned();
    if let Some(Err(error)) = ctx
        .blocking(move || belongings::link_log(&links, &link, &log))
        .await
    {
        tracing::warn!(%error, "failed to link a container's log");
    }
}

fn waiting(ctx: &Context, reason: &str, message: String) -> Waiting {
    Waiting {
        reason: reason.to_owned(),
        message,
        until: pause_end(ctx),
    }
}

fn pause_end(ctx: &Context) -> Option<jiff::Timestamp> {
    ctx.now().checked_add(PAUSE).ok()
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// A time as Go prints it, to the millisecond: `1.5s`, `35ms`.
fn go_duration(time: Duration) -> String {
    let millis = time.as_millis();
    if millis < 1_000 {
        return format!("{millis}ms");
    }
    let text = format!("{}.{:03}", millis / 1_000, millis % 1_000);
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}
