//! Limits: as the CRI says them, as NRI says them, and as the OCI specification does.
//!
//! In the CRI zero means "not set"; NRI knows what is set. What plugins want goes through the same function as what
//! the CRI wants, so that one limit is checked in one way; what the CRI has no words for is laid over that.

use cri_api::v1;
use cri_nri::v1alpha1 as nri;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxPidsBuilder, LinuxResources};
use serde_json::json;

use super::adjust::AdjustError;
use super::messages::name_of;
use crate::spec::{HostFacts, linux_resources};

fn signed(value: i64) -> Option<nri::OptionalInt64> {
    (value != 0).then_some(nri::OptionalInt64 { value })
}

fn unsigned(value: i64) -> Option<nri::OptionalUInt64> {
    let value = u64::try_from(value).ok()?;
    (value != 0).then_some(nri::OptionalUInt64 { value })
}

/// What the CRI asks for.
pub(super) fn from_cri(asked: &v1::LinuxContainerResources) -> nri::LinuxResources {
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: signed(asked.memory_limit_in_bytes),
            swap: signed(asked.memory_swap_limit_in_bytes),
            ..nri::LinuxMemory::default()
        }),
        cpu: Some(nri::LinuxCpu {
            shares: unsigned(asked.cpu_shares),
            quota: signed(asked.cpu_quota),
            period: unsigned(asked.cpu_period),
            cpus: asked.cpuset_cpus.clone(),
            mems: asked.cpuset_mems.clone(),
            ..nri::LinuxCpu::default()
        }),
        hugepage_limits: asked
            .hugepage_limits
            .iter()
            .map(|limit| nri::HugepageLimit {
                page_size: limit.page_size.clone(),
                limit: limit.limit,
            })
            .collect(),
        unified: asked.unified.clone().into_iter().collect(),
        ..nri::LinuxResources::default()
    }
}

/// What the CRI can say of what plugins want.
pub(super) fn to_cri(wish: &nri::LinuxResources) -> v1::LinuxContainerResources {
    let memory = wish.memory.unwrap_or_default();
    let cpu = wish.cpu.clone().unwrap_or_default();
    let number = |value: Option<nri::OptionalInt64>| value.map_or(0, |v| v.value);
    let count =
        |value: Option<nri::OptionalUInt64>| value.map_or(0, |v| i64::try_from(v.value).unwrap_or(i64::MAX));
    v1::LinuxContainerResources {
        cpu_shares: count(cpu.shares),
        cpu_quota: number(cpu.quota),
        cpu_period: count(cpu.period),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        memory_limit_in_bytes: number(memory.limit),
        memory_swap_limit_in_bytes: number(memory.swap),
        hugepage_limits: wish
            .hugepage_limits
            .iter()
            .map(|limit| v1::HugepageLimit {
                page_size: limit.page_size.clone(),
                limit: limit.limit,
            })
            .collect(),
        unified: wish.unified.clone().into_iter().collect(),
        ..v1::LinuxContainerResources::default()
    }
}

/// What a specification holds.
pub(super) fn from_oci(written: &LinuxResources) -> nri::LinuxResources {
    let signed = |value: Option<i64>| value.map(|value| nri::OptionalInt64 { value });
    let unsigned = |value: Option<u64>| value.map(|value| nri::OptionalUInt64 { value });
    let memory = written.memory().map(|memory| nri::LinuxMemory {
        limit: signed(memory.limit()),
        reservation: signed(memory.reservation()),
        swap: signed(memory.swap()),
        swappiness: unsigned(memory.swappiness()),
        disable_oom_killer: memory
            .disable_oom_killer()
            .map(|value| nri::OptionalBool { value }),
        ..nri::LinuxMemory::default()
    });
    let cpu = written.cpu().as_ref().map(|cpu| nri::LinuxCpu {
        shares: unsigned(cpu.shares()),
        quota: signed(cpu.quota()),
        period: unsigned(cpu.period()),
        realtime_runtime: signed(cpu.realtime_runtime()),
        realtime_period: unsigned(cpu.realtime_period()),
        cpus: cpu.cpus().clone().unwrap_or_default(),
        mems: cpu.mems().clone().unwrap_or_default(),
    });
    nri::LinuxResources {
        memory,
        cpu,
        hugepage_limits: written
            .hugepage_limits()
            .iter()
            .flatten()
            .map(|limit| nri::HugepageLimit {
                page_size: limit.page_size().clone(),
                limit: u64::try_from(limit.limit()).unwrap_or(u64::MAX),
            })
            .collect(),
        unified: written.unified().clone().into_iter().flatten().collect(),
        devices: written.devices().iter().flatten().map(device_rule).collect(),
        pids: written.pids().map(|pids| nri::LinuxPids { limit: pids.limit() }),
        ..nri::LinuxResources::default()
    }
}

fn device_rule(rule: &LinuxDeviceCgroup) -> nri::LinuxDeviceCgroup {
    let number = |value: Option<i64>| value.map(|value| nri::OptionalInt64 { value });
    nri::LinuxDeviceCgroup {
        allow: rule.allow(),
        r#type: rule.typ().map(|kind| name_of(&kind)).unwrap_or_default(),
        major: number(rule.major()),
        minor: number(rule.minor()),
        access: rule.access().clone().unwrap_or_default(),
    }
}

/// Takes over from `now` what is set there.
pub(super) fn refresh(resources: &mut nri::LinuxResources, now: &nri::LinuxResources) {
    fn set<T: Copy>(to: &mut Option<T>, from: Option<T>) {
        *to = from.or(*to);
    }
    if let Some(from) = now.memory {
        let to = resources.memory.get_or_insert_default();
        set(&mut to.limit, from.limit);
        set(&mut to.swap, from.swap);
    }
    if let Some(from) = &now.cpu {
        let to = resources.cpu.get_or_insert_default();
        set(&mut to.shares, from.shares);
        set(&mut to.quota, from.quota);
        set(&mut to.period, from.period);
        for (to, from) in [(&mut to.cpus, &from.cpus), (&mut to.mems, &from.mems)] {
            if !from.is_empty() {
                to.clone_from(from);
            }
        }
    }
    if !now.hugepage_limits.is_empty() {
        resources.hugepage_limits.clone_from(&now.hugepage_limits);
    }
    resources.unified.extend(now.unified.clone());
}

/// Lays what plugins want over a specification's limits, new ones or an update's.
pub(super) fn lay_over(
    resources: &mut LinuxResources,
    wish: &nri::LinuxResources,
    host: &HostFacts,
) -> Result<(), AdjustError> {
    refuse(wish)?;
    let mut asked = to_cri(wish);
    if asked.memory_limit_in_bytes == 0
        && let Some(limit) = resources.memory().and_then(|memory| memory.limit())
        && asked.memory_swap_limit_in_bytes != 0
    {
        // Swap is limited together with memory, so the two are checked together.
        asked.memory_limit_in_bytes = limit;
    }
    let checked = linux_resources(&asked, host)?;
    lay_cpu(resources, &checked, wish);
    lay_memory(resources, &checked, wish);
    let limits = checked.hugepage_limits().clone().unwrap_or_default();
    if !limits.is_empty() {
        let mut all = resources.hugepage_limits().clone().unwrap_or_default();
        all.retain(|old| limits.iter().all(|new| new.page_size() != old.page_size()));
        all.extend(limits);
        resources.set_hugepage_limits(Some(all));
    }
    if let Some(unified) = checked.unified() {
        let mut all = resources.unified().clone().unwrap_or_default();
        all.extend(unified.clone());
        resources.set_unified(Some(all));
    }
    if let Some(pids) = wish.pids {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(pids.limit).build()?));
    }
    if !wish.devices.is_empty() {
        let mut rules = resources.devices().clone().unwrap_or_default();
        for rule in &wish.devices {
            rules.push(oci_rule(rule)?);
        }
        resources.set_devices(Some(rules));
    }
    Ok(())
}

/// What no container of this runtime can have.
fn refuse(wish: &nri::LinuxResources) -> Result<(), AdjustError> {
    let memory = wish.memory.unwrap_or_default();
    let class = |class: &Option<nri::OptionalString>| class.as_ref().is_some_and(|c| !c.value.is_empty());
    let unsupported = [
        (class(&wish.blockio_class), "a block I/O class"),
        (class(&wish.rdt_class), "an RDT class"),
        (memory.kernel.is_some(), "a limit of kernel memory"),
        (memory.kernel_tcp.is_some(), "a limit of kernel TCP memory"),
        (memory.use_hierarchy.is_some(), "hierarchical memory accounting"),
    ];
    match unsupported.into_iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(AdjustError::Unsupported(what.to_owned())),
        None => Ok(()),
    }
}

fn lay_cpu(resources: &mut LinuxResources, checked: &LinuxResources, wish: &nri::LinuxResources) {
    let Some(wish) = &wish.cpu else { return };
    let mut to = resources.cpu().clone().unwrap_or_default();
    let from = checked.cpu().clone().unwrap_or_default();
    let (shares, quota, period) = (
        from.shares().or(to.shares()),
        from.quota().or(to.quota()),
        from.period().or(to.period()),
    );
    let cpus = from.cpus().clone().or_else(|| to.cpus().clone());
    let mems = from.mems().clone().or_else(|| to.mems().clone());
    let runtime = wish.realtime_runtime.map(|v| v.value).or(to.realtime_runtime());
    let realtime_period = wish.realtime_period.map(|v| v.value).or(to.realtime_period());
    to.set_shares(shares)
        .set_quota(quota)
        .set_period(period)
        .set_cpus(cpus)
        .set_mems(mems)
        .set_realtime_runtime(runtime)
        .set_realtime_period(realtime_period);
    resources.set_cpu(Some(to));
}

fn lay_memory(resources: &mut LinuxResources, checked: &LinuxResources, wish: &nri::LinuxResources) {
    let Some(wish) = wish.memory else { return };
    let mut to = resources.memory().unwrap_or_default();
    let from = checked.memory().unwrap_or_default();
    let (limit, swap) = (from.limit().or(to.limit()), from.swap().or(to.swap()));
    let reservation = wish.reservation.map(|v| v.value).or(to.reservation());
    let swappiness = wish.swappiness.map(|v| v.value).or(to.swappiness());
    let no_killer = wish
        .disable_oom_killer
        .map(|v| v.value)
        .or(to.disable_oom_killer());
    to.set_limit(limit)
        .set_swap(swap)
        .set_reservation(reservation)
        .set_swappiness(swappiness)
        .set_disable_oom_killer(no_killer);
    resources.set_memory(Some(to));
}

fn oci_rule(rule: &nri::LinuxDeviceCgroup) -> Result<LinuxDeviceCgroup, AdjustError> {
    let mut value = json!({ "allow": rule.allow, "access": rule.access });
    if !rule.r#type.is_empty() {
        value["type"] = rule.r#type.clone().into();
    }
    for (key, number) in [("major", &rule.major), ("minor", &rule.minor)] {
        if let Some(number) = number {
            value[key] = number.value.into();
        }
    }
    serde_json::from_value(value).map_err(AdjustError::reading("a device rule"))
}
