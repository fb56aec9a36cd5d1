//! CreateContainer, step by step.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri_api::ContainerId;
use cri_api::v1::{self, ContainerConfig, ContainerEventType, NamespaceMode};
use cri_images::{IdMapping, Image, SnapshotOptions, mount_overlay};
use cri_nri::v1alpha1::Event;
use cri_shim_protocol::{Create, NamespaceKind, Runtime};
use oci_spec::runtime::Spec;

use super::plan;
use super::volumes;
use super::{Operation, Side, Step, container_name};
use crate::apparmor::AppArmor;
use crate::cgroup_names;
use crate::errors::CallError;
use crate::node::{Node, blocking, names_of};
use crate::spec::{
    self, HostFacts, MountSource, NamespacePaths, ResolvedUser, SandboxFiles, SeccompSource, SpecDefaults,
    SpecInput,
};
use crate::store::{Container, ContainerPhase, ContainerRecord, Sandbox, SandboxPhase, User};

/// A longer log line is split: the same bound as other CRI servers have, so that log readers' buffers fit.
const MAX_LOG_LINE: u32 = 16384;

/// All that is known before anything is made.
struct Plan {
    config: Arc<ContainerConfig>,
    image: Image,
    log_path: Option<PathBuf>,
    snapshot: SnapshotOptions,
    /// The images to mount as volumes, by the index of the mount.
    image_mounts: BTreeMap<usize, Image>,
    namespaces: NamespacePaths,
    runtime: Runtime,
    defaults: SpecDefaults,
}

impl Node {
    /// Makes a container whose init waits; returns it once it is created.
    pub(crate) async fn create_container(
        self: Arc<Self>,
        sandbox_id: String,
        config: ContainerConfig,
    ) -> Result<Arc<Container>, CallError> {
        let sandbox = self.store.find_sandbox(&sandbox_id)?;
        let _shared = sandbox.gate.read().await;
        if sandbox.record().phase != SandboxPhase::Ready {
            return Err(CallError::State(format!("sandbox {} is not ready", sandbox.id)));
        }
        self.live_shim(&sandbox)?;
        let plan = self.plan_container(&sandbox, config)?;
        let container = self
            .store
            .create_container(self.new_container(&sandbox, &plan)?)?;
        self.kill.reach(Step::ContainerRecord, Side::Before);
        self.kill.reach(Step::ContainerRecord, Side::After);
        match self.build_container(&sandbox, &container, plan).await {
            Ok(()) => Ok(container),
            Err(error) => {
                self.undo_container(&container).await;
                Err(error)
            }
        }
    }

    fn plan_container(&self, sandbox: &Sandbox, config: ContainerConfig) -> Result<Plan, CallError> {
        let invalid = |text: &str| Err(CallError::Invalid(text.to_owned()));
        let record = sandbox.record();
        match &config.metadata {
            None => return invalid("the container configuration has no metadata"),
            Some(metadata) if metadata.name.is_empty() => {
                return invalid("the container's metadata.name is empty");
            }
            Some(_) => {}
        }
        let wanted = config.image.clone().unwrap_or_default().image;
        if wanted.is_empty() {
            return invalid("the container configuration names no image");
        }
        let image = self.find_image(&wanted)?;
        let mut image_mounts = BTreeMap::new();
        for (n, mount) in config.mounts.iter().enumerate() {
            if let Some(spec) = mount.image.as_ref().filter(|spec| !spec.image.is_empty()) {
                image_mounts.insert(n, self.find_image(&spec.image)?);
            }
        }
        let log_path =
            plan::log_path(&record.config, &config).map_err(|e| CallError::Invalid(e.to_string()))?;
        let settings = self.config();
        let runtime = settings.oci_runtime(&record.runtime_handler).ok_or_else(|| {
            let name = &record.runtime_handler;
            CallError::State(format!(
                "runtime handler `{name}` is no longer in the configuration"
            ))
        })?;
        Ok(Plan {
            namespaces: self.namespace_paths(sandbox, &config)?,
            snapshot: snapshot_options(&record.config),
            config: Arc::new(config),
            image,
            log_path,
            image_mounts,
            runtime,
            defaults: settings
                .spec_defaults()
                .map_err(|e| CallError::State(e.to_string()))?,
        })
    }

    fn find_image(&self, name: &str) -> Result<Image, CallError> {
        self.images.find(name).ok_or_else(|| {
            CallError::NotFound(format!("there is no image `{name}` on this node; pull it first"))
        })
    }

    /// The pod's pinned namespaces, and for mode `TARGET` that of the container that is named.
    fn namespace_paths(
        &self,
        sandbox: &Sandbox,
        config: &ContainerConfig,
    ) -> Result<NamespacePaths, CallError> {
        let id = sandbox.id.as_str();
        let record = sandbox.record();
        let pinned = |own: bool, kind| own.then(|| self.paths.namespace(id, kind));
        let owned = record.namespaces;
        let mut paths = NamespacePaths {
            network: pinned(owned.network, NamespaceKind::Network),
            ipc: pinned(owned.ipc, NamespaceKind::Ipc),
            uts: pinned(owned.uts, NamespaceKind::Uts),
            pid: pinned(owned.pid, NamespaceKind::Pid),
            user: pinned(owned.user, NamespaceKind::User),
        };
        if spec::pid_mode(&record.config, config)? == NamespaceMode::Target {
            let target = config
                .linux
                .as_ref()
                .and_then(|l| l.security_context.as_ref())
                .and_then(|s| s.namespace_options.as_ref())
                .map(|o| o.target_id.clone())
                .unwrap_or_default();
            let target = self.store.find_container(&target)?;
            if target.sandbox != sandbox.id {
                let text = format!("target container {} is in another sandbox", target.id);
                return Err(CallError::Invalid(text));
            }
            let ContainerPhase::Running { pid, .. } = target.record().phase else {
                return Err(CallError::State(format!(
                    "target container {} is not running",
                    target.id
                )));
            };
            paths.pid = Some(format!("/proc/{pid}/ns/pid").into());
        }
        Ok(paths)
    }

    fn new_container(&self, sandbox: &Sandbox, plan: &Plan) -> Result<ContainerRecord, CallError> {
        let bytes = self
            .clock
            .draw()
            .map_err(CallError::file("read", "/dev/urandom".as_ref()))?;
        let id = ContainerId::from_bytes(bytes);
        let pod = sandbox.record();
        let metadata = plan.config.metadata.clone().unwrap_or_default();
        let mode = spec::pid_mode(&pod.config, &plan.config)?;
        let mut image_mounts = BTreeMap::new();
        for (n, image) in &plan.image_mounts {
            if let Some(mount) = plan.config.mounts.get(*n) {
                // What PullImage answered, which is what the kubelet puts into the pod's status.
                image_mounts.insert(mount.container_path.clone(), image.id.clone());
            }
        }
        Ok(ContainerRecord {
            name: container_name(&metadata, &pod.config.metadata.clone().unwrap_or_default()),
            cgroup: cgroup_names::container(pod.cgroup_parent.name(), id.as_str()),
            id,
            sandbox: sandbox.id.clone(),
            config: plan.config.clone(),
            created_at: self.clock.now(),
            image_id: plan.image.id.clone(),
            image_ref: names_of(&plan.image)
                .digest
                .unwrap_or_else(|| plan.image.id.clone()),
            log_path: plan.log_path.clone(),
            stop_signal: spec::stop_signal(&plan.config, &plan.image.config)?,
            user: User::default(),
            own_pid_namespace: mode == NamespaceMode::Container,
            image_mounts,
            phase: ContainerPhase::Creating,
        })
    }

    async fn build_container(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        container: &Arc<Container>,
        plan: Plan,
    ) -> Result<(), CallError> {
        let entry = &container.entry;
        let plan = Arc::new(plan);
        let id = container.id.as_str();
        let snapshot = self
            .step(entry, Step::ContainerSnapshot, async {
                let options = plan.snapshot.clone();
                Ok(self.images.prepare(id, &plan.image.id, options).await?)
            })
            .await?;
        let rootfs = self.paths.rootfs(id);
        self.step(entry, Step::ContainerRootfs, async {
            let rootfs = rootfs.clone();
            let bundle = self.paths.bundle(id);
            blocking(move || {
                make_private(&bundle)?;
                fs::create_dir_all(&rootfs).map_err(CallError::file("make the folder", &rootfs))?;
                Ok(mount_overlay(&snapshot, &rootfs, false)?)
            })
            .await
        })
        .await?;
        let mut images = BTreeMap::new();
        if !plan.image_mounts.is_empty() {
            images = self
                .step(
                    entry,
                    Step::ContainerImageMounts,
                    self.mount_images(container, &plan),
                )
                .await?;
        }
        let user = self
            .step(entry, Step::ContainerBundle, async {
                let bundle = self.bundle(sandbox, container, &plan, images);
                if self.plugins_listen(container).await {
                    return Box::pin(self.write_adjusted(sandbox, container, bundle)).await;
                }
                blocking(move || bundle.make().and_then(|(spec, user)| bundle.write(&spec, user))).await
            })
            .await?;
        // Its end, however soon, is heard only after it is recorded as created.
        let starting = container.starting.lock().await;
        let pid = self
            .step(
                entry,
                Step::ContainerInit,
                self.create_init(sandbox, container, &plan),
            )
            .await?;
        self.quick_step(entry, Step::ContainerCreated, || {
            entry.update(|r| {
                r.user = User {
                    uid: user.uid,
                    gid: user.gid,
                    groups: user.additional_gids,
                };
                r.phase = ContainerPhase::Created { pid };
            })?;
            Ok(())
        })?;
        drop(starting);
        // A shim that died meanwhile was heard of before there was a container to give up.
        self.live_shim(sandbox)?;
        // Unsettled, it would be undone at the next start although its caller was told of it.
        entry.settle(Operation::Create)?;
        Box::pin(self.plugins_waited(container)).await;
        self.announce(id, ContainerEventType::ContainerCreatedEvent, sandbox);
        self.plugins_hear(container, Event::PostCreateContainer).await;
        Ok(())
    }

    /// Mounts the images that are volumes; the root of each, by the index of its mount.
    async fn mount_images(
        &self,
        container: &Container,
        plan: &Plan,
    ) -> Result<BTreeMap<usize, PathBuf>, CallError> {
        let id = container.id.as_str();
        let mut roots = BTreeMap::new();
        for (n, image) in &plan.image_mounts {
            let options = SnapshotOptions {
                read_only: true,
                ..plan.snapshot.clone()
            };
            let snapshot = self
                .images
                .prepare(&format!("{id}-{n}"), &image.id, options)
                .await?;
            let target = self.paths.image_mounts(id).join(n.to_string());
            roots.insert(*n, target.clone());
            blocking(move || {
                fs::create_dir_all(&target).map_err(CallError::file("make the folder", &target))?;
                Ok(mount_overlay(&snapshot, &target, true)?)
            })
            .await?;
        }
        Ok(roots)
    }

    fn bundle(
        &self,
        sandbox: &Sandbox,
        container: &Container,
        plan: &Arc<Plan>,
        images: BTreeMap<usize, PathBuf>,
    ) -> Bundle {
        let pod = sandbox.id.as_str();
        let id = container.id.as_str();
        let record = sandbox.record();
        Bundle {
            sandbox: record.config.clone(),
            sandbox_id: pod.to_owned(),
            container_id: id.to_owned(),
            folder: self.paths.bundle(id),
            rootfs: self.paths.rootfs(id),
            volumes: container.entry.folder().join("volumes"),
            cgroup: container.record().cgroup.clone(),
            log_path: plan.log_path.clone(),
            files: SandboxFiles {
                hostname: self.paths.hostname(pod),
                resolv_conf: self.paths.resolv_conf(pod),
                shm: if record.namespaces.ipc {
                    self.paths.shm(pod)
                } else {
                    "/dev/shm".into()
                },
                hosts: Some(self.paths.hosts(pod)),
            },
            images,
            host: self.host.clone(),
            apparmor: self.apparmor.clone(),
            plan: plan.clone(),
        }
    }

    /// Writes the bundle as plugins want it.
    async fn write_adjusted(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        container: &Container,
        bundle: Bundle,
    ) -> Result<ResolvedUser, CallError> {
        let made = blocking(move || bundle.make().map(|(spec, user)| (bundle, spec, user)));
        let (bundle, spec, user) = made.await?;
        let spec = Box::pin(self.plugins_create(sandbox, container, spec)).await?;
        blocking(move || bundle.write(&spec, user)).await
    }

    async fn create_init(
        &self,
        sandbox: &Sandbox,
        container: &Container,
        plan: &Plan,
    ) -> Result<i32, CallError> {
        let id = container.id.as_str();
        let shim = self.live_shim(sandbox)?;
        let request = Create {
            container: id.to_owned(),
            bundle: self.paths.bundle(id),
            runtime_root: self.paths.oci(),
            runtime: plan.runtime.clone(),
            terminal: plan.config.tty,
            stdin: plan.config.stdin,
            stdin_once: plan.config.stdin_once,
            log_path: plan.log_path.clone(),
            max_log_line: self.config().containers.max_log_line.unwrap_or(MAX_LOG_LINE),
            kill_all_at_exit: !container.record().own_pid_namespace,
        };
        shim.create(request)
            .await
            .map_err(CallError::shim("create the container"))
    }
}

/// What `config.json` is made of; written where blocking is fine.
struct Bundle {
    sandbox: Arc<v1::PodSandboxConfig>,
    sandbox_id: String,
    container_id: String,
    folder: PathBuf,
    rootfs: PathBuf,
    volumes: PathBuf,
    cgroup: String,
    log_path: Option<PathBuf>,
    files: SandboxFiles,
    images: BTreeMap<usize, PathBuf>,
    host: HostFacts,
    apparmor: Arc<AppArmor>,
    plan: Arc<Plan>,
}

impl Bundle {
    /// The specification as the CRI wants it.
    fn make(&self) -> Result<(Spec, ResolvedUser), CallError> {
        let config = &self.plan.config;
        let image = &self.plan.image.config;
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let privileged = security.is_some_and(|s| s.privileged);
        let image_user = image.config().as_ref().and_then(|c| c.user().clone());
        let user = spec::resolve_user(&self.rootfs, &image_user.unwrap_or_default(), security)?;
        let hosts_devices = privileged && !self.plan.defaults.privileged_without_host_devices;
        if let Some(folder) = self.log_path.as_deref().and_then(Path::parent) {
            fs::create_dir_all(folder).map_err(CallError::file("make the folder", folder))?;
        }
        let input = SpecInput {
            sandbox_id: self.sandbox_id.clone(),
            container_id: self.container_id.clone(),
            sandbox: &self.sandbox,
            container: config,
            image,
            user: user.clone(),
            rootfs: self.rootfs.clone(),
            namespaces: self.plan.namespaces.clone(),
            cgroups_path: self.cgroup.clone(),
            files: self.files.clone(),
            mount_sources: self.mount_sources()?,
            image_volumes: volumes::make(&self.rootfs, &self.volumes, image)?,
            devices: spec::resolve_devices(&config.devices, hosts_devices)?,
            seccomp_profile: self.seccomp_profile(security)?,
            defaults: &self.plan.defaults,
            host: &self.host,
        };
        let mut spec = spec::container_spec(&input)?;
        self.provide_apparmor(&mut spec)?;
        Ok((spec, user))
    }

    /// Without the means for the default profile, a container runs without one.
    fn provide_apparmor(&self, spec: &mut Spec) -> Result<(), CallError> {
        let Some(process) = spec.process_mut() else {
            return Ok(());
        };
        if let Some(profile) = process.apparmor_profile().clone()
            && !self.apparmor.provide(&profile)?
        {
            process.set_apparmor_profile(None);
        }
        Ok(())
    }

    fn write(&self, spec: &Spec, user: ResolvedUser) -> Result<ResolvedUser, CallError> {
        let path = self.folder.join("config.json");
        let bytes = serde_json::to_vec(spec)
            .map_err(std::io::Error::from)
            .map_err(CallError::file("encode", &path))?;
        crate::store::record::write_private(&path, &bytes).map_err(CallError::file("write", &path))?;
        Ok(user)
    }

    fn mount_sources(&self) -> Result<Vec<MountSource>, CallError> {
        let source = |(n, mount): (usize, &v1::Mount)| match self.images.get(&n) {
            None => Ok(MountSource::of_host_path(Path::new(&mount.host_path))?),
            Some(root) if mount.image_sub_path.is_empty() => Ok(MountSource::private(root.clone())),
            Some(root) => Ok(MountSource::private(spec::resolve_in_image(
                root,
                &mount.image_sub_path,
            )?)),
        };
        self.plan.config.mounts.iter().enumerate().map(source).collect()
    }

    fn seccomp_profile(
        &self,
        security: Option<&v1::LinuxContainerSecurityContext>,
    ) -> Result<Option<String>, CallError> {
        match spec::seccomp_source(security, self.plan.defaults.unset_seccomp)? {
            SeccompSource::Unconfined | SeccompSource::RuntimeDefault => Ok(None),
            SeccompSource::File(path) => match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) => Err(CallError::Invalid(format!(
                    "failed to read seccomp profile `{}`: {error}",
                    path.display()
                ))),
            },
        }
    }
}

/// A container's root and configuration are nobody's business but root's; a user namespace's root must get through.
fn make_private(folder: &Path) -> Result<(), CallError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(folder)
        .map_err(CallError::file("make the folder", folder))
}

fn snapshot_options(sandbox: &v1::PodSandboxConfig) -> SnapshotOptions {
    let user = sandbox
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|s| s.namespace_options.as_ref())
        .and_then(|o| o.userns_options.as_ref())
        .filter(|u| u.mode() == NamespaceMode::Pod);
    let map = |ids: &[v1::IdMapping]| {
        ids.iter()
            .map(|m| IdMapping {
                container_id: m.container_id,
                host_id: m.host_id,
                length: m.length,
            })
            .collect()
    };
    SnapshotOptions {
        uid_map: user.map(|u| map(&u.uids)).unwrap_or_default(),
        gid_map: user.map(|u| map(&u.gids)).unwrap_or_default(),
        read_only: false,
    }
}
