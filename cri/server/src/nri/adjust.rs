//! What plugins want of a new container, laid over its OCI specification. Pure.
//!
//! What no container of this runtime can have is refused by name rather than dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cri_nri::merge::removal;
use cri_nri::v1alpha1 as nri;
use oci_spec::OciSpecError;
use oci_spec::runtime::{Hook, Linux, LinuxDevice, LinuxDeviceCgroup, Mount, PosixRlimit, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::limits;
use super::messages::name_of;
use crate::spec::{HostFacts, Peering, SpecError, destination};

/// Why plugins don't get what they want.
#[derive(Debug, thiserror::Error)]
pub enum AdjustError {
    /// Nobody gets it.
    #[error("NRI plugins ask for {0}, which this runtime does not support")]
    Unsupported(String),
    /// It makes no sense.
    #[error("NRI plugins ask for {what} that is not possible: {problem}")]
    Invalid {
        /// For what.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// It isn't free.
    #[error(
        "NRI plugin `{plugin}` asks for cgroup `{path}`, but {problem}; have it choose another one, that is new and the \
         container's alone, or none"
    )]
    Cgroup {
        /// `index-name`.
        plugin: String,
        /// The cgroup.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// As the CRI's own limits are refused.
    #[error("NRI plugins ask for limits that are not possible")]
    Limits(#[from] SpecError),
    /// The specification has no place for it.
    #[error("NRI plugins ask for what a specification can't say")]
    Build(#[from] OciSpecError),
}

impl AdjustError {
    /// For `map_err` where a part of a specification is read from its words.
    pub(super) fn reading(what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |error| Self::Invalid {
            what,
            problem: error.to_string(),
        }
    }
}

fn invalid(what: &'static str, problem: String) -> AdjustError {
    AdjustError::Invalid { what, problem }
}

/// What an adjustment is held against.
pub(super) struct Ground<'a> {
    /// What this machine can do.
    pub(super) host: &'a HostFacts,
    /// How the host's mount that holds a path propagates.
    pub(super) peering: &'a dyn Fn(&Path) -> Peering,
}

/// Lays the wish over the specification.
pub(super) fn adjust(
    spec: &mut Spec,
    wish: &nri::ContainerAdjustment,
    ground: &Ground<'_>,
) -> Result<(), AdjustError> {
    if let Some(device) = wish.cdi_devices.first() {
        return Err(AdjustError::Unsupported(format!("CDI device `{}`", device.name)));
    }
    texts(spec.annotations_mut().get_or_insert_default(), &wish.annotations);
    if let Some(hooks) = &wish.hooks {
        add_hooks(spec, hooks)?;
    }
    let linux = wish.linux.clone().unwrap_or_default();
    if let Some(process) = spec.process_mut() {
        adjust_process(process, wish, &linux, ground.host)?;
    }
    if let Some(to) = spec.linux_mut() {
        adjust_linux(to, &linux, ground.host)?;
    }
    adjust_mounts(spec, &wish.mounts, ground)
}

fn texts(to: &mut std::collections::HashMap<String, String>, wish: &BTreeMap<String, String>) {
    for (key, value) in wish {
        match removal(key) {
            Some(key) => to.remove(key),
            None => to.insert(key.clone(), value.clone()),
        };
    }
}

fn add_hooks(spec: &mut Spec, wish: &nri::Hooks) -> Result<(), AdjustError> {
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let list = |old: &Option<Vec<Hook>>, wish: &[nri::Hook]| -> Result<Option<Vec<Hook>>, AdjustError> {
        let mut all = old.clone().unwrap_or_default();
        for hook in wish {
            all.push(oci_hook(hook)?);
        }
        Ok((!all.is_empty()).then_some(all))
    };
    #[allow(
        deprecated,
        reason = "plugins may still want them, and the runtime still runs them"
    )]
    let prestart = list(hooks.prestart(), &wish.prestart)?;
    let create_runtime = list(hooks.create_runtime(), &wish.create_runtime)?;
    let create_container = list(hooks.create_container(), &wish.create_container)?;
    let start_container = list(hooks.start_container(), &wish.start_container)?;
    let poststart = list(hooks.poststart(), &wish.poststart)?;
    let poststop = list(hooks.poststop(), &wish.poststop)?;
    #[allow(deprecated, reason = "see above")]
    hooks.set_prestart(prestart);
    hooks
        .set_create_runtime(create_runtime)
        .set_create_container(create_container)
        .set_start_container(start_container)
        .set_poststart(poststart)
        .set_poststop(poststop);
    spec.set_hooks(Some(hooks));
    Ok(())
}

fn oci_hook(hook: &nri::Hook) -> Result<Hook, AdjustError> {
    if !hook.path.starts_with('/') {
        return Err(invalid("a hook", format!("path `{}` is not absolute", hook.path)));
    }
    let mut value = json!({ "path": hook.path, "args": hook.args, "env": hook.env });
    if let Some(timeout) = hook.timeout {
        value["timeout"] = timeout.value.into();
    }
    read("a hook", value)
}

fn read<T: DeserializeOwned>(what: &'static str, value: Value) -> Result<T, AdjustError> {
    serde_json::from_value(value).map_err(AdjustError::reading(what))
}

fn adjust_process(
    process: &mut Process,
    wish: &nri::ContainerAdjustment,
    linux: &nri::LinuxContainerAdjustment,
    host: &HostFacts,
) -> Result<(), AdjustError> {
    let env = environment(process.env().clone().unwrap_or_default(), &wish.env);
    process.set_env(Some(env));
    if !wish.args.is_empty() {
        process.set_args(Some(wish.args.clone()));
    }
    if !wish.rlimits.is_empty() {
        let mut limits = process.rlimits().clone().unwrap_or_default();
        for limit in &wish.rlimits {
            let new: PosixRlimit = read(
                "an rlimit",
                json!({ "type": limit.r#type, "hard": limit.hard, "soft": limit.soft }),
            )?;
            limits.retain(|old| old.typ() != new.typ());
            limits.push(new);
        }
        process.set_rlimits(Some(limits));
    }
    if let Some(score) = linux.oom_score_adj {
        if !(-1000..=1000).contains(&score.value) {
            let problem = format!("{} is not between -1000 and 1000", score.value);
            return Err(invalid("an OOM score adjustment", problem));
        }
        let floor = host.oom_score_floor.map_or(-1000, i64::from);
        process.set_oom_score_adj(i32::try_from(score.value.max(floor)).ok());
    }
    if let Some(priority) = linux.io_priority {
        process.set_io_priority(match priority.class() {
            nri::IoPrioClass::IoprioClassNone => None,
            class => Some(read(
                "an I/O priority",
                json!({ "class": class.as_str_name(), "priority": priority.priority }),
            )?),
        });
    }
    if let Some(scheduler) = &linux.scheduler {
        process.set_scheduler(match scheduler.policy() {
            nri::LinuxSchedulerPolicy::SchedNone => None,
            policy => Some(read(
                "a scheduler",
                json!({
                    "policy": policy.as_str_name(),
                    "nice": scheduler.nice,
                    "priority": scheduler.priority,
                    "flags": scheduler.flags().map(scheduler_flag).collect::<Vec<_>>(),
                    "runtime": scheduler.runtime,
                    "deadline": scheduler.deadline,
                    "period": scheduler.period,
                }),
            )?),
        });
    }
    Ok(())
}

/// As the library that writes specifications spells it.
pub(super) fn scheduler_flag(flag: nri::LinuxSchedulerFlag) -> String {
    use nri::LinuxSchedulerFlag as Nri;
    use oci_spec::runtime::LinuxSchedulerFlag as Oci;
    name_of(&match flag {
        Nri::SchedFlagResetOnFork => Oci::SchedResetOnFork,
        Nri::SchedFlagReclaim => Oci::SchedFlagReclaim,
        Nri::SchedFlagDlOverrun => Oci::SchedFlagDLOverrun,
        Nri::SchedFlagKeepPolicy => Oci::SchedFlagKeepPolicy,
        Nri::SchedFlagKeepParams => Oci::SchedFlagKeepParams,
        Nri::SchedFlagUtilClampMin => Oci::SchedFlagUtilClampMin,
        Nri::SchedFlagUtilClampMax => Oci::SchedFlagUtilClampMax,
    })
}

/// A variable that is changed keeps its place, new ones come last.
fn environment(old: Vec<String>, wish: &[nri::KeyValue]) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let wanted = |key: &str| wish.iter().find(|e| e.key == key);
    let removed = |key: &str| wish.iter().any(|e| removal(&e.key) == Some(key));
    let assign = |e: &nri::KeyValue| format!("{}={}", e.key, e.value);
    let mut all: Vec<String> = Vec::new();
    for variable in &old {
        match wanted(&name(variable)) {
            Some(new) => all.push(assign(new)),
            None if removed(&name(variable)) => {}
            None => all.push(variable.clone()),
        }
    }
    let known: Vec<String> = old.iter().map(|variable| name(variable)).collect();
    let new = wish
        .iter()
        .filter(|e| removal(&e.key).is_none() && !known.contains(&e.key));
    all.extend(new.map(assign));
    all
}

fn adjust_linux(
    to: &mut Linux,
    wish: &nri::LinuxContainerAdjustment,
    host: &HostFacts,
) -> Result<(), AdjustError> {
    refuse(wish)?;
    if !wish.cgroups_path.is_empty() {
        to.set_cgroups_path(Some(PathBuf::from(&wish.cgroups_path)));
    }
    if let Some(policy) = &wish.seccomp_policy {
        to.set_seccomp(Some(read("a seccomp policy", seccomp(policy))?));
    }
    adjust_namespaces(to, &wish.namespaces)?;
    if !wish.sysctl.is_empty() {
        texts(to.sysctl_mut().get_or_insert_default(), &wish.sysctl);
    }
    let resources = to.resources_mut().get_or_insert_default();
    if let Some(limits) = &wish.resources {
        limits::lay_over(resources, limits, host)?;
    }
    for device in &wish.devices {
        adjust_device(to, device)?;
    }
    Ok(())
}

/// What no container of this runtime can have.
fn refuse(wish: &nri::LinuxContainerAdjustment) -> Result<(), AdjustError> {
    let added = wish.net_devices.keys().find(|name| removal(name).is_none());
    if let Some(name) = added {
        return Err(AdjustError::Unsupported(format!("network device `{name}`")));
    }
    if wish.memory_policy.is_some() {
        return Err(AdjustError::Unsupported("a memory policy".to_owned()));
    }
    let rdt = wish.rdt.clone().unwrap_or_default();
    if rdt.clos_id.is_some() || rdt.schemata.is_some() || rdt.enable_monitoring.is_some() {
        return Err(AdjustError::Unsupported("an RDT group".to_owned()));
    }
    Ok(())
}

fn seccomp(policy: &nri::LinuxSeccomp) -> Value {
    let syscall = |syscall: &nri::LinuxSyscall| {
        let args: Vec<Value> = syscall
            .args
            .iter()
            .map(|arg| json!({ "index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op }))
            .collect();
        let mut value = json!({ "names": syscall.names, "action": syscall.action });
        if !args.is_empty() {
            value["args"] = args.into();
        }
        if let Some(errno) = syscall.errno_ret {
            value["errnoRet"] = errno.value.into();
        }
        value
    };
    let mut value = json!({
        "defaultAction": policy.default_action,
        "architectures": policy.architectures,
        "flags": policy.flags,
        "syscalls": policy.syscalls.iter().map(syscall).collect::<Vec<_>>(),
    });
    if let Some(errno) = policy.default_errno {
        value["defaultErrnoRet"] = errno.value.into();
    }
    if !policy.listener_path.is_empty() {
        value["listenerPath"] = policy.listener_path.clone().into();
        value["listenerMetadata"] = policy.listener_metadata.clone().into();
    }
    value
}

fn adjust_namespaces(to: &mut Linux, wish: &[nri::LinuxNamespace]) -> Result<(), AdjustError> {
    let mut all = to.namespaces().clone().unwrap_or_default();
    for namespace in wish {
        let kind = removal(&namespace.r#type).unwrap_or(&namespace.r#type);
        if matches!(kind, "user" | "mount") {
            let what = format!("another {kind} namespace than the container's own");
            return Err(AdjustError::Unsupported(what));
        }
        let mut value = json!({ "type": kind });
        if !namespace.path.is_empty() {
            value["path"] = namespace.path.clone().into();
        }
        let new: oci_spec::runtime::LinuxNamespace = read("a namespace", value)?;
        all.retain(|old| old.typ() != new.typ());
        if removal(&namespace.r#type).is_none() {
            all.push(new);
        }
    }
    to.set_namespaces(Some(all));
    Ok(())
}

fn adjust_device(to: &mut Linux, wish: &nri::LinuxDevice) -> Result<(), AdjustError> {
    let path = removal(&wish.path).unwrap_or(&wish.path);
    let mut devices = to.devices().clone().unwrap_or_default();
    devices.retain(|old| old.path() != Path::new(path));
    if removal(&wish.path).is_none() {
        if !path.starts_with('/') {
            return Err(invalid("a device", format!("path `{path}` is not absolute")));
        }
        let mut value =
            json!({ "path": path, "type": wish.r#type, "major": wish.major, "minor": wish.minor });
        if let Some(mode) = wish.file_mode {
            value["fileMode"] = mode.value.into();
        }
        for (key, id) in [("uid", wish.uid), ("gid", wish.gid)] {
            if let Some(id) = id {
                value[key] = id.value.into();
            }
        }
        let device: LinuxDevice = read("a device", value)?;
        let resources = to.resources_mut().get_or_insert_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.push(LinuxDeviceCgroup::from(&device));
        resources.set_devices(Some(rules));
        devices.push(device);
    }
    to.set_devices(Some(devices));
    Ok(())
}

fn adjust_mounts(spec: &mut Spec, wish: &[nri::Mount], ground: &Ground<'_>) -> Result<(), AdjustError> {
    if wish.is_empty() {
        return Ok(());
    }
    let mut all = spec.mounts().clone().unwrap_or_default();
    let mut propagation = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.rootfs_propagation().clone());
    for mount in wish {
        let place = destination(removal(&mount.destination).unwrap_or(&mount.destination))?;
        all.retain(|old| old.destination() != &place);
        if removal(&mount.destination).is_some() {
            continue;
        }
        let source = Path::new(&mount.source);
        let wanted = mount.options.iter().rev().map(String::as_str);
        let wanted = wanted.into_iter().find(|option| {
            matches!(
                *option,
                "rprivate" | "rslave" | "rshared" | "private" | "slave" | "shared"
            )
        });
        match (wanted, (ground.peering)(source)) {
            (Some("rshared" | "shared"), Peering::Shared) => propagation = Some("rshared".to_owned()),
            (Some("rslave" | "slave"), Peering::Shared | Peering::Slave) => {
                propagation.get_or_insert_with(|| "rslave".to_owned());
            }
            (Some(wanted @ ("rshared" | "shared" | "rslave" | "slave")), _) => {
                let problem = format!(
                    "propagation {wanted} of `{}` needs a shared mount on the host",
                    mount.source
                );
                return Err(invalid("a mount", problem));
            }
            _ => {}
        }
        let mut oci: Mount = read(
            "a mount",
            json!({ "destination": place, "source": mount.source, "options": mount.options }),
        )?;
        oci.set_typ(Some(mount.r#type.clone()).filter(|kind| !kind.is_empty()));
        all.push(oci);
    }
    // Parents first; stable, so that what lies equally deep keeps its order.
    all.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(all));
    if let Some(linux) = spec.linux_mut() {
        linux.set_rootfs_propagation(propagation);
    }
    Ok(())
}
