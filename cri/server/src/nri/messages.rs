//! Pods and containers as plugins are shown them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cri_api::v1;
use cri_nri::v1alpha1 as nri;
use cri_shim_protocol::NamespaceKind;
use oci_spec::runtime::{Hook, Linux, LinuxDevice, LinuxSeccomp, Process, Spec};
use serde::Serialize;

use super::adjust::scheduler_flag;
use super::limits;
use crate::node::names_of;
use crate::paths::Paths;
use crate::store::{Cause, ContainerPhase, ContainerRecord, SandboxRecord};

/// A pod; `ips` where the record doesn't say them yet.
pub(super) fn pod(record: &SandboxRecord, paths: &Paths, ips: Option<&[IpAddr]>) -> nri::PodSandbox {
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let limits = &record.limits;
    let owned = record.namespaces;
    let namespaces = [
        (owned.user, "user", NamespaceKind::User),
        (owned.network, "network", NamespaceKind::Network),
        (owned.ipc, "ipc", NamespaceKind::Ipc),
        (owned.uts, "uts", NamespaceKind::Uts),
        (owned.pid, "pid", NamespaceKind::Pid),
    ];
    let linux = nri::LinuxPodSandbox {
        pod_overhead: limits.overhead.as_ref().map(limits::from_cri),
        pod_resources: limits.resources.as_ref().map(limits::from_cri),
        cgroup_parent: record.cgroup_parent.name().to_owned(),
        namespaces: namespaces
            .into_iter()
            .filter(|(own, _, _)| *own)
            .map(|(_, kind, pinned)| nri::LinuxNamespace {
                r#type: kind.to_owned(),
                path: paths.namespace(record.id.as_str(), pinned).display().to_string(),
            })
            .collect(),
        ..nri::LinuxPodSandbox::default()
    };
    nri::PodSandbox {
        id: record.id.to_string(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: record.config.labels.clone().into_iter().collect(),
        annotations: record.config.annotations.clone().into_iter().collect(),
        runtime_handler: record.runtime_handler.clone(),
        linux: Some(linux),
        // There is no pause process.
        pid: 0,
        ips: ips
            .unwrap_or(&record.ips)
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

/// A container, with what its specification says, where that is known.
pub(super) fn container(
    record: &ContainerRecord,
    spec: Option<&Spec>,
    image: Option<&cri_images::Image>,
) -> nri::Container {
    let config = &record.config;
    let mut annotations: BTreeMap<_, _> = config.annotations.clone().into_iter().collect();
    let written = spec.and_then(|spec| spec.annotations().clone());
    annotations.extend(written.into_iter().flatten());
    let process = spec.and_then(|spec| spec.process().as_ref());
    let mounts = spec.and_then(|spec| spec.mounts().as_ref());
    let mut container = nri::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox.to_string(),
        name: config.metadata.clone().unwrap_or_default().name,
        labels: config.labels.clone().into_iter().collect(),
        annotations,
        args: process.and_then(|p| p.args().clone()).unwrap_or_default(),
        env: process.and_then(|p| p.env().clone()).unwrap_or_default(),
        mounts: mounts.into_iter().flatten().map(mount).collect(),
        hooks: spec.and_then(|spec| spec.hooks().as_ref()).map(hooks),
        linux: Some(linux(record, spec)),
        rlimits: process.map(rlimits).unwrap_or_default(),
        created_at: record.created_at,
        cdi_devices: Vec::new(),
        user: Some(user(record, process)),
        image: Some(nri::Image {
            name: config.image.clone().unwrap_or_default().image,
            digest: image
                .and_then(|image| names_of(image).digest)
                .and_then(|name| name.split_once('@').map(|(_, digest)| digest.to_owned()))
                .unwrap_or_default(),
            config_digest: record.image_id.clone(),
        }),
        ..nri::Container::default()
    };
    set_state(&mut container, &record.phase);
    container
}

fn set_state(container: &mut nri::Container, phase: &ContainerPhase) {
    use nri::ContainerState as State;
    let number = |pid: i32| u32::try_from(pid).unwrap_or(0);
    let state = match phase {
        ContainerPhase::Creating => State::ContainerUnknown,
        ContainerPhase::Created { pid } => {
            container.pid = number(*pid);
            State::ContainerCreated
        }
        ContainerPhase::Running { pid, started_at } => {
            container.pid = number(*pid);
            container.started_at = *started_at;
            State::ContainerRunning
        }
        ContainerPhase::Exited(ended) => {
            container.started_at = ended.started_at;
            container.finished_at = ended.finished_at;
            container.exit_code = ended.code;
            (container.status_reason, container.status_message) = match &ended.cause {
                Cause::Exit => (String::new(), String::new()),
                Cause::OomKilled => ("OOMKilled".to_owned(), String::new()),
                Cause::StartError(why) => ("StartError".to_owned(), why.clone()),
                Cause::Lost(why) => ("Unknown".to_owned(), why.clone()),
            };
            State::ContainerStopped
        }
    };
    container.state = state as i32;
}

fn user(record: &ContainerRecord, process: Option<&Process>) -> nri::User {
    match process.map(Process::user) {
        Some(user) => nri::User {
            uid: user.uid(),
            gid: user.gid(),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
        },
        None => nri::User {
            uid: record.user.uid,
            gid: record.user.gid,
            additional_gids: record.user.groups.clone(),
        },
    }
}

fn linux(record: &ContainerRecord, spec: Option<&Spec>) -> nri::LinuxContainer {
    let config = record.config.linux.as_ref();
    let written = spec.and_then(|spec| spec.linux().as_ref());
    let process = spec.and_then(|spec| spec.process().as_ref());
    let mut resources = written
        .and_then(|linux| linux.resources().as_ref())
        .map(limits::from_oci)
        .unwrap_or_default();
    // What was updated since stands in the record.
    if let Some(now) = config.and_then(|linux| linux.resources.as_ref()) {
        limits::refresh(&mut resources, &limits::from_cri(now));
    }
    let profile = config
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.seccomp.as_ref());
    nri::LinuxContainer {
        namespaces: written.map(namespaces).unwrap_or_default(),
        devices: written
            .and_then(|linux| linux.devices().as_ref())
            .into_iter()
            .flatten()
            .map(device)
            .collect(),
        resources: Some(resources),
        oom_score_adj: process
            .and_then(|p| p.oom_score_adj())
            .map(|score| nri::OptionalInt { value: score.into() }),
        cgroups_path: record.cgroup.clone(),
        io_priority: process.and_then(Process::io_priority_message),
        seccomp_profile: profile.map(|profile| nri::SecurityProfile {
            profile_type: profile.profile_type,
            localhost_ref: profile.localhost_ref.clone(),
        }),
        seccomp_policy: written.and_then(|linux| linux.seccomp().as_ref()).map(seccomp),
        sysctl: written
            .and_then(|linux| linux.sysctl().clone())
            .into_iter()
            .flatten()
            .collect(),
        scheduler: process.and_then(Process::scheduler_message),
        ..nri::LinuxContainer::default()
    }
}

fn mount(mount: &oci_spec::runtime::Mount) -> nri::Mount {
    nri::Mount {
        destination: mount.destination().display().to_string(),
        r#type: mount.typ().clone().unwrap_or_default(),
        source: mount
            .source()
            .as_ref()
            .map(|source| source.display().to_string())
            .unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
    }
}

fn hooks(hooks: &oci_spec::runtime::Hooks) -> nri::Hooks {
    let list = |hooks: &Option<Vec<Hook>>| hooks.iter().flatten().map(hook).collect();
    #[allow(deprecated, reason = "plugins see what the specification holds")]
    let prestart = list(hooks.prestart());
    nri::Hooks {
        prestart,
        create_runtime: list(hooks.create_runtime()),
        create_container: list(hooks.create_container()),
        start_container: list(hooks.start_container()),
        poststart: list(hooks.poststart()),
        poststop: list(hooks.poststop()),
    }
}

fn hook(hook: &Hook) -> nri::Hook {
    nri::Hook {
        path: hook.path().display().to_string(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: hook.timeout().map(|value| nri::OptionalInt { value }),
    }
}

fn rlimits(process: &Process) -> Vec<nri::PosixRlimit> {
    let limits = process.rlimits().iter().flatten();
    limits
        .map(|limit| nri::PosixRlimit {
            r#type: name_of(&limit.typ()),
            hard: limit.hard(),
            soft: limit.soft(),
        })
        .collect()
}

fn namespaces(linux: &Linux) -> Vec<nri::LinuxNamespace> {
    let namespaces = linux.namespaces().iter().flatten();
    namespaces
        .map(|namespace| nri::LinuxNamespace {
            r#type: name_of(&namespace.typ()),
            path: namespace
                .path()
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
        })
        .collect()
}

fn device(device: &LinuxDevice) -> nri::LinuxDevice {
    let number = |value| nri::OptionalUInt32 { value };
    nri::LinuxDevice {
        path: device.path().display().to_string(),
        r#type: name_of(&device.typ()),
        major: device.major(),
        minor: device.minor(),
        file_mode: device.file_mode().map(|value| nri::OptionalFileMode { value }),
        uid: device.uid().map(number),
        gid: device.gid().map(number),
    }
}

fn seccomp(policy: &LinuxSeccomp) -> nri::LinuxSeccomp {
    let number = |value| nri::OptionalUInt32 { value };
    let path = policy.listener_path().as_ref();
    nri::LinuxSeccomp {
        default_action: name_of(&policy.default_action()),
        default_errno: policy.default_errno_ret().map(number),
        architectures: policy.architectures().iter().flatten().map(name_of).collect(),
        flags: policy.flags().iter().flatten().map(name_of).collect(),
        listener_path: path.map(|path| path.display().to_string()).unwrap_or_default(),
        listener_metadata: policy.listener_metadata().clone().unwrap_or_default(),
        syscalls: policy
            .syscalls()
            .iter()
            .flatten()
            .map(|syscall| nri::LinuxSyscall {
                names: syscall.names().clone(),
                action: name_of(&syscall.action()),
                errno_ret: syscall.errno_ret().map(number),
                args: syscall
                    .args()
                    .iter()
                    .flatten()
                    .map(|arg| nri::LinuxSeccompArg {
                        index: u32::try_from(arg.index()).unwrap_or(u32::MAX),
                        value: arg.value(),
                        value_two: arg.value_two().unwrap_or(0),
                        op: name_of(&arg.op()),
                    })
                    .collect(),
            })
            .collect(),
    }
}

/// How the specification writes a variant.
pub(super) fn name_of(variant: &impl Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// What only plugins want to know of a process.
trait ProcessMessages {
    fn io_priority_message(&self) -> Option<nri::LinuxIoPriority>;
    fn scheduler_message(&self) -> Option<nri::LinuxScheduler>;
}

impl ProcessMessages for Process {
    fn io_priority_message(&self) -> Option<nri::LinuxIoPriority> {
        let priority = self.io_priority().as_ref()?;
        let class = nri::IoPrioClass::from_str_name(&name_of(&priority.class()))?;
        Some(nri::LinuxIoPriority {
            class: class as i32,
            priority: i32::try_from(priority.priority()).unwrap_or(0),
        })
    }

    fn scheduler_message(&self) -> Option<nri::LinuxScheduler> {
        let scheduler = self.scheduler().as_ref()?;
        let policy = nri::LinuxSchedulerPolicy::from_str_name(&name_of(scheduler.policy()))?;
        let flags: Vec<_> = scheduler.flags().iter().flatten().map(name_of).collect();
        Some(nri::LinuxScheduler {
            policy: policy as i32,
            nice: scheduler.nice().unwrap_or(0),
            priority: scheduler.priority().unwrap_or(0),
            flags: (0..=nri::LinuxSchedulerFlag::SchedFlagUtilClampMax as i32)
                .filter_map(|number| nri::LinuxSchedulerFlag::try_from(number).ok())
                .filter(|flag| flags.contains(&scheduler_flag(*flag)))
                .map(|flag| flag as i32)
                .collect(),
            runtime: scheduler.runtime().unwrap_or(0),
            deadline: scheduler.deadline().unwrap_or(0),
            period: scheduler.period().unwrap_or(0),
        })
    }
}

/// A pod that is no longer known.
pub(super) fn unknown_pod(id: &str) -> nri::PodSandbox {
    nri::PodSandbox {
        id: id.to_owned(),
        ..nri::PodSandbox::default()
    }
}

/// The CRI's limits of a pod, as plugins are shown them.
pub(super) fn pod_limits(limits: Option<&v1::LinuxContainerResources>) -> Option<nri::LinuxResources> {
    limits.map(limits::from_cri)
}
